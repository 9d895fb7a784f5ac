"""The extension is there, chooses its engine as the contract says, and the package lives without it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast_rings import port_config
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import gcm, native
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.net_header import V14_12

WITHOUT = """
import sys
sys.modules["virtio_ipsec.fastpath._vipsec"] = None  # as if it had not been built
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import gcm, native
assert not native.available() and native.why_not() and gcm.engine_names() == ()
try:
    gcm.Engine()
except ConfigError as error:
    print(error)
import virtio_ipsec.cli.main, virtio_ipsec.device, virtio_ipsec.driver, virtio_ipsec.transport
"""


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_extension_is_built() -> None:
    assert native.available(), f"{native.why_not()}: install with a C compiler present (pip install -e .)"
    assert native.why_not() == ""


def test_everything_but_the_fast_path_works_without_it() -> None:
    assert "the C fast path is not built" in python(WITHOUT)


@pytest.mark.parametrize("verb", ["conformance --only NET-IPSEC-DEV-*", "info"])
def test_the_main_job_runs_on_the_python_path_and_says_so(verb: str) -> None:
    said = python(WITHOUT + f"virtio_ipsec.cli.main.main({verb.split()!r})")
    assert "passed: loopback" in said or "PACKETS RUN ON THE PYTHON PATH" in said


def test_the_default_is_the_best_engine_of_the_machine() -> None:
    program = "from virtio_ipsec.fastpath import gcm; print(gcm.Engine().name)"
    environment = {k: v for k, v in os.environ.items() if k != "VIRTIO_IPSEC_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == gcm.engine_names()[-1]


@pytest.mark.parametrize("name", gcm.engine_names())
def test_the_environment_forces_an_engine(name: str) -> None:
    program = "from virtio_ipsec.fastpath import gcm; print(gcm.Engine().name)"
    assert python(program, VIRTIO_IPSEC_ISA=name) == name


def absent() -> list[str]:
    everything = ("evp", "aesni", "vaes256", "vaes512")
    return ["", "neon", "AESNI", *(name for name in everything if name not in gcm.engine_names())]


@pytest.mark.parametrize("name", absent())
def test_a_forced_engine_that_cannot_run_is_an_error_and_not_another_engine(name: str) -> None:
    program = """
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import gcm
try:
    print(gcm.Engine())
except ConfigError as error:
    print("refused:", error)
"""
    assert python(program, VIRTIO_IPSEC_ISA=name).startswith(
        "refused: the engine that VIRTIO_IPSEC_ISA names cannot"
    )
    with pytest.raises(ConfigError, match="cannot run here"):
        gcm.Engine(name or "none")


def test_isa_numbers_outside_the_enum_have_no_name_and_no_engine() -> None:
    ffi, lib = native.extension()
    for isa in (-1, lib.VIPSEC_ISA_COUNT, 1 << 30):
        assert lib.vipsec_isa_name(isa) == ffi.NULL
        assert lib.vipsec_gcm_engine(isa) == ffi.NULL


def cpu_flags() -> set[str]:
    with open("/proc/cpuinfo") as file:
        return set(next(line for line in file if line.startswith("flags")).split(":")[1].split())


# What Linux says of the CPU, independent of our own reading of CPUID.
NEEDS = {
    "aesni": {"aes", "pclmulqdq", "ssse3", "sse4_1"},
    "vaes256": {"aes", "pclmulqdq", "avx2", "vaes", "vpclmulqdq"},
    "vaes512": {
        "aes",
        "pclmulqdq",
        "avx2",
        "vaes",
        "vpclmulqdq",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
    },
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_engine_is_offered_exactly_when_the_cpu_has_its_instructions(name: str) -> None:
    assert (name in gcm.engine_names()) == (NEEDS[name] <= cpu_flags())


def test_the_evp_engine_says_which_libcrypto_it_found() -> None:
    assert gcm.libcrypto_version().startswith("OpenSSL ") == ("evp" in gcm.engine_names())


def test_without_the_extension_this_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "virtio_ipsec.fastpath._vipsec", None)
    monkeypatch.delattr("virtio_ipsec.fastpath._vipsec")
    specification = importlib.util.spec_from_file_location("native_again", native.__file__)
    assert specification is not None
    assert specification.loader is not None
    reloaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(reloaded)
    assert not reloaded.available()
    assert "_vipsec" in reloaded.why_not()
    with pytest.raises(ConfigError, match="not built"):
        reloaded.extension()
    monkeypatch.setattr(native, "available", reloaded.available)
    assert gcm.engine_names() == ()


def test_no_memory_for_a_key_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, (ffi, lib) = gcm.Engine(), native.extension()

    class Exhausted:
        """The library, on a machine that has no memory left for keys."""

        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

        def vipsec_gcm_key_new(self, *_: object) -> object:
            return ffi.NULL

    monkeypatch.setattr(native, "extension", lambda: (ffi, Exhausted()))
    with pytest.raises(MemoryError):
        engine.key(bytes(16))


def test_the_net_header_of_c_is_that_of_the_wire() -> None:
    ffi, _ = native.extension()
    fields = V14_12.layout()
    assert ffi.sizeof("struct vipsec_net_hdr") == V14_12.size
    for field in fields:
        assert ffi.offsetof("struct vipsec_net_hdr", field.name) == field.offset, field.name


@pytest.mark.parametrize(
    ("dialect", "size", "places"), [(V14, 32, (12, 24, 26, 30)), (RFC_2025_01, 26, (12, None, 20, 24))]
)
def test_c_is_told_where_the_negotiated_header_has_its_fields(
    dialect: Dialect, size: int, places: tuple[int | None, ...]
) -> None:
    device = Device(DeviceConfig(dialect=dialect), lambda n: bytes(n))
    device.negotiate(device.offered_features)
    config = port_config(device.context)
    assert config.header_size == size
    assert (config.hash_at, config.outer_nh_at, config.resource_id_at, config.resource_type_at) == places
