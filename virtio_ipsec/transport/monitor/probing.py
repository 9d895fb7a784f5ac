"""A port's uplink with a prober on it, which puts its questions while a driver is at work."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from threading import Lock
from time import monotonic_ns

from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.monitor.prober import Prober, Question
from virtio_ipsec.transport.uplink import Uplink

#: How long each question waits for its answer, and how long after a round the next one comes, in nanoseconds.
_WAIT, _PAUSE = 150_000_000, 2_000_000_000


class ProbingUplink:
    """An uplink, and frames of our own among what arrives. ``prober`` is set before frames move."""

    native = None
    prober: Prober | None = None

    def __init__(self, inner: Uplink) -> None:
        self.name = inner.name
        self._inner = inner
        self._own: deque[bytes] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = select.epoll()
        self._events.register(self._wake, select.EPOLLIN)
        fd = inner.fileno()
        if fd is not None:
            self._events.register(fd, select.EPOLLIN)
        self._lock = Lock()
        #: Acknowledgment numbers of TCP packets that have left in clear.
        self.answered: set[int] = set()

    def inject(self, frame: bytes) -> None:
        """Let a frame arrive. From any thread."""
        with self._lock:
            self._own.append(frame)
            os.eventfd_write(self._wake, 1)

    def fileno(self) -> int:
        """Readable while frames wait."""
        return self._events.fileno()

    def receive(self, most: int) -> list[bytes]:
        """Our own frames first."""
        found: list[bytes] = []
        with self._lock:
            while self._own and len(found) < most:
                found.append(self._own.popleft())
            if not self._own:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
        return found + self._inner.receive(most - len(found)) if len(found) < most else found

    def send(self, frames: list[bytes]) -> None:
        """On to the wire; the prober hears it."""
        for frame in frames:
            for reply in self.prober.hear(frame) if self.prober else ():
                self.inject(reply)
            if frame[12:15] == b"\x08\x00\x45" and frame[23:24] == b"\x06":
                self.answered.add(int.from_bytes(frame[42:46], "big"))
        self._inner.send(frames)

    def counters(self) -> dict[str, int]:
        """Those of the wire."""
        return self._inner.counters()

    def close(self) -> None:
        """Release everything."""
        if not self._events.closed:
            self._events.close()
            os.close(self._wake)
            self._inner.close()


class Rounds:
    """Puts the prober's questions through the uplink, paced by the port's loop, while ``is_ready()``."""

    def __init__(self, loop: Loop, uplink: ProbingUplink, prober: Prober) -> None:
        self._loop = loop
        self._uplink = uplink
        self._prober = prober
        self._round: Iterator[Question] | None = None
        self._last = ("", 0)
        #: When the next round begins, and which SAs there were in the last one: others are a reason not to wait.
        self._due = 0
        self._known: frozenset[int] = frozenset()
        self._later(_WAIT)

    def _later(self, wait: int) -> None:
        self._loop.at(monotonic_ns() + wait, self._tick)

    def _tick(self) -> None:
        self._prober.watch_sas()
        if not self._prober.is_ready:
            self._round = None
            self._later(_WAIT)
            return
        if self._round is None and self._prober.inbound == self._known and monotonic_ns() < self._due:
            self._later(_WAIT)
            return
        about, mark = self._last
        unanswered = about == "plain" and mark + 1 not in self._uplink.answered
        if self._round is None or unanswered:
            self._known = self._prober.inbound
            self._round = self._prober.round()
        question = next(self._round, None)
        if question is None:
            self._round, self._last = None, ("", 0)
            self._due = monotonic_ns() + _PAUSE
            self._prober.recorder.rounds += 1
            self._later(_WAIT)
            return
        frame = self._prober.ask(question)
        self._last = question.about, int.from_bytes(frame[38:42], "big")
        self._uplink.inject(frame)
        self._later(_WAIT)
