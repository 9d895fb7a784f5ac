"""Control virtqueue and configuration space (virtio v1.4 5.1.6.5, 5.1.4)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.numbers import Feature, mask

OK, ERR = 0, 1
RX, MAC, VLAN, ANNOUNCE, MQ, OFFLOADS = range(6)
RX_FIELDS = ["promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast"]
A, B, C = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b", b"\x01\0\x5e\0\0\x01"


def with_features(*features: Feature) -> int:
    return mask(Feature.F_VERSION_1, Feature.NET_F_CTRL_VQ, *features)


@pytest.mark.parametrize(("command", "field"), list(enumerate(RX_FIELDS)))
def test_receive_modes_switch_on_and_off(guest: Any, command: int, field: str) -> None:
    off = guest.device.context.rx_filter
    assert guest.control(RX, command, b"\x01") == OK
    assert guest.device.context.rx_filter == replace(off, **{field: True})
    assert guest.control(RX, command, b"\x02") == ERR
    assert guest.control(RX, command) == ERR
    assert guest.device.context.rx_filter == replace(off, **{field: True})
    assert guest.control(RX, command, b"\x00") == OK
    assert guest.device.context.rx_filter == off


def test_mac_tables(guest: Any) -> None:
    data = struct.pack("<I", 2) + A + B + struct.pack("<I", 1) + C
    assert guest.control(MAC, 0, data) == OK
    rx = guest.device.context.rx_filter
    assert rx.unicast == {A, B}
    assert rx.multicast == {C}
    for bad in (data[:-1], data[:4], b"", struct.pack("<I", 0xFFFFFFFF) + A):
        assert guest.control(MAC, 0, bad) == ERR
        assert guest.device.context.rx_filter is rx
    assert guest.control(MAC, 0, bytes(8)) == OK
    assert guest.device.context.rx_filter.unicast == frozenset()


def test_mac_address_shows_in_the_configuration_at_once(guest: Any) -> None:
    generation = guest.device.config_generation
    assert guest.control(MAC, 1, A) == OK
    assert guest.device.context.rx_filter.mac == A
    assert guest.device.read_config(0, 6) == A
    assert guest.device.config_generation != generation
    assert not guest.device.take_config_change()
    assert guest.control(MAC, 1, A[:5]) == ERR
    assert guest.control(MAC, 1, C) == ERR
    assert guest.device.read_config(0, 6) == A
    guest.device.reset()
    assert guest.device.read_config(0, 6) == DeviceConfig().mac
    assert guest.device.context.rx_filter.mac == DeviceConfig().mac


def test_vlans(guest: Any) -> None:
    for vlan in (1, 4095, 1):
        assert guest.control(VLAN, 0, struct.pack("<H", vlan)) == OK
    assert guest.device.context.rx_filter.vlans == {1, 4095}
    assert guest.control(VLAN, 1, struct.pack("<H", 4095)) == OK
    assert guest.control(VLAN, 1, struct.pack("<H", 7)) == OK
    assert guest.control(VLAN, 0, struct.pack("<H", 4096)) == ERR
    assert guest.control(VLAN, 0, b"\x01") == ERR
    assert guest.device.context.rx_filter.vlans == {1}


def test_announcing(guest: Any) -> None:
    device = guest.device
    assert device.read_config(6, 2) == b"\x01\x00"
    device.announce()
    assert device.read_config(6, 2) == b"\x03\x00"
    assert device.take_config_change()
    generation = device.config_generation
    assert guest.control(ANNOUNCE, 0) == OK
    assert device.read_config(6, 2) == b"\x01\x00"
    assert device.config_generation != generation
    assert not device.take_config_change()


def test_a_driver_that_cannot_announce_is_not_asked(make: Callable[..., Any]) -> None:
    guest = make(features=with_features(), ready=False)
    guest.device.announce()
    assert guest.device.read_config(6, 2) == b"\x01\x00"


def test_link_changes(guest: Any) -> None:
    device = guest.device
    device.set_link(True)
    assert not device.take_config_change()
    device.set_link(False)
    assert device.read_config(6, 2) == bytes(2)
    assert device.take_config_change()
    device.reset()
    assert device.read_config(6, 2) == bytes(2)


@pytest.mark.parametrize("pairs", [0, 1, 2, 8, 9, 0x8000, 0xFFFF])
def test_queue_pairs(guest: Any, pairs: int) -> None:
    good = 1 <= pairs <= 8
    assert guest.control(MQ, 0, struct.pack("<H", pairs)) == (OK if good else ERR)
    assert guest.device.context.steering.queue_pairs == (pairs if good else 1)


def rss(**changes: Any) -> bytes:
    v: dict[str, Any] = {"types": 0x3F, "entries": 4, "unclassified": 1, "table": (0, 1, 2, 3), "tx": 4}
    v |= {"key": bytes(40), "key_len": None}
    v |= changes
    table = struct.pack(f"<{len(v['table'])}H", *v["table"])
    length = len(v["key"]) if v["key_len"] is None else v["key_len"]
    head = struct.pack("<IHH", v["types"], v["entries"] - 1, v["unclassified"])
    return head + table + struct.pack("<HB", v["tx"], length) + bytes(v["key"])


def test_rss(guest: Any) -> None:
    assert guest.control(MQ, 1, rss(key=bytes(range(40)))) == OK
    steering = guest.device.context.steering
    assert steering.rss
    assert steering.table == (0, 1, 2, 3)
    assert steering.unclassified_queue == 1
    assert steering.queue_pairs == 4
    assert steering.key == bytes(range(40))
    assert steering.hash_types == 0x3F


@pytest.mark.parametrize(
    "data",
    [
        b"",
        rss()[:-1],
        rss(types=0x200),
        rss(entries=3, table=(0, 1, 2)),
        rss(entries=256, table=(0,) * 256),
        rss(table=(0, 1, 2, 8)),
        rss(table=(0, 1, 2, 0x7FFF)),
        rss(unclassified=8),
        rss(tx=0),
        rss(tx=9),
        rss(key=bytes(41)),
        rss(key_len=41),
    ],
)
def test_a_refused_rss_configuration_changes_nothing(guest: Any, data: bytes) -> None:
    assert guest.control(MQ, 1, rss()) == OK
    before = guest.device.context.steering
    assert guest.control(MQ, 1, data) == ERR
    assert guest.device.context.steering is before


def test_the_last_multiqueue_command_decides(guest: Any) -> None:
    key = bytes(range(40))
    hashing = struct.pack("<I4HB", 3, 0, 0, 0, 0, 40) + key
    assert guest.control(MQ, 2, hashing) == OK
    assert guest.control(MQ, 0, struct.pack("<H", 3)) == OK
    steering = guest.device.context.steering
    assert (steering.rss, steering.queue_pairs, steering.hash_types, steering.key) == (False, 3, 3, key)
    assert guest.control(MQ, 1, rss(tx=5)) == OK
    assert guest.control(MQ, 0, struct.pack("<H", 2)) == OK
    steering = guest.device.context.steering
    assert (steering.rss, steering.queue_pairs, steering.hash_types) == (False, 2, 0)
    assert guest.control(MQ, 1, rss(tx=5)) == OK
    assert guest.control(MQ, 2, hashing) == OK
    steering = guest.device.context.steering
    assert (steering.rss, steering.queue_pairs, steering.hash_types) == (False, 5, 3)
    for bad in (
        hashing[:-1],
        struct.pack("<I4HB", 0x200, 0, 0, 0, 0, 0),
        struct.pack("<I4HB", 3, 0, 0, 0, 0, 41) + bytes(41),
    ):
        assert guest.control(MQ, 2, bad) == ERR
        assert guest.device.context.steering is steering


def test_guest_offloads(guest: Any) -> None:
    context = guest.device.context
    everything = mask(
        Feature.NET_F_GUEST_CSUM, Feature.NET_F_GUEST_TSO4, Feature.NET_F_GUEST_TSO6, Feature.NET_F_GUEST_ECN,
        Feature.NET_F_GUEST_USO4, Feature.NET_F_GUEST_USO6,
    )  # fmt: skip
    assert context.guest_offloads == everything
    assert guest.control(OFFLOADS, 0, struct.pack("<Q", 2)) == OK
    assert context.guest_offloads == mask(Feature.NET_F_GUEST_CSUM)
    for bad in (1, 1 << 10, 1 << 46, 1 << 63):
        assert guest.control(OFFLOADS, 0, struct.pack("<Q", bad)) == ERR
    assert guest.control(OFFLOADS, 0, bytes(7)) == ERR
    assert context.guest_offloads == mask(Feature.NET_F_GUEST_CSUM)
    assert guest.control(OFFLOADS, 0, struct.pack("<Q", everything)) == OK
    assert context.guest_offloads == everything


GATES = [
    (RX, 0, b"\1", Feature.NET_F_CTRL_RX),
    (RX, 1, b"\1", Feature.NET_F_CTRL_RX),
    (RX, 2, b"\1", Feature.NET_F_CTRL_RX_EXTRA),
    (RX, 5, b"\1", Feature.NET_F_CTRL_RX_EXTRA),
    (MAC, 0, bytes(8), Feature.NET_F_CTRL_RX),
    (MAC, 1, A, Feature.NET_F_CTRL_MAC_ADDR),
    (MAC, 1, A, Feature.NET_F_CTRL_RX),
    (VLAN, 0, bytes(2), Feature.NET_F_CTRL_VLAN),
    (VLAN, 1, bytes(2), Feature.NET_F_CTRL_VLAN),
    (ANNOUNCE, 0, b"", Feature.NET_F_GUEST_ANNOUNCE),
    (MQ, 0, b"\1\0", Feature.NET_F_MQ),
    (MQ, 1, rss(), Feature.NET_F_RSS),
    (MQ, 2, bytes(13), Feature.NET_F_HASH_REPORT),
    (OFFLOADS, 0, bytes(8), Feature.NET_F_CTRL_GUEST_OFFLOADS),
]


@pytest.mark.parametrize(("ctrl_class", "command", "data", "feature"), GATES)
def test_a_command_needs_its_feature(
    make: Callable[..., Any], ctrl_class: int, command: int, data: bytes, feature: Feature
) -> None:
    without = make(features=with_features(), ready=False)
    assert without.control(ctrl_class, command, data) == ERR
    assert without.device.counters()["control_errors"] == 1
    assert make(features=with_features(feature), ready=False).control(ctrl_class, command, data) == OK


@pytest.mark.parametrize("head", [b"", b"\0", b"\x06\0", b"\x09\0", b"\xff\xff", b"\0\x06", b"\x04\x03"])
def test_unknown_and_cut_commands_are_errors(guest: Any, head: bytes) -> None:
    assert guest.device.control(head, 1) == b"\x01"
    assert guest.device.control(head, 100) == b"\x01"


def test_without_room_nothing_is_written(guest: Any) -> None:
    assert guest.device.control(b"\0\0\1", 0) == b""


def test_everything_is_back_to_default_after_reset(guest: Any) -> None:
    fresh = guest.device.context
    before = (fresh.rx_filter, fresh.steering, fresh.guest_offloads)
    guest.control(RX, 0, b"\1")
    guest.control(MQ, 0, b"\2\0")
    guest.control(OFFLOADS, 0, bytes(8))
    guest.device.negotiate(guest.device.offered_features)
    after = guest.device.context
    assert (after.rx_filter, after.steering, after.guest_offloads) == before


def test_the_configuration_space_is_readable_from_the_start(make: Callable[..., Any]) -> None:
    guest = make(ready=False)
    guest.device.reset()
    expected = DeviceConfig().mac + struct.pack("<HHHIBBHII", 1, 8, 9000, 100_000, 1, 40, 128, 0x1FF, 0)
    assert guest.device.read_config(0, 28) == expected
    for offset in range(40):
        assert guest.device.read_config(offset, 4) == (expected + bytes(44))[offset : offset + 4]
    guest.device.write_config(0, b"\xff" * 28)
    assert guest.device.read_config(0, 28) == expected


def test_fields_of_features_that_are_not_offered_are_zero(make: Callable[..., Any]) -> None:
    guest = make(DeviceConfig(features=with_features(Feature.NET_F_MTU)), ready=False)
    assert guest.device.read_config(0, 28) == bytes(10) + struct.pack("<H", 9000) + bytes(16)
