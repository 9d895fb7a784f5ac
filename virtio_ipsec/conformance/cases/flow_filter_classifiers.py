"""Classifiers: which masks they may have, and that rules see every bit under them; rules in force at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.flows import (
    CLASSIFIER,
    RULE,
    Flows,
    Match,
    ethernet,
    network,
    protocol,
    udp_port,
)
from virtio_ipsec.conformance.frames import ESP, TCP, UDP, Shape
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.flow_filter import FfRule, Selector
from virtio_ipsec.wire.numbers import FfAction, SelectorFlag, SelectorType

#: Bits of every field of a header that a selector covers, in order (virtio v1.4, table of selector types).
FIELDS = {
    SelectorType.ETH: (48, 48, 16),
    SelectorType.IPV4: (4, 4, 6, 2, 16, 16, 3, 13, 8, 8, 16, 32, 32),
    SelectorType.IPV6: (4, 8, 20, 16, 8, 8, 128, 128),
    SelectorType.TCP: (16, 16, 32, 32, 4, 4, *(1,) * 8, 16, 16, 16),
    SelectorType.UDP: (16, 16, 16, 16),
    SelectorType.ESP: (32, 32),
}
NUMBERS = {SelectorType.TCP: TCP, SelectorType.UDP: UDP, SelectorType.ESP: ESP}
IP = {SelectorType.IPV4, SelectorType.IPV6}
#: Nothing follows an IP header with this number.
NO_NEXT_HEADER = 59
NEEDS = ("admin", "flow_filter")
OTHER_MAC = bytes.fromhex("0a567650ee77")


def _masks(kind: SelectorType) -> Iterator[tuple[str, bytes]]:
    """A mask for each field of a header, all bits of it."""
    octets = sum(FIELDS[kind]) // 8
    left = octets * 8
    for number, width in enumerate(FIELDS[kind]):
        left -= width
        yield f"field {number}", ((1 << width) - 1 << left).to_bytes(octets)


def _chain(kind: SelectorType, mask: bytes, version: int) -> tuple[Match, ...]:
    """Selectors that lead to one of this kind with this mask."""
    last = Match(kind, mask, bytes(len(mask)))
    if kind is SelectorType.ETH:
        return (last,)
    if kind in IP:
        return ethernet(version), last
    return *protocol(version, NUMBERS[kind]), last


def _begin(bench: Bench) -> Flows:
    bench.start()
    bench.admin.use_everything()
    return Flows(bench)


@case("ff-classifier-fields", "NET-FF-DEV-02", "INF-28", needs=NEEDS)
def classifier_fields(bench: Bench) -> None:
    """A classifier on any field that the selector capability covers is accepted without partial masks.

    One classifier for each field of each header that the device lists, the mask of the whole field, behind whatever
    selectors lead there. Fields that the device's mask leaves out are left out here.
    """
    flows = _begin(bench)
    offered = {selector.type: selector for selector in flows.selectors.selectors}
    tried = 0
    for kind in FIELDS:
        version = 6 if kind is SelectorType.IPV6 else 4
        if kind not in offered:
            continue
        for what, mask in _masks(kind):
            chain = _chain(kind, mask, version)
            if len(chain) > flows.limits.selectors_per_classifier_limit or not all(
                one.type in offered and not _beyond(one.mask, offered[one.type]) for one in chain
            ):
                continue
            tried += 1
            reply = flows.put_classifier(0, *chain)
            for clause in ("NET-FF-DEV-02", "INF-28"):
                bench.check(clause, reply.ok, f"{kind.name}, {what}: a classifier is accepted", reply)
            if reply.ok:
                demand(flows.destroy(CLASSIFIER, 0))
    if not tried:
        raise Unsupported("the device has no selector for a whole field")


def _beyond(mask: bytes, offered: Selector) -> bool:
    """Whether a mask has bits that the device's does not have."""
    return bool(int.from_bytes(mask) & ~int.from_bytes(offered.mask))


def _frame(bench: Bench, packet: bytes) -> bytes:
    return frames.ethernet(packet, bench.packets.mac, PEER_MAC)


def _differ(packet: bytes, header: int, start: int, width: int) -> bytes:
    """The packet with the last bit of a field changed; offsets in bits from the header's start."""
    at = header * 8 + start + width - 1
    return packet[: at // 8] + bytes((packet[at // 8] ^ 1 << 7 - at % 8,)) + packet[at // 8 + 1 :]


#: Fields whose change would make of the packet something else than another packet of its kind, by selector.
FIXED = {
    SelectorType.ETH: {0, 2},
    SelectorType.IPV4: {0, 1, 4, 6, 7, 9, 10},
    SelectorType.IPV6: {0, 3, 4},
    SelectorType.TCP: {4},
    SelectorType.UDP: {2},
    SelectorType.ESP: set(),
}


@case("ff-match-every-field", "INF-28", "INF-32", needs=(*NEEDS, "wire"))
def match_every_field(bench: Bench) -> None:
    """A rule on any field tells packets apart that differ in one bit of it.

    For each field of each header: a DROP rule with the field of a packet as key. That packet is dropped; the same
    with the last bit of the field changed is delivered. Fields that make a packet what it is stay as they are.
    """
    flows = _begin(bench)
    flows.need_action(FfAction.DROP)
    offered = {selector.type: selector for selector in flows.selectors.selectors}
    bench.packets.post()
    # Rules on Ethernet addresses are to leave the sentinel alone.
    bench.packets.sentinel_to = b"\xff" * 6
    demand(flows.put_group(0, 1))
    tried = 0
    for kind, fields in FIELDS.items():
        version = 6 if kind is SelectorType.IPV6 else 4
        packet = frames.packet(bench.octets(32), Shape(version, NUMBERS.get(kind, UDP), ttl=64))
        whole = frames.ethernet(packet, bench.packets.mac, OTHER_MAC)
        header = {SelectorType.ETH: 0, SelectorType.IPV4: 14, SelectorType.IPV6: 14}.get(kind, 34)
        start = 0
        for number, (what, mask) in enumerate(_masks(kind) if kind in offered else ()):
            chain = _chain(kind, mask, version)
            last = chain[-1]
            key = bytes(a & b for a, b in zip(whole[header:], mask, strict=False))
            matches = (*chain[:-1], replace(last, key=key))
            width = fields[number]
            other = _differ(whole, header, start, width)
            start += width
            if len(chain) > flows.limits.selectors_per_classifier_limit or not all(
                one.type in offered and not _beyond(one.mask, offered[one.type]) for one in chain
            ):
                continue
            tried += 1
            demand(flows.put_classifier(0, *matches))
            keys = b"".join(one.key for one in matches)
            demand(flows.put_rule(0, FfRule(0, 0, 0, FfAction.DROP, 0, keys)))
            bench.packets.top_up()
            sent = [whole] if number in FIXED[kind] else [whole, other]
            came = [rx.frame for rx in bench.packets.receive(*sent)]
            for clause in ("INF-28", "INF-32"):
                bench.check(clause, came == sent[1:], f"{kind.name}, {what}: dropped by its value", len(came))
            demand(flows.destroy(RULE, 0))
            demand(flows.destroy(CLASSIFIER, 0))
    if not tried:
        raise Unsupported("the device has no selector for a whole field")


@case("ff-match-headers-alone", "INF-28", needs=(*NEEDS, "wire"))
def match_headers_alone(bench: Bench) -> None:
    """A rule looks at a header behind which there is nothing.

    A DROP rule on the first field of each header: IPv4 and IPv6 packets, TCP and UDP segments and an ESP packet that
    end with it, at the end of the frame, are dropped; a packet of another kind is delivered.
    """
    flows = _begin(bench)
    flows.need_action(FfAction.DROP)
    offered = {selector.type for selector in flows.selectors.selectors}
    bench.packets.post()
    bench.packets.sentinel_to = b"\xff" * 6
    demand(flows.put_group(0, 1))
    tried = 0
    for kind in sorted(FIELDS.keys() - {SelectorType.ETH}):
        version = 6 if kind is SelectorType.IPV6 else 4
        body = bench.octets(8) if kind is SelectorType.ESP else b""
        packet = frames.packet(body, Shape(version, NUMBERS.get(kind, NO_NEXT_HEADER)))
        whole = _frame(bench, packet)[: 14 + len(packet)]
        mask = next(_masks(kind))[1]
        chain = _chain(kind, mask, version)
        last = chain[-1]
        header = whole[14:] if last.type in IP else whole[34:]
        matches = (*chain[:-1], replace(last, key=bytes(a & b for a, b in zip(header, mask, strict=False))))
        if len(chain) > flows.limits.selectors_per_classifier_limit or not offered >= {m.type for m in chain}:
            continue
        tried += 1
        demand(flows.put_classifier(0, *matches))
        keys = b"".join(one.key for one in matches)
        demand(flows.put_rule(0, FfRule(0, 0, 0, FfAction.DROP, 0, keys)))
        other = _frame(bench, frames.packet(bench.octets(30), Shape(10 - version, 253)))
        bench.packets.top_up()
        came = [rx.frame for rx in bench.packets.receive(whole, other)]
        bench.check("INF-28", came == [other], f"{kind.name}, nothing behind it: dropped", len(came))
        demand(flows.destroy(RULE, 0))
        demand(flows.destroy(CLASSIFIER, 0))
    if not tried:
        raise Unsupported("the device has no selector for an IP header")


@case("ff-rule-at-once", "INF-38", needs=(*NEEDS, "wire"))
def rule_at_once(bench: Bench) -> None:
    """A rule acts from its CREATE to its DESTROY, whatever was received before.

    Packets to a port arrive; a DROP rule for them is made, and another, lower one for a second port; then both go. In
    between, packets to both ports. The second rule is made while the first is in use.
    """
    flows = _begin(bench)
    flows.need_action(FfAction.DROP)
    flows.need(*udp_port(4, 4001))
    limits = flows.limits
    if min(limits.classifiers_limit, limits.rules_limit, limits.rules_per_group_limit) < 2:
        raise Unsupported("the device has no two rules")
    if limits.last_rule_priority < 2:
        raise Unsupported("the device has no two rule priorities")
    bench.packets.post()
    ports = (4001, 4002)

    def look(when: str, *dropped: int) -> None:
        bench.packets.top_up()
        sent = {port: _frame(bench, frames.packet(bench.octets(30), Shape(dport=port))) for port in ports}
        came = [rx.frame for rx in bench.packets.receive(*sent.values())]
        found = [port for port in ports if sent[port] not in came]
        bench.check("INF-38", found == list(dropped), f"{when}: dropped {list(dropped)}", found)

    look("before any rule")
    demand(flows.put_group(0, 7))
    for id, port in enumerate(ports):
        demand(flows.put_classifier(id, *udp_port(4, port)))
    look("without a rule")
    for id, port in enumerate(ports):
        keys = b"".join(one.key for one in udp_port(4, port))
        demand(flows.put_rule(id, FfRule(0, id, 1 - id, FfAction.DROP, 0, keys)))
        look(f"rule {id} made", *ports[: id + 1])
    demand(flows.destroy(RULE, 0))
    look("the first rule destroyed", ports[1])
    demand(flows.destroy(RULE, 1))
    look("both destroyed")


@case("ff-partial-mask", "INF-28", needs=(*NEEDS, "wire"))
def partial_mask(bench: Bench) -> None:
    """Where partial masks are supported a rule sees the bits of the mask, and only those.

    A DROP rule on the upper 24 bits of the destination address: the packet and one that differs below the mask are
    dropped, one that differs in the last bit of it is delivered.
    """
    flows = _begin(bench)
    flows.need_action(FfAction.DROP)
    offered = {selector.type: selector for selector in flows.selectors.selectors}
    ip = offered.get(SelectorType.IPV4)
    if ip is None or not ip.flags & SelectorFlag.PARTIAL_MASK:
        raise Unsupported("the device has no partial masks in IPv4 selectors")
    bench.packets.post()
    target = frames.HOSTS[4][1]
    last = network(4, {16: target[:3]})
    matches = (ethernet(4), Match(last.type, last.mask, last.key, SelectorFlag.PARTIAL_MASK))
    flows.need(*matches)
    demand(flows.put_group(0, 1))
    demand(flows.put_classifier(0, *matches))
    demand(flows.put_rule(0, FfRule(0, 0, 0, FfAction.DROP, 0, b"".join(one.key for one in matches))))
    for name, host, delivered in (
        ("the address", target, False),
        ("an address that differs below the mask", target[:3] + b"\x77", False),
        ("an address that differs under the mask", target[:2] + bytes((target[2] ^ 1, target[3])), True),
    ):
        source = frames.HOSTS[4][0]
        came = bench.packets.receive(
            _frame(bench, frames.packet(bench.octets(30), Shape(hosts=(source, host))))
        )
        bench.check(
            "INF-28", bool(came) is delivered, f"{name}: {'' if delivered else 'not '}delivered", len(came)
        )
