"""What goes into a transmit queue: header, frame, order, and what is held back."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from virtio_ipsec.driver import DriverError, NotNegotiated, Offload, PathMtuExceeded, QueueFull
from virtio_ipsec.driver.transmit import build, packet_lengths
from virtio_ipsec.errors import RingError, TransportError
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.tunnel import TunnelIPv6

CSUM, TSO4, TSO6, ECN, USO, HDRLEN = 1, 1 << 11, 1 << 12, 1 << 13, 1 << 56, 1 << 59
TUNNEL, TUNNEL_CSUM, OUT_NET, IPSEC = 1 << 67, 1 << 68, 1 << 69, 1 << 70
GSO = CSUM | TSO4 | TSO6 | USO
FOUR = IP(src="192.0.2.1", dst="198.51.100.2")
SIX = IPv6(src="2001:db8::1", dst="2001:db8::2")


def ether(*layers: Any) -> bytes:
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def tcp(size: int, network: Any = FOUR, flags: str = "A") -> bytes:
    return ether(
        network, TCP(sport=1000, dport=2000, flags=flags), Raw((bytes(range(256)) * (size // 256 + 1))[:size])
    )


def udp(size: int, network: Any = FOUR) -> bytes:
    return ether(network, UDP(sport=1000, dport=2000), Raw((bytes(range(256)) * (size // 256 + 1))[:size]))


def broken(frame: bytes, at: int) -> bytes:
    """The frame with a wrong checksum at ``at``: what the driver does not rely on, it replaces."""
    return frame[:at] + b"\xba\xad" + frame[at + 2 :]


def finished(header: NetHdr, frame: bytes) -> bytes:
    """What the text says the device does with NEEDS_CSUM, in the plainest way."""
    assert header.flags & 1
    data = bytearray(frame)
    words = data[header.csum_start :]
    total = sum(struct.unpack(f">{(len(words) + 1) // 2}H", bytes(words) + b"\0" * (len(words) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = header.csum_start + header.csum_offset
    data[at : at + 2] = struct.pack(">H", ~total & 0xFFFF)
    return bytes(data)


def test_NET_TX_DRV_01_02_the_header_as_bytes(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    frame = udp(10)
    driver.send(frame)
    handle = driver.sas.create_outbound(gcm)
    driver.send(frame, handle)
    plain = bytes.fromhex("00 00 2a00 0000 0000 0000 0000 00000000 0000 0000 0000 0000 0e00 00000000 0000")
    sealed = bytes.fromhex("10 00 2a00 0000 0000 0000 0000 00000000 0000 0000 0000 0000 0e00 00000000 0302")
    assert fake.sent == [plain + frame, sealed + frame]


def test_the_rfc_s_header_has_26_bytes_and_flag_8(fake: Any, start: Any, gcm: IpsecSa) -> None:
    entry = struct.pack("<B3xIIQQIII", 1, 64, 0x1F, 8, 0x10, 2, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    driver = start(fake, dialect=RFC_2025_01)
    driver.sas.create_outbound(gcm)
    driver.send(udp(10), driver.sas.create_outbound(gcm))
    assert fake.sent[0][:26] == bytes.fromhex(
        "08 00 2a00 0000 0000 0000 0000 00000000 0000 0000 01000000 0302"
    )
    assert fake.sent[0][26:] == udp(10)


@pytest.mark.parametrize(
    ("features", "size"), [(0, 12), (1 << 57, 20), (TUNNEL | GSO, 24), (OUT_NET, 32), (IPSEC, 32)]
)
def test_NET_RXB_DRV_04_the_size_follows_the_features(features: int, size: int) -> None:
    header, _ = build(udp(10), features, V14)
    assert len(V14.net_hdr(features).build(header)) == size


def test_NET_TX_DRV_03_without_csum_flags_is_zero_and_the_packet_complete() -> None:
    frame = udp(11)
    header, sent = build(broken(frame, 40), 0, V14, Offload(checksum=True))
    assert (header.flags, header.csum_start, header.csum_offset) == (0, 0, 0)
    assert sent == frame


def test_NET_TX_DRV_03_a_udp_sum_of_zero_is_sent_as_ones() -> None:
    # Payload chosen so that the sum comes out as 0.
    frame = bytearray(udp(2))
    _, sent = build(bytes(frame), 0, V14, Offload(checksum=True))
    total = struct.unpack(">H", sent[40:42])[0] + struct.unpack(">H", sent[42:44])[0]
    total = (total & 0xFFFF) + (total >> 16)
    frame[42:44] = struct.pack(">H", total)
    _, sent = build(bytes(frame), 0, V14, Offload(checksum=True))
    assert sent[40:42] == b"\xff\xff"


@pytest.mark.parametrize(
    "network", [FOUR, SIX, IP(src="192.0.2.1", dst="198.51.100.2", options=b"\x01\x01\x01\x00")]
)
@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize("size", [0, 7, 8])
def test_NET_TX_DRV_18_to_20_a_checksum_request_is_complete(make: Any, network: Any, size: int) -> None:
    frame = make(size, network)
    start = 14 + (len(bytes(network)) if network is not FOUR else 20)
    offset = 16 if make is tcp else 6
    damaged = broken(frame, start + offset)
    header, sent = build(damaged, CSUM, V14, Offload(checksum=True))
    assert (header.flags, header.csum_start, header.csum_offset) == (1, start, offset)
    assert finished(header, sent) == frame


def test_NET_TX_DRV_18_the_ip_header_checksum_before_it_is_right() -> None:
    frame = udp(9)
    header, sent = build(broken(broken(frame, 24), 40), CSUM, V14, Offload(checksum=True))
    assert finished(header, sent) == frame


def test_padding_of_a_short_frame_is_not_summed() -> None:
    frame = udp(2)
    header, sent = build(frame + b"\x55" * 16, CSUM, V14, Offload(checksum=True))
    assert finished(header, sent) == frame


def test_extension_headers_and_vlan_tags_move_the_offsets() -> None:
    tagged = bytes(
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / Dot1Q(vlan=5)
        / Dot1Q(vlan=6)
        / SIX
        / IPv6ExtHdrDestOpt()
        / UDP(sport=1, dport=2)
        / Raw(b"abc")
    )
    header, sent = build(broken(tagged, 76), CSUM | OUT_NET, V14, Offload(checksum=True))
    assert (header.outer_nh_offset, header.csum_start, header.hdr_len) == (22, 70, 78)
    assert finished(header, sent) == tagged


def test_NET_TX_DRV_04_the_network_offset_needs_its_feature_and_an_ip_header() -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    assert build(udp(1), OUT_NET, V14)[0].outer_nh_offset == 14
    assert build(udp(1), IPSEC, V14)[0].outer_nh_offset == 0
    assert build(arp, OUT_NET, V14)[0].outer_nh_offset == 0


@pytest.mark.parametrize(
    ("frame", "feature", "kind"),
    [(tcp(100), TSO4, 1), (tcp(100, SIX), TSO6, 4), (udp(100), USO, 5), (udp(100, SIX), USO, 5)],
)
def test_NET_TX_DRV_05_to_08_21_22_segmentation_needs_its_feature(
    frame: bytes, feature: int, kind: int
) -> None:
    with pytest.raises(NotNegotiated):
        build(frame, GSO & ~feature, V14, Offload(gso_size=50))
    header, _ = build(frame, CSUM | feature, V14, Offload(gso_size=50))
    assert (header.gso_type, header.gso_size, header.flags) == (kind, 50, 1)


def test_NET_TX_DRV_21_no_gso_type_without_a_request() -> None:
    for offload in (Offload(), Offload(checksum=True)):
        header, _ = build(tcp(100), GSO, V14, offload)
        assert (header.gso_type, header.gso_size) == (0, 0)


@pytest.mark.parametrize("flags", ["AC", "AE", "AEC"])
def test_NET_TX_DRV_09_ecn_needs_its_feature_and_its_bit(flags: str) -> None:
    with pytest.raises(NotNegotiated, match="HOST_ECN"):
        build(tcp(100, FOUR, flags), GSO, V14, Offload(gso_size=50))
    assert build(tcp(100, FOUR, flags), GSO | ECN, V14, Offload(gso_size=50))[0].gso_type == 0x81
    assert build(tcp(100, SIX, flags), GSO | ECN, V14, Offload(gso_size=50))[0].gso_type == 0x84
    assert build(tcp(100, FOUR, flags), GSO, V14, Offload(checksum=True))[0].gso_type == 0


@pytest.mark.parametrize(
    ("frame", "length"),
    [(tcp(100), 54), (tcp(100, SIX), 74), (udp(100), 42), (ether(FOUR, ICMP()), 34), (bytes(14), 14)],
)
def test_NET_TX_DRV_23_24_hdr_len_covers_the_headers(frame: bytes, length: int) -> None:
    assert build(frame, GSO | HDRLEN, V14)[0].hdr_len == length


def test_NET_TX_DRV_23_hdr_len_is_exact_for_tcp_options() -> None:
    frame = ether(
        FOUR, TCP(sport=1, dport=2, flags="A", options=[("MSS", 1000), ("NOP", None)]), Raw(bytes(200))
    )
    assert build(frame, GSO | HDRLEN, V14, Offload(gso_size=50))[0].hdr_len == 14 + 20 + 28


@pytest.mark.parametrize(
    "frame",
    [
        ether(FOUR, ICMP()),
        ether(IP(src="192.0.2.1", dst="198.51.100.2", flags="MF"), UDP(), Raw(b"x" * 8)),
        ether(IP(src="192.0.2.1", dst="198.51.100.2", frag=3, proto=6), Raw(bytes(40))),
        udp(0)[:-1],
        tcp(0)[:-1],
        tcp(0)[:46] + b"\x40" + tcp(0)[47:],
        bytes(12) + b"\x08\x06" + bytes(28),
        ether(IPv6(src="2001:db8::1", dst="2001:db8::2", nh=44), Raw(bytes(40))),
        bytes(12) + b"\x08\x00\x4f" + bytes(30),
    ],
)
def test_offloads_of_what_is_not_whole_tcp_or_udp_are_refused(frame: bytes) -> None:
    for offload in (Offload(checksum=True), Offload(gso_size=100)):
        with pytest.raises(DriverError):
            build(frame, GSO, V14, offload)


def test_a_frame_without_ethernet_header_is_refused() -> None:
    with pytest.raises(DriverError, match="13 bytes"):
        build(bytes(13), 0, V14)


@pytest.mark.parametrize("size", [-1, 0x10000])
def test_a_segment_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(DriverError, match="segment size"):
        build(tcp(100), GSO, V14, Offload(gso_size=size))


# UDP tunnels.


def vxlan(inner: Any, outer: Any = FOUR) -> tuple[bytes, int]:
    head = len(
        ether(
            outer,
            UDP(sport=1, dport=4789),
            VXLAN(vni=7),
            Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04"),
        )
    )
    packet = ether(
        outer,
        UDP(sport=1, dport=4789),
        VXLAN(vni=7),
        Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04"),
        inner,
        TCP(sport=5, dport=6, flags="A"),
        Raw(b"z" * 500),
    )
    return packet, head


@pytest.mark.parametrize("outer", [FOUR, SIX])
@pytest.mark.parametrize(("inner", "bit"), [(FOUR, 0x21), (SIX, 0x44)])
def test_NET_TX_DRV_10_11_25_27_a_tunnelled_gso_packet(outer: Any, inner: Any, bit: int) -> None:
    frame, at = vxlan(inner, outer)
    transport = 34 if outer is FOUR else 54
    offload = Offload(gso_size=100, inner_network=at)
    with pytest.raises(NotNegotiated, match="UDP_TUNNEL_GSO"):
        build(frame, GSO, V14, offload)
    header, sent = build(frame, GSO | TUNNEL, V14, offload)
    length = 20 if inner is FOUR else 40
    assert (header.gso_type, header.flags) == (bit, 1)
    assert (header.outer_th_offset, header.inner_nh_offset) == (transport, at)
    assert (header.csum_start, header.hdr_len) == (at + length, at + length + 20)
    assert sent[transport + 6 : transport + 8] == b"\0\0"
    reference = frame[: transport + 6] + b"\0\0" + frame[transport + 8 :]
    assert finished(header, sent) == reference


@pytest.mark.parametrize("outer", [FOUR, SIX])
def test_NET_TX_DRV_12_13_26_the_outer_checksum_is_seeded(outer: Any) -> None:
    frame, at = vxlan(FOUR, outer)
    offload = Offload(gso_size=100, inner_network=at, outer_checksum=True)
    with pytest.raises(NotNegotiated, match="TUNNEL_GSO_CSUM"):
        build(frame, GSO | TUNNEL, V14, offload)
    header, sent = build(frame, GSO | TUNNEL | TUNNEL_CSUM, V14, offload)
    assert header.flags == 9
    inner_done = finished(header, sent)
    outer_done = finished(replace(header, csum_start=header.outer_th_offset, csum_offset=6), inner_done)
    assert outer_done == frame


@pytest.mark.parametrize("inner_network", [0, 13, 35, 5000, 60])
def test_NET_TX_DRV_16_tunnel_requests_that_fit_no_tunnel_are_refused(inner_network: int) -> None:
    frame, at = vxlan(FOUR)
    features = GSO | TUNNEL | TUNNEL_CSUM
    with pytest.raises(DriverError):
        build(frame, features, V14, Offload(gso_size=100, inner_network=inner_network, outer_checksum=True))
    with pytest.raises(DriverError, match="segmentation"):
        build(frame, features, V14, Offload(checksum=True, inner_network=at))


def test_E62_ipsec_and_tunnel_offload_do_not_mix() -> None:
    frame, at = vxlan(FOUR)
    with pytest.raises(DriverError, match="E62"):
        build(frame, GSO | TUNNEL | IPSEC, V14, Offload(gso_size=100, inner_network=at), sa_id=0)


# IPsec.


def test_NET_TX_DRV_33_34_only_live_outbound_sas_are_named(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    inbound = driver.sas.create_inbound(gcm)
    outbound = driver.sas.create_outbound(gcm)
    with pytest.raises(DriverError, match="needs an outbound SA"):
        driver.send(udp(1), inbound)
    driver.sas.destroy(outbound)
    with pytest.raises(DriverError, match="has been destroyed"):
        driver.send(udp(1), outbound)
    assert not fake.sent


def test_E64_ipsec_needs_an_ip_packet(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_outbound(gcm)
    with pytest.raises(DriverError, match="carries none"):
        driver.send(bytes(12) + b"\x08\x06" + bytes(28), handle)
    assert not fake.sent
    assert handle.in_flight == 0


def overhead_cases() -> list[Any]:
    aes = {"cipher_algo": 3, "auth_algo": 4, "auth_key": bytes(32)}
    ah = {"cipher_algo": 0, "cipher_key": b"", "auth_algo": 4, "auth_key": bytes(32)}
    six = TunnelIPv6(IPv6Address(1), IPv6Address(2))
    return [
        # outer, ESP header, IV, worst padding, pad length and next header, ICV; UDP
        ({}, 20 + 8 + 8 + 3 + 2 + 16),
        ({"param": six}, 40 + 8 + 8 + 3 + 2 + 16),
        ({"mode": 2}, 8 + 8 + 3 + 2 + 16),
        ({"mode": 2, "options": 2}, 8 + 8 + 3 + 2 + 16 + 8),
        ({"mode": 2, **aes}, 8 + 16 + 15 + 2 + 16),
        ({"mode": 4, **ah}, 32),
    ]


@pytest.mark.parametrize(("change", "overhead"), overhead_cases())
def test_NET_IPSEC_DRV_07_the_path_mtu_counts_the_worst_overhead(
    fake: Any, start: Any, gcm: IpsecSa, change: dict[str, Any], overhead: int
) -> None:
    driver = start(fake)
    handle = driver.sas.create_outbound(replace(gcm, **change))
    fits = 1500 - overhead - 28
    driver.send(udp(fits), handle)
    with pytest.raises(PathMtuExceeded) as caught:
        driver.send(udp(fits + 1), handle)
    assert (caught.value.needed, caught.value.mtu) == (1501, 1500)
    assert len(fake.sent) == 1


def test_NET_IPSEC_DRV_07_an_sa_can_have_a_smaller_path_mtu(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_outbound(replace(gcm, mode=2), path_mtu=600)
    driver.send(udp(600 - 37 - 28), handle)
    with pytest.raises(PathMtuExceeded):
        driver.send(udp(600 - 37 - 28 + 1), handle)
    driver.send(udp(1400))
    handle.path_mtu = 9000
    with pytest.raises(PathMtuExceeded):
        driver.send(udp(1472), handle)


def test_NET_IPSEC_DRV_07_each_segment_is_held_against_the_mtu(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake, GSO)
    handle = driver.sas.create_outbound(replace(gcm, mode=2))
    room = 1500 - 37 - 40
    driver.send(tcp(20000), handle, offload=Offload(gso_size=room))
    with pytest.raises(PathMtuExceeded):
        driver.send(tcp(20000), handle, offload=Offload(gso_size=room + 1))
    # A segment that is never filled does not count.
    driver.send(tcp(100), handle, offload=Offload(gso_size=room + 1))


def test_the_device_s_mtu_bounds_plain_packets(fake: Any, start: Any) -> None:
    driver = start(fake, 1 << 3, mtu=9000)
    assert driver.mtu == 1500
    driver.send(udp(1472))
    with pytest.raises(PathMtuExceeded):
        driver.send(udp(1473))
    assert start(fake, mtu=1000).mtu == 1000


def test_packet_lengths_of_segments() -> None:
    assert packet_lengths(udp(100), Offload()) == [128]
    assert packet_lengths(udp(100), Offload(gso_size=40)) == [68, 68, 48]
    assert packet_lengths(udp(80), Offload(gso_size=40)) == [68, 68]
    assert packet_lengths(udp(0), Offload(gso_size=40)) == [28]
    frame, at = vxlan(FOUR)
    assert packet_lengths(frame, Offload(gso_size=300, inner_network=at))[-1] == 20 + 8 + 8 + 14 + 40 + 200
    assert packet_lengths(bytes(60), Offload()) == [46]


# The queue.


def test_a_full_queue_is_an_error_until_the_device_lets_go(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake, queue_size=4)
    handle = driver.sas.create_outbound(gcm)
    fake.hold = True
    for _ in range(4):
        driver.send(udp(1), handle)
    with pytest.raises(QueueFull):
        driver.send(udp(1), handle)
    assert handle.in_flight == 4
    fake.let_go()
    driver.send(udp(1), handle)
    assert handle.in_flight == 1


def test_buffers_are_freed_when_they_come_back_and_not_before(fake: Any, start: Any) -> None:
    driver = start(fake)
    free = fake.allocator.available
    fake.hold = True
    driver.send(udp(100))
    assert fake.allocator.available < free
    fake.let_go()
    driver.reap()
    assert fake.allocator.available == free


def test_transmit_queues_beyond_those_in_use_are_refused(fake: Any, start: Any) -> None:
    driver = start(fake, 1 << 17 | 1 << 22, queue_pairs=3)
    for queue in (1, -1):
        with pytest.raises(DriverError, match="transmit queue"):
            driver.send(udp(1), queue=queue)
    driver.control.set_queue_pairs(3)
    driver.send(udp(1), queue=2)
    assert ("kick", 5) in fake.trace


def test_sending_before_start_is_refused(fake: Any) -> None:
    from virtio_ipsec.driver import Driver

    with pytest.raises(DriverError, match="not been started"):
        Driver(fake).send(udp(1))


def test_queue_reset_sets_a_pair_up_anew(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake, 1 << 40)
    handle = driver.sas.create_outbound(gcm)
    fake.hold = True
    driver.send(udp(1), handle)
    fake.trace.clear()
    driver.reset_pair(0)
    assert handle.in_flight == 0
    assert fake.trace == [("reset_queue", 0), ("enable", 0), ("reset_queue", 1), ("enable", 1), ("kick", 0)]
    fake.hold, fake.held = False, []
    driver.send(udp(2), handle)
    fake.deliver(bytes(10) + b"\x01" + bytes(21) + udp(3))
    assert [packet.frame for packet in driver.receive()] == [udp(3)]
    with pytest.raises(DriverError, match="queue pair 1"):
        driver.reset_pair(1)


def test_queue_reset_needs_its_feature(fake: Any, start: Any) -> None:
    with pytest.raises(NotNegotiated, match="RING_RESET"):
        start(fake).reset_pair(0)


@pytest.mark.parametrize("extra", [0, CSUM])
def test_what_follows_the_ip_packet_counts_against_the_mtu(fake: Any, start: Any, extra: int) -> None:
    driver = start(fake, 1 << 3 | extra)
    frame = udp(100)
    driver.send(frame + bytes(1500 - 128))
    with pytest.raises(PathMtuExceeded):
        driver.send(frame + bytes(1500 - 128 + 1))
    assert [len(each) - 32 for each in fake.sent] == [1514]


def test_a_packet_is_queued_once_even_when_the_kick_fails(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_outbound(gcm)
    kick, fake.kick = fake.kick, lambda _index: (_ for _ in ()).throw(TransportError("gone"))
    with pytest.raises(TransportError):
        driver.send(udp(100), handle)
    assert (handle.in_flight, handle.packets) == (1, 1)
    fake.kick = kick
    fake.kick(1)
    driver.reap()
    assert handle.in_flight == 0
    driver.sas.destroy(handle)


@pytest.mark.parametrize("used", [(77, 0), (0, 1)])
def test_a_device_that_lies_about_used_buffers_breaks_the_queue_and_no_count(
    fake: Any, start: Any, gcm: IpsecSa, used: tuple[int, int]
) -> None:
    driver = start(fake)
    handle = driver.sas.create_outbound(gcm)
    fake.hold = True
    driver.send(udp(100), handle)
    fake.finish(1, *used)
    for _ in range(2):
        with pytest.raises(RingError):
            driver.send(udp(100), handle)
    assert handle.in_flight == 1
    driver.stop()
    assert handle.in_flight == 0
