"""One vfio-user socket: its messages, in either direction."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from virtio_ipsec.transport.framing import FramedSocket, close_all
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user.messages import MAX_FDS, Flag, name_of
from virtio_ipsec.transport.vfio_user.payloads import MAX_TRANSFER

_HEADER = struct.Struct("=HHIII")
#: More than any message takes: what moves, and what stands before it.
MAX_PAYLOAD: Final = MAX_TRANSFER + 64


@dataclass(frozen=True, slots=True)
class Message:
    """One message. The descriptors of a received one belong to whoever holds it: use them, or :meth:`close`.

    ``number`` is the sender's; a reply has its command's. ``error``: an errno, or 0 for an error without one.
    """

    number: int
    command: int
    flags: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    error: int = 0

    @property
    def is_reply(self) -> bool:
        """Whether this answers a command."""
        return self.flags & Flag.TYPE_MASK == Flag.REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether the command is to be answered."""
        return not self.flags & Flag.NO_REPLY

    @property
    def is_error(self) -> bool:
        """Whether the reply says that the command failed."""
        return bool(self.flags & Flag.ERROR)

    def close(self) -> None:
        """Close all descriptors."""
        close_all(self.fds)


def command(
    number: int, command: int, payload: bytes = b"", fds: Iterable[int] = (), *, no_reply: bool = False
) -> Message:
    """A command as its sender makes it."""
    return Message(number, command, Flag.NO_REPLY if no_reply else Flag.COMMAND, payload, tuple(fds))


def reply(to: Message, payload: bytes = b"", fds: Iterable[int] = ()) -> Message:
    """The answer to a command."""
    return Message(to.number, to.command, Flag.REPLY, payload, tuple(fds))


def error_reply(to: Message, error: int) -> Message:
    """The answer to a command that failed."""
    return Message(to.number, to.command, Flag.REPLY | Flag.ERROR, error=error)


class Connection(FramedSocket[Message]):
    """Messages of vfio-user over a connected socket. Several threads may send at a time."""

    protocol = "vfio-user"
    head_size = _HEADER.size
    most_fds = MAX_FDS

    def __init__(self, sock: socket.socket, *, patience: float = 5.0) -> None:
        super().__init__(sock, patience=patience)
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message; its descriptors stay the caller's. Raises PeerClosed or PeerStalled."""
        size = _HEADER.size + len(message.payload)
        head = _HEADER.pack(message.number, message.command, size, message.flags, message.error)
        with self._sending:
            self._send(head + message.payload, message.fds)

    def _payload_size(self, head: bytes) -> int:
        _, number, size, flags, _ = _HEADER.unpack(head)
        if flags & Flag.TYPE_MASK not in (Flag.COMMAND, Flag.REPLY):
            raise MessageError(f"{name_of(number)} in a message of type {flags & Flag.TYPE_MASK}")
        if not _HEADER.size <= size <= _HEADER.size + MAX_PAYLOAD:
            raise MessageError(f"{name_of(number)} in a message of {size} bytes")
        return int(size) - _HEADER.size

    def _made(self, head: bytes, payload: bytes, fds: tuple[int, ...]) -> Message:
        number, command, _, flags, error = _HEADER.unpack(head)
        return Message(number, command, flags, payload, fds, error)
