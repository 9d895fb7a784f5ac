"""A PCI function in front of a served port, and a driver that reads and writes its registers one by one."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from served import BASE, PLAIN, QUEUE, Bench, shared, until

from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.tables import (
    CapabilityId,
    Command,
    CommonCfg,
    Header,
    MsixCap,
    Region,
    Register,
    Structure,
    StructureCap,
)
from virtio_ipsec.wire.numbers import Feature, Status

__all__ = ["BASE", "PLAIN", "QUEUE", "Host"]


class Host:
    """Bench with a function: what a client does with regions, what a driver does with registers."""

    def __init__(
        self,
        features: int = PLAIN,
        *,
        engine: str = "auto",
        pairs: int = 1,
        offer: int = IMPLEMENTED,
        members: SriovGroup | None = None,
        virtual: bool = False,
        memory: bool = True,
        **config: object,
    ) -> None:
        self.bench = Bench(features, engine=engine, pairs=pairs, start=False, offer=offer, **config)
        self.guest, self.port, self.uplink = self.bench.guest, self.bench.port, self.bench.uplink
        self.function = PciFunction(self.port, members=members, virtual=virtual)
        self.until = self.bench.until
        if memory:
            self.function.set_memory(shared(self.guest.fd, self.guest.size))
        if not virtual:
            self.find()

    def close(self) -> None:
        self.function.close()
        self.bench.close()

    # Configuration space.

    def config(self, register: Register, base: int = 0) -> int:
        data = self.function.read(Region.CONFIG, base + register.offset, register.width)
        return int.from_bytes(data, "little")

    def set_config(self, register: Register, value: int, base: int = 0) -> None:
        data = value.to_bytes(register.width, "little")
        self.function.write(Region.CONFIG, base + register.offset, data)

    def capabilities(self) -> dict[int, list[int]]:
        """Capability id -> offsets."""
        found: dict[int, list[int]] = {}
        at = self.config(Header.CAPABILITY_LIST)
        while at:
            assert at % 4 == 0
            ident, following = self.function.read(Region.CONFIG, at, 2)
            found.setdefault(ident, []).append(at)
            at = following
        return found

    def extended(self) -> dict[int, int]:
        """Extended capability id -> offset."""
        found: dict[int, int] = {}
        at = tables.EXTENDED_CAPABILITIES
        while at:
            header = int.from_bytes(self.function.read(Region.CONFIG, at, 4), "little")
            if header:
                found[header & 0xFFFF] = at
            at = header >> 20
        return found

    def find(self) -> None:
        caps = self.capabilities()
        self.msix = caps[CapabilityId.MSIX][0]
        self.express = caps[CapabilityId.EXPRESS][0]
        self.structures: dict[int, StructureCap] = {}
        self.places: dict[int, int] = {}
        for at in caps[CapabilityId.VENDOR]:
            length = self.function.read(Region.CONFIG, at + 2, 1)[0]
            cap = StructureCap.parse(self.function.read(Region.CONFIG, at, length))
            assert cap is not None
            self.structures[cap.kind] = cap
            self.places[cap.kind] = at
        self.pci_cfg = self.places[Structure.PCI_CFG]

    def msix_on(self, *, mask_all: bool = False) -> None:
        size = self.config(MsixCap.CONTROL, self.msix) & tables.MSIX_SIZE_MASK
        bits = tables.MSIX_ENABLE | (tables.MSIX_MASK_ALL if mask_all else 0)
        self.set_config(MsixCap.CONTROL, size | bits, self.msix)

    # Structures.

    def get(self, register: CommonCfg) -> int:
        cap = self.structures[Structure.COMMON_CFG]
        return int.from_bytes(
            self.function.read(cap.bar, cap.offset + register.offset, register.width), "little"
        )

    def put(self, register: CommonCfg, value: int) -> None:
        cap = self.structures[Structure.COMMON_CFG]
        self.function.write(cap.bar, cap.offset + register.offset, value.to_bytes(register.width, "little"))

    def of_queue(self, index: int, register: CommonCfg) -> int:
        self.put(CommonCfg.queue_select, index)
        return self.get(register)

    def put_queue(self, index: int, register: CommonCfg, value: int) -> None:
        self.put(CommonCfg.queue_select, index)
        self.put(register, value)

    def isr(self) -> int:
        cap = self.structures[Structure.ISR_CFG]
        return self.function.read(cap.bar, cap.offset, 1)[0]

    def device_config(self, offset: int, length: int) -> bytes:
        cap = self.structures[Structure.DEVICE_CFG]
        return self.function.read(cap.bar, cap.offset + offset, length)

    def status(self) -> int:
        return self.get(CommonCfg.device_status)

    # A driver.

    def offered(self) -> int:
        word = 0
        for word_index in range(4):
            self.put(CommonCfg.device_feature_select, word_index)
            word |= self.get(CommonCfg.device_feature) << 32 * word_index
        return word

    def accept(self, word: int) -> None:
        for word_index in range(4):
            self.put(CommonCfg.driver_feature_select, word_index)
            self.put(CommonCfg.driver_feature, word >> 32 * word_index & 0xFFFFFFFF)

    def negotiate(self, word: int, *, ok: bool = True) -> None:
        self.set_config(Header.COMMAND, Command.MEMORY | Command.MASTER)
        self.put(CommonCfg.device_status, 0)
        status = int(Status.ACKNOWLEDGE)
        self.put(CommonCfg.device_status, status)
        status |= Status.DRIVER
        self.put(CommonCfg.device_status, status)
        self.accept(word)
        status |= Status.FEATURES_OK
        self.put(CommonCfg.device_status, status)
        assert bool(self.status() & Status.FEATURES_OK) == ok
        self.guest.features = word
        self.guest.header = self.port.device.context.header

    def ready(self) -> None:
        self.put(CommonCfg.device_status, self.status() | Status.DRIVER_OK)

    def enable(self, index: int, entries: int = QUEUE, vector: int | None = None) -> None:
        """A queue where the guest lays it out."""
        layout = self.guest.queue(index, entries)
        self.put(CommonCfg.queue_select, index)
        assert self.get(CommonCfg.queue_enable) == 0
        self.put(CommonCfg.queue_size, entries)
        for name, address in (("desc", layout.desc), ("driver", layout.driver), ("device", layout.device)):
            self.put(CommonCfg[f"queue_{name}_lo"], address & 0xFFFFFFFF)
            self.put(CommonCfg[f"queue_{name}_hi"], address >> 32)
        if vector is not None:
            self.put(CommonCfg.queue_msix_vector, vector)
        self.put(CommonCfg.queue_enable, 1)

    def start(self, extra: int = 0) -> None:
        """Negotiate, both queues of the first pair, receive buffers."""
        self.negotiate(PLAIN | extra)
        for index in (0, 1):
            self.enable(index)
        self.ready()
        self.guest.post()

    def notify(self, index: int, data: bytes | None = None) -> None:
        """By a write to the notification address."""
        cap = self.structures[Structure.NOTIFY_CFG]
        place = self.of_queue(index, CommonCfg.queue_notify_off) * int.from_bytes(cap.extra[:4], "little")
        self.function.write(cap.bar, cap.offset + place, data or index.to_bytes(2, "little"))

    def send(self, *frames: bytes, index: int = 1) -> None:
        self.guest.kicks[index], before = os.eventfd(0, os.EFD_NONBLOCK), self.guest.kicks[index]
        self.guest.send(*frames, index=index)
        os.close(before)
        self.notify(index)


class Ear:
    """An eventfd of the client, of which the function gets a duplicate."""

    def __init__(self, attach: Callable[[int], None]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        attach(os.dup(self.fd))

    def heard(self, seconds: float = 0.0) -> bool:
        """Whether it has been rung since the last time."""
        ready = bool(select.select([self.fd], [], [], seconds)[0])
        if ready:
            os.eventfd_read(self.fd)
        return ready

    def close(self) -> None:
        os.close(self.fd)


def has(word: int, feature: Feature) -> bool:
    return bool(word >> feature & 1)


__all__ += ["Ear", "has", "until"]
