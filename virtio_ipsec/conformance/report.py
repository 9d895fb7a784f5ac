"""The JSON report, which is the master, and the texts made from a run: Markdown and console lines."""

from __future__ import annotations

from collections import Counter
from typing import Any

from virtio_ipsec.conformance.result import CaseResult, ClauseResult, Report
from virtio_ipsec.conformance.verdict import Verdict

SCHEMA = "virtio-ipsec/report/1"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values. Holds no key or salt byte: events were masked when they were recorded."""
    identity = report.identity
    return {
        "schema": SCHEMA,
        "generator": {"name": "virtio-ipsec", "version": report.version},
        "target": {
            "name": identity.target,
            "dialect": identity.dialect,
            "wire": identity.wire,
            "device_features": f"{identity.features:#034x}",
            "details": identity.details,
        },
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
        "passed": report.passed,
        "summary": {verdict.value: report.count(verdict) for verdict in Verdict},
        "cases": [_case(result) for result in report.cases],
        "clauses": [_clause(result) for result in report.clauses],
    }


def _case(result: CaseResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "title": result.title,
        "clauses": list(result.clauses),
        "verdict": result.verdict.value,
        "reason": result.reason,
        "seconds": round(result.seconds, 4),
        "checks": [
            {"clause": c.clause, "verdict": c.verdict.value, "expected": c.expected, "seen": c.seen}
            for c in result.checks
        ],
        "readings": dict(result.readings),
        "events": [
            {"kind": event.kind, "summary": event.summary, "lines": list(event.lines)}
            for event in result.events
        ],
    }


def _clause(result: ClauseResult) -> dict[str, Any]:
    clause = result.clause
    return {
        "id": clause.id,
        "group": clause.group,
        "role": clause.role,
        "level": clause.level,
        "text": clause.text,
        "source": f"{clause.file}:{','.join(map(str, clause.lines))}" if clause.lines else clause.file,
        "verdict": result.verdict.value,
        "cases": list(result.cases),
        "reason": result.reason,
    }


def headline(report: Report) -> str:
    """One line that says what was tested and how it ended; the first line of every text report."""
    counts = ", ".join(f"{report.count(v)} {v.value}" for v in Verdict if report.count(v))
    wire = "" if report.identity.wire else " (no wire: packet cases are UNSUPPORTED)"
    outcome = "passed" if report.passed else "FAILED"
    return (
        f"{outcome}: {report.identity.target}, dialect {report.identity.dialect}{wire}: "
        f"{len(report.cases)} cases, {counts} in {report.seconds:.1f} s"
    )


def must_failures(report: Report) -> int:
    """How many cases break a MUST (FAIL), could not be judged (ERROR) or hung the device (WEDGED)."""
    return sum(report.count(v) for v in (Verdict.FAIL, Verdict.ERROR, Verdict.WEDGED))


#: Why no case judges a clause here, by how the clause is observed.
UNJUDGED = {
    "device": "no case",
    "driver": "judged from a driver's trace",
    "special": "needs a special set-up",
    "none": "not observable",
}


def coverage(report: Report) -> list[tuple[str, Counter[str]]]:
    """Per clause group: how many clauses ended with each verdict, and why no case judges the others."""
    groups: dict[str, Counter[str]] = {}
    for result in report.clauses:
        label = result.verdict.value if result.cases else UNJUDGED[result.clause.observed]
        groups.setdefault(result.clause.group, Counter())[label] += 1
    return list(groups.items())


def coverage_line(report: Report) -> str:
    """One line: of how many clauses the dialect has, how many were judged, and what becomes of the rest."""
    total: Counter[str] = sum((counts for _, counts in coverage(report)), Counter())
    judged = sum(total[verdict.value] for verdict in Verdict)
    rest = ", ".join(f"{total[label]} {label}" for label in UNJUDGED.values() if total[label])
    own = sum(result.clause.group == "RFC" for result in report.clauses)
    slides = f"; {own} of them are the dialect's own, each from a slide or our choice" if own else ""
    return f"{len(report.clauses)} clauses in dialect {report.identity.dialect}{slides}: {judged} judged; {rest}"


def explain(result: CaseResult) -> list[str]:
    """The lines that explain a case which did not pass: checks that failed, then the evidence."""
    lines = [f"{result.verdict.value} {result.id}: {result.title}"]
    if result.reason:
        lines.append(f"  reason: {result.reason}")
    for check in result.checks:
        if check.verdict is not Verdict.PASS:
            lines += [f"  {check.clause}: expected {check.expected}", f"    seen {check.seen}"]
    for event in result.events:
        lines.append(f"  [{event.kind}] {event.summary}")
        lines += [f"      {line}" for line in event.lines]
    return lines


def to_markdown(report: Report) -> str:
    """A summary for a merge request or a job page."""
    lines = ["# virtio-net IPsec conformance", "", headline(report), "", coverage_line(report), ""]
    verdicts = [*(v.value for v in Verdict), *UNJUDGED.values()]
    lines += [
        "## Clauses",
        "",
        "| group | " + " | ".join(verdicts) + " |",
        "|---" * (len(verdicts) + 1) + "|",
    ]
    for group, counts in coverage(report):
        cells = " | ".join(str(counts[v]) if counts[v] else "" for v in verdicts)
        lines.append(f"| {group} | {cells} |")
    notable = [r for r in report.cases if r.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED}]
    if notable:
        lines += ["", "## Cases that did not pass", ""]
        for result in notable:
            lines += ["```text", *explain(result), "```", ""]
    unsupported = [r for r in report.cases if r.verdict is Verdict.UNSUPPORTED]
    if unsupported:
        lines += ["", "## Unsupported", "", "| case | reason |", "|---|---|"]
        lines += [f"| {r.id} | {r.reason} |" for r in unsupported]
    readings = sorted({reading for r in report.cases for reading in r.readings})
    if readings:
        lines += [
            "",
            "## Readings of ambiguous text that the device follows",
            "",
            "| ledger | reading |",
            "|---|---|",
        ]
        lines += [f"| {entry} | {text} |" for entry, text in readings]
    return "\n".join(lines) + "\n"
