"""Migration: a function stops, another one becomes the same, and the driver notices nothing."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest
import vfio_client as say
from functions import BASE, PLAIN
from test_port import frame
from vfio_client import RemoteHost

from virtio_ipsec.transport.vfio_user import migration
from virtio_ipsec.transport.virtio_pci.tables import Command, CommonCfg, Header
from virtio_ipsec.wire.numbers import Feature, Status, mask

GET, SET, PROBE = 0x10000, 0x20000, 0x40000
MIGRATION, STATE = 1, 2
STOP, RUNNING, STOP_COPY, RESUMING = 1, 2, 3, 4


@pytest.fixture
def host() -> Iterator[RemoteHost]:
    made = RemoteHost()
    yield made
    made.close()


@pytest.fixture
def target() -> Iterator[RemoteHost]:
    made = RemoteHost()
    yield made
    made.close()


def feature(flags: int, data: bytes = b"", argsz: int = 64) -> bytes:
    return struct.pack("<II", argsz, flags) + data


def get_state(host: RemoteHost) -> int:
    answer = host.client.ask(say.FEATURE, feature(GET | STATE))
    assert answer[:8] == struct.pack("<II", 16, GET | STATE)
    return int(struct.unpack("<II", answer[8:])[0])


def set_state(host: RemoteHost, state: int) -> None:
    asked = feature(SET | STATE, struct.pack("<II", state, 0))
    assert host.client.ask(say.FEATURE, asked) == asked
    assert get_state(host) == state


def saved(host: RemoteHost, piece: int = 100) -> bytes:
    data = b""
    while True:
        answer = host.client.ask(say.MIG_READ, struct.pack("<II", 8 + piece, piece))
        argsz, size = struct.unpack_from("<II", answer)
        assert argsz == len(answer) == 8 + size
        data += answer[8:]
        if size < piece:
            return data


def put(host: RemoteHost, data: bytes) -> None:
    for at in range(0, len(data), 77):
        piece = data[at : at + 77]
        assert host.client.ask(say.MIG_WRITE, struct.pack("<II", 8 + len(piece), len(piece)) + piece) == b""


def move(host: RemoteHost, target: RemoteHost) -> None:
    """As a client does: the memory is the same, the configuration space its own business."""
    set_state(host, STOP_COPY)
    data = saved(host)
    target.guest.close()
    target.guest = target.bench.guest = host.guest
    target.client.unmap(0, 0, 2)
    target.client.map(host.guest.fd, BASE, host.guest.size)
    target.set_config(Header.COMMAND, Command.MEMORY | Command.MASTER)
    set_state(target, RESUMING)
    put(target, data)
    set_state(target, RUNNING)


def test_what_can_be_done_is_told(host: RemoteHost) -> None:
    assert host.client.ask(say.FEATURE, feature(GET | MIGRATION)) == feature(
        GET | MIGRATION, struct.pack("<Q", 1), 16
    )
    for flags in (PROBE | MIGRATION, PROBE | GET | MIGRATION, PROBE | GET | SET | STATE, PROBE | STATE):
        assert host.client.ask(say.FEATURE, feature(flags)) == feature(flags)
    assert get_state(host) == RUNNING


@pytest.mark.parametrize(
    ("payload", "number"),
    [
        (feature(PROBE | SET | MIGRATION), errno.ENOTTY),
        (feature(SET | MIGRATION, bytes(8)), errno.ENOTTY),
        *((feature(PROBE | number), errno.ENOTTY) for number in (0, 3, 6, 7, 8, 0xFFFF)),
        (feature(STATE), errno.EINVAL),
        (feature(GET | SET | STATE, bytes(8)), errno.EINVAL),
        (feature(0x80000 | GET | STATE), errno.EINVAL),
        (feature(GET | STATE, argsz=15), errno.EINVAL),
        (feature(GET | MIGRATION, argsz=8), errno.EINVAL),
        (feature(SET | STATE, bytes(7)), errno.EINVAL),
        *((feature(SET | STATE, struct.pack("<II", state, 0)), errno.EINVAL) for state in (0, 5, 6, 7, 8)),
    ],
)
def test_what_cannot_be_done_is_refused(host: RemoteHost, payload: bytes, number: int) -> None:
    assert host.client.refused(say.FEATURE, payload) == number
    assert get_state(host) == RUNNING


def test_a_function_goes_on_in_another_one(host: RemoteHost, target: RemoteHost) -> None:
    host.start(mask(Feature.F_RING_RESET))
    host.put_queue(1, CommonCfg.queue_msix_vector, 1)
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.uplink.inject(frame(2))
    assert host.bench.received(1) == [frame(2)]
    move(host, target)
    host.send(frame(3))
    assert not host.uplink.sent  # it has stopped
    assert target.status() == 15
    assert target.of_queue(1, CommonCfg.queue_msix_vector) == 1
    target.send(frame(4))
    assert target.bench.captured(2) == [frame(3), frame(4)]
    target.uplink.inject(frame(5))
    assert target.bench.received(1) == [frame(5)]
    target.guest = target.bench.guest = type(target.guest)()  # the other one is the first host's to close


def test_a_function_that_was_not_moved_after_all_goes_on(host: RemoteHost) -> None:
    host.start()
    for states in ((STOP,), (STOP, STOP_COPY, STOP), (STOP_COPY,), (RESUMING, STOP_COPY)):
        for state in states:
            set_state(host, state)
            host.send(frame(state))
            assert not host.uplink.sent
        set_state(host, RUNNING)
        assert host.bench.captured(len(states)) == [frame(state) for state in states]
        set_state(host, RUNNING)


def test_parts_of_another_device_are_refused_and_the_old_state_stays(
    host: RemoteHost, target: RemoteHost
) -> None:
    host.start()
    set_state(host, STOP_COPY)
    data = saved(host)
    for wrong in (b"", data[:-1], data[:48] + b"\xff" + data[49:], data + b"\0"):
        set_state(target, RESUMING)
        put(target, wrong)
        asked = feature(SET | STATE, struct.pack("<II", RUNNING, 0))
        if wrong:
            assert target.client.refused(say.FEATURE, asked) == errno.EINVAL
            assert get_state(target) == RESUMING
            set_state(target, RESUMING)
        else:
            set_state(target, RUNNING)  # nothing is said: nothing changes
    assert target.client.ask(say.RESET) == b""
    assert get_state(target) == RUNNING
    target.start()
    target.send(frame(1))
    assert target.bench.captured(1) == [frame(1)]


def test_data_is_moved_only_in_its_states(host: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (RUNNING, STOP, RESUMING):
        set_state(host, state)
        assert host.client.refused(say.MIG_READ, struct.pack("<II", 16, 8)) == errno.EINVAL
    for state in (STOP, STOP_COPY, RUNNING):
        set_state(host, state)
        assert host.client.refused(say.MIG_WRITE, struct.pack("<II", 12, 4) + b"data") == errno.EINVAL
    set_state(host, RESUMING)
    monkeypatch.setattr(migration, "_MOST", 100)
    put(host, bytes(100))
    assert host.client.refused(say.MIG_WRITE, struct.pack("<II", 9, 1) + b"x") == errno.ENOSPC


def test_a_driver_with_objects_or_capabilities_stays(host: RemoteHost) -> None:
    host.negotiate(PLAIN | mask(Feature.F_ADMIN_VQ))
    host.port.device.capabilities._driver[0] = object()
    asked = feature(SET | STATE, struct.pack("<II", STOP_COPY, 0))
    assert host.client.refused(say.FEATURE, asked) == errno.EBUSY
    assert get_state(host) == RUNNING
    set_state(host, STOP)


def test_a_client_that_goes_leaves_a_function_that_runs(host: RemoteHost) -> None:
    set_state(host, STOP)
    host.client.close()
    host.until(lambda: not host.server.is_connected)
    host.clients.clear()
    host.attach(host.dial())
    assert get_state(host) == RUNNING
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    assert host.port.device.status & Status.DRIVER_OK


def test_members_are_their_owner_s_to_move() -> None:
    made = RemoteHost(virtual=True)
    made.local.set_present(True)
    try:
        assert made.client.refused(say.FEATURE, feature(GET | MIGRATION)) == errno.ENOTTY
    finally:
        made.close()
