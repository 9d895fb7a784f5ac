"""The state of a member as device parts, and such parts back into a state (virtio v1.4 2.14, 5.1.5.1).

SAs, flow rules and driver capabilities are in no part (ledger E80), nor are ring positions (E112).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from virtio_ipsec.device.control_parts import CONTROL_PARTS, check_commands, commands_of, control_parts
from virtio_ipsec.device.features import acceptable
from virtio_ipsec.device.members import FunctionState, QueueRegisters
from virtio_ipsec.device.status import after_write
from virtio_ipsec.errors import InvalidField
from virtio_ipsec.wire.device_parts import (
    QUEUE_CONFIG,
    QUEUE_NOTIFY,
    Part,
    PartFlag,
    PartType,
    QueueConfig,
    QueueNotify,
    features_build,
    offset_selector,
    queue_selector,
)
from virtio_ipsec.wire.numbers import Status, has

if TYPE_CHECKING:
    from virtio_ipsec.device.device import Device

Key = tuple[int, bytes]
"""(part type, selector)."""

#: Fields of the common configuration that a driver only reads (num_queues, admin_queue_index, admin_queue_num):
#: they are compared, never set (DP-DEV-28, E111).
READ_ONLY: Final = frozenset({18, 60, 62})
_NEEDS_RESET: Final = int(Status.DEVICE_NEEDS_RESET)
_WHOLE: Final = bytes(8)
"""Selector of a part that is there once."""


def parts_of(device: Device, state: FunctionState) -> tuple[Part, ...]:
    """Everything that parts hold of a member, in the order of the specification's table (DP-DEV-03); those of the
    network device stand in no table and come last."""
    return (
        Part(PartType.DEV_FEATURES, features_build(state.device_features), int(PartFlag.OPTIONAL)),
        Part(PartType.DRV_FEATURES, features_build(state.driver_features)),
        *(Part(PartType.PCI_COMMON_CFG, value, 0, offset_selector(at)) for at, value in state.common.items()),
        Part(PartType.DEVICE_STATUS, bytes((state.status,))),
        *(
            Part(PartType.VQ_CFG, _queue_config(queue), 0, queue_selector(index))
            for index, queue in state.queues.items()
        ),
        *(
            Part(PartType.VQ_NOTIFY_CFG, _queue_notify(queue), 0, queue_selector(index))
            for index, queue in state.queues.items()
        ),
        *control_parts(device.context),
    )


def check_parts(own: Iterable[Part], wanted: Iterable[Part]) -> dict[Key, Part]:
    """The driver's parts by type and selector. InvalidField for one that the device does not have, unless it is
    optional, for one that is there twice, and for one of another length than the device's (DP-DEV-06)."""
    known = {part.key: part for part in own}
    found: dict[Key, Part] = {}
    for part in wanted:
        what = f"part {part.part_type:#x} {part.selector.hex()}"
        if part.key in found:
            raise InvalidField(f"{what} is there twice")
        old = known.get(part.key)
        if part.part_type == PartType.NET_CVQ_CFG and part.selector in CONTROL_PARTS:
            # Whether it is there, and how long its tables are, depends on the features and on the driver.
            found[part.key] = part
        elif old is not None:
            if len(part.value) != len(old.value):
                raise InvalidField(
                    f"{what}: {len(part.value)} bytes where it has {len(old.value)}", clause="DP-DEV-06"
                )
            found[part.key] = part
        elif not part.flags & PartFlag.OPTIONAL:
            raise InvalidField(f"{what} is none of this device")
    return found


def changed(device: Device, state: FunctionState, parts: Mapping[Key, Part]) -> FunctionState:
    """``state`` with what ``parts`` say, which come from :func:`check_parts`; what they do not name stays as it is.
    InvalidField for what the device cannot be."""
    values = {part.key: part.value for part in (*parts_of(device, state), *parts.values())}
    if values[PartType.DEV_FEATURES, _WHOLE] != features_build(state.device_features):
        raise InvalidField("the device has other features", clause="DP-DEV-07")
    features = int.from_bytes(values[PartType.DRV_FEATURES, _WHOLE], "little")
    status = values[PartType.DEVICE_STATUS, _WHOLE][0]
    _check_status(status, features, state.device_features)
    controls = {
        selector: value
        for (kind, selector), value in values.items()
        if kind == PartType.NET_CVQ_CFG
        # What the device had set itself goes with the feature; the driver has to know what it asks for.
        and ((kind, selector) in parts or has(features, CONTROL_PARTS[selector].feature))
    }
    commands = commands_of(controls)
    check_commands(device, features if status & Status.FEATURES_OK else 0, commands)
    return FunctionState(
        device_features=state.device_features,
        driver_features=features,
        status=status,
        common={
            at: _common(at, old, values[PartType.PCI_COMMON_CFG, offset_selector(at)])
            for at, old in state.common.items()
        },
        queues={
            index: _registers(
                device.queue_max_size(index),
                values[PartType.VQ_CFG, queue_selector(index)],
                values[PartType.VQ_NOTIFY_CFG, queue_selector(index)],
                old,
                can_be_enabled=bool(status & Status.FEATURES_OK),
            )
            for index, old in state.queues.items()
        },
        controls=commands,
    )


def restore(device: Device, state: FunctionState) -> None:
    """Reset the device and take it to ``state``, short of its queues, which are the transport's. ``state`` is one that
    :func:`changed` has made."""
    device.reset()
    device.write_driver_features(state.driver_features)
    device.status = state.status & ~_NEEDS_RESET
    for command in state.controls:
        device.controls.execute(command)
    if state.status & _NEEDS_RESET:
        device.needs_reset()


def _check_status(status: int, features: int, offered: int) -> None:
    """A status that a driver can have brought about with these features."""
    written = status & ~_NEEDS_RESET
    if features & ~offered:
        raise InvalidField(f"driver features {features & ~offered:#x} are not offered")
    if after_write(0, written, lambda: acceptable(features, offered)) != written:
        raise InvalidField(f"device status {status:#x} cannot be reached with features {features:#x}")


def _common(at: int, old: bytes, value: bytes) -> bytes:
    if at in READ_ONLY and value != old:
        raise InvalidField(f"common configuration field {at} is {old.hex()}", clause="DP-DEV-28")
    return value


def _queue_config(queue: QueueRegisters) -> bytes:
    return QUEUE_CONFIG.build(
        QueueConfig(queue.size, queue.vector, int(queue.enabled), queue.desc, queue.driver, queue.device)
    )


def _queue_notify(queue: QueueRegisters) -> bytes:
    return QUEUE_NOTIFY.build(QueueNotify(queue.notify_off, queue.notif_config_data))


def _registers(
    most: int, config: bytes, notify: bytes, old: QueueRegisters, *, can_be_enabled: bool
) -> QueueRegisters:
    new, told = QUEUE_CONFIG.parse(config), QUEUE_NOTIFY.parse(notify)
    if new.enabled > can_be_enabled:
        raise InvalidField(f"queue enabled {new.enabled}")
    if not (0 < new.queue_size <= most if new.enabled else 0 <= new.queue_size <= most):
        raise InvalidField(f"queue of {new.queue_size} entries: at most {most}")
    if (told.queue_notify_off, told.queue_notif_config_data) != (old.notify_off, old.notif_config_data):
        raise InvalidField("where notifications go is the device's to say", clause="DP-DEV-28")
    return replace(
        old,
        size=new.queue_size,
        vector=new.vector,
        enabled=bool(new.enabled),
        desc=new.queue_desc,
        driver=new.queue_driver,
        device=new.queue_device,
    )
