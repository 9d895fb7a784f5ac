"""Guest memory that another process owns: it may take it away at any time, and wants to know what was written."""

from __future__ import annotations

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import fast_memory
from virtio_ipsec.ring.memory import GuestMemory


class SharedMemory(GuestMemory):
    """As :class:`GuestMemory`, copied by csrc/: memory whose backing has vanished is a MemoryAccessError instead of the
    end of the process, a page that must be fetched stops no other thread, and stores are noted in the dirty log.

    For rings of csrc/ alone: :meth:`words` and :meth:`contiguous` are as bare as ever.
    """

    def read(self, address: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        ffi, lib = native.extension()
        self.check(address, length)
        found = bytearray(length)
        if length and lib.vipsec_memory_read(
            fast_memory(self).handle, address, ffi.from_buffer(found), length
        ):
            raise MemoryAccessError(f"{address:#x} ({length} bytes) has vanished")
        return bytes(found)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores ``data``, all of it or nothing."""
        ffi, lib = native.extension()
        self.check(address, len(data))
        if len(data) and lib.vipsec_memory_write(
            fast_memory(self).handle, address, ffi.from_buffer(data), len(data)
        ):
            raise MemoryAccessError(f"{address:#x} ({len(data)} bytes) has vanished")
