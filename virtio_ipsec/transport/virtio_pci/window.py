"""A structure of a function's regions: registers read and written one by one, and nothing outside it."""

from __future__ import annotations

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import Place
from virtio_ipsec.transport.virtio_pci.tables import Register


class Window:
    """``place`` of the function; ``name`` for messages. TransportError for what lies outside."""

    def __init__(self, access: FunctionAccess, place: Place, name: str) -> None:
        self._access = access
        self.place = place
        self._name = name

    def has(self, register: Register) -> bool:
        """Whether the structure is long enough to have a register."""
        return register.end <= self.place.length

    def get(self, register: Register) -> int:
        """The value of a register."""
        return int.from_bytes(self.read(register.offset, register.width), "little")

    def put(self, register: Register, value: int) -> None:
        """Write a register."""
        self.write(register.offset, value.to_bytes(register.width, "little"))

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the structure."""
        self._check(offset, length)
        return self._access.read(self.place.region, self.place.offset + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes of it."""
        self._check(offset, len(data))
        self._access.write(self.place.region, self.place.offset + offset, data)

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.place.length:
            raise TransportError(
                f"{self._name} has {self.place.length} bytes: none at {offset}..{offset + length}"
            )
