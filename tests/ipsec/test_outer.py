"""The tunnel header (RFC 4301 5.1.2, RFC 6040; E26, E67)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from ipsec_samples import TUNNEL4, TUNNEL6, ipv4, ipv6, sum16, udp

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.outer import (
    CE,
    DECAPSULATED,
    ECT0,
    ECT1,
    NOT_ECT,
    TunnelHeader,
    with_congestion_mark,
    with_ttl_decremented,
)
from virtio_ipsec.wire.numbers import IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

UDP = udp(b"data")
INNER = {4: ipv4(UDP, tos=0b101110_10, flags_offset=0x4000), 6: ipv6(UDP, traffic_class=0b101110_01)}


def header(param: TunnelIPv4 | TunnelIPv6, inner: bytes, options: int = 0, ident: int = 0x1234) -> bytes:
    return TunnelHeader(param, options).build(ip.parse(inner), 50, 100, ident)


def test_an_ipv4_tunnel_header_field_by_field() -> None:
    param = replace(TUNNEL4, dscp=46, df=1, ttl=9)
    made = header(param, INNER[4])
    assert made[:10].hex() == "45b8" + "0078" + "1234" + "4000" + "0932"
    assert made[12:] == IPv4Address("192.0.2.1").packed + IPv4Address("198.51.100.2").packed
    assert sum16(made) == 0xFFFF


def test_an_ipv6_tunnel_header_field_by_field() -> None:
    param = replace(TUNNEL6, dscp=46, flabel=0xABCDE, hlimit=9)
    made = header(param, INNER[6])
    assert made[:8].hex() == "6b8abcde" + "0064" + "3209"
    assert made[8:] == IPv6Address("2001:db8:a::1").packed + IPv6Address("2001:db8:b::2").packed


def test_defaults_are_ttl_64_and_nothing_copied() -> None:
    assert header(TUNNEL4, INNER[4])[:9].hex() == "4500" + "0078" + "1234" + "0000" + "40"
    assert header(TUNNEL6, INNER[6])[:8].hex() == "60000000" + "0064" + "3240"


@pytest.mark.parametrize("inner", [4, 6])
def test_dscp_and_ecn_are_copied_apart(inner: int) -> None:
    ecn = INNER[inner][1] & 3 if inner == 4 else INNER[inner][1] >> 4 & 3
    param4, param6 = replace(TUNNEL4, dscp=8), replace(TUNNEL6, dscp=8)
    for options, expected in [
        (0, 8 << 2),
        (IpsecOption.COPY_DSCP, 46 << 2),
        (IpsecOption.ECN, 8 << 2 | ecn),
        (IpsecOption.COPY_DSCP | IpsecOption.ECN, 46 << 2 | ecn),
    ]:
        assert header(param4, INNER[inner], options)[1] == expected
        assert int.from_bytes(header(param6, INNER[inner], options)[:4]) >> 20 & 0xFF == expected


@pytest.mark.parametrize(
    ("inner", "configured", "copy", "expected"),
    [
        (ipv4(UDP, flags_offset=0x4000), 0, False, False),
        (ipv4(UDP, flags_offset=0x4000), 0, True, True),
        (ipv4(UDP), 1, False, True),
        (ipv4(UDP), 1, True, False),
        (ipv4(UDP, flags_offset=0x2001), 1, True, False),  # of a fragment's word only DF is copied
        (ipv6(UDP), 0, True, True),  # IPv6 is never fragmented on its way
        (ipv6(UDP), 0, False, False),
    ],
)
def test_do_not_fragment(inner: bytes, configured: int, copy: bool, expected: bool) -> None:
    options = IpsecOption.COPY_DF if copy else 0
    made = header(replace(TUNNEL4, df=configured), inner, options)
    assert made[6:8] == (b"\x40\0" if expected else b"\0\0")


@pytest.mark.parametrize("build", [ipv4, ipv6])
def test_the_inner_ttl_is_decremented_with_its_checksum(build: object) -> None:
    assert build in (ipv4, ipv6)
    for ttl in (2, 64, 255):
        before = ipv4(UDP, ttl=ttl) if build is ipv4 else ipv6(UDP, hop_limit=ttl)
        after = ipv4(UDP, ttl=ttl - 1) if build is ipv4 else ipv6(UDP, hop_limit=ttl - 1)
        assert with_ttl_decremented(ip.parse(before)) == after
    for ttl in (0, 1):
        spent = ipv4(UDP, ttl=ttl) if build is ipv4 else ipv6(UDP, hop_limit=ttl)
        with pytest.raises(PacketError) as refused:
            with_ttl_decremented(ip.parse(spent))
        assert refused.value.reason is Reason.TTL_EXPIRED


# RFC 6040 figure 4, row by row: inner -> outer Not-ECT, ECT(0), ECT(1), CE
FIGURE_4 = {
    "Not-ECT": ("Not-ECT", "Not-ECT", "Not-ECT", "drop"),
    "ECT(0)": ("ECT(0)", "ECT(0)", "ECT(1)", "CE"),
    "ECT(1)": ("ECT(1)", "ECT(1)", "ECT(1)", "CE"),
    "CE": ("CE", "CE", "CE", "CE"),
}
BITS = {"Not-ECT": 0b00, "ECT(0)": 0b10, "ECT(1)": 0b01, "CE": 0b11, "drop": None}


def test_the_codepoints_have_the_bits_of_rfc_3168() -> None:
    assert (NOT_ECT, ECT1, ECT0, CE) == (0b00, 0b01, 0b10, 0b11)
    assert len(DECAPSULATED) == 16


@pytest.mark.parametrize("inner", list(FIGURE_4))
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("version", [4, 6])
def test_congestion_marks_are_combined_as_figure_4_says(inner: str, column: int, version: int) -> None:
    outer_bits, expected = BITS[list(FIGURE_4)[column]], BITS[FIGURE_4[inner][column]]
    inner_bits = BITS[inner]
    assert outer_bits is not None
    assert inner_bits is not None

    def packet(ecn: int) -> bytes:
        tos = 0b101110 << 2 | ecn
        return ipv4(UDP, tos=tos) if version == 4 else ipv6(UDP, traffic_class=tos, flow_label=0xABCDE)

    if expected is None:
        with pytest.raises(PacketError) as refused:
            with_congestion_mark(ip.parse(packet(inner_bits)), outer_bits)
        assert refused.value.reason is Reason.CONGESTION
    else:
        assert with_congestion_mark(ip.parse(packet(inner_bits)), outer_bits) == packet(expected)
