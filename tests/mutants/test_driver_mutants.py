"""Every judge can fail: a wrong driver for each clause, blamed for that clause and for nothing else."""

from __future__ import annotations

import pytest
from driver_registry import DriverMutant, blamed, load_driver_mutants
from test_driver_pci_mutants import MUTANTS as PCI_MUTANTS

from virtio_ipsec.conformance.monitor.judge import load_judges
from virtio_ipsec.conformance.verdict import Verdict

MUTANTS = load_driver_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_wrong_driver_is_blamed_for_its_clause_and_nothing_else(mutant: DriverMutant) -> None:
    report = mutant.report()
    wrong = blamed(report)
    verdicts = {case.clauses[0]: (case.verdict.value, case.reason) for case in report.cases}
    assert mutant.clause in wrong, (verdicts[mutant.clause], wrong)
    assert {
        name: text for name, text in wrong.items() if name not in {mutant.clause, *mutant.dependants}
    } == {}
    assert mutant.dependants <= wrong.keys(), "dependants that nothing blames"
    (case,) = (case for case in report.cases if case.clauses == (mutant.clause,))
    assert case.verdict in {Verdict.FAIL, Verdict.WARN}
    assert case.events, "no evidence"


def test_every_judge_has_a_mutant() -> None:
    """Those of PCI registers have theirs in `test_driver_pci_mutants.py`."""
    killed = {mutant.clause for mutant in MUTANTS} | PCI_MUTANTS.keys()
    assert killed == {name for one in load_judges() for name in one.clauses}
    print(f"{len(load_judges())} judges, {len(MUTANTS) + len(PCI_MUTANTS)} mutant drivers")
