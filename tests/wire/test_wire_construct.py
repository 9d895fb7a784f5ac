"""What the codecs run against the construct definitions it comes from, and the fuzz entry."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire import admin, flow_filter, net_config
from virtio_ipsec.wire.codec import Record
from virtio_ipsec.wire.dialect import DIALECTS, RFC_2025_01, V14
from virtio_ipsec.wire.fields import Members, le16, octets

RECORDS: list[Record[Any]] = [
    admin.RESOURCE_HEADER,
    flow_filter.FF_RESOURCE_CAP,
    flow_filter.FF_GROUP,
    net_config.NET_CONFIG,
    *(record for each in DIALECTS.values() for record in (each.sa, each.mode_cap, each.resource_cap)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_condensed_and_interpreted_definitions_agree(record: Record[Any]) -> None:
    rng = random.Random(1)
    for _ in range(20):
        wire = rng.randbytes(record.fixed_size)
        members = record.members.unpack(wire, 0)
        plain = record.members.definition.parse(wire)
        names = record.members.attributes
        assert {name: members[name] for name in names} == {name: plain[name] for name in names}
        assert record.members.pack(members) == record.members.definition.build(plain)


def test_octets_of_the_wrong_length_are_refused() -> None:
    members = Members("pair", (le16("a"), octets("b", 3)))
    assert members.pack({"a": 1, "b": b"xyz"}) == b"\1\0xyz"
    with pytest.raises(WireError, match="2 bytes where 3"):
        members.pack({"a": 1, "b": b"xy"})
    with pytest.raises(WireError, match="should be bytes"):
        members.pack({"a": 1, "b": "xyz"})


def test_dialects_are_found_by_name_and_varied_by_switch() -> None:
    assert dict(DIALECTS) == {"virtio-1.4": V14, "rfc-2025-01": RFC_2025_01}
    assert replace(V14, query_opcode=0xC, modify_opcode=0xB) != V14
    assert (V14.ipsec_options, RFC_2025_01.ipsec_options) == (0x7F, 0x1F)
    assert V14.sa is V14.sa
    for dialect in DIALECTS.values():
        assert set(dialect.capabilities) == {0, 0x800, 0x801, 0x802, 0x803, 0x804}
        assert set(dialect.objects) == {0, 0x200, 0x201, 0x202, 0x203, 0x204}


ROOT = Path(__file__).resolve().parents[2]


def fuzz(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_a_short_fuzz_run_finds_nothing() -> None:
    done = fuzz(ROOT / "tests/fuzz/fuzz_wire.py", "--count", "600")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 inputs" in done.stdout


PLANTED = """
import sys
sys.path.insert(0, {folder!r})
from harness import Target, fuzz

def crash(data):
    if len(data) > 4:
        raise KeyError("planted")

def hang(data):
    while data:
        pass

sys.exit(fuzz([Target("crash", lambda rng: bytes(8), crash), Target("hang", lambda rng: bytes(8), hang)]))
"""


@pytest.mark.parametrize(("target", "found"), [("crash", "KeyError: 'planted'"), ("hang", "Hang")])
def test_the_fuzz_harness_reports_a_planted_fault(tmp_path: Path, target: str, found: str) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(folder=str(ROOT / "tests/fuzz")))
    done = fuzz(script, "--count", "50", "--target", target, "--limit", "0.2")
    assert done.returncode == 1
    assert found in done.stderr
    repeat = done.stdout.split("--input ")[1].strip()
    again = fuzz(script, "--target", target, "--limit", "0.2", "--input", repeat)
    assert again.returncode == 1
    assert fuzz(script, "--target", target, "--input", "-").returncode == 0
