"""Wrong devices and wrong drivers by name: each is told by the class that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

from virtio_ipsec.specification import clause

Entry = TypeVar("Entry")


class Registration(Generic[Entry]):
    """What the files of this directory whose names begin with ``prefix`` define."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}

    def add(self, part: type, dependants: Iterable[str], entry: Entry) -> None:
        """One more. ValueError for a second one of this name and for one that does not say what is wrong with it,
        KeyError for a dependant that is no clause."""
        name = part.__name__
        if name in self._entries or not part.__doc__:
            raise ValueError(f"mutant {name}: duplicate name or no docstring")
        for cited in dependants:
            clause(cited)
        self._entries[name] = entry

    def load(self) -> tuple[Entry, ...]:
        """All of them, by name."""
        for path in sorted(Path(__file__).parent.glob(f"{self._prefix}*.py")):
            import_module(path.stem)
        return tuple(self._entries[name] for name in sorted(self._entries))
