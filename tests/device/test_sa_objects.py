"""Security associations as objects (NET-IPSEC-DEV, RO-DEV, E21-E45, E105)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig, full_sa_cap
from virtio_ipsec.errors import NoSuchObject, PacketError, Reason
from virtio_ipsec.wire.ipsec import IpsecSaCap

OUTB, INB = 0x203, 0x204
OK, ENXIO, EBUSY, EEXIST, INVALID_FIELD, ENOSPC = (0, 0), (6, 3), (16, 3), (17, 3), (22, 3), (28, 6)
ESP_TUNNEL, ESP_TRANSPORT, AH_TUNNEL, AH_TRANSPORT = 1, 2, 3, 4
CTR, GMAC, CBCMAC, SHA256 = 4, 41, 49, 4


def restrict(guest: Any, **changes: int) -> None:
    """Set the SA capability to ESP tunnel mode only, narrowed by ``changes`` (fields of the entry)."""
    v = {"window": 64, "options": 1, "cipher": 0, "hmac": 0, "aead": 2, "ckey": 16, "akey": 0} | changes
    entry = struct.pack(
        "<B3xIIIQQIII",
        1,
        v["window"],
        v["options"],
        0,
        v["cipher"],
        v["hmac"],
        v["aead"],
        v["ckey"],
        v["akey"],
    )
    assert guest.cap_set(0x804, struct.pack("<B7x", 1) + entry).code == OK


@pytest.mark.parametrize("kind", [OUTB, INB])
def test_all_four_commands_work(guest: Any, layouts: Any, kind: int) -> None:
    data = layouts.sa() if kind == OUTB else layouts.inbound()
    assert guest.create(kind, 0, data) == OK
    assert guest.query(kind, 0).code == OK
    assert guest.modify(kind, 0, data) == OK
    assert guest.destroy(kind, 0) == OK
    assert guest.query(kind, 0).code == ENXIO
    assert guest.modify(kind, 0, data) == ENXIO
    assert guest.destroy(kind, 0) == ENXIO


def test_an_id_is_taken_until_destroy_and_is_unique_per_type(guest: Any, layouts: Any) -> None:
    assert guest.create(OUTB, 5, layouts.sa()) == OK
    assert guest.create(OUTB, 5, layouts.sa(spi=9)) == EEXIST
    assert guest.create(INB, 5, layouts.inbound()) == OK
    assert guest.destroy(OUTB, 5) == OK
    assert guest.create(OUTB, 5, layouts.sa(spi=9)) == OK
    assert guest.device.context.outbound[5].params.spi == 9


@pytest.mark.parametrize("kind", [OUTB, INB])
def test_ids_run_to_the_driver_limit_of_their_direction(guest: Any, layouts: Any, kind: int) -> None:
    assert guest.cap_set(0x803, struct.pack("<II", *((3, 8) if kind == INB else (8, 3)))).code == OK

    def data(spi: int) -> bytes:
        made: bytes = layouts.sa(spi=spi) if kind == OUTB else layouts.inbound(spi=spi)
        return made

    assert guest.create(kind, 3, data(1)) == INVALID_FIELD
    assert guest.create(kind, 0xFFFFFFFF, data(1)) == INVALID_FIELD
    for number in (2, 0, 1):
        assert guest.create(kind, number, data(number + 1)) == OK


def test_an_internal_table_can_be_full_before_the_limit(make: Callable[..., Any], layouts: Any) -> None:
    guest = make(DeviceConfig(sa_table_size=2))
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.create(INB, 0, layouts.inbound()) == OK
    assert guest.create(OUTB, 1, layouts.sa()) == ENOSPC
    assert guest.create(INB, 1, layouts.inbound(spi=7)) == ENOSPC
    assert guest.destroy(INB, 0) == OK
    assert guest.create(OUTB, 1, layouts.sa()) == OK


@pytest.mark.parametrize("kind", [OUTB, INB])
def test_no_sa_is_made_in_a_device_that_is_being_migrated(guest: Any, layouts: Any, kind: int) -> None:
    """It could not go along (E80); what is there can still be destroyed."""
    data = layouts.sa() if kind == OUTB else layouts.inbound()
    assert guest.create(kind, 0, data) == OK
    guest.device.set_leaving(True)
    other = layouts.sa(spi=7) if kind == OUTB else layouts.inbound(spi=7)
    assert guest.create(kind, 1, other) == EBUSY
    assert guest.query(kind, 1).code == ENXIO
    assert guest.destroy(kind, 0) == OK
    guest.device.reset()
    assert guest.device.context.is_leaving
    guest.device.set_leaving(False)
    assert not guest.device.context.is_leaving


BAD = {
    "mode reserved": {"mode": 0},
    "mode unknown": {"mode": 5},
    "direction of the other type": {"direction": 2},
    "direction reserved": {"direction": 0},
    "spi zero": {"spi": 0},
    "option unknown": {"options": 128},
    "option in the upper half": {"options": 1 << 32},
    "tunnel type zero": {"param": bytes(44)},
    "tunnel type unknown": {"param": b"\x03" + bytes(43)},
    "dscp beyond 6 bits": {"param": struct.pack("<B3xIIBBBx", 1, 1, 2, 64, 0, 0).ljust(44, b"\0")},
    "df beyond one bit": {"param": struct.pack("<B3xIIBBBx", 1, 1, 2, 0, 2, 0).ljust(44, b"\0")},
    "cipher without a mac": {"cipher": 12},
    "algorithm as a mask": {"cipher": 1 << 1, "auth": 1 << 4, "auth_key": bytes(32)},
    "algorithm beyond 64 bits": {"cipher": 64},
    "algorithm huge": {"cipher": 2**64 - 1, "auth": 2**64 - 1},
    "aead key too short": {"key": bytes(15)},
    "aead key with salt": {"key": bytes(20)},
    "aead with a mac": {"auth": SHA256, "auth_key": bytes(32)},
    "key length beyond the field": {"key_len": 33},
    "key length huge": {"key_len": 0xFFFF},
    "auth key length beyond the field": {"auth_len": 33},
    "no algorithm at all": {"cipher": 0},
    "soft limit above hard": {"options": 64, "soft": (11, 0), "hard": (10, 0)},
    "soft byte limit above hard": {"options": 64, "soft": (0, 11), "hard": (0, 10)},
    "tunnel option in transport": {"mode": ESP_TRANSPORT, "options": 4},
    "udp encapsulation of ah": {
        "mode": AH_TUNNEL, "options": 2, "cipher": 0, "key": b"", "auth": SHA256, "auth_key": bytes(32),
    },
    "cipher with ah": {"mode": AH_TUNNEL, "auth": SHA256, "auth_key": bytes(32)},
    "md5": {"cipher": 0, "key": b"", "auth": 1, "auth_key": bytes(16)},
}  # fmt: skip


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_what_create_refuses(guest: Any, layouts: Any, changes: dict[str, Any]) -> None:
    assert guest.create(OUTB, 0, layouts.sa(**changes)) == INVALID_FIELD
    assert guest.query(OUTB, 0).code == ENXIO
    assert guest.device.objects.ids()[OUTB] == frozenset()
    assert not guest.device.context.outbound
    assert guest.device.status == 15
    assert guest.create(OUTB, 0, layouts.sa()) == OK


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 4097},
        {"window": 0xFFFFFFFF},
        {"options": 1, "window": 0},
        {"direction": 1},
        {"spi": 0},
    ],
    ids=str,
)
def test_what_create_of_an_inbound_sa_refuses(guest: Any, layouts: Any, changes: dict[str, Any]) -> None:
    assert guest.create(INB, 0, layouts.inbound(**changes)) == INVALID_FIELD
    assert not guest.device.context.inbound
    assert not guest.device.context.inbound_by_spi


GOOD = {
    "aes-256-gcm": {"key": bytes(32)},
    "ccm": {"cipher": 2},
    "chacha20-poly1305": {"cipher": 3, "key": bytes(32)},
    "cbc with sha-256": {"cipher": 3, "auth": SHA256, "auth_key": bytes(32)},
    "null with sha-256": {"cipher": 0, "key": b"", "auth": SHA256, "auth_key": bytes(32)},
    "gmac": {"cipher": 0, "key": b"", "auth": GMAC, "auth_key": bytes(16)},
    "gcm by its parts": {"cipher": CTR, "auth": GMAC},
    "ccm by its parts": {"cipher": CTR, "auth": CBCMAC, "auth_key": bytes(range(16))},
    "all options": {"options": 127},
    "limits without the option": {"soft": (11, 0), "hard": (10, 0)},
    "soft equals hard": {"options": 64, "soft": (10, 10), "hard": (10, 10)},
    "esp transport": {"mode": ESP_TRANSPORT, "param": bytes(44), "options": 67},
    "ah tunnel": {"mode": AH_TUNNEL, "cipher": 0, "key": b"", "auth": SHA256, "auth_key": bytes(32), "options": 125},
    "ah transport": {"mode": AH_TRANSPORT, "cipher": 0, "key": b"", "auth": GMAC, "auth_key": bytes(16)},
    "window of an outbound sa": {"window": 0xFFFFFFFF},
    "small spi": {"spi": 1},
    "ipv6 tunnel": {"param": struct.pack("<B3x16s16sIBB", 2, b"\x20" * 16, b"\x21" * 16, 0xFFFFF, 64, 63) + bytes(2)},
    "reserved bytes": {"reserved": b"\xff\xff"},
}  # fmt: skip


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD.keys())
def test_what_create_takes_is_echoed_byte_for_byte(guest: Any, layouts: Any, changes: dict[str, Any]) -> None:
    data = layouts.sa(**changes)
    assert guest.create(OUTB, 0, data) == OK
    reply = guest.query(OUTB, 0)
    assert reply.code == OK
    assert reply.result == data + bytes(4)


@pytest.mark.parametrize(
    ("length", "good"),
    [(0, False), (24, False), (76, False), (88, True), (100, True), (104, True), (164, True), (195, True)],
)
def test_a_short_object_is_judged_by_its_zero_extended_value(
    guest: Any, layouts: Any, length: int, good: bool
) -> None:
    """E91, E94. From byte 88 on only key bytes and zeros are cut."""
    cut = layouts.sa()[:length]
    assert guest.create(OUTB, 0, cut) == (OK if good else INVALID_FIELD)
    assert guest.create(OUTB, 1, cut.ljust(196, b"\0")) == (OK if good else INVALID_FIELD)
    if good:
        assert guest.query(OUTB, 0).result[:196] == cut.ljust(196, b"\0")


def test_the_natural_layout_of_a_c_compiler_is_refused(guest: Any, layouts: Any) -> None:
    """E19: four bytes of padding before cipher_algo shift everything behind it."""
    packed = layouts.sa()
    natural = packed[:76] + bytes(4) + packed[76:120] + bytes(4) + packed[120:164] + bytes(4) + packed[164:]
    assert guest.create(OUTB, 0, natural) == INVALID_FIELD


NARROW = {
    "mode left out": ({}, {"mode": ESP_TRANSPORT, "param": bytes(44)}),
    "option left out": ({}, {"options": 2}),
    "aead left out": ({}, {"cipher": 2}),
    "cipher left out": ({"hmac": 16, "akey": 32}, {"cipher": 3, "auth": 4, "auth_key": bytes(32)}),
    "mac left out": ({"cipher": 8, "akey": 32}, {"cipher": 3, "auth": 4, "auth_key": bytes(32)}),
    "longer cipher key": ({}, {"key": bytes(32)}),
    "longer auth key": (
        {"cipher": 8, "hmac": 16, "akey": 31},
        {"cipher": 3, "auth": 4, "auth_key": bytes(32)},
    ),
}


@pytest.mark.parametrize(("cap", "changes"), NARROW.values(), ids=NARROW.keys())
def test_create_keeps_to_what_the_driver_set(
    guest: Any, layouts: Any, cap: dict[str, int], changes: dict[str, Any]
) -> None:
    """E47: all of these are within the device's own capability."""
    assert guest.create(OUTB, 1, layouts.sa(**changes)) == OK
    assert guest.destroy(OUTB, 1) == OK
    restrict(guest, **cap)
    assert guest.create(OUTB, 1, layouts.sa(**changes)) == INVALID_FIELD


def test_the_window_keeps_to_what_the_driver_set(guest: Any, layouts: Any) -> None:
    restrict(guest)
    assert guest.create(INB, 0, layouts.inbound(window=65)) == INVALID_FIELD
    assert guest.create(INB, 0, layouts.inbound(window=64)) == OK


def test_inbound_spis_are_unique_per_protocol(guest: Any, layouts: Any) -> None:
    """E43."""
    ah = {"mode": AH_TUNNEL, "cipher": 0, "key": b"", "auth": SHA256, "auth_key": bytes(32)}
    assert guest.create(INB, 0, layouts.inbound()) == OK
    assert guest.create(INB, 1, layouts.inbound()) == INVALID_FIELD
    assert guest.create(INB, 1, layouts.inbound(mode=ESP_TRANSPORT)) == INVALID_FIELD
    assert guest.create(INB, 1, layouts.inbound(**ah)) == OK
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.create(OUTB, 1, layouts.sa()) == OK
    assert set(guest.device.context.inbound_by_spi) == {(50, 0x1000), (51, 0x1000)}
    assert guest.destroy(INB, 0) == OK
    assert set(guest.device.context.inbound_by_spi) == {(51, 0x1000)}
    assert guest.create(INB, 2, layouts.inbound()) == OK
    assert guest.device.context.inbound_by_spi[50, 0x1000][0] == 2


FIXED = {
    "mode": {"mode": ESP_TRANSPORT},
    "spi": {"spi": 2},
    "salt": {"salt": b"tlas"},
    "esn": {"options": 1},
    "key": {"key": bytes(16)},
    "key length": {"key": bytes(32)},
    "algorithm": {"cipher": 2},
    "direction": {"direction": 2},
    "illegal": {"options": 1 << 40},
    "soft above hard": {"options": 64, "soft": (2, 0), "hard": (1, 0)},
}


@pytest.mark.parametrize("changes", FIXED.values(), ids=FIXED.keys())
def test_a_refused_modify_leaves_the_sa_as_it_was(guest: Any, layouts: Any, changes: dict[str, Any]) -> None:
    """E40, RO-DEV-09."""
    data = layouts.sa()
    assert guest.create(OUTB, 0, data) == OK
    sa = guest.device.context.outbound[0]
    before = sa.params
    assert guest.modify(OUTB, 0, layouts.sa(**changes)) == INVALID_FIELD
    assert guest.query(OUTB, 0).result[:196] == data
    assert guest.device.context.outbound[0] is sa
    assert sa.params is before


def test_an_all_zero_modify_destroys_nothing(guest: Any, layouts: Any) -> None:
    """E01: a QUERY read as MODIFY."""
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.modify(OUTB, 0) == INVALID_FIELD
    assert guest.query(OUTB, 0).result[:196] == layouts.sa()


def test_modify_changes_what_may_change_and_keeps_the_counters(guest: Any, layouts: Any) -> None:
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    sa = guest.device.context.outbound[0]
    sa.sequence = 41
    changed = layouts.sa(
        obj_id=9,
        options=126,
        param=layouts.tunnel(dscp=1, df=1),
        sport=1,
        dport=2,
        soft=(50, 0),
        hard=(60, 0),
    )
    assert guest.modify(OUTB, 0, changed) == OK
    assert guest.query(OUTB, 0).result[:196] == changed
    assert guest.device.context.outbound[0] is sa
    assert sa.sequence == 41
    assert sa.params.udp_dport == 2
    assert sa.params.lifetime.packets_hard_limit == 60


def test_modify_of_a_window_keeps_what_was_seen(guest: Any, layouts: Any) -> None:
    assert guest.create(INB, 0, layouts.inbound(window=64)) == OK
    sa = guest.device.context.inbound[0]
    assert guest.modify(INB, 0, layouts.inbound(window=128)) == OK
    assert guest.device.context.inbound[0] is sa
    assert guest.device.context.inbound_by_spi[50, 0x1000] == (0, sa)
    assert sa.params.replay_window == 128


def test_modify_is_held_to_the_capability_too(guest: Any, layouts: Any) -> None:
    restrict(guest, options=64)
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.modify(OUTB, 0, layouts.sa(options=2)) == INVALID_FIELD
    assert guest.modify(OUTB, 0, layouts.sa(options=64, hard=(1, 0))) == OK


def test_query_can_hide_the_keys(make: Callable[..., Any], layouts: Any) -> None:
    """E41 b."""
    guest = make(DeviceConfig(zero_keys_in_query=True))
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.query(OUTB, 0).result[:196] == layouts.sa(salt=bytes(4), key=bytes(16))


@pytest.mark.parametrize("way", ["destroy", "reset"])
def test_keys_are_wiped(guest: Any, layouts: Any, way: str) -> None:
    """E82: the running SA and the bytes kept for QUERY."""
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.create(INB, 0, layouts.inbound()) == OK
    sas = [guest.device.context.outbound[0], guest.device.context.inbound[0]]
    records = [guest.device.objects._records[kind][0] for kind in (OUTB, INB)]
    if way == "destroy":
        assert guest.destroy(OUTB, 0) == OK
        assert guest.destroy(INB, 0) == OK
    else:
        guest.device.reset()
    for sa in sas:
        assert sa.params.cipher_key == b""
        with pytest.raises(PacketError):
            sa.check_usable()
    assert all(not any(record.data) for record in records)


def test_reset_leaves_no_sa_behind(guest: Any, layouts: Any) -> None:
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.create(INB, 0, layouts.inbound()) == OK
    guest.device.negotiate(guest.device.offered_features)
    guest.use_everything()
    guest.enable()
    assert guest.query(OUTB, 0).code == ENXIO
    assert not guest.device.context.outbound
    assert not guest.device.context.inbound_by_spi
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.create(INB, 0, layouts.inbound()) == OK


@pytest.mark.parametrize("kind", [0, 1, 0x1FF, 0x205, 0x500, 0xFFFF])
def test_unknown_types(guest: Any, kind: int) -> None:
    assert guest.create(kind, 0) == INVALID_FIELD
    assert guest.query(kind, 0).code == ENXIO
    assert guest.modify(kind, 0) == ENXIO
    assert guest.destroy(kind, 0) == ENXIO


def test_flags_of_object_commands_are_ignored(guest: Any, layouts: Any) -> None:
    """E105."""
    assert guest.create(OUTB, 0, layouts.sa(), flags=2**64 - 1) == OK


def test_keys_stay_out_of_every_repr(guest: Any, layouts: Any) -> None:
    key = bytes(range(100, 116))
    assert guest.create(OUTB, 0, layouts.sa(key=key)) == OK
    record = guest.device.objects._records[OUTB][0]
    for text in (repr(record), repr(guest.device.context.outbound[0].params)):
        assert repr(key)[2:-1] not in text
        assert key.hex() not in text


def test_counters_of_an_sa(guest: Any, layouts: Any) -> None:
    assert guest.create(OUTB, 4, layouts.sa()) == OK
    assert guest.device.sa_counters(OUTB, 4) == {"packets": 0, "bytes": 0}
    guest.device.context.outbound[4].stats[Reason.HARD_LIFETIME] += 2
    assert guest.device.sa_counters(OUTB, 4)["hard_lifetime"] == 2
    for kind, number in ((OUTB, 5), (INB, 4), (0x200, 4)):
        with pytest.raises(NoSuchObject):
            guest.device.sa_counters(kind, number)


def test_a_device_can_offer_less(make: Callable[..., Any], layouts: Any) -> None:
    only_transport = IpsecSaCap((full_sa_cap(32).modes[1],))
    guest = make(DeviceConfig(sa_cap=only_transport))
    assert guest.create(OUTB, 0, layouts.sa()) == INVALID_FIELD
    assert guest.create(OUTB, 0, layouts.sa(mode=ESP_TRANSPORT)) == OK
    assert guest.create(INB, 0, layouts.inbound(mode=ESP_TRANSPORT)) == INVALID_FIELD
    assert guest.create(INB, 0, layouts.inbound(mode=ESP_TRANSPORT, window=32)) == OK
