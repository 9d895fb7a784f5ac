"""The IPsec binding as a front-end sees it, byte for byte as spec/vhost-user-binding.md has it, and migration."""

from __future__ import annotations

import os
import struct

import front_end as say
import pytest
from front_end import PROTOCOL, TYPICAL, FrontEnd
from served import Bench
from test_backend import connected, exchange, qemu

from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.wire.numbers import Feature, mask

GET_DEVICE, SET_DRIVER_FEATURES = 0x49500001, 0x49500002
BINDING = 1 << 56
OFFER = mask(Feature.F_VERSION_1, Feature.NET_F_MAC, Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC)
DRIVER = mask(Feature.F_VERSION_1, Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC)
LIST_QUERY = struct.pack("<HH12xQ", 0, 0, 0)


def words(features: int) -> bytes:
    return struct.pack("<4I", *(features >> 32 * n & 0xFFFFFFFF for n in range(4)))


def bind(front: FrontEnd, features: int = DRIVER) -> None:
    """To FEATURES_OK."""
    front.acknowledge(TYPICAL | BINDING | 1 << 1)
    assert front.u64(say.SET_STATUS, 3, ack=True) == 0
    assert front.say(SET_DRIVER_FEATURES, words(features), ack=True) == 0
    front.u64(say.SET_FEATURES, features & (1 << 64) - 1 & ~mask(Feature.F_ADMIN_VQ) | PROTOCOL)
    assert front.u64(say.SET_STATUS, 11, ack=True) == 0


def run(front: FrontEnd, *indices: int) -> None:
    """Rings, then DRIVER_OK."""
    assert front.mem_table(ack=True) == 0
    for index in indices:
        front.ring(index)
        assert front.state(say.ENABLE, index, 1, ack=True) == 0
    assert front.u64(say.SET_STATUS, 15, ack=True) == 0


def test_the_example_of_the_specification() -> None:
    with connected(DRIVER, pairs=1, offer=OFFER) as (_, front):
        assert front.say(say.GET_PROTOCOL)[-1] == 1  # bit 56
        front.u64(say.SET_PROTOCOL, 0x0100000000010209)
        assert front.say(GET_DEVICE) == bytes.fromhex(
            "01000000 00000000 0300 0300 0100 0001 20000000 01020000 40000000 00000000".replace(" ", "")
            + "00" * 16
        )
        assert front.u64(say.SET_STATUS, 3, ack=True) == 0
        assert (
            front.say(SET_DRIVER_FEATURES, bytes.fromhex("00000000010200004000000000000000"), ack=True) == 0
        )
        front.u64(say.SET_FEATURES, 0x140000000)
        assert front.u64(say.SET_STATUS, 11, ack=True) == 0
        assert front.ask(say.GET_STATUS) == 11
        assert front.say(SET_DRIVER_FEATURES, words(DRIVER), ack=True) == 1  # fixed by now
        assert front.say(GET_DEVICE)[32:] == words(DRIVER)


def test_features_that_are_not_acceptable_show_in_the_status() -> None:
    with connected(DRIVER, pairs=1, offer=OFFER) as (_, front):
        bind(front, mask(Feature.NET_F_IPSEC))
        assert front.ask(say.GET_STATUS) == 3


def test_administration_commands_travel_on_their_queue() -> None:
    with connected(DRIVER | mask(Feature.NET_F_MRG_RXBUF, Feature.F_EVENT_IDX), pairs=1) as (bench, front):
        bind(front, bench.guest.features)
        run(front, 0, 1, 3)
        answer = bench.guest.command(3, LIST_QUERY, 64)
        bench.until(lambda: bool(bench.guest.drivers[3].poll()))
        assert bench.guest.memory.read(answer.addr, 4) == bytes(4)
        exchange(bench)
        assert front.u64(say.SET_STATUS, 0, ack=True) == 0
        assert front.say(GET_DEVICE)[32:] == bytes(16)
        assert front.base(1) == 20  # the last one
        bind(front, bench.guest.features)
        run(front, 0, 1, 3)
        exchange(bench, 100)
        assert front.say(say.RESET_DEVICE, ack=True) == 0
        assert front.ask(say.GET_STATUS) == 0


def test_nobody_else_sees_it() -> None:
    with connected() as (bench, front):
        assert not front.ask(say.GET_FEATURES) >> 41 & 1
        qemu(front)
        exchange(bench)
    with connected(offer=IMPLEMENTED & ~DRIVER | mask(Feature.F_VERSION_1)) as (_, front):
        assert not front.ask(say.GET_PROTOCOL) & BINDING


def hold(bench: Bench) -> None:
    """As if the driver had made an SA."""
    bench.port.device.context.inbound[1] = object()  # type: ignore[assignment]


def test_sas_of_a_driver_are_not_migrated(caplog: pytest.LogCaptureFixture) -> None:
    with connected(DRIVER, pairs=1) as (bench, front):
        bind(front)
        run(front, 0, 1, 3)
        log = struct.pack("<QQ", 4096, 0)
        assert front.say(say.SET_LOG_BASE, log, bench.guest.fd) == bytes(8)
        hold(bench)
        assert front.say(say.SET_LOG_BASE, log, bench.guest.fd) == struct.pack("<Q", 1)
        assert front.u64(say.SET_FEATURES, PROTOCOL | say.LOG_ALL, ack=True) == 1
        assert "cannot be migrated" in caplog.text
        bench.port.device.context.inbound.clear()
        assert front.u64(say.SET_FEATURES, PROTOCOL | say.LOG_ALL, ack=True) == 0
        assert bench.port.device.context.is_leaving, "an SA made now would stay behind"
        assert front.u64(say.SET_FEATURES, PROTOCOL, ack=True) == 0
        assert not bench.port.device.context.is_leaving


def test_a_driver_that_breaks_a_ring_reads_so_in_the_status() -> None:
    with connected() as (bench, front):
        qemu(front)
        bench.guest.memory.put_u16(bench.guest.layouts[1].driver + 2, 1000)
        os.eventfd_write(bench.guest.kicks[1], 1)
        bench.until(lambda: front.ask(say.GET_STATUS) == 15 | 64)
