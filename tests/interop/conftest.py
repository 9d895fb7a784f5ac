"""Tests that need foreign programs: ``@pytest.mark.interop("tshark")``. Without them they are NOT RUN, and say so.

Those with ``@pytest.mark.guests`` boot virtual machines or run DPDK and take minutes: they want to be asked for.
"""

from __future__ import annotations

import os
import shutil

import pytest

GUESTS_WANTED = "VIRTIO_IPSEC_GUESTS"

_missing: dict[str, list[str]] = {}
_unasked: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what cannot run here. An interop test that names no program is a mistake."""
    left_out = []
    for item in items:
        marks = list(item.iter_markers("interop"))
        programs = {program for mark in marks for program in mark.args}
        if marks and not programs:
            raise pytest.UsageError(f"{item.nodeid}: the interop marker names no program")
        if item.get_closest_marker("guests") and not os.environ.get(GUESTS_WANTED):
            _unasked.append(item.nodeid)
            left_out.append(item)
            continue
        for program in sorted(programs):
            if shutil.which(program) is None:
                _missing.setdefault(program, []).append(item.nodeid)
                left_out.append(item)
                break
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what did not run."""
    for program, names in _missing.items():
        terminalreporter.write_line(
            f"NOT RUN: {len(names)} tests, {program} is missing (tools/check --interop installs it)"
        )
    if _unasked:
        terminalreporter.write_line(
            f"NOT RUN: {len(_unasked)} tests with virtual machines or DPDK (tools/check --guests runs them)"
        )
