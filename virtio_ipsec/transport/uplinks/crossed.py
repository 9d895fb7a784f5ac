"""A wire inside the process: what leaves at one end arrives at the other."""

from __future__ import annotations

import os
from collections import Counter, deque
from threading import Lock

from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.wire import Wire

#: Frames that wait at one end.
_MOST = 4096


class PythonWire:
    """One direction, as :class:`Wire` is in C."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._lock = Lock()
        self._counts: Counter[str] = Counter()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable while frames wait, until :meth:`close`."""
        return self._ready

    def put(self, frames: list[bytes]) -> None:
        """What finds no room is dropped and counted."""
        with self._lock:
            room = _MOST - len(self._waiting) if self._ready >= 0 else 0
            taken = frames[:room]
            if taken and not self._waiting:
                os.eventfd_write(self._ready, 1)
            self._waiting += taken
            self._count("put", taken)
            self._counts["refused"] += len(frames) - len(taken)

    def take(self, most: int) -> list[bytes]:
        """At most ``most`` frames that wait."""
        with self._lock:
            frames = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if frames and not self._waiting:
                os.eventfd_read(self._ready)
            self._count("taken", frames)
        return frames

    def counts(self) -> Counter[str]:
        """Since the beginning."""
        with self._lock:
            return self._counts.copy()

    def close(self) -> None:
        """What waits is dropped, and what is put on it from now on."""
        with self._lock:
            if self._ready >= 0:
                os.close(self._ready)
                self._ready = -1
                self._waiting.clear()

    def _count(self, what: str, frames: list[bytes]) -> None:
        self._counts[f"{what}_frames"] += len(frames)
        self._counts[f"{what}_octets"] += sum(map(len, frames))


class End:
    """One end of a wire, an uplink: its frames go on ``outward`` and come from ``inward``."""

    def __init__(self, name: str, outward: Wire | PythonWire, inward: Wire | PythonWire) -> None:
        self.name = name
        self.inward = inward
        self._outward = outward
        self.native = outward if isinstance(outward, Wire) else None

    def fileno(self) -> int:
        """Readable while frames wait."""
        return self.inward.fileno()

    def receive(self, most: int) -> list[bytes]:
        """What the other end has sent."""
        return self.inward.take(most)

    def send(self, frames: list[bytes]) -> None:
        """As much as there is room for at the other end."""
        self._outward.put(frames)

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        out, into = self._outward.counts(), self.inward.counts()
        return {
            "tx_frames": out["put_frames"],
            "tx_bytes": out["put_octets"],
            "tx_dropped_full": out["refused"],
            "rx_frames": into["taken_frames"],
            "rx_bytes": into["taken_octets"],
        }

    def close(self) -> None:
        """Frames for this end are dropped from now on."""
        self.inward.close()


def crossed(name: str, far_name: str) -> tuple[End, End]:
    """The two ends of a wire."""
    make = Wire if native.available() else PythonWire
    one, other = make(), make()
    return End(name, one, other), End(far_name, other, one)
