"""The receive path: filters before rules before steering, IPsec actions, flags and header of what is delivered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plane import (
    ALL,
    ETHER,
    MAC,
    PEER,
    SPI,
    add_rule,
    arrive,
    authenticated,
    esp,
    eth,
    inbound_sa,
    ipv4,
    ipv6,
    make_context,
    seal,
    send,
    udp,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from virtio_ipsec.device.frame import view
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import DataPlaneContext, RxFilter, Steering
from virtio_ipsec.device.steering import packet_hash
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.flow_filter import Selector
from virtio_ipsec.wire.net_header import RfcFlag
from virtio_ipsec.wire.numbers import (
    Feature,
    FfAction,
    HashType,
    IpsecMode,
    IpsecOption,
    MacAlgo,
    ResourceType,
    SelectorType,
    mask,
)

OK, ERR, SOFT = 16, 32, 64
DATA_VALID = 2
INB = int(ResourceType.NET_IPSEC_INB_SA)
INNER = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=53, dport=4000) / b"inner data")
PLAIN = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / b"clear")


def tunnel(
    inner: bytes = INNER, sequence: int = 1, spi: int = SPI, next_header: int = 4, l2: Packet = ETHER
) -> bytes:
    """A frame with ``inner`` in tunnel mode ESP, from the hand-made sealer."""
    body = seal(inner, next_header, sequence, spi)
    return bytes(l2 / IP(src="192.0.2.9", dst="192.0.2.10", proto=50) / Raw(body))


def opening(action: FfAction = FfAction.IPSEC, **config: object) -> DataPlaneContext:
    """SA 9 and a rule that opens all ESP over IPv4."""
    ctx = make_context(**config)
    inbound_sa(ctx, 9)
    add_rule(ctx.filters, action, eth(), ipv4(50), group=1)
    return ctx


def refusals(ctx: DataPlaneContext) -> dict[str, int]:
    return {k[11:]: v for k, v in ctx.counters.snapshot().items() if k.startswith("rx_refused_")}


def test_a_plain_frame_is_delivered_as_it_is() -> None:
    """NET-RX-DEV-01, -13, -20, -23, -30, -33: nothing set but what is true of the frame."""
    ctx = make_context()
    queue, hdr, frame = arrive(ctx, PLAIN)
    assert (queue, frame) == (0, PLAIN)
    assert (hdr.flags, hdr.gso_type, hdr.num_buffers, hdr.outer_nh_offset) == (DATA_VALID, 0, 1, 14)
    assert (hdr.resource_id, hdr.resource_type, hdr.hash_report) == (0, 0, 0)
    assert ctx.counters.snapshot() == {"rx_frames": 1, "rx_bytes": len(PLAIN)}


@pytest.mark.parametrize(
    ("features", "size"),
    [
        ((), 12),
        ((Feature.NET_F_HASH_REPORT,), 20),
        ((Feature.NET_F_GUEST_UDP_TUNNEL_GSO,), 24),
        ((Feature.NET_F_OUT_NET_HEADER,), 32),
        ((Feature.NET_F_IPSEC,), 32),
    ],
)
def test_the_header_has_the_negotiated_size(features: tuple[Feature, ...], size: int) -> None:
    ctx = make_context(mask(Feature.F_VERSION_1, *features))
    (received,) = Receiver(ctx).receive(PLAIN)
    assert received.buffer[size:] == PLAIN
    assert received.buffer[:12] == bytes(10) + b"\x01\x00"
    offset = 14 if features == (Feature.NET_F_OUT_NET_HEADER,) else 0
    assert ctx.header.parse(received.buffer).outer_nh_offset == offset


def test_a_network_header_beyond_the_reach_of_the_offset_field_is_not_reported() -> None:
    ctx = make_context()
    frame = bytes(ETHER)[:12] + bytes.fromhex("81000001") * 16384 + b"\x08\0" + bytes(IP() / UDP())
    _, hdr, delivered = arrive(ctx, frame)
    assert (hdr.outer_nh_offset, delivered == frame) == (0, True)


@pytest.mark.parametrize(
    ("frame", "valid"),
    [
        (PLAIN, True),
        (PLAIN[:-1] + b"!", False),
        (bytes(ETHER / IP() / UDP(chksum=0) / b"none"), False),
        (bytes(ETHER / Raw(b"not ip")), False),
    ],
)
def test_data_valid_only_after_the_checksum_was_verified(frame: bytes, valid: bool) -> None:
    """NET-RX-DEV-05 and NET-RX-DEV-25; the driver can switch it off by CTRL_GUEST_OFFLOADS."""
    ctx = make_context()
    assert arrive(ctx, frame)[1].flags == (DATA_VALID if valid else 0)
    ctx.guest_offloads = 0
    assert arrive(ctx, frame)[1].flags == 0


@pytest.mark.parametrize("l2", [ETHER, ETHER / Dot1Q(vlan=3, prio=2)])
@pytest.mark.parametrize("inner", [INNER, bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"six")])
def test_an_opened_packet(inner: bytes, l2: Packet) -> None:
    """NET-RX-DEV-29, E51, E63, E64: inner packet, tags kept, EtherType by version, metadata of the inner packet."""
    ctx = make_context()
    inbound_sa(ctx, 9)
    add_rule(ctx.filters, FfAction.IPSEC, eth(0x8100 if Dot1Q in l2 else 0x0800))
    version = inner[0] >> 4
    result = arrive(ctx, tunnel(inner, next_header=4 if version == 4 else 41, l2=l2))
    _, hdr, frame = result
    header = len(l2)
    assert frame[header:] == inner
    assert frame[: header - 2] == bytes(l2)[: header - 2]
    assert frame[header - 2 : header] == (b"\x08\x00" if version == 4 else b"\x86\xdd")
    assert hdr.flags == OK | DATA_VALID
    assert (hdr.resource_id, hdr.resource_type, hdr.outer_nh_offset) == (9, INB, header)
    assert ctx.counters.snapshot() == {"rx_frames": 1, "rx_bytes": len(frame), "rx_opened": 1}


def test_a_wrong_inner_checksum_is_not_vouched_for() -> None:
    ctx = opening()
    _, hdr, frame = arrive(ctx, tunnel(INNER[:-1] + b"!"))
    assert frame[14:] == INNER[:-1] + b"!"
    assert hdr.flags == OK


def test_transport_mode() -> None:
    ctx = make_context()
    inbound_sa(ctx, 4, IpsecMode.ESP_TRANSPORT)
    add_rule(ctx.filters, FfAction.IPSEC, eth(0x86DD), ipv6(50), esp())
    segment = bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"data")[40:]
    wire = ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=50) / Raw(seal(segment, 17))
    _, hdr, frame = arrive(ctx, wire)
    assert frame == bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"data")
    assert (hdr.flags, hdr.resource_id) == (OK | DATA_VALID, 4)


@pytest.mark.parametrize("mode", [IpsecMode.AH_TRANSPORT, IpsecMode.AH_TUNNEL])
def test_ah_is_found_by_protocol_51(mode: IpsecMode) -> None:
    """E57, E69: the same SPI may name an ESP SA and an AH SA."""
    ctx = make_context()
    inbound_sa(ctx, 9)
    key = bytes(range(32))
    inbound_sa(ctx, 5, mode, cipher_algo=0, cipher_key=b"", auth_algo=int(MacAlgo.HMAC_SHA_256), auth_key=key)
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(51))
    outer, payload, number = (INNER[:20], INNER[20:], 17)
    if mode is IpsecMode.AH_TUNNEL:
        outer, payload, number = bytes(IP(src="192.0.2.1", dst="192.0.2.2")), INNER, 4
    wire = bytes(ETHER)[:12] + b"\x08\0" + authenticated(outer, payload, number, key)
    _, hdr, frame = arrive(ctx, wire)
    assert (frame[14:], hdr.flags, hdr.resource_id) == (INNER, OK | DATA_VALID, 5)
    assert arrive(ctx, damaged(wire))[1].flags == OK | ERR


def test_security_flags_stand_without_guest_csum() -> None:
    """E50 (b)."""
    ctx = make_context(ALL & ~mask(Feature.NET_F_GUEST_CSUM))
    inbound_sa(ctx, 9)
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(50))
    assert arrive(ctx, tunnel())[1].flags == OK


def test_without_a_rule_esp_is_delivered_untouched() -> None:
    """E56."""
    ctx = make_context()
    sa = inbound_sa(ctx, 9)
    wire = tunnel()
    _, hdr, frame = arrive(ctx, wire)
    assert (frame, hdr.flags, hdr.resource_type) == (wire, 0, 0)
    assert sa.packets == 0


def test_without_ipsec_negotiated_a_rule_opens_nothing() -> None:
    ctx = make_context(ALL & ~mask(Feature.NET_F_IPSEC))
    inbound_sa(ctx, 9)
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(50))
    wire = tunnel()
    _, hdr, frame = arrive(ctx, wire)
    assert (frame, hdr.flags) == (wire, 0)


# Errors: E53


def damaged(wire: bytes) -> bytes:
    return wire[:-1] + bytes((wire[-1] ^ 1,))


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(
    ("wire", "reason", "known"),
    [
        (damaged(tunnel()), "bad_icv", True),
        (tunnel(spi=SPI + 1), "unknown_sa", False),
        (tunnel(next_header=99), "bad_next_header", True),
        (tunnel(INNER[:-5]), "bad_inner", True),
        (bytes(ETHER / IP(proto=50, chksum=1) / Raw(seal(INNER, 4))), "malformed", True),
    ],
)
def test_a_packet_in_error_is_delivered_as_it_came_or_dropped(
    wire: bytes, reason: str, known: bool, drop: bool
) -> None:
    """NET-RX-DEV-32; resource_type 0 says that no SA was identified (E52)."""
    ctx = opening(drop_error_packets=drop)
    result = arrive(ctx, wire)
    assert refusals(ctx) == {reason: 1}
    if drop:
        assert result is None
        assert "rx_frames" not in ctx.counters.snapshot()
        return
    _, hdr, frame = result
    assert frame == wire
    assert hdr.flags == OK | ERR
    assert (hdr.resource_id, hdr.resource_type) == ((9, INB) if known else (0, 0))


def test_a_replayed_packet_is_in_error() -> None:
    ctx = opening()
    assert arrive(ctx, tunnel())[1].flags == OK | DATA_VALID
    _, hdr, frame = arrive(ctx, tunnel())
    assert (hdr.flags, frame) == (OK | ERR, tunnel())
    assert refusals(ctx) == {"replay": 1}


def test_lifetimes_warn_from_the_limit_on_and_fail_beyond_the_hard_one() -> None:
    """NET-RX-DEV-34, NET-RX-DEV-35, E45, E55: the warning stays, with an error as well as without."""
    ctx = opening()
    sa = inbound_sa(ctx, 9, options=int(IpsecOption.SA_LIFETIME))
    sa.lifetime.limits = replace(sa.params.lifetime, packets_soft_limit=2, packets_hard_limit=4)
    flags = [arrive(ctx, tunnel(sequence=n))[1].flags & ~DATA_VALID for n in (1, 2, 3)]
    assert flags == [OK, OK | SOFT, OK | SOFT]
    assert arrive(ctx, damaged(tunnel(sequence=4)))[1].flags == OK | ERR | SOFT
    assert arrive(ctx, tunnel(sequence=4))[1].flags == OK | SOFT | DATA_VALID
    assert arrive(ctx, tunnel(sequence=5))[1].flags == OK | ERR | SOFT
    assert refusals(ctx) == {"bad_icv": 1, "hard_lifetime": 1}


def test_dummy_packets_vanish() -> None:
    """E68."""
    ctx = opening()
    assert arrive(ctx, tunnel(b"anything", next_header=59)) is None
    assert refusals(ctx) == {"dummy": 1}
    assert ctx.inbound[9].packets == 1


@pytest.mark.parametrize(
    "wire",
    [
        ETHER / IP(proto=50, flags="MF") / Raw(seal(INNER, 4)),
        ETHER / IP(proto=50, frag=3) / Raw(seal(INNER, 4)),
        ETHER / IP() / UDP(sport=4500, dport=4500) / Raw(b"\0\0\0\0IKE"),
        ETHER / IP() / UDP(sport=4500, dport=4500) / Raw(b"\xff"),
        ETHER / IP() / UDP(sport=4500, dport=4500) / Raw(seal(INNER, 4)),
        ETHER / IP() / UDP(sport=53, dport=4000) / Raw(b"an answer of DNS"),
        ETHER / IP() / TCP(),
        ETHER / Raw(b"\xff" * 40),
        ETHER / IP(len=4) / Raw(b"x" * 40),
    ],
)
def test_what_is_no_ipsec_packet_passes_an_ipsec_rule_untouched(wire: Packet) -> None:
    """E65, E66. The UDP encapsulated one names an SA that does not do UDP encapsulation."""
    ctx = make_context()
    inbound_sa(ctx, 9)
    anything = eth()[0], bytes(14)
    add_rule(ctx.filters, FfAction.IPSEC_RECIRCULATE, (replace(anything[0], mask=bytes(14)), bytes(14)))
    _, hdr, frame = arrive(ctx, wire)
    assert frame == bytes(wire)
    assert hdr.flags & ~DATA_VALID == 0
    assert hdr.resource_type == 0
    assert refusals(ctx) == {}


DAMAGED = {
    "esp cut short": IP(proto=50) / Raw(seal(INNER, 4)[:7]),
    "esp with spi 0": IP(proto=50) / Raw(seal(INNER, 4, spi=0)),
    "ah cut short": IP(proto=51) / Raw(bytes(11)),
    "esp over ipv6 cut short": IPv6(nh=50) / Raw(bytes(3)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_ipsec_header_is_an_error_where_a_rule_wants_ipsec(name: str) -> None:
    """NET-RX-DEV: any error during IPsec processing. Without a rule (RFC dialect) it is nobody's packet."""
    wire = bytes(ETHER / DAMAGED[name])
    ctx = make_context()
    add_rule(ctx.filters, FfAction.IPSEC, (Selector(SelectorType.ETH, 0, bytes(14)), bytes(14)))
    _, hdr, frame = arrive(ctx, wire)
    assert (frame, hdr.flags, hdr.resource_type) == (wire, OK | ERR, 0)
    assert refusals(ctx) == {"malformed": 1}
    _, hdr, frame = arrive(rfc(), wire)
    assert (frame, hdr.flags) == (wire, 0)


def test_udp_encapsulated_esp() -> None:
    ctx = make_context()
    inbound_sa(ctx, 9, options=int(IpsecOption.UDP_ENCAP))
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(17), udp(4500))
    wire = ETHER / IP() / UDP(sport=4500, dport=4500) / Raw(seal(INNER, 4))
    _, hdr, frame = arrive(ctx, wire)
    assert frame[14:] == INNER
    assert hdr.flags == OK | DATA_VALID
    assert (arrive(ctx, ETHER / IP() / UDP(dport=4500) / Raw(seal(INNER, 4, spi=5)))[1].flags) == OK | ERR


# Rules and order


def test_a_rule_on_another_udp_port_starts_ipsec_there() -> None:
    """E78: whoever points a rule at a port means ESP, known SPI or not."""
    ctx = make_context()
    inbound_sa(ctx, 9, options=int(IpsecOption.UDP_ENCAP))
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(17), udp(5000))
    wire = ETHER / IP() / UDP(sport=4500, dport=5000)
    assert arrive(ctx, wire / Raw(seal(INNER, 4)))[2][14:] == INNER
    assert arrive(ctx, wire / Raw(seal(INNER, 4, spi=5)))[1].flags == OK | ERR


def test_mac_filter_comes_before_rules() -> None:
    """NET-FF-DEV-15, NET-FF-DEV-17: a filtered frame touches no SA."""
    ctx = opening()
    ctx.rx_filter = RxFilter(mac=PEER)
    assert arrive(ctx, tunnel()) is None
    assert refusals(ctx) == {"filtered": 1}
    assert ctx.inbound[9].packets == 0
    ctx.rx_filter = RxFilter(mac=MAC)
    assert arrive(ctx, tunnel()) is not None


def test_drop_rule() -> None:
    """NET-FF-DEV-16."""
    ctx = opening(FfAction.DROP)
    assert arrive(ctx, tunnel()) is None
    assert refusals(ctx) == {"rule_drop": 1}
    assert arrive(ctx, PLAIN) is not None


def test_directed_to_a_queue_whatever_rss_says() -> None:
    """NET-FF-DEV-10, NET-FF-DEV-11, INF-36: virtqueue 6 is receive queue number 3."""
    ctx = make_context()
    ctx.steering = Steering(queue_pairs=8, rss=True, table=(5,), unclassified_queue=5)
    add_rule(ctx.filters, FfAction.DIRECT_RX_VQ, eth(), vq_index=6)
    assert arrive(ctx, PLAIN)[0] == 3
    ctx.live_rx_queues = {0, 5}
    assert arrive(ctx, PLAIN) is None
    assert refusals(ctx) == {"queue_disabled": 1}
    ctx.live_rx_queues = {3}
    assert arrive(ctx, PLAIN)[0] == 3
    assert arrive(ctx, ETHER / Raw(b"x" * 46)) is None


def test_rules_take_effect_when_they_change() -> None:
    ctx = make_context()
    assert arrive(ctx, PLAIN) is not None
    add_rule(ctx.filters, FfAction.DIRECT_RX_VQ, eth(), vq_index=2)
    assert arrive(ctx, PLAIN)[0] == 1
    add_rule(ctx.filters, FfAction.DROP, eth(), priority=2)
    assert arrive(ctx, PLAIN) is None
    del ctx.filters.rules[1]
    ctx.filters.generation += 1
    assert arrive(ctx, PLAIN)[0] == 1


KEY = bytes(range(40))
RSS = Steering(
    queue_pairs=8,
    rss=True,
    hash_types=int(~HashType(0)),
    key=KEY,
    table=tuple(range(8)),
    unclassified_queue=0,
)


def test_queue_and_hash_of_an_opened_packet_are_those_of_the_inner_packet() -> None:
    """E59, E63."""
    ctx = opening()
    ctx.steering = RSS
    rule = ctx.filters.rules[0]
    ctx.filters.rules[0] = replace(rule, vq_index=14)  # means nothing to this action
    queue, hdr, frame = arrive(ctx, tunnel())
    want = packet_hash(frame, view(frame), RSS.hash_types, KEY)
    assert (hdr.hash_value, hdr.hash_report) == want
    assert want[1] == 3
    assert queue == want[0] & 7
    # Not so a packet in error: that is delivered as the wire had it.
    _, hdr, frame = arrive(ctx, tunnel())
    assert hdr.hash_report == 1


def test_hash_is_reported_only_when_negotiated() -> None:
    ctx = make_context(ALL & ~mask(Feature.NET_F_HASH_REPORT))
    ctx.steering = RSS
    queue, hdr, _ = arrive(ctx, PLAIN)
    assert (hdr.hash_value, hdr.hash_report) == (0, 0)
    assert queue == packet_hash(PLAIN, view(PLAIN), RSS.hash_types, KEY)[0] & 7
    ctx = make_context()
    ctx.steering = replace(RSS, rss=False, queue_pairs=1)
    assert arrive(ctx, PLAIN)[1].hash_report == 2


def test_automatic_steering_follows_what_was_sent() -> None:
    ctx = make_context()
    ctx.steering = Steering(queue_pairs=4)
    for queue in (3, 1, 2):
        send(ctx, bytes(ETHER / IP(src="10.0.0.2", dst="10.0.0.1") / TCP(sport=2, dport=1)), queue=queue)
        assert arrive(ctx, PLAIN)[0] == queue


def test_no_live_queue_drops() -> None:
    ctx = make_context()
    ctx.live_rx_queues = set()
    assert arrive(ctx, PLAIN) is None
    assert refusals(ctx) == {"queue_disabled": 1}


# Recirculation: E58


def recirculating() -> DataPlaneContext:
    return opening(FfAction.IPSEC_RECIRCULATE)


def test_a_recirculated_packet_meets_the_rules_once_more() -> None:
    """INF-10."""
    ctx = recirculating()
    add_rule(ctx.filters, FfAction.DIRECT_RX_VQ, eth(), ipv4(17), udp(4000), group=2, vq_index=10)
    queue, hdr, frame = arrive(ctx, tunnel())
    assert (queue, frame[14:], hdr.flags) == (5, INNER, OK | DATA_VALID)


def test_plain_ipsec_does_not_recirculate() -> None:
    ctx = opening(FfAction.IPSEC)
    add_rule(ctx.filters, FfAction.DROP, eth(), ipv4(17), udp(4000), group=2)
    assert arrive(ctx, tunnel()) is not None


def test_a_recirculated_packet_can_be_dropped() -> None:
    ctx = recirculating()
    add_rule(ctx.filters, FfAction.DROP, eth(), ipv4(17), udp(4000), group=2)
    assert arrive(ctx, tunnel()) is None
    assert refusals(ctx) == {"rule_drop": 1}


def test_without_a_second_match_steering_decides() -> None:
    ctx = recirculating()
    ctx.steering = replace(RSS, table=(6,))
    assert arrive(ctx, tunnel())[0] == 6


def nested(depth: int, first: int = 1) -> bytes:
    """INNER in ``depth`` tunnels, sequence numbers counted from the innermost."""
    packet = INNER
    for number in range(depth):
        packet = bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=50) / Raw(seal(packet, 4, first + number)))
    return bytes(ETHER)[:12] + b"\x08\x00" + packet


def test_nested_tunnels_are_opened_twice_and_no_further() -> None:
    ctx = recirculating()
    _, hdr, frame = arrive(ctx, nested(2))
    assert frame[14:] == INNER
    assert hdr.flags == OK | DATA_VALID
    _, hdr, frame = arrive(ctx, nested(3, 10))
    assert frame[14:] == nested(1, 10)[14:]
    assert hdr.flags == OK


def test_the_sa_reported_is_the_last_that_opened_the_packet() -> None:
    ctx = recirculating()
    inbound_sa(ctx, 3, spi=0x777)
    inner = bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=50) / Raw(seal(INNER, 4, 1, 0x777)))
    _, hdr, frame = arrive(ctx, tunnel(inner))
    assert (frame[14:], hdr.resource_id, hdr.flags) == (INNER, 3, OK | DATA_VALID)
    # The second pass fails: what the first has opened is delivered in error, under the first SA.
    _, hdr, frame = arrive(ctx, tunnel(inner, sequence=2))
    assert (frame[14:], hdr.resource_id, hdr.flags) == (inner, 9, OK | ERR)
    assert refusals(ctx) == {"replay": 1}


def test_a_failed_packet_is_not_recirculated() -> None:
    ctx = recirculating()
    ctx.filters.rules[0] = replace(ctx.filters.rules[0], action=int(FfAction.IPSEC_RECIRCULATE))
    assert arrive(ctx, damaged(tunnel()))[1].flags == OK | ERR
    assert refusals(ctx) == {"bad_icv": 1}


# The January-2025 dialect


def rfc() -> DataPlaneContext:
    features = mask(Feature.F_VERSION_1, Feature.NET_F_IPSEC, Feature.NET_F_GUEST_CSUM)
    return make_context(features, RFC_2025_01)


def test_rfc_opens_by_spi_without_a_rule() -> None:
    ctx = rfc()
    inbound_sa(ctx, 9)
    _, hdr, frame = arrive(ctx, tunnel())
    assert frame[14:] == INNER
    assert hdr.flags == int(RfcFlag.SECURITY | RfcFlag.DATA_VALID)
    assert (hdr.resource_id, hdr.resource_type) == (9, INB)
    _, hdr, frame = arrive(ctx, tunnel())
    assert (frame, hdr.flags) == (tunnel(), int(RfcFlag.SECURITY | RfcFlag.SECURITY_ERR))


@pytest.mark.parametrize(
    ("port", "udp_dport", "opened"),
    [(4500, 0, True), (4501, 0, False), (53, 0, False), (5000, 5000, True), (4500, 5000, False)],
)
def test_rfc_opens_esp_in_udp_on_the_port_of_the_sa_only(port: int, udp_dport: int, opened: bool) -> None:
    """Without a rule nothing else says that a datagram is ESP (RFC 3948): chance must not claim it."""
    ctx = rfc()
    inbound_sa(ctx, 9, options=int(IpsecOption.UDP_ENCAP), udp_dport=udp_dport)
    for payload in (seal(INNER, 4), SPI.to_bytes(4, "big") + b"some other protocol"):
        wire = bytes(ETHER / IP() / UDP(sport=40000, dport=port) / Raw(payload))
        _, hdr, frame = arrive(ctx, wire)
        assert bool(hdr.flags & RfcFlag.SECURITY) is opened
        if not opened:
            assert frame == wire


def test_rfc_leaves_esp_of_no_sa_alone_unless_a_rule_wants_it_opened() -> None:
    ctx = rfc()
    _, hdr, frame = arrive(ctx, tunnel())
    assert (frame, hdr.flags) == (tunnel(), 0)
    add_rule(ctx.filters, FfAction.IPSEC, eth(), ipv4(50))
    _, hdr, frame = arrive(ctx, tunnel())
    assert (frame, hdr.flags) == (tunnel(), int(RfcFlag.SECURITY | RfcFlag.SECURITY_ERR))


# Hostile frames


@pytest.mark.parametrize("size", [0, 1, 12, 13])
def test_a_frame_without_an_ethernet_header_is_dropped(size: int) -> None:
    ctx = make_context()
    assert arrive(ctx, bytes(size)) is None
    assert refusals(ctx) == {"malformed": 1}


SEEDS = [PLAIN, tunnel(), bytes(ETHER / Dot1Q() / IPv6() / UDP()), nested(2)]


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255))), st.integers(0, 300)
)
def test_no_frame_raises(seed: bytes, changes: list[tuple[int, int]], size: int) -> None:
    frame = bytearray(seed)
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    for dialect in (V14, RFC_2025_01):
        features = ALL & dialect.known_features
        ctx = make_context(features, dialect)
        inbound_sa(ctx, 9)
        ctx.steering = RSS
        add_rule(ctx.filters, FfAction.IPSEC_RECIRCULATE, eth(), ipv4(50))
        result = arrive(ctx, bytes(frame[:size]))
        assert result is None or len(result[2]) <= max(size, 14)


def test_padding_of_a_short_wire_frame_is_not_part_of_the_result() -> None:
    ctx = opening()
    _, _, frame = arrive(ctx, tunnel() + bytes(30))
    assert frame[14:] == INNER
    assert Ether(frame)[UDP].dport == 4000


def test_with_the_mtu_negotiated_nothing_longer_is_delivered() -> None:
    context = make_context(features=ALL | mask(Feature.NET_F_MTU))
    receiver = Receiver(context)
    frame = MAC + PEER + b"\x88\xb6" + bytes(context.config.mtu)
    assert len(receiver.receive(frame)) == 1
    assert receiver.receive(frame + b"\0") == []
    assert context.counters.snapshot()["rx_refused_too_big"] == 1
    assert len(receiver.receive(frame[:12] + b"\x81\0\0\5" + frame[12:])) == 1
    assert len(Receiver(make_context()).receive(frame + b"\0")) == 1
