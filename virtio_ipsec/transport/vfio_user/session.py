"""One client's connection: each command does what it says to the function, or is refused and changes nothing.

A command that cannot be obeyed is answered with an errno; bytes that are no message, and commands before the version is
agreed on, end the connection.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.bounce import BouncePort
from virtio_ipsec.transport.framing import close_all
from virtio_ipsec.transport.mapping import memory_of
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.serving import BURST, PATIENCE
from virtio_ipsec.transport.vfio_user import capabilities
from virtio_ipsec.transport.vfio_user.capabilities import Capabilities, Version
from virtio_ipsec.transport.vfio_user.connection import Connection, Message, error_reply, reply
from virtio_ipsec.transport.vfio_user.dma import MAX_MAPS, DmaTable
from virtio_ipsec.transport.vfio_user.irqs import Interrupts
from virtio_ipsec.transport.vfio_user.messages import COMMANDS, MAX_FDS, Command, Kind, Refused, name_of
from virtio_ipsec.transport.vfio_user.migration import Migration
from virtio_ipsec.transport.vfio_user.payloads import (
    MAX_TRANSFER,
    NUM_IRQS,
    NUM_REGIONS,
    DeviceFeature,
    DeviceFlag,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    IoEventFd,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
)
from virtio_ipsec.transport.vfio_user.remote import DmaChannel
from virtio_ipsec.transport.virtio_pci.function import PciFunction, RegionError

_log = logging.getLogger(__name__)

#: Refusals of one connection that are logged, and the one that is not among them: a client whose IOMMU is reset unmaps
#: whatever might be there.
_LOGGED = 10
_NOTHING_THERE = (Command.DMA_UNMAP, errno.ENOENT)
#: Bytes that the fixed part of an answer takes; its asker has to have room for so much (`argsz`).
_INFO, _REGION_INFO = 16, 32
#: Bytes of one part of a region in an answer to DEVICE_GET_REGION_IO_FDS.
_IO_FD = 40
#: Sizes of pages that mappings may be made of: any that is a multiple of the smallest.
_PAGES = 0x1000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command that was obeyed is answered with; the descriptors stay whose they are."""

    value: Any = None
    fds: tuple[int, ...] = ()


class Session:
    """From connection to its end. All of it in the control thread of the function's port. ``most_maps``: DMA mappings
    that the client may have."""

    def __init__(self, function: PciFunction, connection: Connection, most_maps: int = MAX_MAPS) -> None:
        self._function = function
        self._port = function.port
        self._connection = connection
        #: Descriptors of the message at hand that nobody has taken.
        self._fds: list[int] = []
        self._irqs = Interrupts(function, self._fds)
        self._most_maps = most_maps
        self._dma = DmaTable(most_maps)
        self._migration = Migration(function)
        #: What the client can take; None before VERSION.
        self._client: Capabilities | None = None
        self._refusals = 0
        #: For commands of our own: the client may want them on a second socket.
        self._twin: Connection | None = None
        self._twin_error: TransportError | None = None
        self._channel = DmaChannel(connection.send, 0)

    # The connection.

    def work(self) -> None:
        """Obey messages that have come. TransportError when the connection is of no more use."""
        if self._twin_error is not None:
            raise self._twin_error
        for message in self._connection.messages(BURST):
            self.obey(message)

    def obey(self, message: Message) -> None:
        """One message. TransportError when it ends the connection."""
        self._fds[:] = message.fds
        try:
            name = name_of(message.command)
            if message.is_reply:
                self._channel.deliver(message)
                return
            if (self._client is None) != (message.command == Command.VERSION):
                raise MessageError(f"{name} {'before' if self._client is None else 'after'} VERSION")
            try:
                kind, handler = self._known(message)
                kind.check(name, message.payload, len(message.fds))
                answer = handler(self, kind.payload.parse(message.payload)) or Answer()
            except (Refused, RegionError, MessageError) as error:
                if self._client is None:
                    raise
                self._refuse(message, name, error)
            else:
                if message.wants_reply:
                    self._connection.send(reply(message, kind.reply.build(answer.value), answer.fds))
        finally:
            close_all(self._fds)
            self._fds.clear()

    def close(self) -> None:
        """The end: the function is reset, everything that was shared is let go. TransportError when it does not come to
        rest; to be called again then."""
        try:
            self._irqs.close()
            self._function.disconnect()
            self._migration.close()
        finally:
            self._dma = DmaTable()
            self._connection.close()
            twin, self._twin = self._twin, None
            if twin is not None:
                self._port.loop.remove(twin.fileno())
                twin.close()

    def _known(self, message: Message) -> tuple[Kind, _Handler]:
        handler = _HANDLERS.get(message.command)
        if handler is None:
            raise Refused(errno.EOPNOTSUPP, "no command of a client")
        return COMMANDS[message.command], handler

    def _refuse(self, message: Message, name: str, error: Exception) -> None:
        number = error.number if isinstance(error, Refused) else errno.EINVAL
        self._port.count("refused_messages")
        if (message.command, number) != _NOTHING_THERE:
            self._refusals += 1
            if self._refusals <= _LOGGED:
                _log.warning("%s: %s refused: %s", self._port.name, name, str(error))
        if message.wants_reply:
            self._connection.send(error_reply(message, number))

    # Beginning.

    def _version(self, proposed: Version) -> Answer:
        """The same major version, no higher minor version, and of the capabilities those that were proposed."""
        if proposed.major != capabilities.MAJOR:
            raise MessageError(f"version {proposed.major}.{proposed.minor} is not spoken here")
        said = proposed.capabilities
        if said.most_data > MAX_TRANSFER:
            said = replace(said, max_data_xfer_size=MAX_TRANSFER)
        self._client = said
        if said.twin_socket and self._most_fds:
            self._open_twin()
        self._channel = DmaChannel((self._twin or self._connection).send, said.most_data)
        has_twin = self._twin is not None
        ours = Capabilities(
            max_msg_fds=None if said.max_msg_fds is None else MAX_FDS,
            max_data_xfer_size=None if said.max_data_xfer_size is None else MAX_TRANSFER,
            max_dma_maps=None if said.max_dma_maps is None else self._most_maps,
            pgsizes=None if said.pgsizes is None else _PAGES,
            write_multiple=True if said.write_multiple else None,
            twin_socket=True if has_twin else None,
            twin_fd=0 if has_twin else None,
        )
        version = Version(capabilities.MAJOR, min(proposed.minor, capabilities.MINOR), ours)
        return Answer(version, tuple(self._fds))

    def _open_twin(self) -> None:
        ours, theirs = socket.socketpair()
        self._fds.append(theirs.detach())
        self._twin = Connection(ours, patience=PATIENCE)
        self._port.loop.add(self._twin.fileno(), self._work_twin)

    def _work_twin(self) -> None:
        """Answers on the second socket. What is wrong there ends the whole connection."""
        try:
            while self._twin is not None and (message := self._twin.poll()) is not None:
                message.close()
                if not message.is_reply:
                    raise MessageError(f"{name_of(message.command)} on the second socket")
                self._channel.deliver(message)
        except TransportError as error:
            self._twin_error = error
            self._connection.hang_up()

    @property
    def _most_fds(self) -> int:
        """Descriptors that the client takes with one message."""
        return 0 if self._client is None else min(self._client.most_fds, MAX_FDS)

    # What the function is.

    def _device_info(self, asked: DeviceInfo) -> Answer:
        _check_room(asked.argsz, _INFO)
        return Answer(DeviceInfo(DeviceFlag.RESET | DeviceFlag.PCI, NUM_REGIONS, NUM_IRQS))

    def _region_info(self, asked: RegionInfo) -> Answer:
        _check_room(asked.argsz, _REGION_INFO)
        # No part of a region can be mapped: each register does something when it is accessed, and a doorbell in a
        # mapping would wake nobody. A client that wants none of its stores carried here rings eventfds instead.
        size = self._function.region_size(_region(asked.index))
        flags = RegionFlag.READ | RegionFlag.WRITE if size else 0
        return Answer(RegionInfo(asked.index, int(flags), size))

    def _region_io_fds(self, asked: RegionIoFds) -> Answer:
        """The doorbells of a region: as many as the client takes descriptors, the others ring by being written."""
        _check_room(asked.argsz, _INFO)
        if asked.flags or asked.count:
            raise Refused(errno.EINVAL, "flags and count have to be 0")
        region = _region(asked.index)
        bells = [bell for bell in self._function.doorbells() if bell.region == region][: self._most_fds]
        argsz = _INFO + _IO_FD * len(bells)
        if argsz > asked.argsz:
            return Answer(RegionIoFds(region, len(bells), argsz=argsz))
        # A notification has two or four bytes, as negotiated: its size does not matter (0).
        parts = tuple(IoEventFd(bell.offset, 0, number) for number, bell in enumerate(bells))
        return Answer(RegionIoFds(region, len(bells), parts, argsz=argsz), tuple(bell.fd for bell in bells))

    def _irq_info(self, asked: IrqInfo) -> Answer:
        _check_room(asked.argsz, _INFO)
        return Answer(self._irqs.info(asked.index))

    def _set_irqs(self, asked: IrqSet) -> None:
        self._irqs.set(asked)

    # Regions.

    def _read(self, asked: RegionAccess) -> Answer:
        if asked.count > MAX_TRANSFER:
            raise Refused(errno.E2BIG, f"a read of {asked.count} bytes")
        data = self._function.read(asked.region, asked.offset, asked.count)
        return Answer(RegionAccess(asked.offset, asked.region, len(data), data))

    def _write(self, asked: RegionAccess) -> Answer:
        self._function.write(asked.region, asked.offset, asked.data)
        return Answer(RegionAccess(asked.offset, asked.region, asked.count))

    def _write_multi(self, writes: tuple[RegionAccess, ...]) -> Answer:
        """One after the other, until one is refused; how many were done."""
        if self._client is None or not self._client.write_multiple:
            raise Refused(errno.EOPNOTSUPP, "write_multiple has not been agreed on")
        for done, each in enumerate(writes):
            try:
                self._write(each)
            except RegionError:
                return Answer(done)
        return Answer(len(writes))

    def _reset(self, _: None) -> None:
        self._irqs.close()
        self._function.reset()
        self._migration.close()

    # Memory.

    def _map(self, asked: DmaMap) -> None:
        self._use(self._dma.with_map(asked, self._fds[0] if self._fds else None))

    def _unmap(self, asked: DmaUnmap) -> Answer:
        before = self._dma
        self._use(before.without(asked))
        before.let_go(asked)
        return Answer(asked)

    def _use(self, table: DmaTable) -> None:
        memory = table.memory
        if isinstance(self._port, BouncePort):
            self._port.set_remote(table.remote(self._channel))
        self._function.set_memory(memory_of(()) if memory is None and len(table) else memory)
        self._dma = table

    # Migration.

    def _feature(self, asked: DeviceFeature) -> Answer:
        return Answer(self._migration.feature(asked))

    def _migration_read(self, asked: MigrationData) -> Answer:
        return Answer(self._migration.read(min(asked.size, MAX_TRANSFER)))

    def _migration_write(self, asked: MigrationData) -> None:
        self._migration.write(asked.data)


def _region(index: int) -> int:
    if index >= NUM_REGIONS:
        raise Refused(errno.EINVAL, f"there is no region {index}")
    return index


def _check_room(argsz: int, least: int) -> None:
    if argsz < least:
        raise Refused(errno.EINVAL, f"room for {argsz} bytes of an answer of {least}")


_Handler = Callable[[Session, Any], Answer | None]
_S = Session

# The table of what is done; what each message may carry stands in `messages.py`.
_HANDLERS: Final[Mapping[int, _Handler]] = MappingProxyType(
    {
        Command.VERSION: _S._version,
        Command.DMA_MAP: _S._map,
        Command.DMA_UNMAP: _S._unmap,
        Command.DEVICE_GET_INFO: _S._device_info,
        Command.DEVICE_GET_REGION_INFO: _S._region_info,
        Command.DEVICE_GET_REGION_IO_FDS: _S._region_io_fds,
        Command.DEVICE_GET_IRQ_INFO: _S._irq_info,
        Command.DEVICE_SET_IRQS: _S._set_irqs,
        Command.REGION_READ: _S._read,
        Command.REGION_WRITE: _S._write,
        Command.DEVICE_RESET: _S._reset,
        Command.REGION_WRITE_MULTI: _S._write_multi,
        Command.DEVICE_FEATURE: _S._feature,
        Command.MIG_DATA_READ: _S._migration_read,
        Command.MIG_DATA_WRITE: _S._migration_write,
    }
)
