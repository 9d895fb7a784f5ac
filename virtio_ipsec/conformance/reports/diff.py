"""What changed between two runs: between two versions of a firmware, or before and after a correction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.verdict import FATAL, GRAVITY, Verdict
from virtio_ipsec.errors import ConfigError

#: Verdicts of a statement that was looked at and does not fail the run.
JUDGED = frozenset({Verdict.PASS, Verdict.WARN})


@dataclass(frozen=True, slots=True)
class Change:
    """A case or clause whose verdict is another one; None: it was not part of that run."""

    id: str
    title: str
    before: Verdict | None
    after: Verdict | None

    @property
    def worse(self) -> bool:
        """Whether a verdict that lets a run pass became one that does not."""
        return self.after in FATAL and self.before not in FATAL

    @property
    def lost(self) -> bool:
        """Whether what passed is no longer judged: not offered any more, or not part of the later run."""
        return self.before in JUDGED and self.after in {None, Verdict.UNSUPPORTED, Verdict.SKIP}

    @property
    def better(self) -> bool:
        """The other way round."""
        return self.before in FATAL and self.after is not None and self.after not in FATAL


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs: who was tested, which case ended otherwise, which clause, and which readings changed."""

    identity: tuple[tuple[str, str, str], ...]
    cases: tuple[Change, ...]
    clauses: tuple[Change, ...]
    readings: tuple[tuple[str, str, str], ...]

    @property
    def regressed(self) -> bool:
        """Whether a case or clause fails that did not fail before, or one that passed is no longer judged: a case may
        pass with less than before."""
        return any(change.worse or change.lost for change in (*self.cases, *self.clauses))


def difference(before: Report, after: Report) -> Difference:
    """What is different in ``after``. ConfigError when one is of a device and the other of a driver."""
    if before.identity.role != after.identity.role:
        roles = f"a {before.identity.role} and a {after.identity.role}"
        raise ConfigError(f"{roles}: two reports of one kind are compared")
    return Difference(
        identity=_identity(before, after),
        cases=_changes(
            {case.id: (case.title, case.verdict) for case in before.cases},
            {case.id: (case.title, case.verdict) for case in after.cases},
        ),
        clauses=_changes(
            {c.clause.id: (c.clause.text, c.verdict) for c in before.clauses if c.cases},
            {c.clause.id: (c.clause.text, c.verdict) for c in after.clauses if c.cases},
        ),
        readings=_readings(before.cases, after.cases),
    )


def _changes(
    before: dict[str, tuple[str, Verdict]], after: dict[str, tuple[str, Verdict]]
) -> tuple[Change, ...]:
    changes = []
    for name in sorted(before.keys() | after.keys()):
        title = (after.get(name) or before[name])[0]
        first, second = (run[name][1] if name in run else None for run in (before, after))
        if first is not second:
            changes.append(Change(name, title, first, second))
    gravity = {verdict: place for place, verdict in enumerate(GRAVITY)}
    return tuple(
        sorted(
            changes, key=lambda c: (not c.worse, not c.lost, -gravity.get(c.after or Verdict.SKIP, 0), c.id)
        )
    )


def _identity(before: Report, after: Report) -> tuple[tuple[str, str, str], ...]:
    facts = []
    for report in (before, after):
        identity = report.identity
        facts.append(
            {
                "target": identity.target,
                "role": identity.role,
                "dialect": identity.dialect,
                "device features": f"{identity.features:#x}",
                "wire": str(identity.wire),
                "suite version": report.version,
                **identity.details,
            }
        )
    names = [*facts[0], *(name for name in facts[1] if name not in facts[0])]
    pairs = ((name, facts[0].get(name, "-"), facts[1].get(name, "-")) for name in names)
    return tuple(pair for pair in pairs if pair[1] != pair[2])


def _readings(before: Iterable[CaseResult], after: Iterable[CaseResult]) -> tuple[tuple[str, str, str], ...]:
    found: list[dict[str, set[str]]] = []
    for cases in (before, after):
        readings: dict[str, set[str]] = {}
        for case in cases:
            for entry, text in case.readings:
                readings.setdefault(entry, set()).add(text)
        found.append(readings)
    shown = [
        (name, *("; ".join(sorted(readings.get(name, ()))) or "-" for readings in found))
        for name in sorted(found[0].keys() | found[1].keys())
    ]
    return tuple((name, first, second) for name, first, second in shown if first != second)


def to_text(found: Difference) -> str:
    """The difference for a console."""
    lines = [f"{name}: {first} -> {second}" for name, first, second in found.identity]
    for what, changes in (("cases", found.cases), ("clauses", found.clauses)):
        if changes:
            lines += ["", f"{what} whose verdict changed:"]
            lines += [
                f"  {_mark(c)} {_name(c.before):<11} -> {_name(c.after):<11}  {c.id}  {c.title}"
                for c in changes
            ]
    if found.readings:
        lines += ["", "readings of ambiguous text that changed:"]
        lines += [f"  {name}: {first} -> {second}" for name, first, second in found.readings]
    lines += ["", _counts("cases", found.cases)]
    if found.clauses:
        lines.append(_counts("clauses", found.clauses))
    return "\n".join(lines).lstrip("\n") + "\n"


def to_json(found: Difference) -> dict[str, Any]:
    """The difference as JSON values."""
    return {
        "schema": "virtio-ipsec/report-diff/1",
        "regressed": found.regressed,
        "identity": [{"name": n, "before": b, "after": a} for n, b, a in found.identity],
        **{
            what: [
                {
                    "id": change.id,
                    "title": change.title,
                    "before": change.before and change.before.value,
                    "after": change.after and change.after.value,
                }
                for change in changes
            ]
            for what, changes in (("cases", found.cases), ("clauses", found.clauses))
        },
        "readings": [{"entry": n, "before": b, "after": a} for n, b, a in found.readings],
    }


def _counts(what: str, changes: tuple[Change, ...]) -> str:
    worse, lost, better = (sum(getattr(c, name) for c in changes) for name in ("worse", "lost", "better"))
    return f"{len(changes)} {what} changed: {worse} fail now, {lost} are no longer judged, {better} no longer fail"


def _mark(change: Change) -> str:
    return "!" if change.worse or change.lost else "+" if change.better else " "


def _name(verdict: Verdict | None) -> str:
    return verdict.value if verdict else "not run"
