"""A back-end that a test scripts: own framing, answers from a table, everything it was told on record."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep

PROTOCOL_BIT = 1 << 30
NAMES = {"GET_FEATURES": 1, "SET_FEATURES": 2, "SET_OWNER": 3, "SET_MEM_TABLE": 5, "SET_LOG_BASE": 6}
NAMES |= {
    "NUM": 8,
    "ADDR": 9,
    "BASE": 10,
    "GET_BASE": 11,
    "KICK": 12,
    "CALL": 13,
    "ERR": 14,
    "GET_PROTOCOL": 15,
}
NAMES |= {
    "SET_PROTOCOL": 16,
    "GET_QUEUE_NUM": 17,
    "ENABLE": 18,
    "BACKEND_FD": 21,
    "GET_CONFIG": 24,
    "SET_CONFIG": 25,
}
NAMES |= {"GET_INFLIGHT": 31, "SET_INFLIGHT": 32, "RESET": 34, "SLOTS": 36, "ADD_REGION": 37}
NAMES |= {"SET_STATUS": 39, "GET_STATUS": 40, "GET_DEVICE": 0x49500001, "SET_DRIVER": 0x49500002}
NUMBERS = {number: name for name, number in NAMES.items()}

Answer = tuple[bytes, list[int]]


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


@dataclass
class Told:
    """One message as it came."""

    name: str
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def words(self) -> tuple[int, ...]:
        return struct.unpack(f"={len(self.payload) // 4}I", self.payload)


class Peer:
    """Serves connections one after the other in a thread. ``script`` overrides answers by name: bytes, or a function
    of what was told that gives bytes or bytes and descriptors; None leaves a question open. ``refuse`` names messages
    that are not acknowledged with success."""

    def __init__(self, features: int, protocol: int | None, connections: int = 1) -> None:
        self.told: list[Told] = []
        self.refuse: set[str] = set()
        self.status = 0
        self.config = bytes(range(100))
        self.script: dict[str, Callable[[Told], bytes | Answer | None]] = {
            "GET_FEATURES": lambda _: u64(features | (PROTOCOL_BIT if protocol is not None else 0)),
            "GET_PROTOCOL": lambda _: u64(protocol or 0),
            "GET_QUEUE_NUM": lambda _: u64(2),
            "SLOTS": lambda _: u64(32),
            "GET_STATUS": lambda _: u64(self.status),
            "GET_BASE": lambda told: struct.pack("=II", told.words[0], 7),
            "GET_CONFIG": self._get_config,
            "SET_LOG_BASE": lambda _: u64(0),
        }
        self._pairs = [socket.socketpair() for _ in range(connections)]
        self._unused = [ours for ours, _ in self._pairs]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        """The front-end's end of the next connection."""
        return self._unused.pop(0)

    def names(self) -> list[str]:
        return [each.name for each in self.told]

    def last(self, name: str) -> Told:
        """The last message of this name; waits for the first one, for without REPLY_ACK nobody else does."""
        limit = monotonic() + 5
        while name not in self.names() and monotonic() < limit:
            sleep(0.001)
        return next(each for each in reversed(self.told) if each.name == name)

    def hang_up(self) -> None:
        """Be gone, as a process that was killed."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for ours, theirs in self._pairs:
            for each in (ours, theirs):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        for ours, theirs in self._pairs:
            ours.close()
            theirs.close()
        self.forget()

    def forget(self) -> None:
        """Begin a new record."""
        for fd in (fd for told in self.told for fd in told.fds):
            os.close(fd)
        self.told = []

    def map_memory(self) -> tuple[mmap.mmap, int, int]:
        """The last memory region: its bytes, its guest address and its user address."""
        told = next(each for each in reversed(self.told) if each.name in ("ADD_REGION", "SET_MEM_TABLE"))
        address, size, user, offset = struct.unpack("=QQQQ", told.payload[8:40])
        return mmap.mmap(told.fds[0], size, offset=offset), address, user

    def _get_config(self, told: Told) -> bytes:
        offset, size, _ = struct.unpack_from("=III", told.payload)
        return told.payload[:12] + self.config[offset : offset + size]

    def _serve(self) -> None:
        for _, theirs in self._pairs:
            self.socket = theirs
            try:
                while True:
                    self._one(self.socket)
            except (EOFError, OSError):
                self.socket.close()

    def _one(self, sock: socket.socket) -> None:
        fds: list[int] = []
        head = self._read(sock, 12, fds)
        number, flags, size = struct.unpack("=III", head)
        told = Told(NUMBERS[number], flags, self._read(sock, size, fds) if size else b"", fds)
        if told.name == "SET_STATUS":
            self.status = struct.unpack("=Q", told.payload)[0]
        self.told.append(told)
        answer: bytes | Answer | None = None
        if told.name in self.script:
            answer = self.script[told.name](told)
        elif flags & 8:
            answer = u64(told.name in self.refuse)
        if answer is not None:
            data, fds = answer if isinstance(answer, tuple) else (answer, [])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([struct.pack("=III", number, 5, len(data)) + data], ancillary)

    @staticmethod
    def _read(sock: socket.socket, length: int, fds: list[int]) -> bytes:
        data = b""
        while len(data) < length:
            piece, ancillary, _, _ = sock.recvmsg(length - len(data), socket.CMSG_SPACE(64))
            for _, _, content in ancillary:
                fds.extend(array.array("i", content))
            if not piece:
                raise EOFError
            data += piece
        return data
