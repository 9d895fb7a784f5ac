"""The specification as data: clauses and struct layouts, read from the `spec` folder.

The folder is `virtio_ipsec.spec` in an installed package and `spec/` next to the package in a checkout.
Nothing here interprets a clause; the values are frozen and loaded once per process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Clause:
    """One normative statement (or, at level INFO, one testable statement) in our own words.

    `section` is the label path of the specification, `lines` are those of the keywords in tag v1.4-cs01; for
    level INFO they are the first and the last line of a passage. `hash` is the SHA-256 of the normalised source
    sentence, None when the source is a slide or our own choice. `observed` is "device", "driver", "special" or
    "none", and `how` says how, or why it cannot be observed. `ambiguities` names entries of the ledger,
    `spec/ambiguities.md`.
    """

    id: str
    group: str
    section: str
    file: str
    lines: tuple[int, ...]
    role: str
    level: str
    levels: tuple[str, ...]
    text: str
    hash: str | None
    sentences: tuple[str, ...]
    observed: str
    how: str
    dialects: tuple[str, ...]
    ambiguities: tuple[str, ...]
    net_twin: str | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a packed struct; `size` is in bytes, None for a flexible array. Nested names are dotted."""

    name: str
    type: str
    offset: int
    size: int | None


@dataclass(frozen=True, slots=True)
class Prefix:
    """A length at which negotiated features end a struct: `size` bytes, up to and with field `last`."""

    size: int
    last: str
    when: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A struct as packed bytes, little-endian; `size` is None when a flexible array ends it."""

    name: str
    dialect: str
    source: str
    size: int | None
    fixed_size: int
    fields: tuple[Field, ...]
    prefixes: tuple[Prefix, ...] = ()
    note: str = ""

    def field(self, name: str) -> Field:
        """The field of that (dotted) name. Raises KeyError when the struct has none."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise KeyError(f"{self.name} has no field {name}")


def data_folder() -> Traversable:
    """Where the data files lie. Raises FileNotFoundError when neither place holds them."""
    try:
        installed = files("virtio_ipsec.spec")
        if installed.joinpath("clauses.json").is_file():
            return installed
    except ModuleNotFoundError:
        pass
    checkout = Path(__file__).resolve().parent.parent / "spec"
    if not (checkout / "clauses.json").is_file():
        raise FileNotFoundError("clauses.json: neither in virtio_ipsec.spec nor in spec/ next to the package")
    return checkout


def _read(name: str) -> Any:
    return json.loads(data_folder().joinpath(name).read_text(encoding="utf-8"))


def _clause(entry: dict[str, Any]) -> Clause:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    values: dict[str, Any] = {"levels": (entry["level"],), **entry, **lists}
    return Clause(**values)


@cache
def load_clauses() -> tuple[Clause, ...]:
    """All clauses, in the order of the file. Raises FileNotFoundError when the data is missing."""
    return tuple(_clause(entry) for entry in _read("clauses.json")["clauses"])


@cache
def _clauses_by_id() -> dict[str, Clause]:
    return {clause.id: clause for clause in load_clauses()}


def clause(id: str) -> Clause:
    """The clause of that id, for example "NET-IPSEC-DEV-05". Raises KeyError when there is none."""
    return _clauses_by_id()[id]


@cache
def load_layouts() -> tuple[Layout, ...]:
    """All struct layouts of both dialects, in the order of the file."""
    return tuple(
        Layout(
            name=entry["name"],
            dialect=entry["dialect"],
            source=entry["source"],
            size=entry["size"],
            fixed_size=entry["fixed_size"],
            fields=tuple(Field(**item) for item in entry["fields"]),
            prefixes=tuple(Prefix(**item) for item in entry.get("prefixes", ())),
            note=entry.get("note", ""),
        )
        for entry in _read("layouts.json")["layouts"]
    )


def layout(name: str, dialect: str = "virtio-1.4") -> Layout:
    """The layout of a struct in a dialect; what the RFC dialect does not redefine is that of virtio-1.4.

    Raises KeyError when no struct has that name.
    """
    found = {entry.dialect: entry for entry in load_layouts() if entry.name == name}
    if dialect in found:
        return found[dialect]
    if "virtio-1.4" in found:
        return found["virtio-1.4"]
    raise KeyError(f"no layout of struct {name}")
