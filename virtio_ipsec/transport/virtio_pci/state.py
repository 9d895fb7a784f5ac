"""The registers of a function as device parts hold them, and back (virtio v1.4 2.14): of members that were stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from virtio_ipsec.device.device_parts import restore
from virtio_ipsec.device.members import FunctionState, QueueRegisters, ring_position
from virtio_ipsec.errors import MemoryAccessError, RingError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.virtio_pci.common import NOTIF_CONFIG_DATA, CommonConfiguration
from virtio_ipsec.transport.virtio_pci.irqs import Interrupts
from virtio_ipsec.transport.virtio_pci.tables import Access, CommonCfg

#: Fields of the function as a whole that are in no part of their own.
_FIELDS: Final = (
    CommonCfg.device_feature_select,
    CommonCfg.driver_feature_select,
    CommonCfg.config_msix_vector,
    CommonCfg.num_queues,
    CommonCfg.queue_select,
    CommonCfg.admin_queue_index,
    CommonCfg.admin_queue_num,
)


def read_state(common: CommonConfiguration, interrupts: Interrupts) -> FunctionState:
    """The registers as they are, the commands of the control queue left out."""
    return FunctionState(
        device_features=common.features,
        driver_features=common.driver_features,
        status=common.get(CommonCfg.device_status),
        common={one.offset: common.get(one).to_bytes(one.width, "little") for one in _FIELDS},
        queues={
            index: QueueRegisters(
                size=queue.size,
                vector=interrupts.queue_vector(index),
                enabled=queue.enabled,
                desc=queue.desc,
                driver=queue.driver,
                device=queue.device,
                notify_off=index,
                notif_config_data=NOTIF_CONFIG_DATA + index & 0xFFFF,
            )
            for index, queue in enumerate(common.queues)
        },
    )


def become(
    state: FunctionState,
    port: ServedPort,
    common: CommonConfiguration,
    interrupts: Interrupts,
    memory: GuestMemory | None,
) -> None:
    """Reset the device and take it to ``state``, all queues at rest. One that lies where it lay goes on where it was,
    another where its used ring says; if nothing says where, the device needs a reset."""
    before = {
        index: (queue.layout, queue.state) for index, queue in enumerate(common.queues) if queue.enabled
    }
    port.reset()
    common.forget()
    with port.lock:
        restore(port.device, replace(state, driver_features=common.accept_own(state.driver_features)))
    for index, queue in state.queues.items():
        interrupts.set_queue_vector(index, queue.vector)
        layout = QueueLayout(queue.size, queue.desc, queue.driver, queue.device)
        position = None
        if queue.enabled:
            position = _position(before, index, layout, queue, memory, common.negotiated)
            if position is None:
                with port.lock:
                    port.device.needs_reset()
        common.set_queue(index, layout, position)
    _set_fields(state.common, common)


def _position(
    before: Mapping[int, tuple[QueueLayout, int | None]],
    index: int,
    layout: QueueLayout,
    queue: QueueRegisters,
    memory: GuestMemory | None,
    features: int,
) -> int | None:
    """Where an enabled queue goes on; None: nobody knows."""
    known, position = before.get(index, (None, None))
    if known == layout and position is not None:
        return position
    try:
        return None if memory is None else ring_position(memory, queue, features)
    except (RingError, MemoryAccessError):
        return None


def _set_fields(fields: Mapping[int, bytes], common: CommonConfiguration) -> None:
    for register in _FIELDS:
        if register.access is Access.WRITE:
            common.put(register, int.from_bytes(fields[register.offset], "little"))
