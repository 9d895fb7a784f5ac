"""Frames from the wire that are cut short or contradict themselves: delivered as they came or dropped, and never
vouched for."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import demand
from virtio_ipsec.conformance.datapath import DataPath
from virtio_ipsec.conformance.flows import protocol
from virtio_ipsec.conformance.frames import ESP, TCP, UDP, Shape, checksum, with_extension, with_options
from virtio_ipsec.conformance.hashing import KEY_OCTETS, arriving, configure
from virtio_ipsec.conformance.segments import with_length
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, FfAction, HashReport, HdrFlag, has

ETHERNET = 14
VALID = int(HdrFlag.DATA_VALID)
#: A type of extension header of every kind that there is: options, routing, mobility, HIP, shim6; and a fragment.
EXTENSIONS = (0, 43, 60, 135, 139, 140)
FRAGMENT = 44
#: Frames that are sent before a look at what has come: a target far away takes its time for each look.
AT_ONCE = 12
#: Receive buffers: at no time less than half of them, and then there is room for so many frames and four sentinels.
BUFFERS = 32


def _wholes(bench: Bench) -> Iterator[tuple[str, bytes]]:
    """Good IP packets of every shape."""
    for version in (4, 6):
        for number in (TCP, UDP, ESP):
            packet = frames.packet(bench.octets(24), Shape(version, number))
            yield f"IPv{version}, protocol {number}", packet
            if version == 4:
                yield f"IPv4 options, protocol {number}", with_options(packet)
            else:
                for kind in EXTENSIONS:
                    yield f"IPv6 extension {kind}, protocol {number}", with_extension(packet, kind)
                yield f"IPv6 fragment, protocol {number}", with_extension(packet, FRAGMENT)


def _judge(bench: Bench, sent: Sequence[tuple[str, bytes]], may_be_valid: Container[str] = ()) -> None:
    """Each comes as it is or not at all, without any IPsec flag, and what its header says is true. A few at a time."""
    flag, error = bench.dialect.flag_security, bench.dialect.flag_security_err
    for start in range(0, len(sent), AT_ONCE):
        group = sent[start : start + AT_ONCE]
        names = {frame: what for what, frame in group}
        bench.packets.top_up(count=BUFFERS)
        came = bench.packets.receive(*names)
        text = f"{group[0][0]} to {group[-1][0]}"
        others = [rx.frame.hex()[:120] for rx in came if rx.frame not in names]
        bench.check("NET-RX-DEV-30", not others, f"{text}: come as they are, or not", others)
        told = [(names.get(rx.frame, "?"), rx.header) for rx in came]
        for clause, wrong, expected in (
            ("NET-RX-DEV-30", [w for w, h in told if h.flags & flag], "SECURITY is clear"),
            ("NET-RX-DEV-33", [w for w, h in told if h.flags & error], "SECURITY_ERR is clear"),
            (
                "NET-RX-DEV-25",
                [w for w, h in told if h.flags & VALID and w not in may_be_valid],
                "no DATA_VALID",
            ),
        ):
            bench.check(clause, not wrong, f"{text}: {expected}", wrong)
        offsets = [
            (names.get(rx.frame), rx.header.outer_nh_offset)
            for rx in came
            if rx.header.outer_nh_offset not in {0, ETHERNET + 4 * (rx.frame[12:14] == b"\x81\0")}
        ]
        bench.check("NET-RX-INT-01", not offsets, f"{text}: outer_nh_offset is right, or zero", offsets)


CLAUSES = ("NET-RX-DEV-30", "NET-RX-DEV-33", "NET-RX-DEV-25", "NET-RX-INT-01")


def _start(bench: Bench) -> None:
    """With everything that looks into packets."""
    wished = (Feature.NET_F_GUEST_CSUM, Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_HASH_REPORT)
    offered = bench.target.device_features()
    bench.start(want=[one for one in wished if has(offered, one)])
    bench.packets.post()
    if has(bench.features, Feature.NET_F_HASH_REPORT) and has(bench.features, Feature.NET_F_CTRL_VQ):
        types = NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size)).supported_hash_types
        configure(bench, types, bench.octets(KEY_OCTETS))


def _fixed(packet: bytes) -> int:
    """Octets of the IP header that must be there for the lengths to be true."""
    return 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4


def _ending(packet: bytes, end: int) -> bytes:
    """The first ``end - ETHERNET`` octets of a packet, which says that it is that long."""
    size = _fixed(packet)
    rest = packet[size : end - ETHERNET]
    return with_length(packet[:size], packet[0] >> 4, len(rest)) + rest


@case("rx-truncated", *CLAUSES, needs=("wire",))
def rx_truncated(bench: Bench) -> None:
    """Packets that end too early come as they are or not at all, and DATA_VALID is clear.

    TCP, UDP and ESP over IPv4 and IPv6, with options and with extension headers of every kind, cut after every octet,
    with the length of the whole packet and with their own; some behind a VLAN tag. The device looks into them for
    checksums, hashes and offsets.
    """
    _start(bench)
    for what, packet in _wholes(bench):
        frame = arriving(bench, packet)[: ETHERNET + len(packet)]
        ends = bench.sweep(range(ETHERNET, len(frame)))
        _judge(bench, [(f"{what}, {end} octets", frame[:end]) for end in ends])
        ends = bench.sweep(range(ETHERNET + _fixed(packet), len(frame)))
        true = [
            (f"{what}, {end} octets and no more", frame[:ETHERNET] + _ending(packet, end)) for end in ends
        ]
        _judge(bench, true)
        behind_tag = frames.tagged(frame, 3)
        _judge(bench, [(f"{what}, a tag, {end + 4} octets", behind_tag[: end + 4]) for end in ends])


@case("rx-contradictory", *CLAUSES, needs=("wire",))
def rx_contradictory(bench: Bench) -> None:
    """Packets whose headers contradict themselves come as they are or not at all.

    IPv4 with header lengths and total lengths that cannot be, a version that is not that of the EtherType, IPv6 with
    payload lengths and extension headers that reach beyond it.
    """
    _start(bench)
    for what, packet in _wholes(bench):
        version = packet[0] >> 4
        sent, fine = [], set()
        for name, at, values in (
            ("first octet", 0, (0x05, 0x15, 0x44, 0x45, 0x4F, 0x55, 0x60, 0x65, 0xF5)),
            ("length", 2 if version == 4 else 4, (0, 1, 19, 20, len(packet), len(packet) + 1, 0xFFFF)),
            ("extension length", 41, (0, 1, 2, 9, 0xFF)),
        ):
            if name == "extension length" and (version == 4 or "extension" not in what):
                continue
            for value in values:
                octets = value.to_bytes(2 if name == "length" else 1)
                wrong = packet[:at] + octets + packet[at + len(octets) :]
                text = f"{what}, {name} {value:#x}"
                if wrong != packet:
                    sent.append((text, arriving(bench, packet)[:ETHERNET] + wrong))
                # An IPv6 packet of another traffic class is a good one.
                if name == "first octet" and version == value >> 4 == 6:
                    fine.add(text)
        _judge(bench, sent, fine)


@case("rx-checksum-verified", "NET-RX-DEV-25", needs=("wire",))
def rx_checksum_verified(bench: Bench) -> None:
    """DATA_VALID comes only with a packet whose checksum is right, whatever of it was changed.

    TCP and UDP over IPv4 and IPv6: one bit changed in each octet that the checksum covers, addresses included; a
    checksum that is absent, UDP lengths that are wrong, a wrong IPv4 header checksum, fragments.
    """
    bench.start(want=(Feature.NET_F_GUEST_CSUM,))
    bench.packets.post()

    def judge(packet: bytes, what: str) -> None:
        bench.packets.top_up()
        flags = [rx.header.flags & VALID for rx in bench.packets.receive(arriving(bench, packet))]
        bench.check("NET-RX-DEV-25", not any(flags), f"{what}: DATA_VALID is clear", flags)

    for version in (4, 6):
        start = 20 if version == 4 else 40
        for number in (TCP, UDP):
            packet = frames.packet(bench.octets(21), Shape(version, number))
            what = f"IPv{version}, protocol {number}"
            for at in bench.sweep([*range(start - (8 if version == 4 else 32), len(packet))]):
                changed = packet[:at] + bytes((packet[at] ^ 0x10,)) + packet[at + 1 :]
                if version == 4 and at < start:
                    head = changed[:10] + bytes(2) + changed[12:start]
                    changed = head[:10] + checksum(head).to_bytes(2) + changed[12:]
                judge(changed, f"{what}, octet {at}")
            if version == 4:
                judge(packet[:10] + bytes((packet[10] ^ 1,)) + packet[11:], f"{what}, IPv4 header checksum")
                for field in (0x2000, 0x0001):
                    part = packet[:6] + field.to_bytes(2) + bytes(packet[8:10]) + bytes(2) + packet[12:]
                    part = part[:10] + checksum(part[:20]).to_bytes(2) + part[12:]
                    judge(part, f"{what}, fragment field {field:#x}")
            if number == UDP:
                judge(packet[: start + 6] + bytes(2) + packet[start + 8 :], f"{what}, no checksum")
                for length in (0, 7, 8, len(packet) - start - 1, len(packet) - start + 1):
                    wrong = packet[: start + 4] + length.to_bytes(2) + packet[start + 6 :]
                    judge(wrong, f"{what}, UDP length {length}")


@case("ipsec-in-truncated", "NET-RX-DEV-32", "NET-RX-DEV-30", needs=("admin", "ipsec", "flow_filter", "wire"))
def ipsec_in_truncated(bench: Bench) -> None:
    """A rule that starts IPsec meets packets that end within or right behind the ESP or AH header.

    Every length from none to a whole header and more, over IPv4 and IPv6, of an SPI that there is and of one that
    there is not: marked as failed, or dropped, and never opened; the next good packet is opened.
    """
    path = DataPath(bench)
    sa = path.inbound()
    good = frames.packet(bench.octets(40))
    path.receive(sa.peer.seal(good))
    group = path.flows.group(2)
    for version in (4, 6):
        for number in (ESP, 51):
            path.flows.rule(group, protocol(version, number), FfAction.IPSEC)
    for version in (4, 6):
        for number in (ESP, 51):
            for spi in (sa.spi, sa.spi ^ 1):
                head = spi.to_bytes(4) + bytes((0, 0, 0, 9)) + bench.octets(32)
                if number == 51:
                    head = bytes((4, 4, 0, 0)) + head
                for length in (*range(13), 16, 20, 24, 28, len(head)):
                    whole = frames.packet(head[:length], Shape(version, number))
                    bench.packets.top_up()
                    came = bench.packets.receive(path.wire(whole))
                    known = "known" if spi == sa.spi else "unknown"
                    what = f"IPv{version}, protocol {number}, {length} octets, SPI {known}"
                    marked = all(path.is_failed(rx) and path.is_secured(rx) for rx in came)
                    seen = [hex(rx.header.flags) for rx in came]
                    bench.check("NET-RX-DEV-32", marked, f"{what}: marked as failed, or dropped", seen)
                    untouched = all(rx.frame == path.wire(whole) for rx in came)
                    bench.check("NET-RX-DEV-32", untouched, f"{what}: as it came", len(came))
    again = bench.packets.receive(path.wire(sa.peer.seal(good)))
    opened = len(again) == 1 and path.is_opened(again[0], good)
    bench.check(
        "NET-RX-DEV-30", opened and path.is_secured(again[0]), "the next good packet is opened", len(again)
    )


@case("rx-hash-none-of-malformed", "INF-49", needs=("wire",))
def rx_hash_none_of_malformed(bench: Bench) -> None:
    """What is too short for an IP header has no hash.

    With all types enabled, IPv4 and IPv6 cut within the fixed header: the report is NONE.
    """
    bench.start(want=(Feature.NET_F_HASH_REPORT, Feature.NET_F_CTRL_VQ), without=(Feature.NET_F_RSS,))
    bench.packets.post()
    types = NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size)).supported_hash_types
    demand(configure(bench, types, bench.octets(KEY_OCTETS)), "all hash types")
    for version, size in ((4, 20), (6, 40)):
        packet = frames.packet(bench.octets(24), Shape(version, TCP))
        for end in range(size):
            bench.packets.top_up()
            came = bench.packets.receive(arriving(bench, packet)[: ETHERNET + end])
            seen = [rx.header.hash_report for rx in came]
            bench.check(
                "INF-49", set(seen) <= {HashReport.NONE}, f"IPv{version}, {end} octets: no hash", seen
            )
