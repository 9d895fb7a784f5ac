"""TOML tables (or JSON objects of the same keys) read field by field, each checked for type and range.

A message says where the field stands (``sa 2: spi``) and what would be right; it never quotes a value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, NoReturn, Self

from virtio_ipsec.errors import ConfigError

#: The place of fields that stand in no table of the file.
FILE = "file"


def document(text: str) -> dict[str, Any]:
    """What a TOML file holds. ConfigError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    except ValueError:
        raise ConfigError("a number has more digits than any field can hold") from None
    except RecursionError:
        raise ConfigError("tables or lists are nested deeper than any field needs") from None


class Table:
    """One table with the place it stands at; fields that are not ``known`` are refused."""

    def __init__(self, values: Mapping[str, Any], place: str, known: frozenset[str] | None) -> None:
        """``known``: None for a table in which any name may stand."""
        self.values = values
        self.place = place
        if known is not None:
            for name in values:
                if name not in known:
                    self.refuse(_shown(name), f"is not known here; known: {', '.join(sorted(known))}")

    def refuse(self, name: str, message: str) -> NoReturn:
        """ConfigError about a field."""
        raise ConfigError(f"{self.place}: {name} {message}")

    def has(self, name: str) -> bool:
        return name in self.values

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, f"must be a whole number from {low} to {high}")
        return value

    def number(self, name: str, high: float) -> float | None:
        """From 0 to ``high``; None when it is not there."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
            self.refuse(name, f"must be a number from 0 to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, str):
            self.refuse(name, "must be a string")
        return value

    def line(self, name: str) -> str | None:
        """A text that can stand in a log line; None when it is not there."""
        if not self.has(name):
            return None
        value = self.text(name)
        if not value or len(value) > 4096 or not value.isprintable():
            self.refuse(name, "must be one line of printable characters")
        return value

    def choice(self, name: str, known: Mapping[str, object], default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, f"is missing; one of {', '.join(known)}")
        if not isinstance(value, str) or value not in known:
            self.refuse(name, f"must be one of {', '.join(known)}")
        return value

    def texts(self, name: str) -> list[str]:
        entries = self.values.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            self.refuse(name, "must be a list of strings")
        return entries

    def tables(self, name: str, known: frozenset[str]) -> list[Self]:
        entries = self.values.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.refuse(name, f"must be written as [[{name}]] tables")
        return [
            type(self)(entry, f"{self._prefix}{name} {number}", known)
            for number, entry in enumerate(entries, 1)
        ]

    def table(self, name: str, known: frozenset[str] | None) -> Self | None:
        if not self.has(name):
            return None
        entry = self.values[name]
        if not isinstance(entry, dict):
            self.refuse(name, "must be a table")
        return type(self)(entry, f"{self._prefix}{name}", known)

    @property
    def _prefix(self) -> str:
        return "" if self.place == FILE else f"{self.place}: "


def _shown(name: str) -> str:
    """A name for a message: on one line, and cut, for it may be a key in the wrong place."""
    short = name if len(name) <= 20 else f"{name[:8]}..."
    return short if short.isidentifier() else repr(short)
