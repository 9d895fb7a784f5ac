"""Our own driver before a watched device: it comes into every situation, and does everything right."""

from __future__ import annotations

from random import Random

import pytest

from virtio_ipsec.conformance.monitor.judge import load_judges
from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import perform, perform_over_pci
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.wire.dialect import DIALECTS


def played(dialect: str) -> Report:
    recorder = Recorder(DIALECTS[dialect])
    perform(recorder, Random(1).randbytes)
    perform_over_pci(recorder, Random(2).randbytes)
    return judge_trace(recorder, "script")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_script_comes_into_every_situation_and_passes(dialect: str) -> None:
    report = played(dialect)
    assert report.passed
    others = {
        case.id: (case.verdict, case.reason) for case in report.cases if case.verdict is not Verdict.PASS
    }
    assert others == {}


def test_every_driver_clause_has_a_judge_or_a_reason() -> None:
    judged = {name for one in load_judges() for name in one.clauses}
    clauses = [clause for clause in load_clauses() if clause.role == "driver"]
    assert judged == {clause.id for clause in clauses if clause.observed == "driver"}
    assert all(clause.how for clause in clauses if clause.id not in judged)
    assert len({one.id for one in load_judges()}) == len(load_judges())
