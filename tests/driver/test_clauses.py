"""Every driver clause is accounted for in the driver's own documentation."""

from __future__ import annotations

import re
from pathlib import Path

import virtio_ipsec.driver
from virtio_ipsec.specification import load_clauses

ID = re.compile(r"\b([A-Z]+(?:-[A-Z]+)*)-(\d\d)((?:(?:,| and| to)\s+-\d\d)*)")
MORE = re.compile(r"(,| and| to)\s+-(\d\d)")


def named(text: str) -> set[str]:
    """The clause ids in ``text``, where "X-01, -03 to -05" stands for four."""
    found = set()
    for group, first, more in ID.findall(text):
        last = int(first)
        found.add(f"{group}-{last:02}")
        for how, number in MORE.findall(more):
            start = last + 1 if how == " to" else int(number)
            found |= {f"{group}-{each:02}" for each in range(start, int(number) + 1)}
            last = int(number)
    return found


def test_lists_and_ranges_of_ids_are_understood() -> None:
    text = "NET-TX-DRV-05 to -08, -21 and -30, BAS-FEAT-02"
    assert named(text) == {*(f"NET-TX-DRV-{n:02}" for n in (5, 6, 7, 8, 21, 30)), "BAS-FEAT-02"}


def test_every_driver_clause_is_named_in_the_driver() -> None:
    package = Path(virtio_ipsec.driver.__file__).parent
    documented = named("\n".join(path.read_text() for path in package.glob("*.py")))
    wanted = {clause.id for clause in load_clauses() if clause.role == "driver"}
    assert len(wanted) > 150
    assert wanted - documented == set()
