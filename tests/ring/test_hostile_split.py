"""A driver that breaks the rules of a split ring breaks its queue, in bounded time, and nothing else."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.faults import ChainError, Fault, QueueBroken
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.ring.split import SplitDeviceQueue
from virtio_ipsec.wire.numbers import Feature, mask

NEXT, WRITE, INDIRECT = 1, 2, 4
WITH_TABLES = mask(Feature.F_INDIRECT_DESC)

B = 0x10000
# name: (descriptors of the main table, indirect table at 0x8000, kind); the chain starts at descriptor 0.
BAD_CHAINS = {
    "loop to itself": ([(B, 1, NEXT, 0)], [], Fault.LOOP),
    "loop of two": ([(B, 1, NEXT, 1), (B, 1, NEXT, 0)], [], Fault.LOOP),
    "loop of writables": ([(B, 1, WRITE | NEXT, 0)], [], Fault.LOOP),
    "next is the size": ([(B, 1, NEXT, 4)], [], Fault.INDEX),
    "next is 65535": ([(B, 1, NEXT, 0xFFFF)], [], Fault.INDEX),
    "address outside": ([(0x20000, 1, 0, 0)], [], Fault.ADDRESS),
    "runs out of memory": ([(0x1FFFF, 2, WRITE, 0)], [], Fault.ADDRESS),
    "address wraps": ([((1 << 64) - 1, 2, 0, 0)], [], Fault.ADDRESS),
    "length of 4 GiB - 1": ([(B, 0xFFFFFFFF, 0, 0)], [], Fault.ADDRESS),
    "readable after writable": ([(B, 1, WRITE | NEXT, 1), (B, 1, 0, 0)], [], Fault.ORDER),
    "zero length": ([(B, 0, 0, 0)], [], Fault.ZERO_LENGTH),
    "zero length in the middle": ([(B, 1, NEXT, 1), (B, 0, NEXT, 2), (B, 1, 0, 0)], [], Fault.ZERO_LENGTH),
    "indirect with next": ([(0x8000, 16, INDIRECT | NEXT, 1), (B, 1, 0, 0)], [], Fault.INDIRECT_CHAINED),
    "empty table": ([(0x8000, 0, INDIRECT, 0)], [], Fault.INDIRECT_LENGTH),
    "table of 8 bytes": ([(0x8000, 8, INDIRECT, 0)], [], Fault.INDIRECT_LENGTH),
    "table of 24 bytes": ([(0x8000, 24, INDIRECT, 0)], [], Fault.INDIRECT_LENGTH),
    "table outside": ([(0x20000, 16, INDIRECT, 0)], [], Fault.ADDRESS),
    "table runs out": ([(0x1FFF0, 32, INDIRECT, 0)], [], Fault.ADDRESS),
    "table of 4 GiB": ([(0x8000, 0xFFFFFFF0, INDIRECT, 0)], [], Fault.ADDRESS),
    "nested table": ([(0x8000, 16, INDIRECT, 0)], [(0x8000, 16, INDIRECT, 0)], Fault.INDIRECT_NESTED),
    "loop in a table": ([(0x8000, 32, INDIRECT, 0)], [(B, 1, NEXT, 1), (B, 1, NEXT, 0)], Fault.LOOP),
    "next beyond the table": ([(0x8000, 16, INDIRECT, 0)], [(B, 1, NEXT, 1)], Fault.INDEX),
    "five in a table of a queue of four": (
        [(0x8000, 80, INDIRECT, 0)],
        [(B, 1, NEXT, 1), (B, 1, NEXT, 2), (B, 1, NEXT, 3), (B, 1, NEXT, 4), (B, 1, 0, 0)],
        Fault.LOOP,
    ),
    "order broken inside a table": (
        [(B, 1, WRITE | NEXT, 1), (0x8000, 16, INDIRECT, 0)],
        [(B, 1, 0, 0)],
        Fault.ORDER,
    ),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_bad_chain_breaks_the_queue(split, name: str, split_device) -> None:
    descriptors, table, kind = BAD_CHAINS[name]
    for index, descriptor in enumerate(descriptors):
        split.desc(index, *descriptor)
    split.table(table)
    split.offer(0, 0)
    queue = split_device(split.memory, split.layout, WITH_TABLES)
    before = bytes(split.raw)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is kind
    assert queue.broken
    assert queue.fault is kind
    assert split.raw == before


def test_an_indirect_descriptor_without_the_feature_breaks_the_queue(split, split_device) -> None:
    split.desc(0, 0x8000, 16, INDIRECT)
    split.offer(0)
    queue = split_device(split.memory, split.layout)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.INDIRECT_NOT_NEGOTIATED


@pytest.mark.parametrize("head", [4, 0x8000, 0xFFFF])
def test_a_head_outside_the_table_breaks_the_queue(split, head: int, split_device) -> None:
    split.offer(head)
    queue = split_device(split.memory, split.layout)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.INDEX


@pytest.mark.parametrize("index", [5, 0x8000, 0xFFFF])
@pytest.mark.parametrize("call", ["pop", "pending", "enable_notifications"])
def test_an_available_index_that_jumps_breaks_the_queue(split, index: int, call: str, split_device) -> None:
    split.poke("<H", 0x4002, index)
    queue = split_device(split.memory, split.layout)
    with pytest.raises(ChainError) as caught:
        getattr(queue, call)()
    assert caught.value.kind is Fault.AVAILABLE_JUMP
    assert queue.broken


def test_an_available_index_that_goes_back_breaks_the_queue(split, split_device) -> None:
    split.desc(0, B, 1)
    split.offer(0)
    queue = split_device(split.memory, split.layout)
    queue.pop()
    split.poke("<H", 0x4002, 0)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.AVAILABLE_JUMP


def test_a_head_that_is_still_out_cannot_come_again(split, split_device) -> None:
    split.desc(0, B, 1)
    split.offer(0, 0)
    queue = split_device(split.memory, split.layout)
    queue.pop()
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.DUPLICATE


def test_chains_that_share_descriptors_cannot_be_out_together(split, split_device) -> None:
    for index in range(3):
        split.desc(index, B, 1, NEXT, index + 1)
    split.desc(3, B, 1)
    split.offer(0, 1)
    queue = split_device(split.memory, split.layout)
    queue.pop()
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.OVERCOMMIT


def test_a_chain_of_the_queue_size_is_allowed(split, split_device) -> None:
    for index in range(3):
        split.desc(index, B, 1, NEXT, index + 1)
    split.desc(3, B, 1)
    split.offer(0)
    assert split_device(split.memory, split.layout).pop().readable_len == 4


def test_a_chain_holds_at_most_4_gib() -> None:
    class Endless(GuestMemory):
        """Memory that claims to be everywhere: the sum is what counts."""

        def check(self, address: int, length: int) -> None:
            pass

    raw = bytearray(0x10000)
    memory = Endless([Region(0, len(raw), raw)])
    from virtio_ipsec.ring.chain import QueueLayout

    for first, verdict in ((1, None), (2, Fault.TOO_LONG)):
        raw[0x1000:0x1020] = (
            (0).to_bytes(8, "little") + first.to_bytes(4, "little") + b"\x01\0\x01\0"
            + (0).to_bytes(8, "little") + (0xFFFFFFFF).to_bytes(4, "little") + b"\0\0\0\0"
        )  # fmt: skip
        raw[0x4000:0x4006] = b"\0\0\x01\0\0\0"
        queue = SplitDeviceQueue(memory, QueueLayout(2, 0x1000, 0x4000, 0x6000))
        if verdict is None:
            assert queue.pop().readable_len == 1 << 32
        else:
            with pytest.raises(ChainError) as caught:
                queue.pop()
            assert caught.value.kind is verdict


def test_a_broken_queue_does_nothing_until_it_is_reset(split, split_device) -> None:
    split.desc(0, B, 4)
    split.desc(1, B, 0)
    split.offer(0, 1)
    queue = split_device(split.memory, split.layout)
    good = queue.pop()
    with pytest.raises(ChainError):
        queue.pop()
    before = bytes(split.raw)
    calls = [
        queue.pop,
        queue.pending,
        lambda: queue.push(good, 0),
        lambda: queue.unpop(good),
        queue.should_notify,
        queue.enable_notifications,
        queue.disable_notifications,
    ]
    for call in calls:
        with pytest.raises(QueueBroken) as caught:
            call()
        assert caught.value.kind is Fault.BROKEN
    assert split.raw == before
    split.poke("<H", 0x4002, 0)
    queue.reset()
    assert not queue.broken
    assert queue.pop() is None
    split.offer(0)
    assert queue.pop().readable == (Segment(B, 4),)


def test_only_the_offending_queue_is_broken(split, split_device) -> None:
    from virtio_ipsec.ring.chain import QueueLayout

    other = split_device(split.memory, QueueLayout(4, 0x2000, 0x5000, 0x7000))
    split.poke("<QIHH", 0x2000, B, 4, 0, 0)
    split.poke("<HHH", 0x5000, 0, 1, 0)
    split.offer(77)
    bad = split_device(split.memory, split.layout)
    with pytest.raises(ChainError):
        bad.pop()
    other.push(other.pop(), 0)
    assert split.peek("<HH", 0x7000) == (0, 1)
