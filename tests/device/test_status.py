"""Device status and the whole sequence to DRIVER_OK (BAS-STATUS, BAS-FEAT, BAS-RESET)."""

from __future__ import annotations

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.status import after_write, operating
from virtio_ipsec.errors import DeviceStateError
from virtio_ipsec.wire.numbers import Feature, mask

ACK, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128


def fresh(config: DeviceConfig | None = None) -> Device:
    return Device(config or DeviceConfig(), lambda n: bytes(n))


@pytest.mark.parametrize("current", [0, 1, 3, 11, 15, 75, 79, 131, 143])
@pytest.mark.parametrize("acceptable", [True, False])
def test_every_write_to_every_status(current: int, acceptable: bool) -> None:
    """Nothing is cleared, only driver bits are added, each after its prerequisites."""
    for written in range(1, 256):
        after = after_write(current, written, lambda: acceptable)
        added = after & ~current
        assert after & current == current, written
        assert added & ~written == 0, written
        assert added & ~(ACK | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) == 0, written
        if added & DRIVER:
            assert after & ACK, written
        if added & FEATURES_OK:
            assert acceptable, written
            assert after & (ACK | DRIVER) == ACK | DRIVER, written
        if added & DRIVER_OK:
            assert after & FEATURES_OK, written
        if current & FAILED:
            assert not added, written


def test_only_driver_ok_without_trouble_is_operating() -> None:
    assert [s for s in range(256) if operating(s)] == [
        s for s in range(256) if s & DRIVER_OK and not s & (NEEDS_RESET | FAILED)
    ]


def test_status_is_zero_at_first_and_after_reset() -> None:
    device = fresh()
    assert device.status == 0
    device.negotiate(device.offered_features)
    assert device.status == ACK | DRIVER | FEATURES_OK | DRIVER_OK
    assert device.is_operating
    device.status = 0
    assert device.status == 0
    assert device.driver_features == 0
    assert not device.is_operating


def test_a_refused_word_keeps_features_ok_clear() -> None:
    device = fresh()
    device.status = ACK
    device.status = ACK | DRIVER
    device.write_driver_features(mask(Feature.NET_F_CSUM))
    device.status = ACK | DRIVER | FEATURES_OK
    assert device.status == ACK | DRIVER
    device.write_driver_features(mask(Feature.F_VERSION_1))
    device.status = ACK | DRIVER | FEATURES_OK
    assert device.status == ACK | DRIVER | FEATURES_OK


def test_negotiate_says_what_was_refused_and_leaves_failed() -> None:
    device = fresh()
    with pytest.raises(DeviceStateError, match="refused"):
        device.negotiate(0)
    assert device.status & FAILED
    assert not device.status & FEATURES_OK


def test_features_are_fixed_after_features_ok() -> None:
    device = fresh()
    device.negotiate(mask(Feature.F_VERSION_1))
    device.write_driver_features(device.offered_features)
    assert device.driver_features == mask(Feature.F_VERSION_1)
    assert device.context.features == mask(Feature.F_VERSION_1)


def test_the_driver_word_has_128_bits() -> None:
    device = fresh()
    device.write_driver_features(1 << 127 | 1 << 128)
    assert device.driver_features == 1 << 127


def test_the_same_set_is_accepted_again_after_reset() -> None:
    device = fresh()
    for _ in range(3):
        device.negotiate(device.offered_features)


@pytest.mark.parametrize("call", ["admin", "control", "transmit"])
def test_nothing_is_processed_before_driver_ok(call: str) -> None:
    device = fresh()
    device.status = ACK
    device.status = ACK | DRIVER
    device.write_driver_features(device.offered_features)
    device.status = ACK | DRIVER | FEATURES_OK
    arguments: tuple[object, ...] = (bytes(64),) if call == "transmit" else (bytes(64), 64)
    with pytest.raises(DeviceStateError):
        getattr(device, call)(*arguments)


def test_frames_are_dropped_and_counted_while_not_operating() -> None:
    device = fresh()
    assert device.receive(bytes(64)) == []
    assert device.counters()["rx_not_operating"] == 1


def test_needs_reset_stops_the_device_and_notifies_a_driver_at_work() -> None:
    device = fresh()
    device.needs_reset()
    assert not device.take_config_change()
    device.negotiate(device.offered_features)
    assert not device.status & NEEDS_RESET
    assert not device.take_config_change()
    device.needs_reset()
    assert device.status & NEEDS_RESET
    assert device.take_config_change()
    assert not device.take_config_change()
    with pytest.raises(DeviceStateError):
        device.admin(bytes(24), 8)


def test_queues_named_by_features_that_were_not_negotiated_do_not_exist() -> None:
    device = fresh()
    device.negotiate(mask(Feature.F_VERSION_1))
    with pytest.raises(DeviceStateError, match="ADMIN_VQ"):
        device.admin(bytes(24), 8)
    with pytest.raises(DeviceStateError, match="CTRL_VQ"):
        device.control(bytes(2), 1)
