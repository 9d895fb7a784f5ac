"""Every mutant driver under every judge: which clause is blamed, and whether it is the one that the driver breaks."""

from __future__ import annotations

from driver_live import live_report, pci_link
from driver_registry import blamed, load_driver_mutants
from test_driver_pci_mutants import MUTANTS as OVER_PCI

from tools.mutant_parts.matrix import Row
from virtio_ipsec.conformance.monitor.judge import load_judges


def rows() -> list[Row]:
    """One row for each mutant: those of our own process, then those that come as clients of a PCI function."""
    found = [
        _row(mutant.name, mutant.clause, mutant.dependants, blamed(mutant.report()))
        for mutant in load_driver_mutants()
    ]
    for clause, (link, face, script, dependants) in OVER_PCI.items():
        report = live_report(
            "vfio-user", [face], lambda connect, link=link: pci_link(connect, link), script=script
        )
        found.append(_row(link.__name__, clause, frozenset(dependants), blamed(report)))
    return found


def unkilled(found: list[Row]) -> list[str]:
    """Judges that no mutant fails."""
    right = {row.clause for row in found if row.right}
    return [one.id for one in load_judges() if not right.issuperset(one.clauses)]


def _row(name: str, clause: str, allowed: frozenset[str], blame: dict[str, str]) -> Row:
    judges = {cited: (f"driver-{cited.lower()}",) for cited in sorted(blame)}
    return Row(name, clause, allowed, judges, tuple(judges.get(clause, ())))
