"""A PCI configuration space: bytes, which of their bits software may change, and what happens when it does.

Nothing virtio in it. Any width at any place is answered: reads give the bytes, writes change the bits that are writable
and no others (PCI 6.1; reserved registers read 0 and ignore writes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtio_ipsec.transport.virtio_pci.tables import (
    BAR_ADDRESS_MASK,
    BARS,
    CONFIG_SIZE,
    EXTENDED_CAPABILITIES,
    HEADER_SIZE,
    DeviceState,
    Header,
    Register,
    extended_header,
)

_CAP_ALIGNMENT: Final = 4


class ConfigSpace:
    """The configuration space of one function, made by the ``add`` calls; :meth:`reset` brings it back to that."""

    def __init__(self) -> None:
        self._bytes = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._initial: bytes | None = None
        self._reads: list[tuple[int, int, Callable[[], None]]] = []
        self._writes: list[tuple[int, int, Callable[[], None]]] = []
        self._end = HEADER_SIZE
        self._last_cap: int = Header.CAPABILITY_LIST.offset
        self._extended_end = EXTENDED_CAPABILITIES
        self._last_extended: int | None = None

    # Making it.

    def put(self, register: Register, value: int, writable: int = 0, *, base: int = 0) -> None:
        """A register's value after reset, and which of its bits software changes."""
        place = base + register.offset
        self._bytes[place : base + register.end] = value.to_bytes(register.width, "little")
        self._writable[place : base + register.end] = writable.to_bytes(register.width, "little")

    def add_bar(self, first: Register, index: int, size: int, bits: int = 0) -> None:
        """A 32 bit memory BAR of ``size`` bytes, a power of two: what is not address reads 0 (PCI 6.2.5.1)."""
        place = first.offset + 4 * index
        if not 0 <= index < BARS or size & (size - 1) or size < 16:
            raise ValueError(f"BAR {index} of {size:#x} bytes")
        self._bytes[place : place + 4] = bits.to_bytes(4, "little")
        self._writable[place : place + 4] = (BAR_ADDRESS_MASK & ~(size - 1)).to_bytes(4, "little")

    def add_capability(self, data: bytes, writable: bytes = b"") -> int:
        """A capability in the first 256 bytes, behind those before it; its second byte becomes the link. Its offset."""
        place = self._end
        self._end += -(-len(data) // _CAP_ALIGNMENT) * _CAP_ALIGNMENT
        if self._end > EXTENDED_CAPABILITIES:
            raise ValueError("no room for another capability")
        self._bytes[place : place + len(data)] = data
        self._bytes[place + 1] = 0
        self._writable[place : place + len(writable)] = writable
        self._bytes[self._last_cap] = place
        self._last_cap = place + 1
        self._bytes[Header.STATUS.offset] |= DeviceState.CAP_LIST
        return place

    def add_extended(self, kind: int, version: int, size: int) -> int:
        """Room for an extended capability, with its header; its offset."""
        place = self._extended_end
        self._extended_end += size
        self._store(place, extended_header(kind, version, 0))
        if self._last_extended is not None:
            self._store(self._last_extended, self._word(self._last_extended) | extended_header(0, 0, place))
        self._last_extended = place
        return place

    def on_read(self, offset: int, length: int, call: Callable[[], None]) -> None:
        """Call before any of these bytes are read."""
        self._reads.append((offset, offset + length, call))

    def on_write(self, offset: int, length: int, call: Callable[[], None]) -> None:
        """Call when any of these bytes have been written."""
        self._writes.append((offset, offset + length, call))

    def finish(self) -> None:
        """This is what it is after reset."""
        self._initial = bytes(self._bytes)

    # Working with it.

    def reset(self) -> None:
        """As :meth:`finish` found it. Nobody is called."""
        if self._initial is not None:
            self._bytes[:] = self._initial

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it, which the caller has seen to lie inside."""
        for begin, end, call in self._reads:
            if offset < end and begin < offset + length:
                call()
        return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """What software writes."""
        for place, value in enumerate(data, offset):
            mask = self._writable[place]
            self._bytes[place] = self._bytes[place] & ~mask | value & mask
        for begin, end, call in self._writes:
            if offset < end and begin < offset + len(data):
                call()

    def value(self, register: Register, base: int = 0) -> int:
        """What a register holds."""
        return int.from_bytes(self._bytes[base + register.offset : base + register.end], "little")

    def set(self, register: Register, value: int, base: int = 0) -> None:
        """Let it hold this."""
        self._bytes[base + register.offset : base + register.end] = value.to_bytes(register.width, "little")

    def set_writable(self, register: Register, mask: int, base: int = 0) -> None:
        """From now on software changes these bits of it; what it holds in others is lost."""
        self._writable[base + register.offset : base + register.end] = mask.to_bytes(register.width, "little")
        self.set(register, self.value(register, base) & mask, base)

    def window(self, offset: int, length: int) -> memoryview:
        """The bytes themselves."""
        return memoryview(self._bytes)[offset : offset + length]

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + 4], "little")

    def _store(self, offset: int, word: int) -> None:
        self._bytes[offset : offset + 4] = word.to_bytes(4, "little")
