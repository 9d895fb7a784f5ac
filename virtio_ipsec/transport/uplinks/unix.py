"""``unix:PATH``: a wire between two processes of one user. One frame is one packet of a SOCK_SEQPACKET socket.

Both ends are opened alike: the first one listens, the second connects. When one goes away the other one listens, so
that either can be restarted. A third one waits until an end is free.
"""

from __future__ import annotations

import errno
import select
import socket
from threading import Lock

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.uplink import MAX_FRAME
from virtio_ipsec.transport.uplinks.stream import FrameByFrame

_BUFFER = 4 << 20
#: What connect() says when nobody is there to be connected to.
_NOBODY = {errno.ENOENT, errno.ECONNREFUSED}
#: Times to try when the others begin to listen, or end it, at the same moment.
_TRIES = 3


class UnixWire(FrameByFrame):
    """One end. Frames sent while there is no other end are dropped ("down")."""

    def __init__(self, argument: str) -> None:
        name = f"unix:{argument}"
        self._path = argument
        self._peer: socket.socket | None = None
        self._listener: Listener | None = None
        self._changing = Lock()
        # The descriptor to wait on stays the same whatever becomes of the sockets behind it.
        self._events = select.epoll()
        try:
            self._meet()
        except TransportError as error:
            self._events.close()
            raise TransportError(f"unix:{error}") from None
        super().__init__(name, self._events.fileno())

    def _meet(self) -> None:
        """Connect when somebody listens, else listen."""
        for last in (False,) * (_TRIES - 1) + (True,):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                sock.connect(self._path)
            except OSError as error:
                sock.close()
                if error.errno not in _NOBODY:
                    raise TransportError(f"{self._path}: {error.strerror or error}") from None
            else:
                self._take(sock)
                return
            try:
                self._listener = Listener(self._path, socket.SOCK_SEQPACKET, backlog=1)
            except TransportError:
                if last:
                    raise
            else:
                self._events.register(self._listener.socket, select.EPOLLIN)
                return

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # as much of it as the system allows
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._events.register(sock, select.EPOLLIN)
        self._peer = sock

    def _write(self, frame: bytes) -> None:
        peer = self._peer or self._accept()
        if peer is None:
            raise OSError(errno.ENOTCONN, "nobody is at the other end")
        peer.send(frame)

    def _read(self) -> list[bytes]:
        peer = self._peer or self._accept()
        if peer is None:
            raise BlockingIOError
        try:
            frame = peer.recv(MAX_FRAME)
        except ConnectionError:
            frame = b""
        if frame:
            return [frame]
        self._lose(peer)
        return []

    def _accept(self) -> socket.socket | None:
        """The one who waits, if there is one."""
        with self._changing:
            if self._peer is None and self._listener is not None:
                try:
                    sock, _ = self._listener.socket.accept()
                except OSError:
                    return None
                # While there is another end nobody is let in, and the descriptor is not readable because of them.
                self._events.unregister(self._listener.socket)
                self._take(sock)
            return self._peer

    def _lose(self, peer: socket.socket) -> None:
        """The other end has gone: be there for the next one."""
        with self._changing:
            self._events.unregister(peer)
            self._peer = None
            peer.close()
            if self._listener is not None:
                self._events.register(self._listener.socket, select.EPOLLIN)
                return
            try:
                self._meet()
            except TransportError:
                self._counts.drop("rx", "down")

    def _release(self) -> None:
        if self._peer is not None:
            self._peer.close()
        if self._listener is not None:
            self._listener.close()
        self._events.close()
