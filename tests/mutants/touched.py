"""Which cases can tell a mutant from the device: those that enter what it replaces.

A device is deterministic here, and a mutant is the device with some functions replaced. A case that never
enters one of them runs as it does with the device itself, so it need not be run again to know its verdict.
"""

from __future__ import annotations

import fcntl
import json
import sys
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any
from zlib import crc32

from registry import Mutant, cases_in, mutant_free

from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.runner import run_case
from virtio_ipsec.device.device import Device

#: Of the cases that should not notice a mutant, every such one is asked. `tools/mutants` asks them all.
SAMPLED = 24
#: Where the commands about members are carried out.
MEMBERS = frozenset({"member_commands.py", "member_parts.py"})


#: Code as another process knows it: file, line, name.
Place = tuple[str, int, str]
#: Where the processes of one run share what they have seen; None: nowhere.
shared: Path | None = None


def place(code: CodeType) -> Place:
    """Of code."""
    return code.co_filename, code.co_firstlineno, code.co_qualname


@cache
def entered(dialect: str) -> dict[str, frozenset[Place]]:
    """Case id -> the code of the device package that it enters. The first process that asks finds out, for all."""
    if shared is None:
        return observed(dialect)
    file = shared / f"entered-{dialect}"
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(json.dumps({case: sorted(places) for case, places in observed(dialect).items()}))
    found = json.loads(file.read_text())
    return {case: frozenset((name, line, what) for name, line, what in places) for case, places in found.items()}


def observed(dialect: str) -> dict[str, frozenset[Place]]:
    """The same, by a look at each case."""
    target = mutant_free(dialect).target()
    found = {}
    for case in cases_in(dialect):
        codes: set[CodeType] = set()

        def note(frame: FrameType, event: str, argument: object, codes: set[CodeType] = codes) -> None:
            if event == "call":
                codes.add(frame.f_code)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            run_case(case, target, seed=1, thin=True)
        finally:
            sys.setprofile(before)
        found[case.id] = frozenset(place(code) for code in codes if "/device/" in code.co_filename)
    return found


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
    return tuple(case for case in cases if entered(mutant.dialect)[case.id] & places)


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
