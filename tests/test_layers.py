"""A room imports only rooms listed above it; `device` and `driver` meet only in bytes."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "virtio_ipsec"
# specification.py and tables.py read data and import nothing of ours but errors: any room may cite clauses and have a
# file of its own.
ROOMS = (
    "errors",
    "specification",
    "tables",
    "wire",
    "crypto",
    "ring",
    "ipsec",
    "fastpath",
    "device",
    "policy",
    "driver",
    "transport",
    "conformance",
    "cli",
)
FORBIDDEN = {
    "device": {"driver", "transport", "conformance", "cli"},
    "driver": {"device", "fastpath"},
    "policy": {"device", "fastpath"},
    "conformance": {"device", "fastpath", "policy"},
}
JOINS_DEVICE_AND_DRIVER = {"transport"}
# Below transport/ nothing reads a clock, opens a file or a socket, or draws a random number.
IMPURE = {"os", "socket", "time", "threading", "random", "secrets", "subprocess", "selectors", "mmap"}
SANS_IO = ("wire", "crypto", "ring", "ipsec", "fastpath", "device", "policy", "driver")


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Imports and calls of a file."""
    wanted = ast.Import | ast.ImportFrom | ast.Call
    return tuple(node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, wanted))


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    package = ("virtio_ipsec", *path.relative_to(PACKAGE).parent.parts)
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_modules(path))
    return {p[1] for p in parts if p[0] == "virtio_ipsec" and len(p) > 1 and p[1] in ROOMS}


SOURCES = sorted(PACKAGE.rglob("*.py"))
IN_ROOMS = [path for path in SOURCES if room_of(path) in ROOMS]


def test_every_source_file_stands_in_a_known_room() -> None:
    strays = {room_of(path) for path in SOURCES} - set(ROOMS)
    assert strays == {"__init__", "__main__"}


@pytest.mark.parametrize("path", IN_ROOMS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_only_upwards(path: Path) -> None:
    room = room_of(path)
    above = set(ROOMS[: ROOMS.index(room) + 1])
    imported = imported_rooms(path)
    assert imported <= above, f"{path.name} imports from a lower room: {imported - above}"
    assert not imported & FORBIDDEN.get(room, set())


def test_only_the_transport_joins_device_and_driver() -> None:
    joining = {room_of(path) for path in IN_ROOMS if {"device", "driver"} <= imported_rooms(path)}
    assert joining <= JOINS_DEVICE_AND_DRIVER


@pytest.mark.parametrize("room", SANS_IO)
def test_rooms_below_the_transport_neither_read_clocks_nor_open_anything(room: str) -> None:
    for path in (p for p in IN_ROOMS if room_of(p) == room):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & IMPURE, f"{path} imports {roots & IMPURE}"
        calls = {
            node.func.id
            for node in nodes_of(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "open" not in calls, f"{path} opens files"


def test_each_room_says_its_responsibility_in_one_line() -> None:
    for room in ROOMS[3:]:  # the others are files
        docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert docstring, room
        assert len(docstring.splitlines()[0]) < 110


@pytest.mark.parametrize("path", IN_ROOMS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_name_the_whole_path(path: Path) -> None:
    assert not [node.lineno for node in nodes_of(path) if isinstance(node, ast.ImportFrom) and node.level]


def test_the_wheel_has_every_package() -> None:
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.relative_to(PACKAGE.parent).parent.parts) for path in PACKAGE.rglob("__init__.py")}
    assert found <= set(listed)


def test_only_tests_use_scapy() -> None:
    users = [p for p in SOURCES if any(m.split(".")[0] == "scapy" for m in imported_modules(p))]
    assert users == []
