"""ESP of csrc/ against ESP of ipsec/ for as many packets as wanted.

python tests/differential/soak_esp.py --packets N [--isa NAME] [--seed S]

A difference is printed with the seed that repeats it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from esp_traffic import Rivalry

from virtio_ipsec.fastpath.gcm import Engine, engine_names

STEPS = 40  # of one set of SAs
CROWD = 300  # SAs that only stand there, every other time


def soak(engine: Engine, packets: int, seed: int) -> bool:
    """Whether Python and C agree on ``packets`` packets."""
    begin, done, sets = time.monotonic(), 0, 0
    verdicts: Counter[str] = Counter()
    while done < packets:
        rivalry = Rivalry(f"{seed} {sets}", engine, count=1 + sets % 9, crowd=CROWD * (sets % 2))
        try:
            for _ in range(STEPS):
                rivalry.step()
        except Exception:
            traceback.print_exc()
            print(f"DIFFERENT: --isa {engine.name} --seed {seed}, set {sets} of SAs")
            return False
        done, sets = done + rivalry.packets, sets + 1
        for (way, reason), count in rivalry.verdicts.items():
            verdicts[f"{way} {reason or 'processed'}"] += count
    seconds = time.monotonic() - begin
    print(f"{engine.name}: {done} packets, {sets} sets of SAs, seed {seed}, {seconds:.0f} s: all the same")
    for name, count in sorted(verdicts.items()):
        print(f"  {count:9} {name}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--packets", type=int, default=100_000, help="at least (default 100,000)")
    parser.add_argument(
        "--isa", choices=engine_names(), action="append", help="default: every one of this CPU"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the generator (default 1)")
    options = parser.parse_args()
    engines = [Engine(name) for name in options.isa or engine_names()]
    agreed = [soak(engine, options.packets, options.seed) for engine in engines]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
