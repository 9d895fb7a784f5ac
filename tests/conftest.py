"""Settings that every test shares, and what some tests need: ``@pytest.mark.needs("compiler")``.

Where that is not there they are NOT RUN, and the summary says so.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from virtio_ipsec.fastpath import native

if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # Each worker and each program that tests start would compile all modules again. The tree stays clean all the same.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# Derandomised: the same examples on every machine. Longer searches are the fuzz entries' business.
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")


@cache
def _namespaces() -> bool:
    return not subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode


#: What a test may need -> what is missing without it, and whether it is here.
NEEDS: dict[str, tuple[str, Callable[[], object]]] = {
    "compiler": (
        "there is no C compiler (gcc, cc or clang)",
        lambda: any(map(shutil.which, ("gcc", "cc", "clang"))),
    ),
    "extension": ("the C extension is not built", native.available),
    "namespaces": ("network namespaces cannot be made (who may is root)", _namespaces),
}
_not_run: Counter[str] = Counter()


@pytest.hookimpl(trylast=True)  # of what was asked for with -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what cannot run here."""
    left_out = []
    for item in items:
        for need in (need for mark in item.iter_markers("needs") for need in mark.args):
            missing, is_here = NEEDS[need]
            if not is_here():
                _not_run[missing] += 1
                left_out.append(item)
                break
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays() -> None:
    """All that was collected, and what the tests before have left: no collection need look at it again, and tests that
    ask for one ask for little."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells what it has left out; each of them has collected everything."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = dict(_not_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """So a worker has ended."""
    for missing, count in getattr(node, "workeroutput", {}).get("not_run", {}).items():
        _not_run[missing] = count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what did not run."""
    for missing, count in _not_run.items():
        terminalreporter.write_line(f"NOT RUN: {count} tests, {missing}")
