"""Runs on the embedded device: repeatable, in any order, thinned or whole, and no key in any report."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.reports.master import to_json
from virtio_ipsec.conformance.reports.text import to_markdown
from virtio_ipsec.conformance.result import CaseResult
from virtio_ipsec.conformance.runner import SANITY, order_of, run, run_case, select
from virtio_ipsec.conformance.sas import enable, install, make
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.wire.dialect import RFC_2025_01, V14


def test_the_order_comes_from_the_seed_and_does_not_matter_and_runs_can_be_repeated() -> None:
    """Other tests with whole runs have a seed, so an order, of their own."""
    cases = select(V14.name)
    drawn = [case.id for case in order_of(cases, 3)]
    other = [case.id for case in order_of(cases, 4)]
    assert drawn != other
    assert sorted(drawn) == sorted(other)
    assert drawn[0] == drawn[-1] == SANITY
    reports = set()
    for _ in range(2):
        order: list[str] = []

        def note(done: int, total: int, result: CaseResult, order: list[str] = order) -> None:
            order.append(result.id)

        target = loopback("", V14, rng=Random(7).randbytes)
        report = run(target, cases, seed=3, progress=note, thin=True)
        assert report.passed
        assert order == drawn
        told = to_json(replace(report, seconds=0, cases=tuple(replace(c, seconds=0) for c in report.cases)))
        reports.add(json.dumps(told))
    assert len(reports) == 1


def test_the_command_line_says_what_a_dialect_covers(capsys: pytest.CaptureFixture[str]) -> None:
    dialect = RFC_2025_01.name
    assert main(["conformance", "--dialect", dialect]) == 0
    text = capsys.readouterr().out
    assert f"clauses in dialect {dialect}" in text
    assert text.splitlines()[-1].startswith(f"passed: loopback, dialect {dialect}: ")


def test_a_report_about_an_sa_shows_no_key_and_no_salt() -> None:
    secrets: list[bytes] = []

    def body(bench: Bench) -> None:
        bench.start()
        enable(bench)
        sa = make(bench, suite="aes-cbc+hmac-sha2-256-128", salt=bytes.fromhex("d1d2d3d4"))
        secrets.extend((sa.cipher_key, sa.auth_key, sa.salt))
        demand(install(bench, 0, sa))
        demand(bench.admin.query(0x203, 0))
        demand(bench.admin.modify(0x203, 0, bench.dialect.sa.build(sa)))
        bench.check("INF-28", False, "something impossible", bench.admin.query(0x203, 0))

    case = Case("leaks", "leaks", "leaks", ("INF-28",), frozenset(), body)
    report = run(loopback("", V14), (case,))
    (result,) = report.cases
    assert result.verdict is Verdict.FAIL
    assert sum(event.kind == "admin" for event in result.events) > 5
    text = json.dumps(to_json(report)) + to_markdown(report)
    assert len(secrets) == 3
    for secret in secrets:
        assert secret.hex() not in text
        assert secret.hex(" ") not in text
    assert "spi" in text


def test_a_target_is_found_by_name() -> None:
    with open_target("loopback", V14) as target:
        assert target.name == "loopback"
        assert target.details["device"] == "Device"
        assert target.details["engine"].startswith("c (")
        assert target.has_wire
    with open_target("loopback:python", V14) as target:
        assert target.details == {"device": "Device", "engine": "python"}
    for uri, complaint in (("loopback:x", "engine 'x'"), ("nowhere", "no target")):
        with pytest.raises(ConfigError, match=complaint), open_target(uri, V14):
            pass


def test_a_thin_run_takes_the_ends_of_a_sweep() -> None:
    seen: dict[bool, list[int]] = {}

    def body(bench: Bench) -> None:
        seen[bench._thin] = bench.sweep(range(1000))
        assert bench.sweep(iter("abc")) == list("abc")
        bench.check("INF-28", True, "nothing")

    case = Case("sweeps", "sweeps", "sweeps", ("INF-28",), frozenset(), body)
    for thin in (False, True):
        assert run_case(case, loopback("", V14), seed=1, thin=thin).verdict is Verdict.PASS
    assert seen[False] == list(range(1000))
    assert seen[True][0] == 0
    assert seen[True][-1] == 999
    assert len(seen[True]) < 20
    assert seen[True] == sorted(set(seen[True]))


def test_selection_by_case_and_clause() -> None:
    everything = select(V14.name)
    assert {case.id for case in everything} <= {case.id for case in load_cases()}
    by_clause = select(V14.name, only=["ADM-DEV-1?"])
    assert by_clause
    assert all(any(clause.startswith("ADM-DEV-1") for clause in case.clauses) for case in by_clause)
    assert {case.id for case in select(V14.name, only=["admin-*"], exclude=["admin-queue-*"])} == {
        case.id
        for case in everything
        if case.id.startswith("admin-") and not case.id.startswith("admin-queue-")
    }
    assert select(V14.name, only=["RFC-*"], exclude=["*"]) == ()
