"""The control queue and the administration queue of a served port: worked off in its control thread, some commands at a
time, so that a driver with many of them keeps nobody else waiting."""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial
from time import monotonic_ns

from virtio_ipsec.transport.loop import Loop

#: How often a queue is looked at whose driver announces nothing, in nanoseconds.
_UNANNOUNCED = 2_000_000


class CommandQueues:
    """Calls ``run(index)`` when a driver announces commands on a queue; it says whether there may be more of them."""

    def __init__(self, loop: Loop, run: Callable[[int], bool]) -> None:
        self._loop = loop
        self._run = run
        self._kicks = select.epoll()
        #: Queues that are watched, with the descriptor that announces commands if there is one.
        self._watched: dict[int, int | None] = {}
        loop.add(self._kicks.fileno(), self._kicked)

    def watch(self, index: int, kick: int | None) -> None:
        """From now on; commands that wait already are found. A new event is an edge: nobody reads the descriptor."""
        self._watched[index] = kick
        if kick is not None:
            self._kicks.register(kick, select.EPOLLIN | select.EPOLLET)
        self.look(index)

    def unwatch(self, index: int) -> None:
        """No longer; before the descriptor is closed."""
        kick = self._watched.pop(index, None)
        if kick is not None:
            self._kicks.unregister(kick)

    def look(self, index: int) -> None:
        """Whether or not anything was announced, soon."""
        self._loop.call(partial(self._work, index))

    def close(self) -> None:
        """Release what it has."""
        self._loop.remove(self._kicks.fileno())
        self._kicks.close()

    def _kicked(self) -> None:
        ready = {fd for fd, _ in self._kicks.poll(0)}
        for index in [index for index, kick in self._watched.items() if kick in ready]:
            self._work(index)

    def _work(self, index: int) -> None:
        if index not in self._watched:
            return
        if self._run(index):
            self.look(index)
        elif self._watched.get(index, -1) is None:
            self._loop.at(monotonic_ns() + _UNANNOUNCED, partial(self._work, index))
