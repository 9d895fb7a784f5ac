"""`virtio-ipsec ctl` against a live port: what it prints, what it sends, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from managed import BackEnd
from operator_ports import KEYS

from virtio_ipsec.cli.ctl_shown import port_line, sa_line
from virtio_ipsec.cli.ctl_top import page
from virtio_ipsec.cli.main import main

Ctl = Callable[..., str]
SECRETS = (*KEYS, "a0a1a2a3")
SA = """
[[sa]]
id = {id}
direction = "outbound"
mode = "esp-tunnel"
spi = {id}
algorithm = "aes-gcm-16"
{key}
salt = "00000000"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}
"""
INBOUND = """
[[sa]]
id = 5
direction = "inbound"
mode = "esp-tunnel"
spi = 5
algorithm = "aes-gcm-16"
key = "55000000000000000000000000000000"
salt = "00000000"
peer = "any"
selectors = [{}]
"""


def sa(id: int, key: str = "") -> str:
    return SA.format(id=id, key=key or f'key = "{id:032x}"')


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackEnd]:
    result = BackEnd(tmp_path / "ctl").start()
    monkeypatch.setenv("VIRTIO_IPSEC_CONTROL", result.path)
    yield result
    result.stop()


@pytest.fixture
def ctl(end: BackEnd, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Runs `ctl` and gives what it printed; ``code``: what it has to end with."""

    def run(*words: str, code: int = 0) -> str:
        assert main(["ctl", *words]) == code
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (1 if code else 0)
        return captured.err if code else captured.out

    return run


def private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_sas_are_shown_one_a_line_and_as_json(ctl: Ctl, end: BackEnd) -> None:
    end.send()
    lines = ctl("sa", "list").splitlines()
    assert lines[0].startswith(
        "outbound     1 0x00001001 esp-tunnel aes-gcm-16; 192.0.2.1 > 192.0.2.2; key xxxx"
    )
    assert "; sequence 1, 1 packets, " in lines[0]
    assert lines[0].endswith(" bytes; flows to-peer to-peer6")
    assert "; peer 192.0.2.2; " in lines[1]
    listed = json.loads(ctl("--json", "sa", "list"))
    assert [entry["sa"]["direction"] for entry in listed] == ["outbound", "inbound"]
    assert not any(
        secret in ctl(*words) for words in (("sa", "list"), ("--json", "sa", "list")) for secret in SECRETS
    )
    assert all(secret in ctl("sa", "list", "--show-keys") for secret in SECRETS)


def test_all_sas_are_shown_however_many(ctl: Ctl, tmp_path: Path) -> None:
    file = private(tmp_path / "many.toml", "".join(sa(id) for id in range(2, 402)))
    assert ctl("sa", "add", file) == "400 added, 0 refused\n"
    assert len(ctl("sa", "list").splitlines()) == 402
    assert len(json.loads(ctl("--json", "sa", "list"))) == 402


def test_tables_of_a_file_are_added_and_those_refused_named(
    ctl: Ctl, end: BackEnd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k").write_text("0x" + "ab" * 16 + "\n")
    (tmp_path / "k").chmod(0o600)
    text = sa(2) + sa(1) + sa(3, 'key_file = "k"') + INBOUND
    file = private(tmp_path / "new.toml", text)
    assert main(["ctl", "sa", "add", file]) == 1
    captured = capsys.readouterr()
    assert captured.out == "3 added, 1 refused\n"
    assert captured.err == f"virtio-ipsec: error: {file}: sa 2: sa id 1: id 1 is used twice\n"
    assert ctl("sa", "remove", "outbound", "3") == "removed outbound sa 3\n"
    assert json.loads(ctl("--json", "sa", "remove", "inbound", "5")) == {"removed": "inbound sa 5"}
    assert "has no outbound sa 9" in ctl("sa", "remove", "outbound", "9", code=2)


def test_flows(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ctl("flow", "list").splitlines()
    assert lines[0] == "to-peer: local 10.0.1.0/24 remote 10.0.2.0/24: protect by sa 1"
    assert lines[2] == "arp: service arp: bypass (priority 100)"
    monkeypatch.setattr(sys, "stdin", io.StringIO('[[flow]]\nname = "all"\naction = "drop"\n'))
    assert ctl("flow", "add", "-") == "1 added, 0 refused\n"
    assert ctl("flow", "list").splitlines()[-1] == "all: everything: drop"
    assert json.loads(ctl("--json", "flow", "list"))[-1]["name"] == "all"
    assert ctl("flow", "remove", "all") == "removed flow all\n"
    (tmp_path / "flow.toml").write_text('[[flow]]\nmatch = { ethertype = 0x88cc }\naction = "bypass"\n')
    assert json.loads(ctl("--json", "flow", "add", str(tmp_path / "flow.toml"))) == {"added": 1, "refused": 0}
    assert "ethertype 35020: bypass" in ctl("flow", "list")


def test_rekeying(ctl: Ctl, end: BackEnd, tmp_path: Path) -> None:
    file = private(tmp_path / "new.toml", sa(2) + INBOUND)
    assert ctl("rekey", "1", file) == "added outbound sa 2 and inbound sa 5, removed outbound sa 1\n"
    (frame,) = end.send()
    assert int.from_bytes(frame[34:38]) == 2
    for text in (sa(3) + sa(4), INBOUND, ""):
        assert "error" in ctl("rekey", "2", private(tmp_path / "bad.toml", text), code=2)


def test_ports_counters_and_metrics(ctl: Ctl, end: BackEnd) -> None:
    end.send()
    assert ctl("ports") == "port0: operator control, 1 outbound and 1 inbound SAs, 6 flows, owns its SAs\n"
    assert json.loads(ctl("--json", "ports"))[0]["name"] == "port0"
    assert "           1 tx_protected\n" in ctl("counters")
    assert json.loads(ctl("--json", "counters"))["tx_protected"] == 1
    assert 'event="tx_protected"} 1' in ctl("metrics")


def test_top_shows_what_moves(ctl: Ctl, end: BackEnd) -> None:
    lines = ctl("top", "--count", "2", "--interval", "0.1").splitlines()
    assert [line for line in lines if "SAs," in line] == ["2 SAs, 0 packets/s, 0.000 Mbit/s"] * 2
    assert "--interval 0.001: at least" in ctl("top", "--interval", "0.001", code=2)


def test_a_page_of_top_has_the_busiest_first() -> None:
    def entry(direction: str, id: int, packets: int, octets: int, **more: object) -> dict[str, object]:
        table = {"direction": direction, "id": id, "spi": id}
        own = {"sa": table, "packets": packets, "bytes": octets, "sequence": packets, "refused": {}}
        return own | {"soft_expired": False, "frozen": False} | more

    before = {("outbound", 1): entry("outbound", 1, 5, 500), ("outbound", 2): entry("outbound", 2, 0, 0)}
    now = {
        ("outbound", 1): entry("outbound", 1, 7, 700),
        ("outbound", 2): entry("outbound", 2, 2000, 1_000_000, soft_expired=True, refused={"held": 3}),
        ("inbound", 3): entry("inbound", 3, 9, 900, frozen=True),
    }
    lines = page(now, before, {"a": 7, "b": 1}, {"a": 5, "b": 1}, 2.0)
    assert lines[0] == "3 SAs, 1001 packets/s, 4.001 Mbit/s"
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["outbound", "2"],
        ["outbound", "1"],
        ["inbound", "3"],
    ]
    assert lines[2].endswith("3  2000 soft limit")
    assert lines[4].endswith("0  9 frozen")
    assert lines[5:] == ["           1/s a"]


def test_lines_say_what_is_out_of_the_ordinary() -> None:
    port = {"name": "p", "control": "operator", "outbound_sas": 0, "inbound_sas": 0, "flows": 0}
    assert port_line(port | {"owner": "gone", "state_failure": "no room"}).endswith(
        "gone, STATE CANNOT BE WRITTEN: no room"
    )
    assert port_line({"name": "p", "control": "guest"}) == "p: guest control"
    table = {"direction": "inbound", "id": 1, "spi": 1, "mode": "ah-transport", "algorithm": "x"}
    entry = {"sa": table, "sequence": 1, "packets": 2, "bytes": 3, "refused": {"replay": 4}}
    line = sa_line(entry | {"soft_expired": True, "frozen": True})
    assert line.endswith("sequence 1, 2 packets, 3 bytes; refused replay=4; SOFT LIMIT; FROZEN")


def test_a_handover_by_hand(ctl: Ctl, end: BackEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = BackEnd(tmp_path / "other", awaited=True).start()
    monkeypatch.chdir(tmp_path)
    assert ctl("handover", "--to", "other").startswith(f"owner {target.path}, transfer ")
    assert (end.send(), len(target.send())) == ([], 1)
    assert "the SAs have been handed over to" in ctl("ports")
    assert "no such port" in ctl(
        "--control", target.path, "handover", "--to", "ctl", "--to-port", "x", code=2
    )
    target.stop()


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (sa(2), 0o644, "holds keys, and other users may read or write it"),
        (sa(2, 'key_file = "k"'), 0o644, "names a file that other users may read or write"),
        (sa(2, 'key_file = "none"'), 0o600, "sa 1: key_file cannot be read"),
        (sa(2, "key_file = 7"), 0o600, "sa 1: key_file must be a string"),
        (sa(2, 'key = "00"\nkey_file = "k"'), 0o600, "key and key_file exclude each other"),
        ("[[sa]\n", 0o600, "not TOML"),
        ("x = " + "9" * 5000, 0o600, "a number too long or tables too deep"),
        ("", 0o600, "must hold [[sa]] tables and nothing else"),
        ("sa = 1", 0o600, "must hold [[sa]] tables and nothing else"),
        (sa(2) + '[[flow]]\naction = "drop"\n', 0o600, "must hold [[sa]] tables and nothing else"),
    ],
)
def test_files_that_cannot_be_used(ctl: Ctl, tmp_path: Path, text: str, mode: int, message: str) -> None:
    (tmp_path / "k").write_text("00" * 16)
    (tmp_path / "k").chmod(0o644)
    file = tmp_path / "sas.toml"
    file.write_text(text)
    file.chmod(mode)
    complaint = ctl("sa", "add", str(file), code=2)
    assert message in complaint
    assert f"{2:032x}" not in complaint


def test_a_value_that_json_has_no_word_for_is_refused_where_it_stands(ctl: Ctl, tmp_path: Path) -> None:
    file = private(tmp_path / "sas.toml", "[[sa]]\nid = 1979-05-27\n" + sa(2).split("id = 2")[1])
    assert "id must be a whole number" in ctl("sa", "add", file, code=1)


def test_nobody_to_talk_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTIO_IPSEC_CONTROL", raising=False)
    assert main(["ctl", "ports"]) == 2
    assert "--control PATH says which" in capsys.readouterr().err
    assert main(["ctl", "--control", str(tmp_path / "none"), "ports"]) == 3
    assert "No such file or directory" in capsys.readouterr().err
