"""Conversations that front-ends have with the back-end, in their orders, and what goes wrong in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import front_end as say
import pytest
from front_end import PROTOCOL, TYPICAL, FrontEnd
from served import PLAIN, Bench
from test_port import frame

from virtio_ipsec.transport.vhost_user.backend import Backend
from virtio_ipsec.wire.numbers import Feature, mask

PACKED = PLAIN | mask(Feature.F_RING_PACKED)


@contextmanager
def served(features: int = PLAIN, **options: object) -> Iterator[tuple[Bench, Backend, str]]:
    path = say.socket_path()
    bench = Bench(features, start=False, **options)  # type: ignore[arg-type]
    backend = Backend(bench.port, path)
    try:
        yield bench, backend, path
    finally:
        backend.close()
        bench.close()
        say.remove(path)


@contextmanager
def connected(features: int = PLAIN, **options: object) -> Iterator[tuple[Bench, FrontEnd]]:
    with served(features, **options) as (bench, _, path):
        front = FrontEnd(bench, path)
        try:
            yield bench, front
        finally:
            front.close()


def qemu(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """QEMU 11 with a typical set of protocol features, as logged: call descriptors and ENABLE before all else, memory
    by slots, FEATURES_OK before ACKNOWLEDGE and DRIVER, need_reply on what concerns rings."""
    offered = front.ask(say.GET_FEATURES)
    assert offered & PROTOCOL
    front.acknowledge(TYPICAL)
    assert front.ask(say.GET_QUEUE_NUM) >= 1
    assert front.ask(say.GET_SLOTS) >= 8
    front.say(say.SET_OWNER)
    front.ask(say.GET_FEATURES)
    for index in (0, 1):
        if fresh:
            front.guest.queue(index)
        front.file(say.CALL, index, front.guest.calls[index], ack=True)
        assert front.file(say.ERR, index, None, ack=True) == 0
    for index in (0, 1):
        assert front.state(say.ENABLE, index, 1, ack=True) == 0
    front.u64(say.SET_FEATURES, features | PROTOCOL)
    assert front.ask(say.GET_STATUS) == 0
    front.u64(say.SET_STATUS, 8)
    assert front.say(say.ADD_REGION, bytes(8) + front.region(), front.guest.fd, ack=True) == 0
    for index in (0, 1):
        front.state(say.NUM, index, front.guest.layouts[index].size)
        front.state(say.BASE_OF, index, base)
        front.addr(index)
        assert front.file(say.KICK, index, front.guest.kicks[index], ack=True) == 0
        assert front.file(say.CALL, index, front.guest.calls[index], ack=True) == 0
    assert front.ask(say.GET_STATUS) == 8
    front.u64(say.SET_STATUS, 15)
    for index in (0, 1):
        assert front.state(say.ENABLE, index, 1, ack=True) == 0


def dpdk(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """DPDK 22.11 virtio-user: owner first, need_reply on SET_STATUS and SET_MEM_TABLE, transmit queues last, kick
    before call, ENABLE at the end; packed rings begin at 0x8000."""
    front.say(say.SET_OWNER)
    front.ask(say.GET_FEATURES)
    front.acknowledge(1 << 0 | 1 << 3 | 1 << 16)
    if fresh:
        for index in (0, 1):
            front.guest.queue(index)
            front.file(say.CALL, index, front.guest.calls[index])
    for status in (0, 1, 3):
        assert front.u64(say.SET_STATUS, status, ack=True) == 0
    front.u64(say.SET_FEATURES, features | PROTOCOL)
    assert front.u64(say.SET_STATUS, 11, ack=True) == 0
    assert front.ask(say.GET_STATUS) == 11
    assert front.mem_table(ack=True) == 0
    for index in (0, 1):
        front.state(say.NUM, index, front.guest.layouts[index].size)
        front.state(say.BASE_OF, index, base)
        front.addr(index)
        front.file(say.KICK, index, front.guest.kicks[index])
    for index in (0, 1):
        front.state(say.ENABLE, index, 1)
    assert front.u64(say.SET_STATUS, 15, ack=True) == 0


def old(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """A front-end from before protocol features: rings are enabled from the start."""
    front.ask(say.GET_FEATURES)
    front.say(say.SET_OWNER)
    front.u64(say.SET_FEATURES, features)
    front.mem_table()
    for index in (0, 1):
        front.ring(index, base, fresh=fresh)


def exchange(bench: Bench, first: int = 0) -> None:
    """Frames go both ways."""
    bench.guest.post()
    sent = [frame(first + n) for n in range(20)]
    bench.guest.send(*sent)
    assert bench.captured(20) == sent
    arriving = [frame(first + 100 + n, 300) for n in range(20)]
    bench.uplink.inject(*arriving)
    assert bench.received(20) == arriving
    bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)


@pytest.mark.parametrize("script", [qemu, dpdk, old])
@pytest.mark.parametrize("engine", ["c", "python"])
def test_front_ends_attach_in_their_own_order(script: object, engine: str) -> None:
    with connected(engine=engine) as (bench, front):
        script(front)  # type: ignore[operator]
        exchange(bench)
        state = {index: front.base(index) for index in (0, 1)}
        assert state[1] == 20


@pytest.mark.parametrize(("script", "base"), [(qemu, 0x80008000), (dpdk, 0x8000)])
def test_packed_rings_begin_where_the_front_end_means_it(script: object, base: int) -> None:
    with connected(PACKED) as (bench, front):
        script(front, PACKED, base)  # type: ignore[operator]
        exchange(bench)
        assert front.base(1) == 0x80148014
