"""A device of a hundred lines, written from the specification alone: it shares no ring and no codec with us.

It plays what a test prepares, byte for byte, and keeps a trace of what the driver does to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from virtio_ipsec.driver import Driver, DriverConfig
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.tunnel import TunnelIPv4

VERSION_1, RING_RESET, ADMIN_VQ = 1 << 32, 1 << 40, 1 << 41
CSUM, GUEST_CSUM, MTU, MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
OUT_NET_HEADER, IPSEC = 1 << 69, 1 << 70
BASE = VERSION_1 | ADMIN_VQ | OUT_NET_HEADER | IPSEC | MAC

LIST_QUERY, LIST_USE, CAP_LIST, CAP_GET, CAP_SET = 0, 1, 7, 8, 9
CREATE, QUERY, MODIFY, DESTROY = 0xA, 0xB, 0xC, 0xD

OK = bytes(8)


def caps() -> dict[int, bytes]:
    """What the fake device's DEVICE_CAP_GET answers, laid out by hand."""
    mode = "<B3xIIIQQIII"
    modes = b"".join(
        struct.pack(mode, number, 1024, options, 0, cipher, hmac, aead, 32 if cipher else 0, 32)
        for number, options, cipher, hmac, aead in (
            (1, 0x7F, 0x19, 0x14, 0xE),
            (2, 0x43, 0x19, 0x14, 0xE),
            (4, 0x41, 0, 0x14, 0),
        )
    )
    selectors = b"".join(
        struct.pack("<BB2xB3x", kind, 0, length) + b"\xff" * length
        for kind, length in ((1, 14), (2, 20), (3, 40), (4, 20), (5, 8), (6, 8))
    )
    return {
        0x800: struct.pack("<IIIIBB2x", 2, 8, 16, 12, 9, 3),
        0x801: struct.pack("<B7x", 6) + selectors,
        0x802: struct.pack("<B7x", 4) + bytes((1, 2, 3, 4)),
        0x803: struct.pack("<II", 4, 5),
        0x804: struct.pack("<B7x", 3) + modes,
    }


class FakeDevice:
    """A Link with the device's side of split rings in it."""

    def __init__(self, offered: int = BASE) -> None:
        self.memory = GuestMemory.anonymous(16 << 20, 0x10000)
        self.allocator = Allocator(0x10000, 16 << 20)
        self.offered = offered
        self.carried = ADMIN_VQ | RING_RESET
        self.accepts: Callable[[int], bool] = lambda _word: True
        self.trace: list[tuple[str, Any]] = []
        self.config = bytes.fromhex("020000000001 0100 0400 dc05 ffffffff ff 28 8000 3f000000 00000000")
        self.generations: list[int] = []
        self.config_reads: list[tuple[int, int]] = []
        self.polls = 0
        self.sizes: dict[int, int] = {}
        self.reset_delay = 0
        self.caps = caps()
        self.opcodes = 0x3F83
        self.cap_bits = 0x1F
        self.replies: dict[int, list[bytes | None]] = {}
        self.commands: list[bytes] = []
        self.controls: list[bytes] = []
        self.control_ack: bytes = b"\0"
        self.sent: list[bytes] = []
        self.hold = False
        self._word = self._status = 0
        self._clear()

    def _clear(self) -> None:
        self.queues: dict[int, Any] = {}
        self.seen: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.held: list[int] = []

    # Registers.

    def transport_features(self) -> int:
        return self.carried

    def device_features(self) -> int:
        return self.offered

    def write_driver_features(self, word: int) -> None:
        self.trace.append(("features", word))
        self._word = word

    def driver_features(self) -> int:
        return self._word

    def status(self) -> int:
        if self._status < 0:
            self._status += 1
            return 0x80
        return self._status

    def write_status(self, value: int) -> None:
        self.trace.append(("status", value))
        if value == 0:
            self._clear()
            self._status = -self.reset_delay
            return
        if value & 8 and not self.accepts(self._word):
            value &= ~8
        self._status = value

    def config_generation(self) -> int:
        return self.generations.pop(0) if self.generations else 7

    def read_config(self, offset: int, length: int) -> bytes:
        self.config_reads.append((offset, length))
        return self.config[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        self.trace.append(("config", (offset, data)))

    def num_queues(self) -> int:
        return 9

    def admin_queue_index(self) -> int:
        return 9

    def admin_queue_num(self) -> int:
        return 1

    def queue_max_size(self, index: int) -> int:
        return self.sizes.get(index, 64)

    def enable_queue(self, index: int, layout: Any) -> None:
        self.trace.append(("enable", index))
        self.queues[index], self.seen[index], self.used[index] = layout, 0, 0

    def reset_queue(self, index: int) -> None:
        self.trace.append(("reset_queue", index))
        del self.queues[index]

    def interrupts(self) -> set[int]:
        return set()

    def poll(self, timeout: float) -> None:
        self.polls += 1

    # Rings (virtio v1.4 2.7), by hand.

    def kick(self, index: int) -> None:
        self.trace.append(("kick", index))
        if index == 9:
            self._serve(index, self._admin)
        elif index % 2 == 0 and index >= 2 and self._is_control(index):
            self._serve(index, self._control)
        elif index % 2:
            self._transmit(index)

    def _is_control(self, index: int) -> bool:
        many = self._word & (1 << 22 | 1 << 60)
        return index == (8 if many else 2)

    def take(self, index: int) -> tuple[int, bytes, list[tuple[int, int]]] | None:
        """The next available chain: head, readable bytes, writable (address, length)."""
        queue = self.queues[index]
        at = self.seen[index]
        if at == self.memory.u16(queue.driver + 2):
            return None
        self.seen[index] = at + 1 & 0xFFFF
        head = number = self.memory.u16(queue.driver + 4 + 2 * (at % queue.size))
        readable, writable = b"", []
        while True:
            address, length, flags, following = struct.unpack(
                "<QIHH", self.memory.read(queue.desc + 16 * number, 16)
            )
            if flags & 2:
                writable.append((address, length))
            else:
                assert not writable, "FRM-02: a readable descriptor after a writable one"
                readable += self.memory.read(address, length)
            if not flags & 1:
                return head, readable, writable
            number = following

    def finish(self, index: int, head: int, written: int) -> None:
        queue, at = self.queues[index], self.used[index]
        self.memory.write(queue.device + 4 + 8 * (at % queue.size), struct.pack("<II", head, written))
        self.used[index] = at + 1 & 0xFFFF
        self.memory.put_u16(queue.device + 2, self.used[index])

    def _serve(self, index: int, answer: Callable[[bytes, int], bytes | None]) -> None:
        while (chain := self.take(index)) is not None:
            head, readable, writable = chain
            data = answer(readable, sum(length for _, length in writable))
            if data is None:
                continue
            for address, length in writable:
                # A stale buffer: only what the used length covers is the answer (AVQ-DRV-05).
                self.memory.write(address, b"\xaa" * length)
                self.memory.write(address, data[:length])
            self.finish(index, head, min(len(data), sum(length for _, length in writable)))

    def _admin(self, readable: bytes, room: int) -> bytes | None:
        self.commands.append(readable)
        self.trace.append(("admin", readable[0]))
        opcode = int.from_bytes(readable[:2], "little")
        queued = self.replies.get(opcode)
        if queued:
            return queued.pop(0)
        if opcode == LIST_QUERY:
            return OK + self.opcodes.to_bytes(8, "little")
        if opcode == CAP_LIST:
            return OK + bytes(256) + self.cap_bits.to_bytes(8, "little")
        if opcode == CAP_GET:
            cap = self.caps[int.from_bytes(readable[24:26], "little")]
            return OK + cap + bytes(-len(cap) % 8)
        return OK

    def _control(self, readable: bytes, room: int) -> bytes:
        self.controls.append(readable)
        return self.control_ack

    def _transmit(self, index: int) -> None:
        while (chain := self.take(index)) is not None:
            head, readable, _ = chain
            self.sent.append(readable)
            if self.hold:
                self.held.append(head)
            else:
                self.finish(index, head, 0)

    def let_go(self, index: int = 1) -> None:
        """Complete the packets that were held back."""
        for head in self.held:
            self.finish(index, head, 0)
        self.held = []

    def deliver(self, *parts: bytes, queue: int = 0) -> None:
        """Use one receive buffer for each part."""
        for part in parts:
            chain = self.take(2 * queue)
            assert chain is not None, "no receive buffer posted"
            self.memory.write(chain[2][0][0], part)
            self.finish(2 * queue, chain[0], len(part))

    def opcodes_seen(self) -> list[int]:
        return [int.from_bytes(each[:2], "little") for each in self.commands]


@pytest.fixture
def fake() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def start() -> Callable[..., Driver]:
    """Starts a driver on a fake device that offers the base features and ``extra``."""

    def begin(fake: FakeDevice, extra: int = 0, dialect: Any = V14, **settings: Any) -> Driver:
        fake.offered |= extra
        settings.setdefault("poll_timeout", 0.0)
        settings.setdefault("polls", 3)
        settings.setdefault("receive_buffers", 8)
        driver = Driver(fake, dialect, config=DriverConfig(**settings))
        driver.start()
        fake.commands.clear()
        return driver

    return begin


@pytest.fixture
def gcm() -> IpsecSa:
    """An ESP tunnel SA with AES-128-GCM; direction and obj_id are the driver's to fill in."""
    return IpsecSa(
        mode=1,
        direction=0,
        spi=0x11223344,
        salt=b"\xa0\xa1\xa2\xa3",
        replay_win_sz=64,
        cipher_algo=1,
        cipher_key=bytes(range(16)),
        param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2")),
    )
