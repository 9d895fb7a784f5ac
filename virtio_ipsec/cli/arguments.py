"""What verbs have in common on the command line: actions with an example each, and numbers with bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

Number = TypeVar("Number", int, float)

#: More than anybody means, and what clocks and counters still take.
_MOST = 1e9


def add_action(actions: Actions, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """The parser of one action; ``example`` is a whole command line without the program's name."""
    return actions.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example: virtio-ipsec {example}",
        allow_abbrev=False,
    )


def positive(kind: type[Number]) -> Callable[[str], Number]:
    """Converts an argument to a number above 0; not-a-number and infinity are refused like words."""

    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < _MOST:
            raise argparse.ArgumentTypeError(f"{text!r} is no {_KINDS[kind]} above 0")
        return value

    return convert


def between(low: int, high: int) -> Callable[[str], int]:
    """Converts an argument to a whole number from ``low`` to ``high``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return convert


_KINDS: dict[type, str] = {int: "whole number", float: "number"}
