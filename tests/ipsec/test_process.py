"""Whole packets through an SA: modes, families, sequence numbers, refusals, lookup (E42, E54, E57, E64-E70)."""

from __future__ import annotations

from typing import Any

import pytest
from ipsec_samples import (
    AH_MODES,
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

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound, overhead
from virtio_ipsec.ipsec.sa import OutboundSa
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

TUNNEL, TRANSPORT = ESP_MODES
AH_TUNNEL, AH_TRANSPORT = AH_MODES
ESN, ENCAP, ECN = IpsecOption.ESN, IpsecOption.UDP_ENCAP, IpsecOption.ECN
PAD = PADN6[:6]
UDP = udp(b"some data")
PACKETS = {
    "ipv4": ipv4(UDP),
    "ipv4 options": ipv4(UDP, options=b"\x94\x04\0\0\x44\x08\x05\0\0\0\0\0", flags_offset=0x4000),
    "ipv4 empty": ipv4(b"", 0),
    "ipv6": ipv6(UDP, traffic_class=0x2A, flow_label=0x12345),
    "ipv6 extensions": ipv6(
        options6(60, b"\x3e\x04\1\2\3\4")
        + options6(43, PAD)
        + routing6(60, [B6.packed], 0)
        + options6(17, b"\x3e\x04\1\2\3\4")
        + UDP,
        0,
    ),
    "ipv6 empty": ipv6(b"", 58),
}


def refusal(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(PacketError) as refused:
        call(*arguments)
    return refused.value.reason


def suite_fields(suite: Suite, key_len: int) -> dict[str, Any]:
    return {
        "cipher_algo": suite.cipher_algo,
        "cipher_key": bytes(range(key_len)) if suite.cipher_key_lens != {0} else b"",
        "auth_algo": suite.auth_algo,
        "auth_key": bytes(
            range(50, 50 + (key_len if key_len in suite.auth_key_lens else max(suite.auth_key_lens)))
        ),
        "salt": b"\xf0\x0d\xca\xfe",
    }


def all_suites(protocol: Protocol) -> list[Any]:
    return [
        pytest.param(suite_fields(suite, length), id=f"{suite.name}-{length}")
        for suite in SUITES
        if suite.protocol is protocol
        for length in sorted((suite.cipher_key_lens | suite.auth_key_lens) - {0})
        if length in suite.cipher_key_lens or suite.cipher_key_lens == {0}
    ]


def aged(packet: bytes) -> bytes:
    """The packet five hops later."""
    data = bytearray(packet)
    if data[0] >> 4 == 6:
        data[7] -= 5
        return bytes(data)
    data[8] -= 5
    data[10:12] = b"\0\0"
    data[10:12] = (0xFFFF ^ sum16(data[: (data[0] & 15) * 4])).to_bytes(2)
    return bytes(data)


@pytest.mark.parametrize("mode", ESP_MODES)
@pytest.mark.parametrize("options", [0, ESN, ENCAP, ESN | ENCAP], ids=["plain", "esn", "udp", "esn+udp"])
@pytest.mark.parametrize("algorithms", all_suites(Protocol.ESP))
def test_esp_delivers_what_was_sent(mode: IpsecMode, options: int, algorithms: dict[str, Any]) -> None:
    for param in (TUNNEL4, TUNNEL6) if mode is TUNNEL else (TUNNEL4,):
        sender, receiver = pair(mode, param=param, options=options, **algorithms)
        for name, packet in PACKETS.items():
            protected = outbound(sender, packet)
            assert inbound(receiver, protected).packet == packet, name
            assert len(protected) - len(packet) <= overhead(sender.params), name


@pytest.mark.parametrize("mode", AH_MODES)
@pytest.mark.parametrize("options", [0, ESN], ids=["plain", "esn"])
@pytest.mark.parametrize("algorithms", all_suites(Protocol.AH))
def test_ah_delivers_what_was_sent_some_hops_later(
    mode: IpsecMode, options: int, algorithms: dict[str, Any]
) -> None:
    for param in (TUNNEL4, TUNNEL6) if mode is AH_TUNNEL else (TUNNEL4,):
        sender, receiver = pair(mode, param=param, options=options, **algorithms)
        for name, packet in PACKETS.items():
            protected = outbound(sender, packet)
            expected = packet if mode is AH_TUNNEL else aged(packet)
            assert inbound(receiver, aged(protected)).packet == expected, name
            assert len(protected) - len(packet) <= overhead(sender.params), name


@pytest.mark.parametrize("mode", list(IpsecMode))
@pytest.mark.parametrize("family", [4, 6])
def test_every_covered_octet_is_protected(mode: IpsecMode, family: int) -> None:
    sender = out_sa(mode)
    protected = outbound(sender, ipv4(UDP) if family == 4 else ipv6(UDP))
    found = find_spi(protected)
    assert found is not None
    begin = 0 if mode in AH_MODES else found.offset
    accepted = []
    for at in range(begin, len(protected)):
        receiver = in_sa(mode)
        spoilt = bytearray(protected)
        spoilt[at] ^= 0x10
        if spoilt[0] >> 4 == 4:  # the header checksum shall not be what notices
            spoilt[10:12] = b"\0\0"
            spoilt[10:12] = (0xFFFF ^ sum16(spoilt[: (spoilt[0] & 15) * 4])).to_bytes(2)
        try:
            inbound(receiver, bytes(spoilt))
        except PacketError:
            assert receiver.packets == receiver.window.top == 0
        else:
            accepted.append(at)
    mutable = set() if mode not in AH_MODES else {1, 6, 8, 10, 11} if protected[0] >> 4 == 4 else {1, 2, 3, 7}
    assert set(accepted) <= mutable


def test_transport_mode_leaves_ipv4_options_in_front() -> None:
    options = b"\x94\x04\0\0"
    protected = outbound(out_sa(TRANSPORT), ipv4(UDP, options=options))
    assert protected[0] == 0x46
    assert protected[9] == 50
    assert protected[20:24] == options
    assert protected[24:28] == SPI.to_bytes(4)
    assert sum16(protected[:24]) == 0xFFFF
    assert int.from_bytes(protected[2:4]) == len(protected)


def test_transport_mode_protects_options_for_the_final_destination() -> None:
    front = options6(43, PAD) + routing6(44, [B6.packed], 0) + fragment6(60)
    packet = ipv6(front + options6(17, PAD) + UDP, 0)
    protected = outbound(out_sa(TRANSPORT), packet)
    kept = 40 + len(front)
    assert protected[8 : kept - 8] == packet[8 : kept - 8]
    assert protected[kept - 8] == 50
    assert protected[kept : kept + 4] == SPI.to_bytes(4)
    assert int.from_bytes(protected[4:6]) == len(protected) - 40


@pytest.mark.parametrize(
    "fragment",
    [
        ipv4(UDP, flags_offset=0x2000),
        ipv4(UDP, flags_offset=3),
        ipv6(fragment6(17, more=True) + UDP, 44),
        ipv6(fragment6(17, offset=2) + UDP, 44),
    ],
)
def test_fragments_go_through_tunnels_only(fragment: bytes) -> None:
    for mode in (TRANSPORT, AH_TRANSPORT):
        sa = out_sa(mode)
        assert refusal(outbound, sa, fragment) is Reason.FRAGMENT
        assert sa.sequence == 0
        assert sa.stats == {Reason.FRAGMENT: 1}
    for mode in (TUNNEL, AH_TUNNEL):
        sender, receiver = pair(mode)
        assert inbound(receiver, outbound(sender, fragment)).packet == fragment


def test_ah_refuses_an_atomic_fragment_and_esp_takes_it() -> None:
    packet = ipv6(fragment6(17) + UDP, 44)
    assert refusal(outbound, out_sa(AH_TRANSPORT), packet) is Reason.FRAGMENT
    sender, receiver = pair(TRANSPORT)
    assert inbound(receiver, outbound(sender, packet)).packet == ipv6(UDP)


def test_outer_fragments_are_not_looked_into() -> None:
    for mode in IpsecMode:
        whole = bytearray(outbound(out_sa(mode), ipv4(UDP)))
        for word in (b"\x20\0", b"\0\1"):
            whole[6:8] = word
            whole[10:12] = b"\0\0"
            whole[10:12] = (0xFFFF ^ sum16(whole[:20])).to_bytes(2)
            assert find_spi(bytes(whole)) is None
            assert refusal(inbound, in_sa(mode), bytes(whole)) is Reason.FRAGMENT


@pytest.mark.parametrize("mode", list(IpsecMode))
@pytest.mark.parametrize("packet", [ipv4(UDP), ipv6(UDP)], ids=["ipv4", "ipv6"])
def test_ethernet_padding_is_no_part_of_the_packet(mode: IpsecMode, packet: bytes) -> None:
    sender, receiver = pair(mode)
    protected = outbound(sender, packet + bytes(11))
    assert inbound(receiver, protected + bytes(9)).packet == packet


@pytest.mark.parametrize("mode", list(IpsecMode))
def test_a_damaged_outer_checksum_is_refused(mode: IpsecMode) -> None:
    sender, receiver = pair(mode)
    protected = bytearray(outbound(sender, ipv4(UDP)))
    protected[10] ^= 1
    assert refusal(inbound, receiver, bytes(protected)) is Reason.MALFORMED


# --- sequence numbers and IVs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "last"), [(0, 2**32 - 1), (ESN, 2**64 - 1)])
@pytest.mark.parametrize("mode", list(IpsecMode))
def test_outbound_stops_behind_the_last_sequence_number(mode: IpsecMode, options: int, last: int) -> None:
    sender, receiver = pair(mode, options=options, esn=last - 1)
    for expected in (last - 1, last):
        protected = outbound(sender, ipv4(UDP))
        assert inbound(receiver, protected).sequence == sender.sequence == expected
    for _ in range(2):
        assert refusal(outbound, sender, ipv4(UDP)) is Reason.SEQUENCE_OVERFLOW
    assert sender.sequence == last
    assert sender.packets == 2


@pytest.mark.parametrize("mode", list(IpsecMode))
def test_no_number_above_the_ceiling_is_used_until_it_is_raised(mode: IpsecMode) -> None:
    sender, receiver = pair(mode)
    sender.set_ceiling(1)
    assert inbound(receiver, outbound(sender, ipv4(UDP))).sequence == 1
    assert refusal(outbound, sender, ipv4(UDP)) is Reason.HELD
    assert (sender.sequence, sender.packets) == (1, 1)
    sender.set_ceiling(2)
    assert inbound(receiver, outbound(sender, ipv4(UDP))).sequence == 2


@pytest.mark.parametrize("mode", list(IpsecMode))
def test_esn_goes_over_the_32_bit_border_in_disorder(mode: IpsecMode) -> None:
    sender, receiver = pair(mode, options=ESN, esn=2**32 - 3)
    packets = [outbound(sender, ipv4(UDP)) for _ in range(6)]
    for index in (0, 4, 2, 5, 1, 3):
        assert inbound(receiver, packets[index]).sequence == 2**32 - 3 + index
    for packet in packets:
        assert refusal(inbound, receiver, packet) is Reason.REPLAY


def test_a_packet_authenticated_under_another_upper_half_is_refused() -> None:
    sender = out_sa(TUNNEL, options=ESN, esn=2**32 + 5)
    receiver = in_sa(TUNNEL, options=ESN)
    assert refusal(inbound, receiver, outbound(sender, ipv4(UDP))) is Reason.BAD_ICV
    assert receiver.window.top == 0


def test_sequence_numbers_begin_at_one() -> None:
    for mode in IpsecMode:
        found = find_spi(outbound(out_sa(mode), ipv4(UDP)))
        assert found is not None
        assert found.sequence == 1


def test_counter_ivs_are_base_plus_sequence_and_wrap() -> None:
    sa = OutboundSa(params(TUNNEL, Direction.OUTBOUND), lambda n: b"\xff" * n)
    ivs = [int.from_bytes(outbound(sa, ipv4(UDP))[28:36]) for _ in range(3)]
    assert ivs == [0, 1, 2]


def test_cbc_ivs_are_drawn_for_every_packet() -> None:
    drawn = []

    def rng(count: int) -> bytes:
        drawn.append(count)
        return bytes((len(drawn),)) * count

    sa = OutboundSa(params(TUNNEL, Direction.OUTBOUND, **CBC_SHA256), rng)
    ivs = [outbound(sa, ipv4(UDP))[28:44] for _ in range(3)]
    assert drawn == [16, 16, 16]
    assert ivs == [bytes((n,)) * 16 for n in (1, 2, 3)]


def test_the_identification_of_a_tunnel_header_follows_the_sequence_number() -> None:
    sa = out_sa(TUNNEL, esn=0xFFFF)
    idents = [int.from_bytes(outbound(sa, ipv4(UDP))[4:6]) for _ in range(3)]
    assert idents == [0xFFFF, 0, 1]


def test_a_refused_packet_takes_no_sequence_number_and_no_octet_of_lifetime() -> None:
    big = ipv4(bytes(65500), 6)
    route = ipv6(routing6(17, [B6.packed], 1, kind=4) + UDP, 43)
    for mode, packet, reason, options in [
        (TUNNEL, b"", Reason.NOT_IP, 0),
        (TUNNEL, ipv4(UDP)[:-1], Reason.MALFORMED, 0),
        (TUNNEL, ipv4(UDP, ttl=1), Reason.TTL_EXPIRED, IpsecOption.DEC_TTL),
        (TUNNEL, big, Reason.TOO_BIG, 0),
        (AH_TUNNEL, big, Reason.TOO_BIG, 0),
        (TRANSPORT, big, Reason.TOO_BIG, 0),
        (TRANSPORT, big, Reason.TOO_BIG, ENCAP),
        (AH_TRANSPORT, route, Reason.MALFORMED, 0),
        (AH_TRANSPORT, ipv4(UDP, options=b"\x44\xff\0\0"), Reason.MALFORMED, 0),
        (TRANSPORT, route, Reason.MALFORMED, ENCAP),
    ]:
        sa = out_sa(mode, options=options)
        assert refusal(outbound, sa, packet) is reason
        assert (sa.sequence, sa.packets, sa.bytes) == (0, 0, 0)
        assert sa.stats == {reason: 1}


@pytest.mark.parametrize(("param", "room"), [(TUNNEL4, 65535 - 20), (TUNNEL6, 65535)])
def test_the_largest_packet_that_fits_is_sent(param: object, room: int) -> None:
    inner = (room - 8 - 8 - 16) // 4 * 4 - 2  # SPI and sequence number, IV, ICV, trailer
    sender, receiver = pair(TUNNEL, param=param)
    packet = ipv4(bytes(inner - 20), 6)
    assert inbound(receiver, outbound(sender, packet)).packet == packet
    assert refusal(outbound, sender, ipv4(bytes(inner - 20 + 1), 6)) is Reason.TOO_BIG


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *((mode, 0) for mode in (*ESP_MODES, *AH_MODES)),
        *((mode, ENCAP) for mode in ESP_MODES),
        *((mode, IpsecOption.COPY_DF) for mode in (TUNNEL, AH_TUNNEL)),
    ],
)
@pytest.mark.parametrize("param", [TUNNEL4, TUNNEL6], ids=["over ipv4", "over ipv6"])
def test_the_mtu_binds_what_may_not_be_fragmented_and_costs_no_number(
    mode: IpsecMode, options: int, param: object
) -> None:
    """The bound is the length that the result really has; DF and version are read from its header."""
    for packet in (*PACKETS.values(), ipv4(UDP, flags_offset=0x4000)):
        sender = out_sa(mode, options=options, param=param)
        result = outbound(sender, packet)
        assert outbound(sender, packet, len(result))[:4] == result[:4]
        assert sender.sequence == sender.packets == 2
        if result[0] >> 4 == 6 or result[6] & 0x40:
            assert refusal(outbound, sender, packet, len(result) - 1) is Reason.TOO_BIG
            assert sender.sequence == sender.packets == 2
        else:
            assert len(outbound(sender, packet, len(result) - 1)) == len(result)
