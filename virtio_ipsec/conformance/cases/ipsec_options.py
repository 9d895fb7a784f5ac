"""What the option bits of an SA do to the packets: ESN, UDP encapsulation, DSCP, TTL, DF, ECN (INF-21 to INF-26)."""

from __future__ import annotations

import struct
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.admin import Reply
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import DataPath, Sa, try_open
from virtio_ipsec.conformance.frames import UDP, Shape, ip_of
from virtio_ipsec.conformance.sas import AH_MODES, TUNNEL4, TUNNEL6, install, make
from virtio_ipsec.ipsec.process import Inbound
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

TUNNEL, TRANSPORT = IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT


def _one(path: DataPath, sa: Sa, packet: bytes, clause: str, what: str) -> bytes:
    """The one IP packet that leaves for ``packet``; ends the case when there is none."""
    left = path.send(sa, packet)
    good = len(left) == 1 and len(left[0]) > 40
    path.bench.require(clause, good, f"{what}: one IP packet leaves", [packet.hex()[:80] for packet in left])
    return left[0]


def _tos(packet: bytes) -> int:
    """TOS or traffic class; -1 of what is no IP packet."""
    if not packet:
        return -1
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2]) >> 4 & 0xFF


def _with_tos(packet: bytes, tos: int) -> bytes:
    """The packet with another traffic class, header checksum right."""
    if packet[0] >> 4 == 6:
        first = int.from_bytes(packet[:4]) & 0xF00FFFFF | tos << 20
        return first.to_bytes(4) + packet[4:]
    head = packet[:1] + bytes((tos,)) + packet[2:10] + bytes(2) + packet[12:20]
    return head[:10] + frames.checksum(head).to_bytes(2) + head[12:] + packet[20:]


@case("ipsec-option-esn", "INF-21", needs=("admin", "ipsec", "wire"))
def option_esn(bench: Bench) -> None:
    """With the ESN option the ICV covers the upper half of the sequence number, even while it is zero.

    Both directions in each mode that offers the option: the peer checks with 64-bit numbers. A peer without the
    option cannot open what leaves, and what it seals fails.
    """
    path = DataPath(bench)
    offered = [mode for mode in path.modes() if path.caps.modes[mode].options & IpsecOption.ESN]
    path.need((offered or path.modes())[0], IpsecOption.ESN)
    for mode in offered:
        packet = frames.packet(bench.octets(40))
        sa = path.outbound(mode=mode, options=IpsecOption.ESN)
        left = _one(path, sa, packet, "INF-21", mode.name)
        opened = try_open(sa, left)
        good = isinstance(opened, Inbound) and bench.same(packet, opened.packet)
        bench.check("INF-21", good, f"{mode.name}: the peer with ESN opens what leaves", opened)
        plain = path.peer_with(sa, options=0)
        bench.check(
            "INF-21",
            not isinstance(try_open(plain, left), Inbound),
            f"{mode.name}: a peer without ESN cannot open it",
        )
        sa = path.inbound(mode=mode, options=IpsecOption.ESN)
        came = path.receive(sa.peer.seal(packet))
        good = len(came) == 1 and path.is_opened(came[0], packet)
        bench.check("INF-21", good, f"{mode.name}: a packet with ESN is opened", came)
        came = path.receive(path.peer_with(sa, options=0).peer.at(2).seal(packet))
        good = any(path.is_opened(rx, packet) for rx in came)
        bench.check("INF-21", not good, f"{mode.name}: a packet without the upper half fails", came)


@case("ipsec-option-udp-encapsulation", "INF-22", "INF-18", needs=("admin", "ipsec", "wire"))
def option_udp_encapsulation(bench: Bench) -> None:
    """With the UDP encapsulation option ESP leaves in UDP between the SA's ports, and is opened from it.

    Ports of the SA, then ports of zero, which are reported (ledger E66). The UDP checksum is zero over IPv4 and
    right over IPv6. Inbound the datagram goes to the SA's port, and to port 4500, and is opened; IKE and keepalives
    on that port arrive untouched.
    """
    path = DataPath(bench)
    path.need(TUNNEL, IpsecOption.UDP_ENCAP)
    fields: dict[str, object] = {"options": IpsecOption.UDP_ENCAP, "udp_sport": 4501, "udp_dport": 4502}
    for outer in (TUNNEL4, TUNNEL6):
        packet = frames.packet(bench.octets(40))
        sa = path.outbound(param=outer, **fields)
        left = _one(path, sa, packet, "INF-22", "with UDP encapsulation")
        version, at = left[0] >> 4, 20 if left[0] >> 4 == 4 else 40
        number = left[9 if version == 4 else 6]
        bench.require("INF-22", number == UDP, f"IPv{version}: the outer header names UDP", number)
        sport, dport, length, checksum = struct.unpack_from("!HHHH", left, at)
        ports = (sport, dport)
        bench.check("INF-18", ports == (4501, 4502), f"IPv{version}: ports 4501 and 4502", ports)
        bench.check("INF-22", length == len(left) - at, f"IPv{version}: UDP length", length)
        pseudo = left[8:40] + struct.pack("!IxxxB", length, UDP)
        right = checksum == 0 if version == 4 else not frames.checksum(pseudo + left[at:])
        bench.check("INF-22", right, f"IPv{version}: UDP checksum zero over IPv4, right over IPv6", checksum)
        opened = try_open(sa, left)
        good = isinstance(opened, Inbound) and bench.same(packet, opened.packet)
        bench.check("INF-22", good, f"IPv{version}: the peer opens what leaves", opened)
    sa = path.outbound(options=IpsecOption.UDP_ENCAP)
    ports = struct.unpack_from("!HH", _one(path, sa, packet, "INF-22", "with ports of zero"), 20)
    bench.reading("E66", f"ports of zero leave as {ports[0]} and {ports[1]}")
    for port, more in ((4502, fields), (4500, {"options": IpsecOption.UDP_ENCAP})):
        sa = path.inbound(**more)
        came = path.receive(sa.peer.seal(packet))
        good = len(came) == 1 and path.is_opened(came[0], packet)
        bench.check("INF-22", good, f"ESP in UDP to port {port} is opened", came)
        path.destroy(sa)
    for what, payload in (("IKE", bytes(4) + bench.octets(28)), ("a keepalive", b"\xff")):
        other = frames.packet(payload, Shape(dport=4500))
        same = [rx.frame for rx in path.receive(other)] == [path.wire(other)]
        bench.check("INF-22", same, f"{what} on port 4500 arrives as it came")


@case("ipsec-option-udp-needed", "INF-22", needs=("admin", "ipsec", "wire"))
def option_udp_needed(bench: Bench) -> None:
    """Without the option ESP leaves bare, and an SA with an AH mode and the option is refused (ledger E90).

    An SA with UDP ports and no option seals one packet; CREATE in each AH mode with the option.
    """
    path = DataPath(bench)
    packet = frames.packet(bench.octets(40))
    left = _one(path, path.outbound(udp_sport=4501, udp_dport=4502), packet, "INF-22", "without the option")
    bench.check("INF-22", left[9] == frames.ESP, "without the option ESP follows the IP header", left[9])
    for mode in AH_MODES & set(path.modes()):
        reply = _try(path, mode, IpsecOption.UDP_ENCAP, 900)
        bench.check("INF-22", not reply.ok, f"{mode.name} with UDP encapsulation is refused", reply)


def _try(path: DataPath, mode: IpsecMode, options: int, id: int) -> Reply:
    """CREATE of an outbound SA, whatever comes of it."""
    value = make(path.bench, Direction.OUTBOUND, mode=mode, suite=path.suite(mode), options=options)
    return install(path.bench, id, value)


@case("ipsec-option-dscp", "INF-23", needs=("admin", "ipsec", "wire"))
def option_dscp(bench: Bench) -> None:
    """The outer DSCP is the inner one with the option, else that of the tunnel parameters.

    Inner packets with DSCP 46 through tunnels of both IP versions whose parameters say 10 (ledger E26, E67).
    """
    path = DataPath(bench)
    path.need(TUNNEL, IpsecOption.COPY_DSCP)
    packet = frames.packet(bench.octets(40), Shape(tos=46 << 2))
    for option, wanted in ((IpsecOption.COPY_DSCP, 46), (0, 10)):
        for outer in (replace(TUNNEL4, dscp=10), replace(TUNNEL6, dscp=10)):
            sa = path.outbound(options=option, param=outer)
            left = _one(path, sa, packet, "INF-23", "DSCP")
            what = f"outer DSCP of IPv{left[0] >> 4} {'with' if option else 'without'} the option is {wanted}"
            bench.check("INF-23", _tos(left) >> 2 == wanted, what, _tos(left) >> 2)
            opened = try_open(sa, left)
            kept = isinstance(opened, Inbound) and bench.same(packet, opened.packet)
            bench.check("INF-23", kept, "the inner packet is unchanged", opened)


@case("ipsec-option-ttl", "INF-24", needs=("admin", "ipsec", "wire"))
def option_ttl(bench: Bench) -> None:
    """The inner TTL is decremented with the option and kept without it.

    IPv4 and IPv6 packets with TTL 9, and one with TTL 1, which does not leave (ledger E67).
    """
    path = DataPath(bench)
    path.need(TUNNEL, IpsecOption.DEC_TTL)
    for option, wanted in ((IpsecOption.DEC_TTL, 8), (0, 9)):
        sa = path.outbound(options=option)
        for version in (4, 6):
            packet = frames.packet(bench.octets(40), Shape(version, ttl=9))
            opened = try_open(sa, _one(path, sa, packet, "INF-24", "TTL"))
            inner = opened.packet if isinstance(opened, Inbound) else b""
            ttl = inner[8 if version == 4 else 7] if inner else None
            bench.check("INF-24", ttl == wanted, f"inner TTL of IPv{version} is {wanted}", ttl)
            right = version == 6 or not frames.checksum(inner[:20])
            bench.check("INF-24", right, "the inner header checksum is right", inner[:20].hex())
    sa = path.outbound(options=IpsecOption.DEC_TTL)
    left = path.send(sa, frames.packet(bench.octets(40), Shape(ttl=1)))
    bench.check("INF-24", not left, "a packet whose TTL would reach zero does not leave", left)


@case("ipsec-option-df", "INF-25", needs=("admin", "ipsec", "wire"))
def option_df(bench: Bench) -> None:
    """The outer DF bit is the inner one with the option, else that of the tunnel parameters.

    Inner packets with DF set and clear, parameters that say the opposite.
    """
    path = DataPath(bench)
    path.need(TUNNEL, IpsecOption.COPY_DF)
    for inner in (False, True):
        packet = frames.packet(bench.octets(40), Shape(df=inner))
        for option in (IpsecOption.COPY_DF, IpsecOption(0)):
            sa = path.outbound(options=option, param=replace(TUNNEL4, df=int(not inner)))
            left = _one(path, sa, packet, "INF-25", "DF")
            df, wanted = bool(left[6] & 0x40), inner if option else not inner
            what = (
                f"outer DF for inner DF {inner:d} {'with' if option else 'without'} the option is {wanted:d}"
            )
            bench.check("INF-25", df == wanted, what, df)


@case("ipsec-option-ecn", "INF-26", needs=("admin", "ipsec", "wire"))
def option_ecn(bench: Bench) -> None:
    """With the ECN option the outer ECN field is the inner one, and a congestion mark comes back in.

    Outbound: inner ECT(0), ECT(1) and CE. Inbound: the outer CE of a packet that can bear it shows in the
    opened packet with the option, and does not without it (RFC 6040).
    """
    path = DataPath(bench)
    path.need(TUNNEL, IpsecOption.ECN)
    for option in (IpsecOption.ECN, IpsecOption(0)):
        sa = path.outbound(options=option)
        for ecn in (1, 2, 3):
            packet = frames.packet(bench.octets(40), Shape(tos=ecn))
            outer = _tos(_one(path, sa, packet, "INF-26", "ECN")) & 3
            wanted = ecn if option else 0
            what = f"outer ECN for inner {ecn} {'with' if option else 'without'} the option is {wanted}"
            bench.check("INF-26", outer == wanted, what, outer)
        sa = path.inbound(options=option)
        for version in (4, 6):
            plain = frames.packet(bench.octets(40), Shape(version, tos=2))
            came = path.receive(_with_tos(sa.peer.seal(plain), 3))
            marks = [_tos(ip_of(rx.frame)) & 3 for rx in came]
            wanted = 3 if option else 2
            what = f"inner ECN after outer CE {'with' if option else 'without'} the option is {wanted}"
            bench.check("INF-26", marks == [wanted], what, marks)
