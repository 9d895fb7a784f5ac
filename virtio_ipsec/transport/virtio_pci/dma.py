"""Memory for DMA out of a file without a name, at addresses of our choice."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.transport.vhost_user.shared import SharedFile, full_fence

#: Not 0, so that a mistaken address is an error, and below what platforms keep for interrupts.
_BASE: Final = 0x1000_0000


class Mapper(Protocol):
    """Who lets a function reach memory."""

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None: ...

    def unmap_dma(self, iova: int, size: int) -> None: ...


class FileMemory:
    """``size`` zeroed bytes that a function reaches from ``address``; ``huge``: in huge pages, if the kernel has them
    to spare."""

    def __init__(self, mapper: Mapper, size: int, address: int = _BASE, *, huge: bool = False) -> None:
        self.file = SharedFile("virtio-ipsec dma", size, huge=huge)
        self.address = address
        self._mapper = mapper
        try:
            self.map()
        except BaseException:
            self.file.close()
            raise
        self.memory = GuestMemory([Region(address, size, self.file.map)], full_fence)
        self.allocator = Allocator(address, size)

    def map(self) -> None:
        """Let the function reach it, at first and when the function has come back."""
        self._mapper.map_dma(self.file.fd, 0, self.file.size, self.address)

    def close(self) -> None:
        """The function reaches it no longer; one that is gone does not anyway."""
        if self.file.fd >= 0:
            with suppress(TransportError):
                self._mapper.unmap_dma(self.address, self.file.size)
        self.file.close()
