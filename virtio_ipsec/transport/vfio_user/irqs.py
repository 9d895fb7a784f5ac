"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS: which interrupts a function has, and what a client does with them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.bells import check_eventfd
from virtio_ipsec.transport.vfio_user.messages import Refused
from virtio_ipsec.transport.vfio_user.payloads import NUM_IRQS, IrqFlag, IrqInfo, IrqSet, SetFlag
from virtio_ipsec.transport.virtio_pci.access import IrqIndex
from virtio_ipsec.transport.virtio_pci.function import PciFunction

#: Plain numbers: the complement of a flag has no bits that have no name.
_DATA: Final = int(SetFlag.DATA)
_ACTION: Final = int(SetFlag.ACTION)
_NONE, _BOOL, _EVENTFD = (int(each) for each in (SetFlag.DATA_NONE, SetFlag.DATA_BOOL, SetFlag.DATA_EVENTFD))


class Interrupts:
    """One client's. ``fds``: the descriptors of the message at hand; those that are taken are removed."""

    def __init__(self, function: PciFunction, fds: list[int]) -> None:
        self._function = function
        self._fds = fds
        #: What the client rings to unmask INTx.
        self._unmask: int | None = None

    def close(self) -> None:
        """What was set up here is no more; the function's eventfds are its own business."""
        if self._unmask is not None:
            self._function.port.loop.remove(self._unmask)
            os.close(self._unmask)
            self._unmask = None

    def info(self, index: int) -> IrqInfo:
        """What kind of interrupts it is, and how many there are. Refused beyond the last kind."""
        flags = IrqFlag(0)
        count = self._count(index)
        if count:
            flags = IrqFlag.EVENTFD | IrqFlag.MASKABLE
            if index == IrqIndex.INTX:
                flags |= IrqFlag.AUTOMASKED
        return IrqInfo(index, int(flags), count)

    def set(self, asked: IrqSet) -> None:
        """All of it, or Refused and nothing."""
        data, action = asked.flags & _DATA, asked.flags & _ACTION
        if asked.flags & ~(_DATA | _ACTION) or data.bit_count() != 1 or action.bit_count() != 1:
            raise Refused(errno.EINVAL, f"interrupts set with flags {asked.flags:#x}")
        if asked.start + asked.count > self._count(asked.index):
            raise Refused(errno.EINVAL, f"interrupts {asked.start} to {asked.start + asked.count}")
        if len(asked.data) != (asked.count if data == _BOOL else 0):
            raise Refused(errno.EINVAL, f"{asked.count} interrupts with {len(asked.data)} bytes")
        if len(self._fds) not in ((0, asked.count) if data == _EVENTFD else (0,)):
            raise Refused(errno.EINVAL, f"{asked.count} interrupts with {len(self._fds)} descriptors")
        numbers = range(asked.start, asked.start + asked.count)
        if not asked.count:
            if asked.flags != _NONE | SetFlag.ACTION_TRIGGER or asked.start:
                raise Refused(errno.EINVAL, "no interrupts are set")
            self._attach(asked.index, range(self._count(asked.index)))
        elif data == _EVENTFD:
            self._set_eventfds(asked.index, action, numbers)
        else:
            chosen = (
                numbers if data == _NONE else [n for n, on in zip(numbers, asked.data, strict=True) if on]
            )
            self._act(asked.index, action, chosen)

    def _count(self, index: int) -> int:
        if index >= NUM_IRQS:
            raise Refused(errno.EINVAL, f"there is no interrupt of kind {index}")
        if index == IrqIndex.INTX:
            return int(self._function.has_intx)
        return self._function.msix_vectors if index == IrqIndex.MSIX else 0

    def _set_eventfds(self, index: int, action: int, numbers: range) -> None:
        for fd in self._fds:
            try:
                check_eventfd(fd)
            except TransportError as error:
                raise Refused(errno.EINVAL, str(error)) from None
        if action == SetFlag.ACTION_TRIGGER:
            self._attach(index, numbers)
        elif action == SetFlag.ACTION_UNMASK and index == IrqIndex.INTX:
            self.close()
            if self._fds:
                self._unmask = self._fds.pop()
                self._function.port.loop.add(self._unmask, partial(self._unmask_rung, self._unmask))
        else:
            raise Refused(errno.ENOTTY, "nobody is told of masks")

    def _attach(self, index: int, numbers: range) -> None:
        """Have each ring its descriptor, or nobody where none have come."""
        for number in numbers:
            fd = self._fds.pop(0) if self._fds else None  # no longer the message's, even if there is an error
            if index == IrqIndex.INTX:
                self._function.set_intx(fd)
            else:
                self._function.set_msix(number, fd)

    def _act(self, index: int, action: int, numbers: Iterable[int]) -> None:
        function = self._function
        on = action == SetFlag.ACTION_MASK
        for number in numbers:
            if index == IrqIndex.INTX:
                if action == SetFlag.ACTION_TRIGGER:
                    function.ring_intx()
                else:
                    function.mask_intx(on)
            elif action == SetFlag.ACTION_TRIGGER:
                function.ring_msix(number)
            else:
                function.mask_msix(number, on)

    def _unmask_rung(self, fd: int) -> None:
        # It belongs to the client too, who may have made it block or have taken the event back.
        with suppress(BlockingIOError):
            os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
            self._function.mask_intx(False)
