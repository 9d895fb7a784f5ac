"""Conversations that clients have with the server, in QEMU's order, and what goes wrong in them."""

from __future__ import annotations

import errno
import gc
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import vfio_client as say
from functions import BASE, PLAIN, QUEUE, Ear
from test_port import frame
from vfio_client import Client, RemoteHost

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport import serving
from virtio_ipsec.transport.virtio_pci.tables import CommonCfg, Header, Region
from virtio_ipsec.wire.numbers import Feature, Status, mask


@contextmanager
def served(*arguments: int, **options: object) -> Iterator[RemoteHost]:
    host = RemoteHost(*arguments, **options)
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def host() -> Iterator[RemoteHost]:
    with served() as made:
        yield made


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# Beginning.


def test_the_version_is_the_lower_one_and_capabilities_those_that_were_proposed() -> None:
    with served(connect=False) as host:
        answer = host.dial().version()
        assert answer[:4] == b"\0\0\1\0"
        assert answer[4:] == (
            b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":8192,"pgsizes":4096,'
            b'"write_multiple":true}}\0'
        )
        host.clients.pop().close()
        assert host.dial().version(b"", minor=0) == b'\0\0\0\0{"capabilities":{}}\0'
        host.clients.pop().close()
        assert host.dial().version(b"{}\0", minor=7)[:4] == b"\0\0\1\0"
        host.clients.pop().close()
        more = b'{"capabilities": {"max_data_xfer_size": 1099511627776}}'
        assert b'"max_data_xfer_size":1048576' in host.dial().version(more)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (say.VERSION, struct.pack("<HH", 1, 0)),
        (say.VERSION, b"\0\0"),
        (say.VERSION, b"\0\0\0\0nonsense"),
        (say.GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
        (99, b""),
    ],
)
def test_who_does_not_begin_with_a_version_that_is_spoken_is_disconnected(
    command: int, payload: bytes
) -> None:
    with served(connect=False) as host:
        client = host.dial()
        client.say(command, payload)
        assert client.is_closed()
        assert host.counter("protocol_errors") == 1
        host.attach(host.dial())


def test_bytes_that_are_no_message_a_reply_or_a_second_version_end_the_connection() -> None:
    with served() as host:
        for count, data in enumerate(
            (
                struct.pack("<HHIII", 1, 4, 15, 0, 0),
                struct.pack("<HHIII", 1, 4, 0x7FFFFFFF, 0, 0),
                struct.pack("<HHIII", 1, 4, 16, 2, 0),
                struct.pack("<HHIII", 1, say.DMA_READ, 16, 1, 0),
                struct.pack("<HHIIIHH", 1, say.VERSION, 20, 0, 0, 0, 1),
            ),
            1,
        ):
            host.client.raw(data)
            assert host.client.is_closed()
            assert host.counter("protocol_errors") == count
            host.attach(host.dial())


def test_the_device_is_a_pci_device_that_can_be_reset(host: RemoteHost) -> None:
    room = struct.pack("<IIII", 16, 0, 0, 0)
    assert struct.unpack("<IIII", host.client.ask(say.GET_INFO, room)) == (16, 3, 9, 5)
    assert host.client.refused(say.GET_INFO, struct.pack("<IIII", 15, 0, 0, 0)) == errno.EINVAL


def region_info(client: Client, index: int) -> tuple[int, ...]:
    answer = client.ask(say.REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
    return struct.unpack("<IIIIQQ", answer)


def test_regions_are_the_function_s(host: RemoteHost) -> None:
    for index in range(9):
        size = host.local.region_size(index)
        assert region_info(host.client, index) == (32, 3 if size else 0, index, 0, size, 0)
    assert region_info(host.client, Region.CONFIG)[4] == 4096
    for payload in (struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0), struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0)):
        assert host.client.refused(say.REGION_INFO, payload) == errno.EINVAL


def test_interrupts_are_the_function_s(host: RemoteHost) -> None:
    found = [
        struct.unpack("<IIII", host.client.ask(say.IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0)))[1:]
        for index in range(5)
    ]
    vectors = host.local.msix_vectors
    assert found == [(7, 0, 1), (0, 1, 0), (3, 2, vectors), (0, 3, 0), (0, 4, 0)]
    assert host.client.refused(say.IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0)) == errno.EINVAL


# At work.


def test_a_driver_sends_and_receives_through_the_connection(host: RemoteHost) -> None:
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.uplink.inject(frame(2))
    assert host.bench.received(1) == [frame(2)]


def test_all_feature_words_and_the_administration_queue_are_there(host: RemoteHost) -> None:
    word = host.offered()
    for bit in (Feature.F_VERSION_1, Feature.F_ADMIN_VQ, Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC):
        assert word >> bit & 1
    host.negotiate(PLAIN | mask(Feature.F_ADMIN_VQ))
    index = host.get(CommonCfg.admin_queue_index)
    host.enable(index)
    host.ready()
    answer = host.guest.command(index, struct.pack("<HH12xQ", 0, 1, 0), 16)
    host.notify(index)
    host.until(lambda: bool(host.guest.drivers[index].poll()))
    assert host.guest.memory.read(answer.addr, 2) in (b"\0\0", b"\x16\0")


def io_fds(client: Client, index: int, argsz: int = 4096, flags: int = 0) -> bytes:
    return client.ask(say.IO_FDS, struct.pack("<IIII", argsz, flags, index, 0))


def test_doorbells_are_eventfds(host: RemoteHost) -> None:
    bells = host.local.doorbells()
    answer = io_fds(host.client, 0)
    assert struct.unpack_from("<IIII", answer) == (16 + 40 * len(bells), 0, 0, len(bells))
    parts = list(struct.iter_unpack("<QQIIIIQ", answer[16:]))
    assert parts == [(bell.offset, 0, number, 0, 0, 0, 0) for number, bell in enumerate(bells)]
    assert len(host.client.fds) == len(bells)
    kicks = [os.dup(fd) for fd in host.client.fds]
    host.start()
    host.guest.kicks[1], mute = kicks[1], host.guest.kicks[1]
    host.guest.send(frame(3))
    assert host.bench.captured(1) == [frame(3)]
    for fd in (mute, kicks[0], *kicks[2:]):
        os.close(fd)


def test_doorbells_are_as_many_as_the_client_takes_and_has_room_for() -> None:
    with served(connect=False) as host:
        client = host.dial()
        client.version(b"")
        assert struct.unpack_from("<IIII", io_fds(client, 0))[3] == len(client.fds) == 1
        assert io_fds(client, 0, 55) == struct.pack("<IIII", 56, 0, 0, 1)
        assert not client.fds
        assert io_fds(client, 1) == struct.pack("<IIII", 16, 0, 1, 0)
        for payload in ((15, 0, 0, 0), (4096, 1, 0, 0), (4096, 0, 9, 0), (4096, 0, 0, 1)):
            assert client.refused(say.IO_FDS, struct.pack("<IIII", *payload)) == errno.EINVAL


def test_several_writes_in_one_message(host: RemoteHost) -> None:
    writes = (
        (CommonCfg.driver_feature_select.offset, 0, 4, b"\1\0\0\0"),
        (CommonCfg.device_feature_select.offset, 0, 4, b"\2\0\0\0"),
        (1 << 40, 0, 4, b"\3\0\0\0"),
        (CommonCfg.device_feature_select.offset, 0, 4, b"\0\0\0\0"),
    )

    def payload(count: int) -> bytes:
        return struct.pack("<Q", count) + b"".join(struct.pack("<QII8s", *each) for each in writes[:count])

    assert host.client.ask(say.WRITE_MULTI, payload(2)) == struct.pack("<Q", 2)
    assert (host.get(CommonCfg.driver_feature_select), host.get(CommonCfg.device_feature_select)) == (1, 2)
    assert host.client.ask(say.WRITE_MULTI, payload(4)) == struct.pack("<Q", 2)
    assert host.get(CommonCfg.device_feature_select) == 2


def test_what_was_not_agreed_on_is_not_done() -> None:
    with served(connect=False) as host:
        client = host.dial()
        client.version(b"")
        assert client.refused(say.WRITE_MULTI, bytes(8)) == errno.EOPNOTSUPP


def test_commands_that_want_no_reply_have_none(host: RemoteHost) -> None:
    place = struct.pack("<QII", CommonCfg.device_feature_select.offset, 0, 4)
    host.client.say(say.WRITE, place + b"\1\0\0\0", flags=0x10)
    host.client.say(say.WRITE, struct.pack("<QII", 1 << 40, 0, 4) + bytes(4), flags=0x10)
    assert host.get(CommonCfg.device_feature_select) == 1
    assert host.counter("refused_messages") == 1


@pytest.mark.parametrize(
    ("command", "payload", "number"),
    [
        (say.READ, struct.pack("<QII", 0xFFD, 7, 4), errno.EINVAL),
        (say.READ, struct.pack("<QII", 0xFFFFFFFFFFFFFFFF, 7, 1), errno.EINVAL),
        (say.READ, struct.pack("<QII", 0, 3, 1), errno.EINVAL),
        (say.READ, struct.pack("<QII", 0, 0xFFFFFFFF, 1), errno.EINVAL),
        (say.READ, struct.pack("<QII", 0, 7, 0xFFFFFFFF), errno.E2BIG),
        (say.READ, bytes(15), errno.EINVAL),
        (say.WRITE, struct.pack("<QII", 0xFFF, 7, 2) + b"ab", errno.EINVAL),
        (say.WRITE, struct.pack("<QII", 0, 7, 3) + b"ab", errno.EINVAL),
        (say.DMA_READ, bytes(16), errno.EOPNOTSUPP),
        (say.DMA_WRITE, bytes(16), errno.EOPNOTSUPP),
        (14, b"", errno.EOPNOTSUPP),
        (0, b"", errno.EOPNOTSUPP),
        (0xFFFF, b"", errno.EOPNOTSUPP),
        (say.RESET, b"x", errno.EINVAL),
        (say.FEATURE, struct.pack("<II", 16, 0x10003), errno.ENOTTY),
        (say.FEATURE, struct.pack("<II", 16, 0x50006), errno.ENOTTY),
        (say.MIG_READ, struct.pack("<II", 16, 8), errno.EINVAL),
        (say.MIG_WRITE, struct.pack("<II", 16, 0), errno.EINVAL),
        (say.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, BASE, 0x1000), errno.EEXIST),
        (say.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 0), errno.EINVAL),
        (say.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE, 0x1000), errno.ENOENT),
    ],
)
def test_commands_that_cannot_be_obeyed_are_refused(
    host: RemoteHost, command: int, payload: bytes, number: int
) -> None:
    assert host.client.refused(command, payload) == number
    assert host.counter("refused_messages") == 1
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]


def test_descriptors_that_no_command_takes_are_closed(host: RemoteHost) -> None:
    before = descriptors()
    assert host.client.refused(say.RESET, b"", 0, 1) == errno.EINVAL
    payload = struct.pack("<IIQQQ", 32, 3, 0, 0, 0x1000)
    assert host.client.refused(say.DMA_MAP, payload, host.guest.fd, host.guest.fd) == errno.EINVAL
    host.client.raw(struct.pack("<HHIII", 1, 4, 15, 0, 0), 0, 1)
    assert host.client.is_closed()
    host.client.close()
    assert descriptors() < before  # the client's and the server's socket are gone


def test_many_commands_at_once_are_obeyed_in_their_order(host: RemoteHost) -> None:
    for number in range(40):
        place = struct.pack("<QII", CommonCfg.device_feature_select.offset, 0, 4)
        host.client.say(say.WRITE, place + struct.pack("<I", number))
    assert [host.client.hear()[0] for _ in range(40)] == list(
        range(host.client.number - 39, host.client.number + 1)
    )
    assert host.get(CommonCfg.device_feature_select) == 39


def test_of_many_refusals_some_are_logged(host: RemoteHost, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        assert host.client.refused(say.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE - 0x1000, 0x1000)) == errno.ENOENT
    assert not caplog.records
    for _ in range(20):
        host.client.refused(14)
    assert sum("refused" in record.message for record in caplog.records) == 10
    assert host.counter("refused_messages") == 40


# Memory.


def test_a_queue_goes_on_in_memory_that_is_mapped_again(host: RemoteHost) -> None:
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.client.unmap(BASE, host.guest.size)
    assert not host.port.started(1)
    host.client.map(host.guest.fd, BASE, host.guest.size)
    host.send(frame(2))
    assert host.bench.captured(1) == [frame(2)]
    host.client.map(host.guest.fd, 1 << 40, 0x1000, 0x1000)
    host.client.unmap(0, 0, 2)
    assert not host.port.started(1)


def test_memory_that_comes_in_pieces_is_one(host: RemoteHost) -> None:
    host.client.unmap(BASE, host.guest.size)
    half = host.guest.size // 2
    host.client.map(host.guest.fd, BASE + half, half, half)
    host.client.map(host.guest.fd, BASE, half)
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]


def test_a_driver_whose_memory_comes_page_by_page_and_changes_all_the_time(host: RemoteHost) -> None:
    client, page = host.client, 0x1000
    client.unmap(BASE, host.guest.size)
    pages = [number * page for number in range(64)]
    for offset in pages[1::2] + pages[::2]:
        client.map(host.guest.fd, BASE + offset, page, offset)
    host.negotiate(PLAIN)
    for index in (0, 1):
        host.enable(index, 1024)  # of 16 KiB
    host.ready()
    host.guest.post()
    queues = [host.port._slots[index].queue for index in (0, 1)]
    for number in range(8):
        client.map(host.guest.fd, 1 << 32, page, pages[-1], flags=1)
        host.uplink.inject(frame(number))
        client.unmap(1 << 32, page)
        host.send(frame(number))
    frames = [frame(number) for number in range(8)]
    assert host.bench.captured(8) == host.bench.received(8) == frames
    assert [host.port._slots[index].queue for index in (0, 1)] == queues  # they went on as they were
    host.uplink.inject(frame(9))
    assert host.bench.received(1) == [frame(9)]
    client.unmap(BASE, page)
    assert not host.port.started(0)


def test_a_ring_over_mappings_that_are_apart_is_refused_with_its_place(
    host: RemoteHost, caplog: pytest.LogCaptureFixture
) -> None:
    client, odd = host.client, 0x800
    client.unmap(BASE, host.guest.size)
    client.map(host.guest.fd, BASE, odd)
    client.map(host.guest.fd, BASE + odd, host.guest.size - odd, odd)
    host.negotiate(PLAIN)
    host.enable(0, 1024)
    assert host.status() & Status.DEVICE_NEEDS_RESET
    assert "crosses from one region into another" in caplog.text


# Interrupts.


def test_msix_vectors_ring_and_can_be_masked(host: RemoteHost) -> None:
    host.msix_on()
    ears = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    host.client.set_irqs(say.MSIX, 0, 2, say.EVENTFD | say.TRIGGER, *ears)
    host.negotiate(PLAIN)
    host.enable(0, QUEUE, 1)
    host.enable(1)
    host.ready()
    host.guest.post()

    def rung(number: int) -> bool:
        return bool(select.select([ears[number]], [], [], 0)[0])

    host.uplink.inject(frame(1))
    host.until(lambda: rung(1))
    assert os.eventfd_read(ears[1]) >= 1
    assert not rung(0)
    host.client.set_irqs(say.MSIX, 1, 1, say.NONE | say.MASK)
    host.uplink.inject(frame(2))
    host.bench.received(2)
    assert not rung(1)
    host.client.set_irqs(say.MSIX, 0, 2, say.BOOL | say.UNMASK, data=b"\0\1")
    assert rung(1)
    host.client.set_irqs(say.MSIX, 0, 2, say.BOOL | say.TRIGGER, data=b"\1\0")
    assert rung(0)
    host.client.set_irqs(say.MSIX, 0, 2, say.EVENTFD | say.TRIGGER)
    os.eventfd_read(ears[0])
    host.client.set_irqs(say.MSIX, 0, 1, say.NONE | say.TRIGGER)
    assert not rung(0)
    host.client.set_irqs(say.MSIX, 0, 1, say.EVENTFD | say.TRIGGER, ears[0])
    host.client.set_irqs(say.MSIX, 0, 0, say.NONE | say.TRIGGER)
    host.client.set_irqs(say.MSIX, 0, 1, say.NONE | say.TRIGGER)
    assert not rung(0)
    for fd in ears:
        os.close(fd)


def test_intx_rings_masks_itself_and_is_unmasked_by_a_command_or_an_eventfd(host: RemoteHost) -> None:
    ear = os.eventfd(0, os.EFD_NONBLOCK)
    end = os.eventfd(0)  # a client's descriptor blocks
    host.client.set_irqs(say.INTX, 0, 1, say.EVENTFD | say.TRIGGER, ear)

    def rung() -> bool:
        return bool(select.select([ear], [], [], 0)[0]) and os.eventfd_read(ear) > 0

    host.start()
    host.uplink.inject(frame(1))
    host.until(rung)
    host.client.set_irqs(say.INTX, 0, 1, say.NONE | say.UNMASK)
    assert rung()  # still asserted
    assert host.isr() == 1
    host.client.set_irqs(say.INTX, 0, 1, say.BOOL | say.UNMASK, data=b"\1")
    assert not rung()
    host.client.set_irqs(say.INTX, 0, 1, say.EVENTFD | say.UNMASK, end)
    host.client.set_irqs(say.INTX, 0, 1, say.NONE | say.MASK)
    host.uplink.inject(frame(2))
    host.bench.received(2)
    assert not rung()
    os.eventfd_write(end, 1)
    host.until(rung)
    host.client.set_irqs(say.INTX, 0, 1, say.EVENTFD | say.UNMASK)
    host.client.set_irqs(say.INTX, 0, 1, say.NONE | say.TRIGGER)
    assert rung()
    os.close(ear)
    os.close(end)


@pytest.mark.parametrize(
    ("values", "data", "fds", "number"),
    [
        ((0, say.MSIX, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE, say.MSIX, 0, 1), b"", 0, errno.EINVAL),
        ((say.TRIGGER, say.MSIX, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.BOOL | say.TRIGGER, say.MSIX, 0, 1), b"\1", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER | say.MASK, say.MSIX, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER | 64, say.MSIX, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, 5, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSI, 0, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSIX, 0, 0x1000), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSIX, 0xFFFFFFFF, 1), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSIX, 1, 0), b"", 0, errno.EINVAL),
        ((say.NONE | say.MASK, say.MSIX, 0, 0), b"", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSIX, 0, 1), b"\1", 0, errno.EINVAL),
        ((say.BOOL | say.TRIGGER, say.MSIX, 0, 2), b"\1", 0, errno.EINVAL),
        ((say.NONE | say.TRIGGER, say.MSIX, 0, 1), b"", 1, errno.EINVAL),
        ((say.EVENTFD | say.TRIGGER, say.MSIX, 0, 2), b"", 1, errno.EINVAL),
        ((say.EVENTFD | say.MASK, say.INTX, 0, 1), b"", 1, errno.ENOTTY),
        ((say.EVENTFD | say.UNMASK, say.MSIX, 0, 1), b"", 1, errno.ENOTTY),
    ],
)
def test_interrupts_that_cannot_be_set_are_refused(
    host: RemoteHost, values: tuple[int, ...], data: bytes, fds: int, number: int
) -> None:
    ear = os.eventfd(0)
    payload = struct.pack("<IIIII", 20 + len(data), *values) + data
    assert host.client.refused(say.SET_IRQS, payload, *[ear] * fds) == number
    os.close(ear)


def test_only_eventfds_are_rung(host: RemoteHost) -> None:
    ear = os.eventfd(0, os.EFD_NONBLOCK)
    payload = struct.pack("<IIIII", 20, say.EVENTFD | say.TRIGGER, say.MSIX, 0, 2)
    assert host.client.refused(say.SET_IRQS, payload, ear, host.guest.fd) == errno.EINVAL
    host.client.set_irqs(say.MSIX, 0, 1, say.NONE | say.TRIGGER)
    assert not select.select([ear], [], [], 0)[0]  # the refusal has changed nothing
    os.close(ear)


def test_a_descriptor_that_was_taken_is_not_closed_again_when_the_next_cannot_be(
    host: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its number may be another thread's."""
    taken: list[int] = []
    others: list[int] = []

    def take(_: int, fd: int | None) -> None:
        assert fd is not None
        if taken:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        taken.append(fd)
        os.close(fd)
        others.append(os.memfd_create("another thread's"))
        assert others == taken

    monkeypatch.setattr(host.local, "set_msix", take)
    ear = os.eventfd(0)
    host.client.say(
        say.SET_IRQS, struct.pack("<IIIII", 20, say.EVENTFD | say.TRIGGER, say.MSIX, 0, 2), ear, ear
    )
    assert host.client.is_closed()
    os.close(others[0])
    os.close(ear)


# Reset, and the end.


def test_a_reset_is_that_of_the_function(host: RemoteHost) -> None:
    host.start()
    host.msix_on()
    ear = Ear(
        lambda fd: (host.client.set_irqs(say.MSIX, 0, 1, say.EVENTFD | say.TRIGGER, fd), os.close(fd))[0]
    )
    assert host.client.ask(say.RESET) == b""
    assert host.status() == 0
    assert host.config(Header.COMMAND) == 0
    assert not host.port.started(1)
    host.client.set_irqs(say.MSIX, 0, 1, say.NONE | say.TRIGGER)
    assert not ear.heard()
    ear.close()
    host.start()  # memory is still mapped
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]


def test_a_client_that_is_killed_leaves_a_function_as_new(host: RemoteHost) -> None:
    for number in range(3):
        host.start()
        host.send(frame(number))
        assert host.bench.captured(1) == [frame(number)]
        host.client.close()
        host.until(lambda: not host.server.is_connected)
        assert host.port.device.status == 0
        assert not host.port.started(1)
        host.guest.drivers.clear()
        host.clients.clear()
        host.attach(host.dial())
        assert host.status() == 0
        for fd in (*host.guest.kicks.values(), *host.guest.calls.values()):
            os.close(fd)
        host.guest.kicks.clear()
        host.guest.calls.clear()
    assert host.counter("connections") == 4


def test_a_second_client_waits_for_the_first_to_go(host: RemoteHost) -> None:
    second = host.dial()
    second.say(say.VERSION, b"\0\0\1\0")
    host.client.read(Region.CONFIG, 0, 4)
    assert not select.select([second.sock], [], [], 0)[0]
    host.client.close()
    assert second.hear()[3] == 0


def mappings() -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum(1 for _ in maps)


def test_no_descriptor_and_no_mapping_is_left_of_many_clients() -> None:
    with served(connect=False) as host:
        before = None
        for number in range(60):
            client = host.dial()
            client.version()
            client.map(host.guest.fd, BASE, host.guest.size)
            ears = [os.eventfd(0) for _ in range(2)]
            client.set_irqs(say.MSIX, 0, 2, say.EVENTFD | say.TRIGGER, *ears)
            client.set_irqs(say.INTX, 0, 1, say.EVENTFD | say.UNMASK, ears[0])
            io_fds(client, 0)
            for fd in ears:
                os.close(fd)
            host.clients.pop().close()
            host.until(lambda: not host.server.is_connected)
            if number == 9:
                before = descriptors(), mappings()
        assert before is not None
        assert descriptors() == before[0]
        assert mappings() <= before[1] + 2


def test_the_server_goes_with_its_client() -> None:
    with served() as host:
        host.start()
        host.server.close()
        host.server.close()
        assert host.client.is_closed()
        assert host.port.device.status == Status(0)
        assert not os.path.exists(host.path)


def test_nobody_is_served_before_all_of_the_last_client_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread of the port can hang in the client's memory, for seconds or for good."""
    with served() as host:
        host.start()
        fails = iter((TransportError("stuck"), TransportError("stuck")))
        disconnect = host.local.disconnect

        def once_more() -> None:
            for error in fails:
                raise error
            disconnect()

        monkeypatch.setattr(host.local, "disconnect", once_more)
        monkeypatch.setattr(serving, "_RETRY", 1_000_000)
        host.clients.pop().close()
        host.function = host.local
        host.until(lambda: host.port.counters().get("failed_ends") == 2)
        assert "cannot be let go yet: stuck" in caplog.text
        again = host.dial()
        again.version()
        assert host.port.device.status == 0


def test_a_server_that_is_closed_meanwhile_takes_its_socket_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as host:

        def fail() -> None:
            raise TransportError("stuck")

        with monkeypatch.context() as patch:
            patch.setattr(host.local, "disconnect", fail)
            with pytest.raises(TransportError, match="stuck"):
                host.server.close()
        assert not os.path.exists(host.path)
