"""The data in spec/ through its loader, and the ledger beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from virtio_ipsec import specification
from virtio_ipsec.specification import clause, layout, load_clauses, load_layouts

SPEC = Path(__file__).resolve().parents[2] / "spec"
ENTRY = re.compile(r"^### (E\d+) (?:\* )?(.+)\n((?:- .+\n)+)", re.M)


def ledger() -> dict[str, list[str]]:
    """The bullet points of every ledger entry by id."""
    text = (SPEC / "ambiguities.md").read_text(encoding="utf-8")
    return {match[1]: match[3].splitlines() for match in ENTRY.finditer(text)}


def test_clause_counts() -> None:
    """47 groups with 425 statements, 63 without a keyword, and those of the older dialect."""
    counts = Counter(c.group for c in load_clauses())
    assert counts.pop("INF") == 63
    assert counts.pop("RFC") == 39
    assert len(counts) == 47
    assert counts.total() == 425


def test_a_clause() -> None:
    entry = clause("NET-IPSEC-DEV-05")
    assert (entry.role, entry.level, entry.lines, entry.observed) == ("device", "MUST", (3631,), "device")
    assert entry.levels == ("MUST",)
    assert clause("NET-TX-DRV-05").levels == ("MAY", "MUST NOT")
    assert clause("CRY-IPSEC-DEV-05").net_twin == "NET-IPSEC-DEV-05"
    with pytest.raises(FrozenInstanceError):
        entry.text = "x"  # type: ignore[misc]


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        clause("NET-NONE-01")
    with pytest.raises(KeyError):
        layout("virtio_nothing")
    with pytest.raises(KeyError):
        layout("virtio_net_hdr").field("nothing")


def test_values_are_loaded_once() -> None:
    assert load_clauses() is load_clauses()
    assert load_layouts() is load_layouts()


def test_layout_falls_back_to_the_common_one() -> None:
    assert layout("virtio_net_config", "rfc-2025-01").dialect == "virtio-1.4"
    assert layout("virtio_net_hdr", "rfc-2025-01").field("ipsec_resource_hdr.resource_id").offset == 20


def test_missing_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(specification, "__file__", str(tmp_path / "virtio_ipsec" / "specification.py"))

    def absent(_package: str) -> Path:
        raise ModuleNotFoundError

    monkeypatch.setattr(specification, "files", absent)
    with pytest.raises(FileNotFoundError):
        specification.data_folder()


def test_installed_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specification, "files", lambda _package: SPEC)
    assert specification.data_folder() is SPEC


def test_ledger_entries_are_complete() -> None:
    """Ids without a gap, and problem, readings, choice and reason in each."""
    entries = ledger()
    assert list(entries) == [f"E{n:02d}" for n in range(1, len(entries) + 1)]
    for name, bullets in entries.items():
        assert [b.split(":")[0] for b in bullets] == ["- Problem", "- Readings", "- Choice", "- Reason"], name


def test_clauses_cite_ledger_entries() -> None:
    entries = ledger()
    for entry in load_clauses():
        assert set(entry.ambiguities) <= set(entries), entry.id


def test_pins_cover_the_ledger() -> None:
    """Each entry has a list of pins, or one honest reason for having none."""
    pins = json.loads((SPEC / "ledger_pins.json").read_text(encoding="utf-8"))
    assert list(pins) == list(ledger())
    for name, value in pins.items():
        if isinstance(value, dict):
            assert list(value) == ["none"], name
            assert value["none"].endswith("."), name
        else:
            assert all(re.fullmatch(r"tests/\S+\.py::\S+|case \S+", pin) for pin in value), name


def test_rfc_page_cites_clauses_that_exist() -> None:
    text = (SPEC / "rfc-2025-01.md").read_text(encoding="utf-8")
    cited = set(re.findall(r"\bRFC-\d\d\b", text))
    assert cited
    assert all(clause(name).group == "RFC" for name in cited)


def test_rfc_clauses_say_where_they_come_from() -> None:
    for entry in load_clauses():
        if entry.group == "RFC":
            assert entry.section == "our choice" or entry.section.startswith('slide "'), entry.id
            assert entry.dialects == ("rfc-2025-01",)
