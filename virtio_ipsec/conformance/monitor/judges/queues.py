"""Virtqueues: chains, buffers that the device owns, queues that are reset (virtio v1.4 2.6, 2.7, 2.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Run
from virtio_ipsec.transport.monitor.events import (
    Altered,
    Broken,
    Descriptors,
    Exposed,
    Kicked,
    QueueEnabled,
    QueueReset,
    Withdrawn,
)

Wrong = TypeVar("Wrong", Altered, Withdrawn)

#: A buffer needs descriptors for its header, data and answer, and one more for each page.
_PAGE = 4096
_SPARE = 3


def _elements(descriptors: Descriptors) -> Descriptors:
    """Without those that only refer to a table."""
    return tuple(each for each in descriptors if not each.is_table)


@judge("FRM-02", when="a buffer was made available")
def writable_behind_readable(run: Run) -> Iterator[Finding]:
    """In a chain device-writable descriptors lie behind all device-readable ones."""
    for _, at, event in run.of(Exposed):
        kinds = [each.is_writable for each in _elements(event.descriptors)]
        holds = kinds == sorted(kinds)
        words = " ".join("w" if kind else "r" for kind in kinds)
        yield Finding(holds, "readable ones first", words, at)


@judge("FRM-03", when="a buffer was made available")
def few_descriptors(run: Run) -> Iterator[Finding]:
    """A buffer has no more descriptors than its two parts and its pages need."""
    for _, at, event in run.of(Exposed):
        elements = _elements(event.descriptors)
        most = _SPARE + sum(-(-each.length // _PAGE) for each in elements if each.length >= _PAGE)
        most += -(-sum(each.length for each in elements) // _PAGE)
        yield Finding(len(elements) <= most, f"at most {most}", f"{len(elements)} descriptors", at)


def _none_of(run: Run, kind: type[Wrong], expected: str, seen: Callable[[Wrong], str]) -> Iterator[Finding]:
    """In a life in which buffers were made available there is no event of this kind."""
    for life in run.lives:
        wrong = list(life.of(kind))
        for at, event in wrong:
            yield Finding(False, expected, seen(event), at)
        if not wrong and (first := next(life.of(Exposed), None)) is not None:
            yield Finding(True, expected, expected, first[0])


@judge("BAS-INIT-10", when="a buffer was made available")
def left_alone(run: Run) -> Iterator[Finding]:
    """The descriptors of a buffer do not change until the device has used it, as far as it was looked at."""
    yield from _none_of(
        run,
        Altered,
        "the same descriptors",
        lambda event: f"{len(event.before)} descriptors before, {len(event.after)} after, not the same",
    )


@judge("BAS-INIT-11", when="a buffer was made available")
def not_taken_back(run: Run) -> Iterator[Finding]:
    """Buffers that were made available stay so until they are used or the device, or their queue, is reset."""
    yield from _none_of(
        run,
        Withdrawn,
        "the buffers still available",
        lambda event: f"queue {event.index}: available up to {event.seen}, then {event.now}",
    )


@judge("BAS-RESET-09", when="a queue was reset")
def configured_anew(run: Run) -> Iterator[Finding]:
    """A queue that was reset is configured anew before it is used, and starts at its beginning."""
    for life in run.lives:
        reset: dict[int, int] = {}
        for at, event in life.of(QueueReset, QueueEnabled, Kicked, Broken):
            if isinstance(event, QueueReset):
                reset[event.index] = at
            elif isinstance(event, QueueEnabled):
                if reset.pop(event.index, None) is not None:
                    yield Finding(not event.refused, "a queue as at first", event.refused, at)
            elif isinstance(event, Kicked | Broken) and event.index in reset:
                yield Finding(False, f"queue {event.index} set up first", type(event).__name__.lower(), at)
