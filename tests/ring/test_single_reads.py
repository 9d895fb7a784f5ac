"""Each field of guest memory is read once: a guest that changes it meanwhile cannot get past the checks."""

from __future__ import annotations

from collections import Counter

import pytest

from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.ring.queue import Used, device_queue, driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

B = 0x10000
PACKED = mask(Feature.F_RING_PACKED)
TABLES = mask(Feature.F_INDIRECT_DESC)
EVENT = mask(Feature.F_EVENT_IDX)
WIDTH = {"H": 2, "I": 4, "Q": 8}


class Words:
    """Words of a :class:`Shifty` memory: after a word was read, it holds something else."""

    def __init__(self, memory: Shifty, address: int, words: memoryview) -> None:
        self.memory, self.address, self.words = memory, address, words

    def __getitem__(self, index: int) -> int:
        value = self.words[index]
        address = self.address + index * self.words.itemsize
        self.memory.reads.update(range(address, address + self.words.itemsize))
        if self.memory.active:
            self.memory.saved.append((self.words, index, value))
            self.words[index] = value ^ self.memory.flip & (1 << 8 * self.words.itemsize) - 1
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.words[index] = value


class Shifty(GuestMemory):
    """Guest memory in which the other side flips bits right behind each read, and each read is counted."""

    def __init__(self, raw: bytearray) -> None:
        self.reads: Counter[int] = Counter()
        self.saved: list[tuple[memoryview, int, int]] = []
        self.active = False
        self.flip = 0
        super().__init__([Region(0, len(raw), raw)])

    def words(self, address: int, count: int, word: str) -> Words:
        return Words(self, address, super().words(address, count, word))

    def settle(self) -> Counter[int]:
        """Puts the flipped words back; how often each byte was read since the last time."""
        for words, index, value in reversed(self.saved):
            words[index] = value
        self.saved.clear()
        reads, self.reads = self.reads, Counter()
        return reads


LAYOUT = QueueLayout(4, 0x1000, 0x4000, 0x6000)


@pytest.mark.parametrize("features", [0, PACKED, TABLES, PACKED | TABLES, EVENT, PACKED | EVENT])
@pytest.mark.parametrize("flip", [0x8080_8080_8080_8080, (1 << 64) - 1, 0x0007_0000_0000_0001])
def test_pop_reads_each_byte_at_most_once_and_uses_what_it_checked(features: int, flip: int) -> None:
    memory = Shifty(bytearray(0x20000))
    driver = driver_queue(memory, LAYOUT, features, Allocator(0x8000, 0x1000))
    device = device_queue(memory, LAYOUT, features)
    for token in range(6):
        driver.add(
            [Segment(B, 3), Segment(B + 16, 4)], [Segment(B + 32, 5)], token, indirect=bool(features & TABLES)
        )
        driver.publish()
        memory.settle()
        memory.flip, memory.active = flip, True
        chain = device.pop()
        memory.active = False
        reads = memory.settle()
        assert set(reads.values()) == {1}
        # The three descriptors in full (addr, len, flags, id or next), wherever they stand.
        assert sum(reads.values()) >= 48
        assert chain.readable == (Segment(B, 3), Segment(B + 16, 4))
        assert chain.writable == (Segment(B + 32, 5),)
        # The used side takes nothing back from memory: what was popped is what is told.
        memory.active = True
        device.push(chain, 5)
        memory.active = False
        assert memory.settle() == Counter()
        assert driver.poll() == [Used(token, 5)]


@pytest.mark.parametrize("features", [0, PACKED])
def test_the_driver_reads_each_used_entry_once_and_never_its_own_descriptors(features: int) -> None:
    memory = Shifty(bytearray(0x20000))
    driver = driver_queue(memory, LAYOUT, features)
    device = device_queue(memory, LAYOUT, features)
    driver.disable_notifications()
    for token in range(6):
        driver.add([Segment(B, 3)], [Segment(B + 32, 5)], token)
        driver.publish()
        device.push(device.pop(), 5)
        entry = 0x6004 + 8 * (token % 4) if not features else 0x1008 + 16 * (2 * token % 4)
        memory.settle()
        assert driver.poll() == [Used(token, 5)]
        reads = memory.settle()
        assert {reads[address] for address in range(entry, entry + 8)} == {1}
        if not features:
            assert not any(0x1000 <= address < 0x1040 for address in reads)
        assert max(reads.values()) == 1
