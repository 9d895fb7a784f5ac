"""``udp:LOCAL,REMOTE``: each frame is the payload of one UDP datagram, with nothing around it.

The frames are not protected: whoever can send to LOCAL with REMOTE's address can put frames on the wire, as on any
wire. Between machines it wants a network that is trusted as far.
"""

from __future__ import annotations

import socket
from typing import Any

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.uplink import MAX_FRAME
from virtio_ipsec.transport.uplinks.stream import FrameByFrame

_BUFFER = 4 << 20
_HIGHEST_PORT = 65_535


class Udp(FrameByFrame):
    """Bound to LOCAL, connected to REMOTE: other senders are not heard."""

    def __init__(self, argument: str) -> None:
        name = f"udp:{argument}"
        local, comma, remote = argument.partition(",")
        if not comma:
            raise ConfigError(f"{name}: not LOCAL,REMOTE")
        here, there = _address(name, local), _address(name, remote)
        if here[0] != there[0]:
            raise ConfigError(f"{name}: LOCAL and REMOTE must be of one address family")
        self._socket = socket.socket(here[0], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # as much of it as the system allows
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            self._socket.bind(here[1])
            self._socket.connect(there[1])
        except OSError as error:
            self._socket.close()
            raise TransportError(f"{name}: {error.strerror}") from None
        super().__init__(name, self._socket.fileno())

    def _write(self, frame: bytes) -> None:
        self._socket.send(frame)

    def _read(self) -> list[bytes]:
        frame = self._socket.recv(MAX_FRAME)
        return [frame] if frame else []

    def _release(self) -> None:
        self._socket.close()


def _address(name: str, text: str) -> tuple[int, Any]:
    """``HOST:PORT`` or ``[HOST]:PORT`` as (family, address); HOST is an address or a name."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ConfigError(f"{name}: {text!r} is not HOST:PORT")
    if int(port) > _HIGHEST_PORT:
        raise ConfigError(f"{name}: port {port} is above {_HIGHEST_PORT}")
    try:
        found = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_DGRAM
        )
    except OSError as error:
        raise ConfigError(f"{name}: {host}: {error.strerror}") from None
    return int(found[0][0]), found[0][4]
