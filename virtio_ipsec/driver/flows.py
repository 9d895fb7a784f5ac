"""Flow filter (virtio v1.4 5.1.6.5.8): groups, classifiers, rules, and the rules that feed inbound SAs.

Where the driver clauses are obeyed:

===================  ========================================================================
NET-FF-DRV-01        ``Session`` sets the three capabilities; without them there is no Flows
NET-FF-DRV-02, -03   a group or classifier with rules is not destroyed (RO-DRV-04)
NET-FF-DRV-04        rules of a group get distinct priorities; when all are taken, one is shared
                     with rules of the same classifier only: no packet matches two of them
NET-FF-DRV-05        :func:`check_selectors`: ETH, IPv4 or IPv6, TCP or UDP or ESP (E72)
NET-FF-DRV-06        :func:`check_selectors`: EtherType and protocol masks all ones
NET-FF-DRV-07, -08   :func:`check_keys`: the keys name the selectors that follow
NET-FF-DRV-09        :func:`check_selectors`: whole fields unless PARTIAL_MASK
INF-29, INF-34       :func:`check_selectors`
===================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.errors import DriverError, LimitReached
from virtio_ipsec.driver.objects import IdPool
from virtio_ipsec.driver.sas import ESP_MODES, SaHandle
from virtio_ipsec.errors import ConfigError, VirtioIpsecError
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.flow_filter import (
    FfActionCap,
    FfClassifier,
    FfGroup,
    FfResourceCap,
    FfRule,
    FfSelectorCap,
    Selector,
)
from virtio_ipsec.wire.numbers import FfAction, IpsecOption, ResourceType, SelectorFlag, SelectorType

#: Selector type -> (offset, length) of each field in its header (virtio v1.4 5.1.6.5.8, selector types).
FIELDS: Mapping[int, tuple[tuple[int, int], ...]] = {
    SelectorType.ETH: ((0, 6), (6, 6), (12, 2)),
    SelectorType.IPV4: (
        (0, 1), (1, 1), (2, 2), (4, 2), (6, 2), (8, 1), (9, 1), (10, 2), (12, 4), (16, 4),
    ),
    SelectorType.IPV6: ((0, 4), (4, 2), (6, 1), (7, 1), (8, 16), (24, 16)),
    SelectorType.TCP: (
        (0, 2), (2, 2), (4, 4), (8, 4), (12, 1), (13, 1), (14, 2), (16, 2), (18, 2),
    ),
    SelectorType.UDP: ((0, 2), (2, 2), (4, 2), (6, 2)),
    SelectorType.ESP: ((0, 4), (4, 4)),
}  # fmt: skip
LENGTHS = {kind: sum(length for _, length in fields) for kind, fields in FIELDS.items()}

ETHERTYPES = {SelectorType.IPV4: 0x0800, SelectorType.IPV6: 0x86DD}
PROTOCOLS = {SelectorType.TCP: 6, SelectorType.UDP: 17, SelectorType.ESP: 50}
_AH = 51
_PROTOCOL_AT = {SelectorType.IPV4: 9, SelectorType.IPV6: 6}
_VERSIONS = {4: SelectorType.IPV4, 6: SelectorType.IPV6}
_NAT_T_PORT = 4500
#: Groups are tried by descending priority; leaves room on both sides.
_IPSEC_PRIORITY = 0x8000


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A group of rules on the device."""

    id: int
    priority: int


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A classifier on the device: which fields are compared."""

    id: int
    selectors: tuple[Selector, ...]

    @property
    def mask(self) -> bytes:
        """The masks of all selectors, as long as a rule's keys."""
        return b"".join(selector.mask for selector in self.selectors)


@dataclass(slots=True, eq=False)
class Rule:
    """A rule on the device. ``users`` counts the SAs that share it."""

    id: int
    group: Group
    classifier: Classifier
    keys: bytes
    action: int
    priority: int
    vq_index: int = 0
    users: int = 1

    @property
    def masked(self) -> bytes:
        """The keys under the classifier's masks: what is compared."""
        return bytes(key & mask for key, mask in zip(self.keys, self.classifier.mask, strict=True))


class Flows:
    """Flow-filter objects of one session."""

    def __init__(
        self,
        admin: Admin,
        dialect: Dialect,
        limits: FfResourceCap,
        selectors: FfSelectorCap,
        actions: FfActionCap,
        receive_queues: int,
    ) -> None:
        self._admin = admin
        self._dialect = dialect
        self._limits = limits
        self._selectors = {selector.type: selector for selector in selectors.selectors}
        self._actions = frozenset(actions.actions)
        self._receive_queues = receive_queues
        self._group_ids = IdPool("groups", limits.groups_limit)
        self._classifier_ids = IdPool("classifiers", limits.classifiers_limit)
        self._rule_ids = IdPool("rules", limits.rules_limit)
        self._groups: dict[int, Group] = {}
        self._classifiers: dict[tuple[Selector, ...], Classifier] = {}
        #: group id -> priority -> masked keys -> rule; the rules of one priority share their classifier
        self._rules: dict[int, dict[int, dict[bytes, Rule]]] = {}
        #: (classifier id, keys, action) -> rule that feeds inbound SAs
        self._feeding: dict[tuple[int, bytes, int], Rule] = {}

    def group(self, priority: int) -> Group:
        """The group with this priority (0..65535; higher is tried first), created when there is none."""
        for group in self._groups.values():
            if group.priority == priority:
                return group
        kind = ResourceType.NET_FF_GROUP
        number = self._create(kind, self._group_ids, self._build(kind, FfGroup(priority)))
        self._groups[number] = Group(number, priority)
        self._rules[number] = {}
        return self._groups[number]

    def classifier(self, selectors: Sequence[Selector]) -> Classifier:
        """The classifier with these selectors, created when there is none. Raises ConfigError."""
        wanted = tuple(selectors)
        known = self._classifiers.get(wanted)
        if known is not None:
            return known
        if len(wanted) > self._limits.selectors_per_classifier_limit:
            raise ConfigError(f"{len(wanted)} selectors in one classifier")
        check_selectors(wanted, self._selectors)
        kind = ResourceType.NET_FF_CLASSIFIER
        number = self._create(kind, self._classifier_ids, self._build(kind, FfClassifier(wanted)))
        self._classifiers[wanted] = Classifier(number, wanted)
        return self._classifiers[wanted]

    def rule(
        self,
        group: Group,
        classifier: Classifier,
        keys: bytes,
        action: int,
        *,
        priority: int | None = None,
        vq_index: int = 0,
    ) -> Rule:
        """Create a rule. Without ``priority`` the lowest free one of the group is taken."""
        self._must_live(group, classifier)
        check_keys(classifier.selectors, keys)
        if action not in self._actions:
            raise ConfigError(f"action {action} is not in the device's capability")
        if action == FfAction.DIRECT_RX_VQ:
            self._check_queue(vq_index)
        taken = self._rules[group.id]
        if sum(map(len, taken.values())) >= self._limits.rules_per_group_limit:
            raise LimitReached(f"group {group.id} holds {self._limits.rules_per_group_limit} rules")
        rule = Rule(-1, group, classifier, keys, action, 0, vq_index)
        rule.priority = self._free_priority(taken, rule) if priority is None else priority
        if not 0 <= rule.priority <= self._limits.last_rule_priority:
            raise ConfigError(f"rule priority {priority}; the last one is {self._limits.last_rule_priority}")
        if not _fits(taken.get(rule.priority, {}), rule):
            raise ConfigError(f"rule priority {priority} is taken by a rule that may match the same packet")
        kind = ResourceType.NET_FF_RULE
        value = FfRule(group.id, classifier.id, rule.priority, action, vq_index, keys)
        rule.id = self._create(kind, self._rule_ids, self._build(kind, value))
        taken.setdefault(rule.priority, {})[rule.masked] = rule
        return rule

    def rules(self) -> tuple[Rule, ...]:
        """All rules."""
        return tuple(
            r for by_priority in self._rules.values() for same in by_priority.values() for r in same.values()
        )

    def destroy_rule(self, rule: Rule) -> None:
        """Destroy a rule; a rule that several SAs share goes with the last of them."""
        if not self._is_live(rule):
            raise DriverError(f"rule {rule.id} has been destroyed")
        if rule.users > 1:
            rule.users -= 1
            return
        self._admin.destroy(ResourceType.NET_FF_RULE, rule.id)
        same = self._rules[rule.group.id][rule.priority]
        del same[rule.masked]
        if not same:
            del self._rules[rule.group.id][rule.priority]
        self._rule_ids.release(rule.id)
        self._feeding.pop((rule.classifier.id, rule.keys, rule.action), None)

    def destroy_group(self, group: Group) -> None:
        """Destroy a group without rules."""
        if self._groups.get(group.id) is not group:
            raise DriverError(f"group {group.id} has been destroyed")
        if self._rules[group.id]:
            raise DriverError(f"group {group.id} still has rules")
        self._admin.destroy(ResourceType.NET_FF_GROUP, group.id)
        del self._groups[group.id], self._rules[group.id]
        self._group_ids.release(group.id)

    def destroy_classifier(self, classifier: Classifier) -> None:
        """Destroy a classifier without rules."""
        if self._classifiers.get(classifier.selectors) is not classifier:
            raise DriverError(f"classifier {classifier.id} has been destroyed")
        if any(rule.classifier is classifier for rule in self.rules()):
            raise DriverError(f"classifier {classifier.id} still has rules")
        self._admin.destroy(ResourceType.NET_FF_CLASSIFIER, classifier.id)
        del self._classifiers[classifier.selectors]
        self._classifier_ids.release(classifier.id)

    def clear(self) -> None:
        """Destroy everything, rules first."""
        for rule in self.rules():
            rule.users = 1
            self.destroy_rule(rule)
        for classifier in tuple(self._classifiers.values()):
            self.destroy_classifier(classifier)
        for group in tuple(self._groups.values()):
            self.destroy_group(group)

    # Rules that feed inbound SAs.

    def protect(
        self, sa: SaHandle, *, versions: Sequence[int] = (4, 6), recirculate: bool = False
    ) -> tuple[Rule, ...]:
        """Rules that send packets of inbound SA ``sa`` to IPsec, one per outer IP version.

        ESP is matched by SPI, ESP in UDP by destination port (E78), AH by protocol number (E69); the last
        two are shared by all such SAs. None are needed where the dialect looks SAs up without a rule.
        """
        if not sa.inbound:
            raise DriverError("only an inbound SA is fed by flow-filter rules")
        if self._dialect.sa_lookup_without_rule:
            return ()
        before = sa.rules
        try:
            for version in versions:
                sa.rules += (self._protect_one(sa, version, recirculate),)
        except VirtioIpsecError:
            self.unprotect(sa, keep=len(before))
            raise
        return sa.rules[len(before) :]

    def unprotect(self, sa: SaHandle, *, keep: int = 0) -> None:
        """Destroy the rules that feed ``sa``, the latest first, but for the first ``keep``. Rules that
        :meth:`clear` has taken away already are forgotten."""
        while len(sa.rules) > keep:
            if self._is_live(sa.rules[-1]):
                self.destroy_rule(sa.rules[-1])
            sa.rules = sa.rules[:-1]

    def _protect_one(self, sa: SaHandle, version: int, recirculate: bool) -> Rule:
        params = sa.params
        if params.mode not in ESP_MODES:
            return self.protect_ah(version, recirculate=recirculate)
        if params.options & IpsecOption.UDP_ENCAP:
            return self.protect_udp_encap(version, params.udp_dport or _NAT_T_PORT, recirculate=recirculate)
        return self.protect_esp(params.spi, version, recirculate=recirculate)

    def protect_esp(self, spi: int, version: int = 4, *, recirculate: bool = False) -> Rule:
        """A rule for ESP with this SPI over IPv4 or IPv6."""
        return self._ipsec_rule(version, SelectorType.ESP, spi.to_bytes(4, "big"), 0, recirculate)

    def protect_udp_encap(
        self, version: int = 4, port: int = _NAT_T_PORT, *, recirculate: bool = False
    ) -> Rule:
        """A rule for ESP in UDP to this port (RFC 3948)."""
        return self._ipsec_rule(version, SelectorType.UDP, port.to_bytes(2, "big"), 2, recirculate)

    def protect_ah(self, version: int = 4, *, recirculate: bool = False) -> Rule:
        """A rule for every AH packet over IPv4 or IPv6: no selector reaches its SPI."""
        return self._ipsec_rule(version, None, b"", 0, recirculate)

    def _ipsec_rule(
        self, version: int, kind: SelectorType | None, value: bytes, at: int, recirculate: bool
    ) -> Rule:
        network = _VERSIONS[version]
        protocol = _AH if kind is None else PROTOCOLS[kind]
        parts = [
            (SelectorType.ETH, 12, ETHERTYPES[network].to_bytes(2, "big")),
            (network, _PROTOCOL_AT[network], bytes((protocol,))),
        ]
        if kind is not None:
            parts.append((kind, at, value))
        selectors, keys = [], b""
        for selector, offset, content in parts:
            length = LENGTHS[selector]
            mask = (bytes(offset) + b"\xff" * len(content)).ljust(length, b"\0")
            selectors.append(Selector(selector, 0, mask))
            keys += (bytes(offset) + content).ljust(length, b"\0")
        action = FfAction.IPSEC_RECIRCULATE if recirculate else FfAction.IPSEC
        classifier = self.classifier(selectors)
        known = self._feeding.get((classifier.id, keys, action))
        if known is not None:
            known.users += 1
            return known
        rule = self.rule(self.group(_IPSEC_PRIORITY), classifier, keys, action)
        self._feeding[classifier.id, keys, action] = rule
        return rule

    def _is_live(self, rule: Rule) -> bool:
        return self._rules.get(rule.group.id, {}).get(rule.priority, {}).get(rule.masked) is rule

    def _must_live(self, group: Group, classifier: Classifier) -> None:
        if self._groups.get(group.id) is not group:
            raise DriverError(f"group {group.id} has been destroyed")
        if self._classifiers.get(classifier.selectors) is not classifier:
            raise DriverError(f"classifier {classifier.id} has been destroyed")

    def _check_queue(self, vq_index: int) -> None:
        if vq_index % 2 or not 0 <= vq_index < 2 * self._receive_queues:
            raise ConfigError(f"virtqueue {vq_index} is no receive queue in use")

    def _free_priority(self, taken: Mapping[int, Mapping[bytes, Rule]], rule: Rule) -> int:
        last = self._limits.last_rule_priority
        if len(taken) <= last:
            return next(number for number in range(last + 1) if number not in taken)
        for number, rules in taken.items():
            if _fits(rules, rule):
                return number
        raise LimitReached("no rule priority is free of rules that may match the same packet")

    def _build(self, kind: int, value: object) -> bytes:
        return self._dialect.objects[kind].build(value)

    def _create(self, kind: int, ids: IdPool, data: bytes) -> int:
        number = ids.take()
        try:
            self._admin.create(kind, number, data)
        except VirtioIpsecError:
            ids.release(number)
            raise
        return number


def check_selectors(selectors: Sequence[Selector], allowed: Mapping[int, Selector]) -> None:
    """ConfigError unless a classifier may have these selectors. ``allowed``: the capability's, by type."""
    orders = ((SelectorType.ETH,), tuple(ETHERTYPES), tuple(PROTOCOLS))
    if not 0 < len(selectors) <= len(orders):
        raise ConfigError(f"{len(selectors)} selectors in one classifier")
    for selector, order in zip(selectors, orders, strict=False):
        if selector.type not in order:
            raise ConfigError(f"selector type {selector.type} in a place for one of {[*map(int, order)]}")
        cap = allowed.get(selector.type)
        if cap is None or any(ours & ~theirs for ours, theirs in zip(selector.mask, cap.mask, strict=False)):
            raise ConfigError(f"the device cannot match this with selector type {selector.type}")
        if len(selector.mask) != LENGTHS[SelectorType(selector.type)]:
            raise ConfigError(f"a mask of {len(selector.mask)} bytes for selector type {selector.type}")
        if selector.flags & ~cap.flags:
            raise ConfigError(f"flags {selector.flags:#x} of selector type {selector.type}")
        if not selector.flags & SelectorFlag.PARTIAL_MASK:
            for at, length in FIELDS[selector.type]:
                if selector.mask[at : at + length] not in (bytes(length), b"\xff" * length):
                    raise ConfigError(f"a partial mask at byte {at} of selector type {selector.type}")
    if len(selectors) > 1 and selectors[0].mask[12:14] != b"\xff\xff":
        raise ConfigError("the EtherType must be compared when an IP selector follows")
    if len(selectors) > 2 and selectors[1].mask[_PROTOCOL_AT[SelectorType(selectors[1].type)]] != 0xFF:
        raise ConfigError("the protocol must be compared when a transport selector follows")


def check_keys(selectors: Sequence[Selector], keys: bytes) -> None:
    """ConfigError unless a rule under these selectors may have these keys."""
    if len(keys) != sum(len(selector.mask) for selector in selectors):
        raise ConfigError(f"keys of {len(keys)} bytes do not fit the classifier")
    if len(selectors) > 1:
        network = SelectorType(selectors[1].type)
        if int.from_bytes(keys[12:14], "big") != ETHERTYPES[network]:
            raise ConfigError("the keys' EtherType is not that of the IP selector")
        at = len(selectors[0].mask) + _PROTOCOL_AT[network]
        if len(selectors) > 2 and keys[at] != PROTOCOLS[SelectorType(selectors[2].type)]:
            raise ConfigError("the keys' protocol is not that of the transport selector")


def _fits(rules: Mapping[bytes, Rule], rule: Rule) -> bool:
    """True when no packet can match one of ``rules`` and ``rule``: rules of one classifier with different
    masked keys. Others are taken to overlap."""
    return rule.masked not in rules and all(
        each.classifier is rule.classifier for each in islice(rules.values(), 1)
    )
