"""Flow-filter capabilities and resource objects (virtio v1.4 5.1.6.5.8)."""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Codec, Counted, Lengthed, Record
from virtio_ipsec.wire.fields import (
    FieldLayout,
    FieldView,
    field_layout,
    field_views,
    flagged,
    le16,
    le32,
    named,
    reserved,
    u8,
)
from virtio_ipsec.wire.numbers import FfAction, SelectorFlag, SelectorType


@dataclass(frozen=True, slots=True)
class FfResourceCap:
    """``virtio_net_ff_cap_data``: limits of the flow filter's resource objects."""

    groups_limit: int
    classifiers_limit: int
    rules_limit: int
    rules_per_group_limit: int
    last_rule_priority: int
    selectors_per_classifier_limit: int


@dataclass(frozen=True, slots=True)
class Selector:
    """``virtio_net_ff_selector``: the part of a packet to compare; ``mask`` has the header's length."""

    type: int
    flags: int = 0
    mask: bytes = b""


@dataclass(frozen=True, slots=True)
class FfSelectorCap:
    """``virtio_net_ff_cap_mask_data``: what may be matched."""

    selectors: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class FfActionCap:
    """``virtio_net_ff_actions``: action numbers."""

    actions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FfGroup:
    """``virtio_net_resource_obj_ff_group``."""

    group_priority: int


@dataclass(frozen=True, slots=True)
class FfClassifier:
    """``virtio_net_resource_obj_ff_classifier``."""

    selectors: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class FfRule:
    """``virtio_net_resource_obj_ff_rule``. ``keys`` is compared under the classifier's masks."""

    group_id: int
    classifier_id: int
    rule_priority: int
    action: int
    vq_index: int = 0
    keys: bytes = b""


class _ActionCap(Codec[FfActionCap]):
    """A count and that many action numbers. 0 is no action, so missing ones are not read as zero."""

    name = "virtio_net_ff_actions"
    size = None
    fixed_size = 8
    _head = (u8("count"), reserved("reserved", 7))

    def build(self, value: FfActionCap) -> bytes:
        try:
            return bytes((len(value.actions),)).ljust(8, b"\0") + bytes(value.actions)
        except ValueError:
            raise WireError(f"{self.name}: actions {value.actions} or their count exceed a byte") from None

    def read(self, data: bytes, at: int) -> tuple[FfActionCap, int]:
        count = data[at] if at < len(data) else 0
        actions = data[at + 8 : at + 8 + count]
        if len(actions) < count:
            raise WireError(f"{self.name}: {count} actions announced, {len(actions)} present")
        return FfActionCap(tuple(actions)), at + 8 + count

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self._head), FieldLayout("actions", 8, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        count = data[at] if at < len(data) else 0
        present = len(data[at + 8 : at + 8 + count])
        numbers = tuple(u8(f"actions[{index}]", named(FfAction)) for index in range(present))
        return field_views((*self._head, *numbers), data, at, prefix)[0], at + 8 + count


FF_RESOURCE_CAP = Record(
    "virtio_net_ff_cap_data",
    (
        le32("groups_limit"),
        le32("classifiers_limit"),
        le32("rules_limit"),
        le32("rules_per_group_limit"),
        u8("last_rule_priority"),
        u8("selectors_per_classifier_limit"),
        reserved("reserved", 2),
    ),
    FfResourceCap,
)

SELECTOR = Lengthed(
    "virtio_net_ff_selector",
    (
        u8("type", named(SelectorType)),
        u8("flags", flagged(SelectorFlag)),
        reserved("reserved", 2),
        u8("length"),
        reserved("reserved1", 3),
    ),
    Selector,
    length="length",
    tail="mask",
)

FF_SELECTOR_CAP = Counted("virtio_net_ff_cap_mask_data", "selectors", SELECTOR, FfSelectorCap, "selectors")

FF_ACTION_CAP: Codec[FfActionCap] = _ActionCap()

FF_GROUP = Record("virtio_net_resource_obj_ff_group", (le16("group_priority"),), FfGroup)

FF_CLASSIFIER = Counted(
    "virtio_net_resource_obj_ff_classifier", "selectors", SELECTOR, FfClassifier, "selectors"
)

FF_RULE = Lengthed(
    "virtio_net_resource_obj_ff_rule",
    (
        le32("group_id"),
        le32("classifier_id"),
        u8("rule_priority"),
        u8("key_length"),
        u8("action", named(FfAction)),
        reserved("reserved", 1),
        le16("vq_index"),
        reserved("reserved1", 2),
    ),
    FfRule,
    length="key_length",
    tail="keys",
)
