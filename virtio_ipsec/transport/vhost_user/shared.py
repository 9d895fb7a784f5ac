"""Memory that a front-end shares with its back-end: a file without a name, mapped here, passed by descriptor."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from contextlib import suppress

from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.transport.vhost_user.messages import MemoryRegion

_FENCE = threading.Lock()


def full_fence() -> None:
    """A barrier between an earlier store and a later load, for memory that another process looks at.

    Python has none. Taking a lock is a read-modify-write that everything else waits for (x86: a locked instruction).
    """
    with _FENCE:
        pass


#: The smallest huge page of this kind of machine.
HUGE_PAGE = 2 << 20


class SharedFile:
    """``size`` zeroed bytes, as a descriptor and as a mapping. It cannot shrink: nobody can take mapped bytes away.

    ``huge``: in huge pages, for sizes that are made of them and as long as the kernel has enough to spare.
    """

    def __init__(self, name: str, size: int, *, huge: bool = False) -> None:
        self.size = size
        if huge and size % HUGE_PAGE == 0:
            with suppress(OSError):
                self._make(name, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
                return
        self._make(name, 0)

    def _make(self, name: str, flags: int) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        try:
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.map = mmap.mmap(self.fd, self.size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor; the mapping goes when nothing refers to it any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SharedMemory:
    """Guest memory of ``size`` bytes from ``address``, in one region, and who has which piece of it."""

    #: What the messages call user addresses is anything that only the sender knows; this differs from guest addresses,
    #: so that a back-end which takes one for the other is found out.
    USER_OFFSET = 0x7000_0000_0000

    def __init__(self, size: int, address: int) -> None:
        self.file = SharedFile("virtio-ipsec guest", size)
        self.address = address
        self.memory = GuestMemory([Region(address, size, self.file.map)], full_fence)
        self.allocator = Allocator(address, size)

    @property
    def region(self) -> MemoryRegion:
        """As the messages describe it."""
        return MemoryRegion(self.address, self.file.size, self.user_address(self.address), 0)

    def user_address(self, address: int) -> int:
        """The user address of a guest address."""
        return address + self.USER_OFFSET

    def close(self) -> None:
        """Give the descriptor back."""
        self.file.close()
