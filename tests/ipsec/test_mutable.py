"""What the AH integrity check sees of the IP header (RFC 4302 3.3.3.1, appendix A)."""

from __future__ import annotations

import pytest
from ipsec_samples import A4, A6, B4, B6, PADN6, ipv4, ipv6, options6, routing6

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.mutable import final_destination, immutable_part

C4 = bytes((203, 0, 113, 9))
R1, R2, R3 = (bytes(15) + bytes((n,)) for n in (1, 2, 3))
PAD = PADN6[:6]


def seen(packet: bytes, *, sending: bool = True) -> bytes:
    parsed = ip.parse(packet)
    return immutable_part(packet, ip.chain(parsed), sending=sending)


def malformed(packet: bytes) -> bool:
    with pytest.raises(PacketError) as refused:
        seen(packet)
    return refused.value.reason is Reason.MALFORMED


def test_ipv4_fields_that_change_on_the_way_count_as_zero() -> None:
    packet = ipv4(tos=0xB9, ttl=17, flags_offset=0x4000, ident=0xABCD, protocol=51)
    assert (
        seen(packet).hex()
        == "4500" + "0014" + "abcd" + "0000" + "0033" + "0000" + (A4.packed + B4.packed).hex()
    )


def test_ipv6_fields_that_change_on_the_way_count_as_zero() -> None:
    packet = ipv6(traffic_class=0xB9, flow_label=0xABCDE, hop_limit=17, next_header=51)
    assert seen(packet).hex() == "60000000" + "0000" + "3300" + (A6.packed + B6.packed).hex()


IMMUTABLE = [
    pytest.param("8203aa01", id="security"),
    pytest.param("8504aabb", id="extended security"),
    pytest.param("8604aabb", id="commercial security"),
    pytest.param("94040000", id="router alert"),
    pytest.param("95040102", id="sender directed delivery"),
    pytest.param("01010101", id="no operation"),
    pytest.param("00070707", id="nothing behind the end of the list is an option"),
]
MUTABLE = [
    pytest.param("0707040000000000", id="record route"),
    pytest.param("4408050011223344", id="timestamp"),
    pytest.param("520400010203ffff"[:8], id="traceroute"),
    pytest.param("8304aabb", id="loose route without addresses"),
    pytest.param("880400ff", id="stream id"),
    pytest.param("cd040102", id="experimental"),
    pytest.param("63040102", id="unknown"),
]


@pytest.mark.parametrize("option", IMMUTABLE)
def test_ipv4_options_that_do_not_change_are_covered(option: str) -> None:
    assert seen(ipv4(options=bytes.fromhex(option)))[20:].hex() == option


@pytest.mark.parametrize("option", MUTABLE)
def test_ipv4_options_that_may_change_are_zeroed_whole(option: str) -> None:
    data = bytes.fromhex(option)
    kind_and_length = data[: data[1]]
    expected = bytes(len(kind_and_length)) + data[len(kind_and_length) :]
    assert seen(ipv4(options=data))[20:] == expected
    mixed = b"\x94\x04\0\0" + data
    assert seen(ipv4(options=mixed))[20:] == b"\x94\x04\0\0" + expected


@pytest.mark.parametrize("kind", [131, 137])
@pytest.mark.parametrize(
    ("pointer", "sent_to"), [(4, C4), (8, C4), (12, B4.packed)], ids=["first hop", "last hop", "arrived"]
)
def test_a_source_route_predicts_the_destination(kind: int, pointer: int, sent_to: bytes) -> None:
    option = bytes((kind, 11, pointer)) + A4.packed + C4 + b"\x01"
    sender = seen(ipv4(options=option))
    assert sender[16:20] == sent_to
    assert sender[20:] == bytes(11) + b"\x01"
    assert seen(ipv4(options=option), sending=False)[16:20] == B4.packed


@pytest.mark.parametrize("options", ["94000000", "94010000", "94050000", "01010194", "44ff0000"])
def test_ipv4_options_with_impossible_lengths_are_malformed(options: str) -> None:
    assert malformed(ipv4(options=bytes.fromhex(options)))


@pytest.mark.parametrize("kind", [0, 60])
def test_ipv6_options_with_the_change_bit_lose_their_data_only(kind: int) -> None:
    stays, changes = b"\x1e\x02ab", b"\x3e\x03abc"
    before = options6(59, b"\0" + stays + changes + b"\x01\x02\0\0")
    after = options6(59, b"\0" + stays + b"\x3e\x03\0\0\0" + b"\x01\x02\0\0")
    assert seen(ipv6(before, kind))[40:] == after


@pytest.mark.parametrize("data", [b"\x01\xff\0\0\0\0", b"\0\0\0\0\0\x05", b"\x05\x05\0\0\0\0"])
def test_ipv6_options_beyond_their_header_are_malformed(data: bytes) -> None:
    assert malformed(ipv6(options6(59, data), 60))


@pytest.mark.parametrize(
    ("left", "destination", "addresses"),
    [
        (3, R3, [B6.packed, R1, R2]),  # each hop swaps the destination with the next address
        (2, R3, [R1, B6.packed, R2]),
        (1, R3, [R1, R2, B6.packed]),
        (0, B6.packed, [R1, R2, R3]),
    ],
)
def test_a_routing_header_is_seen_as_it_arrives(
    left: int, destination: bytes, addresses: list[bytes]
) -> None:
    packet = ipv6(routing6(59, [R1, R2, R3], left), 43)
    assert seen(packet)[24:40] == destination
    assert seen(packet)[40:] == routing6(59, addresses, 0)
    assert final_destination(packet, ip.chain(ip.parse(packet))) == destination
    receiver = seen(packet, sending=False)
    assert receiver[24:40] == B6.packed
    assert receiver[40:] == packet[40:]


def test_sender_and_receiver_see_the_same_octets_along_a_route() -> None:
    sent = ipv6(routing6(59, [R1, R2, R3], 3), 43)
    arrived = bytearray(sent)
    for hop in range(3):
        at = 48 + 16 * hop
        arrived[24:40], arrived[at : at + 16] = arrived[at : at + 16], arrived[24:40]
        arrived[43] -= 1
        arrived[7] -= 1
    assert seen(sent) == seen(bytes(arrived), sending=False)


def test_type_2_routing_leads_to_the_home_address() -> None:
    packet = ipv6(routing6(59, [R1], 1, kind=2), 43)
    assert seen(packet)[24:40] == R1
    assert seen(packet)[48:64] == B6.packed


@pytest.mark.parametrize(
    "header",
    [
        routing6(59, [R1], 1, kind=4),  # segment routing: where it ends is not for AH to know
        routing6(59, [R1], 2),
        bytes((59, 1, 0, 1)) + bytes(12),
    ],
)
def test_routes_that_cannot_be_predicted_are_refused_while_they_last(header: bytes) -> None:
    assert malformed(ipv6(header, 43))
    finished = header[:3] + b"\0" + header[4:]
    assert seen(ipv6(finished, 43))[40:] == finished
