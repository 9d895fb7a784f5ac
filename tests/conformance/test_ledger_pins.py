"""Every entry of the ledger is pinned by tests and cases that exist."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from virtio_ipsec.conformance.case import load_cases

ROOT = Path(__file__).resolve().parents[2]
PINS: dict[str, list[str] | dict[str, str]] = json.loads((ROOT / "spec" / "ledger_pins.json").read_text())


@cache
def names_in(path: str) -> frozenset[str]:
    """The functions of a test file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("entry", PINS)
def test_pins_of_an_entry_exist(entry: str) -> None:
    value = PINS[entry]
    if isinstance(value, dict):
        return  # tests/spec judges the reason
    assert value, "neither a pin nor a reason"
    assert len(set(value)) == len(value)
    cases = {case.id for case in load_cases()}
    for pin in value:
        if pin.startswith("case "):
            assert pin.removeprefix("case ") in cases, pin
        else:
            path, _, name = pin.partition("::")
            assert name in names_in(path), pin


def test_readings_that_a_case_reports_are_pinned_by_it() -> None:
    """A case that names the reading of an entry is among the pins of that entry."""
    missing = []
    for case in load_cases():
        names = set(case.body.__code__.co_consts)
        for entry, pins in PINS.items():
            if entry in names and isinstance(pins, list) and f"case {case.id}" not in pins:
                missing.append((entry, case.id))
    assert missing == []
