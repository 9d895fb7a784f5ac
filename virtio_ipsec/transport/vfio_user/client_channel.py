"""The client's half of a vfio-user conversation: commands and their answers, and what the server asks meanwhile."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.framing import PeerStalled, await_readable, close_all
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user.capabilities import MAJOR, Capabilities, Version
from virtio_ipsec.transport.vfio_user.connection import Connection, Message, command, error_reply, reply
from virtio_ipsec.transport.vfio_user.messages import COMMANDS, MAX_FDS, Command, name_of
from virtio_ipsec.transport.vfio_user.payloads import MAX_TRANSFER, DmaAccess
from virtio_ipsec.transport.virtio_pci.access import AccessRefused

#: What this client can take.
CAPABILITIES = Capabilities(max_msg_fds=MAX_FDS, max_data_xfer_size=MAX_TRANSFER, twin_socket=True)
_NUMBERS = 1 << 16
#: Commands of the server that are handled in one go: one that asks without end keeps nobody from looking at a clock.
_TURN = 16
#: MAX_ERRNO of Linux.
_LARGEST_ERRNO = 4095


class ClientChannel:
    """Commands over ``sock``, one at a time, an answer waited for up to ``patience`` seconds; ``memory`` is what the
    server may ask for by DMA_READ and DMA_WRITE, None: nothing. The version is agreed on before this returns."""

    def __init__(
        self, sock: socket.socket, patience: float, memory: Callable[[], GuestMemory | None]
    ) -> None:
        self._connection = Connection(sock, patience=patience)
        self._twin: Connection | None = None
        self._patience = patience
        self._memory = memory
        self._number = 0
        #: What the server can take.
        self.server = Capabilities()
        try:
            self._agree()
        except BaseException:
            self.close()
            raise

    def _agree(self) -> None:
        version, fds = self.ask(Command.VERSION, Version(capabilities=CAPABILITIES))
        try:
            said = version.capabilities
            if version.major != MAJOR:
                raise MessageError(f"the server speaks version {version.major}.{version.minor}")
            if said.twin_socket:
                if said.twin_fd is None or said.twin_fd >= len(fds):
                    raise MessageError("a second socket is promised and not sent")
                self._twin = Connection(_socket(fds[said.twin_fd]), patience=self._patience)
            self.server = said
        finally:
            close_all(fds)

    def close(self) -> None:
        """Close the sockets."""
        self._connection.close()
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def filenos(self) -> tuple[int, ...]:
        """What becomes readable when the server speaks, or goes."""
        return tuple(each.fileno() for each in (self._connection, self._twin) if each is not None)

    def post(self, number: Command, value: Any) -> None:
        """A command that nobody answers: what comes after it finds it done."""
        self._number = (self._number + 1) % _NUMBERS
        payload = COMMANDS[number].payload.build(value)
        self._connection.send(command(self._number, number, payload, no_reply=True))

    def tell(self, number: Command, value: Any = None, fds: Iterable[int] = ()) -> Any:
        """A command that brings no descriptors back: its answer."""
        answer, came = self.ask(number, value, fds)
        close_all(came)
        return answer

    def ask(self, number: Command, value: Any = None, fds: Iterable[int] = ()) -> tuple[Any, tuple[int, ...]]:
        """The answer of a command and its descriptors, which the caller is to close. AccessRefused for an error."""
        kind = COMMANDS[number]
        self._number = (self._number + 1) % _NUMBERS
        self._connection.send(command(self._number, number, kind.payload.build(value), fds))
        answer = self._answer(number)
        try:
            if answer.is_error:
                raise AccessRefused(f"the server answers {number.name} with: {_text(answer.error)}")
            if len(answer.fds) > kind.reply_fds:
                raise MessageError(f"{len(answer.fds)} file descriptors in answer to {number.name}")
            return kind.reply.parse(answer.payload), answer.fds
        except BaseException:
            answer.close()
            raise

    def _answer(self, number: Command) -> Message:
        """The next answer, which has to be that of the last command; the server may want memory before it answers."""
        limit = monotonic() + self._patience
        while True:
            if self._twin is not None:
                self._serve(self._twin)
            message = self._connection.poll()
            if message is None:
                await_readable(self.filenos(), limit, f"the server does not answer {number.name}")
            elif not message.is_reply:
                self._handle(message, self._connection)
                if monotonic() >= limit:
                    raise PeerStalled(f"the server asks, and does not answer {number.name}")
            elif (message.number, message.command) == (self._number, number):
                return message
            else:
                message.close()
                raise MessageError(f"{name_of(message.command)} in answer to {number.name}")

    def serve(self) -> None:
        """Handle what the server has asked, without waiting. PeerClosed when it has gone."""
        for connection in (self._twin, self._connection):
            if connection is not None:
                self._serve(connection)

    def _serve(self, connection: Connection) -> None:
        for _ in range(_TURN):
            message = connection.poll()
            if message is None:
                return
            if message.is_reply:
                message.close()
                raise MessageError(f"an answer to no command: {name_of(message.command)}")
            self._handle(message, connection)

    def _handle(self, message: Message, connection: Connection) -> None:
        """One command of the server: it reads or writes the memory that it was given."""
        message.close()
        answer = error_reply(message, errno.EINVAL)
        kind = COMMANDS.get(message.command)
        if kind is not None and kind.by_server:
            wanted: DmaAccess = kind.payload.parse(message.payload)
            done = self._access(wanted, is_write=message.command == Command.DMA_WRITE)
            if done is not None:
                answer = reply(message, kind.reply.build(done))
        if message.wants_reply:
            connection.send(answer)

    def _access(self, wanted: DmaAccess, *, is_write: bool) -> DmaAccess | None:
        memory = self._memory()
        if memory is None or wanted.count > MAX_TRANSFER:
            return None
        with suppress(MemoryAccessError):
            if is_write:
                memory.write(wanted.address, wanted.data)
                return DmaAccess(wanted.address, wanted.count)
            return DmaAccess(wanted.address, wanted.count, memory.read(wanted.address, wanted.count))
        return None


def _socket(fd: int) -> socket.socket:
    """Another descriptor of a socket that the server has sent. MessageError for what is none."""
    own = os.dup(fd)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise MessageError("the second socket is no socket") from None


def _text(error: int) -> str:
    """What an errno means; 0 is one that is not said."""
    if not error:
        return "an error"
    return os.strerror(error) if error <= _LARGEST_ERRNO else f"error {error:#x}"
