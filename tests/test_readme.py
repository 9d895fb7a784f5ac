"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from virtio_ipsec.cli.main import VERBS, main
from virtio_ipsec.policy.config import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_library_example_runs_and_sends_esp() -> None:
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=True
    )
    frame = bytes.fromhex(done.stdout)
    assert frame[12:14] == b"\x08\x00"
    assert frame[14 + 9] == 50
    assert frame[34:42] == bytes.fromhex("00001001 00000001")


def test_the_library_example_has_at_most_fifteen_lines_that_do_something() -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15


def test_the_commands_shown_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (configuration,) = blocks("toml")
    (tmp_path / "sas.toml").write_text(configuration)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("virtio-ipsec")]
    assert len(lines) == 3
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line


def test_the_services_shown_can_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console") for line in block.splitlines() if "ipsec serve" in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        if ">" in words:
            capsys.readouterr()
            assert main(words[1 : words.index(">")]) == 0
            (tmp_path / "port.toml").write_text(capsys.readouterr().out)
            (tmp_path / "port.toml").chmod(0o600)
        else:
            assert main([*words[1:], "--check"]) == 0


def test_the_configuration_shown_is_valid() -> None:
    (configuration,) = blocks("toml")
    assert parse(configuration).outbound(1).suite.name == "aes-gcm-16"


def test_every_verb_and_every_tool_that_is_named_exists() -> None:
    for verb in VERBS:
        assert f"`{verb}" in README
    for name in re.findall(r"`((?:tools|spec|tests)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_public_name_can_be_imported() -> None:
    program = "import virtio_ipsec as v; [getattr(v, name) for name in v.__all__]; print(dir(v) == sorted(v.__all__))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_the_import_pulls_in_nothing_heavy() -> None:
    program = "import sys, virtio_ipsec; print([m for m in ('construct', 'cryptography', 'scapy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
