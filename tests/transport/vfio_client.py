"""A client's side of vfio-user, its bytes packed by hand, for scripted conversations; and a host with a function behind
such a connection."""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import Any

import front_end
from functions import BASE, Host
from served import Bench, has_ended

from virtio_ipsec.transport.vfio_user.server import VfioUserServer

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS = 1, 2, 3, 4, 5, 6, 7, 8
READ, WRITE, DMA_READ, DMA_WRITE, RESET, WRITE_MULTI, FEATURE, MIG_READ, MIG_WRITE = (
    9,
    10,
    11,
    12,
    13,
    15,
    16,
    17,
    18,
)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX = 0, 1, 2
PROPOSAL = (
    b'{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535,'
    b' "migration": {"pgsize": 4096}, "write_multiple": true}}\0'
)


class Client:
    """One connection to a server whose loop the bench turns."""

    def __init__(self, bench: Bench, path: str) -> None:
        self.bench = bench
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.number = 0
        self.fds: list[int] = []

    def close(self) -> None:
        self.sock.close()
        self.drop()

    def drop(self) -> None:
        """Close the descriptors that came with the last answer."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def raw(self, data: bytes, *fds: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary)

    def say(self, command: int, payload: bytes = b"", *fds: int, flags: int = 0) -> None:
        """One message, and nothing is waited for."""
        self.number = self.number + 1 & 0xFFFF
        self.raw(struct.pack("<HHIII", self.number, command, 16 + len(payload), flags, 0) + payload, *fds)

    def hear(self) -> tuple[int, int, int, int, bytes]:
        """The next message: number, command, flags, errno and payload."""
        data = b""
        self.drop()

        def whole() -> bool:
            nonlocal data
            try:
                most = 16 - len(data) if len(data) < 16 else struct.unpack_from("<I", data, 4)[0] - len(data)
                piece, ancillary, _, _ = self.sock.recvmsg(most, socket.CMSG_SPACE(80))
            except BlockingIOError:
                return False
            assert piece, "the server has closed the connection"
            for _, _, content in ancillary:
                self.fds.extend(array.array("i", content))
            data += piece
            return len(data) >= 16 and len(data) == struct.unpack_from("<I", data, 4)[0]

        self.bench.until(whole)
        number, command, _, flags, error = struct.unpack_from("<HHIII", data)
        return number, command, flags, error, data[16:]

    def ask(self, command: int, payload: bytes = b"", *fds: int) -> bytes:
        """A command that is obeyed: the payload of its answer."""
        self.say(command, payload, *fds)
        number, heard, flags, error, answer = self.hear()
        assert (number, heard, flags, error) == (self.number, command, 1, 0)
        return answer

    def refused(self, command: int, payload: bytes = b"", *fds: int) -> int:
        """A command that is not: its errno."""
        self.say(command, payload, *fds)
        number, heard, flags, error, answer = self.hear()
        assert (number, heard, flags, answer) == (self.number, command, 0x21, b"")
        return error

    def is_closed(self) -> bool:
        """Whether the server closes the connection; whatever it still says is not looked at."""
        self.bench.until(lambda: has_ended(self.sock))
        return True

    # What clients say.

    def version(self, data: bytes = PROPOSAL, major: int = 0, minor: int = 1) -> bytes:
        return self.ask(VERSION, struct.pack("<HH", major, minor) + data)

    def map(self, fd: int | None, address: int, size: int, offset: int = 0, flags: int = 3) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, address, size)
        assert self.ask(DMA_MAP, payload, *([] if fd is None else [fd])) == b""

    def unmap(self, address: int, size: int, flags: int = 0) -> None:
        payload = struct.pack("<IIQQ", 24, flags, address, size)
        assert self.ask(DMA_UNMAP, payload) == payload

    def set_irqs(self, index: int, start: int, count: int, flags: int, *fds: int, data: bytes = b"") -> None:
        payload = struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data
        assert self.ask(SET_IRQS, payload, *fds) == b""

    # As a function.

    def read(self, region: int, offset: int, length: int) -> bytes:
        place = struct.pack("<QII", offset, region, length)
        answer = self.ask(READ, place)
        assert (answer[:16], len(answer)) == (place, 16 + length)
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        place = struct.pack("<QII", offset, region, len(data))
        assert self.ask(WRITE, place + data) == place


class RemoteHost(Host):
    """A host whose function is behind a connection. ``connect``: at once, with version and memory."""

    def __init__(self, *arguments: Any, connect: bool = True, **options: Any) -> None:
        super().__init__(*arguments, memory=False, **options)
        self.path = front_end.socket_path()
        self.local = self.function
        self.server = VfioUserServer(self.local, self.path, penalty=0)
        self.clients: list[Client] = []
        if connect:
            self.attach(self.dial())

    def dial(self) -> Client:
        client = Client(self.bench, self.path)
        self.clients.append(client)
        return client

    def attach(self, client: Client) -> None:
        """This client is the one whose driver is at work."""
        self.client = client
        self.function = client  # type: ignore[assignment]
        client.version()
        client.map(self.guest.fd, BASE, self.guest.size)

    def counter(self, name: str) -> int:
        return self.port.counters()[name]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.close()
        self.function = self.local
        front_end.remove(self.path)
        super().close()
