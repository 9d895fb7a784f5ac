"""What a measurement is: one kind of work on one engine, with its samples; ratios; how quiet the machine was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from resource import RUSAGE_SELF, getrusage
from typing import Protocol


@dataclass
class Cell:
    """One engine on one kind of work; one sample per round, in nanoseconds per packet."""

    part: str
    engine: str
    work: str
    size: int
    sas: int
    samples: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def gbits(self) -> float:
        return self.size * 8 / self.best


class Runner(Protocol):
    """Takes one sample at a time, checks what was made, and keeps it in its cells."""

    @property
    def cells(self) -> Sequence[Cell]: ...

    def sample(self) -> None: ...


@dataclass(frozen=True)
class Ratio:
    """How many times less time ours takes than theirs."""

    best: float  # of the shortest samples: what counts, others share the machine
    median: float  # over the rounds, in which the two ran next to each other

    def __str__(self) -> str:
        return f"{self.best:.2f}x (rounds: {self.median:.2f}x)"


def ratio(theirs: Cell, ours: Cell) -> Ratio:
    pairs = zip(theirs.samples, ours.samples, strict=True)
    return Ratio(theirs.best / ours.best, statistics.median(t / o for t, o in pairs))


def find(cells: Sequence[Cell], **wanted: object) -> Cell | None:
    """The cell with these fields, or None."""
    for cell in cells:
        if all(getattr(cell, name) == value for name, value in wanted.items()):
            return cell
    return None


class Quiet:
    """Whether anything else used the core: a loop of fixed work, run before every round, takes longer then, and the
    kernel takes the core away from us."""

    SLOW = 1.05
    PER_SECOND = 10

    def __init__(self, spin: Callable[[], float]) -> None:
        self.spin = spin
        self.took: list[float] = []
        self.begin = getrusage(RUSAGE_SELF)

    def look(self) -> None:
        self.took.append(self.spin())

    def disturbed(self) -> float:
        """The part of the rounds in which the loop was slower than its best by more than 5 %."""
        limit = min(self.took) * self.SLOW
        return sum(took > limit for took in self.took) / len(self.took)

    def preempted(self) -> float:
        """How often a second of our processor time the core was given to somebody else."""
        now = getrusage(RUSAGE_SELF)
        return (now.ru_nivcsw - self.begin.ru_nivcsw) / max(now.ru_utime - self.begin.ru_utime, 1e-3)

    def __str__(self) -> str:
        part, often = self.disturbed(), self.preempted()
        is_quiet = part < 0.1 and often < self.PER_SECOND
        verdict = "quiet" if is_quiet else "noisy: take the figures as lower bounds of what it can do"
        rounds = f"{part:.0%} of {len(self.took)} rounds were disturbed"
        return f"{rounds}, the core was taken away {often:.0f} times a second: the machine was {verdict}"


def in_turn(runners: Sequence[Runner], rounds: int, quiet: Quiet) -> list[Cell]:
    """All runners, one sample each, round after round; every other round backwards."""
    for number in range(rounds):
        quiet.look()
        for runner in runners if number % 2 == 0 else reversed(runners):
            runner.sample()
    return [cell for runner in runners for cell in runner.cells]
