"""Layouts against C structures, Linux's where the protocol takes them from VFIO; the table against the text."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.transport.payload import Layout, MessageError
from virtio_ipsec.transport.vfio_user import capabilities, layouts, payloads
from virtio_ipsec.transport.vfio_user.capabilities import VERSION, Capabilities, Version
from virtio_ipsec.transport.vfio_user.messages import COMMANDS, Command, Flag, name_of
from virtio_ipsec.transport.vfio_user.payloads import (
    Area,
    DeviceFeature,
    DeviceFlag,
    DeviceInfo,
    DmaAccess,
    DmaMap,
    DmaUnmap,
    FeatureFlag,
    IoEventFd,
    IrqFlag,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SetFlag,
    UnmapFlag,
)

HERE = Path(__file__).parent
COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)

#: C expression -> what we say. Every name on the left is Linux's.
CONSTANTS: dict[str, int] = {
    "VFIO_PCI_NUM_REGIONS": payloads.NUM_REGIONS,
    "VFIO_PCI_NUM_IRQS": payloads.NUM_IRQS,
    "VFIO_DMA_MAP_FLAG_READ": payloads.DmaFlag.READ,
    "VFIO_DMA_MAP_FLAG_WRITE": payloads.DmaFlag.WRITE,
    "VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP": UnmapFlag.GET_DIRTY_BITMAP,
    "VFIO_DMA_UNMAP_FLAG_ALL": UnmapFlag.ALL,
    **{f"VFIO_DEVICE_FLAGS_{flag.name}": flag for flag in DeviceFlag},
    **{f"VFIO_REGION_INFO_FLAG_{flag.name}": flag for flag in RegionFlag},
    **{f"VFIO_IRQ_INFO_{flag.name}": flag for flag in IrqFlag},
    **{f"VFIO_IRQ_SET_{flag.name}": flag for flag in SetFlag},
    "VFIO_IRQ_SET_DATA_TYPE_MASK": SetFlag.DATA,
    "VFIO_IRQ_SET_ACTION_TYPE_MASK": SetFlag.ACTION,
    "VFIO_DEVICE_FEATURE_MASK": FeatureFlag.MASK,
    "VFIO_DEVICE_FEATURE_GET": FeatureFlag.GET,
    "VFIO_DEVICE_FEATURE_SET": FeatureFlag.SET,
    "VFIO_DEVICE_FEATURE_PROBE": FeatureFlag.PROBE,
    "sizeof(struct header)": 16,
}

#: A value of each layout, the C structure, and the statements that fill the same into it (`s`, zeroed; `n` bytes).
SAMPLES: dict[str, tuple[Layout[Any], Any, str, str]] = {
    "map": (
        layouts.DMA_MAP,
        DmaMap(3, 0x11, 0x22, 0x33),
        "struct dma_map",
        "s.argsz = n; s.flags = 3; s.offset = 0x11; s.address = 0x22; s.size = 0x33;",
    ),
    "unmap": (
        layouts.DMA_UNMAP,
        DmaUnmap(2, 0x44, 0x55),
        "struct dma_unmap",
        "s.argsz = n; s.flags = 2; s.address = 0x44; s.size = 0x55;",
    ),
    "device": (
        layouts.DEVICE_INFO,
        DeviceInfo(3, 9, 5, 16),
        "struct device_info",
        "s.argsz = n; s.flags = 3; s.num_regions = 9; s.num_irqs = 5;",
    ),
    "region": (
        layouts.REGION_INFO,
        RegionInfo(2, 3, 0x4000, 0x1000),
        "struct vfio_region_info",
        "s.argsz = n; s.flags = 3; s.index = 2; s.size = 0x4000; s.offset = 0x1000;",
    ),
    "sparse": (
        layouts.REGION_INFO,
        RegionInfo(2, 15, 0x4000, 0, (Area(0x1000, 0x2000), Area(0x3000, 0x1000)), 80),
        "struct sparse_region",
        "s.info.argsz = n; s.info.flags = 15; s.info.index = 2; s.info.size = 0x4000;"
        "s.info.cap_offset = offsetof(struct sparse_region, cap); s.cap.nr_areas = 2;"
        "s.cap.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP; s.cap.header.version = 1;"
        "s.area[0].offset = 0x1000; s.area[0].size = 0x2000; s.area[1].offset = 0x3000; s.area[1].size = 0x1000;",
    ),
    "io_fds": (
        layouts.REGION_IO_FDS,
        RegionIoFds(4, 2, (IoEventFd(0x10, 4, 0), IoEventFd(0x14, 2, 1, 0, 1, 7)), 0, 96),
        "struct io_fds",
        "s.argsz = n; s.index = 4; s.count = 2; s.part[0].offset = 0x10; s.part[0].size = 4;"
        "s.part[1].offset = 0x14; s.part[1].size = 2; s.part[1].fd_index = 1; s.part[1].flags = 1;"
        "s.part[1].datamatch = 7;",
    ),
    "irq": (
        layouts.IRQ_INFO,
        IrqInfo(2, 9, 33),
        "struct vfio_irq_info",
        "s.argsz = n; s.flags = 9; s.index = 2; s.count = 33;",
    ),
    "irq_set": (
        layouts.IRQ_SET,
        IrqSet(0x22, 2, 5, 2, b"\1\0"),
        "struct { struct vfio_irq_set set; uint8_t data[2]; }",
        "n = sizeof(struct vfio_irq_set) + 2; s.set.argsz = n; s.set.flags = 0x22; s.set.index = 2;"
        "s.set.start = 5; s.set.count = 2; s.data[0] = 1;",
    ),
    "range": (
        layouts.REGION_RANGE,
        RegionAccess(0x66, 7, 4),
        "struct region_access",
        "n -= 8; s.offset = 0x66; s.region = 7; s.count = 4;",
    ),
    "data": (
        layouts.REGION_DATA,
        RegionAccess(0x66, 7, 8, b"abcdefgh"),
        "struct region_access",
        's.offset = 0x66; s.region = 7; s.count = 8; memcpy(s.data, "abcdefgh", 8);',
    ),
    "dma_range": (
        layouts.DMA_RANGE,
        DmaAccess(0x77, 4),
        "struct dma_access",
        "n -= 8; s.address = 0x77; s.count = 4;",
    ),
    "dma_data": (
        layouts.DMA_DATA,
        DmaAccess(0x77, 8, b"abcdefgh"),
        "struct dma_access",
        's.address = 0x77; s.count = 8; memcpy(s.data, "abcdefgh", 8);',
    ),
    "dma_written": (
        layouts.DMA_WRITTEN,
        DmaAccess(0x77, 4),
        "struct dma_access",
        "n -= 8; s.address = 0x77; s.count = 4;",
    ),
    "writes": (
        layouts.REGION_WRITES,
        (RegionAccess(8, 0, 2, b"ab"), RegionAccess(9, 1, 8, b"abcdefgh")),
        "struct writes",
        's.count = 2; s.write[0].offset = 8; s.write[0].count = 2; memcpy(s.write[0].data, "ab", 2);'
        's.write[1].offset = 9; s.write[1].region = 1; s.write[1].count = 8; memcpy(s.write[1].data, "abcdefgh", 8);',
    ),
    "done": (layouts.WRITES_DONE, 3, "uint64_t", "s = 3;"),
    "feature": (
        layouts.DEVICE_FEATURE,
        DeviceFeature(0x10002, b"12345678", 16),
        "struct device_feature",
        's.argsz = n; s.flags = VFIO_DEVICE_FEATURE_GET | 2; memcpy(s.data, "12345678", 8);',
    ),
    "migration": (
        layouts.MIGRATION_DATA,
        MigrationData(8, b"12345678"),
        "struct device_feature",
        's.argsz = n; s.flags = 8; memcpy(s.data, "12345678", 8);',
    ),
}


@pytest.fixture(scope="module")
def from_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if COMPILER is None:
        pytest.skip("no C compiler (gcc, cc or clang) on this machine")
    folder = tmp_path_factory.mktemp("structs")
    blocks = "".join(
        f"{{ {struct} s; size_t n = sizeof s; memset(&s, 0, sizeof s); {fill}"
        f' printf("{name} "); for (size_t i = 0; i < n; i++)'
        ' printf("%02x", ((unsigned char *)&s)[i]); puts(""); }\n'
        for name, (_, _, struct, fill) in SAMPLES.items()
    )
    numbers = "".join(f'printf("%lu\\n", (unsigned long)({each}));' for each in CONSTANTS)
    (folder / "probe.c").write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include "structs.h"\n'
        f"int main(void) {{\n{blocks}{numbers}return 0; }}\n"
    )
    program = folder / "probe"
    subprocess.run(
        [COMPILER, "-std=gnu11", "-I", str(HERE), "-o", str(program), str(folder / "probe.c")], check=True
    )
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    samples = dict(line.split() for line in lines[: len(SAMPLES)])
    return samples | dict(zip(CONSTANTS, lines[len(SAMPLES) :], strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_payloads_are_those_of_the_c_structures(name: str, from_c: dict[str, str]) -> None:
    layout, value, _, _ = SAMPLES[name]
    expected = bytes.fromhex(from_c[name])
    assert layout.build(value) == expected
    assert layout.parse(expected) == value
    assert layout.smallest <= len(expected) <= layout.largest


def test_numbers_are_those_of_linux(from_c: dict[str, str]) -> None:
    assert {name: int(from_c[name]) for name in CONSTANTS} == CONSTANTS


def test_commands_are_those_of_the_text() -> None:
    numbers = (*range(1, 14), 15, 16, 17, 18)
    assert tuple(COMMANDS) == tuple(Command) == numbers
    assert {command for command in Command if COMMANDS[command].by_server} == {11, 12}
    assert (Flag.REPLY, Flag.NO_REPLY, Flag.ERROR) == (1, 1 << 4, 1 << 5)
    assert (name_of(9), name_of(14)) == ("REGION_READ", "command 14")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_byte_or_a_descriptor_too_many_or_too_few_is_refused(command: int) -> None:
    kind = COMMANDS[command]
    for length in {max(kind.payload.smallest - 1, 0), kind.payload.largest + 1}:
        if not kind.payload.smallest <= length <= kind.payload.largest:
            with pytest.raises(MessageError, match=f"{length} bytes"):
                kind.check(name_of(command), bytes(length), 0)
            with pytest.raises(MessageError):
                kind.payload.parse(bytes(length))
    payload = bytes(kind.payload.smallest)
    kind.check(name_of(command), payload, kind.most_fds)
    with pytest.raises(MessageError, match="file descriptors"):
        kind.check(name_of(command), payload, kind.most_fds + 1)


@pytest.mark.parametrize(
    ("layout", "value", "at", "byte", "why"),
    [
        (layouts.REGION_INFO, SAMPLES["sparse"][1], 12, 8, "capability at 8"),
        (layouts.REGION_INFO, SAMPLES["sparse"][1], 12, 77, "capability at 77"),
        (layouts.REGION_INFO, SAMPLES["sparse"][1], 12, 72, ""),
        (layouts.REGION_INFO, SAMPLES["sparse"][1], 40, 3, "3 areas"),
        (layouts.REGION_IO_FDS, SAMPLES["io_fds"][1], 12, 3, "3 parts"),
        (layouts.REGION_IO_FDS, SAMPLES["io_fds"][1], 12, 0, "0 parts"),
        (layouts.REGION_DATA, SAMPLES["data"][1], 12, 7, "7 bytes carries 8"),
        (layouts.DMA_DATA, SAMPLES["dma_data"][1], 8, 9, "9 bytes carries 8"),
        (layouts.REGION_WRITES, SAMPLES["writes"][1], 0, 1, "1 writes"),
        (layouts.REGION_WRITES, SAMPLES["writes"][1], 20, 9, "9 bytes among"),
        (layouts.MIGRATION_DATA, SAMPLES["migration"][1], 4, 7, "7 bytes carries 8"),
    ],
)
def test_counts_inside_a_payload_must_agree_with_it(
    layout: Layout[Any], value: Any, at: int, byte: int, why: str
) -> None:
    data = bytearray(layout.build(value))
    data[at] = byte
    if why:
        with pytest.raises(MessageError, match=why):
            layout.parse(bytes(data))
    else:
        assert layout.parse(bytes(data)) != value


def test_a_region_may_have_other_capabilities_in_front_and_loops_end() -> None:
    whole = layouts.REGION_INFO.build(SAMPLES["sparse"][1])
    other = whole[:32] + b"\x02\0\x01\0" + (40).to_bytes(4, "little") + whole[32:]
    assert layouts.REGION_INFO.parse(other).areas == SAMPLES["sparse"][1].areas
    loop = whole[:32] + b"\x02\0\x01\0" + (32).to_bytes(4, "little") + whole[32:]
    with pytest.raises(MessageError, match="capability at 32"):
        layouts.REGION_INFO.parse(loop)
    short = whole[:12] + (72).to_bytes(4, "little") + whole[16:72] + b"\x01\0\x01\0\0\0\0\0"
    with pytest.raises(MessageError, match="areas of a region at 72"):
        layouts.REGION_INFO.parse(short)
    without = whole[:32] + b"\x02\0" + whole[34:]
    assert layouts.REGION_INFO.parse(without).areas == ()


def test_an_answer_that_was_cut_short_has_no_parts_but_says_how_long_it_is() -> None:
    info = layouts.REGION_INFO.parse(layouts.REGION_INFO.build(SAMPLES["sparse"][1])[:32])
    assert (info.areas, info.argsz) == ((), 80)
    fds = layouts.REGION_IO_FDS.parse(layouts.REGION_IO_FDS.build(SAMPLES["io_fds"][1])[:16])
    assert (fds.parts, fds.count, fds.argsz) == ((), 2, 96)
    assert (
        layouts.REGION_IO_FDS.build(RegionIoFds(4, 2, argsz=96))
        == layouts.REGION_IO_FDS.build(SAMPLES["io_fds"][1])[:16]
    )


def test_parts_may_be_longer_than_the_text_has_them() -> None:
    data = layouts.REGION_IO_FDS.build(SAMPLES["io_fds"][1])
    longer = data[:56] + bytes(8) + data[56:] + bytes(8)
    assert layouts.REGION_IO_FDS.parse(longer).parts == SAMPLES["io_fds"][1].parts


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_message_error(data: bytes) -> None:
    for kind in COMMANDS.values():
        for layout in (kind.payload, kind.reply):
            try:
                layout.parse(data)
            except MessageError:
                continue


# VERSION.


def test_a_version_is_two_numbers_and_json() -> None:
    proposed = Version(0, 1, Capabilities(8, 4096, 10, 0x1000, write_multiple=True, twin_socket=True))
    data = VERSION.build(proposed)
    assert data[:4] == b"\0\0\1\0"
    assert data[-1] == 0
    assert VERSION.parse(data) == proposed
    answer = Version(0, 0, Capabilities(twin_socket=True, twin_fd=0))
    assert b'"twin_socket":{"supported":true,"fd_index":0}' in VERSION.build(answer)
    assert VERSION.parse(VERSION.build(answer)) == answer


def test_what_qemu_proposes_is_understood() -> None:
    """QEMU 11.1, hw/vfio-user/proxy.c: the names that it sends, with its defaults."""
    data = (
        b'\0\0\0\0{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, '
        b'"max_dma_maps": 65535, "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, '
        b'"write_multiple": true}}\0'
    )
    assert VERSION.parse(data) == Version(0, 0, Capabilities(8, 1 << 20, 65535, 4096, write_multiple=True))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"{}\0", b'{"capabilities": {}}', b'{"capabilities": {"x": [1]}}\0']
)
def test_who_says_nothing_has_the_defaults_of_the_text(data: bytes) -> None:
    found = VERSION.parse(b"\0\0\1\0" + data).capabilities
    assert found == Capabilities()
    assert (found.most_fds, found.most_data, found.most_maps, found.page_sizes) == (1, 1048576, 65535, 4096)
    said = Capabilities(2, 3, 4, 5)
    assert (said.most_fds, said.most_data, said.most_maps, said.page_sizes) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "no JSON"),
        (b"\xff{}", "no JSON"),
        (b"[" * 4000, "no JSON"),
        (b"[]\0", "version data"),
        (b'{"capabilities": 3}', "capabilities is no"),
        (b'{"capabilities": {"max_msg_fds": true}}', "max_msg_fds"),
        (b'{"capabilities": {"max_msg_fds": -1}}', "max_msg_fds"),
        (b'{"capabilities": {"pgsizes": 1.5}}', "pgsizes"),
        (b'{"capabilities": {"max_data_xfer_size": 18446744073709551616}}', "max_data_xfer_size"),
        (b'{"capabilities": {"write_multiple": 1}}', "write_multiple"),
        (b'{"capabilities": {"twin_socket": true}}', "twin_socket"),
        (b'{"capabilities": {"twin_socket": {"supported": 1}}}', "supported"),
        (b'{"capabilities": {"twin_socket": {"supported": true, "fd_index": "0"}}}', "fd_index"),
    ],
)
def test_versions_that_are_none_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(MessageError, match=why):
        VERSION.parse(b"\0\0\1\0" + data)


def test_the_version_is_that_of_the_text() -> None:
    assert (capabilities.MAJOR, capabilities.MINOR) == (0, 1)
