"""Peers of a served port, one after the other: somebody who waits for them, or looks for one, and serves it.

A peer that breaks its protocol loses its connection: one line in the log, one count, and the port is as it was before.
Only the port's own control thread is at work here.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from functools import partial
from time import monotonic_ns
from typing import ClassVar, Protocol

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.loop import Timer
from virtio_ipsec.transport.port import ServedPort

_log = logging.getLogger(__name__)

#: How long a client waits before it tries to connect again, and a server that could not accept, in nanoseconds.
_RETRY = 200_000_000
#: How long nobody is served after a peer that broke the protocol: it may come again and again.
_PENALTY = 100_000_000
#: How long the peer may leave an answer unread, in seconds.
PATIENCE = 1.0
#: Messages that are obeyed before others have their turn.
BURST = 16


class Conversation(Protocol):
    """With one peer, from connection to its end."""

    def work(self) -> None:
        """Obey some of the messages that have come. TransportError: the end."""

    def close(self) -> None:
        """The end."""


class Serving(ABC):
    """Listens at ``path``, or connects to it as ``client``, again and again. TransportError when it cannot listen.

    ``mode``: of the socket that listens. ``penalty``: how long nobody is served after a peer that broke the protocol,
    in nanoseconds. To be made and closed in the control thread, or while nobody runs the loop.
    """

    #: What the other side is called.
    peer: ClassVar[str]

    def __init__(
        self,
        port: ServedPort,
        path: str,
        *,
        client: bool = False,
        mode: int = 0o600,
        penalty: int | None = None,
    ) -> None:
        self.port = port
        self.path = path
        self._session: Conversation | None = None
        self._fd = -1
        self._timer: Timer | None = None
        self._listener = None if client else Listener(path, mode=mode)
        self._penalty = _PENALTY if penalty is None else penalty
        self._is_closed = False
        self._await()

    @abstractmethod
    def _open(self, sock: socket.socket) -> Conversation:
        """Begin to talk over a connected socket, owned from here on."""

    @property
    def is_connected(self) -> bool:
        """Whether a peer is there."""
        return self._session is not None

    def close(self) -> None:
        """Let the peer go and take the socket away; the port stays."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._session is not None:
                self.port.loop.remove(self._fd)
                self._end(self._session)
            elif self._timer is not None:
                self._timer.cancel()
            elif self._listener is not None:
                self.port.loop.remove(self._listener.socket.fileno())
        finally:
            if self._listener is not None:
                self._listener.close()

    def _await(self) -> None:
        """The next peer. One that comes while another is served waits."""
        self._timer = None
        if self._listener is None:
            self._connect()
        else:
            self.port.loop.add(self._listener.socket.fileno(), partial(self._accept, self._listener.socket))

    def _accept(self, listener: socket.socket) -> None:
        self.port.loop.remove(listener.fileno())
        try:
            sock, _ = listener.accept()
        except OSError:  # gone again, or there is no descriptor left
            self._later(_RETRY)
            return
        self._begin(sock)

    def _later(self, wait: int) -> None:
        self._timer = self.port.loop.at(monotonic_ns() + wait, self._await)

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            self._later(_RETRY)
            return
        self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        self._fd = sock.fileno()
        self._session = self._open(sock)
        self.port.count("connections")
        _log.info("%s: a %s is connected", self.port.name, self.peer)
        self.port.loop.add(self._fd, partial(self._work, self._session))

    def _work(self, session: Conversation) -> None:
        wait = 0
        try:
            session.work()
        except PeerClosed:
            _log.info("%s: the %s has gone", self.port.name, self.peer)
        except TransportError as error:
            self.port.count("protocol_errors")
            _log.warning("%s: the %s is disconnected: %s", self.port.name, self.peer, str(error))
            wait = self._penalty
        except Exception:
            self.port.count("internal_errors")
            _log.exception("%s: the %s is disconnected: an internal error", self.port.name, self.peer)
            wait = self._penalty
        else:
            return
        self.port.loop.remove(self._fd)
        self._let_go(session, wait)

    def _let_go(self, session: Conversation, wait: int) -> None:
        """Nobody else is served before all of this one is gone. That may take more than one attempt, for a thread of
        the port can hang in memory that does not answer."""
        try:
            self._end(session)
        except Exception as error:
            self.port.count("failed_ends")
            _log.warning("%s: the %s cannot be let go yet: %s", self.port.name, self.peer, str(error))
            self._timer = self.port.loop.at(monotonic_ns() + _RETRY, partial(self._let_go, session, wait))
        else:
            if wait:
                self._later(wait)
            else:
                self._await()

    def _end(self, session: Conversation) -> None:
        self._session = None
        session.close()
