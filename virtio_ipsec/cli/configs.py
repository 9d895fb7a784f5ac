"""Reads configuration files for the verbs."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import Config, ReadKey, parse, parse_ports

MAX_KEY_FILE = 1024
_KEYS = ("key", "auth_key")

T = TypeVar("T")


def read_config(name: str) -> Config:
    """The configuration in file ``name``; ``key_file`` entries are relative to it. Raises ConfigError."""
    return _read(name, parse, private=False)


def read_ports(name: str) -> tuple[Config, ...]:
    """The ports of file ``name``, as :func:`read_config`. These keys protect traffic: a file that holds any must be
    closed to other users, or it names key files that are."""
    return _read(name, parse_ports, private=True)


def _read(name: str, interpret: Callable[[str, ReadKey], T], *, private: bool) -> T:
    path = Path(name)
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read()
            is_open = _is_open(stream)
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file") from None

    def read_key(key_name: str) -> bytes:
        if not key_name.isprintable():
            raise ConfigError("holds characters that no file name has")
        try:
            with (path.parent / key_name).open("rb") as stream:
                if private and _is_open(stream):
                    raise ConfigError("names a file that other users may read or write: chmod 600")
                content = stream.read(MAX_KEY_FILE)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}") from None
        try:
            return bytes.fromhex(content.decode("ascii").strip().removeprefix("0x"))
        except ValueError:
            raise ConfigError("must name a file of hexadecimal digits") from None

    try:
        found = interpret(text, read_key)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if private and is_open and _holds_keys(tomllib.loads(text)):
        raise ConfigError(
            f"{name}: holds keys, and other users may read or write it: chmod 600, or use key_file"
        )
    return found


def _is_open(stream: IO[Any]) -> bool:
    """Whether anybody but the owner may read or write the file."""
    return bool(stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o066)


def _holds_keys(document: dict[str, Any]) -> bool:
    """Whether a document that was found right holds a key itself."""
    ports = document.get("port", ())
    tables = [document, *(ports if isinstance(ports, list) else ())]
    return any(name in sa for table in tables for sa in table.get("sa", ()) for name in _KEYS)
