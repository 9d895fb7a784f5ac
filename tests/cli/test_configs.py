"""Files with keys: who may read them, where their keys may stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtio_ipsec.cli.configs import read_config, read_ports
from virtio_ipsec.errors import ConfigError

KEY = "000102030405060708090a0b0c0d0e0f"


def config(key: str, port: str = "[port]", sa: str = "[[sa]]") -> str:
    return f"""
{port}
control = "operator"
default = "drop"

{sa}
id = 1
direction = "outbound"
mode = "esp-transport"
spi = 0x1001
algorithm = "aes-gcm-16"
{key}
salt = "a0a1a2a3"
"""


@pytest.mark.parametrize(("port", "sa"), [("[port]", "[[sa]]"), ("[[port]]", "[[port.sa]]")])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602])
def test_a_file_with_keys_that_others_may_open_is_refused(
    tmp_path: Path, port: str, sa: str, mode: int
) -> None:
    path = tmp_path / "port.toml"
    path.write_text(config(f'key = "{KEY}"', port, sa))
    path.chmod(mode)
    with pytest.raises(
        ConfigError, match="holds keys, and other users may read or write it: chmod 600"
    ) as refused:
        read_ports(str(path))
    assert KEY not in str(refused.value)
    path.chmod(0o600)
    (found,) = read_ports(str(path))
    assert found.sas[0].sa.cipher_key == bytes.fromhex(KEY)


def test_key_files_are_looked_at_in_its_place(tmp_path: Path) -> None:
    path, key = tmp_path / "port.toml", tmp_path / "key"
    path.write_text(config('key_file = "key"'))
    path.chmod(0o644)
    key.write_text(KEY + "\n")
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="sa 1: key_file names a file that other users may read or write"):
        read_ports(str(path))
    key.chmod(0o600)
    assert read_ports(str(path))[0].sas[0].sa.cipher_key == bytes.fromhex(KEY)


def test_captures_are_sealed_by_any_file(tmp_path: Path) -> None:
    path = tmp_path / "port.toml"
    path.write_text(config(f'key = "{KEY}"'))
    path.chmod(0o644)
    assert read_config(str(path)).sas[0].id == 1


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('key = "00"', "must be 16 or 24 or 32 octets for aes-gcm-16, not 1"),
        ('key_file = "none"', "cannot be read: No such file"),
        ('key_file = "hex"', "must name a file of hexadecimal digits"),
        ('key_file = "a\\u0007b"', "holds characters that no file name has"),
    ],
)
def test_what_is_wrong_with_a_key_names_file_and_place(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "hex").write_text("no")
    (tmp_path / "hex").chmod(0o600)
    path = tmp_path / "port.toml"
    path.write_text(config(key))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words) as refused:
        read_ports(str(path))
    assert str(refused.value).startswith(f"{path}: sa 1: key")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        read_ports(str(tmp_path / "x"))
