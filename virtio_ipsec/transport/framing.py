"""Messages over a local stream socket: each whole, with its file descriptors, in either direction.

A stream socket keeps no message boundaries, but descriptors stick to the bytes they were sent with. So nothing is
ever read beyond the end of the message at hand, and descriptors are found with the message they belong to.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import ClassVar, Generic, TypeVar

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.payload import MessageError

M = TypeVar("M")
_FD_SIZE = array.array("i").itemsize
#: Why a path cannot be connected to whoever comes up. A path that is too long has no number.
_HOPELESS = frozenset({None, errno.ENOTDIR, errno.ELOOP, errno.EPROTOTYPE})


class PeerClosed(TransportError):
    """The other side closed the connection, or reset it."""


class PeerStalled(TransportError):
    """The other side did not send, or did not take, a message in time."""


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is no error."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


class FramedSocket(ABC, Generic[M]):
    """A connected ``SOCK_STREAM`` Unix socket, owned from here on, and never blocking; ``M`` is a message.

    A message is a head of fixed size, which tells how much payload follows. ``patience`` is how long sending waits, in
    seconds, for a peer that does not read. Not for several threads at a time, except that one may send while another
    receives.
    """

    #: The name of the protocol.
    protocol: ClassVar[str]
    #: Bytes of the head.
    head_size: ClassVar[int]
    #: Most descriptors of one message.
    most_fds: ClassVar[int]

    def __init__(self, sock: socket.socket, *, patience: float = 5.0) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._patience = patience
        # Room for more descriptors than are allowed: one too many is seen as such.
        self._ancillary = socket.CMSG_SPACE((self.most_fds + 1) * _FD_SIZE)
        self._head = bytearray()
        self._payload = bytearray()
        self._fds: list[int] = []
        self._size: int | None = None

    @abstractmethod
    def _payload_size(self, head: bytes) -> int:
        """How much payload follows. MessageError for a head that is none."""

    @abstractmethod
    def _made(self, head: bytes, payload: bytes, fds: tuple[int, ...]) -> M:
        """The message, of which the descriptors belong to whoever gets it."""

    def fileno(self) -> int:
        """For a selector; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket and the descriptors of a message that was not whole yet."""
        self._sock.close()
        self._drop()

    def hang_up(self) -> None:
        """Whoever waits for more finds the end."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # Sending.

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        """Send bytes and descriptors, which stay the caller's. Raises PeerClosed or PeerStalled."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        limit = monotonic() + self._patience
        view = memoryview(data)
        while view:
            try:
                sent = self._sock.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                try:
                    self._wait(select.POLLOUT, limit - monotonic(), "take")
                except PeerStalled:
                    if len(view) < len(data):  # nothing that came behind half a message would be understood
                        self.hang_up()
                    raise
                continue
            except InterruptedError:
                continue
            except OSError as error:
                raise self._lost(error) from error
            view, ancillary = view[sent:], []  # the descriptors went with the first byte

    # Receiving.

    def receive(self, timeout: float | None = None) -> M | None:
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

    def poll(self) -> M | None:
        """The next message if all of it is here, without waiting; None when it is not.

        Raises PeerClosed at the end, MessageError as :meth:`receive` does. After either, only :meth:`close` is of use.
        """
        try:
            while True:
                if self._size is None:
                    if not self._fill(self._head, self.head_size):
                        return None
                    self._size = self._payload_size(bytes(self._head))
                if not self._fill(self._payload, self._size):
                    return None
                return self._whole()
        except MessageError:
            self._drop()
            raise

    def messages(self, most: int) -> Iterator[M]:
        """The messages that are here, ``most`` of them at most; raises as :meth:`poll`."""
        for _ in range(most):
            message = self.poll()
            if message is None:
                return
            yield message

    def _fill(self, buffer: bytearray, size: int) -> bool:
        while len(buffer) < size:
            data = self._read(size - len(buffer))
            if data is None:
                return False
            buffer += data
        return True

    def _whole(self) -> M:
        head, payload, fds = bytes(self._head), bytes(self._payload), tuple(self._fds)
        self._head, self._payload, self._fds, self._size = bytearray(), bytearray(), [], None
        return self._made(head, payload, fds)

    def _read(self, most: int) -> bytes | None:
        """At least one byte, or None when there is none now. Descriptors that come along are kept."""
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(most, self._ancillary, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                return None
            except InterruptedError:
                continue
            except OSError as error:
                raise self._lost(error) from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % _FD_SIZE])
                self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > self.most_fds:
            raise MessageError(f"a message with more than {self.most_fds} file descriptors")
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

    def _lost(self, error: OSError) -> TransportError:
        """Errors of a socket whose peer is gone; anything else names itself."""
        if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
            return PeerClosed("the peer closed the connection")
        return TransportError(f"{self.protocol} socket: {error.strerror or error}")


def await_readable(fds: Iterable[int], until: float, what: str) -> None:
    """Until one of them is. PeerStalled: ``what`` has not happened when the monotonic clock shows ``until``."""
    left = until - monotonic()
    if left <= 0:
        raise PeerStalled(what)
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    poller.poll(left * 1000)


def dial(path: str, timeout: float) -> socket.socket:
    """Connect to who listens at ``path``; it may come up within ``timeout`` seconds. TransportError, at once where no
    socket can come up."""
    limit = monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if _is_foreign(path):
                raise TransportError(f"{path}: a file that is no socket") from None
            if error.errno in _HOPELESS or monotonic() >= limit:
                raise TransportError(f"{path}: {error.strerror or error}") from None
            sleep(0.01)
            continue
        return sock


def _is_foreign(path: str) -> bool:
    """Whether something else than a socket is there."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
