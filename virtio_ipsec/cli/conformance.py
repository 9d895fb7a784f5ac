"""Run the conformance suite against a device and print a verdict for every case that is not a pass.

Exit code 0: at least one case came to a verdict and no MUST failed. 1: a MUST failed, could not be judged, or the
device hung; or no case came to a verdict, because all are UNSUPPORTED or NOT SEEN. 2: usage, or nothing selected.
3: the target cannot be reached, or nobody can be listened for.

`--driver` turns the tables: a watched device stands at a socket (`--listen`), and a driver that comes to it is judged;
without a socket it is our own driver. Each `--face` is another device; a driver meets one after the other. A driver
that does not come, or does nothing that a judge looks at, is no pass: all is NOT SEEN, and the exit code is 1.

`conformance show REPORT.json` makes the other formats from a report of an earlier run; `conformance explain CASE` says
what a case does and demands; `conformance diff A.json B.json` shows what changed between two runs and exits with 1
when a case or clause fails that did not fail before, or one that passed is no longer judged.

examples:
  virtio-ipsec conformance
  virtio-ipsec conformance --only 'NET-IPSEC-*' --json report.json --html report.html
  virtio-ipsec conformance --target nic.toml --junit report.xml --jobs 2
  virtio-ipsec conformance --dialect rfc-2025-01 --list
  virtio-ipsec conformance --driver --html own-driver.html
  virtio-ipsec conformance --driver --listen vfio-user:/tmp/dev.sock --probe 192.0.2.10 --json driver.json
  virtio-ipsec conformance show report.json --html report.html
  virtio-ipsec conformance explain ipsec-option-dscp
  virtio-ipsec conformance diff firmware-1.json firmware-2.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

from virtio_ipsec.cli import conformance_driver as drivers
from virtio_ipsec.cli.arguments import add_action, positive
from virtio_ipsec.cli.exits import DONE, FINDING
from virtio_ipsec.conformance import bed, supervisor
from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.conformance.monitor.judge import Judge, load_judges
from virtio_ipsec.conformance.monitor.report import select_judges
from virtio_ipsec.conformance.reports import diff, master
from virtio_ipsec.conformance.reports.cases import case_index, case_page
from virtio_ipsec.conformance.reports.junit import to_junit
from virtio_ipsec.conformance.reports.page import to_html
from virtio_ipsec.conformance.reports.text import (
    GOT_OVER,
    REMARKED,
    badge,
    coverage,
    coverage_line,
    explain,
    headline,
    printable,
    to_markdown,
)
from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.runner import select
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.dialect import DIALECTS


def _json(report: Report) -> str:
    return json.dumps(master.to_json(report), indent=1) + "\n"


#: Option -> (what it writes, what makes it of a report).
FORMATS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "json": ("the report as JSON", _json),
    "html": ("a self-contained page", to_html),
    "junit": ("JUnit XML for a build server", to_junit),
    "markdown": ("a summary as Markdown", to_markdown),
    "badge": ("one line of JSON for a badge", badge),
}

#: Options that say something of a run alone.
_OF_RUNS = (
    *("device", "target", "wire", "dialect", "list", "only", "exclude", "seed", "jobs", "limit", "verbose"),
    *("driver", *drivers.OWN),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--device",
        metavar="TARGET",
        help="what to test (default: loopback; loopback:python and loopback:c choose its engine, "
        "loopback-pci has the device as a PCI function; "
        "vhost-user:PATH[,server][,plain] is a back-end's socket, 'server' lets it connect to us, 'plain' leaves out "
        "the IPsec binding; vfio-user:PATH is a PCI function behind a socket, vfio:0000:bb:dd.f one of this machine "
        "that is bound to vfio-pci)",
    )
    parser.add_argument(
        "--target", metavar="FILE", help="a file that names the device, its test bed and its deviations"
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
    parser.add_argument(
        "--jobs", type=positive(int), default=1, metavar="N", help="open the device N times (default: once)"
    )
    parser.add_argument(
        "--limit",
        type=positive(float),
        default=supervisor.LIMIT,
        metavar="SECONDS",
        help="a case that takes longer is WEDGED (default: %(default)g)",
    )
    drivers.add_arguments(parser)
    _add_formats(parser)
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.set_defaults(usual={name: parser.get_default(name) for name in (*_OF_RUNS, *FORMATS)})
    actions = parser.add_subparsers(dest="action", metavar="[show|explain|diff]")
    show = add_action(
        actions,
        "show",
        "other formats of an earlier report",
        "conformance show report.json --html report.html",
    )
    show.add_argument("report", type=Path, metavar="REPORT.json")
    _add_formats(show, argparse.SUPPRESS)  # what stands in front of the action counts, too
    show.set_defaults(run=_show)
    explanation = add_action(
        actions, "explain", "what a case does and demands", "conformance explain ipsec-option-dscp"
    )
    explanation.add_argument("name", nargs="?", metavar="CASE", help="a case, or a clause for all its cases")
    explanation.add_argument("--out", type=Path, metavar="DIR", help="write a page for each case into DIR")
    explanation.set_defaults(run=_explain)
    changes = add_action(
        actions, "diff", "what changed between two runs", "conformance diff firmware-1.json firmware-2.json"
    )
    changes.add_argument("before", type=Path, metavar="A.json")
    changes.add_argument("after", type=Path, metavar="B.json")
    words = "write the changes as JSON ('-': standard output)"
    changes.add_argument("--json", metavar="FILE", default=argparse.SUPPRESS, help=words)
    changes.set_defaults(run=_diff)


def _add_formats(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    for name, (what, _) in FORMATS.items():
        words = f"write {what} ('-': standard output)"
        parser.add_argument(f"--{name}", metavar="FILE", default=default, help=words)


def _alone(arguments: argparse.Namespace, formats: Collection[str] = ()) -> None:
    """ConfigError for options in front of an action that mean nothing to it; ``formats`` do."""
    foreign = [*_OF_RUNS, *(name for name in FORMATS if name not in formats)]
    if given := drivers.given(arguments, foreign):
        raise ConfigError(f"--{given} is for runs: leave it out with {arguments.action}")


def run(arguments: argparse.Namespace) -> int:
    """Run or list the selected cases, or judge a driver."""
    drivers.check(arguments)
    if arguments.list and (given := drivers.given(arguments, [name for name in FORMATS if name != "json"])):
        raise ConfigError(f"--{given} is for runs: a list is printed, or written with --json")
    if arguments.driver:
        return _run_driver(arguments)
    cases = select(arguments.dialect, arguments.only, arguments.exclude)
    if not cases:
        raise ConfigError(
            f"no case matches in dialect {arguments.dialect}; see virtio-ipsec conformance --list"
        )
    files = _files(arguments)
    if arguments.list:
        return _list(cases, arguments.dialect, arguments.json)
    setting = _bed(arguments)
    progress = _Progress(verbose=arguments.verbose)
    plan = supervisor.Plan(
        open=partial(bed.open_bed, setting, DIALECTS[arguments.dialect]),
        cases=cases,
        seed=arguments.seed,
        jobs=arguments.jobs,
        limit=arguments.limit,
        reopen=setting.reset,
        deviations=setting.deviations,
    )
    try:
        report = supervisor.run(plan, progress)
    finally:
        progress.finish()
    text = _write_all(report, files)
    print(_summary(report, partial=bool(arguments.only or arguments.exclude)), file=text)
    return DONE if report.passed else FINDING


def _run_driver(arguments: argparse.Namespace) -> int:
    judges = select_judges(arguments.dialect, arguments.only, arguments.exclude)
    if not judges:
        raise ConfigError(
            f"no judge matches in dialect {arguments.dialect}; see virtio-ipsec conformance --driver --list"
        )
    files = _files(arguments)
    if arguments.list:
        return _list(judges, arguments.dialect, arguments.json)
    report = drivers.judged(arguments, judges)
    if arguments.verbose:
        progress = _Progress(verbose=True)
        for number, result in enumerate(report.cases, 1):
            progress(number, len(report.cases), result)
    text = _write_all(report, files)
    print(_summary(report, partial=bool(arguments.only or arguments.exclude)), file=text)
    return DONE if report.passed else FINDING


def _bed(arguments: argparse.Namespace) -> bed.Bed:
    """What the target file says, and what the options say instead."""
    setting = bed.read(Path(arguments.target)) if arguments.target else bed.Bed()
    if arguments.device is not None:
        setting = replace(setting, device=arguments.device)
    if arguments.wire is not None:
        setting = replace(setting, wire=arguments.wire)
    return setting


def _show(arguments: argparse.Namespace) -> int:
    _alone(arguments, FORMATS)
    files = _files(arguments)
    report = master.read(arguments.report)
    print(_summary(report, partial=False), file=_write_all(report, files))
    return DONE if report.passed else FINDING


def _explain(arguments: argparse.Namespace) -> int:
    _alone(arguments)
    every: tuple[Case | Judge, ...] = (*load_cases(), *load_judges())
    named = [case for case in every if arguments.name in (None, case.id, *case.clauses)]
    if not named or (arguments.name is None and arguments.out is None):
        asked = (
            "name one, or give --out" if arguments.name is None else f"no case or clause {arguments.name!r}"
        )
        raise ConfigError(f"{asked}; see virtio-ipsec conformance --list")
    if arguments.out is None:
        print("\n".join(map(case_page, named)), end="")
        return DONE
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in named:
        (arguments.out / f"{case.id}.md").write_text(case_page(case), encoding="utf-8")
    (arguments.out / "README.md").write_text(case_index(named), encoding="utf-8")
    print(f"{len(named)} pages in {arguments.out}")
    return DONE


def _diff(arguments: argparse.Namespace) -> int:
    _alone(arguments, ("json",))
    found = diff.difference(master.read(arguments.before), master.read(arguments.after))
    if arguments.json:
        _write(arguments.json, json.dumps(diff.to_json(found), indent=1) + "\n")
    if arguments.json != "-":
        print(diff.to_text(found), end="")
    return FINDING if found.regressed else DONE


def _files(arguments: argparse.Namespace) -> dict[str, str]:
    """Format -> file, of those asked for. Opens each: better now than after the run."""
    files = {name: getattr(arguments, name) for name in FORMATS if getattr(arguments, name)}
    if list(files.values()).count("-") > 1:
        raise ConfigError("only one format can be standard output")
    for name in files.values():
        if name != "-":
            Path(name).open("a").close()
    return files


def _write_all(report: Report, files: dict[str, str]) -> TextIO:
    """Write the formats; where the summary goes: beside a report on standard output nothing else may stand there."""
    for name, file in files.items():
        _write(file, FORMATS[name][1](report))
    return sys.stderr if "-" in files.values() else sys.stdout


def _list(cases: Sequence[Case | Judge], dialect: str, json_name: str | None) -> int:
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
    print(f"{len(cases)} {'cases' if isinstance(cases[0], Case) else 'judges'} in dialect {dialect}")
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
        if result.verdict not in GOT_OVER:
            lines += explain(result)
            if (deviation := report.deviation_of(result)) is not None:
                lines.append(f"  declared deviation: {deviation.reason}")
            lines.append("")
    for verdict in REMARKED:
        without = [result for result in report.cases if result.verdict is verdict and result.reason]
        lines += [f"{verdict.value} {result.id}: {result.reason}" for result in without]
    lines += [
        f"deviation {d.names} was declared and not found: strike it from the list"
        for d in report.deviations
        if not d.seen and not partial
    ]
    if not partial:
        lines += ["", "judged clauses by group:"]
        for group, counts in coverage(report):
            judged = [f"{counts[v.value]} {v.value}" for v in Verdict if counts[v.value]]
            if judged:
                lines.append(f"  {group:<16} {', '.join(judged)}")
        lines.append(coverage_line(report))
    lines.append(headline(report))
    return printable("\n".join(lines))


def _write(name: str, text: str) -> None:
    if name == "-":
        sys.stdout.write(text)
    else:
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
