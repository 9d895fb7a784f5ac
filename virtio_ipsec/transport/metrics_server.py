"""`serve --metrics ADDR`: just enough HTTP for Prometheus to fetch a page from this machine."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from time import monotonic

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.metrics import CONTENT_TYPE

MAX_REQUEST = 8192
MAX_CLIENTS = 8
#: Seconds that a client has for its request and for taking the answer, if another one wants its place.
PATIENCE = 2.0


class MetricsServer:
    """Answers ``GET /metrics`` at HOST:PORT of a loopback address, or at the path of a local socket, with what ``text``
    returns. :meth:`fileno` is readable when :meth:`step` has something to do."""

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        """ConfigError for an address that others could reach, TransportError when it cannot be had."""
        self._text = text
        self._local: Listener | None = None
        self._listener = self._listen(address)
        self._clients: dict[int, _Client] = {}
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)

    @property
    def address(self) -> str:
        """Where it listens, with the port that was given for port 0."""
        if self._local is not None:
            return self._local.path
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def fileno(self) -> int:
        """For a selector: readable."""
        return self._poll.fileno()

    def step(self, timeout: float = 0) -> None:
        """Do what can be done without waiting; ``timeout``: seconds to wait for the first event."""
        for fd, _ in self._poll.poll(timeout):
            if fd == self._listener.fileno():
                self._accept()
            elif (client := self._clients.get(fd)) is not None:
                self._serve(client)

    def close(self) -> None:
        """Close everything."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._poll.close()
        self._listener.close()
        if self._local is not None:
            self._local.close()

    def _listen(self, address: str) -> socket.socket:
        host, _, port = address.rpartition(":")
        if "/" in address or not host:
            self._local = Listener(address)
            return self._local.socket
        host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        try:
            where = ip_address(host)
            number = int(port)
        except ValueError:
            raise ConfigError(
                f"metrics {address}: HOST:PORT of a loopback address, or the path of a socket"
            ) from None
        if not where.is_loopback or not 0 <= number <= 65535:
            raise ConfigError(f"metrics {address}: a loopback address; counters are for this machine")
        listener = socket.socket(
            socket.AF_INET if where.version == 4 else socket.AF_INET6, socket.SOCK_STREAM
        )
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(MAX_CLIENTS)
        except OSError as error:
            listener.close()
            raise TransportError(f"metrics {address}: {error.strerror}") from None
        listener.setblocking(False)
        return listener

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS:
            oldest = min(self._clients.values(), key=lambda client: client.since)
            if oldest.since > monotonic() - PATIENCE:
                connection.close()
                return
            self._drop(oldest)
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def _serve(self, client: _Client) -> None:
        try:
            if not client.answer:
                if not client.receive():
                    self._drop(client)
                    return
                if not client.is_complete:
                    return
                client.answer += self._answer(bytes(client.request))
                self._poll.modify(client.socket.fileno(), select.EPOLLOUT)
            if client.send():
                self._drop(client)
        except OSError:
            self._drop(client)

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", "not HTTP/1.1\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "GET only\n", "Allow: GET, HEAD\r\n")
        if words[1].split(b"?")[0] not in (b"/metrics", b"/"):
            return _response("404 Not Found", "try /metrics\n")
        return _response("200 OK", self._text(), with_body=words[0] == b"GET")

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is not None:
            self._poll.unregister(client.socket.fileno())
        with suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        client.socket.close()


class _Client:
    """A connection, for one request."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.since = monotonic()
        self.request = bytearray()
        self.answer = bytearray()

    @property
    def is_complete(self) -> bool:
        return b"\r\n\r\n" in self.request or len(self.request) > MAX_REQUEST

    def receive(self) -> bool:
        """Read once; False at the end."""
        try:
            data = self.socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return True
        self.request += data
        return bool(data)

    def send(self) -> bool:
        """Whether all has been sent."""
        with suppress(BlockingIOError):
            while self.answer:
                del self.answer[: self.socket.send(memoryview(self.answer)[: 1 << 16])]
        return not self.answer


def _response(status: str, body: str, headers: str = "", *, with_body: bool = True) -> bytes:
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n"
        f"Connection: close\r\n{headers}\r\n"
    )
    return head.encode() + (content if with_body else b"")
