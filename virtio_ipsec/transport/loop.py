"""The control thread's loop: file descriptors, timers, and calls from other threads, one after the other."""

from __future__ import annotations

import heapq
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns

_log = logging.getLogger(__name__)


class Timer:
    """A call that is due at some time; :meth:`cancel` it while it is not."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not be called."""
        self.call = None


class Loop:
    """Calls back in the thread that runs it. An error that a call lets escape is logged and ends that call alone."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, Timer]] = []
        self._made = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        #: Called when all that was to do has been done, before the loop waits again.
        self.after_turn: Callable[[], None] = lambda: None
        self._selector.register(self._wake, selectors.EVENT_READ, self._wakened)

    # In the loop's own thread, or before it runs.

    def add(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever the descriptor is readable, until :meth:`remove`."""
        self._selector.register(fd, selectors.EVENT_READ, call)

    def remove(self, fd: int) -> None:
        """No longer; before the descriptor is closed."""
        self._selector.unregister(fd)

    def at(self, when: int, call: Callable[[], None]) -> Timer:
        """Call once when the monotonic clock shows ``when`` nanoseconds."""
        timer = Timer(call)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, timer))
        return timer

    def turn(self, timeout: float | None = None) -> None:
        """Wait for something to do, for ``timeout`` seconds at most, and do it."""
        for key, _ in self._selector.select(self._patience(timeout)):
            # One call may have removed the descriptor of another.
            if self._selector.get_map().get(key.fd) is key:
                self._do(key.data)
        for _ in range(len(self._calls)):
            self._do(self._calls.popleft())
        now = monotonic_ns()
        due: list[Timer] = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:  # those that they make have their turn later, whenever they are due
            if timer.call is not None:
                self._do(timer.call)
        self._do(self.after_turn)

    def run(self) -> None:
        """Turn until :meth:`stop`."""
        self._thread = threading.current_thread()
        while not self._stopping:
            self.turn()

    def fileno(self) -> int:
        """Readable when a :meth:`turn` would find something to do, timers apart."""
        return self._selector.fileno()

    def close(self) -> None:
        """Release what the loop itself has."""
        self._selector.close()
        os.close(self._wake)

    # From any thread.

    def call(self, call: Callable[[], None]) -> None:
        """Call it in the loop's thread, soon."""
        self._calls.append(call)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def ask(self, call: Callable[[], None], timeout: float | None = None) -> bool:
        """Call it in the loop's thread and wait until it has returned; False when that takes longer than
        ``timeout`` seconds. In the loop's thread itself, or when nobody runs it: at once."""
        if self._thread in (None, threading.current_thread()):
            call()
            return True
        done = threading.Event()

        def and_tell() -> None:
            try:
                call()
            finally:
                done.set()

        self.call(and_tell)
        return done.wait(timeout)

    # Inside.

    def _patience(self, timeout: float | None) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if self._calls:
            return 0
        if not self._timers:
            return timeout
        due = max(0.0, (self._timers[0][0] - monotonic_ns()) / 1e9)
        return due if timeout is None else min(due, timeout)

    def _wakened(self) -> None:
        os.eventfd_read(self._wake)

    def _do(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            _log.exception("an internal error in the control thread")
