"""Eventfds that a peer gives us: the one we listen to and the ones we ring.

A peer may clear the flag that makes them non-blocking at any time, for it belongs to both of us. So the one we listen
to is never read (a new event is an edge for epoll), and whoever hangs in a ring can be set free: :meth:`Bell.free`.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from virtio_ipsec.errors import TransportError

_KIND = "anon_inode:[eventfd]"


def check_eventfd(fd: int) -> None:
    """TransportError unless it is an eventfd: what else a peer sends may block us for ever."""
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        kind = "unknown"
    if kind != _KIND:
        raise TransportError(f"a notification descriptor is no eventfd but {kind.partition(':')[0]}")


class Bell:
    """An eventfd to be rung, under a number that stays whatever stands behind it, so that it can be exchanged while
    threads ring it."""

    def __init__(self) -> None:
        #: Non-blocking; nobody hears it while nothing is attached.
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def attach(self, fd: int | None) -> None:
        """From now on this one, which is closed here; None: nobody listens."""
        mute = fd is None
        new = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd
        try:
            if not mute:
                check_eventfd(new)
                os.set_blocking(new, False)
            os.dup2(new, self.fd, inheritable=False)
        finally:
            os.close(new)

    def ring(self) -> None:
        """Tell the peer, if the counter has room: one that never listens loses nothing."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        if poller.poll(0):
            with suppress(BlockingIOError):
                os.eventfd_write(self.fd, 1)

    def free(self) -> None:
        """Let go who hangs in a ring because the counter is full and the peer has made it block."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if poller.poll(0):
            os.set_blocking(self.fd, False)
            with suppress(BlockingIOError):
                os.eventfd_read(self.fd)

    def close(self) -> None:
        """Nobody may ring it any more."""
        os.close(self.fd)
