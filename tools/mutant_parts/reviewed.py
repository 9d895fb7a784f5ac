"""Faults that were looked at: nobody who drives the device can see them, or the text leaves open what they change.

The list names them as :class:`.faults.Fault` does; ``*`` stands for anything.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("reviewed.toml")


@dataclass(frozen=True, slots=True)
class Review:
    """Some faults, and why the suite need not notice them."""

    reason: str
    patterns: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Whether the fault of this name is among them."""
        return any(_fits(pattern, name) for pattern in self.patterns)


def load() -> tuple[Review, ...]:
    """The list."""
    entries = tomllib.loads(LIST.read_text())["review"]
    return tuple(Review(entry["reason"], tuple(entry["faults"])) for entry in entries)


def reason_for(name: str, reviews: tuple[Review, ...]) -> str:
    """Why the fault of this name need not be noticed; "" when nobody has said so."""
    return next((review.reason for review in reviews if review.covers(name)), "")


def _fits(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, a ``*`` in which stands for anything."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    at = len(first)
    if not name.startswith(first):
        return False
    for part in rest[:-1]:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return name.endswith(rest[-1]) and len(name) - len(rest[-1]) >= at
