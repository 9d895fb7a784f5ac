"""Interrupts as the driver takes them: MSI-X where the function has it, else INTx with the ISR status.

Vector 0 tells of the configuration, the others are dealt out to the queues; with fewer vectors than queues some are
shared, down to one for everything (virtio v1.4 4.1.5.1.2, 4.1.5.4, 4.1.5.5).
"""

from __future__ import annotations

import os
from typing import Final

from virtio_ipsec.transport.virtio_pci.access import FunctionAccess, IrqIndex
from virtio_ipsec.transport.virtio_pci.discovery import Found
from virtio_ipsec.transport.virtio_pci.tables import (
    MSIX_ENABLE,
    MSIX_MASK_ALL,
    NO_VECTOR,
    Isr,
    MsixCap,
    Region,
    Register,
)
from virtio_ipsec.transport.virtio_pci.window import Window

#: More than this are not made: every one is a descriptor.
MOST_VECTORS: Final = 64


class _IsrStatus(Register):
    STATUS = (0, 1)


class Interrupts:
    """The interrupts of ``found``, for up to ``queues`` virtqueues. Nothing rings before :meth:`arm`."""

    def __init__(self, access: FunctionAccess, found: Found, queues: int, isr: Window | None) -> None:
        self._access = access
        self._msix = found.msix
        self._isr = isr
        count = min(found.vectors, queues + 1, MOST_VECTORS)
        self._index = IrqIndex.MSIX
        if not count and isr is not None and access.irq_count(IrqIndex.INTX):
            self._index, count = IrqIndex.INTX, 1
        self._fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
        self._users: dict[int, int] = {}
        self._called: set[int] = set()
        #: How often the device has said that its configuration changed.
        self.changes = 0

    @property
    def kind(self) -> str:
        """For people: what is in use."""
        if not self._fds:
            return "none"
        return f"msi-x, {len(self._fds)} vectors" if self.has_vectors else "intx"

    @property
    def has_vectors(self) -> bool:
        """Whether vectors are to be assigned to queues."""
        return bool(self._fds) and self._index == IrqIndex.MSIX

    @property
    def config_vector(self) -> int:
        """The vector of configuration changes."""
        return 0 if self.has_vectors else NO_VECTOR

    def vector(self, queue: int) -> int:
        """The vector of a queue."""
        others = len(self._fds) - 1
        if not self.has_vectors:
            return NO_VECTOR
        return 1 + queue % others if others else 0

    def arm(self) -> None:
        """Have the function ring; again after it was reset as a whole."""
        if not self._fds:
            return
        self._access.set_irqs(self._index, 0, self._fds)
        if self.has_vectors and self._msix is not None:
            at = self._msix + MsixCap.CONTROL.offset
            control = int.from_bytes(self._access.read(Region.CONFIG, at, MsixCap.CONTROL.width), "little")
            control = control & ~MSIX_MASK_ALL | MSIX_ENABLE
            self._access.write(Region.CONFIG, at, control.to_bytes(MsixCap.CONTROL.width, "little"))

    def use(self, queue: int) -> None:
        """A queue notifies from now on."""
        self._users[queue] = self.vector(queue)

    def drop(self, queue: int) -> None:
        """It does not any more."""
        self._users.pop(queue, None)
        self._called.discard(queue)

    def forget(self) -> None:
        """After a reset: what rang before means nothing."""
        self._users.clear()
        for fd in self._fds:
            _take(fd)
        self._called.clear()

    def filenos(self) -> list[int]:
        """What becomes readable when the device notifies."""
        return self._fds

    def gather(self) -> None:
        """Take note of what has rung, so that the descriptors are quiet again."""
        rung = {vector for vector, fd in enumerate(self._fds) if _take(fd)}
        if not rung:
            return
        if self.has_vectors:
            self._called |= {queue for queue, vector in self._users.items() if vector in rung}
            self.changes += 0 in rung
        else:
            self._gather_intx()

    def _gather_intx(self) -> None:
        """One line for everything: the ISR status says what it was, and reading it lowers the line."""
        if self._isr is not None:
            status = self._isr.get(_IsrStatus.STATUS)
            if status & Isr.QUEUE:
                self._called |= self._users.keys()
            self.changes += bool(status & Isr.CONFIG)
        self._access.unmask_irq(IrqIndex.INTX)

    def called(self) -> set[int]:
        """Queues with a notification since the last call."""
        self.gather()
        called, self._called = self._called, set()
        return called

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def _take(fd: int) -> bool:
    # It belongs to the device's side too, which may have made it block.
    try:
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
