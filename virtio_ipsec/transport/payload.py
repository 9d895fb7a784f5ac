"""What messages of a protocol between processes carry: forms of payload, and the error for what has none of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Generic, TypeVar

from virtio_ipsec.errors import TransportError

T = TypeVar("T")


class MessageError(TransportError):
    """A message that its protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Layout(Generic[T]):
    """One form of payload: from ``smallest`` to ``largest`` bytes."""

    name: str
    smallest: int
    largest: int
    build: Callable[[T], bytes] = field(repr=False)
    _parse: Callable[[bytes], T] = field(repr=False)

    def parse(self, payload: bytes) -> T:
        """The value; MessageError for a payload that does not have this form."""
        if not self.smallest <= len(payload) <= self.largest:
            raise MessageError(f"{len(payload)} bytes are not a payload of type {self.name}")
        return self._parse(payload)


def record(name: str, form: str, kind: Callable[..., T]) -> Layout[T]:
    """The fields of a dataclass, one after the other, in the host's byte order: ``form`` is as of ``struct``."""
    packer = struct.Struct("=" + form)

    def build(value: T) -> bytes:
        return packer.pack(*astuple(value))  # type: ignore[call-overload]

    return Layout(name, packer.size, packer.size, build, lambda payload: kind(*packer.unpack(payload)))


#: No payload.
NOTHING: Layout[None] = Layout("nothing", 0, 0, lambda value: b"", lambda payload: None)
