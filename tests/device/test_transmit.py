"""The transmit path: what the header may ask for, what is refused, and ESP opened by AES-GCM of another make."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidTag
from plane import ALL, ETHER, SPI, TUNNEL4, TUNNEL6, make_context, outbound_sa, send, unseal
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from virtio_ipsec.device.state import Steering
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.net_header import RfcFlag
from virtio_ipsec.wire.numbers import Feature, HdrFlag, IpsecMode, IpsecOption, ResourceType, mask

NEEDS = int(HdrFlag.NEEDS_CSUM)
SECURITY = int(HdrFlag.SECURITY)
OUTB = int(ResourceType.NET_IPSEC_OUTB_SA)
PLAIN = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"payload")
DATA = bytes(i & 0xFF for i in range(3000))


def refusals(ctx: object) -> dict[str, int]:
    return {k[11:]: v for k, v in ctx.counters.snapshot().items() if k.startswith("tx_refused_")}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("features", "size"),
    [
        ((), 12),
        ((Feature.NET_F_HASH_REPORT,), 20),
        ((Feature.NET_F_HOST_UDP_TUNNEL_GSO,), 24),
        ((Feature.NET_F_OUT_NET_HEADER,), 32),
        ((Feature.NET_F_IPSEC,), 32),
    ],
)
def test_the_frame_begins_behind_the_negotiated_header(features: tuple[Feature, ...], size: int) -> None:
    ctx = make_context(mask(Feature.F_VERSION_1, *features))
    assert Transmitter(ctx).transmit(bytes(size) + PLAIN, 0) == [PLAIN]
    assert ctx.counters.snapshot() == {"tx_frames": 1, "tx_bytes": len(PLAIN)}


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        (b"", "bad_header"),
        (bytes(31), "bad_header"),
        (bytes(32), "malformed"),
        (bytes(32 + 13), "malformed"),
    ],
)
def test_a_buffer_without_a_whole_frame_is_refused(buffer: bytes, reason: str) -> None:
    ctx = make_context()
    assert Transmitter(ctx).transmit(buffer, 0) == []
    assert refusals(ctx) == {reason: 1}


def test_a_plain_frame_leaves_as_it_is_whatever_the_unused_fields_say() -> None:
    """NET-TX-DEV-01, -02, -05, -07, -10, -11: unknown flags and fields without their flag change nothing."""
    ctx = make_context()
    outbound_sa(ctx, 7)
    poison = {
        "flags": 128,
        "hdr_len": 0xFFFF,
        "gso_size": 9,
        "csum_start": 14,
        "csum_offset": 2,
        "num_buffers": 3,
        "hash_value": 5,
        "outer_th_offset": 20,
        "inner_nh_offset": 30,
        "outer_nh_offset": 9999,
        "resource_id": 7,
        "resource_type": OUTB,
    }
    assert send(ctx, PLAIN, **poison) == [PLAIN]
    broken = PLAIN[:-1] + b"!"  # its UDP checksum is wrong, and that is not the device's affair
    assert send(ctx, broken) == [broken]
    assert ctx.outbound[7].packets == 0


@pytest.mark.parametrize("flag", [16, 32, 64])
def test_without_ipsec_negotiated_the_security_flags_are_unknown(flag: int) -> None:
    """E61."""
    ctx = make_context(ALL & ~mask(Feature.NET_F_IPSEC))
    outbound_sa(ctx, 1)
    assert send(ctx, PLAIN, flags=flag, resource_id=1, resource_type=OUTB) == [PLAIN]


def test_the_checksum_is_completed_when_asked_for() -> None:
    ctx = make_context()
    seeded = bytearray(PLAIN)
    pseudo = sum(int.from_bytes(PLAIN[at : at + 2], "big") for at in range(26, 34, 2)) + 17 + 15
    seeded[40:42] = ((pseudo & 0xFFFF) + (pseudo >> 16)).to_bytes(2, "big")
    assert send(ctx, bytes(seeded), flags=NEEDS, csum_start=34, csum_offset=6) == [PLAIN]
    assert send(ctx, PLAIN, flags=NEEDS, csum_start=34, csum_offset=999) == []
    assert refusals(ctx) == {"bad_checksum_request": 1}


def test_without_csum_negotiated_no_checksum_is_completed() -> None:
    ctx = make_context(ALL & ~mask(Feature.NET_F_CSUM))
    assert send(ctx, PLAIN, flags=NEEDS, csum_start=34, csum_offset=6) == [PLAIN]


@pytest.mark.parametrize(
    "hdr",
    [
        {"flags": 8},
        {"flags": 8 | NEEDS, "csum_start": 34, "csum_offset": 6},
        {"flags": NEEDS, "gso_type": 0x61, "gso_size": 10},
        {"flags": 0, "gso_type": 0x21, "gso_size": 10},
        {"flags": NEEDS | 2, "gso_type": 0x21, "gso_size": 10},
        {"flags": NEEDS, "gso_type": 0x20},
    ],
)
def test_tunnel_flags_that_the_device_must_not_accept(hdr: dict[str, int]) -> None:
    """NET-TX-DEV-06, -08, -09; the first is an RFC driver's SECURITY."""
    ctx = make_context(ALL | mask(Feature.NET_F_HOST_UDP_TUNNEL_GSO))
    assert send(ctx, PLAIN, **hdr) == []
    assert refusals(ctx) == {"bad_gso": 1}


# IPsec


def secure(**fields: int) -> dict[str, int]:
    return {"flags": SECURITY, "resource_id": 1, "resource_type": OUTB, **fields}


@pytest.mark.parametrize("tunnel", [TUNNEL4, TUNNEL6])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_a_tunnel_packet_opens_to_the_inner_packet(tunnel: object, inner: int, tags: int) -> None:
    ctx = make_context()
    outbound_sa(ctx, 1, param=tunnel)
    ip = IP(src="10.0.0.1", dst="10.0.0.2") if inner == 4 else IPv6(src="fd00::1", dst="fd00::2")
    l2 = [ETHER, ETHER / Dot1Q(vlan=5, prio=3), ETHER / Dot1AD(vlan=6) / Dot1Q(vlan=7)][tags]
    packet = bytes(l2 / ip / UDP() / b"some data")
    (out,) = send(ctx, packet, **secure())
    at = 14 + 4 * tags
    outer4 = tunnel is TUNNEL4
    assert out[: at - 2] == packet[: at - 2]
    assert out[at - 2 : at] == (b"\x08\x00" if outer4 else b"\x86\xdd")
    outer = IP(out[at:]) if outer4 else IPv6(out[at:])
    assert (outer.src, outer.dst) == (
        ("192.0.2.1", "198.51.100.2") if outer4 else ("2001:db8:a::1", "2001:db8:b::2")
    )
    assert (outer.proto if outer4 else outer.nh) == 50
    spi, sequence, payload, next_header = unseal(out[at + (20 if outer4 else 40) :])
    assert (spi, sequence, next_header) == (SPI, 1, 4 if inner == 4 else 41)
    assert payload == packet[at:]
    assert ctx.counters.snapshot() == {"tx_frames": 1, "tx_bytes": len(out), "tx_sealed": 1}


def test_a_transport_packet_keeps_its_addresses() -> None:
    ctx = make_context()
    outbound_sa(ctx, 1, IpsecMode.ESP_TRANSPORT)
    (out,) = send(ctx, PLAIN, **secure())
    assert Ether(out)[IP].dst == "10.0.0.2"
    _, _, payload, next_header = unseal(out[34:])
    assert (payload, next_header) == (PLAIN[34:], 17)


def test_ethernet_padding_is_not_protected() -> None:
    ctx = make_context()
    outbound_sa(ctx, 1)
    (out,) = send(ctx, PLAIN + bytes(20), **secure())
    assert unseal(out[34:])[2] == PLAIN[14:]


def test_the_sa_is_the_one_that_resource_id_names() -> None:
    """NET-IPSEC-DEV-09."""
    ctx = make_context()
    outbound_sa(ctx, 1, spi=0x1001, cipher_key=bytes(16))
    outbound_sa(ctx, 2, spi=0x2002, cipher_key=b"k" * 16)
    (out,) = send(ctx, PLAIN, **secure(resource_id=2))
    assert unseal(out[34:], b"k" * 16)[0] == 0x2002
    with pytest.raises(InvalidTag):
        unseal(out[34:], bytes(16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resource_id": 2}, "unknown_sa"),
        ({"resource_type": int(ResourceType.NET_IPSEC_INB_SA)}, "wrong_direction"),
        ({"resource_type": int(ResourceType.NET_FF_RULE)}, "unknown_sa"),
        ({"outer_nh_offset": 13}, "bad_header"),
        ({"outer_nh_offset": 15}, "bad_header"),
        ({"outer_nh_offset": len(PLAIN)}, "bad_header"),
        ({"outer_nh_offset": 65535}, "bad_header"),
        ({"flags": SECURITY | NEEDS, "csum_start": 60}, "bad_checksum_request"),
        ({"flags": SECURITY | NEEDS, "gso_type": 1, "gso_size": 100}, "bad_gso"),
    ],
)
def test_a_packet_that_cannot_be_protected_does_not_leave(change: dict[str, int], reason: str) -> None:
    """E54, E60: nothing on the wire, least of all plaintext."""
    ctx = make_context()
    sa = outbound_sa(ctx, 1)
    assert send(ctx, PLAIN, **secure(**change)) == []
    assert refusals(ctx) == {reason: 1}
    assert sa.sequence == 0


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / ARP(),
        ETHER / Raw(b"x"),
        Ether(type=0x0800),
        Ether(type=0x0800) / Raw(bytes(IPv6())),
        Ether(type=0x86DD) / Raw(bytes(IP())),
        Ether(type=0x8100) / Raw(b"\0\0"),
    ],
)
def test_a_frame_that_is_no_ip_is_not_sent_under_security(packet: Packet) -> None:
    """E64."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    assert send(ctx, bytes(packet), **secure()) == []
    assert refusals(ctx) == {"not_ip": 1}


def test_resource_type_zero_will_do_unless_the_dialect_demands_it() -> None:
    """E60."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    assert len(send(ctx, PLAIN, **secure(resource_type=0))) == 1
    rfc = make_context(mask(Feature.F_VERSION_1, Feature.NET_F_IPSEC), RFC_2025_01)
    outbound_sa(rfc, 1)
    hdr = {"flags": int(RfcFlag.SECURITY), "resource_id": 1}
    assert send(rfc, PLAIN, **hdr) == []
    assert refusals(rfc) == {"unknown_sa": 1}
    (out,) = send(rfc, PLAIN, resource_type=OUTB, **hdr)
    assert unseal(out[34:])[2] == PLAIN[14:]


def test_rfc_flag_sixteen_is_no_request_for_protection() -> None:
    rfc = make_context(mask(Feature.F_VERSION_1, Feature.NET_F_IPSEC), RFC_2025_01)
    outbound_sa(rfc, 1)
    assert send(rfc, PLAIN, flags=16, resource_id=1, resource_type=OUTB) == [PLAIN]


def test_outer_nh_offset_finds_ip_where_the_device_would_not() -> None:
    """NET-TX-DEV-03: LLC/SNAP ends in the EtherType, which the device does not look for itself."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    snap = PLAIN[:12] + b"\x00\x2b\xaa\xaa\x03\x00\x00\x00\x08\x00" + PLAIN[14:]
    assert send(ctx, snap, **secure()) == []
    (out,) = send(ctx, snap, **secure(outer_nh_offset=22))
    assert out[:22] == snap[:22]
    assert unseal(out[42:])[2] == PLAIN[14:]


@pytest.mark.parametrize("tags", [0, 2])
def test_outer_nh_offset_into_a_tunnel_leaves_nothing_in_clear(tags: int) -> None:
    """The inner header looks as right as the outer one; what is in front of it is not the link layer."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    ether = ETHER
    for vlan in range(tags):
        ether = ether / Dot1Q(vlan=vlan + 1)
    outer = bytes(ether / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=4789) / (bytes(8) + PLAIN))
    hdr = secure(outer_nh_offset=len(outer) - len(PLAIN) + 14)
    assert send(ctx, outer, **hdr) == []
    assert refusals(ctx) == {"bad_header": 1}
    (out,) = send(ctx, outer, **{**hdr, "outer_nh_offset": 14 + 4 * tags})
    assert unseal(out[34 + 4 * tags :])[2] == outer[14 + 4 * tags :]


def test_outer_nh_offset_is_not_used_unless_negotiated() -> None:
    ctx = make_context(ALL & ~mask(Feature.NET_F_OUT_NET_HEADER))
    outbound_sa(ctx, 1)
    (out,) = send(ctx, PLAIN, **secure(outer_nh_offset=15))
    assert unseal(out[34:])[2] == PLAIN[14:]


def tcp_send(**hdr: int) -> tuple[bytes, dict[str, int]]:
    packet = (
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", id=5) / TCP(sport=1, dport=2, seq=100, flags="PA") / DATA
    )
    raw = bytearray(bytes(packet))
    pseudo = sum(int.from_bytes(raw[at : at + 2], "big") for at in range(26, 34, 2)) + 6 + len(raw) - 34
    raw[50:52] = ((pseudo & 0xFFFF) + (pseudo >> 16)).to_bytes(2, "big")
    gso = {"gso_type": 1, "gso_size": 1000, "csum_start": 34, "csum_offset": 16}
    return bytes(raw), {**secure(flags=SECURITY | NEEDS), **gso, **hdr}


def test_each_segment_has_its_own_sequence_number_and_iv() -> None:
    """E62, E70: segments first, each of them complete, then one ESP packet for each."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    raw, hdr = tcp_send()
    frames = send(ctx, raw, **hdr)
    opened = [unseal(out[34:]) for out in frames]
    assert [sequence for _, sequence, _, _ in opened] == [1, 2, 3]
    assert len({out[42:50] for out in frames}) == 3
    segments = [IP(payload) for _, _, payload, _ in opened]
    assert b"".join(bytes(s[TCP].payload) for s in segments) == DATA
    for index, segment in enumerate(segments):
        again = segment.copy()
        del again[IP].chksum, again[TCP].chksum, again[IP].len
        assert bytes(again) == bytes(segment)
        assert segment[TCP].seq == 100 + 1000 * index
        assert segment[IP].id == 5 + index
    assert ctx.counters.snapshot()["tx_sealed"] == 3


def test_an_sa_that_ends_within_a_segmented_packet_protects_exactly_its_number() -> None:
    ctx = make_context()
    sa = outbound_sa(ctx, 1, options=int(IpsecOption.SA_LIFETIME))
    sa.lifetime.limits = replace(sa.params.lifetime, packets_hard_limit=2)
    raw, hdr = tcp_send()
    assert len(send(ctx, raw, **hdr)) == 2
    assert send(ctx, raw, **hdr) == []
    assert send(ctx, PLAIN, **secure()) == []
    assert sa.packets == 2
    assert refusals(ctx) == {"hard_lifetime": 3}


def test_the_last_sequence_number_is_the_last_packet() -> None:
    ctx = make_context()
    sa = outbound_sa(ctx, 1)
    sa.sequence = 0xFFFFFFFE
    assert len(send(ctx, PLAIN, **secure())) == 1
    assert send(ctx, PLAIN, **secure()) == []
    assert refusals(ctx) == {"sequence_overflow": 1}


def test_udp_fragmentation_under_security_is_refused() -> None:
    """E62."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    packet = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / DATA)
    hdr = {"gso_type": 3, "gso_size": 1000, "csum_start": 34, "csum_offset": 6}
    assert send(ctx, packet, **{**secure(flags=SECURITY | NEEDS), **hdr}) == []
    assert refusals(ctx) == {"bad_gso": 1}
    assert len(send(ctx, packet, flags=NEEDS, **hdr)) == 4


@pytest.mark.parametrize(("df", "sent"), [(0, 1), (1, 0)])
def test_a_result_beyond_the_mtu_is_dropped_when_nobody_may_fragment_it(df: int, sent: int) -> None:
    """E65."""
    ctx = make_context(mtu=1500)
    outbound_sa(ctx, 1, param=replace(TUNNEL4, df=df))
    packet = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / bytes(1450))
    assert len(send(ctx, packet, **secure())) == sent
    six = make_context(mtu=1500)
    sa = outbound_sa(six, 1, param=TUNNEL6)
    assert send(six, packet, **secure()) == []
    assert (sa.sequence, sa.packets, sa.bytes) == (0, 0, 0)
    assert refusals(six) == {"too_big": 1}
    assert len(send(six, PLAIN, **secure())) == 1


def test_the_queue_of_a_flow_is_learned_from_plaintext() -> None:
    """Receive steering looks at the decrypted packet, so what is learned is the packet before encryption."""
    ctx = make_context()
    outbound_sa(ctx, 1)
    send(ctx, PLAIN, queue=3, **secure())
    assert ctx.flows is None
    ctx.steering = Steering(queue_pairs=4)
    send(ctx, PLAIN, queue=3, **secure())
    send(ctx, PLAIN, queue=2)
    assert ctx.flows is not None
    assert len(ctx.flows) == 1
