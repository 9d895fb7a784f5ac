"""A virtio PCI function written out by hand, offset by offset, in front of the embedded device: what the link is held
against. It keeps a trace of every access, and does as it is told where a test wants it otherwise."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.virtio_pci.access import RegionInfo

#: Where the structures lie in BAR 4; one doorbell is four bytes.
COMMON, ISR, DEVICE, NOTIFY, BAR_SIZE = 0x000, 0x100, 0x200, 0x1000, 0x2000
NET = struct.pack("<6sHHHIBBHII", bytes.fromhex("525400000070"), 1, 8, 1500, 0xFFFFFFFF, 0xFF, 0, 0, 0, 0)


@dataclass(frozen=True)
class Trace:
    """One access: ``verb`` is read or write, ``value`` what was written or read, ``offset`` in the region."""

    verb: str
    region: int
    offset: int
    data: bytes

    @property
    def value(self) -> int:
        return int.from_bytes(self.data, "little")


@dataclass
class Memory:
    """The loopback's memory, which its device reaches anyway."""

    memory: GuestMemory
    allocator: Allocator
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


def capability(
    kind: int, at: int, following: int, offset: int, length: int, extra: bytes = b"", bar: int = 4
) -> bytes:
    """A ``struct virtio_pci_cap`` (virtio v1.4 4.1.4) and what follows it."""
    return struct.pack("<BBBBB3xII", 0x09, following, 16 + len(extra), kind, bar, offset, length) + extra


@dataclass
class Function:
    """``vectors`` of MSI-X, 0: none. ``mapped``: the doorbells are in memory, ``bells``: they are eventfds."""

    vectors: int = 64
    mapped: bool = False
    bells: bool = False
    name: str = "handmade"
    trace: list[Trace] = field(default_factory=list)
    config: bytearray = field(default_factory=lambda: bytearray(256))
    #: Offset in the common configuration -> what reads there, whatever the device says.
    lies: dict[int, int] = field(default_factory=dict)
    notify_length: int = 0x1000
    is_closed: bool = False
    extra_features: int = 0

    def __post_init__(self) -> None:
        self.device = Device(DeviceConfig(), os.urandom)
        self.loop = Loopback(self.device, memory_size=8 << 20)
        self.irqs: dict[int, list[int | None]] = {}
        self.unmasked = 0
        self.notify_page = mmap.mmap(-1, 0x1000)
        self.fds: dict[int, int] = {}
        self.resets = 0
        self.power_on()

    def power_on(self) -> None:
        """Everything as after a reset of the function."""
        self.loop.write_status(0)
        self.words = {"dfs": 0, "gfs": 0, "sel": 0, "cvec": 0xFFFF}
        self.driver = [0, 0, 0, 0]
        self.queues: dict[int, dict[str, int]] = {}
        self.isr = 0
        self.queue_resets: dict[int, int] = {}
        self.config[:] = bytes(256)
        struct.pack_into("<HHHH", self.config, 0, 0x1AF4, 0x1041, 0, 0x10)
        self.config[0x34] = 0x40
        multiplier = struct.pack("<I", 4)
        self.put(0x40, capability(1, 0x40, 0x50, COMMON, 64))
        self.put(0x50, capability(3, 0x50, 0x60, ISR, 1))
        self.put(0x60, capability(4, 0x60, 0x70, DEVICE, 28))
        self.put(0x70, capability(2, 0x70, 0x84, NOTIFY, self.notify_length, multiplier))
        if self.vectors:
            self.put(0x84, struct.pack("<BBHII", 0x11, 0, self.vectors - 1, 1, 1 | 0x800))
        else:
            self.config[0x71] = 0

    def put(self, at: int, data: bytes) -> None:
        self.config[at : at + len(data)] = data

    # Access.

    def region_info(self, region: int) -> RegionInfo:
        sizes = {4: BAR_SIZE, 7: 256}
        areas = ((NOTIFY, 0x1000),) if region == 4 and self.mapped else ()
        return RegionInfo(sizes.get(region, 0), True, True, areas)

    def read(self, region: int, offset: int, length: int) -> bytes:
        data = self._read(region, offset, length)
        assert len(data) == length, (region, offset, length)
        self.trace.append(Trace("read", region, offset, data))
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.trace.append(Trace("write", region, offset, data))
        if region == 7:
            self.put(offset, data)
        elif offset >= NOTIFY:
            self.notified((offset - NOTIFY) // 4, data)
        elif offset < 64:
            self._common_write(offset, int.from_bytes(data, "little"))

    def map_region(self, region: int, offset: int, length: int) -> memoryview | None:
        return (
            memoryview(self.notify_page)[offset - NOTIFY : offset - NOTIFY + length] if self.mapped else None
        )

    def doorbell(self, region: int, offset: int, length: int, value: int | None = None) -> int | None:
        if not self.bells:
            return None
        index = (offset - NOTIFY) // 4
        return self.fds.setdefault(index, os.eventfd(0, os.EFD_NONBLOCK))

    def new_memory(self, size: int) -> Memory:
        self.memory = Memory(self.loop.memory, self.loop.allocator)
        return self.memory

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None:
        raise AssertionError

    def unmap_dma(self, iova: int, size: int) -> None:
        raise AssertionError

    def irq_count(self, index: int) -> int:
        return {0: 1, 2: self.vectors}.get(index, 0)

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        self.irqs[index] = [*eventfds]

    def unmask_irq(self, index: int) -> None:
        self.unmasked += 1

    def reset(self) -> None:
        self.resets += 1
        self.power_on()
        self.irqs.clear()

    def reconnect(self) -> None:
        self.reset()

    def filenos(self) -> tuple[int, ...]:
        return ()

    def serve(self) -> None:
        return

    def close(self) -> None:
        self.is_closed = True
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    # The device.

    def ring(self, vector: int) -> None:
        fds = self.irqs.get(2 if self.vectors else 0, [])
        target = fds[vector] if vector < len(fds) else None
        if target is not None:
            os.eventfd_write(target, 1)

    def notified(self, index: int, data: bytes) -> None:
        """A doorbell: the device works, and interrupts for what it has used."""
        del data
        self.loop.kick(index)
        self.signal()

    def signal(self) -> None:
        for queue in self.loop.interrupts():
            self.isr |= 1
            self.ring(self.queues[queue]["vector"] if self.vectors else 0)

    def config_changed(self) -> None:
        self.isr |= 2
        self.ring(self.words["cvec"] if self.vectors else 0)

    def _queue(self) -> dict[str, int] | None:
        index = self.words["sel"]
        size = self.loop.queue_max_size(index)
        if not size:
            return None
        new = {"size": size, "vector": 0xFFFF, "enable": 0, "desc": 0, "driver": 0, "device": 0}
        return self.queues.setdefault(index, new)

    def _read(self, region: int, offset: int, length: int) -> bytes:
        if region == 7:
            return bytes(self.config[offset : offset + length])
        if region != 4 or offset + length > BAR_SIZE:
            return b""
        if offset == ISR:
            value, self.isr = self.isr, 0
            return bytes([value])
        if offset >= DEVICE:
            return (NET + bytes(64))[offset - DEVICE :][:length]
        return self._common_read(offset).to_bytes(length, "little")

    def _common_read(self, offset: int) -> int:
        if offset in self.lies:
            return self.lies[offset]
        words, queue = self.words, self._queue()
        offered = self.loop.device_features() | self.extra_features
        shown = words["dfs"], words["gfs"]
        if queue and 0x20 <= offset < 0x38:
            name = ("desc", "driver", "device")[(offset - 0x20) // 8]
            return queue[name] >> 8 * ((offset - 0x20) % 8) & 0xFFFFFFFF
        return {
            0x00: shown[0],
            0x04: offered >> 32 * shown[0] & 0xFFFFFFFF,
            0x08: shown[1],
            0x0C: self.driver[shown[1]] if shown[1] < 4 else 0,
            0x10: words["cvec"],
            0x12: self.loop.num_queues(),
            0x14: self.loop.status(),
            0x15: self.loop.config_generation(),
            0x16: words["sel"],
            0x18: queue["size"] if queue else 0,
            0x1A: queue["vector"] if queue else 0xFFFF,
            0x1C: queue["enable"] if queue else 0,
            0x1E: words["sel"],
            0x38: 0x4000 | words["sel"],
            0x3A: self._queue_reset(),
            0x3C: self.loop.admin_queue_index(),
            0x3E: self.loop.admin_queue_num(),
        }[offset]

    def _queue_reset(self) -> int:
        """Reads 1 as often as the test wants."""
        left = self.queue_resets.get(self.words["sel"], 0)
        self.queue_resets[self.words["sel"]] = max(left - 1, 0)
        return int(left > 0)

    def _common_write(self, offset: int, value: int) -> None:
        words, queue = self.words, self._queue()
        if offset in (0x00, 0x08, 0x16):
            words[{0x00: "dfs", 0x08: "gfs", 0x16: "sel"}[offset]] = value
        elif offset == 0x0C:
            self.driver[words["gfs"]] = value
            word = sum(part << 32 * number for number, part in enumerate(self.driver))
            self.loop.write_driver_features(word & ~self.extra_features)
        elif offset == 0x10:
            words["cvec"] = value if value < self.vectors else 0xFFFF
        elif offset == 0x14:
            self.loop.write_status(value)
            if not value:
                self.queues.clear()
                words["cvec"] = 0xFFFF
        elif queue is not None:
            self._queue_write(queue, offset, value)

    def _queue_write(self, queue: dict[str, int], offset: int, value: int) -> None:
        index = self.words["sel"]
        if offset == 0x18:
            queue["size"] = value
        elif offset == 0x1A:
            queue["vector"] = value if value < self.vectors else 0xFFFF
        elif offset == 0x1C and value == 1:
            queue["enable"] = 1
            layout = QueueLayout(queue["size"], queue["desc"], queue["driver"], queue["device"])
            self.loop.enable_queue(index, layout)
        elif offset == 0x3A and value == 1:
            self.loop.reset_queue(index)
            queue["enable"] = 0
            self.queue_resets.setdefault(index, 0)
        elif 0x20 <= offset < 0x38:
            name = ("desc", "driver", "device")[(offset - 0x20) // 8]
            shift = 8 * ((offset - 0x20) % 8)
            queue[name] = queue[name] & ~(0xFFFFFFFF << shift) | value << shift
