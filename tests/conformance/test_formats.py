"""The formats made from a report: read back by their schemas and by foreign parsers, with hostile text in them."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import jsonschema
import pytest

from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance.case import load_cases
from virtio_ipsec.conformance.hexdiff import hex_diff
from virtio_ipsec.conformance.monitor.judge import load_judges
from virtio_ipsec.conformance.reports import diff, master
from virtio_ipsec.conformance.reports.junit import to_junit
from virtio_ipsec.conformance.reports.page import to_html
from virtio_ipsec.conformance.reports.text import badge, coverage_line, headline
from virtio_ipsec.conformance.result import CaseResult, Check, Deviation, Identity, Report
from virtio_ipsec.conformance.runner import report_of, select
from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import ConfigError

HOSTILE = '</script><script>alert(1)</script> "quoted" & \x00\x1b[31m \ud800'


def result(name: str, verdict: Verdict, *, text: str = "as it should not be") -> CaseResult:
    checks = (
        ()
        if verdict in {Verdict.UNSUPPORTED, Verdict.WEDGED}
        else (
            Check("ADM-DEV-05", Verdict.PASS, "a good thing", "as expected"),
            Check("ADM-DEV-05", verdict, f"expected of {name}", text),
        )
    )
    return CaseResult(
        id=name,
        title=f"Title of {name}",
        clauses=("ADM-DEV-05",),
        verdict=verdict,
        checks=checks,
        reason="" if checks else f"reason of {name}",
        readings=(("E02", "17"),),
        events=(Event("admin", text, (f"> {text}", "<    0 status")),),
        seconds=0.25,
    )


@pytest.fixture
def report() -> Report:
    cases = [result(f"case-{v.value.lower().replace(' ', '-')}", v) for v in Verdict]
    cases.append(result("case-hostile", Verdict.FAIL, text=HOSTILE))
    identity = Identity("loopback", "virtio-1.4", True, 1 << 70 | 3, {"vendor": HOSTILE})
    declared = (Deviation("case-fail", "a known <defect>"), Deviation("case-pass", "long mended"))
    return report_of(identity, cases, seed=7, seconds=1.5, deviations=declared)


def test_the_master_obeys_its_published_schema_and_comes_back_whole(report: Report) -> None:
    schema = json.loads((Path(__file__).parents[2] / "spec/report.schema.json").read_text())
    document = json.loads(json.dumps(master.to_json(report)))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    again = master.from_json(document)
    assert master.to_json(again) == document
    assert again.cases == report.cases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "virtio-ipsec/report/1"}, "not a report of this version"),
        ({"cases": [{}]}, "lacks 'id'"),
        ({"seconds": "long"}, "could not convert"),
        ({"target": None}, "holds what it cannot"),
        ({"clauses": 5}, "holds what it cannot"),
    ],
)
def test_a_broken_report_is_refused_with_the_reason(
    report: Report, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        master.from_json(master.to_json(report) | change)


#: What the xUnit schema of Jenkins (junit-10.xsd) lets stand below an element, and which attributes it may have.
JUNIT_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out", "system-err"},
    "properties": {"property"},
    "property": set(),
    "testcase": {"skipped", "error", "failure", "system-out", "system-err"},
    "failure": set(),
    "error": set(),
    "skipped": set(),
    "system-out": set(),
}
JUNIT_ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": {
        "name",
        "tests",
        "failures",
        "errors",
        "time",
        "disabled",
        "skipped",
        "timestamp",
        "hostname",
        "id",
    },
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "assertions", "time", "timestamp", "classname", "status", "class", "file", "line"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set(),
}


def test_junit_has_the_structure_that_build_servers_read(report: Report) -> None:
    root = Xml.fromstring(to_junit(report))  # noqa: S314 (our own)
    assert root.tag == "testsuites"
    for element in root.iter():
        assert {child.tag for child in element} <= JUNIT_CHILDREN[element.tag]
        assert set(element.attrib) <= JUNIT_ATTRIBUTES[element.tag]
    for suite in root.iter("testsuite"):
        assert {"name", "tests", "failures", "errors"} <= set(suite.attrib)
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("9", "2", "2")
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases == {
        "case-pass": [],
        "case-warn": ["system-out"],
        "case-fail": ["failure"],
        "case-hostile": ["failure"],
        "case-unsupported": ["skipped"],
        "case-not-seen": ["skipped"],
        "case-skip": ["skipped"],
        "case-error": ["error"],
        "case-wedged": ["error"],
    }
    failed = next(case for case in root.iter("testcase") if case.get("name") == "case-fail")
    assert "declared deviation: a known <defect>" in (failed[0].text or "")
    assert failed[0].get("message") == "ADM-DEV-05: expected expected of case-fail"


class Page(HTMLParser):
    """What a foreign parser finds in the page."""

    VOID = frozenset({"meta", "input"})
    #: Elements whose end tag may be left out.
    LOOSE = frozenset({"td", "th", "tr", "li", "option", "p"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name in values if name in {"src", "srcset", "data", "action"}]
        assert not any(name.startswith("on") for name in values)
        if (name := values.get("id")) is not None:
            assert name not in self.ids
            self.ids.add(name)
        if tag == "a":
            self.links.add(values["href"] or "")
        if tag not in self.VOID | self.LOOSE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.LOOSE:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_loads_nothing_and_its_links_lead_somewhere(report: Report) -> None:
    page = Page()
    text = to_html(report)
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert {"link", "img", "iframe"}.isdisjoint(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= page.ids
    assert {f"case-{case.id}" for case in report.cases} <= page.ids
    assert {clause.clause.id for clause in report.clauses} <= page.ids
    for words in ("a known &lt;defect&gt;", "not found in this run", "reason of case-wedged", "as expected"):
        assert words in text


def test_a_badge_counts_what_ran(report: Report) -> None:
    assert json.loads(badge(replace(report, left_out=()))) == {
        "schemaVersion": 1,
        "label": "virtio-net IPsec virtio-1.4",
        "message": "1 of 6 pass",
        "color": "red",
    }


def test_a_difference_names_regressions_first(report: Report) -> None:
    cases = [
        replace(case, verdict=Verdict.FAIL) if case.id == "case-pass" else case
        for case in report.cases
        if case.id != "case-skip"
    ]
    cases = [replace(c, verdict=Verdict.PASS, readings=()) if c.id == "case-wedged" else c for c in cases]
    details = {"vendor": "another"}
    after = replace(report, cases=tuple(cases), identity=replace(report.identity, details=details))
    found = diff.difference(report, after)
    assert [(change.id, change.worse, change.better) for change in found.cases] == [
        ("case-pass", True, False),
        ("case-skip", False, False),
        ("case-wedged", False, True),
    ]
    assert found.regressed
    assert [name for name, _, _ in found.identity] == ["vendor"]
    assert diff.difference(report, report) == diff.Difference((), (), (), ())
    text = diff.to_text(found)
    assert "! PASS        -> FAIL         case-pass" in text
    assert "+ WEDGED      -> PASS         case-wedged" in text
    assert "3 cases changed: 1 fail now, 0 are no longer judged, 1 no longer fail" in text
    assert json.loads(json.dumps(diff.to_json(found)))["cases"][1]["after"] is None


def test_what_passed_and_is_not_judged_any_more_is_a_regression(report: Report) -> None:
    """A firmware that stops offering what failed would look better than one that mends it."""
    for after in (
        replace(report, cases=tuple(case for case in report.cases if case.id != "case-pass")),
        replace(
            report,
            cases=tuple(
                replace(case, verdict=Verdict.UNSUPPORTED) if case.id == "case-pass" else case
                for case in report.cases
            ),
        ),
    ):
        found = diff.difference(report, after)
        assert found.regressed
        assert "1 cases changed: 0 fail now, 1 are no longer judged" in diff.to_text(found)
        assert not diff.difference(after, report).regressed


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.UNSUPPORTED, Verdict.SKIP])
def test_a_clause_that_is_lost_inside_a_case_that_passes_is_a_regression(
    report: Report, verdict: Verdict
) -> None:
    judged = next(c for c in report.clauses if c.cases)
    first, second = (
        replace(
            report, clauses=tuple(replace(c, verdict=v) for c in report.clauses if c.clause is judged.clause)
        )
        for v in (Verdict.PASS, verdict)
    )
    found = diff.difference(first, second)
    assert found.regressed
    assert not found.cases
    counted = "1 fail now, 0 are no" if verdict is Verdict.FAIL else "0 fail now, 1 are no"
    assert f"1 clauses changed: {counted} longer judged" in diff.to_text(found)
    assert not diff.difference(second, first).regressed


def test_what_was_left_out_of_a_run_shows_in_its_headline(report: Report) -> None:
    """A MUST is not hidden by leaving its case out."""
    asked = {case.id for case in report.cases}
    assert {case.id for case in select("virtio-1.4")} - asked == set(report.left_out) != set()
    assert headline(report).endswith(f" in 1.5 s; {len(report.left_out)} cases left out of the run")
    assert json.loads(badge(report))["message"].endswith(f" pass, {len(report.left_out)} left out")
    out = sum(not c.cases and c.clause.observed == "device" for c in report.clauses)
    assert f"{out} left out of the run" in coverage_line(report)
    whole = replace(report, left_out=())
    assert headline(whole).endswith(" in 1.5 s")
    assert "left out" not in badge(whole)


@pytest.mark.parametrize(("passed", "left_out", "color"), [
    (True, (), "brightgreen"), (True, ("a",), "yellow"), (False, (), "red"), (False, ("a",), "red"),
])  # fmt: skip
def test_a_badge_is_bright_only_for_a_whole_run_that_passed(
    report: Report, passed: bool, left_out: tuple[str, ...], color: str
) -> None:
    case = result("case-fine", Verdict.PASS if passed else Verdict.FAIL)
    shown = badge(replace(report, cases=(case,), left_out=left_out))
    assert json.loads(shown)["color"] == color


def test_a_deviation_explains_nothing_but_what_it_names(report: Report) -> None:
    """A case that cites the declared clause and fails in another one is not told to be explained."""
    declared = replace(report, deviations=(Deviation("CAP-DEV-05", "no groups"),))
    cites = ("ADM-DEV-05", "CAP-DEV-05")
    other = replace(result("case-other", Verdict.FAIL), clauses=cites)
    same = replace(other, checks=(Check("CAP-DEV-05", Verdict.FAIL, "EINVAL", "OK"),))
    hung = replace(result("case-hung", Verdict.WEDGED), clauses=cites)
    fine = replace(result("case-fine", Verdict.PASS), clauses=cites)
    assert [declared.deviation_of(case) is not None for case in (other, same, hung, fine)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_device_is_not_compared_with_a_driver(report: Report) -> None:
    other = replace(report, identity=replace(report.identity, role="driver"))
    with pytest.raises(ConfigError, match="a device and a driver"):
        diff.difference(report, other)


def test_the_command_line_shows_and_compares_reports(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, page = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "page.html"
    first.write_text(json.dumps(master.to_json(report)))
    good = replace(report, cases=tuple(replace(c, verdict=Verdict.PASS) for c in report.cases))
    second.write_text(json.dumps(master.to_json(good)))
    assert main(["conformance", "show", str(first), "--html", str(page)]) == 1
    assert page.read_text() == to_html(report)
    assert "declared deviation: a known <defect>" in capsys.readouterr().out
    assert main(["conformance", "show", str(second), "--junit", "-"]) == 0
    assert capsys.readouterr().out == to_junit(good)
    assert main(["conformance", "diff", str(first), str(second)]) == 0
    assert "0 fail now, 0 are no longer judged, 4 no longer fail" in capsys.readouterr().out
    assert main(["conformance", "diff", str(second), str(first), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["regressed"]
    assert main(["conformance", "show", str(tmp_path / "none.json")]) == 2
    assert main(["conformance", "show", str(page)]) == 2
    assert main(["conformance", "show", str(first), "--html", "-", "--junit", "-"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [("No such file" in line, "not JSON" in line, "only one" in line) for line in errors] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_a_difference_of_octets_is_shown_where_it_is() -> None:
    wanted = bytes(range(64))
    found = wanted[:20] + b"\xff" + wanted[21:] + b"!"
    assert hex_diff(wanted, found) == (
        "64 octets wanted, 65 found",
        "  0000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f",
        "- 0010  10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f",
        "+ 0010  10 11 12 13 ff 15 16 17 18 19 1a 1b 1c 1d 1e 1f",
        "                    ^^",
        "  0020  20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f",
        "  0030  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f",
        "- 0040  ",
        "+ 0040  21",
        "        ^^",
    )
    assert hex_diff(bytes(1024), b"\1" * 1024, most=2)[-1] == "  and 62 more rows of 16 octets differ"
    assert hex_diff(b"", b"x")[0] == "0 octets wanted, 1 found"


def test_every_case_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages"
    assert main(["conformance", "explain", "--out", str(pages)]) == 0
    names = {case.id for case in (*load_cases(), *load_judges())}
    assert {path.stem for path in pages.iterdir()} == names | {"README"}
    assert all(f"({name}.md)" in (pages / "README.md").read_text() for name in names)
    capsys.readouterr()
    assert main(["conformance", "explain", "INF-23"]) == 0
    text = capsys.readouterr().out
    assert "# ipsec-option-dscp" in text
    assert "**INF-23** (INFO, device; " in text
    assert "no wire" in text
    assert main(["conformance", "explain", "NET-TX-DRV-20"]) == 0
    text = capsys.readouterr().out
    assert "# driver-net-tx-drv-20" in text
    assert "NOT SEEN unless\n\n- a checksum request was made" in text
    assert main(["conformance", "explain", "no-such-case"]) == 2
    assert main(["conformance", "explain"]) == 2
