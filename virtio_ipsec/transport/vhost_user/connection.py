"""One vhost-user socket: its messages, and the socket of a front-end that listens."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import FramedSocket, close_all
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vhost_user.messages import MAX_FDS, Flag

#: Far more than the largest message of the protocol has.
MAX_PAYLOAD: Final = 4096
_HEADER = struct.Struct("=III")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. The descriptors of a received one belong to whoever holds it: use them, or :meth:`close`."""

    request: int
    flags: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def is_reply(self) -> bool:
        """Whether this answers a request."""
        return bool(self.flags & Flag.REPLY)

    @property
    def needs_reply(self) -> bool:
        """Whether an answer is asked for. Counts only with REPLY_ACK negotiated."""
        return bool(self.flags & Flag.NEED_REPLY)

    def close(self) -> None:
        """Close all descriptors."""
        close_all(self.fds)


def request(
    number: int, payload: bytes = b"", fds: Iterable[int] = (), *, need_reply: bool = False
) -> Message:
    """A request as its sender makes it."""
    return Message(number, Flag.VERSION | (Flag.NEED_REPLY if need_reply else 0), payload, tuple(fds))


def reply(to: Message, payload: bytes, fds: Iterable[int] = ()) -> Message:
    """The answer to a request."""
    return Message(to.request, Flag.VERSION | Flag.REPLY, payload, tuple(fds))


class Connection(FramedSocket[Message]):
    """Messages of vhost-user over a connected socket."""

    protocol = "vhost-user"
    head_size = _HEADER.size
    most_fds = MAX_FDS

    def send(self, message: Message) -> None:
        """Send one message; its descriptors stay the caller's. Raises PeerClosed or PeerStalled."""
        head = _HEADER.pack(message.request, message.flags, len(message.payload))
        self._send(head + message.payload, message.fds)

    def _payload_size(self, head: bytes) -> int:
        number, flags, size = _HEADER.unpack(head)
        if flags & Flag.VERSION_MASK != Flag.VERSION:
            raise MessageError(f"message {number} of version {flags & Flag.VERSION_MASK}")
        if size > MAX_PAYLOAD:
            raise MessageError(f"message {number} of {size} bytes")
        return int(size)

    def _made(self, head: bytes, payload: bytes, fds: tuple[int, ...]) -> Message:
        number, flags, _ = _HEADER.unpack(head)
        return Message(number, flags, payload, fds)


def await_caller(path: str, timeout: float) -> socket.socket:
    """Listen at ``path`` until a back-end in client mode connects."""
    listener = Listener(path)
    try:
        listener.socket.settimeout(timeout)
        return listener.socket.accept()[0]
    except TimeoutError:
        raise TransportError(f"{path}: no back-end connects") from None
    finally:
        listener.close()
