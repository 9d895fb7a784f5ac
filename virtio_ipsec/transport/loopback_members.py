"""An owner with virtual functions in the same process: each is a loopback of its own, with its own memory and wire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.device_parts import restore
from virtio_ipsec.device.members import FunctionState, QueueRegisters, SriovGroup, ring_position
from virtio_ipsec.errors import DeviceStateError, MemoryAccessError, RingError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.loopback_target import LoopbackTarget

#: A loopback interrupts nobody, but what a function has for that it keeps.
NO_VECTOR: Final = 0xFFFF
#: Offsets of the fields of the common configuration that it has.
CONFIG_VECTOR, NUM_QUEUES = 16, 18


class LoopbackMember(LoopbackTarget):
    """One virtual function, from its driver's side and from its owner's
    (:class:`~virtio_ipsec.device.members.StoppableMember`)."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.live = False
        self.stopped = False
        #: The queues that are enabled.
        self._layouts: dict[int, QueueLayout] = {}
        self._config_vector = NO_VECTOR
        self._vectors: dict[int, int] = {}
        self._kicked: set[int] = set()

    # The driver's side.

    def write_status(self, value: int) -> None:
        """Write the device status; 0 resets the function, but a stopped one stays stopped."""
        super().write_status(value)
        if value == 0:
            self._forget()

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Enable a queue."""
        super().enable_queue(index, layout)
        self._layouts[index] = layout

    def reset_queue(self, index: int) -> None:
        """Reset a queue."""
        super().reset_queue(index)
        self._layouts.pop(index, None)

    def kick(self, index: int) -> None:
        """Let the device work on a queue, or later if it is stopped."""
        if self.stopped:
            self._kicked.add(index)
        else:
            super().kick(index)

    def inject(self, frame: bytes) -> None:
        """A frame arrives; a stopped device has nowhere to put it."""
        if not self.stopped:
            super().inject(frame)

    # The owner's side.

    def exclusive(self) -> AbstractContextManager[object]:
        """One thread has all of it."""
        return nullcontext()

    def appear(self) -> None:
        """VF Enable: as after a reset, which :meth:`vanish` was."""
        self.live = True

    def leave(self) -> None:
        """There is nothing to begin with."""

    def vanish(self) -> None:
        """VF Enable is clear: the device is reset, and frames on the wire are lost."""
        self.stopped = False
        self.reset()
        self.live = False

    def stop(self) -> None:
        """Nothing is under way between two calls."""
        self.stopped = True

    def resume(self, state: FunctionState | None = None) -> None:
        """Go on. The queues of another state have not been announced here, so all of them are looked at."""
        self.stopped = False
        kicked, self._kicked = self._kicked, set()
        if state is not None:
            self._become(state)
            kicked = set(self._layouts)
        for index in sorted(kicked):
            self.kick(index)

    def state(self) -> FunctionState:
        """The registers as they are."""
        indices = range(self.admin_queue_index() + 1)
        return FunctionState(
            device_features=self.device_features(),
            driver_features=self.driver_features(),
            status=self.status(),
            common={
                CONFIG_VECTOR: self._config_vector.to_bytes(2, "little"),
                NUM_QUEUES: self.num_queues().to_bytes(2, "little"),
            },
            queues={index: self._registers(index) for index in indices},
        )

    def _registers(self, index: int) -> QueueRegisters:
        layout = self._layouts.get(index) or QueueLayout(self.queue_max_size(index), 0, 0, 0)
        return QueueRegisters(
            size=layout.size,
            vector=self._vectors.get(index, NO_VECTOR),
            enabled=index in self._layouts,
            desc=layout.desc,
            driver=layout.driver,
            device=layout.device,
            notify_off=index,
            notif_config_data=index,
        )

    def _become(self, state: FunctionState) -> None:
        places = {index: (layout, self.rings.position(index)) for index, layout in self._layouts.items()}
        self.rings.reset()
        self._forget()
        restore(self.device, state)
        self._config_vector = int.from_bytes(state.common[CONFIG_VECTOR], "little")
        self._vectors = {index: queue.vector for index, queue in state.queues.items()}
        try:
            for index, queue in state.queues.items():
                if queue.enabled:
                    layout = QueueLayout(queue.size, queue.desc, queue.driver, queue.device)
                    known, position = places.get(index, (None, 0))
                    if known != layout:
                        position = ring_position(self.memory, queue, state.driver_features)
                    self.rings.enable_queue(index, layout)
                    self.rings.go_on(index, position)
                    self._layouts[index] = layout
        except (RingError, MemoryAccessError, DeviceStateError):
            self.device.needs_reset()

    def _forget(self) -> None:
        self._layouts.clear()
        self._vectors.clear()
        self._kicked.clear()
        self._config_vector = NO_VECTOR


class LoopbackOwner(LoopbackTarget):
    """A physical function that owns ``members`` (:class:`~virtio_ipsec.conformance.target.Owner`)."""

    def __init__(self, device: Device, members: Sequence[LoopbackMember]) -> None:
        super().__init__(device)
        self._members = tuple(members)
        self._group = SriovGroup(self._members, stoppable=True)
        device.members = self._group
        self.enable_vfs(len(members))

    def reset(self) -> None:
        """Reset the device; all virtual functions vanish and appear anew."""
        super().reset()
        self.enable_vfs(None)
        self.enable_vfs(len(self._members))

    @property
    def total_vfs(self) -> int:
        """How many virtual functions there can be."""
        return len(self._members)

    def enable_vfs(self, num_vfs: int | None) -> None:
        """Set VF Enable with this NumVFs, or clear it."""
        if num_vfs is None:
            self._group.disable()
        else:
            self._group.enable(num_vfs)

    def member(self, number: int) -> LoopbackMember:
        """Virtual function ``number`` from its driver's side; DeviceStateError while it is not there."""
        found = self._members[number - 1]
        if not found.live:
            raise DeviceStateError(f"virtual function {number} is not there")
        return found
