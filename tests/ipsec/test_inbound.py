"""What an authentic peer may send, and finding the IPsec header of a packet (E53, E57, E65-E68)."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from ipsec_samples import (
    AH_GMAC,
    AH_MODES,
    AH_SHA1,
    B6,
    CBC_SHA256,
    ESP_MODES,
    PADN6,
    SPI,
    TUNNEL4,
    TUNNEL6,
    fragment6,
    in_sa,
    ipv4,
    ipv6,
    options6,
    out_sa,
    pair,
    params,
    routing6,
    sum16,
    udp,
)

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound, overhead
from virtio_ipsec.ipsec.sa import OutboundSa
from virtio_ipsec.ipsec.udp import encapsulate as udp_encapsulate
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

TUNNEL, TRANSPORT = ESP_MODES
AH_TUNNEL, AH_TRANSPORT = AH_MODES
ENCAP, ECN = IpsecOption.UDP_ENCAP, IpsecOption.ECN
PAD = PADN6[:6]
UDP = udp(b"some data")
INNER4, INNER6 = ipv4(UDP), ipv6(UDP)
TFC = b"\xa5" * 40


def refusal(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(PacketError) as refused:
        call(*arguments)
    return refused.value.reason


def plain(content: bytes, next_header: int) -> bytes:
    """``content`` with the trailer that RFC 4303 wants."""
    length = -(len(content) + 2) % 4
    return content + bytes(range(1, length + 1)) + bytes((length, next_header))


def sealed(sa: OutboundSa, plaintext: bytes, tos: int = 0) -> bytes:
    """ESP around any plaintext, trailer included, behind an IPv4 header."""
    header = struct.pack("!II", sa.params.spi, sa.next_sequence())
    iv = sa.iv(sa.sequence)
    return ipv4(header + iv + sa.esp.seal(header, None, iv, plaintext), 50, tos=tos)


AUTHENTIC_BUT_WRONG = [
    pytest.param(TUNNEL, INNER4 + b"\2\1\4", Reason.BAD_PADDING, id="padding"),
    pytest.param(TUNNEL, INNER4 + b"\1\xff\4", Reason.BAD_PADDING, id="pad length"),
    pytest.param(TUNNEL, plain(UDP, 17), Reason.BAD_NEXT_HEADER, id="transport payload in a tunnel"),
    pytest.param(TUNNEL, plain(INNER4, 41), Reason.BAD_INNER, id="ipv4 called ipv6"),
    pytest.param(TUNNEL, plain(INNER6, 4), Reason.BAD_INNER, id="ipv6 called ipv4"),
    pytest.param(TUNNEL, plain(INNER4[:-1], 4), Reason.BAD_INNER, id="inner cut short"),
    pytest.param(TUNNEL, plain(b"", 4), Reason.BAD_INNER, id="nothing inside"),
    pytest.param(TUNNEL, plain(b"noise", 59), Reason.DUMMY, id="dummy"),
    pytest.param(TRANSPORT, plain(b"", 59), Reason.DUMMY, id="dummy in transport mode"),
]


@pytest.mark.parametrize(("mode", "plaintext", "reason"), AUTHENTIC_BUT_WRONG)
def test_authentic_packets_with_wrong_contents_use_up_their_number(
    mode: IpsecMode, plaintext: bytes, reason: Reason
) -> None:
    sender, receiver = pair(mode)
    protected = sealed(sender, plaintext)
    with pytest.raises(PacketError) as refused:
        inbound(receiver, protected)
    assert refused.value.reason is reason
    assert all(isinstance(argument, str) for argument in refused.value.args)
    assert refused.value.__cause__ is None
    assert receiver.window.top == 1
    assert receiver.packets == (reason is Reason.DUMMY)  # the only one that passed every check
    assert refusal(inbound, receiver, protected) is Reason.REPLAY
    assert receiver.stats == {reason: 1, Reason.REPLAY: 1}


def test_a_wrong_icv_decrypts_nothing_and_marks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = pair(TUNNEL, **CBC_SHA256)
    good = outbound(sender, INNER4)
    bad = good[:-1] + bytes((good[-1] ^ 1,))
    with monkeypatch.context() as patch:
        patch.setattr("virtio_ipsec.crypto.reference.Cipher", None)  # decrypting would fail loudly
        assert refusal(inbound, receiver, bad) is Reason.BAD_ICV
    assert receiver.window.top == 0
    assert inbound(receiver, good).packet == INNER4


@pytest.mark.parametrize("length", range(40))
def test_esp_of_impossible_length_is_malformed(length: int) -> None:
    sender, receiver = pair(TUNNEL)
    protected = outbound(sender, INNER4)
    cut = ipv4(protected[20 : 20 + length], 50)
    # 36: a trailer alone, which the ICV then refuses.
    assert refusal(inbound, receiver, cut) is (Reason.BAD_ICV if length == 36 else Reason.MALFORMED)


@pytest.mark.parametrize("inner", [INNER4, INNER6], ids=["ipv4", "ipv6"])
def test_traffic_flow_padding_in_a_tunnel_ends_where_the_inner_packet_ends(inner: bytes) -> None:
    sender, receiver = pair(TUNNEL)
    next_header = 4 if inner is INNER4 else 41
    assert inbound(receiver, sealed(sender, plain(inner + TFC, next_header))).packet == inner


def test_traffic_flow_padding_in_transport_mode_ends_where_udp_ends() -> None:
    sender, receiver = pair(TRANSPORT)
    opened = inbound(receiver, sealed(sender, plain(UDP + TFC, 17)))
    assert opened.packet == ipv4(UDP)
    assert opened.next_header == 17
    tcp = bytes(20)
    assert inbound(receiver, sealed(sender, plain(tcp + TFC, 6))).packet == ipv4(tcp + TFC, 6)


@pytest.mark.parametrize("mode", [TUNNEL, AH_TUNNEL])
def test_congestion_met_in_the_tunnel_reaches_the_inner_packet(mode: IpsecMode) -> None:
    def through(inner_ecn: int, outer_ecn: int, options: int) -> Any:
        sender, receiver = pair(mode, options=options)
        protected = bytearray(outbound(sender, ipv4(UDP, tos=inner_ecn)))
        assert protected[1] & 3 == (inner_ecn if options else 0)
        protected[1] = protected[1] & 0xFC | outer_ecn
        protected[10:12] = b"\0\0"
        protected[10:12] = (0xFFFF ^ sum16(protected[:20])).to_bytes(2)
        return receiver, bytes(protected)

    receiver, marked = through(2, 3, ECN)
    assert inbound(receiver, marked).packet == ipv4(UDP, tos=3)
    receiver, marked = through(2, 3, 0)
    assert inbound(receiver, marked).packet == ipv4(UDP, tos=2)
    receiver, marked = through(0, 3, ECN)
    assert refusal(inbound, receiver, marked) is Reason.CONGESTION
    assert (receiver.packets, receiver.window.top) == (1, 1)


def test_ttl_is_decremented_inside_and_dscp_taken_from_before() -> None:
    sender, receiver = pair(TUNNEL, options=IpsecOption.DEC_TTL | IpsecOption.COPY_DSCP)
    protected = outbound(sender, ipv4(UDP, ttl=9, tos=0xB8))
    assert (protected[1], protected[8]) == (0xB8, 64)
    assert inbound(receiver, protected).packet == ipv4(UDP, ttl=8, tos=0xB8)


# --- UDP encapsulation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ESP_MODES)
def test_udp_encapsulation_over_ipv4_has_checksum_zero(mode: IpsecMode) -> None:
    sender, receiver = pair(mode, options=ENCAP, udp_sport=4501)
    protected = outbound(sender, INNER4)
    assert protected[9] == 17
    assert struct.unpack_from("!HHHH", protected, 20) == (4501, 4500, len(protected) - 20, 0)
    assert inbound(receiver, protected).packet == INNER4


@pytest.mark.parametrize("mode", ESP_MODES)
@pytest.mark.parametrize("routed", [False, True])
def test_udp_encapsulation_over_ipv6_has_a_computed_checksum(mode: IpsecMode, routed: bool) -> None:
    final = bytes(15) + b"\x09"
    packet = ipv6(routing6(17, [final], 1) + UDP, 43) if routed else INNER6
    protected = outbound(out_sa(mode, options=ENCAP, param=TUNNEL6), packet)
    at = 40 + (24 if routed and mode is TRANSPORT else 0)
    destination = final if at > 40 else protected[24:40]
    length = len(protected) - at
    pseudo = protected[8:24] + destination + struct.pack("!II", length, 17)
    assert protected[at + 6 : at + 8] != b"\0\0"
    assert sum16(pseudo + protected[at:]) == 0xFFFF


def test_a_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    # 0 stands for "no checksum" (RFC 768); exactly one of all two-octet payloads sums to it.
    values = [udp_encapsulate(bytes(32), 4500, 4500, n.to_bytes(2))[6:8] for n in range(65536)]
    assert b"\0\0" not in values
    assert b"\xff\xff" in values


def test_encapsulation_is_accepted_where_the_sa_has_it() -> None:
    protected = outbound(out_sa(TUNNEL, options=ENCAP), INNER4)
    assert refusal(inbound, in_sa(TUNNEL), protected) is Reason.NOT_IPSEC
    bare = outbound(out_sa(TUNNEL), INNER4)
    assert inbound(in_sa(TUNNEL, options=ENCAP), bare).packet == INNER4


def test_octets_behind_the_udp_length_are_not_esp() -> None:
    protected = outbound(out_sa(TUNNEL, options=ENCAP), INNER4)
    longer = ipv4(protected[20:] + bytes(5), 17)
    assert inbound(in_sa(TUNNEL, options=ENCAP), longer).packet == INNER4


# --- lookup ----------------------------------------------------------------------------------------------------

ESP = struct.pack("!II", SPI, 77) + bytes(40)
AH = struct.pack("!BBHII", 17, 4, 0, SPI, 78) + bytes(12) + UDP
IN_UDP = struct.pack("!HHHH", 999, 4500, 8 + len(ESP), 0) + ESP

FOUND = [
    pytest.param(ipv4(ESP, 50), 50, 77, 20, False, id="esp"),
    pytest.param(ipv4(ESP, 50, options=b"\x94\4\0\0"), 50, 77, 24, False, id="esp behind options"),
    pytest.param(ipv4(AH, 51), 51, 78, 20, False, id="ah"),
    pytest.param(ipv4(IN_UDP, 17), 50, 77, 28, True, id="esp in udp"),
    pytest.param(ipv6(ESP, 50), 50, 77, 40, False, id="esp over ipv6"),
    pytest.param(ipv6(AH, 51), 51, 78, 40, False, id="ah over ipv6"),
    pytest.param(ipv6(IN_UDP, 17), 50, 77, 48, True, id="esp in udp over ipv6"),
    pytest.param(
        ipv6(options6(43, PAD) + routing6(50, [B6.packed], 0) + ESP, 0),
        50,
        77,
        72,
        False,
        id="esp behind headers",
    ),
    pytest.param(ipv6(options6(17, PAD) + IN_UDP, 60), 50, 77, 56, True, id="esp in udp behind options"),
    pytest.param(ipv6(fragment6(50) + ESP, 44), 50, 77, 40, False, id="atomic fragment"),
]


@pytest.mark.parametrize(("packet", "protocol", "sequence", "offset", "in_udp"), FOUND)
def test_the_header_is_found(packet: bytes, protocol: int, sequence: int, offset: int, in_udp: bool) -> None:
    found = find_spi(packet)
    assert found is not None
    assert (found.protocol, found.spi, found.sequence) == (protocol, SPI, sequence)
    assert (found.offset, found.udp) == (offset, in_udp)
    assert (found.udp_sport, found.udp_dport) == ((999, 4500) if in_udp else (0, 0))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\x01\x08\x00" * 7, id="arp"),
        pytest.param(ipv4(bytes(20), 6), id="tcp"),
        pytest.param(ipv4(ESP[:7], 50), id="esp cut short"),
        pytest.param(ipv4(AH[:11], 51), id="ah cut short"),
        pytest.param(ipv4(bytes(4) + ESP[4:], 50), id="spi 0"),
        pytest.param(ipv4(udp(b"\0\0\0\0ike......", 500, 4500), 17), id="non-esp marker"),
        pytest.param(ipv4(udp(b"\xff", 4500, 4500), 17), id="keepalive"),
        pytest.param(ipv4(udp(b"\xff\xff\xff\xff", 4500, 4500), 17), id="too short for esp"),
        pytest.param(ipv4(udp(b"", 4500, 4500), 17), id="empty udp"),
        pytest.param(ipv4(IN_UDP[:7], 17), id="udp cut short"),
        pytest.param(ipv4(IN_UDP[:4] + b"\xff\xff" + IN_UDP[6:], 17), id="udp length too large"),
        pytest.param(ipv4(IN_UDP[:4] + b"\0\7" + IN_UDP[6:], 17), id="udp length too small"),
        pytest.param(ipv6(fragment6(50, more=True) + ESP, 44), id="first fragment"),
        pytest.param(ipv6(options6(0, PAD) + options6(50, PAD) + ESP, 60), id="misplaced hop-by-hop"),
    ],
)
def test_everything_else_is_no_ipsec(packet: bytes) -> None:
    assert find_spi(packet) is None


@pytest.mark.parametrize("payload", [bytes(4), bytes(4) + b"ike", b"\xff"])
def test_ike_and_keepalives_are_no_malformed_esp(payload: bytes) -> None:
    receiver = in_sa(TUNNEL, options=ENCAP)
    assert refusal(inbound, receiver, ipv4(udp(payload, 4500, 4500), 17)) is Reason.NOT_IPSEC


def test_an_sa_refuses_what_belongs_to_another() -> None:
    protected = outbound(out_sa(TUNNEL), INNER4)
    for receiver in (in_sa(TUNNEL, spi=5), in_sa(AH_TUNNEL)):
        assert refusal(inbound, receiver, protected) is Reason.UNKNOWN_SA
    assert refusal(inbound, in_sa(TUNNEL), INNER4) is Reason.UNKNOWN_SA  # read as ESP in UDP
    assert refusal(inbound, in_sa(TUNNEL), ipv4(bytes(20), 6)) is Reason.NOT_IPSEC


def test_a_header_found_before_spares_the_second_look() -> None:
    protected = outbound(out_sa(TUNNEL), INNER4)
    found = find_spi(protected)
    assert inbound(in_sa(TUNNEL), b"not looked at", found).packet == INNER4


# --- AH lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "length4", "length6"),
    [({}, 28, 32), (AH_SHA1, 24, 24), (AH_GMAC, 36, 40)],
    ids=["sha256", "sha1", "gmac"],
)
def test_ah_is_padded_to_4_or_8_octets(fields: dict[str, Any], length4: int, length6: int) -> None:
    for packet, at, length in ((INNER4, 20, length4), (INNER6, 40, length6)):
        protected = outbound(out_sa(AH_TRANSPORT, **fields), packet)
        assert len(protected) - len(packet) == length
        assert (protected[at + 1] + 2) * 4 == length
        assert overhead(params(AH_TRANSPORT, Direction.OUTBOUND, **fields)) == length6


def test_ah_padded_to_8_octets_over_ipv4_is_accepted_as_linux_sends_it() -> None:
    receiver = in_sa(AH_TRANSPORT)
    fixed = struct.pack("!BBHII", 17, 6, 0, SPI, 1)
    header = bytearray(ipv4(fixed + bytes(20) + UDP, 51))
    covered = bytearray(header)
    covered[8] = 0
    covered[10:12] = b"\0\0"
    header[32:48] = receiver.ah.icv(bytes(covered))
    assert inbound(receiver, bytes(header)).packet == ipv4(UDP)


@pytest.mark.parametrize("length", [0, 2, 4, 7, 255])
def test_other_ah_lengths_are_malformed(length: int) -> None:
    sender, receiver = pair(AH_TRANSPORT)
    protected = bytearray(outbound(sender, INNER4))
    assert protected[21] == 5
    protected[21] = length
    assert refusal(inbound, receiver, bytes(protected)) is Reason.MALFORMED


def test_ah_keeps_a_next_header_of_59() -> None:
    sender, receiver = pair(AH_TRANSPORT)
    packet = ipv6(b"", 59)
    assert inbound(receiver, outbound(sender, packet)).packet == packet


# --- room for the driver ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, CBC_SHA256], ids=["gcm", "cbc"])
@pytest.mark.parametrize("options", [0, ENCAP])
@pytest.mark.parametrize("param", [TUNNEL4, TUNNEL6], ids=["outer4", "outer6"])
def test_overhead_is_exact_for_a_length_and_the_worst_case_is_reached(
    fields: dict[str, Any], options: int, param: object
) -> None:
    sa = out_sa(TUNNEL, options=options, param=param, **fields)
    added = set()
    for length in range(20, 60):
        grown = len(outbound(sa, ipv4(bytes(length), 6))) - length - 20
        assert grown == overhead(sa.params, length + 20)
        added.add(grown)
    assert max(added) == overhead(sa.params)
    transport = out_sa(TRANSPORT, options=options, **fields)
    for length in range(20, 60):
        grown = len(outbound(transport, ipv4(bytes(length), 6))) - length - 20
        assert grown == overhead(transport.params, length)


def test_overhead_of_an_inbound_tunnel_assumes_the_larger_header() -> None:
    inbound_params = params(TUNNEL, Direction.INBOUND)
    assert overhead(inbound_params) == overhead(params(TUNNEL, Direction.OUTBOUND, param=TUNNEL6))
