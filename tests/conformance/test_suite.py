"""The whole suite on the embedded device, and that clauses and cases know each other."""

from __future__ import annotations

from collections import Counter

import pytest

from virtio_ipsec.conformance import runner
from virtio_ipsec.conformance.case import NEEDS, case, load_cases
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.wire.dialect import DIALECTS, V14

CASES = load_cases()
#: Reviewed: cases that the embedded device gives no occasion for, and why that is right.
UNSUPPORTED = {
    "admin-queue-retry-statuses": "the embedded device answers no command with EAGAIN or ENOMEM, so the promise that "
    "such an answer has no side effects has nothing to be judged on",
    "rx-coalesced": "the embedded device does not coalesce and offers no VIRTIO_NET_F_RSC_EXT",
    "rx-large-packets": "the embedded device merges nothing that it receives",
    "rx-large-tunnelled-packets": "the embedded device merges nothing that it receives",
    "rx-open-checksum": "the embedded device leaves no checksum open",
    **{
        case.id: "tests/mutants/test_pci_mutants.py runs it on the device as a PCI function"
        for case in CASES
        if "pci" in case.needs
    },
    "object-no-room": "the embedded device has room for every SA that its limits allow",
}
#: Reviewed as well: device parts need RESOURCE_OBJ_MODIFY and _QUERY, which only virtio v1.4 has.
UNSUPPORTED_IN = {
    "virtio-1.4": frozenset[str](),
    "rfc-2025-01": frozenset(
        {
            "admin-qualifier-of-parts",
            "group-member-ids",
            "member-mode-again",
            "member-reset-parts",
            "member-stopped-queues",
            "member-stopped-registers",
            "parts-device-features",
            "parts-given-back",
            "parts-lengths",
            "parts-metadata",
            "parts-objects",
            "parts-other-state",
            "parts-read",
            "parts-read-only",
            "parts-set",
        }
    ),
}


@pytest.fixture(scope="module", params=DIALECTS)
def report(request: pytest.FixtureRequest) -> Report:
    dialect = DIALECTS[request.param]
    with open_target("loopback:members=2", dialect) as target:
        # Most cases are the same in both dialects: their long sweeps are whole in one.
        return runner.run(target, runner.select(dialect.name), seed=11, thin=dialect is not V14)


def test_no_case_fails_warns_errs_or_is_skipped(report: Report) -> None:
    wrong = [
        (r.id, r.verdict, r.reason)
        for r in report.cases
        if r.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED}
    ]
    assert wrong == []
    assert report.passed


def test_what_is_unsupported_stands_in_the_reviewed_list(report: Report) -> None:
    ran = {r.id for r in report.cases}
    reviewed = (UNSUPPORTED.keys() | UNSUPPORTED_IN[report.identity.dialect]) & ran
    assert {r.id for r in report.cases if r.verdict is Verdict.UNSUPPORTED} == reviewed


def test_without_members_only_their_cases_are_unsupported_as_well() -> None:
    cases = tuple(each for each in CASES if "members" in each.needs)
    with open_target("loopback", V14) as target:
        results = runner.run(target, cases, seed=11).cases
    assert len(results) >= 10
    assert {(r.verdict, r.reason) for r in results} == {(Verdict.UNSUPPORTED, NEEDS["members"])}


def test_every_clause_that_a_case_cites_is_judged(report: Report) -> None:
    """A citation without a check would count as coverage and show nothing."""
    unjudged = [r.clause.id for r in report.clauses if r.cases and r.verdict is Verdict.SKIP]
    assert unjudged == []


def test_the_report_holds_no_key(report: Report) -> None:
    """Evidence is kept for what did not pass; none of it may show a key, so the trace is masked at its source."""
    for result in report.cases:
        for event in result.events:
            assert not any(
                "key" in line and "(secret)" not in line and "length" not in line for line in event.lines
            )


def test_every_clause_that_a_device_shows_has_a_case() -> None:
    cited = {clause for case in CASES for clause in case.clauses}
    missing = [
        clause.id for clause in load_clauses() if clause.observed == "device" and clause.id not in cited
    ]
    assert missing == []


def test_every_clause_has_a_case_or_says_how_else_it_is_observed() -> None:
    assert all(clause.how for clause in load_clauses())


def test_cases_by_group_and_level() -> None:
    """Counts for people who run this with -s; they also prove that no level and no device's group is left out."""
    cited = Counter(clause for case in CASES for clause in case.clauses)
    table: dict[str, Counter[str]] = {}
    levels: dict[str, Counter[str]] = {}
    for clause in load_clauses():
        for row in (table.setdefault(clause.group, Counter()), levels.setdefault(clause.level, Counter())):
            row["clauses"] += 1
            row["with a case"] += clause.id in cited
            row[
                f"seen at the {clause.observed}" if clause.observed in {"device", "driver"} else "not seen"
            ] += 1
        table[clause.group][clause.level] += 1
    for name, row in (*table.items(), *levels.items()):
        print(f"{name:<16} " + ", ".join(f"{what} {count}" for what, count in row.items()))
    print(f"{len(CASES)} cases")
    assert all(row["with a case"] for row in table.values() if row["seen at the device"])
    assert all(row["with a case"] for row in levels.values())


def test_a_case_says_what_is_sent_and_what_is_expected() -> None:
    """Below its title; reports and the pages of cases are made from it."""
    for each in CASES:
        assert each.doc.partition("\n")[2].strip(), each.id
        assert len(set(each.clauses)) == len(each.clauses), each.id


def test_ids_are_stable_words_and_titles_are_one_line() -> None:
    for each in CASES:
        assert each.id == each.id.lower().strip("-")
        assert each.id.replace("-", "").isalnum()
        assert 10 < len(each.title) < 160, each.id
        assert each.needs <= NEEDS.keys()


def test_a_case_must_cite_clauses_that_exist() -> None:
    def body(bench: object) -> None:
        """A title."""

    with pytest.raises(KeyError):
        case("cites-nothing-real", "NET-NONE-01")(body)
    with pytest.raises(ValueError, match="no clause"):
        case("cites-nothing")(body)
    with pytest.raises(ValueError, match="unknown needs"):
        case("needs-wings", "ADM-DEV-05", needs=("wings",))(body)
    with pytest.raises(ValueError, match="duplicate id"):
        case("sanity-start", "ADM-DEV-05")(body)
