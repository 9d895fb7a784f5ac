"""Somebody beside a case who tells where it is when its time has run out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer, get_ident
from traceback import extract_stack
from types import FrameType, TracebackType
from typing import Self

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.result import CaseResult
from virtio_ipsec.conformance.runner import result_of, run_case
from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import Verdict

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Last:
    """The result of a case after which its process is of no use: the case has not ended, or the target is gone."""

    result: CaseResult


class Watcher:
    """Around one case, in the thread that runs it: ``tell`` hears of it from another thread if it has not ended after
    ``limit`` seconds. It may be at work in the target then; only what it has recorded is read."""

    def __init__(self, tell: Callable[[Last], None], limit: float) -> None:
        self._tell = tell
        self._limit = limit
        self._thread = get_ident()
        self._bench: Bench | None = None
        self._lock = Lock()
        self._is_over = False
        #: Whether ``tell`` has heard of the case; its own result comes too late.
        self.has_told = False
        self._timer = Timer(limit, self._ring)
        self._timer.daemon = True

    def begun(self, bench: Bench) -> None:
        """The case works here."""
        self._bench = bench

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over = True
        self._timer.cancel()

    def _ring(self) -> None:
        with self._lock:
            if self._is_over or self._bench is None:
                return
            bench = self._bench
            reason = f"no end within {self._limit:g} s"
            if awaited := bench.trace.awaited:
                reason += f"; it was waiting: {awaited}"
            where = Event("note", "where it was when the time had run out", _where(self._thread))
            self.has_told = True
            with suppress(OSError):  # nobody is there any more who would hear it
                self._tell(Last(result_of(bench, Verdict.WEDGED, reason, self._limit, (where,))))


def _where(thread: int) -> tuple[str, ...]:
    """The lines that a thread is at, from the case inwards."""
    frame: FrameType | None = sys._current_frames().get(thread)
    if frame is None:
        return ()
    stack = extract_stack(frame)
    inside = next((at for at, each in enumerate(stack) if each.name == run_case.__name__), -1)
    return tuple(
        f"{_short(each.filename)}:{each.lineno} {each.name}: {each.line}" for each in stack[inside + 1 :]
    )


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(_PACKAGE)) if path.is_relative_to(_PACKAGE) else path.name
