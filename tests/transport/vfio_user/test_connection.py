"""Framing of vfio-user: the header of 16 bytes, with sizes that count it. What framing has in common is tested with
vhost-user."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from virtio_ipsec.transport.framing import PeerClosed, PeerStalled
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user.connection import (
    MAX_PAYLOAD,
    Connection,
    Message,
    command,
    error_reply,
    reply,
)

Pair = tuple[Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, patience=0.05)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_a_message_is_sixteen_bytes_and_its_payload(pair: Pair) -> None:
    connection, theirs = pair
    asked = command(0x1234, 9, b"payload!")
    connection.send(asked)
    assert theirs.recv(100) == struct.pack("=HHIII", 0x1234, 9, 24, 0, 0) + b"payload!"
    connection.send(command(1, 13, no_reply=True))
    assert theirs.recv(100) == struct.pack("=HHIII", 1, 13, 16, 0x10, 0)
    connection.send(reply(asked, b"abc"))
    assert theirs.recv(100) == struct.pack("=HHIII", 0x1234, 9, 19, 1, 0) + b"abc"
    connection.send(error_reply(asked, 22))
    assert theirs.recv(100) == struct.pack("=HHIII", 0x1234, 9, 16, 0x21, 22)


def test_messages_come_with_their_descriptors(pair: Pair) -> None:
    connection, theirs = pair
    read_end, write_end = os.pipe()
    data = struct.pack("=HHIII", 7, 2, 20, 0, 0) + b"abcd"
    theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read_end]))])
    theirs.sendall(struct.pack("=HHIII", 7, 2, 16, 0x21, 95))
    message = connection.poll()
    assert message is not None
    assert (message.number, message.command, message.payload) == (7, 2, b"abcd")
    assert (message.is_reply, message.wants_reply, message.is_error) == (False, True, False)
    assert os.path.samestat(os.fstat(message.fds[0]), os.fstat(read_end))
    message.close()
    assert connection.poll() == Message(7, 2, 0x21, error=95)
    os.close(read_end)
    os.close(write_end)


def test_the_largest_message_is_taken(pair: Pair) -> None:
    connection, theirs = pair
    data = struct.pack("=HHIII", 7, 10, 16 + MAX_PAYLOAD, 0, 0) + bytes(MAX_PAYLOAD)
    theirs.setblocking(False)
    message = None
    while message is None:
        with contextlib.suppress(BlockingIOError):
            data = data[theirs.send(data) :] if data else data
        message = connection.poll()
    assert message.payload == bytes(MAX_PAYLOAD)


@pytest.mark.parametrize(
    ("size", "flags", "why"),
    [
        (15, 0, "of 15 bytes"),
        (0, 0, "of 0 bytes"),
        (17 + MAX_PAYLOAD, 0, "bytes"),
        (0xFFFFFFFF, 0, "bytes"),
        (16, 2, "of type 2"),
        (16, 15, "of type 15"),
    ],
)
def test_headers_that_are_none_are_refused(pair: Pair, size: int, flags: int, why: str) -> None:
    connection, theirs = pair
    theirs.sendall(struct.pack("=HHIII", 1, 9, size, flags, 0))
    with pytest.raises(MessageError, match=why):
        connection.receive(1)


def test_who_is_gone_is_gone(pair: Pair) -> None:
    connection, theirs = pair
    theirs.close()
    with pytest.raises(PeerClosed):
        connection.poll()


def test_nothing_comes_behind_a_message_that_was_taken_in_part(pair: Pair) -> None:
    """Another thread may want to send the next one."""
    connection, _ = pair
    with pytest.raises(PeerStalled):
        connection.send(command(1, 12, bytes(MAX_PAYLOAD)))
    with pytest.raises(PeerClosed):
        connection.send(command(2, 12))
    assert connection.receive(1) is None
