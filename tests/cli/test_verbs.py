"""The command line as a user meets it: every verb, its help with an example, exit codes, one-line errors."""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunnel_sas import KEY, tunnel_sas

from virtio_ipsec.cli.main import VERBS, main, parser
from virtio_ipsec.transport.pcap import Interface, LinkType, Packet, PcapngWriter, open_capture

ROOT = Path(__file__).parents[2]
FRAMES = ROOT / "tests" / "vectors" / "frames" / "frames.pcap"
CONFIG = (
    tunnel_sas(1, 1)
    + """
[[flow]]
match = { dst = "10.0.0.0/24" }
action = "protect"
sa = 1
"""
)


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


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers below this one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield below
                yield from actions_of(below)


@pytest.mark.parametrize("verb", ["ctl", "conformance", "driver"])
def test_each_action_has_an_example_that_it_accepts(verb: str) -> None:
    whole = parser(verb)
    verbs = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    actions = list(actions_of(verbs.choices[verb]))
    assert actions
    for action in actions:
        _, program, words = (action.epilog or "").partition("example: virtio-ipsec ")
        assert program, action.prog
        assert words.startswith(verb)
        whole.parse_args(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "ctl top --interval nan",
        "ctl top --count -1",
        "conformance --jobs x",
        "conformance --limit 0",
        "driver --device loopback recv sas.toml --seconds nan",
        "driver --device loopback recv sas.toml --count -1",
        "driver --device loopback vfs 1 --seconds inf",
        "serve --vfio-user /f --uplink null --vfs 65",
        "serve --vfio-user /f --uplink null --vfs -1",
        "serve --vfio-user /f --uplink null --vfs x",
        "serve --vfio-user /f --uplink null --socket-mode 999",
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_name(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    *_, option, value = words.split()
    assert f"argument {option}: {value!r} is no" in capsys.readouterr().err


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
    for word in (
        "virtio-1.4",
        "rfc-2025-01",
        "aes-gcm-16",
        "chacha20-poly1305",
        "hmac-sha1-96",
        "Python path",
    ):
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
    assert "sa 1: key_file must name a file of hexadecimal digits" in complaint(capsys)


def test_pcap_writes_whole_files_and_harms_no_other(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seal = ["pcap", "seal", "--config", str(config)]
    source = tmp_path / "out.pcap.part"
    source.write_bytes(FRAMES.read_bytes())
    assert main([*seal, str(source), str(tmp_path / "out.pcap")]) == 0
    assert source.read_bytes() == FRAMES.read_bytes()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out.pcap").stat().st_mode) == 0o666 & ~mask
    # A device node or a link stays what it is.
    link = tmp_path / "link.pcap"
    link.symlink_to(tmp_path / "behind.pcap")
    assert main([*seal, str(source), str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "behind.pcap").stat().st_size > 1000
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "read").open("wb") as read:
        reader = subprocess.Popen(["/bin/cat", str(pipe)], stdout=read)
        assert main([*seal, str(source), str(pipe)]) == 0
        assert reader.wait() == 0
    assert (tmp_path / "read").stat().st_size > 1000
    assert pipe.is_fifo()
    capsys.readouterr()
    assert main([*seal, str(source), str(tmp_path / "none" / "o.pcap")]) == 2
    assert f"{tmp_path}/none/o.pcap: No such file or directory" in complaint(capsys)
    assert main([*seal, str(source), str(tmp_path)]) == 2
    assert "Is a directory" in complaint(capsys)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_sealed_packet_may_be_longer_than_the_snap_length_and_of_the_other_ip_version(
    tmp_path: Path, config: Path
) -> None:
    config.write_text(
        CONFIG.replace('src = "192.0.2.1", dst = "192.0.2.2"', 'src = "2001:db8::1", dst = "2001:db8::2"')
    )
    ip = bytes.fromhex("4500001c000000004011000a0a0000010a000002") + bytes.fromhex("0007000700080000")
    for name in ("o.pcap", "o.pcapng"):
        with (tmp_path / "raw.pcapng").open("wb") as stream:
            PcapngWriter(stream, [Interface(LinkType.IPV4, len(ip))]).write(Packet(ip))
        words = ["pcap", "seal", "--config", str(config), str(tmp_path / "raw.pcapng"), str(tmp_path / name)]
        assert main(words) == 0
        with (tmp_path / name).open("rb") as stream:
            reader = open_capture(stream)
            (packet,) = reader
        assert packet.data[0] >> 4 == 6
        assert reader.interfaces[0].link_type == LinkType.RAW
        assert reader.interfaces[0].snaplen in (0, 262144)


def test_a_key_in_the_place_of_its_file_s_name_is_not_printed(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace(f'key = "{KEY}"', f'key_file = "{KEY}"'))
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(tmp_path / "o")]) == 2
    said = complaint(capsys)
    assert "sa 1: key_file cannot be read: No such file" in said
    assert KEY not in said


@pytest.mark.parametrize("name", ["a\nb", "\x00", "\x1b[2J"])
def test_a_key_file_name_that_cannot_be_one_is_refused_in_one_line(
    name: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(CONFIG.replace(f'key = "{KEY}"', f"key_file = {json.dumps(name)}"))
    assert main(["pcap", "seal", "--config", str(config), str(FRAMES), str(tmp_path / "o")]) == 2
    assert "sa 1: key_file holds characters that no file name has" in complaint(capsys)


# -- decode

SA_CREATE_HEAD = "0a00" + "00" * 22 + "03020000" + "07000000" + "00" * 8


def sa_create() -> bytes:
    """A CREATE of an outbound SA, laid out by hand: head, mode 2, direction 1, obj_id 7, SPI, salt, ..."""
    sa = (
        bytes((2, 1, 0, 0)) + (7).to_bytes(4, "little") + (0x1001).to_bytes(4, "little") + b"\xa0\xa1\xa2\xa3"
    )
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
    assert any(
        line.split()[:2] == ["116", "resource_obj_specific_data.cipher_algo"] for line in text.splitlines()
    )


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


def test_decode_refuses_bad_features_and_bad_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", "net-hdr", "--features", "x", "00"]) == 2
    assert "--features x" in complaint(capsys)
    path = tmp_path / "trace"
    path.write_text('{"readable": "00"}\n')
    assert main(["decode", "admin", f"@{path}"]) == 2
    assert "line 1 of the trace" in complaint(capsys)
    path.write_text('{"readable":' + "[" * 100_000)
    assert main(["decode", "admin", f"@{path}"]) == 2
    assert "line 1 of the trace" in complaint(capsys)
    assert main(["decode", "sa", f"@{path}"]) == 2
    assert "decode admin @FILE" in complaint(capsys)
    path.write_bytes(bytes(range(256)))
    assert main(["decode", "admin", f"@{path}"]) == 2
    assert "print binary files with xxd first" in complaint(capsys)


def test_output_and_errors_survive_any_encoding_and_any_file_name(tmp_path: Path) -> None:
    """Long fields are cut with an ellipsis, which ASCII lacks; a file name may hold a line break."""
    run = "from virtio_ipsec.cli.main import main; raise SystemExit(main())"
    for words, code in (
        (["decode", "admin", "00" * 200], 0),
        (["decode", "admin", f"@{tmp_path}/a\nb\udcff"], 2),
    ):
        process = subprocess.run(
            [sys.executable, "-c", run, *words],
            cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
        )  # fmt: skip
        assert process.returncode == code, process.stderr
        assert b"\\u2026" in process.stdout or process.stderr.count(b"\n") == 1


# -- conformance


def test_conformance_list_as_json_goes_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.json"
    assert main(["conformance", "--list", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert main(["conformance", "--list", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert f"{len(json.loads(path.read_text()))} cases" in printed


def test_conformance_refuses_outputs_it_cannot_write_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["--json", str(tmp_path)],
        ["--json", "-", "--markdown", "-"],
        ["--markdown", f"{tmp_path}/n/x"],
    ):
        assert main(["conformance", "--verbose", "--only", "NET-FEAT-01", *words]) == 2
        complaint(capsys)


def test_conformance_reports_on_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["conformance", "--only", "NET-FEAT-01"]
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main([*words, "--markdown", "-"]) == 0
    assert capsys.readouterr().out.startswith("#")


# -- demo


def test_the_demo_writes_a_capture_a_private_key_file_and_a_masked_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "every frame arrived as it was sent" in text
    assert text.count(" ok") == 5
    assert stat.S_IMODE((tmp_path / "demo.esp_sa").stat().st_mode) == 0o600
    keys = [
        line.split('"')[11] for line in (tmp_path / "demo.esp_sa").read_text().splitlines() if line[0] == '"'
    ]
    trace = (tmp_path / "demo.trace.jsonl").read_text()
    assert keys
    assert not any(key.removeprefix("0x")[:32] in trace for key in keys)
    assert main(["decode", "admin", f"@{tmp_path}/demo.trace.jsonl"]) == 0
    assert "RESOURCE_OBJ_CREATE" in capsys.readouterr().out


def test_the_demo_runs_in_the_rfc_dialect_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path), "--dialect", "rfc-2025-01", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["passed"]
    assert all(stage["opened"] and not stage["mismatches"] for stage in outcome["stages"])


def test_the_demo_refuses_captures_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "d4c3b2a1020004000000000000000000ffff0000"
    raw = tmp_path / "raw.pcap"
    record = "00000000000000001400000014000000" + "45" + "00" * 19
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


def test_the_demo_refuses_an_output_it_cannot_write_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "File exists" in complaint(capsys)
