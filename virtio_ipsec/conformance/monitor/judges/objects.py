"""Resource objects and flow filters (virtio v1.4 2.12.4, 5.1.6.5.8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.judges.commands import LIMITS, named, parsed, sets, type_name
from virtio_ipsec.conformance.monitor.life import Command, Object, Objects, Run
from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.flow_filter import FF_CLASSIFIER, FF_RULE, FfClassifier, FfRule, Selector
from virtio_ipsec.wire.numbers import CapId, Opcode, ResourceType, SelectorFlag, SelectorType

_CREATE, _DESTROY = Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY
_GROUP, _CLASSIFIER, _RULE = (
    ResourceType.NET_FF_GROUP,
    ResourceType.NET_FF_CLASSIFIER,
    ResourceType.NET_FF_RULE,
)
_FILTER_CAPS = (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)
#: Octets of the header that a selector covers, as its fields (offset, length); from the headers' own definitions.
_FIELDS: Mapping[int, tuple[tuple[int, int], ...]] = {
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
_NETWORK = {SelectorType.IPV4: 0x0800, SelectorType.IPV6: 0x86DD}
_TRANSPORT = {SelectorType.TCP: 6, SelectorType.UDP: 17, SelectorType.ESP: 50}
_PROTOCOL_AT = {SelectorType.IPV4: 9, SelectorType.IPV6: 6}


def _creates(run: Run, kind: int) -> Iterator[tuple[Command, bytes, Objects]]:
    for life in run.lives:
        for command, live in life.commands_with():
            about = command.object
            if about is not None and command.opcode == _CREATE and about.type == kind:
                yield command, about.data, live


def _destroys(run: Run) -> Iterator[tuple[Command, tuple[int, int], Objects]]:
    for life in run.lives:
        for command, live in life.commands_with():
            if command.object is not None and command.opcode == _DESTROY:
                yield command, (command.object.type, command.object.id), live


@lru_cache(4096)
def _classifier(data: bytes) -> FfClassifier | None:
    try:
        return FF_CLASSIFIER.parse(data)
    except WireError:
        return None


@lru_cache(4096)
def _rule(data: bytes) -> FfRule | None:
    try:
        return FF_RULE.parse(data)
    except WireError:
        return None


# -- objects ----------------------------------------------------------------------------------------------


@judge("RO-DRV-01", when="an object was created")
def created_once(run: Run) -> Iterator[Finding]:
    """No CREATE of a type and id that exists."""
    for life in run.lives:
        for command, live in life.commands_with():
            about = command.object
            if about is not None and command.opcode == _CREATE:
                exists = (about.type, about.id) in live
                yield Finding(
                    not exists, "a free id", f"{type_name(about.type)} {about.id} exists", command.at
                )


def _limits(run: Run, command: Command) -> dict[int, int]:
    """The limits that a DRIVER_CAP_SET sets, by object type."""
    about = command.capability
    if about is None or command.opcode != Opcode.DRIVER_CAP_SET or not command.ok:
        return {}
    value = parsed(run.dialect, about.id, about.data)
    fields = {kind: field for kind, (cap, field) in LIMITS.items() if cap == about.id and value is not None}
    return {kind: int(getattr(value, field)) for kind, field in fields.items()}


def _within_limit(run: Run, *kinds: int) -> Iterator[Finding]:
    for life in run.lives:
        limits: dict[int, int] = {}
        for command, live in life.commands_with():
            limits |= _limits(run, command)
            about = command.object
            if about is None or command.opcode != _CREATE or about.type not in kinds:
                continue
            limit, count = limits.get(about.type), live.counts[about.type]
            if limit is not None and (about.type, about.id) not in live:
                seen = f"{count} exist, and one more is created"
                yield Finding(count < limit, f"at most {limit} of {type_name(about.type)}", seen, command.at)


@judge("RO-DRV-02", when="an object was created whose type has a limit")
def within_limits(run: Run) -> Iterator[Finding]:
    """No more objects of a type exist than the limit that the driver set."""
    yield from _within_limit(run, *LIMITS)


@judge("INF-15", when="an outbound SA was created")
def outbound_sas_within_limit(run: Run) -> Iterator[Finding]:
    """No more outbound SAs exist than outb_sa_limit, as the driver set it."""
    yield from _within_limit(run, ResourceType.NET_IPSEC_OUTB_SA)


@judge("RO-DRV-03", when="an object was destroyed")
def nothing_after_destroy(run: Run) -> Iterator[Finding]:
    """No command about an object that was destroyed, before it is created anew."""
    for life in run.lives:
        gone: dict[tuple[int, int], int] = {}
        for command, live in life.commands_with():
            about = command.object
            if about is None:
                continue
            key = about.type, about.id
            if command.opcode == _CREATE:
                gone.pop(key, None)
            elif key in gone:
                yield Finding(False, "no command about it any more", named(command, run.dialect), command.at)
            elif command.opcode == _DESTROY and command.ok and key in live:
                gone[key] = command.at
                yield Finding(True, "no command about it any more", "none", command.at)


def _users(live: Objects, key: tuple[int, int]) -> list[Object]:
    """Live rules of a group or with a classifier."""
    found = []
    for (kind, _), each in live.items():
        rule = _rule(each.data) if kind == _RULE else None
        if rule is not None and key in ((_GROUP, rule.group_id), (_CLASSIFIER, rule.classifier_id)):
            found.append(each)
    return found


def _rules_first(run: Run, *kinds: int) -> Iterator[Finding]:
    for command, key, live in _destroys(run):
        if key[0] in kinds and key in live:
            users = _users(live, key)
            seen = ", ".join(f"rule {each.id}" for each in users)
            yield Finding(not users, "no rule that refers to it", seen, command.at)


@judge("NET-FF-DRV-02", when="a group was destroyed")
def rules_before_groups(run: Run) -> Iterator[Finding]:
    """A group is destroyed after all of its rules."""
    yield from _rules_first(run, _GROUP)


@judge("NET-FF-DRV-03", when="a classifier was destroyed")
def rules_before_classifiers(run: Run) -> Iterator[Finding]:
    """A classifier is destroyed after all rules that use it."""
    yield from _rules_first(run, _CLASSIFIER)


@judge("RO-DRV-04", when="an object was destroyed that others can refer to")
def dependants_first(run: Run) -> Iterator[Finding]:
    """Objects are destroyed in the reverse order of their dependencies."""
    yield from _rules_first(run, _GROUP, _CLASSIFIER)


# -- flow filters -----------------------------------------------------------------------------------------


@judge("NET-FF-DRV-01", when="a flow-filter object was created")
def filter_capabilities(run: Run) -> Iterator[Finding]:
    """All three flow-filter capabilities are set before the first flow-filter object."""
    for life in run.lives:
        done = {cap: command.at for command, cap, _ in reversed(list(sets(life)))}
        for command in life.commands:
            about = command.object
            if about is not None and command.opcode == _CREATE and about.type in (_GROUP, _CLASSIFIER, _RULE):
                missing = [cap.name for cap in _FILTER_CAPS if done.get(cap, command.at) >= command.at]
                yield Finding(not missing, "all three set", f"not {', '.join(missing)}", command.at)
                break


@judge("NET-FF-DRV-04", when="a rule was created in a group with another rule")
def priorities_differ(run: Run) -> Iterator[Finding]:
    """Rules of a group that may match the same packet have different priorities."""
    for command, data, live in _creates(run, _RULE):
        rule = _rule(data)
        if rule is None or command.object is None:
            continue
        for (kind, number), other in live.items():
            before = _rule(other.data) if kind == _RULE and number != command.object.id else None
            if before is not None and before.group_id == rule.group_id:
                clash = before.rule_priority == rule.rule_priority and _overlap(live, before, rule)
                seen = f"priority {rule.rule_priority} of rule {number}, which may match the same packet"
                yield Finding(not clash, "another priority", seen, command.at)


def _overlap(live: Objects, one: FfRule, other: FfRule) -> bool:
    """Whether a packet can match both."""
    masks = []
    for rule in (one, other):
        known = live.get((_CLASSIFIER, rule.classifier_id))
        found = _classifier(known.data) if known else None
        if found is None:
            return True
        masks.append(found.selectors)
    at = 0
    for mine, theirs in zip(*masks, strict=False):
        if mine.type != theirs.type:
            return False
        keys = zip(one.keys[at:], other.keys[at:], mine.mask, theirs.mask, strict=False)
        if any((first ^ second) & left & right for first, second, left, right in keys):
            return False
        at += len(mine.mask)
    return True


@judge("NET-FF-DRV-05", "INF-34", when="a classifier was created")
def selector_order(run: Run) -> Iterator[Finding]:
    """A classifier's selectors are Ethernet, then IPv4 or IPv6, then UDP, TCP or ESP (ledger E72)."""
    orders = ((SelectorType.ETH,), tuple(_NETWORK), tuple(_TRANSPORT))
    for command, data, _ in _creates(run, _CLASSIFIER):
        found = _classifier(data)
        types = [selector.type for selector in found.selectors] if found else []
        right = 0 < len(types) <= len(orders)
        right = right and all(kind in order for kind, order in zip(types, orders, strict=False))
        yield Finding(right, "ETH, then IPV4 or IPV6, then UDP, TCP or ESP", f"types {types}", command.at)


def _mask(selectors: tuple[Selector, ...], place: int, at: int, length: int) -> bytes:
    return selectors[place].mask[at : at + length]


@judge("NET-FF-DRV-06", when="a classifier with more than one selector was created")
def masks_lead_on(run: Run) -> Iterator[Finding]:
    """A classifier beyond Ethernet masks the whole EtherType, one beyond IP the whole protocol."""
    for command, data, _ in _creates(run, _CLASSIFIER):
        found = _classifier(data)
        selectors = found.selectors if found else ()
        if len(selectors) > 1 and selectors[0].type == SelectorType.ETH:
            kind = _mask(selectors, 0, 12, 2)
            yield Finding(kind == b"\xff\xff", "EtherType mask ffff", kind.hex(), command.at)
        if len(selectors) > 2 and selectors[1].type in _NETWORK:
            protocol = _mask(selectors, 1, _PROTOCOL_AT[SelectorType(selectors[1].type)], 1)
            yield Finding(protocol == b"\xff", "protocol mask ff", protocol.hex(), command.at)


def _rules(run: Run) -> Iterator[tuple[Command, FfRule, tuple[Selector, ...]]]:
    """Rules with the selectors of their classifiers."""
    for command, data, live in _creates(run, _RULE):
        rule = _rule(data)
        known = live.get((_CLASSIFIER, rule.classifier_id)) if rule else None
        classifier = _classifier(known.data) if known else None
        if rule is not None and classifier is not None:
            yield command, rule, classifier.selectors


@judge("NET-FF-DRV-07", when="a rule was created whose classifier has a second selector")
def key_ethertype(run: Run) -> Iterator[Finding]:
    """A rule's key carries the EtherType of the classifier's second selector."""
    for command, rule, selectors in _rules(run):
        if len(selectors) > 1 and selectors[1].type in _NETWORK:
            wanted = _NETWORK[SelectorType(selectors[1].type)].to_bytes(2, "big")
            seen = rule.keys[12:14]
            yield Finding(seen == wanted, f"EtherType {wanted.hex()}", seen.hex(), command.at)


@judge("NET-FF-DRV-08", when="a rule was created whose classifier has a third selector")
def key_protocol(run: Run) -> Iterator[Finding]:
    """A rule's key carries the protocol number of the classifier's third selector."""
    for command, rule, selectors in _rules(run):
        if len(selectors) > 2 and selectors[1].type in _NETWORK and selectors[2].type in _TRANSPORT:
            at = len(selectors[0].mask) + _PROTOCOL_AT[SelectorType(selectors[1].type)]
            wanted = _TRANSPORT[SelectorType(selectors[2].type)]
            seen = rule.keys[at : at + 1]
            yield Finding(seen == bytes((wanted,)), f"protocol {wanted:#04x}", seen.hex(), command.at)


@judge(
    "NET-FF-DRV-09", "INF-29", when="a classifier with a selector that is not for partial masks was created"
)
def whole_fields(run: Run) -> Iterator[Finding]:
    """Without the PARTIAL_MASK flag each field of a selector is masked whole or not at all."""
    for command, data, _ in _creates(run, _CLASSIFIER):
        found = _classifier(data)
        for selector in found.selectors if found else ():
            if selector.flags & SelectorFlag.PARTIAL_MASK:
                continue
            for at, length in _FIELDS.get(selector.type, ()):
                mask = selector.mask[at : at + length]
                whole = mask in (bytes(len(mask)), b"\xff" * len(mask))
                expected = f"a whole mask at byte {at} of selector type {selector.type}"
                yield Finding(whole, expected, mask.hex(), command.at)
