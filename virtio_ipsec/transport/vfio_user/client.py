"""A PCI function behind a vfio-user socket, as the driver's side of virtio-pci wants it."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring import memory as ring_memory
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.bells import check_eventfd
from virtio_ipsec.transport.framing import close_all, dial
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user import payloads
from virtio_ipsec.transport.vfio_user.client_channel import ClientChannel
from virtio_ipsec.transport.vfio_user.messages import Command
from virtio_ipsec.transport.vfio_user.payloads import (
    MAX_PARTS,
    MAX_TRANSFER,
    DeviceFlag,
    DeviceInfo,
    DmaFlag,
    DmaMap,
    DmaUnmap,
    IoEventFd,
    IrqInfo,
    IrqSet,
    RegionAccess,
    RegionFlag,
    RegionIoFds,
    SetFlag,
)
from virtio_ipsec.transport.virtio_pci.access import AccessRefused, DmaMemory, RegionInfo
from virtio_ipsec.transport.virtio_pci.dma import FileMemory
from virtio_ipsec.transport.virtio_pci.interrupts import MOST_VECTORS

#: Room for an answer that lists as much as anybody may: 16 or 32 bytes before, at most 40 for each part.
_ROOM: Final = 64 + 40 * MAX_PARTS
_IOEVENTFD: Final = 0
#: Bytes of the widest register.
_POSTED: Final = 8
#: KVM_IOEVENTFD_FLAG_DATAMATCH.
_DATAMATCH: Final = 1


class VfioUserFunction:
    """The function whose server ``connect`` reaches; an answer may take ``patience`` seconds. With ``shares_memory``
    off the server gets no descriptors of memory and has to ask for every byte, which the protocol lets a client do."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        name: str = "vfio-user",
        *,
        patience: float = 5.0,
        shares_memory: bool = True,
    ) -> None:
        self.name = name
        self._connect = connect
        self._patience = patience
        self._shares_memory = shares_memory
        #: Address -> what the server may reach there, in which file and where in it.
        self._maps: dict[int, tuple[mmap.mmap, int, int]] = {}
        self._memory: GuestMemory | None = None
        self._open()

    @classmethod
    def at(cls, path: str, *, timeout: float = 5.0, shares_memory: bool = True) -> VfioUserFunction:
        """The function served at ``path``; the server may come up within ``timeout`` seconds."""
        return cls(lambda: dial(path, timeout), f"vfio-user:{path}", shares_memory=shares_memory)

    def _open(self) -> None:
        self._regions: dict[int, payloads.RegionInfo] = {}
        self._files: dict[int, int] = {}
        self._windows: dict[tuple[int, int], mmap.mmap] = {}
        self._bells: dict[int, list[tuple[IoEventFd, int]]] = {}
        self.channel = ClientChannel(self._connect(), self._patience, lambda: self._memory)
        try:
            self._info: DeviceInfo = self.channel.tell(Command.DEVICE_GET_INFO, DeviceInfo())
            if not self._info.flags & DeviceFlag.PCI:
                raise TransportError(f"{self.name} is no PCI function")
        except BaseException:
            self.channel.close()
            raise

    # Regions.

    def _region(self, region: int) -> payloads.RegionInfo:
        if region not in self._regions:
            info = payloads.RegionInfo(region)
            if 0 <= region < self._info.num_regions:
                asked = payloads.RegionInfo(region, argsz=_ROOM)
                info, fds = self.channel.ask(Command.DEVICE_GET_REGION_INFO, asked)
                if fds:
                    self._files[region] = fds[0]
                if info.index != region:
                    raise MessageError(f"region {info.index} in answer to a question for region {region}")
            self._regions[region] = info
        return self._regions[region]

    def region_info(self, region: int) -> RegionInfo:
        """What a region is. Of it can be mapped what lies in a file that does not shrink."""
        info = self._region(region)
        readable, writable = bool(info.flags & RegionFlag.READ), bool(info.flags & RegionFlag.WRITE)
        fd = self._files.get(region)
        areas: tuple[tuple[int, int], ...] = ()
        if info.flags & RegionFlag.MMAP and fd is not None and (length := _fixed_size(fd)):
            said = tuple((area.offset, area.size) for area in info.areas) or ((0, info.size),)
            areas = tuple(
                each for each in said if sum(each) <= info.size and info.offset + sum(each) <= length
            )
        return RegionInfo(info.size, readable, writable, areas)

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Bytes of a region."""
        parts = []
        for at, size in self._transfers(offset, length):
            asked = RegionAccess(at, region, size)
            answer: RegionAccess = self.channel.tell(Command.REGION_READ, asked)
            if (answer.offset, answer.region, answer.count) != (at, region, size):
                raise MessageError(f"{answer.count} bytes in answer to a question for {size}")
            parts.append(answer.data)
        return b"".join(parts)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write bytes of a region. What may be one register is posted, as writes on a bus are: the next read finds it
        done, and nobody says that it failed."""
        if len(data) <= _POSTED:
            self.channel.post(Command.REGION_WRITE, RegionAccess(offset, region, len(data), data))
            return
        for at, size in self._transfers(offset, len(data)):
            piece = data[at - offset : at - offset + size]
            answer: RegionAccess = self.channel.tell(
                Command.REGION_WRITE, RegionAccess(at, region, size, piece)
            )
            if answer.count != size:
                raise AccessRefused(
                    f"{self.name} writes {answer.count} of {size} bytes at {at:#x} of region {region}"
                )

    def _transfers(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        most = max(1, min(self.channel.server.most_data, MAX_TRANSFER))
        for at in range(offset, offset + length, most):
            yield at, min(most, offset + length - at)

    def map_region(self, region: int, offset: int, length: int) -> memoryview | None:
        """Bytes of a region to be written to, where the server has given a file for them."""
        areas = self.region_info(region).mappable
        within = next((each for each in areas if each[0] <= offset and offset + length <= sum(each)), None)
        if within is None or (self._region(region).offset + within[0]) % mmap.PAGESIZE:
            return None
        begin, size = within
        if (region, begin) not in self._windows:
            where = self._region(region).offset + begin
            try:
                self._windows[region, begin] = mmap.mmap(self._files[region], size, offset=where)
            except (OSError, ValueError):
                return None
        return memoryview(self._windows[region, begin])[offset - begin : offset - begin + length]

    def doorbell(self, region: int, offset: int, length: int, value: int | None = None) -> int | None:
        """The eventfd that the server has for such a write."""
        if region not in self._bells:
            self._bells[region] = self._find_bells(region)
        for bell, fd in self._bells[region]:
            fits = bell.offset == offset and (not bell.size or length <= bell.size)
            if fits and not (bell.flags & _DATAMATCH and bell.datamatch != value):
                return fd
        return None

    def _find_bells(self, region: int) -> list[tuple[IoEventFd, int]]:
        try:
            found, fds = self.channel.ask(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(region, argsz=_ROOM))
        except AccessRefused:
            return []
        bells: list[tuple[IoEventFd, int]] = []
        try:
            for part in found.parts:
                if part.type == _IOEVENTFD and part.fd_index < len(fds):
                    fd = fds[part.fd_index]
                    check_eventfd(fd)
                    os.set_blocking(fd, False)
                    bells.append((part, fd))
        except TransportError:
            close_all(fds)
            raise
        close_all({*fds} - {fd for _, fd in bells})
        return bells

    # Memory.

    def new_memory(self, size: int) -> DmaMemory:
        """Memory that the server reaches."""
        return FileMemory(self, size)

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None:
        """Let the server reach a piece of a file."""
        piece = os.dup(fd)
        try:
            self._tell_map(piece, offset, size, iova)
            self._maps[iova] = mmap.mmap(piece, size, offset=offset), piece, offset
        except BaseException:
            os.close(piece)
            raise
        self._look_at_memory()

    def _tell_map(self, fd: int, offset: int, size: int, iova: int) -> None:
        rights = DmaFlag.READ | DmaFlag.WRITE
        asked = DmaMap(rights, offset if self._shares_memory else 0, iova, size)
        self.channel.tell(Command.DMA_MAP, asked, [fd] if self._shares_memory else [])

    def unmap_dma(self, iova: int, size: int) -> None:
        """It must not any more."""
        self.channel.tell(Command.DMA_UNMAP, DmaUnmap(0, iova, size))
        _, fd, _ = self._maps.pop(iova)
        os.close(fd)
        self._look_at_memory()

    def _look_at_memory(self) -> None:
        regions = [ring_memory.Region(iova, len(piece), piece) for iova, (piece, _, _) in self._maps.items()]
        self._memory = GuestMemory(regions) if regions else None

    # Interrupts.

    def irq_count(self, index: int) -> int:
        """Vectors of an interrupt."""
        if not 0 <= index < self._info.num_irqs:
            return 0
        info: IrqInfo = self.channel.tell(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index))
        return info.count

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Have vectors ring these, as many by one message as the server takes."""
        if not eventfds:
            self.channel.tell(
                Command.DEVICE_SET_IRQS, IrqSet(SetFlag.DATA_NONE | SetFlag.ACTION_TRIGGER, index, 0, 0)
            )
        most = max(1, min(self.channel.server.most_fds, MOST_VECTORS))
        flags = SetFlag.DATA_EVENTFD | SetFlag.ACTION_TRIGGER
        at = start
        for _, run in groupby(eventfds, key=lambda fd: fd is None):
            wanted = list(run)
            for begin in range(0, len(wanted), most):
                piece = wanted[begin : begin + most]
                fds = [fd for fd in piece if fd is not None]
                self.channel.tell(Command.DEVICE_SET_IRQS, IrqSet(flags, index, at, len(piece)), fds)
                at += len(piece)

    def unmask_irq(self, index: int) -> None:
        """Let INTx ring again."""
        self.channel.tell(
            Command.DEVICE_SET_IRQS, IrqSet(SetFlag.DATA_NONE | SetFlag.ACTION_UNMASK, index, 0, 1)
        )

    # The rest.

    def reset(self) -> None:
        """Function level reset."""
        if not self._info.flags & DeviceFlag.RESET:
            raise AccessRefused(f"{self.name} cannot be reset")
        self.channel.tell(Command.DEVICE_RESET)

    def reconnect(self) -> None:
        """A new connection, over which the server is told of all memory again."""
        self._drop()
        self._open()
        for iova, (piece, fd, offset) in self._maps.items():
            self._tell_map(fd, offset, len(piece), iova)

    def filenos(self) -> tuple[int, ...]:
        """What becomes readable when the server speaks."""
        return self.channel.filenos()

    def serve(self) -> None:
        """Handle what it has asked."""
        self.channel.serve()

    def close(self) -> None:
        """End the connection. The server resets its device."""
        self._drop()
        close_all(fd for _, fd, _ in self._maps.values())
        self._maps.clear()
        self._memory = None

    def _drop(self) -> None:
        """All that belongs to one connection."""
        self.channel.close()
        close_all(self._files.values())
        close_all({fd for bells in self._bells.values() for _, fd in bells})
        self._files, self._bells = {}, {}
        self._windows.clear()


def _fixed_size(fd: int) -> int:
    """The size of a file that cannot shrink; 0 for any other, for what is taken from a mapping kills who touches it."""
    with suppress(OSError):
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return os.fstat(fd).st_size
    return 0
