"""Every text made from a run: the JSON master, Markdown, console lines; and what they say when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance import runner
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.reports.master import SCHEMA, to_json
from virtio_ipsec.conformance.reports.text import coverage, explain, headline, to_markdown
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.conformance.verdict import Unsupported, Verdict, Wedged
from virtio_ipsec.wire.dialect import V14


def make(name: str, body: object, clause: str = "ADM-DEV-05") -> Case:
    assert callable(body)
    return Case(name, f"Title of {name}", "doc", (clause,), frozenset(), body)


def holds(bench: Bench) -> None:
    bench.start()
    bench.reading("E99", "the second reading")
    bench.check("ADM-DEV-05", bench.admin.list_query().ok, "status OK")


def breaks(bench: Bench) -> None:
    bench.start()
    reply = bench.admin.list_query()
    bench.check("ADM-DEV-05", not reply.ok, "something impossible", reply)


def advises(bench: Bench) -> None:
    bench.check("NET-FEAT-01", False, "advice followed", "advice ignored")


def stops(bench: Bench) -> None:
    bench.require("ADM-DEV-05", False, "a precondition", "none")
    raise AssertionError("not reached")


def lacks(bench: Bench) -> None:
    raise Unsupported("the device has no wings")


def hangs(bench: Bench) -> None:
    raise Wedged("no answer: anything")


def crashes(bench: Bench) -> None:
    raise ZeroDivisionError("a defect of the case")


def forgets(bench: Bench) -> None:
    bench.start()


BODIES = {
    "holds": (holds, Verdict.PASS),
    "breaks": (breaks, Verdict.FAIL),
    "stops": (stops, Verdict.FAIL),
    "lacks": (lacks, Verdict.UNSUPPORTED),
    "hangs": (hangs, Verdict.WEDGED),
    "crashes": (crashes, Verdict.ERROR),
    "forgets": (forgets, Verdict.ERROR),
}


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    cases = (
        *(make(name, body) for name, (body, _) in BODIES.items()),
        make("advises", advises, "NET-FEAT-01"),
    )
    with open_target("loopback", V14) as target:
        yield runner.run(target, cases, seed=3)


def test_each_way_to_end_has_its_verdict(report: Report) -> None:
    found = {result.id: result.verdict for result in report.cases}
    assert found == {name: verdict for name, (_, verdict) in BODIES.items()} | {"advises": Verdict.WARN}
    assert not report.passed


def test_a_clause_is_as_bad_as_its_worst_case_and_a_should_is_a_warning(report: Report) -> None:
    verdicts = {result.clause.id: result.verdict for result in report.clauses}
    assert verdicts["ADM-DEV-05"] is Verdict.WEDGED
    assert verdicts["NET-FEAT-01"] is Verdict.WARN


def test_the_json_report_is_json_and_complete(report: Report) -> None:
    document = json.loads(json.dumps(to_json(report)))
    assert document["schema"] == SCHEMA
    assert document["passed"] is False
    assert document["summary"]["FAIL"] == 2
    assert sum(document["summary"].values()) == len(document["cases"]) == 8
    broken = next(case for case in document["cases"] if case["id"] == "breaks")
    assert broken["checks"][0]["seen"] == "OK (0)/Q_OK"
    assert any("LIST_QUERY" in event["summary"] for event in broken["events"])
    assert len(document["clauses"]) == len(report.clauses)
    unjudged = [clause for clause in document["clauses"] if not clause["cases"]]
    assert all(clause["reason"] for clause in unjudged)


def test_the_markdown_summary_names_what_did_not_pass(report: Report) -> None:
    text = to_markdown(report)
    assert headline(report) in text
    for word in ("breaks", "advises", "the device has no wings", "E99", "the second reading"):
        assert word in text


def test_the_explanation_shows_expectation_observation_and_evidence(report: Report) -> None:
    broken = next(result for result in report.cases if result.id == "breaks")
    text = "\n".join(explain(broken))
    assert "expected something impossible" in text
    assert "[admin] LIST_QUERY" in text


def test_unjudged_clauses_say_why(report: Report) -> None:
    counts = dict(coverage(report))
    assert counts["ADM-DRV"]["judged from a driver's trace"] == 9
    assert counts["CRY-OPS"] == {"not observable": 4}


def test_json_on_standard_output_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--only", "sanity*", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["conformance", "--only", "sanity*", "--list", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "sanity-start"


def test_an_empty_selection_and_an_unknown_target_are_usage_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["conformance", "--only", "nothing-*"]) == 2
    assert main(["conformance", "--device", "toaster"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "no case matches" in lines[0]
    assert "no target is called 'toaster'" in lines[1]
