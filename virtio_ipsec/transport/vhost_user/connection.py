"""One vhost-user socket: whole messages with their file descriptors, in either direction.

A stream socket keeps no message boundaries, but descriptors stick to the bytes they were sent with. So nothing is
ever read beyond the end of the message at hand, and descriptors are found with the message they belong to.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.vhost_user.messages import MAX_FDS, Flag, MessageError

#: Far more than the largest message of the protocol has.
MAX_PAYLOAD: Final = 4096
_HEADER = struct.Struct("=III")
_FD_SIZE = array.array("i").itemsize
#: Room for more descriptors than are allowed: one too many is seen as such.
_ANCILLARY = socket.CMSG_SPACE((MAX_FDS + 1) * _FD_SIZE)


class PeerClosed(TransportError):
    """The other side closed the connection, or reset it."""


class PeerStalled(TransportError):
    """The other side did not send, or did not take, a message in time."""


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


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is no error."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


class Connection:
    """A connected ``SOCK_STREAM`` Unix socket, owned from here on, and never blocking.

    ``patience`` is how long :meth:`send` waits, in seconds, for a peer that does not read. Not for several threads at
    a time, except that one may send while another receives.
    """

    def __init__(self, sock: socket.socket, *, patience: float = 5.0) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._patience = patience
        self._head = b""
        self._payload = b""
        self._fds: list[int] = []
        self._size: int | None = None

    def fileno(self) -> int:
        """For a selector; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket and the descriptors of a message that was not whole yet."""
        self._sock.close()
        self._drop()

    # Sending.

    def send(self, message: Message) -> None:
        """Send one message; its descriptors stay the caller's. Raises PeerClosed or PeerStalled."""
        data = _HEADER.pack(message.request, message.flags, len(message.payload)) + message.payload
        fds = array.array("i", message.fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if message.fds else []
        limit = monotonic() + self._patience
        while data:
            try:
                sent = self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT, limit - monotonic(), "take")
                continue
            except InterruptedError:
                continue
            except OSError as error:
                raise _lost(error) from error
            data, ancillary = data[sent:], []  # the descriptors went with the first byte

    # Receiving.

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None when the peer has closed between two messages.

        Waits for ``timeout`` seconds at most, forever without one. Raises PeerStalled when that is over (what has
        come of a message is kept, and a later call goes on), PeerClosed when the peer is gone within a message,
        MessageError for bytes that are no message.
        """
        limit = None if timeout is None else monotonic() + timeout
        while True:
            try:
                message = self.poll()
            except PeerClosed:
                if self._head or self._fds:
                    raise
                return None
            if message is not None:
                return message
            self._wait(select.POLLIN, None if limit is None else limit - monotonic(), "send")

    def poll(self) -> Message | None:
        """The next message if all of it is here, without waiting; None when it is not.

        Raises PeerClosed at the end, MessageError as :meth:`receive` does. After either, only :meth:`close` is of use.
        """
        try:
            while True:
                if self._size is None:
                    if not self._fill_head():
                        return None
                    self._size = self._check_head()
                if len(self._payload) == self._size:
                    return self._whole()
                data = self._read(self._size - len(self._payload))
                if data is None:
                    return None
                self._payload += data
        except MessageError:
            self._drop()
            raise

    def _fill_head(self) -> bool:
        while len(self._head) < _HEADER.size:
            data = self._read(_HEADER.size - len(self._head))
            if data is None:
                return False
            self._head += data
        return True

    def _check_head(self) -> int:
        number, flags, size = _HEADER.unpack(self._head)
        if flags & Flag.VERSION_MASK != Flag.VERSION:
            raise MessageError(f"message {number} of version {flags & Flag.VERSION_MASK}")
        if size > MAX_PAYLOAD:
            raise MessageError(f"message {number} of {size} bytes")
        return int(size)

    def _whole(self) -> Message:
        number, flags, _ = _HEADER.unpack(self._head)
        message = Message(number, flags, self._payload, tuple(self._fds))
        self._head, self._payload, self._fds, self._size = b"", b"", [], None
        return message

    def _read(self, most: int) -> bytes | None:
        """At least one byte, or None when there is none now. Descriptors that come along are kept."""
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(most, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                return None
            except InterruptedError:
                continue
            except OSError as error:
                raise _lost(error) from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % _FD_SIZE])
                self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise MessageError(f"a message with more than {MAX_FDS} file descriptors")
        if not data:
            raise PeerClosed("the peer closed the connection")
        return data

    def _drop(self) -> None:
        close_all(self._fds)
        self._fds = []

    def _wait(self, events: int, seconds: float | None, verb: str) -> None:
        poller = select.poll()
        poller.register(self._sock, events)
        if (seconds is not None and seconds <= 0) or not poller.poll(
            None if seconds is None else seconds * 1000
        ):
            raise PeerStalled(f"the peer does not {verb} messages")


def dial(path: str, timeout: float) -> socket.socket:
    """Connect to the back-end that listens at ``path``; it may come up within ``timeout`` seconds."""
    limit = monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if monotonic() >= limit:
                raise TransportError(f"{path}: {os.strerror(error.errno or 0)}") from None
            sleep(0.01)
            continue
        return sock


def await_caller(path: str, timeout: float) -> socket.socket:
    """Listen at ``path`` until a back-end in client mode connects."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(path)
        except OSError as error:
            raise TransportError(f"{path}: {os.strerror(error.errno or 0)}") from None
        try:
            os.chmod(path, 0o600)
            listener.listen(1)
            listener.settimeout(timeout)
            return listener.accept()[0]
        except TimeoutError:
            raise TransportError(f"{path}: no back-end connects") from None
        finally:
            Path(path).unlink(missing_ok=True)


def _lost(error: OSError) -> TransportError:
    """Errors of a socket whose peer is gone; anything else names itself."""
    if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
        return PeerClosed("the peer closed the connection")
    return TransportError(f"vhost-user socket: {os.strerror(error.errno or 0)}")
