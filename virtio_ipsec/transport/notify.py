"""Tells systemd how a service is (sd_notify(3)): one datagram to the socket that ``NOTIFY_SOCKET`` names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(**fields: str) -> bool:
    """Send ``READY="1"``, ``STATUS="text"`` and the like; whether anybody was told. Nobody is when nobody asks."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return False
    message = "\n".join(f"{field}={value}" for field, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(message.encode(), "\0" + name[1:] if name[0] == "@" else name)
        return True
    return False
