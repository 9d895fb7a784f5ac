"""Runs cases against a target: each isolated by a reset, in an order drawn from a seed, framed by sanity runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from random import Random
from time import perf_counter

from virtio_ipsec import __version__
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import NEEDS, Case, load_cases
from virtio_ipsec.conformance.result import (
    CaseResult,
    Deviation,
    Identity,
    Report,
    case_verdict,
    clause_verdicts,
)
from virtio_ipsec.conformance.target import Target
from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import FATAL, CheckFailed, Unsupported, Verdict, Wedged, gravest
from virtio_ipsec.errors import TransportError, VirtioIpsecError
from virtio_ipsec.specification import load_clauses

#: Runs first and last: a device that cannot do this would make every other verdict meaningless.
SANITY = "sanity-start"

#: Feature words that there are (virtio v1.4, Feature Bits): as many as a report shows.
FEATURE_BITS = 128

#: What a declared deviation may be about.
NOT_MET = FATAL | {Verdict.WARN, Verdict.UNSUPPORTED}

Progress = Callable[[int, int, CaseResult], None]


def select(dialect: str, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> tuple[Case, ...]:
    """The cases that have a clause in ``dialect`` and whose id, or a cited clause, matches a pattern of
    ``only`` (all when empty) and none of ``exclude``. Patterns are shell-like: ``NET-IPSEC-*``, ``adm-*``."""
    wanted, unwanted = tuple(only), tuple(exclude)

    def matches(case: Case, patterns: tuple[str, ...]) -> bool:
        names = (case.id, *case.clauses)
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return tuple(
        case
        for case in load_cases()
        if case.clauses_in(dialect)
        and (not wanted or matches(case, wanted))
        and not (unwanted and matches(case, unwanted))
    )


def run_case(
    case: Case,
    target: Target,
    seed: int,
    known: dict[str, bool] | None = None,
    *,
    thin: bool = False,
    limit: float | None = None,
    begun: Callable[[Bench], None] = lambda bench: None,
) -> CaseResult:
    """Run one case on a freshly reset target. Never raises for what the device does.

    ``known`` remembers from case to case which needs the device meets. ``thin``: see :meth:`Bench.sweep`. ``limit``:
    seconds after which somebody else ends it, who hears of the bench by ``begun``.
    """
    known = {} if known is None else known
    unhurried = None if limit is None else limit / 2
    bench = Bench(target, Random(f"{seed}/{case.id}"), case, thin=thin, unhurried=unhurried)
    begin = perf_counter()
    begun(bench)
    verdict: Verdict | None = None
    reason = ""
    try:
        bench.reset()
        for need in case.needs - known.keys():
            known[need] = bench.offers(need)
            bench.reset()
        if missing := sorted(need for need in case.needs if not known[need]):
            raise Unsupported("; ".join(NEEDS[need] for need in missing))
        case.body(bench)
    except CheckFailed:
        pass
    except Unsupported as error:
        reason = str(error)
        # What was found wrong before the case could not go on stands.
        if all(check.verdict is Verdict.PASS for check in bench.checks):
            verdict = Verdict.UNSUPPORTED
    except Wedged as error:
        verdict, reason = Verdict.WEDGED, str(error)
    except VirtioIpsecError as error:
        verdict, reason = Verdict.ERROR, f"{type(error).__name__}: {error}"
    except Exception as error:  # a defect of the suite or of the target must not end the run
        verdict, reason = Verdict.ERROR, f"unexpected {type(error).__name__}: {error}"
    finally:
        bench.forget()  # the next case has a bench of its own, and resets the device first
    if verdict is None:
        verdict = case_verdict(bench.checks)
        if verdict is Verdict.ERROR:
            reason = "the case ended without a check"
    return result_of(bench, verdict, reason, perf_counter() - begin)


def result_of(
    bench: Bench, verdict: Verdict, reason: str, seconds: float, more: tuple[Event, ...] = ()
) -> CaseResult:
    """What has come of the case at ``bench``; ``more``: evidence behind its own."""
    case = bench.case
    return CaseResult(
        id=case.id,
        title=case.title,
        clauses=tuple(c.id for c in case.clauses_in(bench.dialect.name)),
        verdict=verdict,
        checks=tuple(bench.checks),
        reason="; ".join(filter(None, (reason, *bench.remarks))),
        readings=tuple(sorted(bench.readings.items())),
        events=() if verdict in {Verdict.PASS, Verdict.UNSUPPORTED} else (*bench.trace.events(), *more),
        seconds=seconds,
    )


def order_of(cases: Iterable[Case], seed: int) -> list[Case]:
    """The order drawn from ``seed``, between two sanity runs."""
    order = [case for case in cases if case.id != SANITY]
    Random(seed).shuffle(order)
    sanity = [case for case in cases if case.id == SANITY]
    return [*sanity, *order, *sanity]


def identity_of(target: Target) -> Identity:
    """Who is tested. Resets the device. TransportError for feature bits that no report can show."""
    target.reset()
    features = target.device_features()
    if not isinstance(features, int) or features not in range(1 << FEATURE_BITS):
        raise TransportError(f"the target's features are no {FEATURE_BITS} bits: {str(features)[:60]!r}")
    return Identity(
        target=str(target.name),
        dialect=target.dialect.name,
        wire=bool(target.has_wire),
        features=features,
        details={str(name): str(text) for name, text in target.details.items()},
    )


def report_of(
    identity: Identity,
    results: Iterable[CaseResult],
    *,
    seed: int,
    seconds: float,
    deviations: tuple[Deviation, ...] = (),
) -> Report:
    """The report of a run: of two results of one case the graver one, and the verdict of every clause."""
    found: dict[str, CaseResult] = {}
    for result in results:
        earlier = found.get(result.id)
        if earlier is None or gravest([earlier.verdict, result.verdict]) is not earlier.verdict:
            found[result.id] = result
    cases = tuple(found[name] for name in sorted(found))
    clauses = tuple(c for c in load_clauses() if identity.dialect in c.dialects)
    judged = clause_verdicts(clauses, cases)
    bad = {case.id for case in cases if case.verdict in NOT_MET}
    bad |= {result.clause.id for result in judged if result.verdict in NOT_MET}
    return Report(
        identity=identity,
        version=__version__,
        seed=seed,
        cases=cases,
        clauses=judged,
        seconds=seconds,
        deviations=tuple(replace(d, seen=d.names in bad) for d in deviations),
        left_out=tuple(sorted({case.id for case in select(identity.dialect)} - found.keys())),
    )


def run(
    target: Target,
    cases: tuple[Case, ...],
    *,
    seed: int = 0,
    progress: Progress = lambda done, total, result: None,
    thin: bool = False,
) -> Report:
    """Run ``cases`` in an order drawn from ``seed`` and judge every clause of the target's dialect.

    ``thin`` takes samples of long sweeps, for targets that are slow and for the matrix of mutants. All happens in
    this process: a target that never returns is never left (`supervisor` leaves it).
    """
    begin = perf_counter()
    order = order_of(cases, seed)
    results = []
    known: dict[str, bool] = {}
    for number, case in enumerate(order, 1):
        results.append(run_case(case, target, seed, known, thin=thin))
        progress(number, len(order), results[-1])
    return report_of(identity_of(target), results, seed=seed, seconds=perf_counter() - begin)
