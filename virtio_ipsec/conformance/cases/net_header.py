"""The net header of plain packets: its size, what the device ignores in it, and what it writes into it."""

from __future__ import annotations

from itertools import product

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import OUTBOUND, DataPath, try_open
from virtio_ipsec.conformance.frames import TCP, Shape, ip_of
from virtio_ipsec.conformance.packets import PEER_MAC, RECEIVE_BUFFERS
from virtio_ipsec.ipsec.process import Inbound
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, HdrFlag, has

CHECKSUM_FLAGS = HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID
#: A header field cannot hold more.
NONSENSE = 0xFFF1
GUEST_OFFLOADS = (
    Feature.NET_F_GUEST_CSUM,
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
)


def _out(bench: Bench, payload: int = 40) -> bytes:
    return frames.ethernet(frames.packet(bench.octets(payload)), PEER_MAC, bench.packets.mac)


def _in(bench: Bench, packet: bytes) -> bytes:
    return frames.ethernet(packet, bench.packets.mac, PEER_MAC)


def _leaves_unchanged(bench: Bench, clauses: tuple[str, ...], header: NetHdr, what: str) -> None:
    frame = _out(bench)
    left = bench.packets.transmit(frame, header)
    good = len(left) == 1 and bench.same(frame, left[0])
    for clause in clauses:
        bench.check(clause, good, f"{what}: the frame leaves as it is", f"{len(left)} frames")


def _if_offered(bench: Bench, *features: Feature) -> tuple[Feature, ...]:
    offered = bench.target.device_features()
    return tuple(feature for feature in features if has(offered, feature))


# -- transmit ---------------------------------------------------------------------------------------------


@case("tx-unknown-flags", "NET-TX-DEV-01", needs=("wire",))
def tx_unknown_flags(bench: Bench) -> None:
    """Flag bits that the device cannot know change nothing: bit 7, and the IPsec bits without the feature.

    Frames with each of these bits leave unchanged.
    """
    bench.start()
    _leaves_unchanged(bench, ("NET-TX-DEV-01",), NetHdr(flags=0x80), "bit 7 set")
    dialect = bench.dialect
    bench.start(without=(Feature.NET_F_IPSEC,))
    for flag in (dialect.flag_security, dialect.flag_security_err, dialect.flag_soft_expiry, 0x80):
        _leaves_unchanged(bench, ("NET-TX-DEV-01",), NetHdr(flags=flag), f"flag {flag:#x} set without IPsec")


@case("tx-security-without-feature", "INF-06", "NET-TX-DEV-01", needs=("wire",))
def tx_security_without_feature(bench: Bench) -> None:
    """Without the feature there is no IPsec: SECURITY with a resource id leaves the frame as it is (ledger E61).

    IPsec is not negotiated; where the header is long enough it names outbound SA 0.
    """
    bench.start(without=(Feature.NET_F_IPSEC,))
    long = bench.packets.codec.size >= 32
    header = NetHdr(flags=bench.dialect.flag_security, resource_type=OUTBOUND if long else 0)
    _leaves_unchanged(bench, ("INF-06", "NET-TX-DEV-01"), header, "SECURITY without the feature")


@case("tx-checksum-fields-unused", "NET-TX-DEV-02", needs=("wire",))
def tx_checksum_fields_unused(bench: Bench) -> None:
    """Without NEEDS_CSUM csum_start and csum_offset are not used.

    Offsets that lie outside the frame, and such that point at the UDP checksum.
    """
    bench.start(want=_if_offered(bench, Feature.NET_F_CSUM))
    for start, offset in ((NONSENSE, NONSENSE), (34, 6), (0, 0xFFFF)):
        header = NetHdr(csum_start=start, csum_offset=offset)
        _leaves_unchanged(bench, ("NET-TX-DEV-02",), header, f"csum_start {start}, csum_offset {offset}")


@case("tx-network-offset-unused", "NET-TX-DEV-03", "NET-TX-INT-02", needs=("admin", "ipsec", "wire"))
def tx_network_offset_unused(bench: Bench) -> None:
    """Without VIRTIO_NET_F_OUT_NET_HEADER, or when it is zero, outer_nh_offset is not used.

    The feature is left out: a plain and a sealed packet leave as they should with nonsense in the field. Where
    the feature is offered, zero in the field does no harm either.
    """
    cited = ("NET-TX-DEV-03", "NET-TX-INT-02")
    path = DataPath(bench, without=(Feature.NET_F_OUT_NET_HEADER,))
    for offset in (NONSENSE, 15):
        header = NetHdr(outer_nh_offset=offset)
        _leaves_unchanged(bench, cited, header, f"outer_nh_offset {offset} without the feature")
        _seals(path, cited, f"outer_nh_offset {offset} without the feature", offset)
    if has(bench.target.device_features(), Feature.NET_F_OUT_NET_HEADER):
        path = DataPath(bench, want=(Feature.NET_F_OUT_NET_HEADER,))
        _seals(path, ("NET-TX-INT-02",), "outer_nh_offset 0 with the feature", 0)


def _seals(path: DataPath, clauses: tuple[str, ...], what: str, offset: int) -> None:
    sa = path.outbound()
    packet = frames.packet(path.bench.octets(40))
    left = path.bench.packets.transmit(path.frame(packet), path.header(sa.id, outer_nh_offset=offset))
    opened = [try_open(sa, ip_of(frame)) for frame in left]
    good = len(opened) == 1 and isinstance(opened[0], Inbound) and path.bench.same(packet, opened[0].packet)
    for clause in clauses:
        path.bench.check(clause, good, f"{what}: the packet leaves sealed", opened)


@case("tx-resource-without-security", "NET-TX-DEV-11", "RFC-11", needs=("admin", "ipsec", "wire"))
def tx_resource_without_security(bench: Bench) -> None:
    """Without SECURITY resource_id and resource_type are not used.

    The header names a live outbound SA, an id without an SA, and another type; the flag is clear each time, and
    the frame leaves in clear.
    """
    path = DataPath(bench)
    sa = path.outbound()
    for id, type in ((sa.id, OUTBOUND), (sa.id + 1, OUTBOUND), (sa.id, 0xFFFF)):
        header = NetHdr(resource_id=id, resource_type=type)
        what = f"resource_id {id}, resource_type {type:#x}"
        _leaves_unchanged(bench, ("NET-TX-DEV-11", "RFC-11"), header, what)


# -- header size ------------------------------------------------------------------------------------------


@case("net-header-size", "INF-01", "RFC-01", "RFC-03", needs=("wire",))
def net_header_size(bench: Bench) -> None:
    """The packet starts right behind the header of the negotiated features, on transmit and on receive.

    With IPsec the header has 32 octets (26 in the dialect of January 2025, and there 12 or 20 without it).
    """
    sizes: list[tuple[str, tuple[Feature, ...], tuple[Feature, ...], int]]
    hashes, ipsec = (Feature.NET_F_HASH_REPORT,), (Feature.NET_F_IPSEC,)
    late = bench.dialect.has_initial_esn
    sizes = [("RFC-01" if late else "INF-01", ipsec, hashes, 26 if late else 32)]
    if not late:
        sizes.append(("INF-01", ipsec, (*hashes, Feature.NET_F_OUT_NET_HEADER), 32))
    else:
        sizes += [("RFC-03", (), (*ipsec, *hashes), 12)]
        if _if_offered(bench, *hashes):
            sizes += [("RFC-01", (*ipsec, *hashes), (), 26), ("RFC-03", hashes, ipsec, 20)]
    for clause, want, without, size in sizes:
        _header_ends(bench, clause, want, without, size)


@case("net-header-sizes", "NET-RXB-DRV-04", needs=("wire",))
def net_header_sizes(bench: Bench) -> None:
    """The header counts as 32, 24, 20 or 12 octets, by the last of the features that decide it.

    Every combination of OUT_NET_HEADER, IPSEC, HOST_UDP_TUNNEL_GSO and HASH_REPORT that the device offers, on
    transmit and on receive. The clause speaks to drivers; a device that counts otherwise is of no use to them.
    """
    deciding = (
        Feature.NET_F_OUT_NET_HEADER,
        Feature.NET_F_IPSEC,
        Feature.NET_F_HOST_UDP_TUNNEL_GSO,
        Feature.NET_F_HASH_REPORT,
    )
    offered = _if_offered(bench, *deciding)
    for chosen in product((False, True), repeat=len(offered)):
        wanted = tuple(feature for feature, on in zip(offered, chosen, strict=True) if on)
        size = 12
        if Feature.NET_F_HASH_REPORT in wanted:
            size = 20
        if Feature.NET_F_HOST_UDP_TUNNEL_GSO in wanted:
            size = 24
        if {Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC} & set(wanted):
            size = 32
        tunnels = Feature.NET_F_HOST_UDP_TUNNEL_GSO in wanted
        needed = (
            Feature.NET_F_CSUM,
            Feature.NET_F_HOST_TSO4,
            Feature.NET_F_HOST_TSO6,
            Feature.NET_F_HOST_USO,
        )
        without = tuple(feature for feature in offered if feature not in wanted)
        _header_ends(bench, "NET-RXB-DRV-04", (*wanted, *(needed if tunnels else ())), without, size)


def _header_ends(
    bench: Bench, clause: str, want: tuple[Feature, ...], without: tuple[Feature, ...], size: int
) -> None:
    """Check that the packet starts behind ``size`` octets, with these features, both ways."""
    bench.start(want=want, without=without)
    frame = _out(bench)
    bench.packets.send(frame, bytes(size))
    left = bench.packets.first_emitted()
    bench.check(clause, left == [frame], f"behind {size} octets of header the frame leaves as it is", left)
    bench.packets.post()
    frame = _in(bench, frames.packet(bench.octets(40)))
    bench.packets.inject(frame)
    content = b"".join(buffer.content[: buffer.written] for buffer in bench.packets.first_used())
    bench.check(
        clause,
        content[size:] == frame,
        f"a received frame starts at octet {size}",
        f"octet {content.find(frame)}",
    )


# -- receive ----------------------------------------------------------------------------------------------


def _kinds(bench: Bench) -> dict[str, bytes]:
    """Frames that have nothing to do with IPsec."""
    return {
        "UDP over IPv4": _in(bench, frames.packet(bench.octets(40))),
        "TCP over IPv6": _in(bench, frames.packet(bench.octets(40), Shape(6, TCP))),
        "ESP without an SA": _in(bench, frames.esp(0x1234, 1)),
        "no IP": bench.packets.mac + PEER_MAC + (0x88B6).to_bytes(2) + bench.octets(46),
    }


@case(
    "rx-plain-header",
    "NET-RX-DEV-05",
    "NET-RX-DEV-11",
    "NET-RX-DEV-13",
    "NET-RX-DEV-20",
    "NET-RX-DEV-23",
    "NET-RX-DEV-30",
    "RFC-15",
    needs=("wire",),
)
def rx_plain_header(bench: Bench) -> None:
    """A packet that meets no IPsec arrives as it came, with the flags of nothing set.

    Frames of several kinds arrive without checksum, segmentation and coalescing features, with IPsec
    negotiated and without it: flags and gso_type are zero (the three IPsec flags are judged apart, ledger E50),
    and so is outer_nh_offset when VIRTIO_NET_F_OUT_NET_HEADER is left out.
    """
    dialect = bench.dialect
    ipsec_flags = dialect.flag_security | dialect.flag_security_err | dialect.flag_soft_expiry
    unwanted = (*GUEST_OFFLOADS, Feature.NET_F_RSC_EXT, Feature.NET_F_OUT_NET_HEADER)
    for without in ((), (Feature.NET_F_IPSEC,)):
        bench.start(without=(*unwanted, *without))
        bench.packets.post()
        for kind, frame in _kinds(bench).items():
            came = bench.packets.receive(frame)
            whole = len(came) == 1 and bench.same(frame, came[0].frame)
            bench.require(
                "NET-RX-DEV-05",
                whole,
                f"{kind} arrives with its checksums as it came",
                [r.frame for r in came],
            )
            header = came[0].header
            flags, shown = header.flags, f"flags {header.flags:#x}"
            bench.check("NET-RX-DEV-05", not flags & CHECKSUM_FLAGS, f"{kind}: no checksum flags", shown)
            bench.check(
                "NET-RX-DEV-11",
                not flags & dialect.flag_udp_tunnel_csum,
                f"{kind}: UDP_TUNNEL_CSUM is clear",
                shown,
            )
            bench.check("NET-RX-DEV-23", not flags & HdrFlag.RSC_INFO, f"{kind}: RSC_INFO is clear", shown)
            for clause in ("NET-RX-DEV-30", "RFC-15"):
                bench.check(clause, not flags & ipsec_flags, f"{kind}: no IPsec flag is set", shown)
            bench.check(
                "NET-RX-DEV-20", not header.gso_type, f"{kind}: gso_type is NONE", f"{header.gso_type:#x}"
            )
            bench.check(
                "NET-RX-DEV-13",
                not header.outer_nh_offset,
                f"{kind}: outer_nh_offset is zero without the feature",
                header.outer_nh_offset,
            )


@case("rx-network-offset", "NET-RX-INT-01", needs=("wire",))
def rx_network_offset(bench: Bench) -> None:
    """An outer_nh_offset that the device reports points at the IP header of the delivered frame.

    Zero, which says nothing, conforms as well.
    """
    bench.start(want=(Feature.NET_F_OUT_NET_HEADER,))
    bench.packets.post()
    for kind, frame in _kinds(bench).items():
        came = bench.packets.receive(frame)
        offset = came[0].header.outer_nh_offset if came else 0
        right = {0, 14} if ip_of(frame) else {0}
        bench.check("NET-RX-INT-01", bool(came) and offset in right, f"{kind}: offset among {right}", offset)


@case("rx-num-buffers", "NET-RXB-DEV-01", "NET-RX-DEV-02", "NET-RX-DEV-03", needs=("wire",))
def rx_num_buffers(bench: Bench) -> None:
    """A packet larger than a buffer is spread over as many as num_buffers says, all but the last filled.

    Buffers of 256 octets with VIRTIO_NET_F_MRG_RXBUF, packets that need one, several, and exactly full ones.
    """
    bench.start(want=(Feature.NET_F_MRG_RXBUF,))
    room, size = 256, bench.packets.codec.size
    bench.packets.post(room=room)
    for length in (100, room - size, room - size + 1, 700, 3 * room - size):
        frame = _in(bench, frames.packet(bench.octets(length - 42)))
        buffers = []
        bench.packets.inject(frame)

        def arrived() -> bool:
            buffers.extend(bench.queues.collect(0))  # noqa: B023 - used up within the turn
            return sum(buffer.written for buffer in buffers) >= size + len(frame)  # noqa: B023

        bench.wait(arrived, f"a frame of {len(frame)} octets is not delivered")
        head = bench.packets.codec.parse(buffers[0].content)
        used = [buffer.written for buffer in buffers]
        needed = -(-(size + len(frame)) // room)
        for clause in ("NET-RXB-DEV-01", "NET-RX-DEV-02"):
            bench.check(
                clause,
                head.num_buffers == len(buffers),
                f"num_buffers counts the {len(buffers)} buffers of a frame of {len(frame)} octets",
                head.num_buffers,
            )
        full = used[:-1] == [room] * (needed - 1)
        bench.check("NET-RX-DEV-03", full, f"all of {needed} buffers but the last hold {room} octets", used)


@case("rx-single-buffer", "NET-RXB-DEV-02", "NET-RX-DEV-01", needs=("wire",))
def rx_single_buffer(bench: Bench) -> None:
    """Without VIRTIO_NET_F_MRG_RXBUF a packet is in one buffer, and num_buffers is 1.

    Large buffers first; then buffers that are too small for the packet, which is dropped (ledger E17).
    """
    bench.start(without=(Feature.NET_F_MRG_RXBUF,))
    bench.packets.post(count=3)
    frame = _in(bench, frames.packet(bench.octets(900)))
    came = bench.packets.receive(frame)
    whole = len(came) == 1 and bench.same(frame, came[0].frame)
    bench.require("NET-RXB-DEV-02", whole, "a packet is in one buffer", came)
    number = came[0].header.num_buffers
    bench.check("NET-RX-DEV-01", number == 1, "num_buffers is 1", number)
    bench.start(without=(Feature.NET_F_MRG_RXBUF,))
    bench.packets.post(room=256)
    came = bench.packets.receive(frame)
    bench.check(
        "NET-RXB-DEV-02",
        not came,
        "a packet that does not fit into one buffer is dropped",
        f"{len(came)} buffers used",
    )
    for _ in range(RECEIVE_BUFFERS):
        bench.packets.inject(frame)
    bench.packets.delivered()
    small = _in(bench, frames.packet(bench.octets(40)))
    came = bench.packets.receive(small)
    kept = len(came) == 1 and bench.same(small, came[0].frame)
    bench.check("NET-RXB-DEV-02", kept, "its buffer is there for the next packet", f"{len(came)} packets")
