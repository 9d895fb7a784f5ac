"""IP headers: lengths, extension headers, where transport mode cuts, checksums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipsec_samples import A6, B6, PADN6, fragment6, ipv4, ipv6, options6, routing6, sum16, udp

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip

PAD = PADN6[:6]
UDP = udp(b"data")
RH = routing6(17, [B6.packed], 1)


def reason(data: bytes) -> Reason:
    with pytest.raises(PacketError) as refused:
        ip.chain(ip.parse(data))
    return refused.value.reason


def test_headers_are_read() -> None:
    packet = ip.parse(ipv4(UDP, options=b"\x94\x04\0\0", tos=0xB9, ttl=3, flags_offset=0x4000))
    assert (packet.version, packet.header_len, packet.traffic_class, packet.ttl) == (4, 24, 0xB9, 3)
    assert (packet.protocol, packet.flags_offset) == (17, 0x4000)
    packet = ip.parse(ipv6(UDP, traffic_class=0xB9, hop_limit=3, flow_label=0xFFFFF))
    assert (packet.version, packet.header_len, packet.traffic_class, packet.ttl) == (6, 40, 0xB9, 3)
    assert (packet.protocol, packet.flags_offset) == (17, 0)


@pytest.mark.parametrize("packet", [ipv4(UDP), ipv6(UDP), ipv6(b"", 59)])
def test_what_lies_behind_the_ip_length_is_cut_off(packet: bytes) -> None:
    assert ip.parse(packet + bytes(18)).data == packet


@pytest.mark.parametrize("data", [b"", b"\0" * 60, b"\x50" + bytes(60), b"\xff"])
def test_other_versions_are_not_ip(data: bytes) -> None:
    assert reason(data) is Reason.NOT_IP


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(ipv4(UDP)[:19], id="ipv4 header short"),
        pytest.param(ipv6(UDP)[:39], id="ipv6 header short"),
        pytest.param(ipv4(UDP)[:-1], id="ipv4 short"),
        pytest.param(ipv6(UDP)[:-1], id="ipv6 short"),
        pytest.param(b"\x44" + ipv4(UDP)[1:], id="ihl 4"),
        pytest.param(b"\x4f" + ipv4(UDP)[1:], id="ihl beyond the packet"),
        pytest.param(ipv4()[:2] + b"\0\x13" + ipv4()[4:], id="total below header"),
        pytest.param(ipv6()[:6] + b"\0" + ipv6()[7:] + options6(59, b"\xc2\4\0\1\0\0"), id="jumbogram"),
        pytest.param(ipv6(b"\x11\0\0\0", 60), id="extension below 8 octets"),
        pytest.param(ipv6(b"\x11\1" + bytes(6), 60), id="extension beyond the packet"),
    ],
)
def test_lengths_that_disagree_are_malformed(data: bytes) -> None:
    assert reason(data) is Reason.MALFORMED


@pytest.mark.parametrize("packet", [ipv4(UDP), ipv6(UDP)], ids=["ipv4", "ipv6"])
def test_every_shorter_packet_is_malformed(packet: bytes) -> None:
    for length in range(1, len(packet)):
        assert reason(packet[:length]) is Reason.MALFORMED


def test_a_jumbogram_is_refused_by_its_fixed_header() -> None:
    with pytest.raises(PacketError) as refused:
        ip.parse(ipv6(b"", 0))
    assert refused.value.reason is Reason.MALFORMED
    assert ip.parse(ipv6(b"", 59)).data == ipv6(b"", 59)


CHAINS = [
    # kinds in order, protocol at the end, (kept kinds) in front of a transport mode header
    pytest.param(UDP, 17, [], 17, [], id="none"),
    pytest.param(options6(17, PAD) + UDP, 0, [0], 17, [0], id="hop-by-hop"),
    pytest.param(options6(17, PAD) + UDP, 60, [60], 17, [], id="destination options are protected"),
    pytest.param(RH + UDP, 43, [43], 17, [43], id="routing"),
    pytest.param(fragment6(17) + UDP, 44, [44], 17, [44], id="atomic fragment"),
    pytest.param(
        options6(60, PAD) + options6(43, PAD) + routing6(60, [B6.packed], 0) + options6(17, PAD) + UDP,
        0,
        [0, 60, 43, 60],
        17,
        [0, 60, 43],
        id="options before a routing header stay, those behind it are protected",
    ),
    pytest.param(
        options6(60, PAD) + options6(60, PAD) + options6(50, PAD), 0, [0, 60, 60], 50, [0], id="two"
    ),
    pytest.param(
        options6(0, PAD) + options6(17, PAD), 60, [60], 0, [], id="hop-by-hop behind others ends it"
    ),
    pytest.param(options6(59, PAD), 0, [0], 59, [0], id="no next header"),
]


@pytest.mark.parametrize(("payload", "first", "kinds", "protocol", "kept"), CHAINS)
def test_extension_headers_are_walked_and_split(
    payload: bytes, first: int, kinds: list[int], protocol: int, kept: list[int]
) -> None:
    packet = ip.parse(ipv6(payload, first))
    headers = ip.chain(packet)
    assert [ext.kind for ext in headers.extensions] == kinds
    assert headers.protocol == protocol == packet.data[headers.protocol_at]
    split = ip.transport_split(packet, headers)
    assert [ext.kind for ext in split.extensions] == kept
    assert split.protocol == packet.data[split.protocol_at] == [*kinds, protocol][len(kept)]
    ends = [40, *(ext.offset + ext.length for ext in headers.extensions)]
    assert headers.offset == ends[-1]
    assert split.offset == ends[len(kept)]


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(UDP), False),
        (ipv4(UDP, flags_offset=0x4000), False),
        (ipv4(UDP, flags_offset=0x2000), True),
        (ipv4(UDP, flags_offset=1), True),
        (ipv6(UDP), False),
        (ipv6(fragment6(17) + UDP, 44), False),
        (ipv6(fragment6(17, more=True) + UDP, 44), True),
        (ipv6(fragment6(17, offset=1) + UDP, 44), True),
        (ipv6(options6(44, PAD) + fragment6(17, more=True) + UDP, 0), True),
    ],
)
def test_fragments_are_told_from_whole_packets(packet: bytes, expected: bool) -> None:
    parsed = ip.parse(packet)
    assert ip.is_fragment(parsed, ip.chain(parsed)) is expected


def test_an_atomic_fragment_loses_its_header_as_in_reassembly() -> None:
    for before, after in [
        (ipv6(fragment6(17) + UDP, 44), ipv6(UDP, 17)),
        (ipv6(options6(44, PAD) + fragment6(17) + UDP, 0), ipv6(options6(17, PAD) + UDP, 0)),
    ]:
        packet = ip.parse(before)
        assert ip.without_atomic_fragment(packet, ip.chain(packet)).data == after
    untouched = ip.parse(ipv6(RH + UDP, 43))
    assert ip.without_atomic_fragment(untouched, ip.chain(untouched)) is untouched


@given(st.binary(max_size=90))
def test_the_checksum_is_the_sum_word_by_word(data: bytes) -> None:
    assert ip.checksum(data) == 0xFFFF ^ sum16(data)


@given(st.integers(0, 255), st.sampled_from([1, 8]), st.integers(0, 0xFFFF))
def test_changing_an_octet_updates_the_checksum(value: int, at: int, ident: int) -> None:
    before = ipv4(UDP, ident=ident)
    changed = ip.with_octet(ip.parse(before), at, value)
    assert changed[at] == value
    assert sum16(changed[:20]) == 0xFFFF
    assert (
        changed[:at] + before[at : at + 1] + changed[at + 1 : 10] + changed[12:] == before[:10] + before[12:]
    )
    spoilt = before[:10] + bytes((before[10] ^ 0x55,)) + before[11:]
    assert ip.checksum(ip.with_octet(ip.parse(spoilt), at, value)[:20]) != 0


def test_length_fields_have_an_end() -> None:
    head4, head6 = ipv4(), ipv6()
    assert ip.header_for(head4, 9, 50, 65515)[2:4] == b"\xff\xff"
    assert ip.header_for(head6, 6, 50, 65535)[4:6] == b"\xff\xff"
    for head, at, length in ((head4, 9, 65516), (head6, 6, 65536), (head6 + options6(17, PAD), 6, 65528)):
        with pytest.raises(PacketError) as refused:
            ip.header_for(head, at, 50, length)
        assert refused.value.reason is Reason.TOO_BIG


def test_the_samples_are_what_they_say() -> None:
    assert ipv6(UDP)[8:24] == A6.packed
    assert sum16(ipv4(UDP)[:20]) == 0xFFFF
