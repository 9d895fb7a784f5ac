"""One self-contained HTML page: everything in the report, to read on a screen, on a phone and on paper.

All of it is there without a script; the script adds search and filters. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files

from virtio_ipsec.conformance.reports.text import (
    BY_DEVICES,
    GOT_OVER,
    UNJUDGED,
    coverage,
    coverage_line,
    headline,
    printable,
    unjudged,
)
from virtio_ipsec.conformance.result import CaseResult, Check, ClauseResult, Report
from virtio_ipsec.conformance.verdict import GRAVITY, Verdict

#: Verdicts from the gravest down, as bars and filters show them; then what no case judges.
ORDER = (*reversed(GRAVITY), *UNJUDGED.values(), BY_DEVICES)
_MARKS = {
    "PASS": "\N{CHECK MARK}",
    "WARN": "!",
    "FAIL": "\N{MULTIPLICATION X}",
    "ERROR": "\N{MULTIPLICATION X}",
    "WEDGED": "\N{MULTIPLICATION X}",
}


def to_html(report: Report) -> str:
    """The page. Text from the device is escaped; a content security policy forbids every request."""
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
        f"<title>{escape(headline(report))}</title>",
        f"<style>{_asset('page.css')}</style></head><body>",
        *_header(report),
        *_notable(report),
        *_totals(report),
        *_readings(report),
        *_filters(report),
        '<main><section id="clauses"><h2>Clauses</h2>',
        *_tree(report),
        '</section><section id="cases"><h2>Cases</h2>',
        *(line for result in sorted(report.cases, key=_gravity) for line in _case(report, result)),
        "</section></main>",
        f"<script>{_asset('page.js')}</script></body></html>\n",
    ]
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text as it may stand in the page and in a quoted attribute."""
    return html.escape(printable(text))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _gravity(result: CaseResult) -> tuple[int, str]:
    return -GRAVITY.index(result.verdict), result.id


def _badge(label: str) -> str:
    return f'<b class="v {_css(label)}">{_MARKS.get(label, "")} {escape(label)}</b>'


def _css(label: str) -> str:
    return label if label in Verdict.__members__ else "UNJUDGED"


def _label(report: Report, result: ClauseResult) -> str:
    return result.verdict.value if result.cases else unjudged(report, result.clause.observed)


def _header(report: Report) -> Iterator[str]:
    identity = report.identity
    state = "PASS" if report.passed else "FAIL"
    yield f'<header class="{state}"><p>virtio-net IPsec conformance: {escape(identity.role)}</p>'
    yield f"<h1>{_MARKS[state]} {'Passed' if report.passed else 'Failed'}: {escape(identity.target)}</h1>"
    yield f"<p>{escape(headline(report))}</p></header>"
    facts = {
        "target": identity.target,
        **identity.details,
        "dialect": identity.dialect,
        "device features": f"{identity.features:#x}",
        **(_run_facts(report) if identity.role == "device" else {}),
        "suite": f"virtio-ipsec {report.version}",
    }
    yield '<table class="facts">'
    yield from (f"<tr><th>{escape(name)}<td>{escape(text)}" for name, text in facts.items())
    yield "</table>"


def _run_facts(report: Report) -> dict[str, str]:
    wire = "yes" if report.identity.wire else "no: packet cases are UNSUPPORTED"
    return {"wire": wire, "seed": str(report.seed)}


def _notable(report: Report) -> Iterator[str]:
    notable = [c for c in report.cases if c.verdict not in GOT_OVER]
    if notable:
        yield "<section><h2>What did not pass</h2><ul>"
        for case in sorted(notable, key=_gravity):
            yield f'<li>{_badge(case.verdict.value)} <a href="#case-{escape(case.id)}">{escape(case.id)}</a>'
            yield f"{escape(case.title)} <small>{escape(', '.join(case.clauses))}</small>"
        yield "</ul></section>"


def _totals(report: Report) -> Iterator[str]:
    yield '<section id="totals"><h2>Totals</h2>'
    cases = Counter(case.verdict.value for case in report.cases)
    yield f"<p>{len(report.cases)} cases</p>{_bar(cases)}"
    yield f"<p>{escape(coverage_line(report))}</p>"
    yield "<table><thead><tr><th>group<th>number<th>verdicts of clauses</thead>"
    for group, counts in coverage(report):
        yield f'<tr><th>{escape(group)}<td>{sum(counts.values())}<td class="wide">{_bar(counts)}'
    yield "</table>"
    yield "<h3>By level</h3><table><thead><tr><th>level<th>number<th>verdicts of clauses</thead>"
    levels: dict[str, Counter[str]] = {}
    for result in report.clauses:
        levels.setdefault(result.clause.level, Counter())[_label(report, result)] += 1
    for level, counts in sorted(levels.items()):
        yield f'<tr><th>{escape(level)}<td>{sum(counts.values())}<td class="wide">{_bar(counts)}'
    yield "</table></section>"


def _bar(counts: Counter[str]) -> str:
    shown = [(label, counts[label]) for label in ORDER if counts[label]]
    segments = "".join(f'<i class="{_css(label)}" style="flex:{count}"></i>' for label, count in shown)
    words = ", ".join(f"{count}&nbsp;{escape(label)}" for label, count in shown)
    return f'<div class="bar" aria-hidden="true">{segments}</div><small>{words}</small>'


def _readings(report: Report) -> Iterator[str]:
    readings = sorted({reading for case in report.cases for reading in case.readings})
    if readings:
        yield "<section><h2>Readings of ambiguous text that the device follows</h2>"
        yield "<p>Entries of the ambiguity ledger; each is admitted.</p><table>"
        yield from (f"<tr><th>{escape(entry)}<td>{escape(text)}" for entry, text in readings)
        yield "</table></section>"
    if report.deviations:
        yield "<section><h2>Declared deviations</h2><p>They change no verdict.</p><table>"
        for deviation in report.deviations:
            seen = "" if deviation.seen else " <em>(not found in this run)</em>"
            yield f"<tr><th>{escape(deviation.names)}<td>{escape(deviation.reason)}{seen}"
        yield "</table></section>"


def _filters(report: Report) -> Iterator[str]:
    labels = {case.verdict.value for case in report.cases} | {_label(report, c) for c in report.clauses}
    yield '<form id="filters" hidden><input id="search" type="search" placeholder="Search ids, texts, evidence"'
    yield ' aria-label="Search"><span>'
    for label in ORDER:
        if label in labels:
            yield f'<label class="{_css(label)}"><input type="checkbox" checked value="{escape(label)}">'
            yield f"{escape(label)}</label>"
    yield '</span><select id="level" aria-label="Level"><option value="">every level'
    yield from (f"<option>{escape(level)}" for level in sorted({c.clause.level for c in report.clauses}))
    yield '</select><output id="shown"></output></form>'


@dataclass
class _Node:
    """A section: its clauses, and the sections below."""

    clauses: list[ClauseResult] = field(default_factory=list)
    below: dict[str, _Node] = field(default_factory=dict)

    def all(self) -> Iterator[ClauseResult]:
        yield from self.clauses
        for node in self.below.values():
            yield from node.all()


def _tree(report: Report) -> Iterator[str]:
    root = _Node()
    for result in report.clauses:
        node = root
        for name in result.clause.section.split(" / "):
            node = node.below.setdefault(name, _Node())
        node.clauses.append(result)
    for name, node in root.below.items():
        yield from _section(report, name, node)


def _section(report: Report, name: str, node: _Node) -> Iterator[str]:
    while not node.clauses and len(node.below) == 1:  # a heading with nothing but one heading below
        ((below, node),) = node.below.items()
        name = f"{name} / {below}"
    counts = Counter(_label(report, each) for each in node.all())
    is_open = " open" if any(counts[v.value] for v in (Verdict.FAIL, Verdict.ERROR, Verdict.WEDGED)) else ""
    yield f'<details class="section"{is_open}><summary>{escape(name)}{_bar(counts)}</summary>'
    for result in node.clauses:
        yield from _clause(report, result)
    for below, child in node.below.items():
        yield from _section(report, below, child)
    yield "</details>"


def _clause(report: Report, result: ClauseResult) -> Iterator[str]:
    clause, label = result.clause, _label(report, result)
    lines = f":{','.join(map(str, clause.lines))}" if clause.lines else ""
    yield f'<article id="{escape(clause.id)}" data-verdict="{escape(label)}" data-level="{escape(clause.level)}">'
    yield f"<h3>{_badge(label)} {escape(clause.id)} <small>{escape(clause.level)}, {escape(clause.role)}</small></h3>"
    yield f"<p>{escape(clause.text)}</p>"
    notes = [f"source {escape(clause.file + lines)}"] if clause.file else []
    if clause.ambiguities:
        notes.append(f"ledger {escape(', '.join(clause.ambiguities))}")
    if result.cases:
        links = ", ".join(f'<a href="#case-{escape(case)}">{escape(case)}</a>' for case in result.cases)
        notes.append(f"cases {links}")
    elif result.reason:
        notes.append(escape(result.reason))
    yield f"<p><small>{'; '.join(notes)}</small></p>"
    if (deviation := report.deviation(clause.id)) is not None:
        yield f'<p class="deviation">Declared deviation: {escape(deviation.reason)}</p>'
    yield "</article>"


def _case(report: Report, result: CaseResult) -> Iterator[str]:
    verdict = result.verdict.value
    is_open = " open" if result.verdict not in GOT_OVER else ""
    yield f'<details class="case" id="case-{escape(result.id)}" data-verdict="{verdict}"{is_open}>'
    yield f"<summary>{_badge(verdict)} <code>{escape(result.id)}</code> {escape(result.title)}</summary>"
    links = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in result.clauses)
    yield f"<p>Judges {links}. <small>{result.seconds * 1000:.0f} ms</small></p>"
    if result.reason:
        yield f"<p>Reason: {escape(result.reason)}</p>"
    if (deviation := report.deviation_of(result)) is not None:
        yield f'<p class="deviation">Declared deviation: {escape(deviation.reason)}</p>'
    yield from _checks(result.checks)
    if result.readings:
        readings = "; ".join(f"{entry}: {text}" for entry, text in result.readings)
        yield f"<p>Readings followed: {escape(readings)}</p>"
    if result.events:
        yield "<h4>Evidence: the last exchanges, oldest first</h4>"
    for event in result.events:
        yield f'<div class="event {escape(event.kind)}"><p><b>{escape(event.kind)}</b> {escape(event.summary)}</p>'
        if event.lines:
            yield f"<pre>{''.join(map(_line, event.lines))}</pre>"
        yield "</div>"
    yield "</details>"


def _checks(checks: Iterable[Check]) -> Iterator[str]:
    """What was demanded: broken demands each, kept ones once with how often they were looked at."""
    kept: Counter[tuple[str, str]] = Counter()
    yield '<table class="checks"><thead><tr><th>verdict<th>clause<th>expected<th>seen</thead>'
    for check in checks:
        if check.verdict is Verdict.PASS:
            kept[check.clause, check.expected] += 1
        else:
            yield f"<tr><td>{_badge(check.verdict.value)}<td>{escape(check.clause)}<td>{escape(check.expected)}"
            yield f"<td><code>{escape(check.seen)}</code>"
    for (clause, expected), times in kept.items():
        often = f"as expected, {times} times" if times > 1 else "as expected"
        yield f"<tr><td>{_badge('PASS')}<td>{escape(clause)}<td>{escape(expected)}<td>{often}"
    yield "</table>"


def _line(text: str) -> str:
    kind = {">": "sent", "<": "came", "-": "wanted", "+": "found"}.get(text[:1], "")
    return f'<span class="{kind}">{escape(text)}\n</span>' if kind else escape(text) + "\n"
