"""Asks the suite about a device with a fault: in a process of its own, by the cases that run the faulty lines.

The suite is imported once, and the sound device watched once: which case runs which lines of it. A device answers the
same thing the same way every time, so a case that does not come past the fault says what it said before.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from types import CodeType, FrameType, ModuleType
from typing import Any

from tools.mutant_parts.faults import ANSWERS, PACKAGE, ROOMS, Fault, mutated, path_of, users
from virtio_ipsec import errors
from virtio_ipsec.conformance.bench import THIN, Bench
from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.runner import run_case, select
from virtio_ipsec.conformance.target import Target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.wire.dialect import DIALECTS, Dialect

#: Seconds of the processor that one case may take; the longest takes a fraction of one.
LIMIT = 15.0
#: What an endless loop that collects things may collect.
MEMORY = 3 << 30
USUAL = {Verdict.PASS, Verdict.UNSUPPORTED}
#: What is imported anew around a fault: the device, and what joins it to the suite. The suite keeps its own copy of
#: `ipsec`, which is the other end of every SA.
ANEW = tuple(
    f"virtio_ipsec.{name}" for name in ("device", "ipsec", "transport.loopback", "transport.targets")
)

#: Devices by what the cases need: a plain function, and the owner of two virtual functions.
PLAIN, OWNER = "python", "python,members=2"

#: Seconds that a case takes, its dialect, its device and its id.
Entry = tuple[float, str, str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the suite made of a fault: the first case that noticed it and its verdict; "" for none. ``asked`` is how
    many cases come past the fault."""

    fault: Fault
    case: str
    verdict: str
    asked: int = 0

    @property
    def noticed(self) -> bool:
        """Whether something was found wrong."""
        return bool(self.verdict)


class Judge:
    """Knows which case runs which lines of the device; see :meth:`judge`."""

    def __init__(self) -> None:
        for name in ANSWERS:  # a module need not import the error that a slip takes
            setattr(builtins, name, getattr(errors, name))
        load_cases()
        sys.setswitchinterval(1.0)
        #: Cases that take samples when they have to be quick.
        self._sweeping: set[str] = set()
        #: (file, line) -> the cases that run it, the quickest first.
        self._cases: dict[tuple[str, int], list[Entry]] = defaultdict(list)
        self._by_file: dict[str, set[Entry]] = defaultdict(set)
        for dialect in DIALECTS.values():
            for device in (PLAIN, OWNER):
                self._watch(dialect, device)

    def _watch(self, dialect: Dialect, device: str) -> None:
        rooms = tuple(str(PACKAGE / room) + os.sep for room in ROOMS)
        lines: set[tuple[str, int]] = set()

        def within(frame: FrameType, event: str, argument: object) -> Any:
            if event == "line":
                lines.add((frame.f_code.co_filename, frame.f_lineno))
            return within

        def entering(frame: FrameType, event: str, argument: object) -> Any:
            return within if frame.f_code.co_filename.startswith(rooms) else None

        sys.settrace(entering)
        try:
            target = new_target(dialect, device)
        finally:
            sys.settrace(None)
        making = frozenset(lines)  # every case sees what comes of it
        sweep = Bench.sweep

        def noted(bench: Bench, items: Iterable[Any]) -> list[Any]:
            every = list(items)
            if len(every) > THIN:
                self._sweeping.add(bench.case.id)
            return sweep(bench, every)

        for case in select(dialect.name):
            if device not in devices_for(case):
                continue
            lines.clear()
            Bench.sweep = noted  # type: ignore[method-assign]
            sys.settrace(entering)
            try:
                result = run_case(case, target, seed=1, thin=True)
            finally:
                sys.settrace(None)
                Bench.sweep = sweep  # type: ignore[method-assign]
            if result.verdict not in USUAL:
                raise RuntimeError(
                    f"the device itself fails {case.id}: {result.verdict.value} {result.reason}"
                )
            entry = (result.seconds, dialect.name, device, case.id)
            for file, line in lines | making:
                self._cases[file, line].append(entry)
            for file, _ in lines:
                self._by_file[file].add(entry)

    def cases(self, fault: Fault) -> list[Entry]:
        """All that could notice, the quickest first."""
        found: set[Entry] = set()
        if fault.inside:
            file = str(path_of(fault.module))
            for line in fault.lines:
                found.update(self._cases.get((file, line), ()))
            if not found:  # what only every item of a long sweep comes to
                found = {entry for entry in self._by_file[file] if entry[3] in self._sweeping}
        else:  # a table: who runs anything of the module, or of those that import from it
            for module in users(fault.module):
                found |= self._by_file[str(path_of(module))]
        return sorted(found)

    def judge(self, faults: Sequence[Fault], jobs: int = 1) -> Iterator[Outcome]:
        """The outcome of every fault, as they come; ``jobs`` processes at a time."""
        waiting = list(reversed(faults))
        running: dict[int, tuple[Fault, int]] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                fault = waiting.pop()
                cases = self.cases(fault)
                if not cases:
                    yield Outcome(fault, "", "", 0)
                    continue
                read, write = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.close(read)
                    _child(fault, cases, self._sweeping, write)
                os.close(write)
                running[pid] = fault, read
            if running:
                pid, status = os.wait()
                fault, read = running.pop(pid)
                with os.fdopen(read, "rb") as pipe:
                    yield _outcome(fault, pipe.read(), status)


def _outcome(fault: Fault, said: bytes, status: int) -> Outcome:
    if os.WIFSIGNALED(status):
        hung = os.WTERMSIG(status) in {signal.SIGVTALRM, signal.SIGPROF}
        return Outcome(fault, "-", "HUNG" if hung else f"SIGNAL {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status):
        return Outcome(fault, "-", "DEAD")  # the device does not even come up
    return Outcome(fault, *json.loads(said))


def _child(fault: Fault, cases: list[Entry], sweeping: set[str], write: int) -> None:
    """The rest of this process's life."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            _import_anew(fault)
            places = {(dialect, device) for _, dialect, device, _ in cases}
            targets = {(name, device): new_target(DIALECTS[name], device) for name, device in places}
        except Exception:
            os._exit(1)
        found = _first_notice(targets, cases, thin=True)
        if not found[1]:  # once more, and every item of long sweeps
            found = _first_notice(targets, [case for case in cases if case[3] in sweeping], thin=False)
        os.write(write, json.dumps((*found, len(cases))).encode())
    finally:
        os._exit(0)


def _first_notice(
    targets: dict[tuple[str, str], Target], cases: list[Entry], *, thin: bool
) -> tuple[str, str]:
    by_id: dict[str, Case] = {case.id: case for case in load_cases()}
    known: dict[tuple[str, str], dict[str, bool]] = {place: {} for place in targets}
    for _, dialect, device, name in cases:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        place = dialect, device
        result = run_case(by_id[name], targets[place], 1, known[place], thin=thin)
        if result.verdict not in USUAL:
            return name, result.verdict.value
    return "", ""


def devices_for(case: Case) -> tuple[str, ...]:
    """What a case is run on: those about groups on a device that has members as well."""
    if "members" in case.needs:
        return (OWNER,)
    return (PLAIN, OWNER) if any(cited.startswith("ADM-") for cited in case.clauses) else (PLAIN,)


def new_target(dialect: Dialect, device: str = PLAIN) -> Target:
    """The embedded device as it is imported now; two of them behave alike."""
    from virtio_ipsec.transport.targets import loopback

    return loopback(device, dialect, rng=Random(1).randbytes)


def _import_anew(fault: Fault) -> None:
    path = path_of(fault.module)
    code = compile(mutated(fault.module, fault.number), str(path), "exec")
    for name in list(sys.modules):
        if name.startswith(ANEW):
            del sys.modules[name]
    sys.meta_path.insert(0, _Finder(f"virtio_ipsec.{fault.module}", str(path), code))


class _Faulty(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module with its fault."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Faulty(fullname, self._path, self._code)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=self._path)
