"""A device in the same process: its registers and rings as a driver's link, its wire as a list of frames.

Nothing runs by itself. The device works inside :meth:`Loopback.kick` and :meth:`Loopback.inject`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from virtio_ipsec.device.device import Device
from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.wire.numbers import Feature, Status, mask

#: Address of the guest memory: not 0, so that a forgotten address is an error.
_BASE = 0x1000
_MEMORY = 64 << 20
#: As virtio-pci would carry them; the others need a bus.
_CARRIED = TRANSPORT_BITS & mask(Feature.F_RING_RESET, Feature.F_ADMIN_VQ)


class Loopback:
    """A :class:`~virtio_ipsec.driver.link.Link` to ``device`` and the other end of its wire.

    ``wire`` gets every frame that leaves the device, at once; without one the frames wait in
    :meth:`captured`. ``memory_size`` is in bytes.
    """

    def __init__(
        self,
        device: Device,
        *,
        wire: Callable[[bytes], None] | None = None,
        memory_size: int = _MEMORY,
    ) -> None:
        self.device = device
        self.memory = GuestMemory.anonymous(memory_size, _BASE)
        self.allocator = Allocator(_BASE, memory_size)
        self.rings = device.new_rings(self.memory)
        self._captured: deque[bytes] = deque()
        self._wire = wire or self._captured.append
        self._changes = 0

    # The driver's side: registers.

    def transport_features(self) -> int:
        """Queue reset and an administration virtqueue."""
        return _CARRIED

    def device_features(self) -> int:
        """What the device offers."""
        return self.device.offered_features

    def write_driver_features(self, word: int) -> None:
        """Accept features."""
        self.device.write_driver_features(word)

    def driver_features(self) -> int:
        """The features accepted."""
        return self.device.driver_features

    def status(self) -> int:
        """Device status."""
        return int(self.device.status)

    def write_status(self, value: int) -> None:
        """Write the device status; 0 resets device and queues."""
        self.device.status = Status(value)
        if value == 0:
            self.rings.reset()

    def config_generation(self) -> int:
        """Configuration generation, 8 bits."""
        return self.device.config_generation

    @property
    def config_changes(self) -> int:
        """How often the device has told of its configuration."""
        self._changes += self.device.take_config_change()
        return self._changes

    def read_config(self, offset: int, length: int) -> bytes:
        """Configuration bytes."""
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration bytes, which the device ignores."""
        self.device.write_config(offset, data)

    # The driver's side: queues.

    def num_queues(self) -> int:
        """Virtqueues without the administration virtqueue."""
        return self.rings.queue_count

    def admin_queue_index(self) -> int:
        """Index of the administration virtqueue."""
        return self.rings.admin_queue_index

    def admin_queue_num(self) -> int:
        """One administration virtqueue."""
        return 1

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue."""
        return self.rings.queue_max_size(index)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Enable a queue."""
        self.rings.enable_queue(index, layout)

    def reset_queue(self, index: int) -> None:
        """Reset a queue; done on return."""
        self.rings.reset_queue(index)

    def kick(self, index: int) -> None:
        """Let the device work on a queue until it is empty."""
        while True:
            for frame in self.rings.kick(index):
                self._wire(frame)
            if not self.rings.pending(index):
                return

    def interrupts(self) -> set[int]:
        """Queues with a used-buffer notification since the last call."""
        return self.rings.take_interrupts()

    def poll(self, timeout: float) -> None:
        """Nothing: what there was to do is done. ``timeout`` is not waited for."""

    # The wire's side.

    def inject(self, frame: bytes) -> None:
        """A frame arrives at the device from the wire."""
        self.rings.deliver(frame)

    def captured(self) -> list[bytes]:
        """The frames that left the device since the last call, oldest first."""
        frames = list(self._captured)
        self._captured.clear()
        return frames
