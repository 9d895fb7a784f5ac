"""From a trace to a report in the suite's form: each judge is a case, each driver clause has its verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from time import perf_counter

from virtio_ipsec import __version__
from virtio_ipsec.conformance.monitor.evidence import around
from virtio_ipsec.conformance.monitor.judge import Finding, Judge, load_judges
from virtio_ipsec.conformance.monitor.life import Life, Run, read_run
from virtio_ipsec.conformance.result import (
    CaseResult,
    Check,
    Identity,
    Report,
    case_verdict,
    clause_verdicts,
    failing_verdict,
)
from virtio_ipsec.conformance.trace import Event as Shown
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.specification import Clause, load_clauses
from virtio_ipsec.transport.monitor.events import Event, Recorder
from virtio_ipsec.wire.dialect import Dialect

#: Findings of one judge that are told: those that do not hold, and different ones that do.
_TOLD, _KEPT = 5, 8
_MISSING = {
    "registers": "the driver's own accesses to status, features and configuration do not show through this transport",
    "notifications": "available buffer notifications do not show through this transport",
    "pci": "the driver did not come through a PCI function",
    "members": "no device before it owned virtual functions: only PCI functions of some faces do",
}


def judge_trace(
    recorder: Recorder,
    name: str,
    *,
    judges: Iterable[Judge] | None = None,
    details: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> Report:
    """What the trace in ``recorder`` says of the driver called ``name``."""
    run = read_run(tuple(recorder.events), recorder.dialect)
    chosen = load_judges() if judges is None else tuple(judges)
    dialect = recorder.dialect
    results = tuple(_result(one, run) for one in chosen if one.clauses_in(dialect.name))
    found = {
        "faces": ", ".join(dict.fromkeys(life.began.face for life in run.lives)) or "none",
        "lives": str(len(run.lives)),
        **({"events not kept": str(recorder.dropped)} if recorder.dropped else {}),
        **(details or {}),
    }
    offered = run.lives[0].began.offered if run.lives else 0
    return Report(
        identity=Identity(name, dialect.name, True, offered, found, role="driver"),
        version=__version__,
        seed=0,
        cases=results,
        clauses=clause_verdicts(driver_clauses(dialect), results),
        seconds=seconds,
        left_out=tuple(
            sorted({one.id for one in select_judges(dialect.name)} - {result.id for result in results})
        ),
    )


def driver_clauses(dialect: Dialect) -> tuple[Clause, ...]:
    """The clauses about drivers."""
    return tuple(c for c in load_clauses() if c.role == "driver" and dialect.name in c.dialects)


def select_judges(dialect: str, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> tuple[Judge, ...]:
    """As `runner.select`, of judges."""
    wanted, unwanted = tuple(only), tuple(exclude)

    def matches(one: Judge, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for name in (one.id, *one.clauses) for pattern in patterns)

    return tuple(
        one
        for one in load_judges()
        if one.clauses_in(dialect)
        and (not wanted or matches(one, wanted))
        and not (unwanted and matches(one, unwanted))
    )


def findings(events: Iterable[Event], dialect: Dialect, one: Judge) -> list[Finding]:
    """What one judge finds in a trace."""
    return list(one.body(read_run(tuple(events), dialect)))


def _result(one: Judge, run: Run) -> CaseResult:
    begin = perf_counter()
    (cited,) = one.clauses_in(run.dialect.name)
    checks: list[Check] = []
    events: tuple[Shown, ...] = ()
    reason = ""
    missing = sorted(what for what in one.shown if not any(life.shows(what) for life in run.lives))
    try:
        found = list(one.body(run))
        wrong = [each for each in found if not each.holds]
        checks = [_check(cited, each) for each in (*wrong[:_TOLD], *_different(found))]
        if len(wrong) > _TOLD:
            reason = f"{len(wrong)} of {len(found)} situations; the first {_TOLD} are told"
        if wrong:
            events = _evidence(run, wrong[0])
    except VirtioIpsecError as error:
        verdict, reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
    except Exception as error:  # a defect of the judge must not end the run
        verdict, reason = Verdict.ERROR, f"unexpected {type(error).__name__}: {error}"
    else:
        if checks:
            verdict = case_verdict(checks)
        elif missing and run.lives:
            verdict, reason = Verdict.UNSUPPORTED, "; ".join(_MISSING[what] for what in missing)
        else:
            verdict, reason = Verdict.NOT_SEEN, f"not seen: {one.when}"
    return CaseResult(
        id=one.id,
        title=one.title,
        clauses=(cited.id,),
        verdict=verdict,
        checks=tuple(checks),
        reason=reason,
        events=events,
        seconds=perf_counter() - begin,
    )


def _different(found: Iterable[Finding]) -> list[Finding]:
    """Findings that hold, each demand once."""
    kept: dict[str, Finding] = {}
    for each in found:
        if each.holds and len(kept) < _KEPT:
            kept.setdefault(each.expected, each)
    return list(kept.values())


def _check(cited: Clause, found: Finding) -> Check:
    if found.holds:
        return Check(cited.id, Verdict.PASS, found.expected, "as expected")
    verdict = Verdict.WARN if found.advisory else failing_verdict(cited.level)
    return Check(cited.id, verdict, found.expected, found.seen)


def _evidence(run: Run, found: Finding) -> tuple[Shown, ...]:
    life = _life_of(run, found.at)
    return around(life, found.at) if life is not None else ()


def _life_of(run: Run, at: int) -> Life | None:
    return next((life for life in run.lives if life.begin <= at < life.begin + len(life.events)), None)
