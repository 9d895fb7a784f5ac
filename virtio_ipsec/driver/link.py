"""What a driver needs from a transport: feature words, status, configuration, memory and queues.

The driver never learns which transport it sits on. Loopback, vhost-user and virtio-pci all offer this.
"""

from __future__ import annotations

from typing import Protocol

from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.wire.numbers import Feature, mask

#: Features that belong to the transport or the ring (virtio v1.4 2.2): only some transports carry them.
TRANSPORT_BITS = mask(
    Feature.F_SR_IOV,
    Feature.F_NOTIFICATION_DATA,
    Feature.F_NOTIF_CONFIG_DATA,
    Feature.F_RING_RESET,
    Feature.F_ADMIN_VQ,
    Feature.F_SUSPEND,
)


class Link(Protocol):
    """A virtio device as its transport shows it. Queue indices are the device's virtqueue indices."""

    @property
    def memory(self) -> GuestMemory:
        """The memory that the device can reach."""

    @property
    def allocator(self) -> Allocator:
        """Hands out pieces of ``memory``."""

    def transport_features(self) -> int:
        """Which of :data:`TRANSPORT_BITS` this transport carries; the driver ignores the others
        (BAS-FEAT-04)."""

    def device_features(self) -> int:
        """All feature words that the device offers, as one number of up to 128 bits."""

    def write_driver_features(self, word: int) -> None:
        """Accept features. Complete only with FEATURES_OK."""

    def driver_features(self) -> int:
        """The features accepted, read back."""

    def status(self) -> int:
        """The device status field."""

    def write_status(self, value: int) -> None:
        """Set the device status field; 0 resets the device."""

    def config_generation(self) -> int:
        """Changes whenever the configuration may have changed between two reads."""

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the device configuration space."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write device configuration space (nothing in the network device's is writable)."""

    def num_queues(self) -> int:
        """Virtqueues without the administration virtqueues."""

    def admin_queue_index(self) -> int:
        """Index of the first administration virtqueue; meaningful with F_ADMIN_VQ negotiated."""

    def admin_queue_num(self) -> int:
        """Number of administration virtqueues."""

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue, 0 when the queue does not exist."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Tell the device where a queue lies and enable it."""

    def reset_queue(self, index: int) -> None:
        """Reset one queue and wait until the device says that it is done (needs F_RING_RESET)."""

    def kick(self, index: int) -> None:
        """Available-buffer notification."""

    def interrupts(self) -> set[int]:
        """Queue indices with a used-buffer notification since the last call."""

    def poll(self, timeout: float) -> None:
        """Give the device up to ``timeout`` seconds to make progress. May return at once."""
