"""Run the conformance suite against a device and print a verdict for every case that is not a pass.

Exit code 0: at least one case ran and no MUST failed. 1: a MUST failed, could not be judged, or the device
hung. 2: usage, or nothing selected. 3: the target cannot be reached.

examples:
  virtio-ipsec conformance
  virtio-ipsec conformance --only 'NET-IPSEC-*' --json report.json --markdown report.md
  virtio-ipsec conformance --dialect rfc-2025-01 --list
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from virtio_ipsec.cli.exits import DONE, FINDING
from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.report import (
    coverage,
    coverage_line,
    explain,
    headline,
    to_json,
    to_markdown,
)
from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.runner import run as run_suite
from virtio_ipsec.conformance.runner import select
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.dialect import DIALECTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--device",
        default="loopback",
        metavar="TARGET",
        help="what to test (default: %(default)s; loopback:python and loopback:c choose its engine)",
    )
    parser.add_argument(
        "--wire",
        metavar="URI",
        help="the far end of the device's wire, as an uplink of `serve`: afpacket:IF, unix:PATH, udp:LOCAL,REMOTE ...",
    )
    parser.add_argument(
        "--dialect", default="virtio-1.4", choices=list(DIALECTS), help="default: %(default)s"
    )
    parser.add_argument("--list", action="store_true", help="list the selected cases and run nothing")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="case or clause ids; repeatable"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave these out; repeatable"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the cases and choice of test data")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON ('-': standard output)")
    parser.add_argument("--markdown", metavar="FILE", help="write a summary as Markdown")
    parser.add_argument("--verbose", action="store_true", help="print every case")


def run(arguments: argparse.Namespace) -> int:
    """Run or list the selected cases."""
    cases = select(arguments.dialect, arguments.only, arguments.exclude)
    if not cases:
        raise ConfigError(
            f"no case matches in dialect {arguments.dialect}; see virtio-ipsec conformance --list"
        )
    if arguments.json == arguments.markdown == "-":
        raise ConfigError("--json and --markdown cannot both be standard output")
    for name in (arguments.json, arguments.markdown):
        if name not in (None, "-"):
            Path(name).open("a").close()  # better now than after the run
    if arguments.list:
        return _list(cases, arguments.dialect, arguments.json)
    text = sys.stdout if "-" not in (arguments.json, arguments.markdown) else sys.stderr
    with open_target(arguments.device, DIALECTS[arguments.dialect], arguments.wire) as target:
        progress = _Progress(verbose=arguments.verbose)
        report = run_suite(target, cases, seed=arguments.seed, progress=progress)
        progress.finish()
    if arguments.json:
        _write(arguments.json, json.dumps(to_json(report), indent=1) + "\n")
    if arguments.markdown:
        _write(arguments.markdown, to_markdown(report))
    print(_summary(report, partial=bool(arguments.only or arguments.exclude)), file=text)
    return DONE if report.passed else FINDING


def _list(cases: tuple[Case, ...], dialect: str, json_name: str | None) -> int:
    if json_name:
        rows = [
            {
                "id": c.id,
                "title": c.title,
                "clauses": [k.id for k in c.clauses_in(dialect)],
                "needs": sorted(c.needs),
            }
            for c in cases
        ]
        _write(json_name, json.dumps(rows, indent=1) + "\n")
    if json_name == "-":
        return DONE
    width = max(len(c.id) for c in cases)
    for c in cases:
        print(f"{c.id:<{width}}  {c.title}  [{', '.join(k.id for k in c.clauses_in(dialect))}]")
    print(f"{len(cases)} cases in dialect {dialect}")
    return DONE


class _Progress:
    """Counts on one line of a terminal; elsewhere only what did not pass is printed."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.live = sys.stderr.isatty() and not verbose

    def __call__(self, done: int, total: int, result: CaseResult) -> None:
        if self.verbose:
            print(f"{result.verdict.value:<11} {result.id}  {result.title}", file=sys.stderr)
        elif self.live:
            print(f"\r\x1b[K{done}/{total} {result.id}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _summary(report: Report, *, partial: bool) -> str:
    lines = []
    for result in report.cases:
        if result.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED}:
            lines += [*explain(result), ""]
    unsupported = [result for result in report.cases if result.verdict is Verdict.UNSUPPORTED]
    lines += [f"UNSUPPORTED {result.id}: {result.reason}" for result in unsupported]
    if not partial:
        lines += ["", "judged clauses by group:"]
        for group, counts in coverage(report):
            judged = [f"{counts[v.value]} {v.value}" for v in Verdict if counts[v.value]]
            if judged:
                lines.append(f"  {group:<16} {', '.join(judged)}")
        lines.append(coverage_line(report))
    lines.append(headline(report))
    return "\n".join(lines)


def _write(name: str, text: str) -> None:
    if name == "-":
        sys.stdout.write(text)
    else:
        Path(name).write_text(text, encoding="utf-8")
