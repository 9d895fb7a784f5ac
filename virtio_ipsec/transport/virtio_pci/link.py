"""The driver's side of a virtio PCI function: a :class:`~virtio_ipsec.driver.link.Link` over any access to it.

Where the driver clauses of the transport are obeyed (virtio v1.4 4.1):

===================  =================================================================================
PCI-CC-DRV-01        ``CommonCfg`` fields that are read-only are only ever read here
PCI-CC-DRV-02, -03   ``queue_size`` is written as the driver laid the queue out, never 0 and, without
                     F_RING_PACKED, only a power of two: :meth:`PciLink.enable_queue`
PCI-CC-DRV-04, -06   :meth:`PciLink.enable_queue`: ``queue_enable`` comes last, and is 1
PCI-CC-DRV-05        :meth:`PciLink.reset`, and ``Session.reset`` of the driver
PCI-CC-DRV-07        :meth:`PciLink.reset_queue` waits until ``queue_reset`` reads 0
PCI-CC-DRV-08        :meth:`PciLink.enable_queue`: the device has the queue (``queue_size`` is not 0)
===================  =================================================================================
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final

from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import Found, Place, discover
from virtio_ipsec.transport.virtio_pci.interrupts import Interrupts
from virtio_ipsec.transport.virtio_pci.notify import Doorbell, Position
from virtio_ipsec.transport.virtio_pci.owner import VirtualFunctions, find_sriov
from virtio_ipsec.transport.virtio_pci.tables import (
    FEATURE_WORDS,
    NO_VECTOR,
    Command,
    CommonCfg,
    Header,
    Region,
)
from virtio_ipsec.transport.virtio_pci.window import Window
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, Status, has, mask

#: All but suspending, which the driver has no use for.
_CARRIED: Final = TRANSPORT_BITS & ~mask(Feature.F_SUSPEND)
#: Seconds between two looks at a register that is to change.
_LOOK: Final = 0.001
_WORD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Options:
    """How a link behaves: ``memory`` in bytes, ``patience`` in seconds for what a device has to complete."""

    memory: int = 64 << 20
    patience: float = 5.0


@dataclass(frozen=True, slots=True)
class _Queue:
    most: int
    layout: QueueLayout
    doorbell: Doorbell


class PciLink:
    """A network device behind ``access``, which belongs to the link from here on.

    Raises TransportError and its kinds, AccessRefused among them; for a function that is no such device at once.
    """

    def __init__(self, access: FunctionAccess, options: Options | None = None) -> None:
        self.access = access
        self.options = options or Options()
        self._queues: dict[int, _Queue] = {}
        self._features = 0
        self._is_armed = False
        self._changes_before = 0
        try:
            self._open()
            try:
                self.dma = access.new_memory(self.options.memory)
            except BaseException:
                self._signals.close()
                raise
        except BaseException:
            access.close()
            raise

    def _open(self) -> None:
        access = self.access
        found = discover(access)
        self._enable_function()
        self.found: Found = found
        base = find_sriov(access)
        #: Those that the function owns; None: it can own none.
        self.virtual_functions = None if base is None else VirtualFunctions(access, base)
        self._common = Window(access, found.common, "the common configuration")
        self._device = Window(access, found.device, "the device configuration") if found.device else None
        isr = Window(access, found.isr, "the ISR status") if found.isr else None
        self._signals = Interrupts(access, found, self.num_queues() + 1, isr)
        try:
            self._signals.arm()
        except BaseException:
            self._signals.close()
            raise

    def _enable_function(self) -> None:
        """Let it answer in its regions, reach memory, and interrupt."""
        at, width = Header.COMMAND.offset, Header.COMMAND.width
        command = int.from_bytes(self.access.read(Region.CONFIG, at, width), "little")
        command = (command | Command.MEMORY | Command.IO | Command.MASTER) & ~Command.INTX_DISABLE
        self.access.write(Region.CONFIG, at, command.to_bytes(width, "little"))

    @property
    def interrupt_kind(self) -> str:
        """For people: which interrupts are in use."""
        return self._signals.kind

    def restart(self) -> None:
        """Reach the function anew after it was lost, and forget all queues: for a driver that begins with a reset."""
        self._forget()
        self._changes_before = self.config_changes + 1
        self._signals.close()
        self.access.reconnect()
        self._open()

    def function_reset(self) -> None:
        """Reset the whole function, configuration space included; then as after :meth:`reset`."""
        self.access.reset()
        self._forget()
        self._enable_function()
        self._signals.arm()

    def close(self) -> None:
        """Let the device forget its queues, as far as it can be reached, and release everything."""
        with suppress(TransportError):
            self.write_status(0)
        self.dma.close()
        self._signals.close()
        self.access.close()

    # Registers.

    @property
    def memory(self) -> GuestMemory:
        """The memory that the device reaches."""
        return self.dma.memory

    @property
    def allocator(self) -> Allocator:
        """Hands out pieces of it."""
        return self.dma.allocator

    def transport_features(self) -> int:
        """What virtio over PCI carries; F_SR_IOV only for a function that has virtual ones."""
        return _CARRIED if self.virtual_functions is not None else _CARRIED & ~mask(Feature.F_SR_IOV)

    def device_features(self) -> int:
        """All feature words."""
        words = self._words(CommonCfg.device_feature_select, CommonCfg.device_feature)
        return sum(word << 32 * number for number, word in enumerate(words))

    def write_driver_features(self, word: int) -> None:
        """Accept features."""
        self._features = word
        for number in range(FEATURE_WORDS):
            self._common.put(CommonCfg.driver_feature_select, number)
            self._common.put(CommonCfg.driver_feature, word >> 32 * number & _WORD)

    def driver_features(self) -> int:
        """The features accepted, as the device knows them."""
        words = self._words(CommonCfg.driver_feature_select, CommonCfg.driver_feature)
        return sum(word << 32 * number for number, word in enumerate(words))

    def _words(self, selector: CommonCfg, register: CommonCfg) -> Iterator[int]:
        for number in range(FEATURE_WORDS):
            self._common.put(selector, number)
            yield self._common.get(register)

    def status(self) -> int:
        """The device status."""
        return self._common.get(CommonCfg.device_status)

    def write_status(self, value: int) -> None:
        """Write the device status; 0 resets the device and forgets all queues."""
        self._common.put(CommonCfg.device_status, value & 0xFF)
        self.status()  # writes are posted: a doorbell must not overtake this one
        if value == 0:
            self._forget()
        elif value & Status.DRIVER and not self._is_armed:
            self._is_armed = True
            self._assign(CommonCfg.config_msix_vector, self._signals.config_vector)

    def reset(self) -> None:
        """Reset the device and wait until it is reset."""
        self.write_status(0)
        self._await(lambda: self.status() == 0, "finish its reset")

    def _forget(self) -> None:
        for queue in self._queues.values():
            queue.doorbell.close()
        self._queues.clear()
        self._signals.forget()
        self._features, self._is_armed = 0, False

    def _assign(self, register: CommonCfg, vector: int) -> None:
        """Map an event to a vector, and see whether the device has taken it."""
        if vector == NO_VECTOR:
            return
        self._common.put(register, vector)
        if (taken := self._common.get(register)) != vector:
            raise TransportError(f"the device does not take vector {vector} for {register.name}: {taken:#x}")

    def config_generation(self) -> int:
        """Changes with the configuration."""
        return self._common.get(CommonCfg.config_generation)

    @property
    def config_changes(self) -> int:
        """How often the configuration may have changed: the device has said so, or it was lost."""
        return self._changes_before + self._signals.changes

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the device configuration, each field by accesses of its width."""
        return b"".join(self._own.read(at, width) for at, width in _accesses(offset, length))

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the device configuration."""
        for at, width in _accesses(offset, len(data)):
            self._own.write(at, data[at - offset : at - offset + width])

    @property
    def _own(self) -> Window:
        if self._device is None:
            raise TransportError("the device has no configuration of its own")
        return self._device

    # Virtqueues.

    def num_queues(self) -> int:
        """Virtqueues without the administration virtqueues."""
        return self._common.get(CommonCfg.num_queues)

    def admin_queue_index(self) -> int:
        """Index of the first administration virtqueue."""
        if not self._common.has(CommonCfg.admin_queue_index):
            return self.num_queues()
        return self._common.get(CommonCfg.admin_queue_index)

    def admin_queue_num(self) -> int:
        """Number of administration virtqueues."""
        has_it = self._common.has(CommonCfg.admin_queue_num)
        return self._common.get(CommonCfg.admin_queue_num) if has_it else 0

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue."""
        if index in self._queues:
            return self._queues[index].most
        if not 0 <= index <= 0xFFFF:
            return 0
        self._common.put(CommonCfg.queue_select, index)
        return self._common.get(CommonCfg.queue_size)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Tell the device where a queue lies, and enable it. TransportError when it has none of that index, or does not
        say where to ring for it."""
        if index in self._queues:
            raise TransportError(f"queue {index} is in use")
        common, most = self._common, self.queue_max_size(index)
        if not most:
            raise TransportError(f"the device has no queue {index}")
        doorbell = self._doorbell(index, layout)
        common.put(CommonCfg.queue_size, layout.size)
        common.put(CommonCfg.queue_desc_lo, layout.desc & _WORD)
        common.put(CommonCfg.queue_desc_hi, layout.desc >> 32)
        common.put(CommonCfg.queue_driver_lo, layout.driver & _WORD)
        common.put(CommonCfg.queue_driver_hi, layout.driver >> 32)
        common.put(CommonCfg.queue_device_lo, layout.device & _WORD)
        common.put(CommonCfg.queue_device_hi, layout.device >> 32)
        self._assign(CommonCfg.queue_msix_vector, self._signals.vector(index))
        self._signals.use(index)
        self._queues[index] = _Queue(most, layout, doorbell)
        common.put(CommonCfg.queue_enable, 1)
        common.get(CommonCfg.queue_enable)  # as for the status

    def _doorbell(self, index: int, layout: QueueLayout) -> Doorbell:
        """The doorbell of the queue that is selected."""
        with_data = has(self._features, Feature.F_NOTIFICATION_DATA)
        width, value = 4 if with_data else 2, index
        if has(self._features, Feature.F_NOTIF_CONFIG_DATA):
            value = self._common.get(CommonCfg.queue_notif_config_data)
        notify = self.found.notify
        offset = self._common.get(CommonCfg.queue_notify_off) * self.found.multiplier
        if offset + width > notify.length:
            raise TransportError(f"the doorbell of queue {index} lies at {offset} of {notify.length} bytes")
        place = Place(notify.region, notify.offset + offset, width)
        position = Position(self.memory, layout, self._features) if with_data else None
        return Doorbell(self.access, place, value, position)

    def reset_queue(self, index: int) -> None:
        """Reset one queue and wait until the device says that it is done."""
        self._common.put(CommonCfg.queue_select, index)
        self._common.put(CommonCfg.queue_reset, 1)
        self._await(lambda: self._is_queue_reset(index), f"finish the reset of queue {index}")
        self._signals.drop(index)
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.doorbell.close()

    def _is_queue_reset(self, index: int) -> bool:
        self._common.put(CommonCfg.queue_select, index)
        return not self._common.get(CommonCfg.queue_reset)

    def kick(self, index: int) -> None:
        """Available buffer notification; nothing for a queue that is not enabled."""
        queue = self._queues.get(index)
        if queue is not None:
            queue.doorbell.ring()

    def kick_fd(self, index: int) -> int | None:
        """The eventfd that notifies the device, for drivers that are not written in Python; None: there is none."""
        return self._queues[index].doorbell.fd

    def kick_word(self, index: int) -> memoryview | None:
        """The same for a doorbell that is a mapped register: without F_NOTIFICATION_DATA and F_NOTIF_CONFIG_DATA the
        queue's index, 16 bits, is what to write there."""
        return self._queues[index].doorbell.word

    def interrupts(self) -> set[int]:
        """Queue indices with a used buffer notification since the last call."""
        return self._signals.called()

    def poll(self, timeout: float) -> None:
        """Wait for the device to notify or to go (TransportError); ``timeout`` in seconds."""
        self.wait(timeout, ())

    def wait(self, timeout: float, others: Iterable[int]) -> None:
        """As :meth:`poll`, and for any of these descriptors to become readable."""
        limit = monotonic() + max(0.0, timeout)
        silent = set(self.access.filenos())
        poller = select.poll()
        for fd in (*self._signals.filenos(), *silent, *others):
            poller.register(fd, select.POLLIN)
        # A device that reads and writes our memory by messages has notified nobody with that.
        while ready := {fd for fd, _ in poller.poll(max(0.0, limit - monotonic()) * 1000)}:
            self._signals.gather()
            self.access.serve()
            if ready - silent or monotonic() >= limit:
                return

    def _await(self, is_done: Callable[[], bool], what: str) -> None:
        limit = monotonic() + self.options.patience
        while not is_done():
            if monotonic() > limit:
                raise TransportError(f"the device does not {what}")
            self.wait(_LOOK, ())


def _accesses(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the accesses to some bytes of the device configuration (virtio v1.4 4.1.3.1): as wide as the
    field is that they belong to, 32 bits for the halves of one of 64; bytes where only a part of a field is meant."""
    widths: dict[int, int] = {}
    for field in NET_CONFIG.layout():
        width = field.size if field.size in (1, 2, 4) else 1
        widths |= dict.fromkeys(range(field.offset, field.offset + (field.size or 0), width), width)
    end = offset + length
    while offset < end:
        width = widths.get(offset, 1)
        width = width if offset + width <= end else 1
        yield offset, width
        offset += width
