"""The command line as a user meets it: every verb, its help with an example, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from virtio_ipsec.cli.main import VERBS, main
from virtio_ipsec.transport.pcap import open_capture

ROOT = Path(__file__).parents[2]
FRAMES = ROOT / "tests" / "vectors" / "frames" / "frames.pcap"
KEY = "000102030405060708090a0b0c0d0e0f"
CONFIG = f"""
[[sa]]
id = 1
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}

[[sa]]
id = 1
direction = "inbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"

[[flow]]
match = {{ dst = "10.0.0.0/24" }}
action = "protect"
sa = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sas.toml"
    path.write_text(CONFIG)
    return path


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("virtio-ipsec: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"virtio-ipsec {verb}" in text.split("examples:")[1]


def test_no_verb_and_an_unknown_verb_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["fly"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "virtio-ipsec 0.1.0\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from virtio_ipsec.cli.main import main; raise SystemExit(main(['info']))"],
        cwd=ROOT, stdout=os.open("/dev/full", os.O_WRONLY), stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


# -- info


def test_info_names_dialects_algorithms_and_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("virtio-1.4", "rfc-2025-01", "aes-gcm-16", "chacha20-poly1305", "hmac-sha1-96", "Python path"):
        assert word in text


def test_info_as_json_has_the_object_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    sizes = {name: entry["sa_object_octets"] for name, entry in facts["dialects"].items()}
    assert sizes == {"virtio-1.4": 196, "rfc-2025-01": 166}


# -- pcap


def test_what_pcap_seal_protects_pcap_open_restores(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed, opened = tmp_path / "sealed.pcapng", tmp_path / "opened.pcap"
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(sealed)]) == 0
    assert "sealed" in capsys.readouterr().out
    assert main(["pcap", "open", "--config", str(config), "--json", str(sealed), str(opened)]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["opened"] > 10
    with FRAMES.open("rb") as before, opened.open("rb") as after:
        plain = [packet.data for packet in open_capture(before)]
        # One frame is too large for any outer header's length field: sealing dropped it.
        fitting = [data for data in plain if data[12:14] != b"\x08\x00" or len(data) < 65400]
        restored = [packet.data for packet in open_capture(after)]
    assert restored == fitting
    assert sealed.read_bytes() != opened.read_bytes()


def test_pcap_refuses_bad_files_in_one_line_and_leaves_nothing(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pcap"
    empty = tmp_path / "empty.pcap"
    empty.write_bytes(b"")
    assert main(["pcap", "seal", "--config", str(config), str(empty), str(out)]) == 2
    assert "the file is empty" in complaint(capsys)
    assert main(["pcap", "seal", "--config", str(config), str(tmp_path / "none"), str(out)]) == 2
    assert "No such file" in complaint(capsys)
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(FRAMES)]) == 2
    assert "same file" in complaint(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.pcap", "sas.toml"]


def test_a_bad_configuration_is_named_with_file_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(CONFIG.replace("spi = 0x1001", "spi = 0", 1))
    assert main(["pcap", "seal", "--config", str(path), str(FRAMES), str(tmp_path / "o")]) == 2
    assert f"{path}: sa 1: spi must be a whole number" in complaint(capsys)
    path.write_bytes(b"\xff\xfe")
    assert main(["pcap", "seal", "--config", str(path), str(FRAMES), str(tmp_path / "o")]) == 2
    assert "not a text file" in complaint(capsys)


def test_keys_can_lie_in_files_beside_the_configuration(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace(f'key = "{KEY}"', 'key_file = "k.hex"'))
    (tmp_path / "k.hex").write_text(f"{KEY}\n")
    out = tmp_path / "o.pcap"
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(out)]) == 0
    capsys.readouterr()
    (tmp_path / "k.hex").write_text("no hex")
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(out)]) == 2
    assert "a key file holds hexadecimal digits" in complaint(capsys)


# -- decode

SA_CREATE_HEAD = "0a00" + "00" * 22 + "03020000" + "07000000" + "00" * 8


def sa_create() -> bytes:
    """A CREATE of an outbound SA, laid out by hand: head, mode 2, direction 1, obj_id 7, SPI, salt, ..."""
    sa = bytes((2, 1, 0, 0)) + (7).to_bytes(4, "little") + (0x1001).to_bytes(4, "little") + b"\xa0\xa1\xa2\xa3"
    sa += bytes(8) + bytes(44) + bytes(4) + bytes(4)
    sa += (1).to_bytes(8, "little") + (16).to_bytes(2, "little") + bytes(2) + bytes.fromhex(KEY) + bytes(16)
    sa += bytes(8) + bytes(36) + bytes(32)
    assert len(sa) == 196
    return bytes.fromhex(SA_CREATE_HEAD) + sa + bytes(4)


def test_decode_admin_names_fields_with_offsets_and_masks_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "admin", sa_create().hex()]) == 0
    text = capsys.readouterr().out
    assert "RESOURCE_OBJ_CREATE" in text
    assert "NET_IPSEC_OUTB_SA" in text
    assert "0x1001" in text
    assert KEY not in text
    assert "a0a1a2a3" not in text
    assert "--show-keys" in text
    # cipher_algo lies at 76 of the object, which starts at 40 of the frame
    assert any(line.split()[:2] == ["116", "resource_obj_specific_data.cipher_algo"] for line in text.splitlines())


def test_decode_shows_keys_only_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "admin", "--show-keys", "--json", sa_create().hex()]) == 0
    fields = {f["name"]: f for f in json.loads(capsys.readouterr().out)[0]["fields"]}
    assert fields["resource_obj_specific_data.cipher_key.data"]["raw"].startswith(KEY)
    assert main(["decode", "admin", "--json", sa_create().hex()]) == 0
    assert KEY not in capsys.readouterr().out


def test_decode_reply_sa_and_net_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "reply", "00" * 24 + ",16000300" + "00000000"]) == 0
    text = capsys.readouterr().out
    assert "EINVAL" in text
    assert "INVALID_FIELD" in text
    assert main(["decode", "sa", sa_create()[40:236].hex()]) == 0
    assert "ESP_TRANSPORT" in capsys.readouterr().out
    header = bytes((16, 0)) + bytes(24) + (9).to_bytes(4, "little") + (0x203).to_bytes(2, "little")
    assert main(["decode", "net-hdr", "--features", "69,70", header.hex()]) == 0
    text = capsys.readouterr().out
    assert "SECURITY" in text
    assert "NET_IPSEC_OUTB_SA" in text
    assert main(["decode", "net-hdr", "--dialect", "rfc-2025-01", (bytes((8, 0)) + bytes(24)).hex()]) == 0
    assert "virtio_net_hdr of 26 bytes" in capsys.readouterr().out


def test_decode_reads_hex_files_xxd_output_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sa_create()
    lines = [
        f"{at:08x}: {' '.join(data[i : i + 2].hex() for i in range(at, min(at + 16, len(data)), 2)):<39}  {'.' * 16}"
        for at in range(0, len(data), 16)
    ]
    path = tmp_path / "dump"
    path.write_text("\n".join(lines))
    assert main(["decode", "admin", f"@{path}"]) == 0
    from_xxd = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(data.hex(" ")))
    assert main(["decode", "admin", "-"]) == 0
    assert capsys.readouterr().out == from_xxd
    assert "RESOURCE_OBJ_CREATE" in from_xxd


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-", "00"], "stand alone"),
        (["zz"], "not hexadecimal digits"),
        (["00,00"], "'reply' takes the command, a comma and the reply"),
    ],
)
def test_decode_refuses_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", "admin", *words]) == 2
    assert message in complaint(capsys)


def test_decode_refuses_bad_features_and_bad_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "net-hdr", "--features", "x", "00"]) == 2
    assert "--features x" in complaint(capsys)
    path = tmp_path / "trace"
    path.write_text('{"readable": "00"}\n')
    assert main(["decode", "admin", f"@{path}"]) == 2
    assert "line 1 of the trace" in complaint(capsys)


# -- demo


def test_the_demo_writes_a_capture_a_private_key_file_and_a_masked_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "every frame arrived as it was sent" in text
    assert text.count(" ok") == 5
    assert stat.S_IMODE((tmp_path / "demo.esp_sa").stat().st_mode) == 0o600
    keys = [line.split('"')[11] for line in (tmp_path / "demo.esp_sa").read_text().splitlines() if line[0] == '"']
    trace = (tmp_path / "demo.trace.jsonl").read_text()
    assert keys
    assert not any(key.removeprefix("0x")[:32] in trace for key in keys)
    assert main(["decode", "admin", f"@{tmp_path}/demo.trace.jsonl"]) == 0
    assert "RESOURCE_OBJ_CREATE" in capsys.readouterr().out


def test_the_demo_runs_in_the_rfc_dialect_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--dialect", "rfc-2025-01", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["passed"]
    assert all(stage["opened"] and not stage["mismatches"] for stage in outcome["stages"])


def test_the_demo_refuses_captures_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "d4c3b2a1" "0200" "0400" "00000000" "00000000" "ffff0000"
    raw = tmp_path / "raw.pcap"
    record = "00000000" "00000000" "14000000" "14000000" + "45" + "00" * 19
    raw.write_bytes(bytes.fromhex(head + "65000000" + record))
    assert main(["demo", "--json", "--out", str(tmp_path), "--frames", str(raw)]) == 2
    assert "needs Ethernet frames" in complaint(capsys)
    raw.write_bytes(bytes.fromhex(head + "01000000" + record.replace("14000000", "15000000", 1).replace(
        "15000000" "14000000", "14000000" "15000000")))  # fmt: skip
    assert main(["demo", "--json", "--out", str(tmp_path), "--frames", str(raw)]) == 2
    assert "cut packets" in complaint(capsys)
    raw.write_bytes(bytes.fromhex(head + "01000000"))
    assert main(["demo", "--json", "--out", str(tmp_path), "--frames", str(raw)]) == 2
    assert "no frame from one host to another" in complaint(capsys)
