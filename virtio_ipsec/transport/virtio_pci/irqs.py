"""How a function interrupts: MSI-X vectors with their table and pending bits, or INTx with the ISR status byte.

Every queue has an eventfd in the port that is rung without anybody here being asked. So what is done here is to choose
what stands behind it: the client's eventfd of a vector, one that only counts what is pending while the vector is
masked, or one that is read in the control thread to set the ISR byte.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from virtio_ipsec.transport.bells import Bell
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.virtio_pci.tables import (
    MSIX_ENTRY_MASKED,
    MSIX_ENTRY_SIZE,
    NO_VECTOR,
    Isr,
    MsixEntry,
)

_CONTROL: Final = MsixEntry.CONTROL.offset


class _Vector:
    """One row of the MSI-X table."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.pending = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.has_fd = False

    @property
    def is_pending(self) -> bool:
        poller = select.poll()
        poller.register(self.pending, select.POLLIN)
        return bool(poller.poll(0))

    def settle(self) -> bool:
        """Nothing is pending any more; whether something was."""
        with suppress(BlockingIOError):
            return bool(os.eventfd_read(self.pending))
        return False

    def attach(self, fd: int | None) -> None:
        self.has_fd = False
        self.bell.attach(fd)
        self.has_fd = fd is not None

    def close(self) -> None:
        self.bell.close()
        os.close(self.pending)


class Interrupts:
    """All of one function's. ``show``: called with whether INTx is asserted, whenever that may have changed.

    Everything in the control thread of the port.
    """

    def __init__(self, port: ServedPort, vectors: int, show: Callable[[bool], None]) -> None:
        self._port = port
        self._show = show
        self._vectors = [_Vector() for _ in range(vectors)]
        self._table = bytearray(MSIX_ENTRY_SIZE * vectors)
        self._queue_vectors = [NO_VECTOR] * port.queue_count
        self._config_vector = NO_VECTOR
        self._isr = 0
        self._intx = Bell()
        self._intx_masked = False
        self._intx_disabled = False
        self._msix = False
        self._mask_all = False
        #: Rung by queues while MSI-X is off.
        self._queues = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        port.loop.add(self._queues, self._queue_used)
        self.reset()

    def close(self) -> None:
        """Nothing of it is used any more."""
        self._port.loop.remove(self._queues)
        os.close(self._queues)
        self._intx.close()
        for vector in self._vectors:
            vector.close()

    # What the driver sets up in the common configuration.

    @property
    def config_vector(self) -> int:
        """The vector of configuration changes."""
        return self._config_vector

    @config_vector.setter
    def config_vector(self, vector: int) -> None:
        self._config_vector = self._valid(vector)

    def queue_vector(self, index: int) -> int:
        """The vector of a queue."""
        return self._queue_vectors[index]

    def set_queue_vector(self, index: int, vector: int) -> None:
        """One that the table does not have leaves the queue without any (4.1.5.1.2.1)."""
        self._queue_vectors[index] = self._valid(vector)
        self._route(index)

    def _valid(self, vector: int) -> int:
        return vector if vector < len(self._vectors) else NO_VECTOR

    def unmap(self) -> None:
        """Device reset: no event has a vector, and nothing is left to tell of."""
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self._queue_vectors)
        for index in range(len(self._queue_vectors)):
            self._route(index)
        self.take_isr()

    # What software sets up by PCI's means.

    def set_msix(self, *, enabled: bool, mask_all: bool) -> None:
        """The control register of the MSI-X capability."""
        if (enabled, mask_all) != (self._msix, self._mask_all):
            self._msix, self._mask_all = enabled, mask_all
            self._reroute()
            self._assert()

    def set_intx_disabled(self, on: bool) -> None:
        """The command register."""
        self._intx_disabled = on
        self._assert()

    def read_table(self, offset: int, length: int) -> bytes:
        """Bytes of the MSI-X table, 0 behind its end."""
        return bytes(self._table[offset : offset + length]).ljust(length, b"\0")

    def write_table(self, offset: int, data: bytes) -> None:
        """Bytes of the MSI-X table. Only the mask bit means something to us: where the message goes is the
        client's business."""
        touched = set()
        for place, value in enumerate(data[: max(0, len(self._table) - offset)], offset):
            within = place % MSIX_ENTRY_SIZE
            if within >= _CONTROL:
                value &= MSIX_ENTRY_MASKED if within == _CONTROL else 0
                touched.add(place // MSIX_ENTRY_SIZE)
            self._table[place] = value
        self._reroute(touched)

    def read_pending(self, offset: int, length: int) -> bytes:
        """Bytes of the pending bit array."""
        bits = sum(1 << i for i, vector in enumerate(self._vectors) if vector.is_pending)
        return (bits >> 8 * offset & (1 << 8 * length) - 1).to_bytes(length, "little")

    def reset(self) -> None:
        """Function level reset: as after power-on. Who wants interrupts has to say so again."""
        self._intx_masked = self._intx_disabled = self._msix = self._mask_all = False
        self._intx.attach(None)
        for number, vector in enumerate(self._vectors):
            vector.attach(None)
            vector.settle()
            begin = MSIX_ENTRY_SIZE * number
            self._table[begin : begin + MSIX_ENTRY_SIZE] = bytes(MSIX_ENTRY_SIZE)
            self._table[begin + _CONTROL] = MSIX_ENTRY_MASKED
        self.unmap()

    # What the client sets up: eventfds, and masks in place of those in the table, which it may keep to itself.

    @property
    def vectors(self) -> int:
        """Rows of the table."""
        return len(self._vectors)

    def attach(self, number: int, fd: int | None) -> None:
        """A vector rings this eventfd, owned from here on, and is not masked; None: nobody."""
        vector = self._vectors[number]
        try:
            vector.attach(fd)
        finally:
            self.mask(number, not vector.has_fd)

    def mask(self, number: int, on: bool) -> None:
        """As the mask bit in the table."""
        self._table[MSIX_ENTRY_SIZE * number + _CONTROL] = MSIX_ENTRY_MASKED if on else 0
        self._reroute({number})

    def ring(self, number: int) -> None:
        """The vector as an event would have it."""
        self._vectors[number].bell.ring()

    def attach_intx(self, fd: int | None) -> None:
        """INTx rings this eventfd, owned from here on, and is not masked; None: nobody."""
        self._intx.attach(fd)
        self.mask_intx(False)

    def mask_intx(self, on: bool) -> None:
        """INTx masks itself when it rings. Unmasked it rings again if it is still asserted."""
        self._intx_masked = on
        self._assert()

    def ring_intx(self) -> None:
        """INTx as an event would have it."""
        self._intx.ring()

    # Events.

    def config_changed(self) -> None:
        """Tell the driver (4.1.4.5.1, 4.1.5.4)."""
        self._isr |= Isr.CONFIG
        if not self._msix:
            self._assert()
        elif self._config_vector != NO_VECTOR:
            if self._delivers(self._config_vector):
                self._vectors[self._config_vector].bell.ring()
            else:
                os.eventfd_write(self._vectors[self._config_vector].pending, 1)

    def take_isr(self) -> int:
        """What the driver reads in the ISR status byte: it is 0 and INTx deasserted from then on."""
        self._queue_used()
        isr, self._isr = self._isr, 0
        self._assert()
        return isr

    def _queue_used(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._queues)
            self._isr |= Isr.QUEUE
            self._assert()

    def _assert(self) -> None:
        level = bool(self._isr) and not self._msix
        self._show(level)
        if level and not self._intx_masked and not self._intx_disabled:
            self._intx_masked = True
            self._intx.ring()

    # What stands behind the eventfds of queues.

    def _delivers(self, number: int) -> bool:
        masked = self._mask_all or self._table[MSIX_ENTRY_SIZE * number + _CONTROL] & MSIX_ENTRY_MASKED
        return self._vectors[number].has_fd and not masked

    def _route(self, index: int) -> None:
        number = self._queue_vectors[index]
        if not self._msix:
            target = self._queues
        elif number == NO_VECTOR:
            self._port.set_call(index, None)
            return
        else:
            vector = self._vectors[number]
            target = vector.bell.fd if self._delivers(number) else vector.pending
        self._port.set_call(index, os.dup(target))

    def _reroute(self, numbers: set[int] | None = None) -> None:
        """For these vectors, or all of them; then ring those that are pending and may."""
        for index, number in enumerate(self._queue_vectors):
            if numbers is None or number in numbers:
                self._route(index)
        for number in range(len(self._vectors)) if numbers is None else numbers:
            if self._msix and self._delivers(number) and self._vectors[number].settle():
                self._vectors[number].bell.ring()
