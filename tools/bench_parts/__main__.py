"""Measure the fast path, its comparators and the administration path; print every ratio against the design's targets.

  kernels  AES-GCM in bursts of 64 packets, AAD and nonce written, payload sealed or opened from one buffer (at
           offset 14) to another: our engines, OpenSSL EVP, ipsec-mb, `cryptography` from a Python loop
  esp      whole ESP packets in place, tunnel mode: csrc/, the Python rooms, dpdk-test-crypto-perf (cryptography only)
  rings    the same packets from a virtqueue to an uplink, and from the wire into a virtqueue
  vhost    the same through `virtio-ipsec serve`: testpmd's virtio-user and a driver of our own send, against testpmd's
           net_vhost, which only takes; driver and back-end on one core each
  admin    SAs created and destroyed through the administration path
  suite    the conformance suite against the embedded device

All of it runs on one core, in turn, round after round. A sample is the best of three runs of about a millisecond, and
the shortest sample counts. SAs are used round robin. The verdict of every packet is looked at; ESP packets must come
back as they were; after each sample the last 64 packets are compared with what `cryptography` makes. C code is
built on the spot with $CC (gcc). Exit code 1 when a target of the design is missed or was not measured.

With --device, in place of all that, one device is measured from its driver's seat, whosever it is: TARGET is
vfio-user:PATH, vfio:0000:bb:dd.f, vhost-user:PATH, loopback, or any other of `virtio-ipsec conformance`. Transmit of 64
(whole frames) and 1420 octets (IP packets) through one queue, with ESP of the device's where it has IPsec and an
administration virtqueue, else plain; and SAs created and destroyed. Exit code 1 when it cannot be.

examples:
  tools/bench --interop && tools/bench --quick --json bench.json --plot bench.svg
  tools/bench --device vfio-user:/run/nic --json nic.json
  tools/bench --device vfio:0000:03:00.0 --wire afpacket:eth1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.bench_parts import admin, charts, comparators, device, esp, kernels, plot, rings, targets, vhost
from tools.bench_parts.cells import Cell, Quiet, find, ratio
from tools.bench_parts.native import OWN, Native, compiler_version
from tools.bench_parts.targets import Target
from virtio_ipsec.cli.arguments import positive

PARTS = ("kernels", "esp", "rings", "vhost", "admin", "suite")
SIZES, QUICK_SIZES = (64, 128, 256, 512, 1024, 1420, 8900), (64, 1420, 8900)
SA_COUNTS, QUICK_SA_COUNTS = (1, 64, 4096, 65536, 1 << 20), (64, 65536)
WIDTHS = {"aesni": 16, "vaes256": 32, "vaes512": 64}  # bytes that one instruction works on


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add("--quick", action="store_true", help="what the targets need: fewer sizes, SAs and rounds")
    add("--sizes", type=numbers, help="payload bytes, comma separated")
    add("--sas", type=numbers, help="numbers of SAs, comma separated powers of two")
    add("--key-bits", type=int, default=128, choices=(128, 192, 256))
    add("--rounds", type=positive(int), help="samples of each (default 15, quick 7)")
    add("--core", type=int, help="run on this CPU (default: the last one)")
    add("--json", type=Path, metavar="FILE", help="write versions, samples and targets there")
    add("--plot", type=Path, metavar="FILE", help="draw them there (SVG)")
    add("--device", metavar="TARGET", help="measure this device, and none of the parts")
    add("--wire", metavar="URI", help="the far end of its wire, as of conformance: some packets are taken and opened")
    add("--interop", action="store_true", help="fetch ipsec-mb 2.x and DPDK into a private folder, and exit")
    given = parser.parse_args()
    if given.core is not None and given.core not in os.sched_getaffinity(0):
        parser.error(f"--core {given.core}: this process may use {sorted(os.sched_getaffinity(0))}")
    if given.wire and not given.device:
        parser.error("--wire is for --device")
    if given.device:
        _check_device(parser, given)
    given.sizes = given.sizes or (QUICK_SIZES if given.quick else SIZES)
    given.sas = given.sas or (QUICK_SA_COUNTS if given.quick else SA_COUNTS)
    given.rounds = given.rounds or (7 if given.quick else 15)
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if any(n < 1 or n & (n - 1) for n in given.sas):
        parser.error("numbers of SAs are powers of two")
    if not all(1 <= size <= 65536 for size in given.sizes):
        parser.error("sizes are 1 to 65536")
    given.parts = given.parts or list(PARTS)
    return given


def _check_device(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """What concerns --device alone."""
    if given.parts or given.plot:
        parser.error("--device is measured alone and not drawn: leave parts and --plot out")
    given.sizes = given.sizes or device.SIZES
    if not all(device.LEAST <= size <= device.MOST for size in given.sizes):
        parser.error(f"--sizes of packets for --device are {device.LEAST} to {device.MOST}")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def show_group(group: Sequence[Cell], best: str, key_bits: int) -> None:
    """One table: an engine per column, a size per row."""
    others = [cell.engine for cell in group if cell.engine not in OWN and cell.size == group[0].size]
    engines = list(dict.fromkeys(cell.engine for cell in group))
    print(f"\n{group[0].work}, AES-{key_bits}-GCM, {group[0].sas:,} SAs: ns per packet (Gbit/s)")
    print(
        "  bytes" + "".join(f"{e:>16}" for e in engines) + "".join(f"{f'{best} : {o}':>23}" for o in others)
    )
    for size in dict.fromkeys(cell.size for cell in group):
        row = {cell.engine: cell for cell in group if cell.size == size}
        shown = "".join(f"{f'{row[e].best:.1f} ({row[e].gbits:.1f})':>16}" for e in engines)
        print(f"{size:7}{shown}" + "".join(f"{ratio(row[o], row[best]).best:>22.2f}x" for o in others))


def judge_kernels(
    cells: Sequence[Cell], best: str, version: str | None, key_bits: int, limit: float
) -> list[Target]:
    results = []
    for target, size in ((targets.MB_64, 64), (targets.MB_1420, 1420), (targets.MB_8900, 8900)):
        ours, theirs = (find(cells, engine=e, work="seal", size=size, sas=64) for e in (best, "ipsec-mb"))
        if version is None or not version.startswith("2."):
            results.append(target.measured(None, "no ipsec-mb 2.x here: tools/bench --interop fetches it"))
        elif ours is None or theirs is None or key_bits != 128:
            results.append(target.measured(None, "AES-128 with 64 SAs at this size was not asked for"))
        else:
            made = ratio(theirs, ours)
            bound = f"; the AES and multiply units alone need {size * limit:.1f} ns" if limit else ""
            results.append(target.measured(
                made.best, f"{best} {ours.best:.1f} ns, ipsec-mb {theirs.best:.1f} ns; median of the rounds "
                f"{made.median:.2f}x{bound}",
            ))  # fmt: skip
    return results


def run_kernels(
    given: argparse.Namespace, native: Native, quiet: Quiet, versions: dict[str, str]
) -> list[Cell]:
    cells: list[Cell] = []
    best = [name for name in versions if name in OWN][-1]
    group: list[Cell] = []
    measured = kernels.measure(native, given.sizes, given.sas, given.key_bits // 8, given.rounds, quiet)
    for number, made in enumerate(measured, 1):
        group += made
        if number % len(given.sizes) == 0:
            show_group(group, best, given.key_bits)
            cells += group
            group = []
    return cells


def run_esp(
    given: argparse.Namespace, native: Native, engine: str, quiet: Quiet, program: comparators.Program | None,
    cores: tuple[int, int],
) -> list[Cell]:  # fmt: skip
    cells: list[Cell] = []
    print(f"\nESP, tunnel mode, AES-128-GCM, engine {engine}, this many bytes encrypted")
    for group in esp.measure(native, engine, given.sizes, given.sas, given.rounds, quiet, program, cores):
        esp.show(group)
        cells += group
    return cells


def run_vhost(
    given: argparse.Namespace, native: Native, folder: Path, quiet: Quiet, core: int, cores: Sequence[int],
    results: list[Target],
) -> list[Cell]:  # fmt: skip
    others = [each for each in cores if each != core]
    if not others:
        results += [row.measured(None, "needs two cores") for row in vhost.ROWS]
        return []
    made: list[Cell] = []
    program = comparators.testpmd()
    print(f"\nvhost-user transmit, AES-128-GCM ESP tunnel, split ring of {vhost.RING}")
    for group in vhost.measure(native, folder, program, (core, others[0]), given.rounds, quiet):
        vhost.show(group)
        made += group
    results += vhost.judge(made, program)
    return made


def suite() -> Target:
    """The conformance suite as a user starts it: the best of two whole runs, process included."""
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "virtio_ipsec", "conformance"], check=True, stdout=subprocess.DEVNULL
        )
        took.append(time.perf_counter() - begin)
    return targets.SUITE.measured(min(took))


def measure_device(given: argparse.Namespace, cores: Sequence[int], core: int) -> None:
    """--device."""
    with tempfile.TemporaryDirectory() as folder:
        found, quiet = device.measure(given, Path(folder), cores, core)
    print(f"\n{quiet}")
    if given.json:
        document = {
            "schema": "virtio-ipsec bench 2", "cpu": cpu_name(), "core": core, "compiler": compiler_version(),
            "python": platform.python_version(), "disturbed": quiet.disturbed(), "preempted": quiet.preempted(),
            "device": found.document, "cells": [asdict(cell) for cell in found.cells],
        }  # fmt: skip
        given.json.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    given = arguments()
    if given.interop:
        comparators.install()
        return 0
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if given.core is None else given.core
    if given.device:
        measure_device(given, cores, core)
        return 0
    results: list[Target] = []
    cells: list[Cell] = []
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        native = Native(Path(folder))
        os.sched_setaffinity(0, {core})
        quiet = Quiet(native.lib.bench_spin)
        versions = kernels.versions(native)
        compiled = compiler_version()
        print(
            f"{cpu_name()}, core {core}, {given.rounds} rounds; {compiled}; Python {platform.python_version()}"
        )
        for name in (*OWN, "openssl", "ipsec-mb", "cryptography"):
            print(f"  {name}: {versions.get(name, 'not measured: not available here')}")
        best = [name for name in versions if name in OWN][-1]
        if "kernels" in given.parts:
            cells += run_kernels(given, native, quiet, versions)
            limit = native.lib.bench_limit(WIDTHS[best]) if best in WIDTHS else 0.0
            results += judge_kernels(cells, best, versions.get("ipsec-mb"), given.key_bits, limit)
        if "esp" in given.parts:
            program = comparators.crypto_perf() if len(cores) > 1 else None
            others = [each for each in cores if each != core]
            made = run_esp(given, native, best, quiet, program, (core, others[0] if others else core))
            cells += made
            results += esp.judge(made, program, [cell for cell in cells if cell.engine == best])
        if "rings" in given.parts:
            print("\nESP through a split virtqueue and a port, 64 SAs; driver and wire not timed")
            for group in rings.measure(native, best, given.sizes, given.rounds, quiet):
                rings.show(group, cells)
                cells += group
        if "vhost" in given.parts:
            cells += run_vhost(given, native, Path(folder), quiet, core, cores, results)
        if "admin" in given.parts:
            rates = admin.part(given.rounds, quiet)
            results.append(admin.judge(rates))
        if "suite" in given.parts:
            results.append(suite())
    print(targets.show(results))
    print(f"\n{quiet}")
    if given.json:
        document = {
            "schema": "virtio-ipsec bench 2", "cpu": cpu_name(), "core": core, "compiler": compiled,
            "python": platform.python_version(), "versions": versions, "key_bits": given.key_bits,
            "disturbed": quiet.disturbed(), "preempted": quiet.preempted(), "admin": rates,
            "cells": [asdict(cell) for cell in cells],
            "targets": [asdict(result) | {"verdict": result.verdict} for result in results],
        }  # fmt: skip
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    if given.plot:
        foot = [
            f"{cpu_name()}, one core, AES-{given.key_bits}-GCM, best of {given.rounds} rounds",
            str(quiet),
        ]
        given.plot.write_text(
            plot.draw(charts.of(cells, best), "virtio-ipsec: AES-GCM and ESP on one core", foot)
        )
    return 0 if all(any(r.what == row.what and r.met for r in results) for row in targets.TABLE) else 1


if __name__ == "__main__":
    sys.exit(main())
