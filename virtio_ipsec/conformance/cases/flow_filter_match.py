"""Which packets a rule catches, in which order rules are tried, and what else may touch a packet (NET-FF-DEV)."""

from __future__ import annotations

from virtio_ipsec.conformance import control, frames
from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import DataPath
from virtio_ipsec.conformance.flows import (
    CLASSIFIER,
    RULE,
    Flows,
    ethernet,
    match,
    network,
    protocol,
    udp_port,
)
from virtio_ipsec.conformance.frames import ESP, TCP, UDP, Shape
from virtio_ipsec.conformance.packets import PEER_MAC, RxFrame
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.numbers import Feature, FfAction, SelectorType

DROP, DIRECT = FfAction.DROP, FfAction.DIRECT_RX_VQ
X, Y, Z = 4001, 4002, 4003
STRANGER = bytes.fromhex("02567650ee99")


def _ready(bench: Bench, *, want: tuple[Feature, ...] = (), pairs: int = 1) -> Flows:
    """A device with flow filters, ``pairs`` queue pairs in use and buffers in every receive queue."""
    bench.start(want=want)
    bench.admin.use_everything()
    flows = Flows(bench)
    if pairs > 1:
        if bench.packets.queue_pairs() < pairs:
            raise Unsupported(f"the device has fewer than {pairs} queue pairs")
        control.use_pairs(bench, pairs)
    bench.packets.post_all(pairs)
    return flows


def _frame(bench: Bench, packet: bytes, destination: bytes | None = None) -> bytes:
    return frames.ethernet(packet, destination or bench.packets.mac, PEER_MAC)


def _udp(bench: Bench, port: int, *, sport: int = 4000, destination: bytes | None = None) -> bytes:
    return _frame(bench, frames.packet(shape=Shape(sport=sport, dport=port)), destination)


def _arrives(bench: Bench, frame: bytes) -> list[RxFrame]:
    """The frame, as often as it is delivered."""
    return [rx for rx in bench.packets.receive(frame) if rx.frame == frame]


def _check(bench: Bench, clause: str, frame: bytes, times: int, what: str) -> None:
    came = _arrives(bench, frame)
    bench.check(clause, len(came) == times, f"{what}: delivered {times} times", f"{len(came)} times")


def _fragment(packet: bytes, place: int) -> bytes:
    """An IPv4 packet as a fragment that is not the first."""
    head = packet[:6] + place.to_bytes(2) + packet[8:10] + bytes(2) + packet[12:20]
    return head[:10] + frames.checksum(head).to_bytes(2) + head[12:] + packet[20:]


@case("ff-match-under-mask", "INF-28", needs=("admin", "flow_filter", "wire"))
def match_under_mask(bench: Bench) -> None:
    """A rule matches when the fields under the masks equal its key, whatever the other fields hold.

    A DROP rule on UDP port 4001: packets to 4001 from any port are dropped; ports that differ in one bit, and
    TCP to 4001, are delivered.
    """
    flows = _ready(bench)
    flows.rule(flows.group(1), udp_port(4, X), DROP)
    _check(bench, "INF-28", _udp(bench, X), 0, "a packet that matches")
    _check(bench, "INF-28", _udp(bench, X, sport=5000), 0, "a packet that differs where the mask is clear")
    for bit in (0, 7, 15):
        _check(
            bench, "INF-28", _udp(bench, X ^ 1 << bit), 1, f"a packet that differs in bit {bit} of the port"
        )
    for place in (1, 0x100):
        later = _fragment(frames.packet(bench.octets(24), Shape(dport=X)), place)
        _check(bench, "INF-28", _frame(bench, later), 1, f"a fragment at {place}, which has no ports")
    other = _frame(bench, frames.packet(shape=Shape(protocol=TCP, dport=X)))
    _check(bench, "INF-28", other, 1, "a TCP segment to that port")


@case("ff-group-order", "NET-FF-DEV-12", needs=("admin", "flow_filter", "wire"))
def group_order(bench: Bench) -> None:
    """Groups are tried from the highest priority down until a rule applies.

    Group 10 drops port X and directs Z, group 5, which is older, directs X and drops Y and Z: X is dropped, Z
    arrives, and Y, which no rule of the first group matches, is dropped by the second.
    """
    flows = _ready(bench)
    low = flows.group(5)
    high = flows.group(10)
    flows.rule(low, udp_port(4, X), DIRECT, priority=3)
    flows.rule(low, udp_port(4, Y), DROP, priority=2)
    flows.rule(low, udp_port(4, Z), DROP, priority=1)
    flows.rule(high, udp_port(4, X), DROP, priority=1)
    flows.rule(high, udp_port(4, Z), DIRECT, priority=0)
    _check(bench, "NET-FF-DEV-12", _udp(bench, X), 0, "dropped by the higher group, directed by the lower")
    _check(bench, "NET-FF-DEV-12", _udp(bench, Z), 1, "directed by the higher group, dropped by the lower")
    _check(bench, "NET-FF-DEV-12", _udp(bench, Y), 0, "dropped by the lower group only")


@case("ff-rule-order", "NET-FF-DEV-13", needs=("admin", "flow_filter", "wire"))
def rule_order(bench: Bench) -> None:
    """Within a group the matching rule of the highest priority acts, and no other.

    Port X: a DROP rule of priority 1 on the port, a DIRECT_RX_VQ rule of priority 3 on all of UDP from 4000.
    Port Y from 5000: DROP of priority 4, DIRECT_RX_VQ of priority 2, made in the other order.
    """
    flows = _ready(bench)
    group = flows.group(1)
    from_4000 = (*protocol(4, UDP), match(SelectorType.UDP, {0: (4000).to_bytes(2)}))
    from_5000 = (*protocol(4, UDP), match(SelectorType.UDP, {0: (5000).to_bytes(2)}))
    flows.rule(group, udp_port(4, X), DROP, priority=1)
    flows.rule(group, from_4000, DIRECT, priority=3)
    flows.rule(group, udp_port(4, Y), DROP, priority=4)
    flows.rule(group, from_5000, DIRECT, priority=2)
    _check(bench, "NET-FF-DEV-13", _udp(bench, X), 1, "directed at priority 3, dropped at 1")
    _check(bench, "NET-FF-DEV-13", _udp(bench, Y, sport=5000), 0, "dropped at priority 4, directed at 2")
    _check(bench, "NET-FF-DEV-13", _udp(bench, Z, sport=5000), 1, "directed by the one rule that matches")


@case(
    "ff-direct-queue",
    "NET-FF-DEV-11",
    "NET-FF-DEV-15",
    "INF-36",
    needs=("admin", "flow_filter", "wire", "mq"),
)
def direct_queue(bench: Bench) -> None:
    """A directed packet arrives on the rule's queue, whatever steering would choose.

    A packet arrives where steering puts it. Then a rule directs the same packet to another receive queue: it
    arrives there, once. A packet that no rule matches goes on as steering has it.
    """
    flows = _ready(bench, pairs=2)
    plain = {port: bench.packets.receive(_udp(bench, port)) for port in (X, Y)}
    bench.require(
        "NET-FF-DEV-15",
        all(len(came) == 1 for came in plain.values()),
        "without a rule each packet is delivered once",
        {port: len(came) for port, came in plain.items()},
    )
    other = 1 - plain[X][0].queue
    group = flows.group(1)
    flows.rule(group, udp_port(4, X), DIRECT, queue=other)
    queues = [rx.queue for rx in _arrives(bench, _udp(bench, X))]
    bench.check(
        "INF-36",
        bool(queues) and set(queues) == {other},
        f"a packet directed to vq_index {2 * other} arrives on receive queue {other}",
        queues,
    )
    bench.check(
        "NET-FF-DEV-11",
        plain[X][0].queue not in queues,
        f"steering does not bring a directed packet to receive queue {plain[X][0].queue}",
        queues,
    )
    queues = [rx.queue for rx in _arrives(bench, _udp(bench, Y))]
    bench.check(
        "NET-FF-DEV-15",
        queues == [plain[Y][0].queue],
        f"a packet without a rule arrives on receive queue {plain[Y][0].queue} as before",
        queues,
    )


@case(
    "ff-directed-to-reset-queue", "NET-FF-DEV-10", needs=("admin", "flow_filter", "wire", "mq", "queue_reset")
)
def directed_to_reset_queue(bench: Bench) -> None:
    """What a rule directs to a receive queue that has been reset is dropped.

    A rule directs port X to receive queue 1. Packets arrive there, the queue is reset, and the next packet
    arrives on no queue.
    """
    flows = _ready(bench, want=(Feature.F_RING_RESET,), pairs=2)
    flows.rule(flows.group(1), udp_port(4, X), DIRECT, queue=1)
    _check(bench, "NET-FF-DEV-10", _udp(bench, X), 1, "directed to a queue in use")
    bench.target.reset_queue(2)
    bench.queues.drop(2)
    _check(bench, "NET-FF-DEV-10", _udp(bench, X), 0, "directed to a queue that has been reset")


@case("ff-drop", "NET-FF-DEV-16", needs=("admin", "flow_filter", "wire"))
def drop(bench: Bench) -> None:
    """A packet that a rule drops is not processed any further: no receive queue gets it.

    Port X is dropped at priority 2 and directed at priority 1, and again in a group of lower priority.
    """
    flows = _ready(bench)
    group, later = flows.group(2), flows.group(1)
    flows.rule(group, udp_port(4, X), DROP, priority=2)
    flows.rule(group, protocol(4, UDP), DIRECT, priority=1)
    flows.rule(later, udp_port(4, X), DIRECT)
    _check(bench, "NET-FF-DEV-16", _udp(bench, X), 0, "dropped by the first rule")
    _check(bench, "NET-FF-DEV-16", _udp(bench, Y), 1, "not dropped")


@case("ff-drop-skips-ipsec", "NET-FF-DEV-16", "RFC-21", needs=("admin", "ipsec", "flow_filter", "wire"))
def drop_skips_ipsec(bench: Bench) -> None:
    """A protected packet that a rule drops is not opened: its sequence number is still fresh afterwards.

    A DROP rule on the packet's protocol; the packet is lost. Without the rule the same packet is opened.
    """
    path = DataPath(bench)
    bench.packets.post()
    sa = path.inbound()
    plain = frames.packet(bench.octets(40))
    sealed = sa.peer.seal(plain)
    rule = path.flows.rule(path.flows.group(9), protocol(4, sealed[9]), DROP)
    came = bench.packets.receive(path.wire(sealed))
    for clause in ("NET-FF-DEV-16", "RFC-21"):
        bench.check(clause, not came, "a protected packet that matches a DROP rule is dropped", came)
    demand(path.flows.destroy(RULE, rule))
    came = path.receive(sealed)
    bench.check(
        "NET-FF-DEV-16",
        len(came) == 1 and path.is_opened(came[0], plain),
        "the same packet, no longer dropped, is opened: no replay",
        [f"flags {rx.header.flags:#x}" for rx in came],
    )


@case("ff-address-filter-first", "NET-FF-DEV-15", needs=("admin", "flow_filter", "wire", "ctrl_vq"))
def address_filter_first(bench: Bench) -> None:
    """Receive mode and MAC filter come before the flow filter.

    Promiscuous mode is off and a rule directs port X: a frame for another address that matches is dropped, one
    for the device's address arrives.
    """
    flows = _ready(bench, want=(Feature.NET_F_MAC, Feature.NET_F_CTRL_RX))
    control.only_own_address(bench)
    flows.rule(flows.group(1), udp_port(4, X), DIRECT)
    _check(bench, "NET-FF-DEV-15", _udp(bench, X, destination=STRANGER), 0, "for another address, matches")
    _check(bench, "NET-FF-DEV-15", _udp(bench, X), 1, "for the device, matches")


@case(
    "ff-address-filter-skips-rules",
    "NET-FF-DEV-17",
    needs=("admin", "ipsec", "flow_filter", "wire", "ctrl_vq"),
)
def address_filter_skips_rules(bench: Bench) -> None:
    """A packet that the MAC filter drops does not meet the flow filter: no rule starts IPsec for it.

    A protected packet for another address is dropped; the same packet in a frame for the device is then opened
    and not a replay.
    """
    path = DataPath(bench, want=(Feature.NET_F_MAC, Feature.NET_F_CTRL_RX))
    bench.packets.post()
    control.only_own_address(bench)
    sa = path.inbound()
    plain = frames.packet(bench.octets(40))
    sealed = sa.peer.seal(plain)
    if not bench.dialect.sa_lookup_without_rule:
        path.start_ipsec(sealed)
    came = bench.packets.receive(_frame(bench, sealed, STRANGER))
    bench.require("NET-FF-DEV-17", not came, "a frame for another address is dropped", came)
    came = path.receive(sealed)
    bench.check(
        "NET-FF-DEV-17",
        len(came) == 1 and path.is_opened(came[0], plain),
        "its sequence number is still fresh when it comes to the right address",
        [f"flags {rx.header.flags:#x}" for rx in came],
    )


@case("ff-selector-ipv4-options", "INF-32", needs=("admin", "flow_filter", "wire"))
def selector_ipv4_options(bench: Bench) -> None:
    """A rule on IPv4 and UDP fields finds the UDP header behind IPv4 options.

    A DROP rule on UDP port X; packets with a router alert option to X and to Y.
    """
    flows = _ready(bench)
    flows.rule(flows.group(1), udp_port(4, X), DROP)
    for port, times in ((X, 0), (Y, 1)):
        packet = frames.with_options(frames.packet(shape=Shape(dport=port)))
        _check(bench, "INF-32", _frame(bench, packet), times, f"IPv4 with options, UDP port {port}")


@case("ff-selector-ipv6-extension", "INF-32", needs=("admin", "flow_filter", "wire"))
def selector_ipv6_extension(bench: Bench) -> None:
    """In the IPv6 selector, next header means that of the last extension header.

    A DROP rule on next header UDP and port X; packets with destination options to X and to Y, then a DROP
    rule on next header 60, which no packet here has as its last.
    """
    flows = _ready(bench)
    group = flows.group(1)
    flows.rule(group, udp_port(6, X), DROP, priority=1)
    flows.rule(group, protocol(6, 60), DROP)
    for port, times in ((X, 0), (Y, 1)):
        packet = frames.with_extension(frames.packet(shape=Shape(6, dport=port)))
        _check(bench, "INF-32", _frame(bench, packet), times, f"IPv6 with an extension, UDP port {port}")


@case("ff-selector-tcp-flags", "INF-32", needs=("admin", "flow_filter", "wire"))
def selector_tcp_flags(bench: Bench) -> None:
    """TCP control bits are fields of one bit each: a rule on SYN alone needs no partial masks.

    A DROP rule with the SYN bit in mask and key; segments with SYN, SYN and ACK, and ACK.
    """
    flows = _ready(bench)
    syn = match(SelectorType.TCP, {13: b"\x02"}, masks={13: b"\x02"})
    matches = (*protocol(4, TCP), syn)
    flows.need(*matches)
    reply = flows.put_classifier(0, *matches)
    bench.require("INF-32", reply.ok, "a mask of one TCP control bit is accepted", reply)
    demand(flows.destroy(CLASSIFIER, 0))
    flows.rule(flows.group(1), matches, DROP)
    for flags, times in ((0x02, 0), (0x12, 0), (0x10, 1)):
        packet = frames.packet(shape=Shape(protocol=TCP, flags=flags))
        _check(bench, "INF-32", _frame(bench, packet), times, f"TCP control bits {flags:#04x}")


@case("ff-selector-esp", "INF-31", needs=("admin", "flow_filter", "wire"))
def selector_esp(bench: Bench) -> None:
    """The ESP selector covers SPI and sequence number.

    A DROP rule on SPI 0x12345678 and one on sequence number 7; no SA exists, so what is not dropped arrives
    untouched.
    """
    flows = _ready(bench)
    group = flows.group(1)
    spi = 0x12345678
    head = (ethernet(4), network(4, {9: bytes((ESP,))}))
    flows.rule(group, (*head, match(SelectorType.ESP, {0: spi.to_bytes(4)})), DROP, priority=1)
    flows.rule(group, (*head, match(SelectorType.ESP, {4: (7).to_bytes(4)})), DROP)
    for number, sequence, times in ((spi, 1, 0), (spi ^ 1, 1, 1), (spi + 0x100, 2, 1), (spi ^ 1, 7, 0)):
        frame = _frame(bench, frames.esp(number, sequence))
        _check(bench, "INF-31", frame, times, f"SPI {number:#x}, sequence number {sequence}")
