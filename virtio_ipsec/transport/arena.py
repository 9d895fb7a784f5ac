"""Address space of this process that stands for a stretch of a peer's: what lies side by side there does so here.

An IOMMU in a guest hands out memory page by page, from anywhere in a file. A ring over several such pages is one array
all the same, to us as to any device.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

from virtio_ipsec.transport.mapping import Unusable, check_shared
from virtio_ipsec.transport.vfio.addresses import address_of

#: Bytes that one arena stands for; nothing but addresses until memory is put there.
ARENA_SIZE: Final = 1 << 32
#: Most bytes put there in one piece: the second size of an IOMMU's pages. What is mapped in larger pieces is memory as
#: a whole, and better placed where large pages of ours fit.
PIECE_LIMIT: Final = 1 << 21
#: Linux's, without a name in Python 3.11.
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
#: What takes neither memory nor a share in it before it is touched.
_NOTHING: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip


class Arena:
    """Stands for the :data:`ARENA_SIZE` bytes from ``address``, a multiple of that. Views keep it alive. Unusable when
    this process has no room for it.

    Where nothing has been put is private memory of nobody's.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        try:
            self._space = mmap.mmap(-1, ARENA_SIZE, flags=_NOTHING)
        except OSError as error:
            raise Unusable(f"no address space: {os.strerror(error.errno or 0)}") from None
        self._host = address_of(self._space)

    @staticmethod
    def suits(fd: int, address: int, size: int, offset: int) -> bool:
        """Whether these bytes of a file can be put into the arena of that address: they are whole pages, not parts of
        huge ones, which would be mapped whole."""
        page = mmap.PAGESIZE
        return (
            size <= PIECE_LIMIT
            and not (address | size | offset) % page
            and address // ARENA_SIZE == (address + size - 1) // ARENA_SIZE
            and os.fstatvfs(fd).f_bsize <= page
        )

    def put(self, fd: int, address: int, size: int, offset: int, *, copied: bool) -> None:
        """Bytes of a file that :meth:`suits` it, as :func:`~.mapping.map_shared` has them. Raises Unusable."""
        check_shared(fd, size, offset)
        self._map(address, size, mmap.MAP_PRIVATE if copied else mmap.MAP_SHARED, fd, offset)
        try:
            self._space.madvise(mmap.MADV_DONTDUMP, address - self.address, size)
        except OSError as error:
            raise Unusable(f"shared memory cannot be mapped: {os.strerror(error.errno or 0)}") from None

    def take(self, address: int, size: int) -> None:
        """They are the peer's alone again, whoever still has a view of them. Raises Unusable."""
        self._map(address, size, _NOTHING, -1, 0)

    def view(self, address: int, size: int) -> memoryview:
        """What is there."""
        begin = address - self.address
        return memoryview(self._space)[begin : begin + size]

    def _map(self, address: int, size: int, flags: int, fd: int, offset: int) -> None:
        at = self._host + address - self.address
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mmap(at, size, access, flags | _MAP_FIXED, fd, offset) == _FAILED:
            raise Unusable(f"shared memory cannot be mapped: {os.strerror(ctypes.get_errno())}")
