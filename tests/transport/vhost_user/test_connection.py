"""Framing over a stream socket: whole messages, each with its own descriptors, whatever the pieces."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed, PeerStalled
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vhost_user.connection import MAX_PAYLOAD, Connection, Message, reply, request
from virtio_ipsec.transport.vhost_user.messages import MAX_FDS

Pair = tuple[Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, patience=0.05)
    yield connection, theirs
    connection.close()
    theirs.close()


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


def send_raw(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    if fds:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    else:
        sock.sendall(data)


def raw(number: int, payload: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack("=III", number, flags, len(payload)) + payload


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def test_a_message_is_a_header_of_three_words_and_its_payload(pair: Pair) -> None:
    connection, theirs = pair
    connection.send(request(8, b"\1\0\0\0\0\1\0\0", need_reply=True))
    assert theirs.recv(100).hex() == "08000000" + "09000000" + "08000000" + "0100000000010000"
    send_raw(theirs, bytes.fromhex("08000000" + "05000000" + "08000000") + bytes(8))
    answer = connection.receive(1)
    assert answer == Message(8, 5, bytes(8))
    assert answer.is_reply
    assert not answer.needs_reply


def test_an_answer_has_its_request_s_number_and_the_reply_flag() -> None:
    assert reply(request(15), bytes(8)) == Message(15, 5, bytes(8))


def test_messages_that_arrive_together_keep_their_own_descriptors(pair: Pair) -> None:
    connection, theirs = pair
    read_end, write_end = os.pipe()
    send_raw(theirs, raw(12, bytes(8)), [read_end])
    send_raw(theirs, raw(18, bytes(8)))
    send_raw(theirs, raw(13, bytes(8)), [write_end])
    first, second, third = (connection.poll() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.request, second.request, third.request) == (12, 18, 13)
    assert second.fds == ()
    assert same_file(first.fds[0], read_end)
    assert same_file(third.fds[0], write_end)
    assert not os.get_inheritable(first.fds[0])
    for each in (first, third):
        each.close()
        each.close()  # closing twice is harmless
    os.close(read_end)
    os.close(write_end)
    assert connection.poll() is None


def test_a_message_may_come_byte_by_byte(pair: Pair) -> None:
    connection, theirs = pair
    data = raw(9, bytes(range(40)))
    for position, byte in enumerate(data):
        assert connection.poll() is None
        send_raw(theirs, bytes([byte]), [0] if position == 0 else None)
    message = connection.poll()
    assert message is not None
    assert message.payload == bytes(range(40))
    assert len(message.fds) == 1
    message.close()


def test_receive_waits_for_the_rest_and_gives_up_in_time(pair: Pair) -> None:
    connection, theirs = pair
    send_raw(theirs, raw(2, bytes(8))[:14])
    with pytest.raises(PeerStalled, match="send"):
        connection.receive(0.01)
    send_raw(theirs, raw(2, bytes(8))[14:])
    assert connection.receive(0) == Message(2, 1, bytes(8))
    timer = threading.Timer(0.02, send_raw, (theirs, raw(3)))
    timer.start()
    assert connection.receive() == Message(3, 1)
    timer.join()


def test_the_end_between_messages_is_none_and_within_one_an_error(pair: Pair) -> None:
    connection, theirs = pair
    send_raw(theirs, raw(3) + raw(2, bytes(8))[:5])
    theirs.close()
    assert connection.receive(1) == Message(3, 1)
    with pytest.raises(PeerClosed):
        connection.receive(1)
    ours, theirs = socket.socketpair()
    whole = Connection(ours)
    theirs.close()
    assert whole.receive(1) is None
    with pytest.raises(PeerClosed):
        whole.send(request(1))
    whole.close()
    assert whole.fileno() == -1
    with pytest.raises(PeerClosed):
        whole.poll()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("=III", 1, 0, 0), "version 0"),
        (struct.pack("=III", 1, 2, 0), "version 2"),
        (struct.pack("=III", 1, 1, MAX_PAYLOAD + 1), "of 4097 bytes"),
        (struct.pack("=III", 1, 1, 0xFFFFFFFF), "bytes"),
    ],
)
def test_headers_that_are_none_are_refused_and_descriptors_closed(pair: Pair, data: bytes, why: str) -> None:
    connection, theirs = pair
    send_raw(theirs, data, [0, 1])
    with pytest.raises(MessageError, match=why):
        connection.receive(1)


@pytest.mark.parametrize("count", [MAX_FDS + 1, 60])
def test_too_many_descriptors_are_refused_and_closed(pair: Pair, count: int) -> None:
    connection, theirs = pair
    send_raw(theirs, raw(5, bytes(8)), [0] * count)
    with pytest.raises(MessageError, match="more than 8"):
        connection.receive(1)


def test_descriptors_are_counted_over_all_pieces_of_a_message(pair: Pair) -> None:
    connection, theirs = pair
    send_raw(theirs, raw(5, bytes(8))[:6], [0] * 5)
    send_raw(theirs, raw(5, bytes(8))[6:], [0] * 5)
    with pytest.raises(MessageError, match="more than 8"):
        connection.receive(1)


def test_closing_closes_the_descriptors_of_half_a_message(pair: Pair) -> None:
    connection, theirs = pair
    send_raw(theirs, raw(5, bytes(8))[:6], [0] * 5)
    assert connection.poll() is None
    connection.close()


def test_a_peer_that_reads_nothing_is_given_up(pair: Pair) -> None:
    connection, _ = pair
    with pytest.raises(PeerStalled, match="take"):
        for _ in range(10_000):
            connection.send(request(1, bytes(4000)))


def test_a_long_message_goes_out_in_pieces_with_its_descriptors_once() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection, other = Connection(ours), Connection(theirs)
    messages = [request(5, bytes([number]) * 4000, [0, 1]) for number in range(20)]
    got: list[Message | None] = []

    def read() -> None:
        got.extend(other.receive(5) for _ in messages)

    reader = threading.Thread(target=read)
    reader.start()
    for message in messages:
        connection.send(message)
    reader.join()
    for message, arrived in zip(messages, got, strict=True):
        assert arrived is not None
        assert arrived.payload == message.payload
        assert len(arrived.fds) == 2
        arrived.close()
    connection.close()
    other.close()


def test_a_reset_by_the_peer_is_its_end_and_other_errors_name_themselves() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    send_raw(ours, b"unread")
    theirs.close()  # with data unread: the socket is reset
    assert connection.receive(1) is None
    connection.close()
    unconnected = Connection(socket.socket(socket.AF_UNIX))
    with pytest.raises(TransportError, match="vhost-user socket: "):
        unconnected.send(request(1))
    unconnected.close()
