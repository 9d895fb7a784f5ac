"""A served port with a guest that shares memory with it: both datapaths, all kinds of rings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import PLAIN, Bench

from virtio_ipsec.wire.numbers import Feature, mask

MAC = bytes.fromhex("020000000001")
PEER = bytes.fromhex("020000000002")


def frame(number: int, size: int = 60) -> bytes:
    return (MAC + PEER + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b"\0")


@pytest.fixture(params=["c", "python"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(engine: str) -> Iterator[Bench]:
    made = Bench(engine=engine)
    yield made
    made.close()


RINGS = {
    "split": PLAIN,
    "no-event": PLAIN & ~mask(Feature.F_EVENT_IDX),
    "packed": PLAIN | mask(Feature.F_RING_PACKED),
    "in-order": PLAIN | mask(Feature.F_IN_ORDER),
    "packed-in-order": PLAIN | mask(Feature.F_RING_PACKED, Feature.F_IN_ORDER),
}


@pytest.mark.parametrize("features", RINGS.values(), ids=RINGS.keys())
def test_frames_go_both_ways(engine: str, features: int) -> None:
    bench = Bench(features, engine=engine)
    try:
        for turn in range(3):
            sent = [frame(1000 * turn + n) for n in range(40)]
            bench.guest.send(*sent)
            assert bench.captured(40) == sent
            bench.until(lambda: bench.guest.reclaim() == 0 and not bench.guest.drivers[1]._outstanding)
            arriving = [frame(500 + n, 200) for n in range(40)]
            bench.uplink.inject(*arriving)
            assert bench.received(40) == arriving
            bench.guest.post()
    finally:
        bench.close()
