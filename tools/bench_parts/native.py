"""Builds csrc/, the timing loops and the comparators into one shared object, and loads it; or some of the loops."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi

from tools.bench_parts import comparators
from tools.build_ffi import declarations

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OWN = ("evp", "aesni", "vaes256", "vaes512")  # in the order of enum vipsec_isa
FLAGS = ["-O2", "-std=gnu11", "-D_GNU_SOURCE", "-fPIC", f"-I{ROOT / 'csrc'}"]
LOOPS = """
double bench_spin(void);
double bench_limit(unsigned width);
struct bench_keys;
struct bench_keys *bench_keys_new(int engine, uint32_t key_len, uint32_t sas);
void bench_keys_free(struct bench_keys *);
struct bench;
struct bench *bench_new(const struct bench_keys *, int opening, uint32_t len);
void bench_free(struct bench *);
double bench_sample(struct bench *, uint32_t passes, uint32_t tries);
uint64_t bench_bad(const struct bench *);
const char *bench_version(int engine);
const uint8_t *bench_key(const struct bench *, uint32_t packet);
struct vipsec_gcm_op *bench_op(struct bench *, uint32_t packet);
uint8_t *bench_in(struct bench *, uint32_t packet);
struct bench_sas;
struct bench_sas *bench_sas_new(int engine, uint32_t count);
void bench_sas_free(struct bench_sas *);
struct bench_esp;
struct bench_esp *bench_esp_new(const struct bench_sas *, uint32_t len);
void bench_esp_free(struct bench_esp *);
void bench_esp_sample(struct bench_esp *, uint32_t passes, double *out, double *in);
uint64_t bench_esp_bad(const struct bench_esp *);
const uint8_t *bench_esp_sealed(const struct bench_esp *, uint32_t packet);
uint32_t bench_esp_sealed_len(const struct bench_esp *, uint32_t packet);
const uint8_t *bench_esp_plain(const struct bench_esp *, uint32_t packet);
struct bench_rings;
struct bench_rings *bench_rings_new(const struct bench_sas *, const struct vipsec_port_config *, const uint8_t *header,
                                    const uint8_t *plain, uint32_t len);
void bench_rings_free(struct bench_rings *);
void bench_rings_sample(struct bench_rings *, uint32_t passes, double *out, double *in);
uint64_t bench_rings_bad(const struct bench_rings *);
const uint8_t *bench_rings_sealed(const struct bench_rings *, uint32_t packet);
uint32_t bench_rings_sealed_len(const struct bench_rings *, uint32_t packet);
struct bench_feed;
size_t bench_feed_size(void);
struct bench_bell {
    int fd;
    void *word;
    uint16_t value;
    void (*call)(void);
};
void bench_feed_init(struct bench_feed *, uint8_t *avail, uint8_t *used, uint32_t size, const struct bench_bell *);
uint64_t bench_feed_run(struct bench_feed *, double duration, uint64_t most, double *rate);
uint64_t bench_feed_bad(const struct bench_feed *);
"""


def engine_numbers(names: Sequence[str]) -> dict[str, int]:
    """Engine numbers of the C code, for these names."""
    every = {name: number for number, name in enumerate(OWN)} | {"openssl": 100, "ipsec-mb": 101}
    return {name: every[name] for name in names}


def compiler() -> str:
    return os.environ.get("CC", "gcc")


def compiler_version() -> str:
    shown = subprocess.run([compiler(), "--version"], text=True, capture_output=True, check=True)
    return shown.stdout.splitlines()[0]


def has_header(header: str, flags: Sequence[str] = ()) -> bool:
    done = subprocess.run(
        [compiler(), *flags, "-E", "-"],
        input=f"#include <{header}>\n", text=True, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


class Native:
    """The shared object; `folder` lives as long as this does. `only`: files of the loops to be built, without csrc/ and
    comparators."""

    def __init__(self, folder: Path, only: Sequence[str] = ()) -> None:
        flags, libraries, sources = list(FLAGS), ["-ldl", "-lpthread"], [HERE / name for name in only]
        if not sources:
            sources = [*sorted((ROOT / "csrc").glob("*.c")), *sorted(HERE.glob("*.c"))]
            self._find_comparators(flags, libraries)

        def make(source: Path) -> str:
            made = str(folder / f"{source.stem}.o")
            subprocess.run([compiler(), *flags, "-c", str(source), "-o", made], check=True)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(make, sources))
        shared = folder / "bench.so"
        subprocess.run([compiler(), "-shared", *objects, *libraries, "-o", str(shared)], check=True)
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(declarations() + LOOPS)
        self.lib: Any = self.ffi.dlopen(str(shared))

    @staticmethod
    def _find_comparators(flags: list[str], libraries: list[str]) -> None:
        if has_header("openssl/evp.h"):
            flags.append("-DWITH_OPENSSL")
            libraries.append("-lcrypto")
        private = comparators.ipsec_mb()
        headers = [f"-I{private.include}"] if private else []
        if has_header("intel-ipsec-mb.h", headers):
            flags += [*headers, "-DWITH_IPSEC_MB"]
            if private:
                libraries += [f"-L{private.library}", f"-Wl,-rpath,{private.library}"]
            libraries.append("-lIPSec_MB")

    def versions(self) -> dict[str, str]:
        """Engines that can run here, slowest of ours first, with the version of foreign ones."""
        found = {}
        for name, number in engine_numbers((*OWN, "openssl", "ipsec-mb")).items():
            text = self.lib.bench_version(number)
            if text != self.ffi.NULL:
                found[name] = "ours" if name in OWN else self.ffi.string(text).decode()
        return found
