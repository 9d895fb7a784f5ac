"""Reads configuration files for the verbs."""

from __future__ import annotations

from pathlib import Path

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import Config, parse

MAX_KEY_FILE = 1024


def read_config(name: str) -> Config:
    """The configuration in file ``name``; ``key_file`` entries are relative to it. Raises ConfigError."""
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file") from None

    def read_key(key_name: str) -> bytes:
        if not key_name.isprintable():
            raise ConfigError(f"{key_name!r} is no name of a key file")
        key_path = path.parent / key_name
        with key_path.open("rb") as stream:
            content = stream.read(MAX_KEY_FILE)
        try:
            return bytes.fromhex(content.decode("ascii").strip().removeprefix("0x"))
        except ValueError:
            raise ConfigError(f"{key_path}: a key file holds hexadecimal digits") from None

    try:
        return parse(text, read_key)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
