"""The vfio-user client against a server that is written out by hand: what it says, and what it makes of the answers."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from handmade_function import NOTIFY
from handmade_server import Refuse, Seen, Server

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed, PeerStalled
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.virtio_pci.access import AccessRefused, FunctionAccess
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink

FRAME = bytes.fromhex("ffffffffffff525400000070") + b"\x88\xb5" + bytes(46)
OPTIONS = Options(memory=4 << 20, patience=1.0)


Script = Callable[[bytes], tuple[bytes, list[int]] | None]


def refuse(number: int) -> Script:
    def answer(_: bytes) -> None:
        raise Refuse(number)

    return answer


@dataclass
class Bed:
    """A server and clients of it, which are closed at the end."""

    server: Server
    clients: list[VfioUserFunction]

    def connect(self, **options: bool) -> VfioUserFunction:
        client = VfioUserFunction(self.server.connect, patience=0.3, **options)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def payloads(self, command: int) -> list[Seen]:
        return [each for each in self.server.seen if each.command == command]


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed(Server(), [])
    yield made
    for client in made.clients:
        client.close()
    made.server.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_driver_has_caps_and_sends_and_receives_over_vfio_user(bed: Bed) -> None:
    link = PciLink(bed.connect(), OPTIONS)
    driver = Driver(link, config=DriverConfig(receive_buffers=4))
    driver.start()
    assert driver.caps.ipsec_sas is not None
    loop = bed.server.function.loop
    driver.send(FRAME)
    link.status()  # the doorbell was posted
    assert loop.captured() == [FRAME]
    loop.inject(FRAME)
    bed.server.function.signal()
    link.poll(1.0)
    assert [packet.frame for packet in driver.receive()] == [FRAME]
    driver.stop()
    link.close()
    (told,) = bed.payloads(2)
    assert (told.fds, told.payload) == (1, struct.pack("<IIQQQ", 32, 3, 0, 0x10000000, 4 << 20))
    assert bed.server.client["max_msg_fds"] == 16


def test_it_is_an_access_to_a_function(bed: Bed) -> None:
    client: FunctionAccess = bed.connect()
    assert client.name == "vfio-user"
    assert [client.region_info(each).size for each in (4, 7, 0, 8, 9, -1)] == [0x2000, 256, 0, 0, 0, 0]
    assert [client.irq_count(each) for each in (0, 1, 2, 5, -1)] == [1, 0, 64, 0, 0]
    client.reset()
    assert bed.server.function.resets == 1
    client.unmask_irq(0)
    assert bed.server.function.unmasked == 1


def test_a_long_access_goes_in_pieces_that_the_server_takes(bed: Bed) -> None:
    bed.server.capabilities = {"max_data_xfer_size": 100}
    client = bed.connect()
    assert client.read(7, 0, 256) == bytes(bed.server.function.config)
    client.write(7, 0x90, bytes(range(110)))
    assert bed.server.function.config[0x90:0xFE] == bytes(range(110))
    ranges = [struct.unpack_from("<QII", each.payload) for each in bed.server.seen if each.command in (9, 10)]
    assert ranges == [(0, 7, 100), (100, 7, 100), (200, 7, 56), (0x90, 7, 100), (0xF4, 7, 10)]


def test_a_register_is_written_without_an_answer(bed: Bed) -> None:
    client = bed.connect()
    before = len(bed.server.seen)
    for value in range(5):
        client.write(7, 0x90, bytes([value]))
    assert client.read(7, 0x90, 1) == b"\4"
    assert [each.command for each in bed.server.seen[before:]] == [10] * 5 + [9]


# Doorbells and mapped regions.


def test_doorbells_are_eventfds_where_the_server_has_them(bed: Bed) -> None:
    bed.server.bells = True
    client = bed.connect()
    fds = [client.doorbell(4, NOTIFY + 4 * queue, 2, queue) for queue in (0, 1, 3)]
    assert fds[2] is None
    for fd, theirs in zip(fds[:2], (0, 1), strict=True):
        assert fd is not None
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(bed.server.bell_fds[theirs]) == 1
    assert client.doorbell(4, NOTIFY + 8, 2, 7) is not None
    assert client.doorbell(4, NOTIFY + 8, 2, 6) is None
    assert client.doorbell(4, NOTIFY, 8, 0) is None
    assert client.doorbell(2, 0, 2) is None
    assert len(bed.payloads(6)) == 2


def test_a_doorbell_that_is_no_eventfd_is_refused(bed: Bed) -> None:
    bed.server.bells = True
    bed.server.bell_fds = {each: os.dup(bed.server.page) for each in (0, 1, 2)}
    with pytest.raises(TransportError, match="no eventfd"):
        bed.connect().doorbell(4, NOTIFY, 2)


def test_regions_are_mapped_where_a_file_comes_along_that_cannot_shrink(bed: Bed) -> None:
    bed.server.file = True
    assert bed.connect().map_region(4, NOTIFY, 2) is None
    fcntl.fcntl(bed.server.page, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    client = bed.connect()
    assert client.region_info(4).mappable == ((NOTIFY, 0x1000),)
    view = client.map_region(4, NOTIFY + 4, 2)
    assert view is not None
    view[:] = b"\x34\x12"
    assert os.pread(bed.server.page, 2, NOTIFY + 4) == b"\x34\x12"
    assert client.map_region(4, NOTIFY - 2, 4) is None
    assert client.map_region(7, 0, 4) is None
    os.ftruncate(bed.server.page, 0x3000)


@pytest.mark.parametrize(
    "area", [(0x1000, 0x2000), (0xFFFFFFFFFFFFF000, 0x2000), (0x1800, 0x800), (0x100, 0x100)]
)
def test_an_area_that_leads_elsewhere_is_not_mapped(bed: Bed, area: tuple[int, int]) -> None:
    fcntl.fcntl(bed.server.page, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    sparse = struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, *area)
    info = struct.pack("<IIIIQQ", 64, 0xF, 4, 32, 0x2000, 0) + sparse
    bed.server.answers[5] = lambda payload: (info, [bed.server.page])
    assert bed.connect().map_region(4, area[0], 2) is None


# Memory.


def test_memory_is_mapped_and_unmapped(bed: Bed) -> None:
    client = bed.connect()
    first, second = client.new_memory(0x4000), os.memfd_create("more")
    os.ftruncate(second, 0x3000)
    client.map_dma(second, 0x1000, 0x2000, 0x40000000)
    with pytest.raises(AccessRefused, match="DMA_MAP with: File exists"):
        client.map_dma(second, 0, 0x1000, 0x40001000)
    with pytest.raises(AccessRefused, match="DMA_UNMAP with: No such file"):
        client.unmap_dma(0x40000000, 0x1000)
    client.unmap_dma(0x40000000, 0x2000)
    assert [*bed.server.maps] == [0x10000000]
    first.close()
    assert bed.server.maps == {}
    os.close(second)


def test_memory_that_the_server_does_not_take_is_given_up(bed: Bed) -> None:
    client = bed.connect()
    gc.collect()
    before = open_fds()
    bed.server.answers[2] = refuse(12)
    with pytest.raises(AccessRefused, match="DMA_MAP with: Cannot allocate memory"):
        client.new_memory(4096)
    gc.collect()
    assert open_fds() == before


def test_a_server_may_ask_for_every_byte_instead(bed: Bed) -> None:
    bed.server.capabilities = {}
    client = bed.connect(shares_memory=False)
    memory = client.new_memory(0x2000)
    assert bed.payloads(2)[0].fds == 0
    memory.memory.write(0x10000010, b"abcdef")
    server, answers = bed.server, list[tuple[int, bytes]]()

    def ask(command: int, payload: bytes) -> None:
        server.send(server.theirs, (77, command, 0, 0), payload, [])
        head, _ = server.take(server.theirs, 16)
        number, again, size, flags, error = struct.unpack("<HHIII", head)
        assert (number, again, flags & 0xF) == (77, command, 1)
        answers.append((error, server.take(server.theirs, size - 16)[0]))

    def reset(_: bytes) -> tuple[bytes, list[int]]:
        ask(11, struct.pack("<QQ", 0x10000010, 4))
        ask(12, struct.pack("<QQ", 0x10000012, 2) + b"XY")
        ask(11, struct.pack("<QQ", 0x10001FFE, 4))
        ask(11, struct.pack("<QQ", 0x10000000, 1 << 40))
        ask(12, struct.pack("<QQ", 0, 2) + b"XY")
        ask(13, b"")
        ask(99, b"")
        return b"", []

    server.answers[13] = reset
    client.reset()
    read, write = struct.pack("<QQ", 0x10000010, 4) + b"abcd", struct.pack("<QQ", 0x10000012, 2)
    assert answers == [(0, read), (0, write), *[(22, b"")] * 5]
    assert memory.memory.read(0x10000010, 6) == b"abXYef"


def test_the_server_may_have_a_socket_of_its_own_for_that(bed: Bed) -> None:
    ours, theirs = socket.socketpair()
    text = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'
    bed.server.answers[1] = lambda payload: (b"\0\0\1\0" + text, [theirs.fileno()])
    client = bed.connect()
    theirs.close()
    assert len(client.filenos()) == 2
    client.new_memory(0x1000).memory.write(0x10000000, b"twin")
    ours.sendall(struct.pack("<HHIIIQQ", 5, 11, 32, 0, 0, 0x10000000, 4))
    client.serve()
    assert ours.recv(100) == struct.pack("<HHIIIQQ", 5, 11, 36, 1, 0, 0x10000000, 4) + b"twin"
    ours.sendall(struct.pack("<HHIII", 5, 11, 16, 1, 0))
    with pytest.raises(MessageError, match="answer to no command: DMA_READ"):
        client.serve()
    ours.close()
    with pytest.raises(PeerClosed):
        client.reset()


# Interrupts.


def test_interrupts_are_set_in_messages_that_the_server_takes(bed: Bed) -> None:
    client = bed.connect()
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(19)]
    client.set_irqs(2, 0, fds)
    assert [each.fds for each in bed.payloads(8)] == [8, 8, 3]
    for fd, theirs in zip(fds, bed.server.function.irqs[2], strict=True):
        assert theirs is not None
        os.eventfd_write(theirs, 1)
        assert os.eventfd_read(fd) == 1
    client.set_irqs(2, 3, [None, None, fds[0]])
    assert bed.server.function.irqs[2][3:5] == [None, None]
    assert bed.server.function.irqs[2][5] is not None
    client.set_irqs(2, 0, [])
    assert 2 not in bed.server.function.irqs
    for fd in fds:
        os.close(fd)


# Servers that do not keep to it.


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (refuse(0), AccessRefused, "DEVICE_RESET with: an error"),
        (refuse(0x80000013), AccessRefused, "DEVICE_RESET with: error 0x80000013"),
        (refuse(19), AccessRefused, "DEVICE_RESET with: No such device"),
        (lambda payload: None, PeerStalled, "does not answer DEVICE_RESET"),
        (lambda payload: (b"more", []), MessageError, "4 bytes are not a payload of type nothing"),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    bed: Bed, answer: Script, error: type[TransportError], complaint: str
) -> None:
    client = bed.connect()
    bed.server.answers[13] = answer
    with pytest.raises(error, match=complaint):
        client.reset()


def test_descriptors_nobody_asked_for_are_closed(bed: Bed) -> None:
    client = bed.connect()
    before = open_fds()
    bed.server.answers[13] = lambda payload: (b"", [bed.server.page] * 3)
    with pytest.raises(MessageError, match="3 file descriptors in answer to DEVICE_RESET"):
        client.reset()
    assert open_fds() == before


@pytest.mark.parametrize(
    ("command", "payload", "complaint"),
    [
        (9, struct.pack("<QII", 4, 7, 4) + bytes(4), "4 bytes in answer to a question for 2"),
        (5, struct.pack("<IIIIQQ", 32, 3, 6, 0, 4096, 0), "region 6 in answer to a question for region 7"),
        (10, struct.pack("<QII", 4, 7, 1), "writes 1 of 9 bytes"),
    ],
)
def test_an_answer_to_another_question_is_an_error(
    bed: Bed, command: int, payload: bytes, complaint: str
) -> None:
    client = bed.connect()
    bed.server.answers[command] = lambda _: (payload, [])
    with pytest.raises(TransportError, match=complaint):
        {
            9: lambda: client.read(7, 4, 2),
            5: lambda: client.region_info(7),
            10: lambda: client.write(7, 4, bytes(9)),
        }[command]()


def test_an_answer_with_another_number_is_an_error(bed: Bed) -> None:
    client = bed.connect()
    bed.server.number_offset = 1
    with pytest.raises(MessageError, match="DEVICE_RESET in answer to DEVICE_RESET"):
        client.reset()
    bed.server.send(bed.server.theirs, (1, 9, 1, 0), b"", [])
    with pytest.raises(MessageError, match="answer to no command: REGION_READ"):
        client.serve()


@pytest.mark.parametrize(
    ("answers", "flags", "complaint"),
    [
        ({1: (b"\1\0\0\0", 0)}, 3, "speaks version 1.0"),
        (
            {1: (b'\0\0\1\0{"capabilities":{"twin_socket":{"supported":true}}}\0', 0)},
            3,
            "promised and not sent",
        ),
        ({}, 1, "is no PCI function"),
    ],
)
def test_a_server_that_is_none_for_us(
    bed: Bed, answers: dict[int, tuple[bytes, int]], flags: int, complaint: str
) -> None:
    bed.server.flags = flags
    for command, (payload, _) in answers.items():
        bed.server.answers[command] = lambda _, payload=payload: (payload, [])  # type: ignore[misc]
    with pytest.raises(TransportError, match=complaint):
        bed.connect()


def test_a_second_socket_that_is_none_is_closed(bed: Bed) -> None:
    before = open_fds()
    text = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'
    bed.server.answers[1] = lambda payload: (b"\0\0\1\0" + text, [bed.server.page])
    with pytest.raises(MessageError, match="second socket is no socket"):
        bed.connect()
    bed.server.threads[0].join(5)
    gc.collect()
    assert open_fds() == before


def test_a_server_that_asks_and_asks_has_not_answered(bed: Bed) -> None:
    client = bed.connect()

    def reset(_: bytes) -> None:
        with suppress(OSError):
            while True:
                bed.server.send(bed.server.theirs, (1, 11, 0x10, 0), struct.pack("<QQ", 0, 1), [])

    bed.server.answers[13] = reset
    with pytest.raises(PeerStalled, match="does not answer DEVICE_RESET"):
        client.reset()


def test_a_function_without_a_reset_says_so(bed: Bed) -> None:
    bed.server.flags = 2
    with pytest.raises(AccessRefused, match="cannot be reset"):
        bed.connect().reset()


# The end of a connection.


def test_after_a_loss_the_server_is_told_of_everything_again(bed: Bed) -> None:
    link = PciLink(bed.connect(), OPTIONS)
    driver = Driver(link, config=DriverConfig(receive_buffers=4))
    driver.start()
    bed.server.theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerClosed):
        link.poll(1.0)
    with pytest.raises(TransportError):
        link.status()
    link.restart()
    again = Driver(link, config=DriverConfig(receive_buffers=4))
    again.start()
    again.send(FRAME)
    link.status()
    assert bed.server.function.loop.captured() == [FRAME]
    assert [each.fds for each in bed.payloads(2)] == [1, 1]
    link.close()


def test_nothing_is_left_open(bed: Bed) -> None:
    bed.server.bells = bed.server.file = True
    gc.collect()
    before = open_fds()
    for _ in range(3):
        client = bed.connect()
        client.doorbell(4, NOTIFY, 2)
        client.region_info(4)
        memory = client.new_memory(0x1000)
        memory.close()
        memory.close()
        kept = client.new_memory(0x1000)
        client.close()
        kept.close()
        for thread in bed.server.threads:
            thread.join()
    del client, memory, kept
    bed.clients.clear()
    bed.server.maps.clear()
    bed.server.function.loop = bed.server.function.device = None  # type: ignore[assignment]
    gc.collect()
    assert open_fds() == before + len(bed.server.bell_fds)


def test_nobody_listens(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(TransportError, match="No such file"):
        VfioUserFunction.at(f"{tmp_path}/nobody", timeout=0)
