"""Memory that another process shares by file descriptor, as this process maps it."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable

from virtio_ipsec.errors import MemoryAccessError, TransportError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.memory import SharedMemory
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.transport.rings import fence

#: Most bytes that one peer shares: address space is shared with other ports, and a file takes no memory for its size.
MOST_SHARED = 1 << 42


class Unusable(TransportError):
    """What a peer wants to share cannot be used."""


def check_shared(fd: int, size: int, offset: int) -> os.stat_result:
    """``size`` bytes from ``offset`` of a file, which this is about, can be shared. Raises Unusable."""
    try:
        about = os.fstat(fd)
    except OSError as error:
        raise Unusable(f"shared memory cannot be mapped: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(about.st_mode):
        raise Unusable("shared memory is no file")
    if not 0 < size <= MOST_SHARED or not 0 <= offset <= MOST_SHARED or offset + size > about.st_size:
        raise Unusable(f"{size:#x} bytes at {offset:#x} of a file of {about.st_size:#x}")
    return about


def map_shared(fd: int, size: int, offset: int, *, copied: bool = False) -> memoryview:
    """``size`` bytes from ``offset`` of a file. The descriptor stays the caller's. Raises Unusable.

    What is written goes into the file; with ``copied`` it stays here, and the file need not be writable.
    """
    about = check_shared(fd, size, offset)
    try:
        # Huge pages can be mapped whole only; what is mapped too much is not used.
        page = max(about.st_blksize, mmap.ALLOCATIONGRANULARITY)
        begin = offset - offset % page
        end = min(-(-(offset + size) // page) * page, about.st_size)
        access = mmap.ACCESS_COPY if copied else mmap.ACCESS_WRITE
        mapping = mmap.mmap(fd, end - begin, access=access, offset=begin)
    except OSError as error:
        raise Unusable(f"shared memory cannot be mapped: {os.strerror(error.errno or 0)}") from None
    except (ValueError, OverflowError) as error:
        raise Unusable(f"shared memory cannot be mapped: {error}") from None
    mapping.madvise(mmap.MADV_DONTDUMP)
    return memoryview(mapping)[offset - begin : offset - begin + size]


def memory_of(regions: Iterable[Region]) -> GuestMemory:
    """Guest memory of what has been mapped; without any there is a place that nobody uses. Raises Unusable."""
    found = tuple(regions)
    kind = SharedMemory if native.available() else GuestMemory
    try:
        return kind(found, fence) if found else GuestMemory.anonymous(4096, (1 << 64) - 4096)
    except MemoryAccessError as error:
        raise Unusable(str(error)) from None
