"""How much does the conformance suite notice?

First every mutant device, which breaks one clause each, under every case that it could change: the matrix of clauses,
mutants and cases, and which cases nothing kills. Then small faults at random places of the device model, which nobody
chose: the share that the suite notices, and those that it does not.

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
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutant_parts import matrix
from tools.mutant_parts.faults import Outcome, run_with, sample

#: Faults that the suite ought to notice at least, in per cent of those with which the device comes up.
AIM = 95


def main() -> int:
    """Exit code 0: every case and every mutant is killed as it should be. The share of faults is only printed."""
    parser = argparse.ArgumentParser(
        prog="tools/mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="random faults (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    parser.add_argument("--no-matrix", action="store_true", help="only the faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    good = True
    if not arguments.no_matrix:
        good = _matrix(arguments.jobs, document)
    if arguments.faults:
        _faults(arguments.faults, arguments.seed, arguments.jobs, document)
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


def _faults(count: int, seed: int, jobs: int, document: dict[str, Any]) -> None:
    chosen = sample(count, seed)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(jobs) as pool:
        for number, outcome in enumerate(pool.map(run_with, chosen), 1):
            outcomes.append(outcome)
            _progress("faults", number, len(chosen))
    alive = [outcome for outcome in outcomes if outcome.verdict != "DEAD"]
    survivors = [outcome for outcome in alive if not outcome.noticed]
    by_verdict = Counter(outcome.verdict for outcome in alive if outcome.noticed)
    print("\nfaults that the suite does not notice:" if survivors else "\nthe suite notices every fault")
    for outcome in survivors:
        print(f"  {outcome.fault}")
    share = 100 * (len(alive) - len(survivors)) / max(len(alive), 1)
    print(_words(len(chosen), len(alive), by_verdict.items()))
    print(f"noticed: {share:.1f} % (aim {AIM} %)")
    document["faults"] = [
        {"fault": str(outcome.fault), "case": outcome.case, "verdict": outcome.verdict}
        for outcome in outcomes
    ]


def _words(chosen: int, alive: int, verdicts: Iterable[tuple[str, int]]) -> str:
    parts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts))
    return f"{chosen} faults; with {chosen - alive} the device does not come up; of {alive}: {parts}"


if __name__ == "__main__":
    sys.exit(main())
