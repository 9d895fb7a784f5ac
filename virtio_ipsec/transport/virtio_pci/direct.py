"""A PCI function of this process, reached by calls: what a driver's link needs, without a protocol in between."""

from __future__ import annotations

import os
from collections.abc import Sequence

from virtio_ipsec.ring.memory import Region
from virtio_ipsec.transport.mapping import map_shared, memory_of
from virtio_ipsec.transport.virtio_pci.access import DmaMemory, IrqIndex, RegionInfo
from virtio_ipsec.transport.virtio_pci.dma import FileMemory
from virtio_ipsec.transport.virtio_pci.function import PciFunction


class DirectAccess:
    """Access (:class:`~virtio_ipsec.transport.virtio_pci.access.FunctionAccess`) to ``function``, whose control thread
    is the caller's: its port's loop turns in :meth:`serve`. The function stays the caller's."""

    name = "direct"

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._bells: list[int] = []
        self._memory: FileMemory | None = None

    def region_info(self, region: int) -> RegionInfo:
        """What a region is."""
        size = self._function.region_size(region)
        return RegionInfo(size, readable=bool(size), writable=bool(size))

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Bytes of a region."""
        return self._function.read(region, offset, length)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write bytes of a region."""
        self._function.write(region, offset, data)

    def map_region(self, region: int, offset: int, length: int) -> memoryview | None:
        """Nothing can be mapped."""
        return None

    def doorbell(self, region: int, offset: int, length: int, value: int | None = None) -> int | None:
        """The eventfd of a notification address."""
        for bell in self._function.doorbells():
            if (bell.region, bell.offset) == (region, offset) and length <= bell.length:
                self._bells.append(os.dup(bell.fd))
                return self._bells[-1]
        return None

    def new_memory(self, size: int) -> DmaMemory:
        """Memory that both map."""
        self._memory = FileMemory(self, size)
        return self._memory

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None:
        """The function reaches this, and nothing else."""
        self._function.set_memory(memory_of([Region(iova, size, map_shared(fd, size, offset))]))

    def unmap_dma(self, iova: int, size: int) -> None:
        """The function reaches nothing."""
        self._function.set_memory(None)

    def irq_count(self, index: int) -> int:
        """Vectors of MSI-X, or INTx."""
        intx = 1 if self._function.has_intx else 0
        return {int(IrqIndex.MSIX): self._function.msix_vectors, int(IrqIndex.INTX): intx}.get(index, 0)

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Who hears of them."""
        function = self._function
        if index == IrqIndex.INTX:
            for fd in eventfds or (None,):
                function.set_intx(None if fd is None else os.dup(fd))
            return
        for vector, fd in enumerate(eventfds or [None] * function.msix_vectors, start):
            function.set_msix(vector, None if fd is None else os.dup(fd))

    def unmask_irq(self, index: int) -> None:
        """INTx may ring again."""
        if index == IrqIndex.INTX:
            self._function.mask_intx(False)

    def reset(self) -> None:
        """Function level reset."""
        self._function.reset()

    def reconnect(self) -> None:
        """As another client."""
        self._function.disconnect()
        if self._memory is not None:
            self._memory.map()

    def filenos(self) -> tuple[int, ...]:
        """The loop of the function's port."""
        return (self._function.port.loop.fileno(),)

    def serve(self) -> None:
        """Let it turn."""
        self._function.port.loop.turn(0)

    def close(self) -> None:
        """The function forgets this client."""
        for fd in self._bells:
            os.close(fd)
        self._bells.clear()
        self._function.disconnect()
