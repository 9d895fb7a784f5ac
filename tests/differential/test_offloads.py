"""Frames of every kind through the Python device's offloads and through csrc/: views, checksums, segments, refusals.

``FRAMES=1000000 pytest tests/differential/test_offloads.py`` makes a soak of it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from random_frames import Laid, frames, laid, rounds, spoilt
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from virtio_ipsec.device import checksum, offloads
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.frame import FrameView, ipv4_view, ipv6_view, network_offset, view
from virtio_ipsec.device.state import DataPlaneContext, RxFilter
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.fastpath import offload
from virtio_ipsec.ipsec.ip import ones_sum
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import V14_32, NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, mask

ALL = mask(
    Feature.NET_F_CSUM,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_ECN,
    Feature.NET_F_HOST_UFO,
    Feature.NET_F_HOST_USO,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO,
)
TUNNELS = int(GsoType.UDP_TUNNEL_IPV4) | int(GsoType.UDP_TUNNEL_IPV6)


def fast_view(frame: bytes, l3: int = 0, *, oversize: bool = False) -> FrameView:
    found = offload.frame_view(frame, l3, oversize=oversize)
    return FrameView(
        found.l3, found.version, found.ethertype, found.protocol, found.l4, found.end, bool(found.fragment),
        bool(found.extensions), found.home, found.routing,
    )  # fmt: skip


def slow_oversize(frame: bytes) -> FrameView:
    l3, ethertype = network_offset(frame)
    if ethertype not in (0x0800, 0x86DD):
        return FrameView(l3, 0, ethertype)
    return (ipv4_view if ethertype == 0x0800 else ipv6_view)(frame, l3, oversize=True)


def test_views_are_the_same() -> None:
    seen = set()
    for frame in frames(1, rounds(6000)):
        expected = view(frame)
        assert fast_view(frame) == expected, frame.hex()
        assert fast_view(frame, oversize=True) == slow_oversize(frame), frame.hex()
        seen.add(
            (expected.version, expected.fragment, expected.extensions, bool(expected.l4), bool(expected.home))
        )
    assert {
        (4, False, False, True, False),
        (4, True, False, False, False),
        (6, True, True, False, False),
    } <= seen
    assert {(6, False, True, True, True), (0, False, False, False, False)} <= seen


def test_views_at_a_known_network_header_are_the_same() -> None:
    rnd = random.Random(2)
    for _ in range(rounds(2000)):
        frame = laid(rnd).data
        at = rnd.choice((14, 14, 18, rnd.randrange(14, len(frame) + 1))) if len(frame) >= 18 else len(frame)
        if 14 <= at <= len(frame):
            assert fast_view(frame, at) == view(frame, at), (at, frame.hex())


def test_short_frames_have_no_headers() -> None:
    for size in range(14):
        assert fast_view(bytes(size)) == view(bytes(size)) == FrameView(0, 0, 0)


def test_checksums_are_verified_alike() -> None:
    verdicts = []
    for frame in frames(3, rounds(6000)):
        verdicts.append(offload.transport_checksum_ok(frame))
        assert verdicts[-1] == checksum.transport_checksum_ok(frame, view(frame)), frame.hex()
    assert 0.1 < sum(verdicts) / len(verdicts) < 0.9


@pytest.mark.parametrize("stated", range(9))
def test_a_udp_length_below_the_header_vouches_for_nothing(stated: int) -> None:
    """Even where the sum over that many octets is right."""
    ip = bytearray(bytes.fromhex("4500001c00000000401100000a0000010a000002"))
    ip[10:12] = (0xFFFF ^ ones_sum(bytes(ip))).to_bytes(2)
    udp = bytearray(bytes.fromhex("00000035") + stated.to_bytes(2) + b"\x12\x34")
    covered = ones_sum(bytes(udp[:stated])) + ones_sum(bytes(ip[12:20])) + 17 + stated
    udp[:2] = (-covered % 0xFFFF).to_bytes(2)
    frame = bytes(12) + b"\x08\x00" + bytes(ip) + bytes(udp)
    assert checksum.transport_checksum_ok(frame, view(frame)) == offload.transport_checksum_ok(frame)
    assert offload.transport_checksum_ok(frame) == (stated == 8)


def test_checksums_are_completed_alike() -> None:
    rnd = random.Random(4)
    for _ in range(rounds(4000)):
        size = rnd.choice((0, 1, 2, 3, 60, 61, 127, 128, 129, 1500))
        frame = rnd.choice((rnd.randbytes(size), bytes(size), b"\xff" * size))
        start = rnd.choice((0, rnd.randrange(size + 2), 65535, size))
        offset = rnd.choice((0, 6, 16, rnd.randrange(size + 2), 65535))
        slow, fast = bytearray(frame), bytearray(frame)
        results: list[Reason | None] = []
        for data, complete in ((slow, checksum.complete_checksum), (fast, offload.complete_checksum)):
            try:
                complete(data, start, offset)
            except PacketError as error:
                results.append(error.reason)
            else:
                results.append(None)
        assert results[0] == results[1], (size, start, offset)
        assert slow == fast, (size, start, offset)


def test_network_headers_are_accepted_alike() -> None:
    features = mask(Feature.NET_F_OUT_NET_HEADER)
    context = DataPlaneContext(
        DeviceConfig(), bytes, V14, features, V14_32, RxFilter(bytes(6)),
    )  # fmt: skip
    slow = Transmitter(context)
    rnd = random.Random(5)
    outcomes = set()
    for _ in range(rounds(4000)):
        made = laid(rnd)
        frame = spoilt(rnd, made.data)
        at = rnd.choice((made.l3, made.l3, 14, 18, 13, len(frame), rnd.randrange(1, 65536)))
        if len(frame) < 14:
            continue
        try:
            assert slow.network_header(NetHdr(outer_nh_offset=at), frame) == at
            expected = None
        except PacketError as error:
            expected = error.reason
        try:
            offload.check_network_header(frame, at)
            found = None
        except PacketError as error:
            found = error.reason
        assert found == expected, (at, frame.hex())
        outcomes.add(found)
    assert outcomes == {None, Reason.BAD_HEADER}


def asked(rnd: random.Random, made: Laid) -> tuple[bytes, NetHdr]:
    """A frame as a driver queues it for segmentation, with what it asks for; one thing in ten is wrong."""
    version = made.data[made.l3] >> 4 if len(made.data) > made.l3 else 0
    frame = bytearray(made.data)
    if made.protocol == 17:
        gso, field = int(GsoType.UDP_L4), 6
    else:
        gso, field = int(GsoType.TCPV4 if version == 4 else GsoType.TCPV6), 16
    if made.l4 + field + 2 <= len(frame):
        start, size = (made.l3 + 12, 8) if version == 4 else (made.l3 + 8, 32)
        length = len(frame) - made.l4
        seed = ones_sum(bytes(frame[start : start + size]) + length.to_bytes(4) + bytes((0, made.protocol)))
        frame[made.l4 + field : made.l4 + field + 2] = seed.to_bytes(2)
        if rnd.random() < 0.1:
            frame[made.l4 + field : made.l4 + field + 2] = rnd.choice(
                (b"\0\0", b"\xff\xff", rnd.randbytes(2))
            )
    if made.protocol == 6 and rnd.random() < 0.3:
        gso |= int(GsoType.ECN)
    size = rnd.choice((1, 7, 100, 536, 1448, 1449, 65535))
    hdr = NetHdr(flags=1, gso_type=gso, gso_size=size, csum_start=made.l4 & 0xFFFF, csum_offset=field)
    if rnd.random() < 0.2:
        spoils: list[dict[str, int]] = [
            {"gso_size": 0}, {"flags": 0}, {"csum_start": made.l3}, {"csum_offset": 4},
            {"gso_type": rnd.choice((2, 6, 0x80, 0x1F))}, {"gso_type": gso ^ 5}, {"gso_type": gso | 0x80},
            {"flags": 3}, {"gso_type": 0},
            {"gso_type": gso | rnd.choice((0x20, 0x40, 0x60))}, {"gso_type": 3},
        ]  # fmt: skip
        hdr = replace(hdr, **rnd.choice(spoils))
    return spoilt(rnd, bytes(frame)) if rnd.random() < 0.3 else bytes(frame), hdr


def slow_segments(frame: bytes, hdr: NetHdr, features: int, l3: int) -> list[bytes] | Reason:
    try:
        base = offloads.check_gso(hdr, features)
        return offloads.segment(frame, hdr, base, features, bytes, l3) if base else []
    except PacketError as error:
        return error.reason


def fast_segments(frame: bytes, hdr: NetHdr, features: int, l3: int) -> list[bytes] | Reason:
    try:
        return offload.segment(frame, hdr, features, l3)
    except PacketError as error:
        return error.reason


def test_segments_and_refusals_are_the_same() -> None:
    rnd = random.Random(6)
    sizes = (0, 1, 2, 7, 200, 1447, 1448, 1449, 4344, 9000, 62000, 65535)
    cut = punted = refused = 0
    for _ in range(rounds(3000)):
        made = laid(rnd, sizes)
        frame, hdr = asked(rnd, made)
        features = ALL if rnd.random() < 0.9 else ALL & ~(1 << rnd.choice((11, 12, 13, 56)))
        l3 = made.l3 if rnd.random() < 0.3 and made.l3 < len(frame) else 0
        if len(frame) < 14:
            continue
        try:
            found = fast_segments(frame, hdr, features, l3)
        except offload.Punted:
            # Only what the fast path says that it does not do.
            assert hdr.gso_type & TUNNELS or hdr.gso_type & 0x1F == 3
            punted += 1
            continue
        expected = slow_segments(frame, hdr, features, l3)
        assert found == expected, (hdr, frame.hex())
        refused += isinstance(found, Reason)
        cut += isinstance(found, list) and len(found) > 1
    assert min(cut, punted, refused) > 20


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_scapy_finds_every_segment_right(version: int, protocol: int) -> None:
    ip = IP(src="10.0.0.1", dst="10.0.0.2", id=65535) if version == 4 else IPv6(src="fd00::1", dst="fd00::2")
    th = TCP(sport=1, dport=2, seq=2**32 - 700, flags="FPC") if protocol == 6 else UDP(sport=1, dport=2)
    data = bytes(range(251)) * 9
    field = 16 if protocol == 6 else 6
    l4 = 34 if version == 4 else 54
    whole = bytearray(bytes(Ether() / ip / th / data))
    addresses = bytes(whole[26:34] if version == 4 else whole[22:54])
    seed = ones_sum(addresses + (len(whole) - l4).to_bytes(4) + bytes((0, protocol)))
    whole[l4 + field : l4 + field + 2] = seed.to_bytes(2)
    gso = GsoType.UDP_L4 if protocol == 17 else GsoType.TCPV4 if version == 4 else GsoType.TCPV6
    hdr = NetHdr(flags=1, gso_type=gso, gso_size=333, csum_start=l4, csum_offset=field)
    segments = offload.segment(bytes(whole), hdr, ALL)
    joined = b""
    for raw in segments:
        packet = Ether(raw)
        layer = packet[TCP] if protocol == 6 else packet[UDP]
        joined += bytes(layer.payload)
        for each, names in ((packet.payload, ("chksum", "len", "plen")), (layer, ("chksum", "len"))):
            for name in names:
                each.fields.pop(name, None)
        assert bytes(packet) == raw
    assert joined == data
    assert len(segments) == 7


@pytest.mark.parametrize(("version", "longest"), [(4, 65535 - 40), (6, 65535 - 20)])
def test_a_segment_must_fit_its_length_field(version: int, longest: int) -> None:
    ip = IP(src="10.0.0.1", dst="10.0.0.2") if version == 4 else IPv6(src="fd00::1", dst="fd00::2")
    gso, l4 = (GsoType.TCPV4, 34) if version == 4 else (GsoType.TCPV6, 54)
    head = bytes(Ether() / ip / TCP())
    for body in (longest, longest + 1, 70000):
        for size in (longest, min(longest + 1, 65535)):
            hdr = NetHdr(flags=1, gso_type=gso, gso_size=size, csum_start=l4, csum_offset=16)
            found = fast_segments(head + bytes(body), hdr, ALL, 0)
            assert found == slow_segments(head + bytes(body), hdr, ALL, 0)
            assert isinstance(found, list) == (min(size, body) <= longest)


def test_too_many_segments_are_refused_alike() -> None:
    header = bytes(12) + b"\x08\x00" + bytes.fromhex("45000000000000004011") + bytes(10)
    for size, body in ((1, 4096), (1, 4097), (2, 8193), (250, 60000), (1, 4097)):
        frame = header + bytes(8) + bytes(body)
        hdr = NetHdr(flags=1, gso_type=GsoType.UDP_L4, gso_size=size, csum_start=34, csum_offset=6)
        assert fast_segments(frame, hdr, ALL, 0) == slow_segments(frame, hdr, ALL, 0)
