"""A driver on a hostile device: junk in every register, answer, used entry and received packet.

The input is a tape from which the device reads what to do next. Whatever it does, the driver ends in a declared
error or carries on, and never reads or writes outside its memory; a tape that has ended leaves an honest device.
"""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

from harness import Target, fuzz

from virtio_ipsec.driver import Driver, DriverConfig
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.errors import RingError, TransportError, VirtioIpsecError
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.queue import device_queue
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.flow_filter import FfActionCap, FfResourceCap, FfSelectorCap, Selector
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSa, IpsecSaCap, ModeCap

BASE, SIZE = 0x10000, 2 << 20
KEY = bytes(range(0x60, 0x70))
FRAME = bytes(12) + bytes.fromhex("08004500001c000000004011000a0a0000010a0000020007000700080000")
SELECTORS = FfSelectorCap(
    tuple(Selector(kind, 0, b"\xff" * n) for kind, n in ((1, 14), (2, 20), (3, 40), (4, 20), (5, 8), (6, 8)))
)


class Tape:
    """Decisions of the device; 0 for ever after the end, which is the honest choice everywhere."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def lies(self) -> bool:
        """Rarely, so that some tapes come far."""
        return self.byte() >= 0xF0

    def junk(self, most: int) -> bytes:
        length = self.byte() % (most + 1)
        self.at += length
        return self.data[self.at - length : self.at].ljust(length, b"\xa5")


class Hostile:
    """A Link whose device side is ours, honest but for what the tape says."""

    def __init__(self, tape: Tape, dialect: Dialect) -> None:
        self.tape = tape
        self.dialect = dialect
        self.memory = GuestMemory.anonymous(SIZE, BASE)
        self.allocator = Allocator(BASE, SIZE)
        self.word = self.state = 0
        self.queues: dict[int, DeviceQueue] = {}
        self.layouts: dict[int, QueueLayout] = {}
        self.sent = 0
        self.caps: dict[int, bytes] = {
            number: dialect.capabilities[number].build(value)  # type: ignore[arg-type]
            for number, value in (
                (0x800, FfResourceCap(2, 4, 8, 8, 7, 3)),
                (0x801, SELECTORS),
                (0x802, FfActionCap((1, 2, 3, 4))),
                (0x803, IpsecResourceCap(3, 3)),
                (0x804, IpsecSaCap(tuple(ModeCap(n, 64, 0x3, 8, 16, 2, 32, 32) for n in (1, 2)))),
            )
        }

    def number(self, honest: int, size: int = 4) -> int:
        """``honest``, or any number of ``size`` bytes."""
        return int.from_bytes(self.tape.junk(size), "little") if self.tape.lies() else honest

    def transport_features(self) -> int:
        return self.number(SUPPORTED, 16)

    def device_features(self) -> int:
        return self.number(SUPPORTED & ~(self.tape.byte() << 0) & ~(self.tape.byte() << 28), 16)

    def write_driver_features(self, word: int) -> None:
        self.word = word

    def driver_features(self) -> int:
        return self.word

    def status(self) -> int:
        return self.number(self.state, 1)

    def write_status(self, value: int) -> None:
        self.state = value
        if value == 0:
            self.queues.clear()

    def config_generation(self) -> int:
        return self.number(1, 1)

    def read_config(self, offset: int, length: int) -> bytes:
        whole = bytes.fromhex("020000000001 0100 0200 2823 ffffffff ff 28 8000 3f000000 00000000")
        return self.tape.junk(length) if self.tape.lies() else whole[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        raise AssertionError("BAS-INIT-06")

    def num_queues(self) -> int:
        return self.number(5, 2)

    def admin_queue_index(self) -> int:
        return self.number(5, 2)

    def admin_queue_num(self) -> int:
        return self.number(1, 2)

    def queue_max_size(self, index: int) -> int:
        return self.number(16, 2)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        assert index not in self.queues
        self.layouts[index] = layout
        self.queues[index] = device_queue(self.memory, layout, self.word)

    def reset_queue(self, index: int) -> None:
        del self.queues[index]

    def interrupts(self) -> set[int]:
        return set()

    def poll(self, timeout: float) -> None:
        pass

    def kick(self, index: int) -> None:
        """Serve the queue; now and then fail to hear, or scribble over the used ring."""
        assert self.state & 4, "BAS-INIT-09"
        if self.tape.lies():
            if self.tape.byte() & 1:
                raise TransportError("the kick got lost")
            layout, junk = self.layouts[index], self.tape.junk(64)
            self.memory.write(layout.device, junk)
            return
        if index in (0, 2) and index != self._control():
            return
        queue = self.queues[index]
        try:
            while (chain := queue.pop()) is not None:
                data = chain.read(self.memory)
                answer = self._answer(index, data)
                if answer is None:
                    return
                queue.push(chain, chain.write(self.memory, answer))
        except RingError:
            return  # scribbles of ours

    def _control(self) -> int:
        return 4 if self.word & (1 << 22 | 1 << 60) else 2

    def _answer(self, index: int, data: bytes) -> bytes | None:
        if index == self._control():
            return self.tape.junk(2) if self.tape.lies() else b"\0"
        if index % 2 and index < self._control():
            self.sent += 1
            return b""
        if self.tape.lies():
            return self.tape.junk(80) if self.tape.byte() & 1 else None
        opcode = data[0]
        if opcode == 0:
            return bytes(8) + (0x3F83).to_bytes(8, "little")
        if opcode == 7:
            return bytes(8 + 256) + b"\x1f" + bytes(7)
        if opcode == 8:
            cap = bytearray(self.caps[int.from_bytes(data[24:26], "little")])
            if self.tape.lies():
                cap[self.tape.byte() % len(cap)] = self.tape.byte()
            return bytes(8) + bytes(cap)
        return bytes(8)

    def deliver(self) -> None:
        """Something arrives: a packet cut or spread at will, with any header."""
        queue = self.queues.get(0)
        if queue is None:
            return
        try:
            for _ in range(self.tape.byte() % 4):
                if (chain := queue.pop()) is None:
                    return
                header = self.tape.junk(32).ljust(32, b"\0")
                queue.push(chain, chain.write(self.memory, header + self.tape.junk(200)))
        except RingError:
            return


def shows_no_key(error: VirtioIpsecError) -> None:
    assert KEY.hex() not in str(error)


def work(driver: Driver, link: Hostile, tape: Tape) -> None:
    """What a user of the driver might do, in an order that the tape chooses."""
    sa = IpsecSa(2, 0, 7, b"salt", replay_win_sz=32, cipher_algo=1, cipher_key=KEY, options=tape.byte() & 3)
    handles: list[Any] = []
    for _ in range(12):
        action = tape.byte() % 10
        try:
            if action == 0:
                handles.append(driver.sas.create_outbound(sa))
            elif action == 1:
                handles.append(driver.sas.create_inbound(sa))
            elif action == 2 and handles:
                driver.flows.protect(handles[-1])
            elif action == 3 and handles:
                driver.rekey_outbound(handles[-1], sa)
            elif action == 4 and handles:
                driver.destroy_inbound(handles.pop())
            elif action == 5:
                driver.control.receive_mode(0, True)  # type: ignore[arg-type]
            elif action == 6 and handles:
                driver.sas.query(handles[-1])
            elif action == 7:
                driver.reset_pair(0)
            else:
                driver.send(FRAME, handles[-1] if handles and action == 8 else None)
        except VirtioIpsecError as error:
            shows_no_key(error)
        link.deliver()
        for packet in driver.receive():
            assert not (packet.error and packet.protected)
            assert packet.sa is None or packet.sa.inbound
        for handle in driver.sas.all() if handles else ():
            assert 0 <= handle.in_flight <= 16


def run(dialect: Dialect, data: bytes) -> None:
    tape = Tape(data)
    link = Hostile(tape, dialect)
    config = DriverConfig(
        queue_pairs=2, queue_size=16, receive_buffers=4, polls=1, poll_timeout=0.0, retries=2,
        inbound_sas=3, outbound_sas=3,
    )  # fmt: skip
    driver = Driver(link, dialect, config=config)
    try:
        driver.start()
        work(driver, link, tape)
    finally:
        # The device may lie no more: then nothing is left behind.
        tape.data = b""
        driver.stop()
        assert KEY not in link.memory.read(BASE, SIZE)
        assert link.allocator.alloc(SIZE - 4096, 16)


def script(rng: random.Random) -> bytes:
    tape = bytearray(rng.randbytes(rng.randrange(400)))
    for at in range(len(tape)):
        if tape[at] >= 0xF0 and rng.random() < 0.9:
            tape[at] &= 0x7F
    header = struct.pack("<BBHHHHH", rng.choice((0, 1, 16, 48)), rng.choice((0, 1, 5)), 54, 100, 34, 6, 1)
    return bytes(tape) + b"\x01\x20" + header.ljust(32, b"\0") + b"\x40" + FRAME


TARGETS = tuple(
    Target(dialect.name, script, lambda data, d=dialect: run(d, data))  # type: ignore[misc]
    for dialect in (V14, RFC_2025_01)
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
