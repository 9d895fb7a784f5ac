"""A page for each case, made of its docstring and its clauses: what is done, what is demanded, by which sentence."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import cleandoc

from virtio_ipsec.conformance.case import NEEDS, Case
from virtio_ipsec.conformance.monitor.judge import Judge
from virtio_ipsec.specification import clause


def case_page(case: Case | Judge) -> str:
    """One case, or the judge of a driver clause, as Markdown."""
    _, _, body = cleandoc(case.doc).partition("\n")
    lines = [f"# {case.id}", "", case.title, ""]
    if body.strip():
        lines += [body.strip(), ""]
    if isinstance(case, Judge):
        lines += ["Judged from the trace of a driver (`conformance --driver`). It is NOT SEEN unless", ""]
        lines += [f"- {case.when}", ""]
    elif case.needs:
        lines += ["It is UNSUPPORTED when", ""]
        lines += [f"- {NEEDS[need]}" for need in sorted(case.needs)]
        lines.append("")
    lines += ["## Clauses", ""]
    for name in case.clauses:
        cited = clause(name)
        at = f"{cited.file}:{','.join(map(str, cited.lines))}" if cited.lines else cited.file or cited.section
        lines.append(f"- **{cited.id}** ({cited.level}, {cited.role}; {at}): {cited.text}")
        if cited.ambiguities:
            lines.append(f"  Readings: ledger {', '.join(cited.ambiguities)}.")
    lines += [
        "",
        f"Dialects: {', '.join(sorted({d for name in case.clauses for d in clause(name).dialects}))}",
        "",
    ]
    return "\n".join(lines)


def case_index(cases: Iterable[Case | Judge]) -> str:
    """The list of pages as Markdown."""
    lines = ["# Conformance cases", "", "| case | what it shows |", "|---|---|"]
    lines += [f"| [{case.id}]({case.id}.md) | {case.title} |" for case in cases]
    return "\n".join(lines) + "\n"
