"""AES-GCM engines in bursts: ours, OpenSSL EVP, ipsec-mb's direct calls, `cryptography` from a Python loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import cryptography
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tools.bench_parts.cells import Cell, Quiet, Runner, in_turn
from tools.bench_parts.native import OWN, Native, engine_numbers

PACKETS = 64  # buffers, and packets per call
#: SAs from which only the best engine and the two libraries take part: each SA is 1-2 KiB per engine.
MANY = 1 << 20
SAMPLE_NS = 1e6  # of work per try; the best of three tries is the sample of a round
TRIES = 3


class Kernel:
    """A C engine on one kind of work."""

    def __init__(self, native: Native, keys: Any, key_len: int, cell: Cell) -> None:
        self.ffi, self.lib, self.key_len = native.ffi, native.lib, key_len
        self.cell, self.cells = cell, (cell,)
        self.opening = cell.work == "open"
        new = self.lib.bench_new(keys, self.opening, cell.size)
        self.bench = self.ffi.gc(new, self.lib.bench_free)
        self.plain = [self._bytes(self.lib.bench_in(new, i), cell.size) for i in range(PACKETS)]
        self.aeads: dict[bytes, AESGCM] = {}
        if self.opening:
            for i in range(PACKETS):
                sealed = self._seal(i)
                self.ffi.memmove(self.lib.bench_in(new, i), sealed, cell.size)
                self.ffi.memmove(self.lib.bench_op(new, i).tag, sealed[cell.size :], 16)
        self.passes = 2
        estimate = self.lib.bench_sample(new, self.passes, TRIES)
        self.passes = max(1, round(SAMPLE_NS / estimate / PACKETS))

    def _bytes(self, pointer: Any, size: int) -> bytes:
        return bytes(self.ffi.buffer(pointer, size))

    def _seal(self, i: int) -> bytes:
        op = self.lib.bench_op(self.bench, i)
        key = self._bytes(self.lib.bench_key(self.bench, i), self.key_len)
        aead = self.aeads.setdefault(key, AESGCM(key))
        return aead.encrypt(bytes(op.iv), self.plain[i], bytes(op.aad)[: op.aad_len])

    def sample(self) -> None:
        self.cell.samples.append(self.lib.bench_sample(self.bench, self.passes, TRIES))
        if self.lib.bench_bad(self.bench):
            raise SystemExit(f"{self.cell}: packets failed in the timed loop")
        for i in range(PACKETS):
            op = self.lib.bench_op(self.bench, i)
            tag = b"" if self.opening else self._bytes(op.tag, 16)
            right = self.plain[i] if self.opening else self._seal(i)
            if self._bytes(op.out, self.cell.size) + tag != right:
                raise SystemExit(f"{self.cell.engine}: wrong bytes, {self.cell.work} of {self.cell.size} B")


class Library:
    """`cryptography`, called from a Python loop."""

    def __init__(self, cell: Cell, key_len: int) -> None:
        self.cell, self.cells = cell, (cell,)
        aeads = [AESGCM(i.to_bytes(key_len, "big")) for i in range(min(cell.sas, PACKETS))]
        plain = bytes(cell.size)
        self.work: list[tuple[Any, bytes, bytes, bytes]] = []
        self.right: list[bytes] = []
        for i in range(PACKETS):
            aead, iv, aad = aeads[i % len(aeads)], i.to_bytes(12, "big"), i.to_bytes(8, "big")
            sealed = aead.encrypt(iv, plain, aad)
            opening = cell.work == "open"
            self.work.append(
                (aead.decrypt if opening else aead.encrypt, iv, sealed if opening else plain, aad)
            )
            self.right.append(plain if opening else sealed)

    def sample(self) -> None:
        best = float("inf")
        for _ in range(TRIES):
            begin = time.perf_counter_ns()
            made = [call(iv, data, aad) for call, iv, data, aad in self.work]
            best = min(best, (time.perf_counter_ns() - begin) / PACKETS)
            if made != self.right:
                raise SystemExit("cryptography: wrong bytes")
        self.cell.samples.append(best)


def versions(native: Native) -> dict[str, str]:
    """What takes part, by engine."""
    found = native.versions()
    found["cryptography"] = f"{cryptography.__version__}, {backend.openssl_version_text()}"
    return found


def measure(
    native: Native,
    sizes: tuple[int, ...],
    sa_counts: tuple[int, ...],
    key_len: int,
    rounds: int,
    quiet: Quiet,
) -> Iterator[list[Cell]]:
    """One list of cells per kind of work: the engines that took turns on it."""
    engines = list(native.versions())
    own = [name for name in engines if name in OWN]
    for sas in sa_counts:
        taking_part = engines if sas < MANY else [e for e in engines if e == own[-1] or e not in OWN]
        numbers = engine_numbers(taking_part)
        keys = {name: native.lib.bench_keys_new(number, key_len, sas) for name, number in numbers.items()}
        try:
            for work in ("seal", "open"):
                for size in sizes:
                    runners: list[Runner] = [
                        Kernel(native, keys[name], key_len, Cell("kernels", name, work, size, sas))
                        for name in keys
                    ]
                    if sas == PACKETS:
                        runners.append(Library(Cell("kernels", "cryptography", work, size, sas), key_len))
                    yield in_turn(runners, rounds, quiet)
                    runners.clear()
        finally:
            for each in keys.values():
                native.lib.bench_keys_free(each)
