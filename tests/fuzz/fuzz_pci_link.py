"""The driver's side of virtio-pci in front of hostile functions: junk in configuration space and registers, and a
vfio-user server that answers with junk. What comes out is a link that works or a declared error, in bounded time.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "transport"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handmade_function import Function
from handmade_server import Server
from harness import Target, fuzz

from virtio_ipsec.driver import Driver, DriverConfig
from virtio_ipsec.errors import TransportError, VirtioIpsecError
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.virtio_pci.access import RegionInfo
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.owner import find_sriov

CONFIG = DriverConfig(queue_pairs=2, receive_buffers=2, polls=2, poll_timeout=0.0, retries=1)
QUICK = Options(memory=1 << 20, patience=0.01)
#: One device for all runs: it is honest, and a reset makes it as new.
FUNCTION = Function()


class Tampered(Function):
    """Its configuration space, or what registers read, is somebody else's."""

    def __init__(self, config: bytes = b"", answers: bytes = b"") -> None:
        self.__dict__.update(FUNCTION.__dict__)
        self.power_on()
        self.trace = []
        self.answers, self.at = answers, 0
        self.config = bytearray(4096)
        self.config[: len(FUNCTION.config)] = FUNCTION.config
        self.config[: len(config)] = config[:4096]

    def region_info(self, region: int) -> RegionInfo:
        return RegionInfo(4096) if region == 7 else super().region_info(region)

    def read(self, region: int, offset: int, length: int) -> bytes:
        """What the function says, unless the next byte of the input is large: then more of the input."""
        data = bytes(length)
        with suppress(KeyError, OverflowError, IndexError):  # it was written for drivers that find their way
            data = self._read(region, offset, length).ljust(length, b"\0")[:length]
        if region != 7 and self.at < len(self.answers):
            lies = self.answers[self.at] >= 0xF0
            self.at += 1
            if lies:
                data = self.answers[self.at : self.at + length].ljust(length, b"\xff")
                self.at += length
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        with suppress(VirtioIpsecError, KeyError, IndexError):
            super().write(region, offset, data)


def drive(function: Tampered) -> None:
    link = PciLink(function, QUICK)
    try:
        find_sriov(function)
        driver = Driver(link, config=CONFIG)
        driver.start()
        driver.send(bytes.fromhex("ffffffffffff525400000070") + b"\x88\xb5" + bytes(46))
        link.interrupts()
        driver.receive()
        link.read_config(0, 28)
        link.reset_queue(0)
        driver.stop()
    finally:
        link.close()


def conversation() -> bytes:
    """What a server sends while a client looks at all of its function."""
    server = Server()
    said: list[bytes] = []
    send = server.send

    def kept(sock: socket.socket, head: tuple[int, int, int, int], payload: bytes, fds: list[int]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(ours, head, payload, fds)
            said.append(theirs.recv(1 << 16))
        send(sock, head, payload, fds)

    server.send = kept  # type: ignore[method-assign]
    look(VfioUserFunction(server.connect))
    server.close()
    return b"".join(said)


def look(client: VfioUserFunction) -> None:
    try:
        for region in range(9):
            info = client.region_info(region)
            client.map_region(region, 0, 4)
            client.doorbell(region, 0, 2)
            assert info.size >= 0
        assert len(client.read(7, 0, 256)) == 256
        for index in range(5):
            client.irq_count(index)
        client.set_irqs(2, 0, [])
        with suppress(TransportError):
            client.new_memory(4096).close()
        client.serve()
    finally:
        client.close()


def answered(data: bytes) -> None:
    """All answers are there before they are asked for, and then the server is gone."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            ours.sendall(data[: 1 << 16])
        ours.shutdown(socket.SHUT_WR)
        look(VfioUserFunction(lambda: theirs, patience=0.2))


CONVERSATION = conversation()
TARGETS = (
    Target("config", seed=lambda rng: bytes(FUNCTION.config), run=lambda data: drive(Tampered(config=data))),
    Target(
        "registers",
        seed=lambda rng: bytes(rng.choice((0, 0, 0, 0, 0xFF)) for _ in range(rng.randrange(1, 400))),
        run=lambda data: drive(Tampered(answers=data)),
    ),
    Target("answers", seed=lambda rng: CONVERSATION, run=answered),
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
