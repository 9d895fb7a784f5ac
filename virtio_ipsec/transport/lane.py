"""The thread of one queue pair: works while there is something to do, looks a moment longer, then sleeps.

What it works on is exchanged only while it is parked (:meth:`Lane.parked`). Who parks it may hold no lock that its work
takes, or both wait for ever.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic_ns
from typing import Protocol

from virtio_ipsec.errors import TransportError

#: How long a thread looks for more before it sleeps, in nanoseconds.
SPIN = 50_000
#: How often it looks, in seconds, at a queue whose driver announces nothing.
_UNANNOUNCED = 0.0005
#: Seconds that somebody waits for it to stop before it is set free by force, and how often that is tried.
_PATIENCE, _TRIES = 0.25, 20
#: Seconds between two errors.
_REST = 1.0


class Work(Protocol):
    """What a lane does. All of it is called in the lane's thread alone."""

    def round(self) -> int:
        """Do some; how much there was."""

    def listen(self) -> bool:
        """Ask to be woken; whether there is something to do already."""

    def unlisten(self) -> None:
        """No longer: the thread is awake."""

    def failed(self, error: Exception) -> None:
        """One of the above has raised this."""


class Stuck(TransportError):
    """A worker does not come back from what it does."""


class Lane:
    """One thread. ``free`` is called while it does not stop: it lets go what a peer may have blocked it with."""

    def __init__(self, name: str, work: Work, free: Callable[[], None], spin: int = SPIN) -> None:
        self.work = work
        #: The queue's driver announces nothing: the thread looks for itself. Set while parked.
        self.unannounced = False
        self._free = free
        self._spin = spin
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: set[int] = set()
        self._change = threading.Condition()
        self._wanted = 0
        self._is_parked = False
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # From the thread that owns it.

    @contextmanager
    def parked(self) -> Iterator[None]:
        """The thread does nothing meanwhile. May be nested. Raises :class:`Stuck`."""
        self._wanted += 1
        try:
            if self._wanted == 1:
                os.eventfd_write(self._wake, 1)
                self._await(self._has_parked)
            yield
        finally:
            with self._change:
                self._wanted -= 1
                self._change.notify_all()

    def wake(self) -> None:
        """Look whether there is something to do."""
        os.eventfd_write(self._wake, 1)

    def watch(self, fd: int, *, edge: bool) -> None:
        """Wake up when the descriptor is readable; with ``edge`` when it is anew, so that nobody has to read it."""
        self._epoll.register(fd, select.EPOLLIN | (select.EPOLLET if edge else 0))
        self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        """No longer; before it is closed."""
        if fd in self._watched:
            self._watched.discard(fd)
            self._epoll.unregister(fd)

    def close(self) -> None:
        """End the thread. Raises :class:`Stuck`, and then nothing that it uses may be released."""
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._await(self._has_ended)
        self._epoll.close()
        os.close(self._wake)

    def _await(self, what: Callable[[], bool]) -> None:
        for _ in range(_TRIES):
            if what():
                return
            self._free()
        raise Stuck(f"{self._thread.name} does not stop")

    def _has_parked(self) -> bool:
        with self._change:
            self._change.notify_all()
            return self._change.wait_for(lambda: self._is_parked, _PATIENCE)

    def _has_ended(self) -> bool:
        with self._change:
            self._change.notify_all()
        self._thread.join(_PATIENCE)
        return not self._thread.is_alive()

    # The thread.

    def _run(self) -> None:
        until = 0
        while not self._ending:
            if self._wanted:
                self._park()
                continue
            try:
                if self.work.round():
                    until = monotonic_ns() + self._spin
                elif monotonic_ns() >= until:
                    self._sleep()
            except Exception as error:
                self.work.failed(error)
                self._rest()

    def _rest(self) -> None:
        """What fails once may fail always: not at full speed."""
        with self._change:
            self._change.wait_for(lambda: self._wanted or self._ending, _REST)

    def _park(self) -> None:
        with self._change:
            self._is_parked = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._wanted or self._ending)
            self._is_parked = False

    def _sleep(self) -> None:
        waiting = self.work.listen()
        if not waiting:
            self._epoll.poll(_UNANNOUNCED if self.unannounced else None)
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        self.work.unlisten()
