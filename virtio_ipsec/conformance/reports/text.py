"""The texts made from a run: console lines and Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter

from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.verdict import UNDECIDED, Verdict

#: Characters that neither XML 1.0 nor HTML can hold.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Text from a device, with a mark in place of what cannot be printed."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def headline(report: Report) -> str:
    """One line that says what was tested and how it ended; the first line of every text report."""
    counts = ", ".join(f"{report.count(v)} {v.value}" for v in Verdict if report.count(v))
    is_device = report.identity.role == "device"
    wire = " (no wire: packet cases are UNSUPPORTED)" if is_device and not report.identity.wire else ""
    what = "" if is_device else f"{report.identity.role} "
    outcome = "passed" if report.passed else "FAILED"
    rest = f"; {len(report.left_out)} cases left out of the run" if report.left_out else ""
    return (
        f"{outcome}: {what}{report.identity.target}, dialect {report.identity.dialect}{wire}: "
        f"{len(report.cases)} cases, {counts} in {report.seconds:.1f} s{rest}"
    )


def badge(report: Report) -> str:
    """One line of JSON in the form that badge services read from an endpoint."""
    ran = sum(r.verdict not in UNDECIDED for r in report.cases)
    message = f"{report.count(Verdict.PASS)} of {ran} pass"
    if report.left_out:
        message += f", {len(report.left_out)} left out"
    color = "red" if not report.passed else "yellow" if report.left_out else "brightgreen"
    role = "" if report.identity.role == "device" else f"{report.identity.role} "
    label = f"virtio-net IPsec {role}{report.identity.dialect}"
    return json.dumps({"schemaVersion": 1, "label": label, "message": message, "color": color}) + "\n"


#: Verdicts that need no explanation below the totals.
GOT_OVER = frozenset({Verdict.PASS, Verdict.UNSUPPORTED, Verdict.NOT_SEEN})

#: Verdicts whose reasons are told in a list: one line each.
REMARKED = {Verdict.PASS: "Remarks", Verdict.UNSUPPORTED: "Unsupported", Verdict.NOT_SEEN: "Not seen"}

#: Of a clause whose cases were not among those that were asked for.
LEFT_OUT = "left out of the run"
#: Why no case judges a clause here, by how the clause is observed.
UNJUDGED = {
    "device": LEFT_OUT,
    "driver": "judged from a driver's trace",
    "special": "needs a special set-up",
    "none": "not observable",
}
#: The same of a clause that both sides obey, in a report on a driver.
BY_DEVICES = "judged with devices"


def unjudged(report: Report, observed: str) -> str:
    """Why no case judges a clause in this report."""
    if observed == report.identity.role:
        return LEFT_OUT
    return BY_DEVICES if observed == "device" else UNJUDGED[observed]


def coverage(report: Report) -> list[tuple[str, Counter[str]]]:
    """Per clause group: how many clauses ended with each verdict, and why no case judges the others."""
    groups: dict[str, Counter[str]] = {}
    for result in report.clauses:
        label = result.verdict.value if result.cases else unjudged(report, result.clause.observed)
        groups.setdefault(result.clause.group, Counter())[label] += 1
    return list(groups.items())


def coverage_line(report: Report) -> str:
    """One line: of how many clauses the dialect has, how many were judged, and what becomes of the rest."""
    total: Counter[str] = sum((counts for _, counts in coverage(report)), Counter())
    judged = sum(total[verdict.value] for verdict in Verdict)
    labels = dict.fromkeys(unjudged(report, observed) for observed in UNJUDGED)
    rest = ", ".join(f"{total[label]} {label}" for label in labels if total[label])
    own = sum(result.clause.group == "RFC" for result in report.clauses)
    slides = f"; {own} of them are the dialect's own, each from a slide or our choice" if own else ""
    return (
        f"{len(report.clauses)} clauses in dialect {report.identity.dialect}{slides}: {judged} judged; {rest}"
    )


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
    verdicts = [*(v.value for v in Verdict), *UNJUDGED.values(), BY_DEVICES]
    lines += [
        "## Clauses",
        "",
        "| group | " + " | ".join(verdicts) + " |",
        "|---" * (len(verdicts) + 1) + "|",
    ]
    for group, counts in coverage(report):
        cells = " | ".join(str(counts[v]) if counts[v] else "" for v in verdicts)
        lines.append(f"| {group} | {cells} |")
    notable = [r for r in report.cases if r.verdict not in GOT_OVER]
    if notable:
        lines += ["", "## Cases that did not pass", ""]
        for result in notable:
            lines += ["```text", *explain(result), "```", ""]
    for verdict, title in REMARKED.items():
        without = [r for r in report.cases if r.verdict is verdict and r.reason]
        if without:
            lines += ["", f"## {title}", "", "| case | reason |", "|---|---|"]
            lines += [f"| {r.id} | {r.reason} |" for r in without]
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
