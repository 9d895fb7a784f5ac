"""The front-end's half of a conversation: requests and their answers, and what the back-end says of its own accord."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed, await_readable, close_all
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vhost_user.binding import GET_DEVICE, SET_DRIVER_FEATURES, WITH_BINDING
from virtio_ipsec.transport.vhost_user.connection import Connection, Message, reply, request
from virtio_ipsec.transport.vhost_user.messages import (
    BACKEND,
    INFLIGHT,
    U64,
    BackendRequest,
    Kind,
    ProtocolFeature,
    Request,
    name_of,
)

_NAMES: Mapping[int, str] = {GET_DEVICE: "IPSEC_GET_DEVICE", SET_DRIVER_FEATURES: "IPSEC_SET_DRIVER_FEATURES"}
_WITH_FDS = INFLIGHT


class Refused(TransportError):
    """The back-end answered that it did not do what it was asked; nothing has changed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the back-end refuses {what}")


class Channel:
    """Requests over ``connection``, one at a time. An answer is waited for up to ``patience`` seconds."""

    def __init__(self, connection: Connection, patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._backend: Connection | None = None
        #: How often the back-end has said that the configuration changed.
        self.changes = 0
        #: Acknowledged protocol features.
        self.protocol = 0

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was acknowledged."""
        return bool(self.protocol >> feature & 1)

    def filenos(self) -> list[int]:
        """What becomes readable when the back-end speaks, or goes."""
        connections = (self._connection, self._backend)
        return [each.fileno() for each in connections if each is not None]

    def close(self) -> None:
        """Close both sockets."""
        self._connection.close()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def ask(self, number: int, value: Any = None) -> Any:
        """A request with an answer of its own: that answer."""
        return self.ask_with_fds(number, value)[0]

    def ask_with_fds(
        self, number: int, value: Any = None, fds: Iterable[int] = ()
    ) -> tuple[Any, tuple[int, ...]]:
        """As :meth:`ask`, with the descriptors sent along, and those of the answer, which the caller is to close."""
        kind = WITH_BINDING[number]
        if kind.answer is None:
            raise ValueError(f"{self._name(number)} has no answer")
        self._connection.send(request(number, kind.payload.build(value), fds))
        answer = self._answer(number)
        try:
            return kind.answer.parse(answer.payload), answer.fds
        except BaseException:
            answer.close()
            raise

    def tell(self, number: int, value: Any = None, fds: Iterable[int] = ()) -> None:
        """Any other request. With REPLY_ACK its outcome is waited for: Refused when it is not success."""
        kind: Kind = WITH_BINDING[number]
        acknowledged = self.has(ProtocolFeature.REPLY_ACK)
        self._connection.send(request(number, kind.payload.build(value), fds, need_reply=acknowledged))
        if acknowledged:
            answer = self._answer(number)
            answer.close()
            if U64.parse(answer.payload):
                raise Refused(self._name(number))

    def offer_backend_channel(self) -> None:
        """Give the back-end a socket for requests of its own."""
        ours, theirs = socket.socketpair()
        self._backend = Connection(ours, patience=self._patience)
        with theirs:
            self.tell(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def serve_backend(self) -> None:
        """Handle what the back-end has asked, without waiting."""
        while self._backend is not None:
            try:
                message = self._backend.poll()
            except PeerClosed:
                self._backend.close()
                self._backend = None
                return
            if message is None:
                return
            self._handle(message, self._backend)

    def check_alive(self) -> None:
        """PeerClosed when the back-end has gone; MessageError when it has sent an answer to nothing."""
        message = self._connection.poll()
        if message is not None:
            message.close()
            raise MessageError(f"an answer to no question: {self._name(message.request)}")

    def _handle(self, message: Message, backend: Connection) -> None:
        message.close()
        done = False
        if message.request == BackendRequest.CONFIG_CHANGE_MSG:
            BACKEND[message.request].check("CONFIG_CHANGE_MSG", message.payload, len(message.fds))
            self.changes += 1
            done = True
        if message.needs_reply and self.has(ProtocolFeature.REPLY_ACK):
            backend.send(reply(message, U64.build(0 if done else 1)))

    def _answer(self, number: int) -> Message:
        """The next message, which has to be the answer; requests of the back-end are served meanwhile, for it may
        wait for us before it answers."""
        limit = monotonic() + self._patience
        while True:
            self.serve_backend()
            message = self._connection.poll()
            if message is not None:
                break
            await_readable(self.filenos(), limit, f"the back-end does not answer {self._name(number)}")
        if message.request != number or not message.is_reply:
            message.close()
            raise MessageError(f"{self._name(message.request)} in answer to {self._name(number)}")
        if message.fds and WITH_BINDING[number].answer is not _WITH_FDS:
            close_all(message.fds)
            raise MessageError(f"descriptors in answer to {self._name(number)}")
        return message

    @staticmethod
    def _name(number: int) -> str:
        return _NAMES.get(number) or name_of(number)
