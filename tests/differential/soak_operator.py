"""test_operator_paths.py for as long as wanted: python tests/differential/soak_operator.py [SECONDS]."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "policy"))

from test_operator_paths import CASES, run


def main() -> int:
    until = monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 60)
    seed, counts = 0, Counter[str]()
    while monotonic() < until:
        for name in CASES:
            counts += run(name, seed, 40)
        seed += 1
    print(f"{seed} rounds of {len(CASES)} ports; in C: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
