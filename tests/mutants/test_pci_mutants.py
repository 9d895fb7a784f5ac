"""Cases about PCI registers: our function passes them, every one can fail, and wrong functions are told apart."""

from __future__ import annotations

from functools import cache
from zlib import crc32

import pytest
from pci_mutants import MUTANTS, PciMutant, target

from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.result import CaseResult
from virtio_ipsec.conformance.runner import run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.transport.loopback_pci import PciLoopback

CASES = tuple(case for case in load_cases() if "pci" in case.needs)


def chosen(mutant: PciMutant) -> tuple[Case, ...]:
    """The cases that cite what it breaks, and of the others a fifth, always the same."""
    named = {mutant.clause, *mutant.dependants}
    return tuple(
        case
        for case in CASES
        if named & set(case.clauses) or crc32(f"{mutant.name}/{case.id}".encode()) % 5 == 0
    )


def results(function: PciLoopback, cases: tuple[Case, ...] = CASES) -> list[CaseResult]:
    try:
        found = [run_case(case, function, seed=1, thin=True) for case in cases]
    finally:
        function.close()
    assert [(r.id, r.reason) for r in found if r.reason.startswith("unexpected")] == []
    return found


def blamed(found: list[CaseResult]) -> set[tuple[str, str]]:
    return {(r.id, c.clause) for r in found for c in r.checks if c.verdict is not Verdict.PASS}


@cache
def noticed(mutant: PciMutant) -> set[tuple[str, str]]:
    """(case, clause) of checks that did not hold."""
    return blamed(results(mutant.target(), chosen(mutant)))


def test_our_function_passes() -> None:
    found = results(target())
    assert [(r.id, r.verdict, r.reason) for r in found if r.verdict is not Verdict.PASS] == []
    judged = {check.clause for result in found for check in result.checks}
    wanted = {c.id for c in load_clauses() if c.id.startswith("PCI-") and c.observed == "device"}
    assert judged == wanted | {"BAS-RSVD-12"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_noticed_on_its_clause_and_nowhere_else(mutant: PciMutant) -> None:
    assert {cited for _, cited in noticed(mutant)} == {mutant.clause, *mutant.dependants}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_can_fail(case: Case) -> None:
    assert any((case.id, cited) in noticed(mutant) for mutant in MUTANTS for cited in case.clauses)
    assert set(case.clauses) <= {mutant.clause for mutant in MUTANTS}
