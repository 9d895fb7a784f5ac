"""The device with the C packet path beside the device without it, for as long as asked.

Each story is one pair of devices, with options drawn from its seed, that lives for at most ``--length`` random steps;
after each step everything that can be seen of both is compared.

usage: soak_device.py --steps N [--seed S] [--length L]      example: soak_device.py --steps 200000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
sys.path.insert(0, str(Path(__file__).parents[1] / "device"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from device_twins import random_story


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Device with and without the C packet path, side by side.")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="random steps in all")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the first story (1)")
    parser.add_argument("--length", type=int, default=1000, metavar="L", help="steps of one story (1000)")
    asked = parser.parse_args(arguments)
    begin, done, seed = time.monotonic(), 0, asked.seed
    counts: Counter[str] = Counter()
    while done < asked.steps:
        length = min(asked.length, asked.steps - done)
        story = random_story(seed)
        try:
            story.run(length)
        except BaseException:
            print(f"seed {seed}, {story.title}", file=sys.stderr)
            raise
        counts.update(story.twins.fast.device.counters())
        done += length
        seed += 1
        if seed % 10 == 0:
            print(f"{done} steps, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{done} steps of {seed - asked.seed} stories alike in {time.monotonic() - begin:.0f} s")
    print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
