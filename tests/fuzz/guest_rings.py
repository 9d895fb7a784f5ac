"""Rings as a sound driver sets them up, to be damaged: what the fuzzers of both servers begin with."""

from __future__ import annotations

import random

from served import BASE, Guest

from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.memory import Allocator
from virtio_ipsec.wire.numbers import Feature, mask

#: A receive, a transmit and a control queue; the bytes of memory that their rings are in, and all of it.
QUEUES = (0, 1, 2)
IMAGE = 2048
MEMORY = 1 << 20
_ENTRIES = 8
_BUFFERS = BASE + 65536, 1 << 19


def ring_features(usual: int, choice: int) -> int:
    """Features of a ring format each."""
    for bit, feature in enumerate((Feature.F_RING_PACKED, Feature.F_IN_ORDER, Feature.F_EVENT_IDX)):
        usual = usual ^ mask(feature) if choice >> bit & 1 else usual
    return usual


def layout_rings(guest: Guest) -> None:
    """All queues in the first bytes of the guest's memory; buffers come behind."""
    guest.allocator = Allocator(BASE, IMAGE)
    for index in QUEUES:
        guest.queue(index, _ENTRIES)
    guest.allocator = Allocator(*_BUFFERS)


def filled_rings(rng: random.Random, features: int) -> bytes:
    """The rings, with some buffers made available in each."""
    guest = Guest(features, MEMORY)
    layout_rings(guest)
    space = Allocator(*_BUFFERS)
    for index in QUEUES:
        for _ in range(rng.randrange(1, 5)):
            size = rng.choice((1, 12, 60, 100, 2000))
            segment = Segment(space.alloc(size), size)
            guest.memory.write(segment.addr, rng.randbytes(min(size, 30)))
            if index == 0:
                guest.drivers[index].add((), [segment], segment)
            elif index == 1:
                guest.drivers[index].add([segment], (), segment)
            else:
                guest.drivers[index].add([segment], [Segment(space.alloc(8), 8)], segment)
        guest.drivers[index].publish()
    image = guest.memory.read(BASE, IMAGE)
    guest.close()
    return image
