"""A wire inside the process: what leaves at one end arrives at the other."""

from __future__ import annotations

import os
from collections import deque
from threading import Lock

from virtio_ipsec.transport.uplinks.counts import Counts

#: Frames that wait at one end.
_MOST = 4096


class End:
    """One end of a wire. Made in pairs, by :func:`crossed`."""

    native: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer: End
        self._counts = Counts()
        self._waiting: deque[bytes] = deque()
        self._lock = Lock()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable while frames wait."""
        return self._ready

    def receive(self, most: int) -> list[bytes]:
        """What the other end has sent."""
        with self._lock:
            count = min(most, len(self._waiting))
            frames = [self._waiting.popleft() for _ in range(count)]
            if frames and not self._waiting and self._ready >= 0:
                os.eventfd_read(self._ready)
        if frames:
            self._counts.add("rx", frames)
        return frames

    def send(self, frames: list[bytes]) -> None:
        """As much as there is room for at the other end."""
        taken = self.peer._put(frames)
        self._counts.add("tx", frames[:taken])
        if taken < len(frames):
            self._counts.drop("tx", "full", len(frames) - taken)

    def _put(self, frames: list[bytes]) -> int:
        with self._lock:
            if self._ready < 0:
                return 0
            taken = min(len(frames), _MOST - len(self._waiting))
            if taken and not self._waiting:
                os.eventfd_write(self._ready, 1)
            self._waiting += frames[:taken]
            return taken

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        return self._counts.read()

    def close(self) -> None:
        """Frames for this end are dropped from now on."""
        with self._lock:
            if self._ready >= 0:
                os.close(self._ready)
                self._ready = -1
                self._waiting.clear()


def crossed(name: str, far_name: str) -> tuple[End, End]:
    """The two ends of a wire."""
    near, far = End(name), End(far_name)
    near.peer, far.peer = far, near
    return near, far
