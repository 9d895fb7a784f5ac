"""How much does the conformance suite notice?

First every mutant device, which breaks one clause each, under every case that it could change: the matrix of clauses,
mutants and cases, and which cases nothing kills; and mutant drivers under the judges of drivers. Then small faults at
random places of the device model, which nobody chose: the share that the suite notices, and those that it does not.
Some cannot show, or the text leaves open which of both is right: they stand with their reason in
tools/mutant_parts/reviewed.toml, are printed, and count apart.

examples:
  tools/mutants                       the matrix, then 100 faults
  tools/mutants --faults 0            the matrix alone
  tools/mutants --no-matrix --faults 400 --seed 7 --json score.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutant_parts import drivers, judge, matrix, reviewed
from tools.mutant_parts.faults import Fault, every, sample
from tools.mutant_parts.judge import Outcome

#: Faults that the suite ought to notice at least, in per cent of those that a driver could see.
AIM = 95
#: Where they are made.
ROOMS = ("device",)


def main() -> int:
    """Exit code 0: every case and every mutant is killed as it should be. The share of faults is only printed."""
    parser = argparse.ArgumentParser(
        prog="tools/mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="random faults (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    parser.add_argument("--recheck", action="store_true", help="judge those of the reviewed list as well")
    parser.add_argument("--no-matrix", action="store_true", help="only the faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    good = True
    if not arguments.no_matrix:
        good = _matrix(arguments.jobs, document)
        good = _drivers(document) and good
    if arguments.faults:
        _faults(arguments, document)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1, default=sorted) + "\n")
    return 0 if good else 1


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r\x1b[K{what} {done}/{total}",
            end="" if done < total else "\r\x1b[K",
            file=sys.stderr,
            flush=True,
        )
    elif done == total or done % 50 == 0:
        print(f"{what} {done}/{total}", file=sys.stderr, flush=True)


def _drivers(document: dict[str, Any]) -> bool:
    found = drivers.rows()
    without = drivers.unkilled(found)
    wrong = [row for row in found if not row.right]
    for row in sorted(found, key=lambda row: (row.clause, row.mutant)):
        others = ", ".join(name for name in row.blamed if name != row.clause)
        seen = "blamed" if row.right else "WRONG"
        print(f"{row.clause:<18} {row.mutant:<34} {seen}{f'; also on {others}' if others else ''}")
    for name in without:
        print(f"no mutant fails judge {name}")
    print(
        f"{len(found)} mutant drivers: {len(found) - len(wrong)} noticed rightly; {len(without)} judges without one"
    )
    document["mutant drivers"] = [asdict(row) for row in found]
    return not wrong and not without


def _matrix(jobs: int, document: dict[str, Any]) -> bool:
    names, found = matrix.names(), matrix.Matrix()
    with ProcessPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(matrix.row, names, chunksize=4), 1):
            found.rows.append(row)
            _progress("mutants", number, len(names))
    by_clause: dict[str, list[matrix.Row]] = {}
    for row in found.rows:
        by_clause.setdefault(row.clause, []).append(row)
    for clause, rows in sorted(by_clause.items()):
        print(clause)
        for row in rows:
            others = ", ".join(name for name in row.blamed if name != clause)
            seen = ", ".join(row.blamed.get(clause, ())) or "NOT NOTICED"
            print(f"  {row.mutant:<34} {seen}{f'; also on {others}' if others else ''}")
    for row in found.wrong:
        unasked = sorted(row.blamed.keys() - {row.clause, *row.allowed})
        print(f"wrong: {row.mutant} breaks {row.clause}: blamed for {', '.join(unasked) or 'nothing'}")
    unkilled = found.unkilled()
    for case in unkilled:
        print(f"no mutant fails case {case}")
    total = len(matrix.load_cases())
    print(
        f"{len(found.rows)} mutants of {len(by_clause)} clauses: {len(found.rows) - len(found.wrong)} noticed rightly"
    )
    print(f"{total} cases: {total - len(unkilled)} killed")
    document["mutants"] = [asdict(row) for row in found.rows]
    document["cases without a mutant"] = unkilled
    return not found.wrong and not unkilled


def _faults(arguments: argparse.Namespace, document: dict[str, Any]) -> None:
    chosen = sample(arguments.faults, arguments.seed, ROOMS)
    reviews = reviewed.load()
    known = {f.name: why for f in chosen if (why := reviewed.reason_for(f.name, reviews))}
    asked = [fault for fault in chosen if arguments.recheck or fault.name not in known]
    outcomes: list[Outcome] = []
    for number, outcome in enumerate(judge.Judge().judge(asked, arguments.jobs), 1):
        outcomes.append(outcome)
        _progress("faults", number, len(asked))
    alive = [outcome for outcome in outcomes if outcome.verdict != "DEAD"]
    noticed = [outcome for outcome in alive if outcome.noticed]
    survivors = [outcome.fault for outcome in alive if not outcome.noticed]
    print(f"\n{len(chosen)} faults drawn with seed {arguments.seed} from {len(every(ROOMS))}")
    dead = len(outcomes) - len(alive)
    if dead:
        print(f"{dead} with which the device does not come up")
    by_verdict = Counter(outcome.verdict for outcome in noticed)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(by_verdict.items()))
    print(f"{len(noticed)} noticed: {counted or 'none'}")
    explained = [fault for fault in chosen if fault.name in known]
    _explain([fault for fault in explained if fault in survivors or fault not in asked], known)
    for outcome in noticed:
        if outcome.fault.name in known:
            print(f"reviewed, and noticed by {outcome.case}: {outcome.fault}")
    open_ = [fault for fault in survivors if fault.name not in known]
    for fault in open_:
        print(f"not noticed: {fault}")
    print(
        f"noticed: {_share(len(noticed), len(noticed) + len(open_))} of what a driver could see (aim {AIM} %)"
    )
    print(f"         {_share(len(noticed), len(chosen) - dead)} of all with which the device comes up")
    document["faults"] = [
        {"fault": outcome.fault.name, "case": outcome.case, "verdict": outcome.verdict}
        for outcome in outcomes
    ] + [{"fault": fault.name, "reviewed": known[fault.name]} for fault in explained if fault not in asked]


def _explain(faults: list[Fault], known: dict[str, str]) -> None:
    """The reviewed ones, by reason."""
    if faults:
        print(f"{len(faults)} that no driver can see, or that the text leaves open:")
    for reason in dict.fromkeys(known[fault.name] for fault in faults):
        print(f"  {reason}")
        for fault in faults:
            if known[fault.name] == reason:
                print(f"    {fault}")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} % ({part} of {whole})"


if __name__ == "__main__":
    sys.exit(main())
