"""The device as a whole: configuration, counters, rings, variants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.config import DeviceConfig, full_sa_cap, full_selector_cap
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.ipsec_objects import InboundSaKind, OutboundSaKind
from virtio_ipsec.device.objects import ObjectKind
from virtio_ipsec.errors import ConfigError, DeviceStateError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.wire.admin import AdminCommand
from virtio_ipsec.wire.flow_filter import FfActionCap, FfSelectorCap, Selector
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap

FULL = full_sa_cap().modes
LAYOUT = QueueLayout(8, 0x1000, 0x2000, 0x3000)


@pytest.mark.parametrize(
    "changes",
    [
        {"sa_cap": IpsecSaCap((replace(FULL[0], mode=5),))},
        {"sa_cap": IpsecSaCap((replace(FULL[0], max_replay_win_sz=4097),))},
        {"sa_cap": IpsecSaCap((replace(FULL[0], aead_algo=1 << 7),))},
        {"sa_cap": IpsecSaCap((FULL[1], FULL[0]))},
        {"sa_cap": IpsecSaCap((FULL[0], FULL[0]))},
        {"ff_selectors": FfSelectorCap((Selector(1, 0, bytes(13)),))},
        {"ff_selectors": FfSelectorCap((Selector(7, 0, bytes(8)),))},
        {"ff_selectors": FfSelectorCap(full_selector_cap().selectors[::-1])},
        {"ff_actions": FfActionCap((2, 1))},
        {"ff_actions": FfActionCap((5,))},
        {"ff_limits": replace(DeviceConfig().ff_limits, selectors_per_classifier_limit=4)},
        {"ff_limits": replace(DeviceConfig().ff_limits, last_rule_priority=256)},
        {"ff_selectors": FfSelectorCap((Selector(1, 2, bytes(14)),))},
        {"ipsec_limits": IpsecResourceCap(1 << 32, 1)},
        {"ipsec_limits": IpsecResourceCap(1, -1)},
        {"speed": 1 << 31},
        {"speed": 1 << 32},
        {"supported_hash_types": 1 << 20},
        {"sa_table_size": -1},
    ],
)
def test_capabilities_beyond_the_implementation_cannot_be_configured(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DeviceConfig(**changes)


def test_counters_outlive_a_reset(guest: Any) -> None:
    guest.send(0)
    before = guest.device.counters()["admin_commands"]
    assert before
    guest.device.reset()
    assert guest.device.counters()["admin_commands"] == before


def test_byte_level_traffic_passes_in_clear(guest: Any) -> None:
    frame = b"\xff" * 6 + bytes(6) + b"\x88\xb5" + bytes(46)
    size = guest.device.context.header.size
    assert guest.device.transmit(bytes(size) + frame) == [frame]
    (received,) = guest.device.receive(frame)
    assert received.queue == 0
    assert received.buffer[size:] == frame
    counts = guest.device.counters()
    assert counts["tx_frames"] == counts["rx_frames"] == 1


def test_queues_belong_to_the_memory_and_end_with_it(guest: Any) -> None:
    device = guest.device
    assert device.queue_count == 17
    assert device.admin_queue_index == 17
    assert device.queue_max_size(17) == 256
    assert device.queue_max_size(18) == 0
    device.memory = GuestMemory.anonymous(0x10000)
    assert device.memory.regions == ((0, 0x10000),)
    for index in (0, 1, 17):
        device.enable_queue(index, LAYOUT)
        assert device.queue_enabled(index)
    with pytest.raises(DeviceStateError):
        device.enable_queue(0, LAYOUT)
    device.reset_queue(0)
    assert not device.queue_enabled(0)
    assert device.kick(1) == []
    assert device.pending(1) == 0
    device.deliver(bytes(64))
    assert device.interrupts == frozenset()
    assert device.take_interrupts() == set()
    device.memory = GuestMemory.anonymous(0x10000)
    assert not device.queue_enabled(1)


def test_reset_forgets_queues(guest: Any) -> None:
    guest.device.memory = GuestMemory.anonymous(0x10000)
    guest.device.enable_queue(17, LAYOUT)
    guest.device.reset()
    assert not guest.device.queue_enabled(17)
    with pytest.raises(DeviceStateError):
        guest.device.enable_queue(17, LAYOUT)


class ForgivingOutbound(OutboundSaKind):
    def check_capability(self, sa: Any) -> None:
        """A variant that never looks at the capability."""


class LateGroup(AdminCommands):
    def check_group(self, command: AdminCommand) -> None:
        """A variant that takes every group for its own."""


class Variant(Device):
    commands_class: ClassVar[type[AdminCommands]] = LateGroup
    object_kinds: ClassVar[tuple[type[ObjectKind[Any, Any]], ...]] = (ForgivingOutbound, InboundSaKind)


def test_a_variant_breaks_one_rule_at_a_time(make: Any, layouts: Any) -> None:
    """What mutants of the conformance suite are made of."""
    guest = make(DeviceConfig(sa_cap=IpsecSaCap(FULL[1:])), device_class=Variant)
    assert guest.create(0x203, 0, layouts.sa()) == (0, 0)
    assert guest.create(0x204, 0, layouts.inbound()) == (22, 3)


def test_a_link_is_full_duplex() -> None:
    assert Device(DeviceConfig(), bytes).read_config(16, 1) == b"\x01"
