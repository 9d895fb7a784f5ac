"""The lanes of one port, one for each queue pair that was ever used, and what each works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from virtio_ipsec.transport.datapath import NativePath, NativeWork, PythonWork, Surroundings
from virtio_ipsec.transport.lane import Lane
from virtio_ipsec.transport.uplink import Uplink


class Lanes:
    """``free`` lets go whatever the driver's side may block a thread with; ``spin``: see :class:`Lane`."""

    def __init__(self, name: str, around: Surroundings, free: Callable[[], None], spin: int) -> None:
        self._name = name
        self._around = around
        self._free = free
        self._spin = spin
        self._path: NativePath | None = None
        self._lanes: dict[int, Lane] = {}
        self._works: dict[int, PythonWork | NativeWork] = {}

    def lane(self, pair: int) -> Lane:
        """The thread of a queue pair. That of the first one reads the uplink."""
        lane = self._lanes.get(pair)
        if lane is None:
            work = self._works[pair] = self._new_work(pair)
            lane = self._lanes[pair] = Lane(f"{self._name}-{pair}", work, self._free, self._spin)
            readable = self._around.uplink.fileno() if pair == 0 else None
            if readable is not None:
                lane.watch(readable, edge=False)
        return lane

    def work(self, pair: int) -> PythonWork | NativeWork:
        """What that thread works on."""
        self.lane(pair)
        return self._works[pair]

    def give_work(self, path: NativePath | None) -> None:
        """To all of them, which are parked, and to those to come: work of this path; None: Python's."""
        self._path = path
        for pair, lane in self._lanes.items():
            lane.work = self._works[pair] = self._new_work(pair)

    @contextmanager
    def parked(self) -> Iterator[None]:
        """None of them does anything meanwhile."""
        with ExitStack() as stack:
            for lane in self._lanes.values():
                stack.enter_context(lane.parked())
            yield

    def wake(self) -> None:
        """Let all look whether there is something to do."""
        for lane in self._lanes.values():
            lane.wake()

    def unwatch(self, fd: int) -> None:
        """No lane waits for the descriptor any more."""
        for lane in self._lanes.values():
            lane.unwatch(fd)

    def close(self) -> None:
        """End them."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    def _new_work(self, pair: int) -> PythonWork | NativeWork:
        source = self._source(pair)
        if self._path is None:
            return PythonWork(self._around, pair, source)
        return NativeWork(self._around, self._path, pair, source)

    def _source(self, pair: int) -> Uplink | None:
        uplink = self._around.uplink
        return uplink if pair == 0 and uplink.fileno() is not None else None
