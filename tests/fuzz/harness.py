"""The loop of every fuzz entry: mutate, run, and stop at anything but a declared error.

A fuzz file lists targets and ends with ``sys.exit(fuzz(TARGETS))``::

    TARGETS = (Target("sa", seed=lambda rng: V14.sa.build(random_sa(rng)), run=V14.sa.parse),)

It is called as ``python tests/fuzz/fuzz_x.py --seconds N [--seed S]``. A finding is printed as the command
that repeats it, with the traceback, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from virtio_ipsec.errors import VirtioIpsecError

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 254, 255)


@dataclass(frozen=True)
class Target:
    """One thing to fuzz: ``seed`` makes well-formed bytes, ``run`` eats any bytes.

    ``run`` may raise ``declared`` errors; it checks its own invariants with ``assert``.
    """

    name: str
    seed: Callable[[random.Random], bytes]
    run: Callable[[bytes], object]
    declared: tuple[type[Exception], ...] = (VirtioIpsecError,)


class Hang(BaseException):
    """One input took longer than the limit. Not an Exception: no target may swallow it."""


def mutate(rng: random.Random, data: bytes) -> bytes:
    """``data`` with up to eight small changes, cuts, growths or repeated slices."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        at = rng.randrange(len(out) + 1)
        choice = rng.randrange(8)
        if choice == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif choice == 1 and out:
            out[at % len(out)] = rng.choice(EDGES)
        elif choice == 2 and out:
            out[at % len(out)] = rng.randrange(256)
        elif choice == 3:
            width = rng.choice((2, 4, 8))
            number = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, rng.getrandbits(8 * width)))
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif choice == 4:
            del out[at:]
        elif choice == 5:
            del out[at : at + rng.randrange(1, 17)]
        elif choice == 6:
            out[at:at] = rng.choice((bytes, rng.randbytes))(rng.randrange(1, 33))
        else:
            length = rng.randrange(1, 33)
            source = rng.randrange(len(out) + 1)
            out[at:at] = out[source : source + length]
    return bytes(out)


def _alarm(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


def _survives(target: Target, data: bytes, limit: float) -> bool:
    """Whether ``target`` deals with ``data`` as declared, within ``limit`` seconds."""
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        target.run(data)
    except target.declared:
        pass
    except (Exception, Hang):
        traceback.print_exc()
        print(f"FOUND: python {sys.argv[0]} --target {target.name} --input {data.hex() or '-'}")
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def fuzz(targets: Sequence[Target], argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    names = [each.name for each in targets]
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to search (default 10)")
    parser.add_argument("--count", type=int, default=0, help="stop after this many inputs instead")
    parser.add_argument("--seed", type=int, default=1, help="seed of the generator (default 1)")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that one input may take")
    parser.add_argument("--target", choices=names, action="append", help="only this target")
    parser.add_argument("--input", help="run this one input, in hexadecimal ('-': no bytes)")
    options = parser.parse_args(argv)
    chosen = [each for each in targets if not options.target or each.name in options.target]
    signal.signal(signal.SIGALRM, _alarm)
    if options.input is not None:
        data = bytes.fromhex(options.input.strip("-"))
        return 0 if all(_survives(each, data, options.limit) for each in chosen) else 1
    rng = random.Random(options.seed)
    begin = time.monotonic()
    runs = 0
    while runs < options.count if options.count else time.monotonic() - begin < options.seconds:
        target = chosen[runs % len(chosen)]
        if not _survives(target, mutate(rng, target.seed(rng)), options.limit):
            return 1
        runs += 1
    print(f"{runs} inputs, {len(chosen)} targets, seed {options.seed}: only declared errors")
    return 0
