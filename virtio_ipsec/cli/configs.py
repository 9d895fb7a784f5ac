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
            raise ConfigError("holds characters that no file name has")
        try:
            with (path.parent / key_name).open("rb") as stream:
                content = stream.read(MAX_KEY_FILE)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}") from None
        try:
            return bytes.fromhex(content.decode("ascii").strip().removeprefix("0x"))
        except ValueError:
            raise ConfigError("must name a file of hexadecimal digits") from None

    try:
        return parse(text, read_key)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
