"""A front-end's side of vhost-user, its bytes packed by hand, for scripted conversations."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from served import BASE, Bench, Guest, has_ended

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_LOG_BASE = 1, 2, 3, 5, 6
NUM, ADDR, BASE_OF, GET_BASE, KICK, CALL, ERR = 8, 9, 10, 11, 12, 13, 14
GET_PROTOCOL, SET_PROTOCOL, GET_QUEUE_NUM, ENABLE, MTU, CHANNEL = 15, 16, 17, 18, 20, 21
GET_CONFIG, SET_CONFIG, GET_INFLIGHT, SET_INFLIGHT, RESET_DEVICE = 24, 25, 31, 32, 34
GET_SLOTS, ADD_REGION, REMOVE_REGION, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40
#: What messages are answered without being asked to.
ANSWERED = {1, 6, 11, 15, 17, 24, 31, 36, 40, 0x49500001}
PROTOCOL = 1 << 30
LOG_ALL = 1 << 26
#: Where the front-end maps the guest's memory, as it says.
USER = 0x7F00_0000_0000
#: MQ, REPLY_ACK, NET_MTU, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS
TYPICAL = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16


class FrontEnd:
    """One connection to a back-end whose loop the bench turns."""

    def __init__(self, bench: Bench, path: str | None = None, sock: socket.socket | None = None) -> None:
        self.bench = bench
        self.guest: Guest = bench.guest
        if sock is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path or "")
        self.sock = sock
        self.sock.setblocking(False)
        self.acknowledged = 0

    def close(self) -> None:
        self.sock.close()

    # Messages

    def raw(self, data: bytes, *fds: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary)

    def say(self, request: int, payload: bytes = b"", *fds: int, ack: bool = False) -> Any:
        """One message; its answer's payload where it has one, the acknowledgement where one is asked for."""
        flags = 1 | (8 if ack else 0)
        self.raw(struct.pack("<III", request, flags, len(payload)) + payload, *fds)
        if request in ANSWERED:
            return self.hear(request)
        if ack:
            (value,) = struct.unpack("<Q", self.hear(request))
            return value
        return None

    def hear(self, request: int) -> bytes:
        """The answer to a request."""
        data = b""
        fds: list[int] = []

        def whole() -> bool:
            nonlocal data
            try:
                piece, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(32))
            except BlockingIOError:
                return False
            assert piece, "the back-end has closed the connection"
            for _, _, content in ancillary:
                fds.extend(array.array("i", content))
            data += piece
            return len(data) >= 12 and len(data) >= 12 + struct.unpack_from("<I", data, 8)[0]

        self.bench.until(whole)
        number, flags, size = struct.unpack_from("<III", data)
        assert (number, flags, size) == (request, 5, len(data) - 12)
        self.fds = fds
        return data[12:]

    def u64(self, request: int, value: int, ack: bool = False) -> Any:
        return self.say(request, struct.pack("<Q", value), ack=ack)

    def ask(self, request: int) -> int:
        (value,) = struct.unpack("<Q", self.say(request))
        return int(value)

    def state(self, request: int, index: int, value: int, ack: bool = False) -> Any:
        return self.say(request, struct.pack("<II", index, value), ack=ack)

    def file(self, request: int, index: int, fd: int | None, ack: bool = False) -> Any:
        if fd is None:
            return self.u64(request, index | 0x100, ack=ack)
        return self.say(request, struct.pack("<Q", index), fd, ack=ack)

    def is_closed(self) -> bool:
        """Whether the back-end closes the connection; whatever it still says is not looked at."""
        self.bench.until(lambda: has_ended(self.sock))
        return True

    # What front-ends say in one go

    def acknowledge(self, protocol: int) -> None:
        offered = self.ask(GET_PROTOCOL)
        self.acknowledged = offered & protocol
        self.u64(SET_PROTOCOL, self.acknowledged)

    def region(self, gpa: int = BASE, size: int = 0, offset: int = 0) -> bytes:
        return struct.pack("<QQQQ", gpa, size or self.guest.size, USER + gpa, offset)

    def mem_table(self, ack: bool = False) -> Any:
        return self.say(SET_MEM_TABLE, struct.pack("<II", 1, 0) + self.region(), self.guest.fd, ack=ack)

    def addr(self, index: int, flags: int = 0, log: int = 0, ack: bool = False) -> Any:
        layout = self.guest.layouts[index]
        payload = struct.pack(
            "<IIQQQQ", index, flags, USER + layout.desc, USER + layout.device, USER + layout.driver, log
        )
        return self.say(ADDR, payload, ack=ack)

    def ring(self, index: int, base: int = 0, *, fresh: bool = True, kick: bool = True) -> None:
        """The ring is set up and started."""
        if fresh:
            self.guest.queue(index)
        self.state(NUM, index, self.guest.layouts[index].size)
        self.state(BASE_OF, index, base)
        self.addr(index)
        if kick:
            self.file(KICK, index, self.guest.kicks[index])
        self.file(CALL, index, self.guest.calls[index])

    def base(self, index: int) -> int:
        found, state = struct.unpack("<II", self.state(GET_BASE, index, 0))
        assert found == index
        return int(state)


def socket_path() -> str:
    """A new path for a socket."""
    return str(Path(mkdtemp(prefix="vhost-user-")) / "port.sock")


def remove(path: str) -> None:
    """It and its directory."""
    Path(path).unlink(missing_ok=True)
    os.rmdir(Path(path).parent)
