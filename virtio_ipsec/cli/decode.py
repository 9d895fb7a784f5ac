"""Explain bytes: administration commands and replies, SA objects and net headers, field by field.

The bytes are given as hex, or as @FILE ('-': standard input) with hex text, plain or as xxd prints it, or with a
trace: JSON lines with "readable" and "written" in hex. Key and salt bytes are masked unless --show-keys.

examples:
  virtio-ipsec decode admin 0000000000000000000000000000000000000000000000000000
  virtio-ipsec decode net-hdr --features 69,70 10000000000000000000000000000000000000000000000000000100000003020000
  virtio-ipsec decode admin @out/demo.trace.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from virtio_ipsec.cli.exits import DONE
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply, annotate_sa
from virtio_ipsec.wire.codec import FieldView
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
from virtio_ipsec.wire.numbers import Feature, mask

#: An xxd line: offset, colon, groups of hex, two spaces, text.
_XXD = re.compile(r"^[0-9a-fA-F]{6,8}: ((?:[0-9a-fA-F]{2,4} ?)+)(?:  .*)?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("what", choices=("admin", "reply", "sa", "net-hdr"))
    parser.add_argument(
        "bytes", nargs="+", help="hex digits, @FILE or '-'; for 'reply': the command, a comma, the reply"
    )
    parser.add_argument(
        "--dialect", default="virtio-1.4", choices=list(DIALECTS), help="default: %(default)s"
    )
    parser.add_argument(
        "--features",
        default="70",
        metavar="BITS",
        help="negotiated feature bits, for net-hdr (default: %(default)s)",
    )
    parser.add_argument("--show-keys", action="store_true", help="print key and salt bytes")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True, slots=True)
class _Item:
    """Bytes to explain: a readable part or object, and for an exchange what the device wrote."""

    first: bytes
    reply: bytes | None = None


def run(arguments: argparse.Namespace) -> int:
    """Print the fields of every item."""
    dialect = DIALECTS[arguments.dialect]
    blocks = [
        block
        for item in _items(arguments)
        for block in _explain(arguments.what, item, dialect, arguments.features)
    ]
    if arguments.json:
        print(json.dumps([_as_json(title, views, arguments.show_keys) for title, views in blocks], indent=1))
        return DONE
    for number, (title, views) in enumerate(blocks):
        if number:
            print()
        print(title)
        for view in views:
            print(_line(view, show_keys=arguments.show_keys))
    return DONE


def _items(arguments: argparse.Namespace) -> Iterator[_Item]:
    words = arguments.bytes
    if words[0] != "-" and not words[0].startswith("@"):
        yield _from_hex(arguments.what, "".join(words))
        return
    if len(words) > 1:
        raise ConfigError("@FILE and '-' stand alone")
    try:
        text = sys.stdin.read() if words[0] == "-" else Path(words[0][1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("neither hex nor a trace: print binary files with xxd first") from None
    if text.lstrip().startswith("{"):
        if arguments.what not in ("admin", "reply"):
            raise ConfigError("a trace holds admin commands and replies: decode admin @FILE")
        yield from _from_trace(text)
    else:
        yield _from_hex(arguments.what, _strip_offsets(text))


def _from_hex(what: str, text: str) -> _Item:
    first, comma, second = text.partition(",")
    if bool(comma) != (what == "reply"):
        raise ConfigError(
            "'reply' takes the command, a comma and the reply; the others take one piece of hex"
        )
    return _Item(_octets(first), _octets(second) if comma else None)


def _from_trace(text: str) -> Iterator[_Item]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            yield _Item(_octets(_unmask(event["readable"])), _octets(_unmask(event["written"])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError):
            raise ConfigError(f'line {number} of the trace has no hex in "readable" and "written"') from None


def _unmask(text: str) -> str:
    """Masked octets of a trace are written ``xx``; they are masked again when they are printed."""
    return text.replace("xx", "00")


def _strip_offsets(text: str) -> str:
    lines = []
    for line in text.splitlines():
        match = _XXD.match(line.rstrip())
        lines.append(match[1] if match else line)
    return "".join(lines)


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex("".join(text.split()).removeprefix("0x"))
    except ValueError:
        raise ConfigError("not hexadecimal digits, two per octet") from None


def _explain(
    what: str, item: _Item, dialect: Dialect, features: str
) -> Iterator[tuple[str, tuple[FieldView, ...]]]:
    if what == "sa":
        yield f"SA object, {len(item.first)} bytes", annotate_sa(item.first, dialect)
    elif what == "net-hdr":
        codec = dialect.net_hdr(_features(features))
        yield f"{codec.name} of {codec.size} bytes", codec.annotate(item.first)
    else:
        yield f"command, {len(item.first)} bytes", annotate_admin(item.first, dialect)
        if item.reply is not None:
            views = annotate_reply(item.first, item.reply, dialect)
            yield f"reply, {len(item.reply)} bytes", views


def _features(text: str) -> int:
    try:
        return mask(*(Feature(int(number)) for number in text.split(",") if number))
    except ValueError:
        raise ConfigError(
            f"--features {text}: known feature bit numbers with commas, for example 69,70"
        ) from None


def _shown(view: FieldView, *, show_keys: bool) -> tuple[str, str]:
    if view.secret and not show_keys:
        return "**" * len(view.raw), "masked; --show-keys prints it"
    return view.raw.hex(), view.text


def _line(view: FieldView, *, show_keys: bool) -> str:
    raw, text = _shown(view, show_keys=show_keys)
    shown = raw if len(raw) <= 48 else f"{raw[:44]}…"
    return f"{view.offset:5d}  {view.name:<44} {shown:<48} {text}".rstrip()


def _as_json(title: str, views: tuple[FieldView, ...], show_keys: bool) -> dict[str, object]:
    fields = []
    for view in views:
        raw, text = _shown(view, show_keys=show_keys)
        fields.append(
            {"name": view.name, "offset": view.offset, "size": len(view.raw), "raw": raw, "text": text}
        )
    return {"title": title, "fields": fields}
