"""Checksum completion and segmentation, judged by scapy and by putting the pieces together again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert, IPOption_Timestamp
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    defragment6,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.plist import PacketList

from virtio_ipsec.device import checksum, frame, offloads
from virtio_ipsec.device.pieces import MAX_BYTES
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.ip import ones_sum
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, mask

ROUTED = IPv6ExtHdrRouting(segleft=0, addresses=["fd00::3"])
ALL = mask(
    Feature.NET_F_CSUM,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_ECN,
    Feature.NET_F_HOST_UFO,
    Feature.NET_F_HOST_USO,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
)
ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
NEEDS = int(HdrFlag.NEEDS_CSUM)
DATA = bytes(i * 7 & 0xFF for i in range(3500))


def reference_sum(data: bytes) -> int:
    """RFC 1071 word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: bytes, target: bytes, protocol: int, length: int) -> int:
    """The seed a driver writes: the sum over the pseudo header, not complemented."""
    return reference_sum(source + target + length.to_bytes(4, "big") + protocol.to_bytes(4, "big"))


def seeded(packet: Packet, l4: int, offset: int, final: bytes = b"") -> bytes:
    """The bytes of ``packet`` with the pseudo header sum in its checksum field, as a driver queues it."""
    raw = bytearray(bytes(packet))
    inner = packet.getlayer(IPv6) or packet.getlayer(IP)
    if packet.haslayer(VXLAN):
        inner = packet[VXLAN].getlayer(IPv6) or packet[VXLAN].getlayer(IP)
    header = bytes(inner)
    source, target = (header[8:24], header[24:40]) if header[0] >> 4 == 6 else (header[12:16], header[16:20])
    protocol = 6 if offset == 16 else 17
    seed = pseudo(source, final or target, protocol, len(raw) - l4)
    raw[l4 + offset : l4 + offset + 2] = seed.to_bytes(2, "big")
    return bytes(raw)


def cut(data: bytes, **fields: int) -> list[bytes]:
    """Segment with every feature negotiated."""
    hdr = NetHdr(**{"flags": NEEDS, **fields})
    base = offloads.check_gso(hdr, ALL)
    return offloads.segment(data, hdr, base, ALL, lambda n: b"\xa5" * n)


def rebuilt(raw: bytes) -> bytes:
    """What scapy makes of the same packet when it computes lengths and checksums itself."""
    packet = Ether(raw)
    layer: Packet | None = packet
    while layer is not None and not isinstance(layer, Raw):
        for name in ("chksum", "len", "plen"):
            if name in layer.fields and not (isinstance(layer, UDP) and layer.fields.get("chksum") == 0):
                del layer.fields[name]
        layer = layer.payload if layer.payload else None
    return bytes(packet)


@given(st.binary(max_size=200))
def test_the_sum_is_that_of_rfc_1071(data: bytes) -> None:
    assert ones_sum(data) == reference_sum(data)


@pytest.mark.parametrize("payload", [b"", b"x", b"odd", DATA])
def test_a_completed_checksum_is_scapys(payload: bytes) -> None:
    for packet, offset in (
        (ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / payload, 16),
        (ETHER / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / payload, 6),
    ):
        want = bytes(packet)
        l4 = 34 if offset == 16 else 54
        data = bytearray(seeded(packet, l4, offset))
        checksum.complete_checksum(data, l4, offset)
        assert bytes(data) == want


def test_a_zero_result_is_written_as_all_ones() -> None:
    data = bytearray(b"\xff\xff\x00\x00")
    checksum.complete_checksum(data, 0, 2)
    assert data == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(("start", "offset"), [(0, 99), (99, 0), (98, 1), (65535, 65535), (200, 0)])
def test_a_checksum_field_outside_the_frame_is_refused(start: int, offset: int) -> None:
    data = bytearray(100)
    with pytest.raises(PacketError) as caught:
        checksum.complete_checksum(data, start, offset)
    assert caught.value.reason is Reason.BAD_CHECKSUM_REQUEST
    assert data == bytes(100)


def test_the_last_two_bytes_of_the_frame_may_be_the_field() -> None:
    data = bytearray(100)
    checksum.complete_checksum(data, 90, 8)
    assert data[98:] == b"\xff\xff"


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_tcp_segments_are_right_and_make_up_the_original(version: int, tagged: bool) -> None:
    ip = (
        IP(src="10.0.0.1", dst="10.0.0.2", id=65534, options=[IPOption_NOP()] * 4)
        if version == 4
        else (IPv6(src="fd00::1", dst="fd00::2", fl=0x12345) / IPv6ExtHdrDestOpt())
    )
    tcp = TCP(sport=4000, dport=80, seq=0xFFFFFF00, flags="FPACE", options=[("Timestamp", (1, 2))])
    l2 = ETHER / Dot1Q(vlan=9) if tagged else ETHER
    packet = l2 / ip / tcp / DATA
    l4 = len(l2 / ip)
    gso = int(GsoType.TCPV4 if version == 4 else GsoType.TCPV6) | int(GsoType.ECN)
    data = seeded(packet, l4, 16)
    pieces = cut(data, gso_type=gso, gso_size=1000, csum_start=l4, csum_offset=16, hdr_len=3)
    assert [len(p[TCP].payload) for p in map(Ether, pieces)] == [1000, 1000, 1000, 500]
    for index, raw in enumerate(pieces):
        assert rebuilt(raw) == raw
        piece = Ether(raw)
        assert piece[TCP].seq == (0xFFFFFF00 + 1000 * index) & 0xFFFFFFFF
        assert piece[TCP].options[0] == ("Timestamp", (1, 2))
        assert piece[TCP].flags == {0: "AEC", 3: "FPAE"}.get(index, "AE")
        if version == 4:
            assert piece[IP].id == (65534 + index) & 0xFFFF
        assert raw[: len(l2)] == bytes(packet)[: len(l2)]
    assert b"".join(bytes(Ether(raw)[TCP].payload) for raw in pieces) == DATA


@pytest.mark.parametrize("version", [4, 6])
def test_udp_segments_each_have_a_udp_header(version: int) -> None:
    ip = IP(src="10.0.0.1", dst="10.0.0.2", id=7) if version == 4 else IPv6(src="fd00::1", dst="fd00::2")
    packet = ETHER / ip / UDP(sport=4000, dport=53) / DATA
    l4 = 14 + len(ip)
    pieces = cut(seeded(packet, l4, 6), gso_type=5, gso_size=1400, csum_start=l4, csum_offset=6)
    assert [Ether(raw)[UDP].len for raw in pieces] == [1408, 1408, 708]
    assert all(rebuilt(raw) == raw for raw in pieces)
    assert b"".join(bytes(Ether(raw)[UDP].payload) for raw in pieces) == DATA
    if version == 4:
        assert [Ether(raw)[IP].id for raw in pieces] == [7, 8, 9]


def test_a_packet_that_fits_is_one_finished_segment() -> None:
    for payload in (b"", b"short"):
        packet = ETHER / IP(src="1.2.3.4", dst="5.6.7.8") / TCP(flags="FPA") / payload
        pieces = cut(seeded(packet, 34, 16), gso_type=1, gso_size=100, csum_start=34, csum_offset=16)
        assert pieces == [bytes(packet)]


def test_the_network_header_may_be_given() -> None:
    """LLC/SNAP ends in the EtherType; by itself the device does not look that far."""
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / DATA
    raw = seeded(packet, 34, 16)
    snap = raw[:12] + b"\x00\x64\xaa\xaa\x03\x00\x00\x00" + raw[12:]
    hdr = NetHdr(flags=NEEDS, gso_type=1, gso_size=1000, csum_start=42, csum_offset=16)
    pieces = offloads.segment(snap, hdr, 1, ALL, bytes, 22)
    assert [piece[:12] + piece[20:] for piece in pieces] == cut(raw, **TCP4_HDR)
    with pytest.raises(PacketError):
        offloads.segment(snap, hdr, 1, ALL, bytes)


def test_a_length_field_that_cannot_hold_the_packet_does_not_matter() -> None:
    """A packet to be segmented may exceed 64 KiB; its length field is not looked at."""
    packet = ETHER / IP(src="1.2.3.4", dst="5.6.7.8", len=0) / TCP(flags="A") / (b"z" * 70000)
    pieces = cut(seeded(packet, 34, 16), gso_type=1, gso_size=1448, csum_start=34, csum_offset=16)
    assert len(pieces) == 49
    assert all(rebuilt(raw) == raw for raw in pieces)
    assert sum(len(Ether(raw)[TCP].payload) for raw in pieces) == 70000


def test_a_routing_header_keeps_the_final_destination_in_every_checksum() -> None:
    final = "fd00::99"
    ip = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrRouting(addresses=[final], segleft=1)
    packet = ETHER / ip / TCP(sport=1, dport=2) / DATA
    l4 = 14 + len(ip)
    last = bytes.fromhex("fd00" + "00" * 12 + "0099")
    data = seeded(packet, l4, 16, final=last)
    for raw in cut(data, gso_type=4, gso_size=900, csum_start=l4, csum_offset=16):
        source, segment = raw[22:38], raw[l4:]
        assert (pseudo(source, last, 6, len(segment)) + reference_sum(segment)) % 0xFFFF == 0


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("udp_checksum", [False, True])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_tunnel_segments_replicate_outer_and_inner_headers(
    outer: int, inner: int, udp_checksum: bool, transport: str
) -> None:
    out_ip = IP(src="192.0.2.1", dst="192.0.2.2", id=50) if outer == 4 else IPv6(src="fd01::1", dst="fd01::2")
    in_ip = IP(src="10.0.0.1", dst="10.0.0.2", id=9) if inner == 4 else IPv6(src="fd00::1", dst="fd00::2")
    l4 = TCP(sport=1, dport=2, seq=5, flags="PA") if transport == "tcp" else UDP(sport=1, dport=2)
    outer_udp = UDP(sport=5555, dport=4789, chksum=0)
    packet = ETHER / out_ip / outer_udp / VXLAN(vni=3) / Ether() / in_ip / l4 / DATA
    outer_th = 14 + len(out_ip)
    inner_nh = outer_th + 8 + 8 + 14
    inner_th = inner_nh + len(in_ip)
    offset = 16 if transport == "tcp" else 6
    data = bytearray(seeded(packet, inner_th, offset))
    if udp_checksum:
        header = bytes(out_ip)
        ends = (header[8:24], header[24:40]) if outer == 6 else (header[12:16], header[16:20])
        seed = pseudo(*ends, 17, len(data) - outer_th)
        data[outer_th + 6 : outer_th + 8] = seed.to_bytes(2, "big")
    base = {"tcp": 1 if inner == 4 else 4, "udp": 5}[transport]
    pieces = cut(
        bytes(data),
        flags=NEEDS | (int(HdrFlag.UDP_TUNNEL_CSUM) if udp_checksum else 0),
        gso_type=base | (0x20 if inner == 4 else 0x40),
        gso_size=1000,
        csum_start=inner_th,
        csum_offset=offset,
        outer_th_offset=outer_th,
        inner_nh_offset=inner_nh,
    )
    assert len(pieces) == 4
    got = b""
    for index, raw in enumerate(pieces):
        assert rebuilt(raw) == raw
        piece = Ether(raw)
        assert bool(piece[UDP].chksum) is udp_checksum
        if outer == 4:
            assert piece[IP].id == 50 + index
        if inner == 4:
            assert piece[VXLAN][IP].id == 9 + index
        got += bytes(piece[VXLAN].getlayer(TCP if transport == "tcp" else UDP).payload)
    assert got == DATA


def tunnel(payload: bytes, outer_checksum: int = 0, outer_len: int | None = None) -> bytes:
    packet = (
        ETHER
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / UDP(sport=5555, dport=4789, chksum=outer_checksum, len=outer_len)
        / VXLAN()
        / Ether()
        / IP(src="10.0.0.1", dst="10.0.0.2")
        / TCP(sport=1, dport=2)
        / payload
    )
    return seeded(packet, 84, 16)


TUNNEL = {
    "gso_type": 0x21,
    "gso_size": 500,
    "csum_start": 84,
    "csum_offset": 16,
    "outer_th_offset": 34,
    "inner_nh_offset": 64,
}


def test_a_finished_outer_checksum_stays_when_it_holds_for_every_segment() -> None:
    length = 8 + 8 + 14 + 20 + 20 + 500
    whole = bytearray(tunnel(b"q" * 1000, 0xFFFF, length))
    # What a driver computes: the checksum of one segment, which is the same for all of them.
    sample = rebuilt(cut(bytes(whole), **TUNNEL)[0])
    whole[40:42] = sample[40:42]
    pieces = cut(bytes(whole), **TUNNEL)
    assert len(pieces) == 2
    assert all(rebuilt(raw) == raw for raw in pieces)


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (999, 570),  # segments of two sizes cannot share one checksum
        (1000, 1070),  # the length is that of the whole packet
    ],
)
def test_a_finished_outer_checksum_that_cannot_hold_is_refused(payload: int, length: int) -> None:
    with pytest.raises(PacketError) as caught:
        cut(tunnel(b"q" * payload, 0x1234, length), **TUNNEL)
    assert caught.value.reason is Reason.BAD_GSO


@pytest.mark.parametrize(
    "fields",
    [
        {"outer_th_offset": 35},
        {"outer_th_offset": 0},
        {"inner_nh_offset": 0},
        {"inner_nh_offset": 41},
        {"inner_nh_offset": 65535},
        {"inner_nh_offset": 63},
        {"gso_type": 0x41},
        {"gso_type": 0x44},
        {"gso_type": 0x24},
        {"gso_type": 0x23},
        {"gso_type": 0x61},
        {"gso_type": 0x20},
        {"gso_type": 0x25},
        {"csum_start": 34},
        {"flags": NEEDS | int(HdrFlag.DATA_VALID)},
        {"flags": 0},
    ],
)
def test_tunnel_requests_that_do_not_fit_the_packet_are_refused(fields: dict[str, int]) -> None:
    """NET-TX-DEV-06 and NET-TX-DEV-08, and offsets that point elsewhere."""
    with pytest.raises(PacketError) as caught:
        cut(tunnel(DATA), **{**TUNNEL, **fields})
    assert caught.value.reason is Reason.BAD_GSO


def test_tunnel_requests_need_their_features() -> None:
    data = tunnel(DATA)
    hdr = NetHdr(flags=NEEDS, **TUNNEL)
    with pytest.raises(PacketError):
        offloads.check_gso(hdr, ALL & ~(1 << Feature.NET_F_HOST_UDP_TUNNEL_GSO))
    marked = NetHdr(flags=NEEDS | int(HdrFlag.UDP_TUNNEL_CSUM), **TUNNEL)
    without = ALL & ~(1 << Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM)
    with pytest.raises(PacketError):
        offloads.segment(data, marked, offloads.check_gso(marked, without), without, bytes)


TCP4 = seeded(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / DATA, 34, 16)
TCP4_HDR = {"gso_type": 1, "gso_size": 1000, "csum_start": 34, "csum_offset": 16}
UDP6 = seeded(ETHER / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / DATA, 54, 6)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (TCP4, {"gso_size": 0}),
        (TCP4, {"flags": 0}),
        (TCP4, {"gso_type": 2}),
        (TCP4, {"gso_type": 6}),
        (TCP4, {"gso_type": 0x11}),
        (TCP4, {"gso_type": 0x80}),
        (TCP4, {"gso_type": 4}),
        (TCP4, {"gso_type": 5}),
        (TCP4, {"gso_type": 0x85}),
        (TCP4, {"csum_start": 33}),
        (TCP4, {"csum_start": 0}),
        (TCP4, {"csum_offset": 6}),
        (TCP4[:50], {}),
        (TCP4[:30], {}),
        (TCP4[:14], {}),
        (TCP4[:9], {}),
        (b"", {}),
        (patched(TCP4, 12, b"\x08\x06"), {}),
        (patched(TCP4, 12, b"\x86\xdd"), {}),
        (patched(TCP4, 14, b"\x65"), {}),
        (patched(TCP4, 14, b"\x44"), {}),
        (patched(TCP4, 20, b"\x20\x00"), {}),
        (patched(TCP4, 20, b"\x00\x10"), {}),
        (patched(TCP4, 23, b"\x11"), {}),
        (patched(TCP4, 46, b"\x40"), {}),
        (patched(TCP4, 46, b"\xf0")[:90], {}),
        (TCP4 + bytes(2000), {"gso_size": 1}),
        (TCP4 + bytes(70000), {"gso_size": 65530}),
        (UDP6 + bytes(70000), {"gso_type": 5, "gso_size": 65530, "csum_start": 54, "csum_offset": 6}),
        (patched(UDP6, 20, b"\x2c"), {"gso_type": 5, "csum_start": 54, "csum_offset": 6}),
        (UDP6[:60], {"gso_type": 5, "csum_start": 54, "csum_offset": 6}),
    ],
)
def test_segmentation_that_does_not_fit_the_packet_is_refused(data: bytes, fields: dict[str, int]) -> None:
    with pytest.raises(PacketError) as caught:
        cut(data, **{**TCP4_HDR, **fields})
    assert caught.value.reason is Reason.BAD_GSO


@pytest.mark.parametrize(
    ("gso_type", "feature"),
    [
        (1, Feature.NET_F_HOST_TSO4),
        (4, Feature.NET_F_HOST_TSO6),
        (3, Feature.NET_F_HOST_UFO),
        (5, Feature.NET_F_HOST_USO),
        (0x81, Feature.NET_F_HOST_ECN),
    ],
)
def test_a_segmentation_type_needs_its_feature(gso_type: int, feature: Feature) -> None:
    hdr = NetHdr(flags=NEEDS, gso_type=gso_type, gso_size=100)
    assert offloads.check_gso(hdr, ALL) == gso_type & 0x7F
    with pytest.raises(PacketError):
        offloads.check_gso(hdr, ALL & ~(1 << feature))


def test_no_gso_type_is_no_segmentation() -> None:
    assert offloads.check_gso(NetHdr(flags=0xFF, gso_size=9), 0) == 0


@pytest.mark.parametrize("size", [1480, 1483, 8])
def test_udp_fragments_over_ipv4_make_up_the_original(size: int) -> None:
    options = [IPOption_Router_Alert(), IPOption_Timestamp(timestamp=5), IPOption_NOP()]
    ip = IP(src="10.0.0.1", dst="10.0.0.2", id=77, flags="DF", options=options)
    packet = ETHER / ip / UDP(sport=1, dport=2) / DATA[: 60 * size]
    want = Ether(bytes(packet))
    l4 = 14 + want[IP].ihl * 4
    pieces = cut(seeded(packet, l4, 6), gso_type=3, gso_size=size, csum_start=l4, csum_offset=6)
    body = b""
    for index, raw in enumerate(pieces):
        assert rebuilt(raw) == raw
        piece = Ether(raw)
        assert piece[IP].id == 77
        assert piece[IP].frag * 8 == len(body)
        assert piece[IP].flags == ("MF" if index < len(pieces) - 1 else 0)
        assert len(piece[IP].payload) <= size
        kinds = [type(o) for o in piece[IP].options]
        assert (IPOption_Timestamp in kinds) is (index == 0)
        assert IPOption_Router_Alert in kinds
        body += bytes(piece[IP].payload)
    assert body == bytes(want[IP].payload)


@pytest.mark.parametrize("chained", ["none", "routing", "destination"])
def test_udp_fragments_over_ipv6_reassemble_in_scapy(chained: str) -> None:
    base = IPv6(src="fd00::1", dst="fd00::2")
    ip = {
        "none": base,
        "routing": base / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / ROUTED,
        "destination": base / IPv6ExtHdrDestOpt(),
    }[chained]
    packet = ETHER / ip / UDP(sport=1, dport=2) / DATA
    l4 = 14 + len(ip)
    pieces = cut(seeded(packet, l4, 6), gso_type=3, gso_size=1448, csum_start=l4, csum_offset=6)
    assert len(pieces) == 3
    parsed = [Ether(raw) for raw in pieces]
    assert all(p[IPv6ExtHdrFragment].id == 0xA5A5A5A5 for p in parsed)
    assert [rebuilt(raw) == raw for raw in pieces] == [True] * 3
    # Only hop-by-hop, routing and what stands before routing may be in front of the Fragment header.
    in_front = {"none": 0, "routing": len(ip) - 40, "destination": 0}[chained]
    assert all(
        raw[54 + in_front : 62 + in_front] == bytes(p[IPv6ExtHdrFragment])[:8]
        for raw, p in zip(pieces, parsed, strict=True)
    )
    whole = bytes(defragment6(PacketList([p[IPv6] for p in parsed])))
    original = bytes(packet)[14:]
    if chained == "none":
        assert whole == original
    else:
        assert whole[40:] == original[40:]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (UDP6, {"gso_size": 7}),
        (UDP6 + bytes(65000), {}),
        (patched(UDP6, 20, b"\x2c"), {}),
    ],
)
def test_udp_fragmentation_that_cannot_be_is_refused(data: bytes, fields: dict[str, int]) -> None:
    with pytest.raises(PacketError) as caught:
        cut(data, **{"gso_type": 3, "gso_size": 1448, "csum_start": 54, "csum_offset": 6, **fields})
    assert caught.value.reason is Reason.BAD_GSO


def test_udp_fragmentation_refuses_a_datagram_with_a_fragment_header() -> None:
    ip = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment()
    data = seeded(ETHER / ip / UDP(sport=1, dport=2) / DATA, 62, 6)
    with pytest.raises(PacketError):
        cut(data, gso_type=3, gso_size=1448, csum_start=62, csum_offset=6)


@pytest.mark.parametrize(("gso_size", "pieces"), [(65535, None), (65528, None), (65520, 2), (32768, 2)])
def test_no_fragment_is_longer_than_its_length_field(gso_size: int, pieces: int | None) -> None:
    """The longest IPv6 payload there is: the Fragment header's eight bytes must fit beside it."""
    datagram = bytes((0, 1, 0, 2, 0xFF, 0xFF, 0, 0)) + bytes(65535 - 8)
    data = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=17, plen=65535)) + datagram
    fields = {"gso_type": 3, "gso_size": gso_size, "csum_start": 54, "csum_offset": 6}
    if pieces is None:
        with pytest.raises(PacketError) as caught:
            cut(data, **fields)
        assert caught.value.reason is Reason.BAD_GSO
    else:
        assert [int.from_bytes(raw[18:20]) == len(raw) - 54 for raw in cut(data, **fields)] == [True] * pieces


@pytest.mark.parametrize("udp", [False, True])
def test_repeated_extension_headers_do_not_multiply_beyond_a_bound(udp: bool) -> None:
    """28 option headers of 2 KB before 4 KB of data: header bytes, not their number, are what grows."""
    last = 17 if udp else 6
    option = bytes((1, 254)) + bytes(254)
    header = bytes((1, 252)) + bytes(252) + option * 7  # behind next header and length
    kind = 43 if udp else 60  # only routing headers are repeated in fragments
    chain = b"".join(bytes((last if i == 27 else kind, 255)) + header for i in range(28))
    transport = bytes((0, 1, 0, 2, 16, 8, 0, 0)) if udp else bytes(12) + b"\x50\x10" + bytes(6)
    data = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=kind)) + chain + transport + bytes(4096)
    at = 54 + len(chain)
    fields = {"gso_type": 3 if udp else 4, "csum_start": at, "csum_offset": 6 if udp else 16}
    with pytest.raises(PacketError) as caught:
        cut(data, gso_size=8, **fields)
    assert caught.value.reason is Reason.BAD_GSO
    assert sum(map(len, cut(data, gso_size=1448, **fields))) < MAX_BYTES


def test_udp_fragmentation_is_bounded() -> None:
    packet = ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP() / bytes(40000)
    with pytest.raises(PacketError):
        cut(seeded(packet, 34, 6), gso_type=3, gso_size=8, csum_start=34, csum_offset=6)


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / TCP() / b"data!",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP() / b"data",
        ETHER / Dot1Q(vlan=1) / IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"data",
        ETHER / IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrDestOpt() / TCP(),
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(len=10) / b"da" / Raw(b"after the datagram"),
    ],
)
def test_a_right_checksum_is_seen_and_a_wrong_one_too(packet: Packet) -> None:
    raw = bytes(packet)
    if UDP in packet and packet[UDP].len == 10:
        data = bytearray(raw)
        data[40:42] = pseudo(data[26:30], data[30:34], 17, 10).to_bytes(2, "big")
        part = bytearray(data[:44])
        checksum.complete_checksum(part, 34, 6)
        raw = bytes(part) + raw[44:]
    assert checksum.transport_checksum_ok(raw + b"ethernet padding", frame.view(raw))
    l4 = frame.view(raw).l4
    for at in (l4, l4 + 1, l4 + 5):
        bad = patched(raw, at, bytes((raw[at] ^ 1,)))
        assert not checksum.transport_checksum_ok(bad, frame.view(bad))
    if IP in packet:
        bad = patched(raw, 24, b"\x99")
        assert not checksum.transport_checksum_ok(bad, frame.view(bad))


def test_a_udp_length_beyond_the_packet_is_no_checksum_to_vouch_for() -> None:
    """The sum agrees with the length that the header states; the packet has not got that many bytes."""
    raw = bytearray(bytes(ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(len=500, chksum=0) / b"too short"))
    raw[40:42] = (
        0xFFFF - (pseudo(raw[26:30], raw[30:34], 17, 500) + reference_sum(raw[34:])) % 0xFFFF
    ).to_bytes(2)
    assert (pseudo(raw[26:30], raw[30:34], 17, 500) + reference_sum(raw[34:])) % 0xFFFF == 0
    assert not checksum.transport_checksum_ok(bytes(raw), frame.view(raw))


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(chksum=0) / b"unprotected",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2", proto=6) / b"short",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2", proto=17) / b"short",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2", flags="MF") / UDP() / b"fragment",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2", proto=50) / b"neither TCP nor UDP",
        ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(len=500) / b"too long",
        ETHER / b"not IP",
    ],
)
def test_no_checksum_is_vouched_for_where_there_is_none(packet: Packet) -> None:
    raw = bytes(packet)
    assert not checksum.transport_checksum_ok(raw, frame.view(raw))
