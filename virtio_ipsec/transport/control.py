"""The control socket: one JSON object per line asks, one JSON object per line answers.

::

    > {"id": 1, "method": "sa.list", "port": "green", "params": {"limit": 100}}
    < {"id": 1, "result": {"sas": [...], "more": false}}
    > {"id": 2, "method": "sa.remove", "params": {"direction": "outbound", "id": 7}}
    < {"id": 2, "error": "port green has no outbound sa 7"}

``id`` comes back as it was sent, ``port`` may be left out where there is one port, ``params`` where there are none.
Requests of one client are carried out in their order, each when the one before has been answered. The socket is for its
owner and root: by its mode, and by who is connected to it.

Nothing that a client sends or does not take holds up the thread that serves it, or makes it keep more than a request
and some answers per client.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from traceback import extract_tb
from typing import Any, NoReturn

from virtio_ipsec.errors import VirtioIpsecError, WireError
from virtio_ipsec.transport.local_socket import Listener

MAX_REQUEST = 1 << 20
"""Octets of a line."""

MAX_CLIENTS = 16
#: Seconds after which a client that wants nothing makes room for another one.
IDLE = 5.0
#: Requests of one client that are answered before others have their turn.
TURN = 64
_CHUNK = 1 << 16
_METHOD_LEN = 40
_IDS = (int, str, type(None))

_log = logging.getLogger(__name__)


class Connection:
    """What requests of one client have in common. ``on_close`` is called when it is gone."""

    def __init__(self) -> None:
        self.on_close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants. ``params`` may hold keys."""

    method: str
    port: str | None
    params: dict[str, Any] = field(repr=False)
    who: str = ""
    """``uid 0 pid 4711``: for the log."""
    connection: Connection = field(default_factory=lambda: Connection())


Result = dict[str, Any]
#: Give it the result, or the error: a sentence on one line.
Reply = Callable[[Result | VirtioIpsecError], None]
#: Called with a request and the way to answer it, now or later, from the server's thread.
Handler = Callable[[Request, Reply], None]


@dataclass(slots=True)
class ControlCounts:
    """What happened to clients and requests."""

    clients: int = 0
    refused_clients: int = 0
    requests: int = 0
    refused_requests: int = 0


class ControlServer:
    """A control socket at ``path``. Its descriptor :meth:`fileno` is readable when :meth:`step` has something to do."""

    def __init__(
        self,
        path: str,
        handler: Handler,
        *,
        after: Callable[[], None] = lambda: None,
        users: Iterable[int] | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """``after`` is called when a step has answered something, before the answers are sent. ``users``: user ids that
        may connect; None: ours and root. TransportError when the socket cannot be made."""
        self.counts = ControlCounts()
        self._users = frozenset((os.geteuid(), 0) if users is None else users)
        self._handler, self._after, self._most = handler, after, max_clients
        self._clients: dict[int, _Client] = {}
        self._served: list[_Client] | None = None
        self._listener = Listener(path, backlog=max_clients)
        self._poll = select.epoll()
        self._poll.register(self._listener.socket.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """For a selector: readable."""
        return self._poll.fileno()

    def step(self, timeout: float = 0) -> None:
        """Do what can be done without waiting; ``timeout``: seconds to wait for the first event."""
        answered = self.counts.requests
        self._served = []
        for fd, events in self._poll.poll(timeout):
            if fd == self._listener.socket.fileno():
                self._accept()
            elif (client := self._clients.get(fd)) is not None:
                self._serve(client, events)
        if self.counts.requests != answered:
            self._after()
        served, self._served = self._served, None
        for client in served:
            self._send(client)

    def close(self) -> None:
        """Close the socket, and all connections as they are."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._poll.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
        except OSError:
            return  # gone again, or no descriptor left: it stays in the backlog
        connection.setblocking(False)
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in self._users:
            self._turn_away(connection, f"user {uid} may not use this socket")
        elif len(self._clients) >= self._most and not self._make_room():
            self._turn_away(connection, f"{self._most} clients are connected, that is all")
        else:
            client = _Client(connection, f"uid {uid} pid {pid}", monotonic())
            self._clients[connection.fileno()] = client
            self._poll.register(connection.fileno(), select.EPOLLIN)
            self.counts.clients += 1

    def _turn_away(self, connection: socket.socket, reason: str) -> None:
        self.counts.refused_clients += 1
        _log.warning("control socket: %s", reason)
        with connection, suppress(OSError):
            connection.send(_line({"id": None, "error": reason}))

    def _make_room(self) -> bool:
        """Close the client that has wanted nothing for longest, if that is long."""
        idle = [each for each in self._clients.values() if not each.busy and each.since < monotonic() - IDLE]
        if idle:
            self._drop(min(idle, key=lambda each: each.since))
        return bool(idle)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is not None:
            self._poll.unregister(client.socket.fileno())
        client.close()

    def _serve(self, client: _Client, events: int) -> None:
        """Take what came, give what can be given. A client that breaks anything is closed, and that is all."""
        try:
            if events & select.EPOLLOUT:
                client.flush()
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not client.receive():
                self._drop(client)
                return
            self._answer(client)
        except OSError:
            self._drop(client)

    def _answer(self, client: _Client) -> None:
        """Answer the requests that are there."""
        for _ in range(TURN):
            line = client.next_line()
            if line is None:
                break
            self.counts.requests += 1
            ident: object = None
            try:
                ident, request = _parse(line, client)
                client.busy = True
                self._handler(request, partial(self._reply, client, ident))
            except VirtioIpsecError as error:
                self._reply(client, ident, error)
            except Exception as error:
                # Its text may hold what the request held.
                where = " < ".join(
                    f"{at.filename}:{at.lineno}" for at in reversed(extract_tb(error.__traceback__))
                )
                _log.error("control socket: an internal error: %s at %s", type(error).__name__, where)
                self._reply(client, ident, VirtioIpsecError("an internal error, which the log describes"))
            finally:
                line[:] = bytes(len(line))  # it may have held keys
        if client.overlong:
            self.counts.refused_requests += 1
            client.put(_line({"id": None, "error": f"a request has at most {MAX_REQUEST} octets"}))
            client.flush()
            self._drop(client)
        elif self._served is not None:
            self._served.append(client)

    def _reply(self, client: _Client, ident: object, answer: Result | VirtioIpsecError) -> None:
        if isinstance(answer, VirtioIpsecError):
            self.counts.refused_requests += 1
        client.busy = False
        client.put(_line({"id": ident} | answer_fields(answer)))
        if self._served is None:
            self._send(client)

    def _send(self, client: _Client) -> None:
        """Send what can be sent, and wait for what is wanted next."""
        if client.closed:
            return
        try:
            client.flush()
            self._poll.modify(client.socket.fileno(), client.wishes)
        except OSError:
            self._drop(client)


class _Client:
    """A connection: at most one unfinished request, and answers that were not taken: one, or several small ones."""

    def __init__(self, connection: socket.socket, who: str, now: float) -> None:
        self.socket, self.who, self.since = connection, who, now
        self.connection = Connection()
        self.busy = self.closed = False
        self._in, self._out = bytearray(), bytearray()
        self._searched = 0

    @property
    def wishes(self) -> int:
        """The events to wait for. What was read and not looked at yet is looked at when answers have been taken, or at
        once: then the socket counts as writable."""
        more = not self.busy and b"\n" in self._in
        reads = not self.busy and not self.is_full and not more
        return (select.EPOLLOUT if self._out or more else 0) | (select.EPOLLIN if reads else 0)

    @property
    def is_full(self) -> bool:
        """Whether answers have to be taken before there are more."""
        return len(self._out) >= _CHUNK

    @property
    def overlong(self) -> bool:
        return self._searched > MAX_REQUEST

    def receive(self) -> bool:
        """Read once; False at the end."""
        if self.busy or self.is_full:
            return self.socket.recv(1, socket.MSG_PEEK) != b""  # hung up
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return True
        self._in += data
        self.since = monotonic()
        return bool(data)

    def next_line(self) -> bytearray | None:
        """The next request, if it is all there and its turn has come."""
        if self.busy or self.is_full or self.closed:
            return None
        end = self._in.find(b"\n", self._searched)
        if end < 0 or end > MAX_REQUEST:
            self._searched = len(self._in) if end < 0 else end
            return None
        line = self._in[:end]
        self._in[: end + 1] = bytes(end + 1)
        del self._in[: end + 1]
        self._searched = 0
        return line

    def put(self, data: bytes) -> None:
        """To be sent at the next :meth:`flush`."""
        if not self.closed:
            self._out += data

    def flush(self) -> None:
        """Send what the socket takes."""
        with suppress(BlockingIOError):
            while self._out:
                del self._out[: self.socket.send(memoryview(self._out)[:_CHUNK])]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.connection.on_close()
        self._in[:] = bytes(len(self._in))
        self._out[:] = bytes(len(self._out))
        self.socket.close()


def answer_fields(answer: Result | VirtioIpsecError) -> dict[str, Any]:
    """What stands beside ``id`` in an answer."""
    if isinstance(answer, VirtioIpsecError):
        return {"error": " ".join(str(answer).split()) or type(answer).__name__}
    return {"result": answer}


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytearray, client: _Client) -> tuple[object, Request]:
    """(id, request); WireError for what is none."""
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise WireError("a request is a JSON object on a line of its own") from None
    if not isinstance(found, dict) or found.keys() - {"id", "method", "port", "params"}:
        raise WireError("a request is an object with id, method, port and params")
    ident, method, port = found.get("id"), found.get("method"), found.get("port")
    params = found.get("params", {})
    if not isinstance(ident, _IDS) or len(str(ident)) > _METHOD_LEN:
        raise WireError("id must be a number or a short string")
    if not isinstance(method, str) or len(method) > _METHOD_LEN:
        raise WireError("method must be a name")
    if not isinstance(port, str | None) or not isinstance(params, dict):
        raise WireError("port must be a string, params an object")
    return ident, Request(method, port, params, client.who, client.connection)


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
