"""JUnit XML, as build servers read it: one test suite for each group of clauses, one test case for each case.

The dialect is that of the Jenkins xUnit schema (junit-10.xsd): ``failure`` for a broken MUST, ``error`` for what could
not be judged or hung, ``skipped`` for what the device does not have. A SHOULD that does not hold is no failure; it
stands in ``system-out``.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as Xml

from virtio_ipsec.conformance.reports.text import explain, printable
from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.verdict import Verdict

#: The element that says how a case ended, where it did not pass.
ELEMENTS = {
    Verdict.FAIL: "failure",
    Verdict.ERROR: "error",
    Verdict.WEDGED: "error",
    Verdict.UNSUPPORTED: "skipped",
    Verdict.SKIP: "skipped",
    Verdict.NOT_SEEN: "skipped",
}


def to_junit(report: Report) -> str:
    """The run as an XML document."""
    root = Xml.Element("testsuites", name="virtio-ipsec conformance", time=f"{report.seconds:.3f}")
    _count(root, report.cases, skipped=False)
    groups: dict[str, list[CaseResult]] = {}
    of_clause = {result.clause.id: result.clause.group for result in report.clauses}
    for case in report.cases:
        group = of_clause.get(case.clauses[0], "other") if case.clauses else "other"
        groups.setdefault(group, []).append(case)
    for group, cases in sorted(groups.items()):
        suite = Xml.SubElement(root, "testsuite", name=group, time=f"{sum(c.seconds for c in cases):.3f}")
        _count(suite, cases, skipped=True)
        properties = Xml.SubElement(suite, "properties")
        for name, value in _properties(report).items():
            Xml.SubElement(properties, "property", name=name, value=printable(value))
        for case in cases:
            suite.append(_case(report, group, case))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _properties(report: Report) -> dict[str, str]:
    identity = report.identity
    return {
        "target": identity.target,
        "role": identity.role,
        "dialect": identity.dialect,
        "wire": "yes" if identity.wire else "no",
        "device_features": f"{identity.features:#x}",
        "seed": str(report.seed),
        "version": report.version,
        **identity.details,
    }


def _count(element: Xml.Element, cases: Iterable[CaseResult], *, skipped: bool) -> None:
    kinds = [ELEMENTS.get(case.verdict, "") for case in cases]
    element.set("tests", str(len(kinds)))
    element.set("failures", str(kinds.count("failure")))
    element.set("errors", str(kinds.count("error")))
    if skipped:  # testsuites has no such attribute
        element.set("skipped", str(kinds.count("skipped")))


def _case(report: Report, group: str, result: CaseResult) -> Xml.Element:
    element = Xml.Element(
        "testcase", name=result.id, classname=f"virtio-ipsec.{group}", time=f"{result.seconds:.4f}"
    )
    lines = explain(result)
    deviation = report.deviation_of(result)
    if deviation is not None:
        lines.append(f"declared deviation: {deviation.reason}")
    if result.verdict in ELEMENTS:
        wrong = next((c for c in result.checks if c.verdict is not Verdict.PASS), None)
        first = f"{wrong.clause}: expected {wrong.expected}" if wrong else result.title
        message = first if result.verdict is Verdict.FAIL else result.reason or first
        found = Xml.SubElement(element, ELEMENTS[result.verdict], message=printable(message))
        if ELEMENTS[result.verdict] != "skipped":
            found.set("type", result.verdict.value)
            found.text = printable("\n".join(lines))
    elif result.verdict is Verdict.WARN:
        Xml.SubElement(element, "system-out").text = printable("\n".join(lines))
    return element
