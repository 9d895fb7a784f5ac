"""Flow-filter objects for cases: what to match, and groups, classifiers and rules by id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.frames import ETHERTYPES, UDP
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.flow_filter import (
    FF_CLASSIFIER,
    FF_GROUP,
    FF_RULE,
    FfActionCap,
    FfClassifier,
    FfGroup,
    FfResourceCap,
    FfRule,
    FfSelectorCap,
    Selector,
)
from virtio_ipsec.wire.numbers import CapId, FfAction, ResourceType, SelectorFlag, SelectorType

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

#: Octets of each header that a selector covers (virtio v1.4, table of selector types).
SIZES = {
    SelectorType.ETH: 14,
    SelectorType.IPV4: 20,
    SelectorType.IPV6: 40,
    SelectorType.TCP: 20,
    SelectorType.UDP: 8,
    SelectorType.ESP: 8,
}
GROUP, CLASSIFIER, RULE = (
    ResourceType.NET_FF_GROUP,
    ResourceType.NET_FF_CLASSIFIER,
    ResourceType.NET_FF_RULE,
)
CAPS = (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)


@dataclass(frozen=True, slots=True)
class Match:
    """One selector, and the octets that a rule compares under its mask."""

    type: SelectorType
    mask: bytes
    key: bytes
    flags: int = 0

    @property
    def selector(self) -> Selector:
        """The selector for a classifier."""
        return Selector(self.type, self.flags, self.mask)


def match(type: SelectorType, fields: dict[int, bytes], *, masks: dict[int, bytes] | None = None) -> Match:
    """A selector on ``fields`` (offset in the header -> octets), all bits unless ``masks`` says otherwise."""
    mask, key = bytearray(SIZES[type]), bytearray(SIZES[type])
    for at, value in fields.items():
        key[at : at + len(value)] = value
        mask[at : at + len(value)] = (masks or {}).get(at, b"\xff" * len(value))
    return Match(type, bytes(mask), bytes(key))


def ethernet(version: int) -> Match:
    """The EtherType of an IP version, which every classifier with an IP selector names."""
    return match(SelectorType.ETH, {12: ETHERTYPES[version].to_bytes(2)})


def network(version: int, fields: dict[int, bytes]) -> Match:
    """An IP selector of that version."""
    return match(SelectorType.IPV4 if version == 4 else SelectorType.IPV6, fields)


def protocol(version: int, number: int) -> tuple[Match, ...]:
    """Packets of an IP protocol."""
    return ethernet(version), network(version, {9 if version == 4 else 6: bytes((number,))})


def udp_port(version: int, port: int) -> tuple[Match, ...]:
    """UDP packets to a port."""
    return *protocol(version, UDP), match(SelectorType.UDP, {2: port.to_bytes(2)})


class Flows:
    """The flow filter of a device under test, with its three capabilities set.

    Ids are given out from 0. Each ``limits`` keyword replaces a member of the driver's resource capability,
    which else is the device's own.
    """

    def __init__(self, bench: Bench, **limits: int) -> None:
        admin = bench.admin
        self._bench = bench
        self._ids = {GROUP: 0, CLASSIFIER: 0, RULE: 0}
        if CapId.NET_FF_RESOURCE_CAP not in admin.cap_ids():
            raise Unsupported("the device lists no flow-filter capabilities")
        self.offered = read_limits(bench)
        self.limits = replace(self.offered, **limits)
        if beyond := [name for name, value in limits.items() if value > getattr(self.offered, name)]:
            raise Unsupported(f"the flow filter is too small for this case: {', '.join(beyond)}")
        set_limits(bench, self.limits)
        admin.accept_caps(CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)
        codecs = bench.dialect.capabilities
        self.selectors: FfSelectorCap = codecs[CapId.NET_FF_SELECTOR_CAP].parse(
            demand(admin.cap_get(CapId.NET_FF_SELECTOR_CAP)).result
        )
        self.actions: FfActionCap = codecs[CapId.NET_FF_ACTION_CAP].parse(
            demand(admin.cap_get(CapId.NET_FF_ACTION_CAP)).result
        )

    def _next(self, type: ResourceType) -> int:
        limit = {
            GROUP: self.limits.groups_limit,
            CLASSIFIER: self.limits.classifiers_limit,
            RULE: min(self.limits.rules_limit, self.limits.rules_per_group_limit),
        }[type]
        if self._ids[type] >= limit:
            raise Unsupported(f"the flow filter is too small for this case: {limit} of {type.name}")
        self._ids[type] += 1
        return self._ids[type] - 1

    def need(self, *matches: Match) -> None:
        """Unsupported when the device cannot have a classifier of just these selectors."""
        if len(matches) > self.limits.selectors_per_classifier_limit:
            raise Unsupported(f"the device has no classifiers of {len(matches)} selectors")
        by_type = {s.type: s for s in self.selectors.selectors}
        for wanted in matches:
            found = by_type.get(wanted.type)
            if found is None or int.from_bytes(wanted.mask) & ~int.from_bytes(found.mask):
                raise Unsupported(
                    f"the flow filter cannot match {wanted.type.name} fields as this case needs"
                )
            if wanted.flags & SelectorFlag.PARTIAL_MASK & ~found.flags:
                raise Unsupported(f"{wanted.type.name} selectors have no partial masks")

    def need_action(self, *actions: FfAction) -> None:
        """Unsupported when the device does not list these actions."""
        if missing := [action.name for action in actions if action not in self.actions.actions]:
            raise Unsupported(f"the device lists no flow-filter action {', '.join(missing)}")

    def put_group(self, id: int, priority: int) -> Reply:
        """CREATE a group, whatever comes of it."""
        return self._bench.admin.create(GROUP, id, FF_GROUP.build(FfGroup(priority)))

    def put_classifier(self, id: int, *matches: Match) -> Reply:
        """CREATE a classifier, whatever comes of it."""
        value = FfClassifier(tuple(m.selector for m in matches))
        return self._bench.admin.create(CLASSIFIER, id, FF_CLASSIFIER.build(value))

    def put_rule(self, id: int, rule: FfRule) -> Reply:
        """CREATE a rule, whatever comes of it."""
        return self._bench.admin.create(RULE, id, FF_RULE.build(rule))

    def group(self, priority: int) -> int:
        """The id of a new group. Raises CommandFailed."""
        id = self._next(GROUP)
        demand(self.put_group(id, priority))
        return id

    def classifier(self, *matches: Match) -> int:
        """The id of a new classifier. Raises CommandFailed, Unsupported."""
        self.need(*matches)
        id = self._next(CLASSIFIER)
        demand(self.put_classifier(id, *matches))
        return id

    def rule(
        self, group: int, matches: tuple[Match, ...], action: FfAction, *, priority: int = 0, queue: int = 0
    ) -> int:
        """The id of a new rule with a classifier of its own; ``queue`` counts receive queues from 0.

        Raises CommandFailed, Unsupported.
        """
        self.need_action(action)
        if priority and priority >= self.limits.last_rule_priority:
            raise Unsupported(f"the flow filter is too small for this case: rule priority {priority}")
        classifier = self.classifier(*matches)
        id = self._next(RULE)
        keys = b"".join(m.key for m in matches)
        demand(self.put_rule(id, FfRule(group, classifier, priority, action, 2 * queue, keys)))
        return id

    def destroy(self, type: ResourceType, id: int) -> Reply:
        """DESTROY one of the objects."""
        return self._bench.admin.destroy(type, id)


def read_limits(bench: Bench) -> FfResourceCap:
    """The device's flow-filter resource capability. Raises CommandFailed."""
    value: FfResourceCap = bench.dialect.capabilities[CapId.NET_FF_RESOURCE_CAP].parse(
        demand(bench.admin.cap_get(CapId.NET_FF_RESOURCE_CAP)).result
    )
    return value


def set_limits(bench: Bench, limits: FfResourceCap) -> None:
    """Set the driver's flow-filter resource capability. Raises CommandFailed."""
    codec = bench.dialect.capabilities[CapId.NET_FF_RESOURCE_CAP]
    demand(bench.admin.cap_set(CapId.NET_FF_RESOURCE_CAP, codec.build(limits)))
