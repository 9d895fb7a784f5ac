"""spec/layouts.json against packed C structs that were written independently of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from virtio_ipsec.specification import Layout, layout, load_layouts

pytestmark = pytest.mark.needs("compiler")

HEADER = Path(__file__).with_name("layouts.h")
COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)


def c_name(entry: Layout) -> str:
    """The name of the struct in layouts.h."""
    if entry.name in ("in_addr", "in6_addr"):
        return f"vc_{entry.name}"
    return f"rfc_{entry.name}" if entry.dialect == "rfc-2025-01" else entry.name


def probe_source() -> str:
    """A C program that prints `struct field offset size` for every field and `struct - 0 size`."""
    rows = []
    for entry in load_layouts():
        name = f"struct {c_name(entry)}"
        rows.append(f'    printf("{c_name(entry)} - 0 %zu\\n", sizeof({name}));')
        for item in entry.fields:
            size = "(size_t)0" if item.size is None else f"sizeof((({name} *)0)->{item.name})"
            where = f"offsetof({name}, {item.name})"
            rows.append(f'    printf("{c_name(entry)} {item.name} %zu %zu\\n", {where}, {size});')
    return (
        '#include <stdio.h>\n#include "layouts.h"\nint main(void)\n{\n'
        + "\n".join(rows)
        + "\n    return 0;\n}\n"
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, int]]:
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "probe.c").write_text(probe_source(), encoding="utf-8")
    program = folder / "probe"
    subprocess.run(
        [
            COMPILER,
            "-std=gnu11",
            "-Wall",
            "-I",
            str(HEADER.parent),
            "-o",
            str(program),
            str(folder / "probe.c"),
        ],
        check=True,
    )
    result = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    rows = (line.split() for line in result.stdout.splitlines())
    return {(struct, name): (int(offset), int(size)) for struct, name, offset, size in rows}


@pytest.mark.parametrize("entry", load_layouts(), ids=lambda e: f"{e.name}-{e.dialect}")
def test_offsets_and_sizes(entry: Layout, measured: dict[tuple[str, str], tuple[int, int]]) -> None:
    """The C compiler sees the same offsets and sizes."""
    assert measured[c_name(entry), "-"] == (0, entry.fixed_size)
    for item in entry.fields:
        assert measured[c_name(entry), item.name] == (item.offset, item.size or 0), item.name


@pytest.mark.parametrize("entry", load_layouts(), ids=lambda e: f"{e.name}-{e.dialect}")
def test_fields_cover_the_struct(entry: Layout) -> None:
    """Leaf fields leave no byte of the fixed part unnamed, except past the shorter arm of a union."""
    covered = [False] * entry.fixed_size
    for item in entry.fields:
        if item.size and not item.type.startswith(("struct", "union")):
            covered[item.offset : item.offset + item.size] = [True] * item.size
    assert all(covered)
    assert (entry.size is None) == any(item.size is None for item in entry.fields)


@pytest.mark.parametrize("entry", [e for e in load_layouts() if e.prefixes], ids=lambda e: e.dialect)
def test_header_prefixes(entry: Layout) -> None:
    """Each length of the net header ends exactly behind the field it names."""
    for prefix in entry.prefixes:
        last = entry.field(prefix.last)
        assert last.offset + (last.size or 0) == prefix.size


@pytest.mark.parametrize(
    ("name", "dialect", "size"),
    [
        ("virtio_net_hdr", "virtio-1.4", 32),
        ("virtio_net_hdr", "rfc-2025-01", 26),
        ("virtio_crypto_ipsec_mode_cap", "virtio-1.4", 44),
        ("virtio_crypto_ipsec_mode_cap", "rfc-2025-01", 40),
        ("virtio_crypto_ipsec_tunnel_param", "virtio-1.4", 44),
        ("virtio_crypto_ipsec_tunnel_param", "rfc-2025-01", 42),
        ("virtio_crypto_resource_obj_ipsec_sa_256b_key", "virtio-1.4", 196),
        ("virtio_crypto_resource_obj_ipsec_sa_256b_key", "rfc-2025-01", 166),
        ("virtio_net_ff_cap_data", "rfc-2025-01", 20),
    ],
)
def test_known_sizes(name: str, dialect: str, size: int) -> None:
    """The sizes that decide whether two implementations talk to each other."""
    assert layout(name, dialect).size == size
