"""Every mutant under every case that it could change: which clause is blamed by which case."""

from __future__ import annotations

from dataclasses import dataclass, field

from registry import Mutant, load_mutants
from touched import chosen

from virtio_ipsec.conformance.case import load_cases
from virtio_ipsec.conformance.result import CaseResult
from virtio_ipsec.conformance.runner import run
from virtio_ipsec.conformance.verdict import Verdict

#: How a case says that a device is wrong; ERROR says that it could not be judged.
NOTICED = {Verdict.FAIL, Verdict.WARN, Verdict.WEDGED}


@dataclass(frozen=True, slots=True)
class Row:
    """What the suite says of one mutant: clause -> cases with a failing check on it."""

    mutant: str
    clause: str
    allowed: frozenset[str]
    blamed: dict[str, tuple[str, ...]]
    killers: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Noticed on the clause that it breaks, and on nothing that has no part in it."""
        return self.clause in self.blamed and self.blamed.keys() <= {self.clause, *self.allowed}


@dataclass(slots=True)
class Matrix:
    """All rows, and which cases something kills."""

    rows: list[Row] = field(default_factory=list)

    @property
    def wrong(self) -> list[Row]:
        """Mutants that are not noticed, or not on their clause alone."""
        return [row for row in self.rows if not row.right]

    def unkilled(self) -> list[str]:
        """Cases that no mutant fails."""
        killed = {case for row in self.rows for case in row.killers}
        return [case.id for case in load_cases() if case.id not in killed]


def names() -> list[str]:
    """All mutants."""
    return [mutant.name for mutant in load_mutants()]


def row(name: str) -> Row:
    """The suite over one mutant. Long sweeps are sampled."""
    mutant = next(mutant for mutant in load_mutants() if mutant.name == name)
    results = run(mutant.target(), chosen(mutant, every=True), seed=1, thin=True).cases
    blamed: dict[str, list[str]] = {}
    for result in results:
        for clause in _failing(result):
            blamed.setdefault(clause, []).append(result.id)
    return Row(
        name,
        mutant.clause,
        mutant.dependants,
        {clause: tuple(cases) for clause, cases in sorted(blamed.items())},
        tuple(r.id for r in results if r.verdict in NOTICED and _is_about(mutant, r)),
    )


def _failing(result: CaseResult) -> set[str]:
    return {check.clause for check in result.checks if check.verdict is not Verdict.PASS}


def _is_about(mutant: Mutant, result: CaseResult) -> bool:
    """A case counts as killed where it blames the broken clause, or broke off because of it."""
    return mutant.clause in _failing(result) or (not result.checks and mutant.clause in result.clauses)
