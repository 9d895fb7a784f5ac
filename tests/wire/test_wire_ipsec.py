"""The SA object, its parts and the IPsec capabilities, byte by byte in both dialects."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSa, IpsecSaCap, Lifetime, ModeCap
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4, TunnelIPv6, TunnelRaw

KEY = bytes(range(0x10, 0x20))
TUNNEL = TunnelIPv4(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), dscp=46, df=1, ttl=64)
SA = IpsecSa(
    mode=1,
    direction=1,
    spi=0x1000,
    salt=b"\x01\x02\x03\x04",
    options=0x01,
    param=TUNNEL,
    udp_sport=4500,
    udp_dport=4501,
    replay_win_sz=128,
    cipher_algo=3,
    cipher_key=KEY,
    auth_algo=4,
    auth_key=KEY + KEY,
    obj_id=7,
)
V14_SA = replace(SA, options=0x41, life=Lifetime(1, 2, 3, 1 << 40))
RFC_SA = replace(SA, esn=0x1_0000_0002)

HEAD = "01 01 0000 07000000 00100000 01020304"
ADDRESSES = "01 000000 0100000a 0200000a 2e 01 40"
PORTS = "9411 9511 80000000"
V14_BYTES = bytes.fromhex(
    f"{HEAD} 4100000000000000 {ADDRESSES} 00 {'00' * 28} {PORTS}"
    f"0300000000000000 1000 0000 {KEY.hex()} {'00' * 16}"
    f"0400000000000000 2000 0000 {KEY.hex()} {KEY.hex()}"
    "0100000000000000 0200000000000000 0300000000000000 0000000000010000"
)
RFC_BYTES = bytes.fromhex(
    f"{HEAD} 0100000000000000 {ADDRESSES} {'00' * 27} 0200000001000000 {PORTS}"
    f"0300000000000000 1000 {KEY.hex()} {'00' * 16}"
    f"0400000000000000 2000 {KEY.hex()} {KEY.hex()}"
)

BOTH = pytest.mark.parametrize(
    ("dialect", "value", "wire"),
    [pytest.param(V14, V14_SA, V14_BYTES, id="v14"), pytest.param(RFC_2025_01, RFC_SA, RFC_BYTES, id="rfc")],
)


@BOTH
def test_an_sa_in_bytes(dialect: Dialect, value: IpsecSa, wire: bytes) -> None:
    assert dialect.sa.build(value).hex() == wire.hex()
    assert dialect.sa.parse(wire, exact=True) == value


@BOTH
def test_missing_bytes_are_zero_and_surplus_bytes_do_not_matter(
    dialect: Dialect, value: IpsecSa, wire: bytes
) -> None:
    assert dialect.sa.parse(wire + b"\xff" * 40) == value
    for length in range(len(wire)):
        assert dialect.sa.parse(wire[:length]) == dialect.sa.parse(wire[:length].ljust(len(wire), b"\0"))


@BOTH
def test_complete_refuses_a_short_sa_and_exact_a_long_one(
    dialect: Dialect, value: IpsecSa, wire: bytes
) -> None:
    assert dialect.sa.parse(wire + b"\0", complete=True) == value
    with pytest.raises(WireError, match="are needed"):
        dialect.sa.parse(wire[:-1], complete=True)
    with pytest.raises(WireError, match="are needed"):
        dialect.sa.parse(wire[:-1], exact=True)
    with pytest.raises(WireError, match="are expected"):
        dialect.sa.parse(wire + b"\0", exact=True)


@BOTH
def test_reserved_bytes_are_ignored(dialect: Dialect, value: IpsecSa, wire: bytes) -> None:
    dirty = bytearray(wire)
    dirty[2:4] = b"\xaa\xbb"  # reserved
    dirty[25:28] = b"\xaa\xbb\xcc"  # param.reserved
    dirty[40:60] = b"\xee" * 20  # the part of the union that the IPv4 form leaves unused
    assert dialect.sa.parse(dirty) == value


def test_a_member_that_the_dialect_lacks_is_not_dropped_in_silence() -> None:
    with pytest.raises(WireError, match="esn"):
        V14.sa.build(RFC_SA)
    with pytest.raises(WireError, match="life"):
        RFC_2025_01.sa.build(V14_SA)


@BOTH
def test_a_key_length_beyond_the_blob_survives(dialect: Dialect, value: IpsecSa, wire: bytes) -> None:
    key = (KEY + KEY)[:32]
    long = replace(value, cipher_key=key, cipher_key_len=33, auth_key_len=0xFFFF)
    parsed = dialect.sa.parse(dialect.sa.build(long))
    assert parsed == long
    assert (parsed.cipher_key_length, parsed.auth_key_length) == (33, 0xFFFF)
    assert (value.cipher_key_length, value.auth_key_length) == (16, 32)


def test_key_bytes_behind_the_length_are_not_key() -> None:
    dirty = bytearray(V14_BYTES)
    dirty[104:120] = b"\x55" * 16
    assert V14.sa.parse(dirty).cipher_key == KEY


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": 256},
        {"spi": -1},
        {"spi": 1 << 32},
        {"options": 1 << 64},
        {"udp_sport": 1 << 16},
        {"salt": b"\0\0\0"},
        {"salt": bytes(5)},
        {"cipher_key": bytes(33)},
        {"auth_key": bytes(33)},
        {"cipher_key_len": 1 << 16},
        {"param": TunnelRaw(1, b"\1" * 41)},
        {"param": TunnelRaw(256)},
        {"param": replace(TUNNEL, dscp=256)},
        {"life": Lifetime(-1)},
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_its_field_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(WireError):
        V14.sa.build(replace(V14_SA, **changes))  # type: ignore[arg-type]


def test_the_refusal_names_the_field() -> None:
    with pytest.raises(WireError, match=r"spi = 4294967296 does not fit 4 bytes"):
        V14.sa.build(replace(V14_SA, spi=1 << 32))
    with pytest.raises(WireError, match="udp_dport"):
        V14.sa.build(replace(V14_SA, udp_dport="500"))  # type: ignore[arg-type]


def test_neither_keys_nor_salt_are_shown() -> None:
    secret = replace(V14_SA, salt=b"SALT", cipher_key=b"CIPHERKEYBYTES!!", auth_key=b"AUTHKEYBYTES")
    for text in (repr(secret), str(secret)):
        assert "SALT" not in text
        assert "KEYBYTES" not in text
    with pytest.raises(WireError) as caught:
        V14.sa.build(replace(secret, cipher_key=b"CIPHERKEYBYTES!!" * 3))
    assert "KEYBYTES" not in str(caught.value)


def test_an_ipv6_tunnel_in_bytes() -> None:
    src, dst = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
    value = TunnelIPv6(src, dst, flabel=0xABCDE, hlimit=9, dscp=10)
    wire = bytes.fromhex(f"02 000000 {src.packed.hex()} {dst.packed.hex()} debc0a00 09 0a")
    assert V14.tunnel_param.build(value) == wire + bytes(2)
    assert RFC_2025_01.tunnel_param.build(value) == wire
    assert V14.tunnel_param.parse(wire) == RFC_2025_01.tunnel_param.parse(wire) == value


@pytest.mark.parametrize("kind", [0, 3, 4, 6, 255])
def test_tunnel_parameters_of_any_other_type_keep_their_bytes(kind: int) -> None:
    wire = bytes((kind, 9, 9, 9)) + b"\x11\x22" * 20
    value = V14.tunnel_param.parse(wire)
    assert value == TunnelRaw(kind, b"\x11\x22" * 20)
    assert V14.tunnel_param.build(value) == bytes((kind, 0, 0, 0)) + wire[4:]


def test_no_tunnel_is_all_zero() -> None:
    assert V14.tunnel_param.build(NO_TUNNEL) == bytes(44)
    assert V14.tunnel_param.parse(b"") == NO_TUNNEL == TunnelRaw(0, bytes(40))


def test_ipv4_address_order_is_a_switch() -> None:
    big = replace(V14, in_addr_little_endian=False)
    assert V14.tunnel_param.build(TUNNEL)[4:12].hex() == "0100000a0200000a"
    assert big.tunnel_param.build(TUNNEL)[4:12].hex() == "0a0000010a000002"
    assert big.sa.build(V14_SA)[28:36].hex() == "0a0000010a000002"
    assert big.sa.parse(big.sa.build(V14_SA)) == V14_SA


def test_the_sa_with_c_alignment_does_not_read_as_a_valid_one() -> None:
    natural = V14_BYTES[:76] + bytes(4) + V14_BYTES[76:120] + bytes(4) + V14_BYTES[120:]
    assert V14.sa.parse(natural).cipher_algo == 3 << 32


ENTRY = ModeCap(1, 64, 0x7F, 0x18, 0x14, 0x0E, 32, 32)
ENTRY_HEAD = "01 000000 40000000 7f000000"
ENTRY_TAIL = "1800000000000000 1400000000000000 0e000000 20000000 20000000"


def test_sa_capability_in_bytes() -> None:
    cap = IpsecSaCap((ENTRY, replace(ENTRY, mode=2)))
    v14 = f"02 {'00' * 7} {ENTRY_HEAD} 00000000 {ENTRY_TAIL} 02{ENTRY_HEAD[2:]} 00000000 {ENTRY_TAIL}"
    rfc = f"02 {'00' * 7} {ENTRY_HEAD} {ENTRY_TAIL} 02{ENTRY_HEAD[2:]} {ENTRY_TAIL}"
    for dialect, text in ((V14, v14), (RFC_2025_01, rfc)):
        assert dialect.sa_cap.build(cap) == bytes.fromhex(text)
        assert dialect.sa_cap.parse(bytes.fromhex(text), exact=True) == cap


def test_sa_capability_counts_rather_than_fills() -> None:
    wire = V14.sa_cap.build(IpsecSaCap((ENTRY,)))
    assert V14.sa_cap.parse(wire + bytes(4)) == IpsecSaCap((ENTRY,))
    assert V14.sa_cap.parse(b"\2" + wire[1:]) == IpsecSaCap((ENTRY, ModeCap(0)))
    with pytest.raises(WireError):
        V14.sa_cap.parse(b"\2" + wire[1:], complete=True)
    assert V14.sa_cap.parse(b"") == IpsecSaCap()
    with pytest.raises(WireError, match="256 elements"):
        V14.sa_cap.build(IpsecSaCap((ENTRY,) * 256))


def test_resource_capability_in_bytes() -> None:
    wire = bytes.fromhex("00010000 02000000")
    assert V14.resource_cap.build(IpsecResourceCap(inb_sa_limit=256, outb_sa_limit=2)) == wire
    assert V14.resource_cap.parse(wire[:5]) == IpsecResourceCap(256, 2)
