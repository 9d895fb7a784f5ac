"""The other end of the control socket, for programs that may wait: `virtio-ipsec ctl`, and handover."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from virtio_ipsec.errors import TransportError, VirtioIpsecError

TIMEOUT = 10.0
#: Requests that are sent before the first answer is read: what is under way fits into the socket.
AHEAD = 32


class RequestRefused(VirtioIpsecError):
    """The other side understood the request and will not do it; nothing was changed."""


class ControlClient:
    """A connection to the control socket at ``path``. ``timeout``: seconds that an answer may take.

    TransportError when nobody listens, when the answer does not come, or is none: then nobody knows whether the request
    was carried out.
    """

    def __init__(self, path: str, *, port: str | None = None, timeout: float = TIMEOUT) -> None:
        self.path, self.port = path, port
        self._made = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            reason = "nobody listens there" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise TransportError(f"control socket {path}: {reason or error}") from None
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask and wait for the result; RequestRefused with the other side's sentence."""
        (result,) = self.call_many([(method, params)])
        if isinstance(result, RequestRefused):
            raise result
        return result

    def call_many(
        self, requests: Iterable[tuple[str, dict[str, Any]]]
    ) -> Iterator[dict[str, Any] | RequestRefused]:
        """The results of many requests, in their order, without waiting for each before the next is sent."""
        sent = 0
        for method, params in requests:
            self._send(method, params)
            sent += 1
            if sent >= AHEAD:
                sent -= 1
                yield self._receive()
        for _ in range(sent):
            yield self._receive()

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._made += 1
        request: dict[str, Any] = {"id": self._made, "method": method, "params": params}
        if self.port is not None:
            request["port"] = self.port
        try:
            # What JSON has no word for (a date of a TOML file) is for the other side to refuse where it stands.
            line = json.dumps(request, separators=(",", ":"), default=str)
            self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise self._broken(error) from None

    def _receive(self) -> dict[str, Any] | RequestRefused:
        try:
            line = self._answers.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
        except TimeoutError:
            raise TransportError(f"control socket {self.path}: no answer") from None
        except OSError as error:
            raise self._broken(error) from None
        except ValueError:
            raise TransportError(f"control socket {self.path}: what came is no answer") from None
        if answer is None:
            raise TransportError(f"control socket {self.path}: closed by the other side")
        if not isinstance(answer, dict) or not isinstance(answer.get("error", ""), str):
            raise TransportError(f"control socket {self.path}: what came is no answer")
        if "error" in answer:
            return RequestRefused(answer["error"])
        result = answer.get("result")
        if not isinstance(result, dict):
            raise TransportError(f"control socket {self.path}: what came is no answer")
        return result

    def _broken(self, error: OSError) -> TransportError:
        return TransportError(f"control socket {self.path}: {error.strerror or error}")
