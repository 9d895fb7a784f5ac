"""virtio_net_hdr in each size, configuration space, control-queue commands."""

from __future__ import annotations

import struct

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.net_config import NET_CONFIG, NetConfig
from virtio_ipsec.wire.net_control import (
    CTRL_COMMAND,
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    CtrlCommand,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMac, Feature, mask

F = Feature
FULL = NetHdr(1, 2, 0x0304, 0x0506, 0x0708, 0x090A, 0x0B0C, 0x0D0E0F10, 5, 6, 7, 8, 0x11121314, 0x0203)
V14_BYTES = bytes.fromhex("01 02 0403 0605 0807 0a09 0c0b 100f0e0d 0500 0000 0600 0700 0800 14131211 0302")
RFC_BYTES = V14_BYTES[:20] + V14_BYTES[26:]


@pytest.mark.parametrize(
    ("dialect", "features", "size"),
    [
        (V14, mask(), 12),
        (V14, mask(F.NET_F_MRG_RXBUF, F.F_VERSION_1), 12),
        (V14, mask(F.NET_F_HASH_REPORT), 20),
        (V14, mask(F.NET_F_HOST_UDP_TUNNEL_GSO), 24),
        (V14, mask(F.NET_F_GUEST_UDP_TUNNEL_GSO), 24),
        (V14, mask(F.NET_F_GUEST_UDP_TUNNEL_GSO, F.NET_F_HASH_REPORT), 24),
        (V14, mask(F.NET_F_OUT_NET_HEADER), 32),
        (V14, mask(F.NET_F_IPSEC), 32),
        (RFC_2025_01, mask(), 12),
        (RFC_2025_01, mask(F.NET_F_HASH_REPORT), 20),
        (RFC_2025_01, mask(F.NET_F_IPSEC), 26),
        (RFC_2025_01, mask(F.NET_F_IPSEC, F.NET_F_HASH_REPORT), 26),
    ],
)
def test_the_negotiated_features_decide_the_header_size(dialect: Dialect, features: int, size: int) -> None:
    codec = dialect.net_hdr(features)
    assert codec.size == size
    assert len(codec.build(NetHdr())) == size


def test_the_header_of_v14_in_bytes() -> None:
    codec = V14.net_hdr(mask(F.NET_F_IPSEC))
    assert codec.build(FULL).hex() == V14_BYTES.hex()
    assert codec.parse(V14_BYTES + b"frame") == FULL
    assert codec.parse(memoryview(bytearray(V14_BYTES)), exact=True) == FULL


def test_the_header_of_the_rfc_in_bytes() -> None:
    codec = RFC_2025_01.net_hdr(mask(F.NET_F_IPSEC))
    value = NetHdr(1, 2, 0x0304, 0x0506, 0x0708, 0x090A, 0x0B0C, 0x0D0E0F10, 5, 0, 0, 0, 0x11121314, 0x0203)
    assert codec.build(value).hex() == RFC_BYTES.hex()
    assert codec.parse(RFC_BYTES) == value


@pytest.mark.parametrize(
    ("features", "absent"),
    [
        (mask(), {"hash_value", "hash_report", "outer_th_offset", "inner_nh_offset"}),
        (mask(F.NET_F_HASH_REPORT), {"outer_th_offset", "outer_nh_offset", "resource_id"}),
        (mask(F.NET_F_HOST_UDP_TUNNEL_GSO), {"outer_nh_offset", "resource_id", "resource_type"}),
    ],
)
def test_a_member_beyond_the_size_reads_as_zero_and_cannot_be_written(
    features: int, absent: set[str]
) -> None:
    codec = V14.net_hdr(features)
    parsed = codec.parse(b"\xff" * 32)
    for name in absent:
        assert getattr(parsed, name) == 0
        with pytest.raises(WireError, match=name):
            codec.build(NetHdr(**{name: 1}))


def test_the_rfc_header_has_no_tunnel_offsets() -> None:
    with pytest.raises(WireError, match="outer_nh_offset"):
        RFC_2025_01.net_hdr(mask(F.NET_F_IPSEC)).build(NetHdr(outer_nh_offset=14))


def test_a_cut_header_is_refused_and_never_filled() -> None:
    codec = V14.net_hdr(mask(F.NET_F_IPSEC))
    for length in range(32):
        with pytest.raises(WireError, match="32 are needed"):
            codec.parse(V14_BYTES[:length])
    with pytest.raises(WireError, match="33 bytes"):
        codec.parse(V14_BYTES + b"\0", exact=True)


def test_a_header_is_read_from_the_middle_of_a_buffer() -> None:
    codec = V14.net_hdr(mask(F.NET_F_IPSEC))
    assert codec.read(b"xyz" + V14_BYTES + b"frame", 3) == (FULL, 35)


def test_a_header_member_that_does_not_fit_is_refused() -> None:
    codec = V14.net_hdr(mask(F.NET_F_IPSEC))
    for value in (NetHdr(flags=256), NetHdr(hdr_len=-1), NetHdr(resource_type=1 << 16)):
        with pytest.raises(WireError):
            codec.build(value)


def test_configuration_space_in_bytes() -> None:
    value = NetConfig(b"\x02\0\0\0\0\x01", 1, 4, 1500, 10_000, 1, 40, 128, 0x1FF, 0x10)
    wire = struct.pack("<6sHHHIBBHII", b"\x02\0\0\0\0\x01", 1, 4, 1500, 10_000, 1, 40, 128, 0x1FF, 0x10)
    assert NET_CONFIG.build(value) == wire
    assert NET_CONFIG.parse(wire, exact=True) == value
    with pytest.raises(WireError, match="5 bytes where 6"):
        NET_CONFIG.build(NetConfig(mac=bytes(5)))


def test_a_control_command_in_bytes() -> None:
    value = CtrlCommand(CtrlClass.MAC, CtrlMac.ADDR_SET, b"\x02\0\0\0\0\x01")
    assert CTRL_COMMAND.build(value) == b"\1\1\x02\0\0\0\0\x01"
    assert CTRL_COMMAND.parse(b"\1\1\x02\0\0\0\0\x01") == value
    for short in (b"", b"\1"):
        with pytest.raises(WireError):
            CTRL_COMMAND.parse(short)


def test_mac_tables_in_bytes() -> None:
    value = MacTables((b"\2\0\0\0\0\1",), (b"\1\0\x5e\0\0\1", b"\1\0\x5e\0\0\2"))
    wire = bytes.fromhex("01000000 020000000001 02000000 01005e000001 01005e000002")
    assert MAC_TABLES.build(value) == wire
    assert MAC_TABLES.parse(wire, exact=True) == value
    assert MAC_TABLES.parse(bytes(8)) == MacTables()
    for length in range(len(wire)):
        with pytest.raises(WireError):
            MAC_TABLES.parse(wire[:length])
    with pytest.raises(WireError, match="4294967295 addresses"):
        MAC_TABLES.parse(b"\xff" * 64)
    with pytest.raises(WireError, match="6 bytes"):
        MAC_TABLES.build(MacTables((b"\2",)))


def test_rss_configuration_in_bytes() -> None:
    value = RssConfig(0x3F, 1, (0, 1, 2, 3), 4, b"\xaa" * 40)
    wire = bytes.fromhex("3f000000 0300 0100 0000 0100 0200 0300 0400 28" + "aa" * 40)
    assert RSS_CONFIG.build(value) == wire
    assert RSS_CONFIG.parse(wire, exact=True) == value
    for length in range(len(wire)):
        with pytest.raises(WireError):
            RSS_CONFIG.parse(wire[:length])


def test_the_reserved_bit_of_a_receive_queue_id_is_ignored() -> None:
    wire = bytes.fromhex("3f000000 0000 0180 0280 0400 00")
    assert RSS_CONFIG.parse(wire) == RssConfig(0x3F, 1, (2,), 4)


@pytest.mark.parametrize(
    "value",
    [
        RssConfig(0, 0, (), 1),
        RssConfig(0, 0, (0,) * 0x10001, 1),
        RssConfig(0, 0x8000, (0,), 1),
        RssConfig(0, 0, (0x8000,), 1),
        RssConfig(0, 0, (0,), 1 << 16),
        RssConfig(0, 0, (0,), 1, bytes(256)),
        RssConfig(1 << 32, 0, (0,), 1),
    ],
    ids=range(7),
)
def test_an_rss_configuration_that_cannot_be_written_is_refused(value: RssConfig) -> None:
    with pytest.raises(WireError):
        RSS_CONFIG.build(value)


def test_layouts_of_the_control_commands() -> None:
    places = {
        codec.name: [(row.name, row.offset, row.size) for row in codec.layout()]
        for codec in (MAC_TABLES, RSS_CONFIG, HASH_CONFIG)
    }
    assert places == {
        "virtio_net_ctrl_mac": [("entries", 0, 4), ("macs", 4, None)],
        "virtio_net_rss_config": [
            ("hash_types", 0, 4),
            ("indirection_table_mask", 4, 2),
            ("unclassified_queue", 6, 2),
            ("indirection_table", 8, None),
        ],
        "virtio_net_hash_config": [
            ("hash_types", 0, 4),
            ("reserved", 4, 8),
            ("hash_key_length", 12, 1),
            ("hash_key_data", 13, None),
        ],
    }


def test_hash_configuration_in_bytes() -> None:
    wire = bytes.fromhex("3f000000 0000000000000000 02 abcd")
    assert HASH_CONFIG.build(HashConfig(0x3F, b"\xab\xcd")) == wire
    assert HASH_CONFIG.parse(wire) == HashConfig(0x3F, b"\xab\xcd")
    with pytest.raises(WireError):
        HASH_CONFIG.parse(wire[:-1])


def test_the_two_dialects_disagree_on_flags_8_and_16() -> None:
    assert (V14.flag_security, V14.flag_security_err, V14.flag_soft_expiry) == (16, 32, 64)
    assert (RFC_2025_01.flag_security, RFC_2025_01.flag_security_err) == (8, 16)
    assert RFC_2025_01.flag_soft_expiry == RFC_2025_01.flag_udp_tunnel_csum == 0
    assert V14.flag_udp_tunnel_csum == 8
    assert (V14.error_flags, RFC_2025_01.error_flags) == (48, 24)
