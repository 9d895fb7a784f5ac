"""Flow-filter groups, classifiers and rules as resource objects (virtio v1.4 5.1.6.7.3).

What the text only obliges the driver to (EtherType and protocol bits of masks and keys, distinct priorities
of overlapping rules) is not refused: such a rule simply matches what its bits say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from virtio_ipsec.device.capabilities import FF_CAPS, IPSEC_ACTIONS, IPSEC_CAPS, Capabilities
from virtio_ipsec.device.config import SELECTOR_SIZES
from virtio_ipsec.device.objects import ObjectKey, ObjectKind, V
from virtio_ipsec.device.state import DataPlaneContext
from virtio_ipsec.errors import InvalidField, NoSpace
from virtio_ipsec.wire.flow_filter import FfActionCap, FfClassifier, FfGroup, FfResourceCap, FfRule, Selector
from virtio_ipsec.wire.numbers import CapId, Feature, FfAction, ResourceType, SelectorFlag, SelectorType

#: Selector types that may stand at each place of a classifier (body text of 5.1.6.7.3.2; ESP as third: E72).
CHAIN: Final[tuple[frozenset[int], ...]] = (
    frozenset({SelectorType.ETH}),
    frozenset({SelectorType.IPV4, SelectorType.IPV6}),
    frozenset({SelectorType.TCP, SelectorType.UDP, SelectorType.ESP}),
)

#: Header fields of each selector type as bit widths from the first bit on. Where headers have been redefined
#: the finer cut stands (DSCP and ECN); TCP control bits count one by one (virtio v1.4 5.1.6.7.2.2).
FIELD_BITS: Final[dict[int, tuple[int, ...]]] = {
    SelectorType.ETH: (48, 48, 16),
    SelectorType.IPV4: (4, 4, 6, 2, 16, 16, 3, 13, 8, 8, 16, 32, 32),
    SelectorType.IPV6: (4, 6, 2, 20, 16, 8, 8, 128, 128),
    SelectorType.TCP: (16, 16, 32, 32, 4, 4, *(1,) * 8, 16, 16, 16),
    SelectorType.UDP: (16, 16, 16, 16),
    SelectorType.ESP: (32, 32),
}


def has_partial_field(selector: Selector) -> bool:
    """Whether the mask takes some but not all bits of a header field."""
    return any(0 < taken < width for taken, width in _fields(selector))


def _fields(selector: Selector) -> Iterator[tuple[int, int]]:
    rest = len(selector.mask) * 8
    mask = int.from_bytes(selector.mask, "big")
    for width in FIELD_BITS[selector.type]:
        rest -= width
        yield (mask >> rest & ((1 << width) - 1)).bit_count(), width


class FlowFilterKind(ObjectKind[V, V]):
    """What groups, classifiers and rules share."""

    needs = FF_CAPS
    disabled_clause = "NET-FF-DEV-03"

    def limits(self) -> FfResourceCap:
        """The driver's limits."""
        limits: FfResourceCap = self.capabilities.driver(CapId.NET_FF_RESOURCE_CAP)
        return limits

    def check_limit(self, object_id: int, live: int, limit: int, clause: str) -> None:
        """A full table is ENOSPC, an id outside it EINVAL (E74)."""
        if live >= limit:
            raise NoSpace(f"{self.type.name}: limit {limit} reached", clause=clause)
        if object_id >= limit:
            raise InvalidField(f"{self.type.name} id {object_id}: limit {limit}", clause=clause)

    def changed(self) -> None:
        """Tell whoever compiled the objects."""
        self.context.filters.generation += 1


class GroupKind(FlowFilterKind[FfGroup]):
    """VIRTIO_NET_RESOURCE_OBJ_FF_GROUP."""

    type = ResourceType.NET_FF_GROUP

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().groups_limit, "NET-FF-DEV-05")

    def check_priority(self, object_id: int, value: FfGroup) -> None:
        """No other group has this priority (NET-FF-DEV-04)."""
        for other, group in self.context.filters.groups.items():
            if other != object_id and group.group_priority == value.group_priority:
                raise InvalidField(f"group_priority {value.group_priority} is taken", clause="NET-FF-DEV-04")

    def prepare(self, object_id: int, value: FfGroup) -> FfGroup:
        self.check_priority(object_id, value)
        return value

    prepare_change = prepare

    def install(self, object_id: int, prepared: FfGroup) -> None:
        self.context.filters.groups[object_id] = prepared
        if self.context.fast is not None:
            self.context.fast.flow.set_group(object_id, prepared)
        self.changed()

    change = install

    def remove(self, object_id: int) -> None:
        del self.context.filters.groups[object_id]
        if self.context.fast is not None:
            self.context.fast.flow.remove_group(object_id)
        self.changed()


class ClassifierKind(FlowFilterKind[FfClassifier]):
    """VIRTIO_NET_RESOURCE_OBJ_FF_CLASSIFIER."""

    type = ResourceType.NET_FF_CLASSIFIER

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().classifiers_limit, "NET-FF-DEV-06")

    def check_chain(self, value: FfClassifier) -> None:
        """Between one and the limit of selectors, outer header first."""
        selectors = value.selectors
        if not 0 < len(selectors) <= self.limits().selectors_per_classifier_limit:
            raise InvalidField(f"{len(selectors)} selectors")
        for selector, allowed in zip(selectors, CHAIN, strict=False):
            if selector.type not in allowed:
                raise InvalidField(f"selector type {selector.type} is out of place")

    def check_selector(self, selector: Selector) -> None:
        """Within the driver's selector capability; whole fields unless PARTIAL_MASK is set (INF-29, E75)."""
        for limit in self.capabilities.driver(CapId.NET_FF_SELECTOR_CAP).selectors:
            if limit.type == selector.type:
                break
        else:
            raise InvalidField(f"selector type {selector.type} is not in the capability")
        if len(selector.mask) != SELECTOR_SIZES[selector.type]:
            raise InvalidField(f"selector type {selector.type}: mask of {len(selector.mask)} bytes")
        if int.from_bytes(selector.mask, "big") & ~int.from_bytes(limit.mask, "big"):
            raise InvalidField(f"selector type {selector.type}: mask beyond the capability")
        if has_partial_field(selector) and not selector.flags & limit.flags & SelectorFlag.PARTIAL_MASK:
            raise InvalidField(f"selector type {selector.type}: part of a field without PARTIAL_MASK")

    def prepare(self, object_id: int, value: FfClassifier) -> FfClassifier:
        self.check_chain(value)
        for selector in value.selectors:
            self.check_selector(selector)
        return value

    prepare_change = prepare

    def install(self, object_id: int, prepared: FfClassifier) -> None:
        self.context.filters.classifiers[object_id] = prepared
        if self.context.fast is not None:
            self.context.fast.flow.set_classifier(object_id, prepared)
        self.changed()

    change = install

    def remove(self, object_id: int) -> None:
        del self.context.filters.classifiers[object_id]
        if self.context.fast is not None:
            self.context.fast.flow.remove_classifier(object_id)
        self.changed()


class RuleKind(FlowFilterKind[FfRule]):
    """VIRTIO_NET_RESOURCE_OBJ_FF_RULE."""

    type = ResourceType.NET_FF_RULE

    def __init__(self, context: DataPlaneContext, capabilities: Capabilities) -> None:
        super().__init__(context, capabilities)
        #: Rules in each group.
        self._members: Counter[int] = Counter()

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().rules_limit, "NET-FF-DEV-09")

    def depends_on(self, value: FfRule) -> tuple[ObjectKey, ...]:
        return (
            (int(ResourceType.NET_FF_GROUP), value.group_id),
            (int(ResourceType.NET_FF_CLASSIFIER), value.classifier_id),
        )

    def check_references(self, value: FfRule) -> None:
        """Group and classifier exist."""
        if value.group_id not in self.context.filters.groups:
            raise InvalidField(f"no group {value.group_id}")
        if value.classifier_id not in self.context.filters.classifiers:
            raise InvalidField(f"no classifier {value.classifier_id}")

    def check_group_size(self, object_id: int, value: FfRule) -> None:
        """The group has room for one more rule (E74)."""
        old = self.context.filters.rules.get(object_id)
        stays = old is not None and old.group_id == value.group_id
        limit = self.limits().rules_per_group_limit
        if not stays and self._members[value.group_id] >= limit:
            raise NoSpace(f"rules_per_group_limit {limit} reached", clause="NET-FF-DEV-09")

    def check_priority(self, value: FfRule) -> None:
        """At most ``last_rule_priority``, which may itself be used (E73)."""
        last = self.limits().last_rule_priority
        if value.rule_priority > last:
            raise InvalidField(f"rule_priority {value.rule_priority}: at most {last}", clause="NET-FF-DEV-09")

    def check_keys(self, value: FfRule) -> None:
        """As many key bytes as the classifier has mask bytes."""
        wanted = sum(len(s.mask) for s in self.context.filters.classifiers[value.classifier_id].selectors)
        if len(value.keys) != wanted:
            raise InvalidField(
                f"{len(value.keys)} key bytes where {wanted} are needed", clause="NET-FF-DEV-09"
            )

    def check_action(self, value: FfRule) -> None:
        """In the driver's action capability; IPsec actions only while IPsec is enabled (E77)."""
        actions: FfActionCap = self.capabilities.driver(CapId.NET_FF_ACTION_CAP)
        usable = value.action not in IPSEC_ACTIONS or self.capabilities.enabled(*IPSEC_CAPS)
        if value.action not in actions.actions or not usable:
            raise InvalidField(f"action {value.action} is not in the capability", clause="NET-FF-DEV-09")

    def check_queue(self, value: FfRule) -> None:
        """DIRECT_RX_VQ names a receive virtqueue: index 2n for receiveq n+1. Other actions ignore it (E59)."""
        multi = self.context.has(Feature.NET_F_MQ) or self.context.has(Feature.NET_F_RSS)
        pairs = self.context.config.max_queue_pairs if multi else 1
        if value.action == FfAction.DIRECT_RX_VQ and (value.vq_index % 2 or value.vq_index // 2 >= pairs):
            raise InvalidField(f"vq_index {value.vq_index} is no receive queue", clause="NET-FF-DEV-09")

    def prepare(self, object_id: int, value: FfRule) -> FfRule:
        self.check_references(value)
        self.check_priority(value)
        self.check_keys(value)
        self.check_action(value)
        self.check_queue(value)
        self.check_group_size(object_id, value)
        return value

    prepare_change = prepare

    def install(self, object_id: int, prepared: FfRule) -> None:
        self.context.filters.rules[object_id] = prepared
        self._members[prepared.group_id] += 1
        if self.context.fast is not None:
            self.context.fast.flow.set_rule(object_id, prepared)
        self.changed()

    def change(self, object_id: int, prepared: FfRule) -> None:
        self.remove(object_id)
        self.install(object_id, prepared)

    def remove(self, object_id: int) -> None:
        self._members[self.context.filters.rules.pop(object_id).group_id] -= 1
        if self.context.fast is not None:
            self.context.fast.flow.remove_rule(object_id)
        self.changed()
