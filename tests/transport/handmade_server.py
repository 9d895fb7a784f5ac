"""A vfio-user server written out by hand, byte by byte after the protocol's text: what the client is held against.

It serves a handmade function over one end of a socket pair, in a thread, and does as it is told where a test wants it
otherwise: ``answers`` has replies in place of its own.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from handmade_function import BAR_SIZE, NOTIFY, Function

from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.transport.vhost_user.shared import full_fence

Reply = tuple[bytes, list[int]]
ENOTSUP = 95


class Refuse(Exception):
    """Answer with this errno."""


@dataclass(frozen=True)
class Seen:
    number: int
    command: int
    payload: bytes
    fds: int


@dataclass
class Server:
    """``capabilities`` of its version answer; ``bells``: doorbells are eventfds, ``file``: they can be mapped."""

    function: Function = field(default_factory=Function)
    capabilities: dict[str, object] = field(default_factory=lambda: {"max_msg_fds": 8})
    bells: bool = False
    file: bool = False
    seen: list[Seen] = field(default_factory=list)
    #: Command -> what to answer with; None: nothing.
    answers: dict[int, Callable[[bytes], Reply | None]] = field(default_factory=dict)
    flags: int = 3
    number_offset: int = 0

    def __post_init__(self) -> None:
        self.maps: dict[int, tuple[int, mmap.mmap | None]] = {}
        self.bell_fds: dict[int, int] = {}
        self.irqs: dict[int, int] = {}
        self.page = os.memfd_create("notify", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.page, 0x2000)
        self.threads: list[threading.Thread] = []
        self.failure: BaseException | None = None

    def connect(self) -> socket.socket:
        """The client's end of a new connection."""
        ours, theirs = socket.socketpair()
        self.theirs = ours
        thread = threading.Thread(target=self.serve, args=(ours,), daemon=True)
        thread.start()
        self.threads.append(thread)
        return theirs

    def close(self) -> None:
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()
        for fd in (self.page, *self.bell_fds.values(), *self.irqs.values()):
            os.close(fd)
        if self.failure is not None:
            raise self.failure

    def serve(self, sock: socket.socket) -> None:
        self.maps.clear()
        try:
            with sock:
                while (message := self.receive(sock)) is not None:
                    self.handle(sock, *message)
        except (ConnectionError, BrokenPipeError):
            return
        except BaseException as error:  # the test's thread raises it
            self.failure = error

    def receive(self, sock: socket.socket) -> tuple[int, int, int, bytes, list[int]] | None:
        head, fds = self.take(sock, 16)
        if len(head) < 16:
            return None
        number, command, size, flags, error = struct.unpack("<HHIII", head)
        assert flags in (0, 0x10)
        assert error == 0
        payload, more = self.take(sock, size - 16)
        assert not more
        return number, command, flags, payload, fds

    def take(self, sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        while len(data) < size:
            piece, ancillary, _, _ = sock.recvmsg(size - len(data), socket.CMSG_SPACE(4 * 16))
            if not piece:
                break
            for _, _, content in ancillary:
                fds.frombytes(content)
            data += piece
        return data, [*fds]

    def send(
        self, sock: socket.socket, head: tuple[int, int, int, int], payload: bytes, fds: list[int]
    ) -> None:
        number, command, flags, error = head
        data = struct.pack("<HHIII", number, command, 16 + len(payload), flags, error) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], rights)

    def handle(
        self, sock: socket.socket, number: int, command: int, flags: int, payload: bytes, fds: list[int]
    ) -> None:
        self.seen.append(Seen(number, command, payload, len(fds)))
        number = (number + self.number_offset) % 65536
        try:
            scripted = self.answers.get(command)
            answer = scripted(payload) if scripted is not None else self.answer(command, payload, fds)
            if answer is not None and not flags & 0x10:
                self.send(sock, (number, command, 1, 0), *answer)
        except Refuse as error:
            self.send(sock, (number, command, 0x21, error.args[0]), b"", [])
        finally:
            for fd in fds:
                with suppress(OSError):
                    os.close(fd)

    def answer(self, command: int, payload: bytes, fds: list[int]) -> Reply:
        handler = {
            1: self.version, 2: self.dma_map, 3: self.dma_unmap, 4: self.info, 5: self.region, 6: self.io_fds,
            7: self.irq, 8: self.set_irqs, 9: self.read, 10: self.write, 13: self.reset,
        }.get(command)  # fmt: skip
        if handler is None:
            raise Refuse(ENOTSUP)
        return handler(payload, fds)

    def version(self, payload: bytes, _: list[int]) -> Reply:
        assert payload[:4] == b"\0\0\1\0"
        assert payload[-1:] == b"\0"
        self.client = json.loads(payload[4:-1])["capabilities"]
        return b"\0\0\1\0" + json.dumps({"capabilities": self.capabilities}).encode() + b"\0", []

    def dma_map(self, payload: bytes, fds: list[int]) -> Reply:
        argsz, flags, offset, address, size = struct.unpack("<IIQQQ", payload)
        assert (argsz, flags) == (32, 3)
        if any(address < at + length and at < address + size for at, (length, _) in self.maps.items()):
            raise Refuse(17)
        self.maps[address] = size, mmap.mmap(fds[0], size, offset=offset) if fds else None
        self.look_at_memory()
        return b"", []

    def dma_unmap(self, payload: bytes, _: list[int]) -> Reply:
        _, flags, address, size = struct.unpack("<IIQQ", payload)
        assert flags == 0
        if self.maps.get(address, (0, None))[0] != size:
            raise Refuse(2)
        del self.maps[address]
        return payload, []

    def look_at_memory(self) -> None:
        regions = [Region(at, size, where) for at, (size, where) in self.maps.items() if where is not None]
        if regions:
            loop = self.function.loop
            loop.memory = GuestMemory(regions, full_fence)
            loop.rings = loop.device.new_rings(loop.memory)

    def info(self, _: bytes, __: list[int]) -> Reply:
        return struct.pack("<IIII", 16, self.flags, 9, 5), []

    def region(self, payload: bytes, _: list[int]) -> Reply:
        argsz, _, index = struct.unpack_from("<III", payload)
        size = self.function.region_info(index).size
        if index != 4 or not self.file:
            return struct.pack("<IIIIQQ", 32, 3, index, 0, size, 0), []
        assert argsz >= 64
        sparse = struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, NOTIFY, 0x1000)
        return struct.pack("<IIIIQQ", 64, 3 | 4 | 8, index, 32, BAR_SIZE, 0) + sparse, [self.page]

    def io_fds(self, payload: bytes, _: list[int]) -> Reply:
        _, flags, index, count = struct.unpack("<IIII", payload)
        assert (flags, count) == (0, 0)
        if not self.bells or index != 4:
            raise Refuse(ENOTSUP)
        parts = b""
        self.bell_fds = self.bell_fds or {each: os.eventfd(0, os.EFD_NONBLOCK) for each in (0, 1, 2)}
        for queue in (0, 1):
            parts += struct.pack("<QQIIIIQ", NOTIFY + 4 * queue, 4, queue, 0, 0, 0, 0)
        parts += struct.pack("<QQIIIIQ", NOTIFY + 8, 2, 2, 0, 1, 0, 7)  # only for a write of 7
        return struct.pack("<IIII", 16 + len(parts), 0, 4, 3) + parts, [
            self.bell_fds[each] for each in (0, 1, 2)
        ]

    def irq(self, payload: bytes, _: list[int]) -> Reply:
        index = struct.unpack_from("<I", payload, 8)[0]
        return struct.pack("<IIII", 16, 1, index, self.function.irq_count(index)), []

    def set_irqs(self, payload: bytes, fds: list[int]) -> Reply:
        argsz, flags, index, start, count = struct.unpack_from("<IIIII", payload)
        assert argsz == len(payload) == 20
        if flags == 0x11:
            self.function.unmask_irq(index)
        elif flags == 0x21:
            assert (start, count) == (0, 0)
            self.function.irqs.pop(index, None)
        else:
            assert flags == 0x24
            assert len(fds) in (0, count)
            kept = self.function.irqs.setdefault(index, [])
            kept += [None] * (start + count - len(kept))
            for at in range(count):
                kept[start + at] = self.keep(start + at, fds[at]) if fds else None
        return b"", []

    def keep(self, vector: int, fd: int) -> int:
        if vector in self.irqs:
            os.close(self.irqs[vector])
        self.irqs[vector] = os.dup(fd)
        return self.irqs[vector]

    def read(self, payload: bytes, _: list[int]) -> Reply:
        offset, region, count = struct.unpack("<QII", payload)
        return payload + self.function.read(region, offset, count), []

    def write(self, payload: bytes, _: list[int]) -> Reply:
        offset, region, count = struct.unpack_from("<QII", payload)
        assert len(payload) == 16 + count
        self.function.write(region, offset, payload[16:])
        return payload[:16], []

    def reset(self, _: bytes, __: list[int]) -> Reply:
        self.function.reset()
        return b"", []
