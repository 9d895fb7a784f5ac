"""Results as values: what a case found, and the verdict of every clause that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import FATAL, UNDECIDED, Verdict, gravest
from virtio_ipsec.specification import Clause

#: A SHOULD that does not hold is a warning; everything else that does not hold is a failure.
ADVISORY = frozenset({"SHOULD", "SHOULD NOT"})


def failing_verdict(level: str) -> Verdict:
    """The verdict of a check that did not hold, by the level of its clause."""
    return Verdict.WARN if level in ADVISORY else Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what the clause demands against what was seen."""

    clause: str
    verdict: Verdict
    expected: str
    seen: str


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of one case. ``reason`` explains UNSUPPORTED, NOT SEEN, SKIP, ERROR and WEDGED, and holds what is to
    be known beside any verdict; ``readings`` names which admitted reading of an ambiguous text the device follows, by
    ledger entry."""

    id: str
    title: str
    clauses: tuple[str, ...]
    verdict: Verdict
    checks: tuple[Check, ...]
    reason: str = ""
    readings: tuple[tuple[str, str], ...] = ()
    events: tuple[Event, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ClauseResult:
    """The verdict of one clause over all cases that cite it; ``reason`` when there is no case."""

    clause: Clause
    verdict: Verdict
    cases: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What was tested: a device, or a driver (``role``)."""

    target: str
    dialect: str
    wire: bool
    features: int = 0
    details: dict[str, str] = field(default_factory=dict)
    role: str = "device"


@dataclass(frozen=True, slots=True)
class Deviation:
    """A case or clause (``names``) that the vendor says is not met, and why. It changes no verdict. ``seen``: whether
    the run found it so; one that was not seen ought to be struck from the list."""

    names: str
    reason: str
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run; every output format is made from this."""

    identity: Identity
    version: str
    seed: int
    cases: tuple[CaseResult, ...]
    clauses: tuple[ClauseResult, ...]
    seconds: float
    deviations: tuple[Deviation, ...] = ()
    #: Cases of the suite, of this dialect and role, that nobody asked for.
    left_out: tuple[str, ...] = ()

    def deviation(self, *names: str) -> Deviation | None:
        """The declared deviation that bears one of these names of cases and clauses."""
        return next((d for d in self.deviations if d.names in names), None)

    def deviation_of(self, result: CaseResult) -> Deviation | None:
        """The declared deviation that is about what a case found: about the case itself, or a clause that broke in
        it. Of a case that came to no end it may be any clause."""
        if result.verdict is Verdict.PASS:
            return self.deviation(result.id)
        broken = [check.clause for check in result.checks if check.verdict is not Verdict.PASS]
        return self.deviation(result.id, *(broken or result.clauses))

    def count(self, verdict: Verdict) -> int:
        """How many cases ended so."""
        return sum(result.verdict is verdict for result in self.cases)

    @property
    def passed(self) -> bool:
        """At least one case ran, and no MUST is FAIL, ERROR or WEDGED."""
        ran = any(r.verdict not in UNDECIDED for r in self.cases)
        return ran and not any(r.verdict in FATAL for r in self.cases)


def case_verdict(checks: list[Check]) -> Verdict:
    """A case is as bad as its worst check; without any check it has shown nothing (ERROR)."""
    return gravest([check.verdict for check in checks]) if checks else Verdict.ERROR


def clause_verdicts(clauses: tuple[Clause, ...], results: tuple[CaseResult, ...]) -> tuple[ClauseResult, ...]:
    """The verdict of each clause: the gravest over its checks; that of the case where the case broke off."""
    found: dict[str, list[Verdict]] = {}
    cases: dict[str, list[str]] = {}
    for result in results:
        checked = {check.clause for check in result.checks}
        for check in result.checks:
            found.setdefault(check.clause, []).append(check.verdict)
        for cited in result.clauses:
            cases.setdefault(cited, []).append(result.id)
            if cited not in checked:
                missing: Verdict = (
                    Verdict.SKIP if result.verdict in {Verdict.PASS, Verdict.WARN} else result.verdict
                )
                found.setdefault(cited, []).append(missing)
    return tuple(
        ClauseResult(
            c, _of_clause(found.get(c.id, [])), tuple(cases.get(c.id, ())), "" if c.id in found else c.how
        )
        for c in clauses
    )


def _of_clause(verdicts: list[Verdict]) -> Verdict:
    """A clause that one case checked is not UNSUPPORTED because another could not."""
    decided = [v for v in verdicts if v not in UNDECIDED]
    return gravest(decided or verdicts)
