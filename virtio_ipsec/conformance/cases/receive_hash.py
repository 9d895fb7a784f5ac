"""The hash that a device reports of received packets: over what, of which type, and when there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import demand
from virtio_ipsec.conformance.frames import TCP, UDP
from virtio_ipsec.conformance.hashing import KEY_OCTETS, OTHER, Flow, arriving, configure, new_flow
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, HashReport, HashType, has

V4 = (HashType.IPV4, HashType.TCPV4, HashType.UDPV4)
V6 = (HashType.IPV6, HashType.TCPV6, HashType.UDPV6)
EX = (HashType.IP_EX, HashType.TCP_EX, HashType.UDP_EX)
DESTINATION, ROUTING, HOP_BY_HOP, FRAGMENT = 60, 43, 0, 44
NO_PAYLOAD_HEADER = 3
ETHERNET = 14

Sample = tuple[str, Flow, bytes]


def _supported(bench: Bench) -> int:
    """Start with hash reports; the hash types that the device knows. One with RSS need not know HASH_CONFIG."""
    want = (Feature.NET_F_HASH_REPORT, Feature.NET_F_CTRL_VQ)
    bench.start(want=want, without=(Feature.NET_F_RSS, Feature.NET_F_MQ))
    if has(bench.target.device_features(), Feature.NET_F_RSS):
        if configure(bench, 0, bytes(KEY_OCTETS)):
            bench.start(want=want, without=(Feature.NET_F_RSS, Feature.NET_F_MQ))
        else:
            bench.start(want=(*want, Feature.NET_F_RSS))
    bench.packets.post()
    config = NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size))
    return config.supported_hash_types


def _masks(types: Iterable[HashType], supported: int) -> Iterator[int]:
    """Every subset of these types that the device supports."""
    known = [kind for kind in types if kind & supported]
    for number in range(1 << len(known)):
        yield sum(kind for at, kind in enumerate(known) if number >> at & 1)


def _judge(bench: Bench, clause: str, masks: Iterable[int], samples: list[Sample], key: bytes) -> None:
    """Every packet under every set of enabled types."""
    for types in bench.sweep(masks):
        demand(configure(bench, types, key), f"hash types {types:#x}")
        for what, flow, packet in samples:
            bench.packets.top_up()
            came = bench.packets.receive(packet)
            seen = [(rx.header.hash_value, rx.header.hash_report) for rx in came]
            value, report = flow.hashed(types, key)
            text = f"types {types:#x}, {what}"
            bench.check("INF-49", [one for _, one in seen] == [report], f"{text}: hash_report {report}", seen)
            if report != HashReport.NONE:
                bench.check(clause, seen == [(value, report)], f"{text}: hash {value:#010x}", seen)
            else:
                bench.check(clause, [one for _, one in seen] == [report], f"{text}: no hash", seen)


def _plain(bench: Bench, version: int) -> list[Sample]:
    """TCP, UDP, neither, too short to hold a port, and TCP behind a VLAN tag."""
    found = []
    for name, protocol in (("TCP", TCP), ("UDP", UDP), ("another protocol", OTHER)):
        flow = new_flow(bench, version, protocol)
        found.append((name, flow, arriving(bench, flow.packet(bench.octets(30)))))
    flow = new_flow(bench, version, TCP)
    found.append(("TCP with a VLAN tag", flow, frames.tagged(arriving(bench, flow.packet(bytes(20))), 5)))
    flow = new_flow(bench, version, OTHER)
    alone = flow.packet(b"")
    found.append(("a header alone", flow, arriving(bench, alone)[: ETHERNET + len(alone)]))
    # Ethernet padding lies behind the packet: what stands there is no port.
    for protocol in (TCP, UDP):
        short = replace(new_flow(bench, version, protocol), ports=b"")
        body = bench.octets(NO_PAYLOAD_HEADER)
        packet = bytearray(short.packet(body))
        packet[9 if version == 4 else 6] = protocol
        if version == 4:
            packet[10:12] = bytes(2)
            packet[10:12] = frames.checksum(bytes(packet[:20])).to_bytes(2)
        frame = arriving(bench, bytes(packet))[: ETHERNET + len(packet)].ljust(64, b"\xa5")
        found.append((f"protocol {protocol} with {len(body)} octets", short, frame))
    return found


@case("rx-hash-ipv4", "INF-46", "INF-49", needs=("wire",))
def rx_hash_ipv4(bench: Bench) -> None:
    """The hash of IPv4 packets: over addresses and ports, over addresses, or none, as the enabled types say.

    With every subset of the three types: TCP, UDP, another protocol, UDP behind IPv4 options, TCP behind a VLAN tag,
    packets too short to hold ports, one not to be fragmented, later fragments. Value and type are compared with a
    Toeplitz hash of what the case has put into the packet. A key just long enough for IPv4 is used as well.
    """
    supported = _supported(bench)
    samples = _plain(bench, 4)
    flow = new_flow(bench, 4, UDP)
    packet = flow.packet(bench.octets(30))
    samples.append(("UDP behind IPv4 options", flow, arriving(bench, frames.with_options(packet))))
    # (flags and fragment offset, whether the ports can be seen)
    for field, whole in ((0x4000, True), (0x2001, False), (0x2003, False), (0x1000, False)):
        each = bytearray(flow.packet(bench.octets(40)))
        each[6:8] = field.to_bytes(2)
        each[10:12] = bytes(2)
        each[10:12] = frames.checksum(bytes(each[:20])).to_bytes(2)
        shown = flow if whole else replace(flow, ports=b"")
        samples.append((f"flags and offset {field:#06x}", shown, arriving(bench, bytes(each))))
    for octets in (KEY_OCTETS, 16):
        _judge(bench, "INF-46", _masks(V4, supported), samples, bench.octets(octets))


@case("rx-hash-ipv6", "INF-47", "INF-49", needs=("wire",))
def rx_hash_ipv6(bench: Bench) -> None:
    """The hash of IPv6 packets without extension headers, as the enabled types say.

    With every subset of the three types: TCP, UDP, another protocol, TCP behind a VLAN tag, packets too short to hold
    ports. Value and type are compared with a Toeplitz hash of what the case has put into the packet.
    """
    supported = _supported(bench)
    _judge(bench, "INF-47", _masks(V6, supported), _plain(bench, 6), bench.octets(KEY_OCTETS))


def _extended(flow: Flow, body: bytes, *headers: tuple[int, bytes]) -> bytes:
    """The packet of a flow with extension headers (number, contents behind the two first octets)."""
    packet = flow.packet(body)
    chain = b""
    following = packet[6]
    for kind, contents in reversed(headers):
        chain = bytes((following, (len(contents) + 2) // 8 - 1)) + contents + chain
        following = kind
    length = int.from_bytes(packet[4:6]) + len(chain)
    return packet[:4] + length.to_bytes(2) + bytes((following,)) + packet[7:40] + chain + packet[40:]


def _with_headers(bench: Bench, protocol: int) -> Iterator[Sample]:
    """Packets with extension headers, with and without the two addresses that count."""
    home, way = (b"\x20\x01\x0d\xb8" + bench.octets(12) for _ in range(2))
    pad = bytes((1, 4, 0, 0, 0, 0))
    option = bytes((0xC9, 16))
    # In front of the option: PadN of two octets; one of one octet more and a Pad1; behind it, another option.
    homes = (
        bytes((1, 2, 0, 0)) + option + home,
        bytes((1, 1, 0, 0)) + option + home,
        option + home + bytes((1, 2, 0, 0)),
        bytes((5, 2, 0, 0)) + option + home,
    )
    route = bytes((2, 1, 0, 0, 0, 0)) + way
    plain = replace(new_flow(bench, 6, protocol), extended=True)
    body = bench.octets(30)

    def sample(what: str, flow: Flow, *headers: tuple[int, bytes]) -> Sample:
        return f"protocol {protocol}, {what}", flow, arriving(bench, _extended(flow, body, *headers))

    yield sample("destination options", plain, (DESTINATION, pad))
    yield sample("hop-by-hop options", plain, (HOP_BY_HOP, pad))
    yield sample("longer options", plain, (DESTINATION, bytes((1, 12)) + bytes(12)))
    for number, contents in enumerate(homes):
        mobile = replace(plain, home=home)
        yield sample(f"home address {number}", mobile, (DESTINATION, contents))
    yield sample("routing header of type 2", replace(plain, way=way), (ROUTING, route))
    other = bytes((253,)) + route[1:]
    yield sample("routing header of another type", plain, (ROUTING, other))
    yield sample("options, routing", replace(plain, way=way), (HOP_BY_HOP, pad), (ROUTING, route))
    both = replace(plain, home=home, way=way)
    yield sample("routing, home address", both, (ROUTING, route), (DESTINATION, homes[0]))
    dangling = bytes((1, 3, 0, 0, 0, 1))
    yield sample("options that end within one", plain, (DESTINATION, dangling))
    alone = replace(plain, protocol=OTHER, ports=b"")
    for name, contents in (("options", pad), ("options that end within one", dangling)):
        packet = _extended(alone, b"", (DESTINATION, contents))
        frame = arriving(bench, packet)[: ETHERNET + len(packet)]
        yield f"protocol {protocol}, {name}, and nothing behind", alone, frame
    whole = bytes(2) + bench.octets(4)
    yield sample("a fragment header of a whole packet", plain, (FRAGMENT, whole))
    for field in (0x0008, 0x0800, 0x8000):
        later = replace(plain, ports=b"")
        yield (
            f"protocol {protocol}, a later fragment",
            later,
            arriving(bench, _extended(plain, body, (FRAGMENT, field.to_bytes(2) + bench.octets(4)))),
        )


@case("rx-hash-ipv6-extensions", "INF-48", "INF-49", needs=("wire",))
def rx_hash_ipv6_extensions(bench: Bench) -> None:
    """The hash of IPv6 packets with extension headers: home address and routing header where they are.

    TCP, UDP and another protocol behind options, a home address option in several places, a routing header of type 2
    and of another type, both, and a fragment header of a whole packet; with the EX types alone, with those of packets
    without extension headers alone, and with all.
    """
    supported = _supported(bench)
    if not supported & sum(EX):
        raise Unsupported("the device supports no hash type for extension headers")
    samples = [sample for protocol in (TCP, UDP, OTHER) for sample in _with_headers(bench, protocol)]
    sets = (sum(EX), sum(EX[:1]), sum(EX[1:]), sum(V6), sum((*V4, *V6, *EX)), sum((*V6, EX[0])), sum(V4))
    masks = list(dict.fromkeys(each & supported for each in sets))
    _judge(bench, "INF-48", masks, samples, bench.octets(KEY_OCTETS))


@case("rx-hash-not-configured", "INF-50", "INF-49", needs=("wire",))
def rx_hash_not_configured(bench: Bench) -> None:
    """Before the driver configures hash types, and for what is not IP, the report is NONE.

    Packets of every kind before any command; after all types were enabled a frame that is not IP; after a reset the
    first packets again.
    """
    supported = _supported(bench)
    samples = [*_plain(bench, 4), *_plain(bench, 6)]

    def none_reported(when: str) -> None:
        for what, _, packet in samples:
            bench.packets.top_up()
            seen = [rx.header.hash_report for rx in bench.packets.receive(packet)]
            bench.check("INF-50", seen == [HashReport.NONE], f"{when}, {what}: no hash", seen)

    none_reported("before any command")
    demand(configure(bench, supported, bench.octets(KEY_OCTETS)), "all hash types")
    for kind in (b"\x88\xb6", b"\x08\x06", b"\x00\x30"):
        frame = bench.packets.mac + samples[0][2][6:12] + kind + bench.octets(50)
        seen = [rx.header.hash_report for rx in bench.packets.receive(frame)]
        bench.check("INF-49", seen == [HashReport.NONE], f"EtherType {kind.hex()}: no hash", seen)
    _supported(bench)
    none_reported("after a reset")
