"""DMA mappings: what is within reach, what is refused with which errno, and that a refusal changes nothing."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.fastpath import native
from virtio_ipsec.transport import arena
from virtio_ipsec.transport.arena import PIECE_LIMIT
from virtio_ipsec.transport.vfio_user import dma
from virtio_ipsec.transport.vfio_user.dma import MAX_MAPS, DmaTable, share_of_maps
from virtio_ipsec.transport.vfio_user.messages import Refused
from virtio_ipsec.transport.vfio_user.payloads import DmaMap, DmaUnmap

READ, WRITE, BOTH = 1, 2, 3


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("client memory")
    os.ftruncate(made, 0x10000)
    yield made
    os.close(made)


def contents(fd: int) -> bytes:
    return os.pread(fd, 0x10000, 0)


def without(table: DmaTable, asked: DmaUnmap) -> DmaTable:
    """As a session does it."""
    rest = table.without(asked)
    table.let_go(asked)
    return rest


def regions(table: DmaTable) -> tuple[tuple[int, int], ...]:
    memory = table.memory
    return () if memory is None else memory.regions


def test_mapped_memory_is_the_file_s_at_the_client_s_address(fd: int) -> None:
    table = DmaTable().with_map(DmaMap(BOTH, 0x2000, 0x100000, 0x1000), fd)
    table = table.with_map(DmaMap(BOTH, 0x5000, 0x101000, 0x1000), fd)
    memory = table.memory
    assert memory is not None
    memory.write(0x100FFE, b"abcd")  # over the border of two mappings
    assert contents(fd)[0x2FFE:0x3000] + contents(fd)[0x5000:0x5002] == b"abcd"
    for address, length in ((0xFFFFF, 1), (0x102000, 1), (0x101FFF, 2)):
        with pytest.raises(MemoryAccessError):
            memory.read(address, length)


def test_what_is_unmapped_is_out_of_reach_and_its_mapping_goes(fd: int) -> None:
    table = DmaTable().with_map(DmaMap(BOTH, 0, 0x100000, 0x1000), fd)
    table = table.with_map(DmaMap(BOTH, 0, 0x200000, 0x10000), fd)
    table = without(table, DmaUnmap(0, 0x200000, 0x10000))
    memory = table.memory
    assert memory is not None
    assert memory.regions == ((0x100000, 0x1000),)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert sum("client memory" in line for line in maps) == 1
    assert table.without(DmaUnmap(0, 0x100000, 0x1000)).memory is None
    again = table.with_map(DmaMap(BOTH, 0, 0x200000, 0x1000), fd)
    assert len(again.without(DmaUnmap(2, 0, 0))) == 0


PAGE, TOP = mmap.PAGESIZE, 1 << 32


def test_pages_from_anywhere_are_one_where_the_client_has_them_side_by_side(fd: int) -> None:
    table = DmaTable()
    # In the order in which they come; which page of the file; whether it may be written.
    for place, page, access in ((3, 0, BOTH), (1, 7, BOTH), (2, 3, READ), (0, 9, BOTH)):
        table = table.with_map(DmaMap(access, page * PAGE, TOP - (4 - place) * PAGE, PAGE), fd)
    begin = TOP - 4 * PAGE
    assert regions(table) == ((begin, 4 * PAGE),)
    memory = table.memory
    assert memory is not None
    words = memory.words(begin, 4 * PAGE // 8, "Q")
    for place in range(4):
        words[place * PAGE // 8] = 0x11 * (place + 1)
    for page, value in ((9, 0x11), (7, 0x22), (3, 0), (0, 0x44)):
        assert contents(fd)[page * PAGE] == value
    assert memory.read(begin + 2 * PAGE, 1) == b"\x33"  # stays here


def test_what_was_unmapped_is_reached_by_nobody_and_its_place_taken_by_others(fd: int) -> None:
    table = DmaTable()
    for page in range(3):
        table = table.with_map(DmaMap(BOTH, page * PAGE, TOP + page * PAGE, PAGE), fd)
    before = table.memory
    assert before is not None
    table = without(table, DmaUnmap(0, TOP + PAGE, PAGE))
    assert regions(table) == ((TOP, PAGE), (TOP + 2 * PAGE, PAGE))
    before.write(TOP, b"x" * 3 * PAGE)  # whoever has forgotten to stop
    assert contents(fd)[: 3 * PAGE] == b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
    table = table.with_map(DmaMap(BOTH, 8 * PAGE, TOP + PAGE, PAGE), fd)
    memory = table.memory
    assert memory is not None
    assert memory.regions == ((TOP, 3 * PAGE),)
    assert memory.read(TOP + PAGE, PAGE) == bytes(PAGE)
    memory.write(TOP + 2 * PAGE - 1, b"ab")
    assert contents(fd)[9 * PAGE - 1 : 9 * PAGE] == b"a"
    without(table, DmaUnmap(2, 0, 0))
    memory.write(TOP, b"y" * 3 * PAGE)
    assert b"y" not in contents(fd)


def test_mappings_that_cannot_lie_side_by_side_are_within_reach_all_the_same(fd: int) -> None:
    table = DmaTable()
    for address, size in ((0x1000, 0x800), (0x1800, PAGE), (TOP - PAGE, 2 * PAGE), (TOP + PAGE, PAGE)):
        table = table.with_map(DmaMap(BOTH, 0, address, size), fd)
    assert regions(table) == ((0x1000, 0x800), (0x1800, PAGE), (TOP - PAGE, 2 * PAGE), (TOP + PAGE, PAGE))
    os.truncate(fd, PIECE_LIMIT + PAGE)
    for address, size in ((0x10000000, PIECE_LIMIT + PAGE), (0x10000000 + PIECE_LIMIT + PAGE, PAGE)):
        table = table.with_map(DmaMap(BOTH, 0, address, size), fd)
    assert len(regions(table)) == 6


@pytest.mark.parametrize("most", [0, 1])
def test_address_space_for_neighbours_is_limited(fd: int, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(dma, "_MAX_ARENAS", most)
    table = DmaTable()
    for address in (0, PAGE, TOP, TOP + PAGE):
        table = table.with_map(DmaMap(BOTH, 0, address, PAGE), fd)
    assert len(regions(table)) == 4 - most
    for address in (0, PAGE, TOP, TOP + PAGE):
        table = without(table, DmaUnmap(0, address, PAGE))
    assert regions(table) == ()


def test_address_space_goes_with_the_table(fd: int) -> None:
    def in_use() -> int:
        """Bytes."""
        with open("/proc/self/statm", encoding="utf-8") as statm:
            return int(statm.read().split()[0]) * PAGE

    before = in_use()
    table = DmaTable().with_map(DmaMap(BOTH, 0, 0, PAGE), fd)
    memory = table.memory
    assert in_use() - before >= arena.ARENA_SIZE
    del table, memory
    assert in_use() - before < arena.ARENA_SIZE // 2


def no_address_space(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(arena, "ARENA_SIZE", 1 << 62)


def huge_pages(patch: pytest.MonkeyPatch) -> None:
    about = os.statvfs("/proc")
    patch.setattr(os, "fstatvfs", lambda _: os.statvfs_result((PIECE_LIMIT, *about[1:])))


@pytest.mark.parametrize("why", [no_address_space, huge_pages])
def test_where_there_is_no_address_space_left_or_pages_are_huge_neighbours_are_apart(
    fd: int, monkeypatch: pytest.MonkeyPatch, why: Callable[[pytest.MonkeyPatch], None]
) -> None:
    why(monkeypatch)
    table = DmaTable()
    for address in (0, PAGE):
        table = table.with_map(DmaMap(BOTH, 0, address, PAGE), fd)
    assert regions(table) == ((0, PAGE), (PAGE, PAGE))


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (DmaMap(BOTH, 0, 0x100FFF, 0x1000), errno.EEXIST),
        (DmaMap(BOTH, 0, 0xFFFFF, 2), errno.EEXIST),
        (DmaMap(BOTH, 0, 0, 1 << 63), errno.EEXIST),
        (DmaMap(BOTH, 0, 0x100000, 0x1000), errno.EEXIST),
        (DmaMap(BOTH, 0, 0x200000, 0), errno.EINVAL),
        (DmaMap(BOTH, 0, 0xFFFFFFFFFFFFFFFF, 2), errno.EINVAL),
        (DmaMap(8, 0, 0x200000, 0x1000), errno.EINVAL),
        (DmaMap(BOTH, 0x10000, 0x200000, 0x1000), errno.EINVAL),
        (DmaMap(BOTH, 0xFFFFFFFFFFFFF000, 0x200000, 0x1000), errno.EINVAL),
        (DmaMap(BOTH, 0, 0x200000, 0x10001), errno.EINVAL),
    ],
)
def test_mappings_that_cannot_be_are_refused(fd: int, asked: DmaMap, number: int) -> None:
    table = DmaTable().with_map(DmaMap(BOTH, 0, 0x100000, 0x1000), fd)
    with pytest.raises(Refused) as refused:
        table.with_map(asked, fd)
    assert refused.value.number == number
    assert len(table) == 1


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (DmaUnmap(0, 0x100000, 0x800), errno.ENOENT),
        (DmaUnmap(0, 0x100800, 0x800), errno.ENOENT),
        (DmaUnmap(0, 0, 0), errno.ENOENT),
        (DmaUnmap(1, 0x100000, 0x1000), errno.EOPNOTSUPP),
        (DmaUnmap(2, 0x100000, 0x1000), errno.EINVAL),
        (DmaUnmap(2, 0, 1), errno.EINVAL),
        (DmaUnmap(4, 0, 0), errno.EOPNOTSUPP),
    ],
)
def test_only_whole_mappings_are_taken_back(fd: int, asked: DmaUnmap, number: int) -> None:
    table = DmaTable().with_map(DmaMap(BOTH, 0, 0x100000, 0x1000), fd)
    with pytest.raises(Refused) as refused:
        table.without(asked)
    assert refused.value.number == number


def test_only_files_are_mapped_and_as_many_as_there_may_be() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(Refused, match="no file"):
        DmaTable().with_map(DmaMap(BOTH, 0, 0, 0x1000), read_end)
    os.close(read_end)
    os.close(write_end)
    table = DmaTable(16)
    for _ in range(2):
        for number in range(16):
            table = table.with_map(DmaMap(BOTH, 0, number << 12, 0x1000), None)
        with pytest.raises(Refused) as refused:
            table.with_map(DmaMap(BOTH, 0, 16 << 12, 0x1000), None)
        assert refused.value.number == errno.ENOSPC
        table = without(table, DmaUnmap(2, 0, 0))


@pytest.mark.parametrize("clients", [1, 4, 65])
def test_all_clients_together_leave_the_process_mappings_of_its_own(clients: int) -> None:
    """Each of theirs may take two, where nothing is its neighbour; Linux grants 65,530."""
    most = share_of_maps(clients)
    assert 256 <= most <= MAX_MAPS
    assert 2 * most * clients <= 60_000


def test_memory_without_a_file_or_without_any_access_is_out_of_reach(fd: int) -> None:
    table = DmaTable().with_map(DmaMap(BOTH, 0, 0x100000, 0x1000), None)
    table = table.with_map(DmaMap(0, 0, 0x200000, 0x1000), fd)
    assert table.memory is None
    with pytest.raises(Refused):
        table.with_map(DmaMap(BOTH, 0, 0x200000, 0x1000), fd)


def test_stores_into_read_only_memory_do_not_arrive(fd: int) -> None:
    os.pwrite(fd, b"firmware", 0)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    table = DmaTable().with_map(DmaMap(READ, 0, 0, 0x1000), read_only)
    memory = table.memory
    assert memory is not None
    assert memory.read(0, 8) == b"firmware"
    memory.write(0, b"virus!!!")
    assert contents(fd)[:8] == b"firmware"
    with pytest.raises(Refused, match="Permission denied"):
        table.with_map(DmaMap(BOTH, 0, 0x1000, 0x1000), read_only)
    os.close(read_only)


def test_much_read_only_memory_is_out_of_reach(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma, "_MOST_READ_ONLY", 0x2000)
    table = DmaTable()
    for address in (0, 0x1000, 0x2000):
        table = table.with_map(DmaMap(READ, 0, address, 0x1000), fd)
    memory = table.memory
    assert memory is not None
    assert memory.regions == ((0, 0x2000),)


def test_a_file_that_takes_no_memory_takes_no_end_of_address_space_either() -> None:
    """Which belongs to other clients, too."""
    fd = os.memfd_create("sparse")
    half = dma._MOST_DIRECT // 2
    os.ftruncate(fd, half)
    table = DmaTable()
    for number in range(2):
        table = table.with_map(DmaMap(BOTH, 0, number * half, half), fd)
    more = DmaMap(BOTH, 0, 2 * half, half)
    with pytest.raises(Refused) as refused:
        table.with_map(more, fd)
    assert refused.value.number == errno.ENOSPC
    table = without(table, DmaUnmap(0, 0, half)).with_map(more, fd)
    os.close(fd)
    assert regions(table) == ((half, half), (2 * half, half))


@pytest.mark.parametrize("with_c", [True, False])
def test_memory_is_shared_with_and_without_the_extension(
    fd: int, monkeypatch: pytest.MonkeyPatch, with_c: bool
) -> None:
    if not with_c:
        monkeypatch.setattr(native, "available", lambda: False)
    memory = DmaTable().with_map(DmaMap(WRITE, 0, 0, mmap.PAGESIZE), fd).memory
    assert memory is not None
    memory.write(4, b"x")
    assert contents(fd)[4:5] == b"x"
