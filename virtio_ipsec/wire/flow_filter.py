"""Flow-filter capabilities and resource objects (virtio v1.4 5.1.6.5.8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import (
    Codec,
    Counted,
    FieldLayout,
    FieldView,
    Members,
    Record,
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


class _Sized(Codec[Any]):
    """A fixed head, one byte of which says how many bytes follow it."""

    size = None

    def __init__(self, name: str, members: Members, value_type: type, length: str, tail: str) -> None:
        self.name = name
        self.members = members
        self.fixed_size = members.size
        self.value_type = value_type
        self.length = length
        self.tail = tail
        self._length_at = next(row.offset for row in field_layout(members.fields) if row.name == length)

    def build(self, value: Any) -> bytes:
        tail: bytes = getattr(value, self.tail)
        if len(tail) > 255:
            raise WireError(f"{self.name}: {self.tail} of {len(tail)} bytes does not fit a one-byte length")
        members = {name: getattr(value, name) for name in self.members.attributes if name != self.length}
        return self.members.pack({**members, self.length: len(tail)}) + tail

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        members = self.members.unpack(data, at)
        start = at + self.fixed_size
        end = start + members[self.length]
        arguments: Mapping[str, Any] = {
            name: members[name] for name in self.members.attributes if name != self.length
        }
        tail = data[start:end].ljust(end - start, b"\0")
        return self.value_type(**arguments, **{self.tail: tail}), end

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.members.fields), FieldLayout(self.tail, self.fixed_size, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        views, start = field_views(self.members.fields, data, at, prefix)
        length_at = at + self._length_at
        length = data[length_at] if length_at < len(data) else 0
        raw = data[start : start + length]
        if raw:
            cut = f" (cut: {len(raw)} of {length} bytes)" if len(raw) < length else ""
            views.append(FieldView(prefix + self.tail, start, length, raw, raw.hex() + cut))
        return views, start + length


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

SELECTOR: Codec[Selector] = _Sized(
    "virtio_net_ff_selector",
    Members(
        "virtio_net_ff_selector",
        (
            u8("type", named(SelectorType)),
            u8("flags", flagged(SelectorFlag)),
            reserved("reserved", 2),
            u8("length"),
            reserved("reserved1", 3),
        ),
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

FF_RULE: Codec[FfRule] = _Sized(
    "virtio_net_resource_obj_ff_rule",
    Members(
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
    ),
    FfRule,
    length="key_length",
    tail="keys",
)
