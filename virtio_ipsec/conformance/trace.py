"""What went over the wire and through the queues during a case, without keys: the evidence of a verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from virtio_ipsec.conformance.verdict import Wedged

#: What is printed of an event, or how to work it out: most events are never printed.
Lines = tuple[str, ...] | Callable[[], tuple[str, ...]]

#: Exchanges kept per case. A verdict is about the last of them; long data runs would drown it.
KEPT = 24


@dataclass(frozen=True, slots=True)
class Event:
    """One exchange. ``kind`` is "admin", "transmit", "wire-out", "inject", "receive", "difference" or "note"; ``lines``
    are ready to print, key and salt bytes masked."""

    kind: str
    summary: str
    lines: tuple[str, ...] = ()


class Trace:
    """The last events of a case."""

    __slots__ = ("_events", "_open", "awaited", "dropped")

    def __init__(self) -> None:
        self._events: deque[tuple[str, str, Lines]] = deque(maxlen=KEPT)
        self._open: tuple[str, str, Lines] | None = None
        #: What the device is being waited for.
        self.awaited = ""
        self.dropped = 0

    def add(self, kind: str, summary: str, lines: Lines = ()) -> None:
        """Record an event; the oldest is dropped when ``KEPT`` are held."""
        self.dropped += len(self._events) == KEPT
        self._events.append((kind, summary, lines))

    @contextmanager
    def unanswered(self, kind: str, summary: str, lines: Lines) -> Iterator[None]:
        """What is done inside waits for an answer to this; with the answer it is recorded by whoever gets it."""
        self._open = kind, f"{summary}: no answer", lines
        try:
            yield
        except Wedged:
            self.add(*self._open)
            raise
        finally:
            self._open = None

    def events(self) -> tuple[Event, ...]:
        """What is kept, oldest first, and what has not been answered yet. From any thread."""
        kept = [*tuple(self._events), *filter(None, (self._open,))]
        return tuple(
            Event(kind, summary, lines if isinstance(lines, tuple) else lines())
            for kind, summary, lines in kept
        )
