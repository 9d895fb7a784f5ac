"""Which cases can tell a mutant from the device: those that enter what it replaces.

A device is deterministic here, and a mutant is the device with some functions replaced. A case that never
enters one of them runs as it does with the device itself, so it need not be run again to know its verdict.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple
from zlib import crc32

from registry import Mutant, cases_in, load_mutants, mutant_free

from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.runner import run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.device import Device

#: Of the cases that should not notice a mutant, every such one is asked. `tools/mutants` asks them all.
SAMPLED = 96
#: Where the commands about members are carried out.
MEMBERS = frozenset({"member_commands.py", "member_parts.py"})


#: Code as another process knows it: file, line, name.
Place = tuple[str, int, str]
#: Where the processes of one run share what they have seen; None: nowhere.
shared: Path | None = None


class Course(NamedTuple):
    """How a case goes with the device itself: what came of it, and what it entered of the code that mutants replace."""

    verdict: Verdict
    reason: str
    entered: frozenset[Place]


def place(code: CodeType) -> Place:
    """Of code."""
    return code.co_filename, code.co_firstlineno, code.co_qualname


@cache
def courses(dialect: str) -> dict[str, Course]:
    """Case id -> its course. The first process that asks finds out, for all."""
    if shared is None:
        return observed(dialect)
    file = shared / f"courses-{dialect}"
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            told = {case: (*course[:2], sorted(course.entered)) for case, course in observed(dialect).items()}
            file.write_text(json.dumps(told))
    return {
        case: Course(Verdict(verdict), reason, frozenset((name, line, what) for name, line, what in places))
        for case, (verdict, reason, places) in json.loads(file.read_text()).items()
    }


def observed(dialect: str) -> dict[str, Course]:
    """The same, by a look at each case."""
    replaced = set().union(*(changes(mutant.device, Device) or () for mutant in load_mutants()))
    found = {}
    with watched(replaced) as seen:
        target = mutant_free(dialect).target()
        for case in cases_in(dialect):
            seen.clear()
            result = run_case(case, target, seed=1, thin=True)
            found[case.id] = Course(result.verdict, result.reason, frozenset(map(place, seen)))
    return found


@contextmanager
def watched(codes: set[CodeType]) -> Iterator[set[CodeType]]:
    """Which of them methods and properties of the device package enter from now on. A tracer would be told of every
    call of anything, and take three times as long."""
    seen: set[CodeType] = set()

    def noting(value: Any) -> Any:
        if isinstance(value, property):
            parts = (value.fget, value.fset)
            return property(*map(noting, parts)) if (codes_of(value) or set()) & codes else value
        if isinstance(value, staticmethod | classmethod):
            return type(value)(noting(value.__func__))
        if not isinstance(value, FunctionType) or value.__code__ not in codes:
            return value

        @wraps(value)
        def noted(*args: Any, **keywords: Any) -> Any:
            seen.add(value.__code__)
            return value(*args, **keywords)

        return noted

    modules = [module for name, module in sys.modules.items() if name.startswith("virtio_ipsec.device.")]
    classes = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    plain = [(one, name, value) for one in classes for name, value in vars(one).items() if noting(value) is not value]
    for one, name, value in plain:
        setattr(one, name, noting(value))
    try:
        yield seen
    finally:
        for one, name, value in plain:
            setattr(one, name, value)


def note_failed(mutant: Mutant, cases: list[str]) -> None:
    """The cases that have found out a mutant, for whoever asks :func:`failed`."""
    if shared is not None:
        file = shared / f"failed-{mutant}"
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(cases))
        new.replace(file)


def failed(mutant: Mutant) -> set[str]:
    """Those that some process of this run has noted until now."""
    file = shared / f"failed-{mutant}" if shared is not None else None
    return set(json.loads(file.read_text())) if file is not None and file.exists() else set()


def chosen(mutant: Mutant, *, every: bool = False) -> tuple[Case, ...]:
    """The affected cases that cite the mutant's clause or a dependant, and of the others a few (or every
    one): a pair of mutant and case is always chosen or never, so that a failure can be repeated."""
    named = {mutant.clause, *mutant.dependants}
    return tuple(
        case
        for case in affected(mutant)
        if every or named & set(case.clauses) or crc32(f"{mutant.name}/{case.id}".encode()) % SAMPLED == 0
    )


def affected(mutant: Mutant) -> tuple[Case, ...]:
    """The cases of its dialect whose course the mutant may change."""
    cases = cases_in(mutant.dialect)
    replaced = changes(mutant.device, Device)
    files = {Path(code.co_filename).name for code in replaced or ()}
    if replaced is not None and dict(mutant.config).keys() == {"members"} and files <= MEMBERS:
        return tuple(case for case in cases if "members" in case.needs)  # nobody else has any
    if mutant.config or replaced is None:
        return cases
    places = frozenset(map(place, replaced))
    return tuple(case for case in cases if courses(mutant.dialect)[case.id].entered & places)


def changes(variant: type, base: type) -> set[CodeType] | None:
    """The code of ``base`` that ``variant`` replaces, in itself and in its parts; None when that cannot be
    said (something else than a function was replaced or added)."""
    codes: set[CodeType] = set()
    for cls in variant.__mro__:
        if cls is base or cls in base.__mro__:
            continue
        for name, value in vars(cls).items():
            if name.startswith("__") and name != "__init__":
                continue
            more = replaced_by(value, getattr(base, name, None))
            if more is None:
                return None
            codes |= more
    return codes


def replaced_by(value: Any, old: Any) -> set[CodeType] | None:
    """The code that disappears when ``old`` becomes ``value``."""
    if isinstance(value, property):
        return codes_of(old)
    if isinstance(value, FunctionType):
        return codes_of(old) if old is not None else set()
    if isinstance(value, type) and isinstance(old, type):
        return changes(value, old)
    if isinstance(value, tuple) and isinstance(old, tuple):
        codes: set[CodeType] = set()
        for new_part, old_part in zip(value, old, strict=True):
            if new_part is not old_part:
                more = replaced_by(new_part, old_part)
                if more is None:
                    return None
                codes |= more
        return codes
    # Data that only replaced functions read.
    return set() if old is None else None


def codes_of(old: Any) -> set[CodeType] | None:
    """The code behind a function or property; None for anything else."""
    if isinstance(old, property):
        return {part.__code__ for part in (old.fget, old.fset) if isinstance(part, FunctionType)}
    if isinstance(old, FunctionType):
        return {old.__code__}
    return set() if old is None else None
