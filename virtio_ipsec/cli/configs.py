"""Reads configuration files for the verbs."""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import Config, ReadKey, parse, parse_ports

MAX_KEY_FILE = 1024
STANDARD_INPUT = "-"
_KEYS = ("key", "auth_key")

T = TypeVar("T")


def read_config(name: str) -> Config:
    """The configuration in file ``name``; ``key_file`` entries are relative to it. Raises ConfigError."""
    return _read(name, parse, private=False)


def read_ports(name: str) -> tuple[Config, ...]:
    """The ports of file ``name``, as :func:`read_config`. These keys protect traffic: a file that holds any must be
    closed to other users, or it names key files that are."""
    return _read(name, parse_ports, private=True)


def read_tables(name: str, kind: str) -> list[dict[str, Any]]:
    """The ``[[kind]]`` tables of file ``name`` (``-``: standard input) and nothing else, keys read from the files that
    they name. The same rules for files with keys as :func:`read_ports`."""
    return _read(name, lambda text, read_key: _tables(text, kind, read_key), private=True)


def _tables(text: str, kind: str, read_key: ReadKey) -> list[dict[str, Any]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise ConfigError("a number too long or tables too deep for any field") from None
    tables = document.get(kind)
    if (
        document.keys() != {kind}
        or not isinstance(tables, list)
        or not all(isinstance(t, dict) for t in tables)
    ):
        raise ConfigError(f"must hold [[{kind}]] tables and nothing else")
    for number, table in enumerate(tables, 1):
        for key in _KEYS:
            file = table.pop(f"{key}_file", None)
            if file is None:
                continue
            if key in table:
                raise ConfigError(f"{kind} {number}: {key} and {key}_file exclude each other")
            if not isinstance(file, str):
                raise ConfigError(f"{kind} {number}: {key}_file must be a string")
            try:
                table[key] = read_key(file).hex()
            except ConfigError as error:
                raise ConfigError(f"{kind} {number}: {key}_file {error}") from None
    return tables


def _read(name: str, interpret: Callable[[str, ReadKey], T], *, private: bool) -> T:
    path = Path(name)
    try:
        with _opened(name) as stream:
            text = stream.read()
            is_open = name != STANDARD_INPUT and _is_open(stream)
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


def _opened(name: str) -> AbstractContextManager[IO[str]]:
    return nullcontext(sys.stdin) if name == STANDARD_INPUT else Path(name).open(encoding="utf-8")


def _is_open(stream: IO[Any]) -> bool:
    """Whether anybody but the owner may read or write the file."""
    return bool(stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o066)


def _holds_keys(document: dict[str, Any]) -> bool:
    """Whether a document that was found right holds a key itself."""
    ports = document.get("port", ())
    tables = [document, *(ports if isinstance(ports, list) else ())]
    return any(name in sa for table in tables for sa in table.get("sa", ()) for name in _KEYS)
