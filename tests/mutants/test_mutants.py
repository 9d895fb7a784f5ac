"""The suite against wrong devices: every case can fail, every mutant is noticed, and for the right reason.

Each mutant meets every case that has to do with it, and a small sample of the others. The whole matrix takes minutes:
set ``WHOLE_MATRIX=1`` to run it here, or run `tools/mutants`.
"""

from __future__ import annotations

import os

import pytest
import touched
from registry import Mutant, cases_in, load_mutants
from touched import chosen

from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.result import CaseResult
from virtio_ipsec.conformance.runner import run, run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.wire.dialect import DIALECTS

MUTANTS = load_mutants()


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Workers of xdist find what another has seen."""
    folder = tmp_path_factory.getbasetemp()
    touched.shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


#: Those about PCI registers have mutants and tests of their own.
CASES = tuple(case for case in load_cases() if "pci" not in case.needs)
#: How a case says that a device is wrong. ERROR says that it could not be judged.
NOTICED = {Verdict.FAIL, Verdict.WARN, Verdict.WEDGED}


def fails(found: CaseResult, mutant: Mutant) -> bool:
    """By a verdict on what the mutant breaks, or before any."""
    return found.verdict in NOTICED and (mutant.clause in failing(found) or not found.checks)


def failing(found: CaseResult) -> set[str]:
    """The clauses with a check that did not hold."""
    return {check.clause for check in found.checks if check.verdict is not Verdict.PASS}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_device_itself_passes_in_these_settings(dialect: str) -> None:
    courses = touched.courses(dialect)
    assert courses.keys() == {case.id for case in cases_in(dialect)}
    assert [
        (name, course.verdict, course.reason)
        for name, course in courses.items()
        if course.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED}
    ] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed_on_its_clause_and_nowhere_else(mutant: Mutant) -> None:
    cases = chosen(mutant, every=bool(os.environ.get("WHOLE_MATRIX")))
    results = run(mutant.target(), cases, seed=1, thin=True).cases
    touched.note_failed(mutant, [found.id for found in results if fails(found, mutant)])
    blamed = {(found.id, cited) for found in results for cited in failing(found)}
    clauses = {cited for _, cited in blamed}
    assert mutant.clause in clauses, (
        f"blamed: {sorted(blamed)}; "
        f"not passed: {[(r.id, r.verdict.value, r.reason) for r in results if r.verdict is not Verdict.PASS]}"
    )
    assert sorted(pair for pair in blamed if pair[1] not in {mutant.clause, *mutant.dependants}) == []
    assert sorted(mutant.dependants - clauses) == [], "dependants that nothing blames"
    assert [(r.id, r.reason) for r in results if r.reason.startswith("unexpected")] == []


def test_counts() -> None:
    """Prints the size of the matrix; run with ``-rP`` to see it."""
    pairs = {mutant: len(chosen(mutant, every=True)) for mutant in MUTANTS}
    run_here = sum(len(chosen(mutant)) for mutant in MUTANTS)
    clauses = {mutant.clause for mutant in MUTANTS}
    print(f"{len(CASES)} cases, {len(MUTANTS)} mutants of {len(clauses)} clauses")
    print(
        f"{sum(pairs.values())} pairs in which a mutant can change what a case sees, {run_here} run by default"
    )
    print(f"{len(MUTANTS) * len(CASES)} pairs in all")
    assert all(pairs.values())
    cited = {clause for case in CASES for clause in case.clauses}
    assert clauses <= cited


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_can_fail(case: Case) -> None:
    """A mutant of a clause that the case cites is enough, and it fails the case by a verdict, not by ERROR. It does
    not matter whether that was seen above or is seen here."""
    mutants = [each for each in MUTANTS if each.clause in case.clauses and case.clauses_in(each.dialect)]
    assert any(case.id in touched.failed(each) for each in mutants) or any(
        fails(run_case(case, each.target(), seed=1, thin=True), each) for each in mutants
    ), f"no mutant of {case.clauses} makes it fail"
