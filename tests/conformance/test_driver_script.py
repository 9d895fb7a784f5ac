"""Our own driver before a watched device: it comes into every situation, and does everything right."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from virtio_ipsec.conformance.monitor.judge import load_judges
from virtio_ipsec.conformance.monitor.life import read_run
from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import perform, perform_over_pci
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.wire.dialect import DIALECTS, V14
from virtio_ipsec.wire.numbers import GroupType, Opcode


@cache
def played(dialect: str) -> Recorder:
    recorder = Recorder(DIALECTS[dialect])
    perform(recorder, Random(1).randbytes)
    perform_over_pci(recorder, Random(2).randbytes)
    return recorder


#: A dialect without MODIFY and QUERY has no device parts: they take all of their commands or none (DP-DEV-01).
NOT_SEEN = {"virtio-1.4": set(), "rfc-2025-01": {f"driver-dp-drv-0{number}" for number in range(1, 6)}}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_script_comes_into_every_situation_and_passes(dialect: str) -> None:
    report = judge_trace(played(dialect), "script")
    assert report.passed
    assert {case.id for case in report.cases if case.verdict is Verdict.NOT_SEEN} == NOT_SEEN[dialect]
    others = {
        case.id: (case.verdict, case.reason)
        for case in report.cases
        if case.verdict not in {Verdict.PASS, Verdict.NOT_SEEN}
    }
    assert others == {}


def test_the_script_carries_a_member_and_no_command_of_its_is_refused() -> None:
    commands = [c for life in read_run(played(V14.name).events, V14).lives for c in life.commands]
    of_members = [Opcode(command.opcode).name for command in commands if command.group == GroupType.SRIOV]
    assert all(command.ok for command in commands if command.group == GroupType.SRIOV)
    assert of_members == [
        "LIST_QUERY",
        "LIST_USE",
        "RESOURCE_OBJ_CREATE",
        "RESOURCE_OBJ_CREATE",
        "DEV_MODE_SET",
        "DEV_PARTS_METADATA_GET",
        "DEV_PARTS_METADATA_GET",
        "DEV_PARTS_METADATA_GET",
        "DEV_PARTS_GET",
        "DEV_PARTS_SET",
        "DEV_MODE_SET",
        "RESOURCE_OBJ_DESTROY",
        "RESOURCE_OBJ_DESTROY",
    ]


def test_every_driver_clause_has_a_judge_or_a_reason() -> None:
    judged = {name for one in load_judges() for name in one.clauses}
    clauses = [clause for clause in load_clauses() if clause.role == "driver"]
    assert judged == {clause.id for clause in clauses if clause.observed == "driver"}
    assert all(clause.how for clause in clauses if clause.id not in judged)
    assert len({one.id for one in load_judges()}) == len(load_judges())
