"""Whole ESP packets: csrc/, the Python rooms, and what DPDK's software device needs for the cryptography alone.

At size N, N bytes are encrypted, as in every other figure: in tunnel mode an IPv4 packet of N - 2 bytes and the ESP
trailer. For DPDK there is no packet around them, no SA to be found and one key, so the comparison is in its favour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from os import urandom
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tools.bench_parts.cells import Cell, Quiet, Ratio, Runner, find, in_turn, ratio
from tools.bench_parts.comparators import Program
from tools.bench_parts.dpdk import CryptoPerf
from tools.bench_parts.native import Native, engine_numbers
from tools.bench_parts.targets import ESP_DPDK, ESP_PYTHON, ESP_SAS, Target
from virtio_ipsec.ipsec import process
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, Direction, IpsecMode
from virtio_ipsec.wire.tunnel import TunnelIPv4

PACKETS = 64
SAMPLE_NS = 1e6
#: Pad length and next header.
TRAILER = 2
SALT, IV_BASE = bytes((1, 2, 3, 4)), 0x123456789ABCDEF0
#: Sizes at which DPDK, which is a process of its own each time, takes part.
DPDK_SIZES = (64, 1420)
ORACLE_SIZE = 64


class Esp:
    """csrc/ with one SA table at one size."""

    def __init__(self, native: Native, sas: Any, count: int, size: int) -> None:
        self.ffi, self.lib, self.count = native.ffi, native.lib, count
        self.size = size - TRAILER
        self.cells = tuple(Cell("esp", "C", work, size, count) for work in ("out", "in"))
        self.bench = self.ffi.gc(self.lib.bench_esp_new(sas, self.size), self.lib.bench_esp_free)
        self.took = self.ffi.new("double[2]")
        self.passes = 2
        self._run()
        self.passes = max(1, round(SAMPLE_NS / PACKETS / (self.took[0] + self.took[1])))

    def _run(self) -> None:
        self.lib.bench_esp_sample(self.bench, self.passes, self.took, self.took + 1)
        if self.lib.bench_esp_bad(self.bench):
            raise SystemExit(f"ESP: packets of {self.size} B were refused or came back changed")

    def sample(self) -> None:
        self._run()
        for cell, took in zip(self.cells, self.took, strict=True):
            cell.samples.append(took)
        for i in range(PACKETS):
            length = self.lib.bench_esp_sealed_len(self.bench, i)
            packet = self.ffi.buffer(self.lib.bench_esp_sealed(self.bench, i), length)
            plain = self.ffi.buffer(self.lib.bench_esp_plain(self.bench, i), self.size)
            check_sealed(bytes(packet), bytes(plain))


def check_sealed(packet: bytes, plain: bytes) -> None:
    """SystemExit unless `packet` is what the SAs of esp.c make of `plain`: opened with `cryptography`."""
    head, esp = packet[:20], packet[20:]
    spi, sequence = int.from_bytes(esp[:4]), int.from_bytes(esp[4:8])
    key = (spi - 0x1000).to_bytes(4, "little") + b"\x5a" * 12
    inner = AESGCM(key).decrypt(SALT + esp[8:16], esp[16:], esp[:8])
    padding = -(len(plain) + 2) % 4
    right = (
        head[:4] == b"\x45\0" + len(packet).to_bytes(2)
        and head[8:10] == bytes((64, 50))
        and head[12:] == bytes((192, 0, 2, 1, 192, 0, 2, 2))
        and esp[8:16] == ((IV_BASE + sequence) % 2**64).to_bytes(8)
        and inner == plain + bytes(range(1, padding + 1)) + bytes((padding, 4))
    )
    if not right:
        raise SystemExit(f"ESP: wrong bytes at {len(plain)} B")


class Oracle:
    """The Python rooms, one packet per call; a packet that went out comes in."""

    def __init__(self) -> None:
        self.cells = tuple(Cell("esp", "Python", work, ORACLE_SIZE, 1) for work in ("out", "in"))
        tunnel = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64)
        out, into = (
            SaParams.from_wire(
                IpsecSa(
                    mode=IpsecMode.ESP_TUNNEL, direction=direction, spi=0x1000, salt=SALT, param=tunnel,
                    cipher_algo=AeadAlgo.GCM, cipher_key=bytes(16), replay_win_sz=64,
                ),
                V14, direction,
            )
            for direction in (Direction.OUTBOUND, Direction.INBOUND)
        )  # fmt: skip
        self.out, self.into = OutboundSa(out, urandom), InboundSa(into)
        self.plain = bytes.fromhex("4500003e00000000401166ad0a0000010a000002") + bytes(range(42))

    def sample(self) -> None:
        begin = time.perf_counter_ns()
        sealed = [process.outbound(self.out, self.plain) for _ in range(PACKETS)]
        middle = time.perf_counter_ns()
        opened = [process.inbound(self.into, packet) for packet in sealed]
        end = time.perf_counter_ns()
        if any(each.packet != self.plain for each in opened):
            raise SystemExit("the Python rooms: a packet came back changed")
        for cell, took in zip(self.cells, (middle - begin, end - middle), strict=True):
            cell.samples.append(took / PACKETS)


def measure(
    native: Native, engine: str, sizes: Sequence[int], sa_counts: Sequence[int], rounds: int, quiet: Quiet,
    program: Program | None, cores: tuple[int, int],
) -> Iterator[list[Cell]]:  # fmt: skip
    """One list of cells per size: C with each number of SAs, the Python rooms, DPDK, in turn."""
    number = engine_numbers((engine,))[engine]
    tables = {count: native.lib.bench_sas_new(number, count) for count in sa_counts}
    if native.ffi.NULL in tables.values():
        raise SystemExit("error: no memory for that many SAs: choose fewer with --sas")
    try:
        for size in sizes:
            runners: list[Runner] = [Esp(native, table, count, size) for count, table in tables.items()]
            if size == ORACLE_SIZE:
                runners.append(Oracle())
            if program is not None and size in DPDK_SIZES:
                runners += [
                    CryptoPerf(program, *cores, operation, size) for operation in ("encrypt", "decrypt")
                ]
            yield in_turn(runners, rounds, quiet)
            runners.clear()
    finally:
        for table in tables.values():
            native.lib.bench_sas_free(table)


def show(group: Sequence[Cell]) -> None:
    """The cells of one size."""
    for cell in group:
        sas = "1 SA" if cell.sas == 1 else f"{cell.sas:,} SAs"
        name = {"C": "C, whole ESP", "Python": "Python, whole ESP", "dpdk": "DPDK crypto-perf"}[cell.engine]
        print(f"{cell.size:7} {name:20} {cell.work:8} {sas:>15} {cell.best:10.1f} ns {1e3 / cell.best:8.2f} Mpps"
              f" {cell.gbits:7.1f} Gbit/s")  # fmt: skip


def judge(cells: Sequence[Cell], program: Program | None, bare: Sequence[Cell]) -> list[Target]:
    """Rows 3, 5 and 8. ``bare``: cells of the kernels of the same engine, for what they show about the rest."""
    results = []
    few, many_keys = (find(bare, work="seal", size=64, sas=sas) for sas in (64, 65536))
    alone = f"; the kernel alone takes {few.best:.1f} ns" if few else ""
    spread = f"; the kernel alone: {ratio(many_keys, few)}" if few and many_keys else ""
    out, into = (find(cells, engine="C", work=work, size=64, sas=64) for work in ("out", "in"))
    theirs = find(cells, engine="dpdk", work="encrypt", size=64)
    if program is None:
        results.append(
            ESP_DPDK.measured(None, "no dpdk-test-crypto-perf here: tools/bench --interop fetches it")
        )
    elif out is None or theirs is None:
        results.append(ESP_DPDK.measured(None, "64 B with 64 SAs was not asked for"))
    else:
        made = ratio(theirs, out)
        note = (
            f"C {out.best:.1f} ns with headers, SA lookup and sequence numbers{alone}; DPDK {program.version}"
        )
        results.append(ESP_DPDK.measured(
            made.best, f"{note} {theirs.best:.1f} ns to encrypt 64 B; median of the rounds {made.median:.2f}x",
        ))  # fmt: skip
    many = [find(cells, engine="C", work=work, size=64, sas=65536) for work in ("out", "in")]
    if out is None or into is None or None in many:
        results.append(ESP_SAS.measured(None, "64 and 65,536 SAs at 64 B were not asked for"))
    else:
        made_each = [ratio(more, less) for more, less in zip(many, (out, into), strict=True) if more]
        results.append(ESP_SAS.measured(
            max(each.best for each in made_each),
            f"the worse of out {made_each[0]} and in {made_each[1]}{spread}",
        ))  # fmt: skip
    oracle = [find(cells, engine="Python", work=work) for work in ("out", "in")]
    if out is None or into is None or None in oracle:
        results.append(ESP_PYTHON.measured(None, "64 B with 64 SAs was not asked for"))
    else:
        faster: list[Ratio] = [
            ratio(slow, fast) for slow, fast in zip(oracle, (out, into), strict=True) if slow
        ]
        results.append(ESP_PYTHON.measured(
            min(each.best for each in faster), f"the lesser of out {faster[0].best:.0f}x and in {faster[1].best:.0f}x",
        ))  # fmt: skip
    return results
