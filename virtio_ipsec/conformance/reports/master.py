"""The JSON report: the master that every other format is made from, now or later (`spec/report.schema.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virtio_ipsec.conformance.result import (
    CaseResult,
    Check,
    ClauseResult,
    Deviation,
    Identity,
    Report,
)
from virtio_ipsec.conformance.trace import Event
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.specification import Clause

SCHEMA = "virtio-ipsec/report/3"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values. Holds no key or salt byte: events were masked when they were recorded."""
    identity = report.identity
    return {
        "schema": SCHEMA,
        "generator": {"name": "virtio-ipsec", "version": report.version},
        "target": {
            "name": identity.target,
            "role": identity.role,
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
        "deviations": [
            {"names": deviation.names, "reason": deviation.reason, "seen": deviation.seen}
            for deviation in report.deviations
        ],
        "left_out": list(report.left_out),
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
        "section": clause.section,
        "role": clause.role,
        "level": clause.level,
        "text": clause.text,
        "file": clause.file,
        "lines": list(clause.lines),
        "observed": clause.observed,
        "ambiguities": list(clause.ambiguities),
        "verdict": result.verdict.value,
        "cases": list(result.cases),
        "reason": result.reason,
    }


def from_json(data: Any) -> Report:
    """The report that :func:`to_json` made these values of. ConfigError for anything else, naming the place."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema", "no schema") if isinstance(data, dict) else "no object"
        raise ConfigError(f"not a report of this version: {str(found)[:40]!r} instead of {SCHEMA!r}")
    try:
        target = data["target"]
        return Report(
            identity=Identity(
                target=str(target["name"]),
                dialect=str(target["dialect"]),
                wire=bool(target["wire"]),
                features=int(target["device_features"], 16),
                role=str(target.get("role", "device")),
                details={str(name): str(text) for name, text in target["details"].items()},
            ),
            version=str(data["generator"]["version"]),
            seed=int(data["seed"]),
            cases=tuple(_case_of(case) for case in data["cases"]),
            clauses=tuple(_clause_of(clause, str(target["dialect"])) for clause in data["clauses"]),
            seconds=float(data["seconds"]),
            deviations=tuple(
                Deviation(str(d["names"]), str(d["reason"]), bool(d["seen"])) for d in data["deviations"]
            ),
            left_out=tuple(map(str, data["left_out"])),
        )
    except KeyError as error:
        raise ConfigError(f"the report lacks {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the report holds what it cannot: {error}") from None


def _case_of(case: dict[str, Any]) -> CaseResult:
    return CaseResult(
        id=str(case["id"]),
        title=str(case["title"]),
        clauses=tuple(map(str, case["clauses"])),
        verdict=Verdict(case["verdict"]),
        checks=tuple(
            Check(str(c["clause"]), Verdict(c["verdict"]), str(c["expected"]), str(c["seen"]))
            for c in case["checks"]
        ),
        reason=str(case["reason"]),
        readings=tuple(sorted((str(entry), str(text)) for entry, text in case["readings"].items())),
        events=tuple(
            Event(str(e["kind"]), str(e["summary"]), tuple(map(str, e["lines"]))) for e in case["events"]
        ),
        seconds=float(case["seconds"]),
    )


def _clause_of(clause: dict[str, Any], dialect: str) -> ClauseResult:
    level = str(clause["level"])
    return ClauseResult(
        clause=Clause(
            id=str(clause["id"]),
            group=str(clause["group"]),
            section=str(clause["section"]),
            file=str(clause["file"]),
            lines=tuple(map(int, clause["lines"])),
            role=str(clause["role"]),
            level=level,
            levels=(level,),
            text=str(clause["text"]),
            hash=None,
            sentences=(),
            observed=str(clause["observed"]),
            how=str(clause["reason"]),
            dialects=(dialect,),
            ambiguities=tuple(map(str, clause["ambiguities"])),
        ),
        verdict=Verdict(clause["verdict"]),
        cases=tuple(map(str, clause["cases"])),
        reason=str(clause["reason"]),
    )


def read(path: Path) -> Report:
    """The report in a file. ConfigError when there is none."""
    try:
        return from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
