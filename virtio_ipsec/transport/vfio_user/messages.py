"""The vfio-user protocol as a table: commands, who sends them, and what each command and its reply may carry.

Written after the protocol's text (QEMU, ``docs/interop/vfio-user.rst``). Names are the text's, without ``VFIO_USER_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Any, Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.payload import NOTHING, Layout, MessageError
from virtio_ipsec.transport.vfio_user import layouts
from virtio_ipsec.transport.vfio_user.capabilities import VERSION

#: Most file descriptors in one message that anybody here takes; QEMU allows as many.
MAX_FDS: Final = 16


class Command(IntEnum):
    """``cmd`` of a message."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class Flag(IntFlag):
    """The ``flags`` word of a header: a type of four bits, then these."""

    COMMAND = 0
    REPLY = 1
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class Refused(TransportError):
    """A command that is not obeyed and changes nothing; its reply says ``number``, an errno."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


@dataclass(frozen=True, slots=True)
class Kind:
    """What one command carries, and its reply: payload and file descriptors. ``by_server``: the server sends it."""

    payload: Layout[Any] = NOTHING
    reply: Layout[Any] = NOTHING
    most_fds: int = 0
    reply_fds: int = 0
    by_server: bool = False

    def check(self, name: str, payload: bytes, fds: int) -> None:
        """MessageError unless sizes are legal."""
        if not self.payload.smallest <= len(payload) <= self.payload.largest:
            raise MessageError(f"{name} with {len(payload)} bytes of payload")
        if fds > self.most_fds:
            raise MessageError(f"{name} with {fds} file descriptors")


_C = Command
_L = layouts

COMMANDS: Final[Mapping[int, Kind]] = MappingProxyType(
    {
        # The answer's descriptor is the second socket's.
        _C.VERSION: Kind(VERSION, VERSION, reply_fds=1),
        # Without a descriptor the memory is reached by DMA_READ and DMA_WRITE.
        _C.DMA_MAP: Kind(_L.DMA_MAP, most_fds=1),
        _C.DMA_UNMAP: Kind(_L.DMA_UNMAP, _L.DMA_UNMAP),
        _C.DEVICE_GET_INFO: Kind(_L.DEVICE_INFO, _L.DEVICE_INFO),
        _C.DEVICE_GET_REGION_INFO: Kind(_L.REGION_INFO, _L.REGION_INFO, reply_fds=1),
        _C.DEVICE_GET_REGION_IO_FDS: Kind(_L.REGION_IO_FDS, _L.REGION_IO_FDS, reply_fds=MAX_FDS),
        _C.DEVICE_GET_IRQ_INFO: Kind(_L.IRQ_INFO, _L.IRQ_INFO),
        _C.DEVICE_SET_IRQS: Kind(_L.IRQ_SET, most_fds=MAX_FDS),
        _C.REGION_READ: Kind(_L.REGION_RANGE, _L.REGION_DATA),
        _C.REGION_WRITE: Kind(_L.REGION_DATA, _L.REGION_RANGE),
        _C.DMA_READ: Kind(_L.DMA_RANGE, _L.DMA_DATA, by_server=True),
        _C.DMA_WRITE: Kind(_L.DMA_DATA, _L.DMA_WRITTEN, by_server=True),
        _C.DEVICE_RESET: Kind(),
        _C.REGION_WRITE_MULTI: Kind(_L.REGION_WRITES, _L.WRITES_DONE),
        _C.DEVICE_FEATURE: Kind(_L.DEVICE_FEATURE, _L.DEVICE_FEATURE),
        _C.MIG_DATA_READ: Kind(_L.MIGRATION_DATA, _L.MIGRATION_DATA),
        _C.MIG_DATA_WRITE: Kind(_L.MIGRATION_DATA),
    }
)


def name_of(command: int) -> str:
    """The name of a command, or its number."""
    return Command(command).name if command in Command._value2member_map_ else f"command {command}"
