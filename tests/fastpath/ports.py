"""A port of csrc/ with rings on one side and lists on the other, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plane

from virtio_ipsec.device import fast_rings
from virtio_ipsec.fastpath.esp import FastInboundSa, FastOutboundSa, FastSaTable
from virtio_ipsec.fastpath.pipeline import Port, PortConfig, RxState, Worker
from virtio_ipsec.fastpath.policy import PolicyTable
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.policy.selectors import Policy
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Direction, Feature, IpsecMode, mask

FEATURES = mask(
    Feature.F_VERSION_1, Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_USO, Feature.NET_F_MRG_RXBUF,
)  # fmt: skip
IPSEC = FEATURES | mask(Feature.NET_F_IPSEC)
QUEUE_SIZE = 64
BUFFER = 2048
BASE = 0x10000


def port_config(features: int = FEATURES, **changes: Any) -> PortConfig:
    """An operator's port unless the features have IPSEC."""
    by_operator = not features & mask(Feature.NET_F_IPSEC)
    config = fast_rings.port_config(plane.make_context(features, max_queue_pairs=2))
    config = replace(config, by_operator=by_operator, open_unasked=not by_operator)
    return replace(config, **changes)


class Bench:
    """Both ends of a port of ``pairs`` queue pairs, and its owner. ``memory`` begins at BASE."""

    def __init__(
        self, features: int = FEATURES, memory: GuestMemory | None = None, size: int = 4 << 20, **changes: Any
    ) -> None:
        self.features = features
        self.header = V14.net_hdr(features)
        self.memory = memory or GuestMemory.anonymous(size, BASE)
        self.allocator = Allocator(BASE, size)
        self.table = FastSaTable(plane.random_bytes)
        self.port = Port(self.table, port_config(features, **changes), self)
        self.sas: list[FastOutboundSa | FastInboundSa] = []
        self.queues: dict[int, FastDeviceQueue] = {}
        self.drivers: dict[int, DriverQueue] = {}
        self.layouts: dict[int, QueueLayout] = {}
        for index in range(2 * self.port.config.pairs):
            self.enable(index)
        self.worker = Worker(self.port)
        self.wire: list[bytes] = []
        self.interrupts: list[int] = []
        self.punted_out: list[bytes] = []
        self.punted_in: list[tuple[bytes, RxState]] = []

    def enable(self, index: int) -> None:
        """A fresh queue in the place of what is there."""
        layout = allocate_layout(self.allocator, QUEUE_SIZE, self.features)
        self.layouts[index] = layout
        self.memory.write(layout.driver, bytes(4))
        self.memory.write(layout.device, bytes(4))
        self.drivers[index] = driver_queue(self.memory, layout, self.features, self.allocator)
        self.queues[index] = FastDeviceQueue(self.memory, layout, self.features)
        self.show(index >> 1)

    def show(self, pair: int) -> None:
        """Tell the port about the queues of a pair."""
        handles = [q.handle if (q := self.queues.get(2 * pair + side)) else None for side in (0, 1)]
        self.port.set_queues(pair, *handles)

    def policy(self, policy: Policy) -> None:
        self.port.set_policy(PolicyTable(policy, 7))

    def params(self, direction: Direction, mode: int = IpsecMode.ESP_TUNNEL, **fields: Any) -> SaParams:
        return plane.params(mode, direction, V14, **fields)

    def outbound(self, ident: int, mode: int = IpsecMode.ESP_TUNNEL, **fields: Any) -> FastOutboundSa:
        params = self.params(Direction.OUTBOUND, mode, **fields)
        sa = FastOutboundSa(self.table, ident, params, plane.random_bytes)
        self.sas.append(sa)
        return sa

    def inbound(self, ident: int, mode: int = IpsecMode.ESP_TUNNEL, **fields: Any) -> FastInboundSa:
        sa = FastInboundSa(self.table, ident, self.params(Direction.INBOUND, mode, **fields))
        self.sas.append(sa)
        return sa

    # The guest

    def queue(self, frame: bytes, pair: int = 0, **hdr: int) -> None:
        """Queue a frame; :meth:`kick` sends it."""
        data = self.header.build(NetHdr(**hdr)) + frame
        segment = Segment(self.allocator.alloc(len(data)), len(data))
        self.memory.write(segment.addr, data)
        self.drivers[2 * pair + 1].add([segment], (), segment)

    def break_ring(self, index: int, descriptor: int) -> None:
        """Let a descriptor (of a split ring) point outside."""
        self.memory.put_u64(self.layouts[index].desc + 16 * descriptor, 0xFFFF_0000)

    def kick(self, pair: int = 0, worker: Worker | None = None) -> list[bytes]:
        """Everything queued; what left for the wire."""
        driver = self.drivers[2 * pair + 1]
        driver.publish()
        (worker or self.worker).transmit(pair, QUEUE_SIZE)
        for used in driver.poll():
            self.allocator.free(used.token.addr)  # type: ignore[attr-defined]
        sent, self.wire = self.wire, []
        return sent

    def send(self, frame: bytes, **hdr: int) -> list[bytes]:
        self.queue(frame, **hdr)
        return self.kick()

    def post(self, pair: int = 0, count: int = QUEUE_SIZE, size: int = BUFFER) -> None:
        """Offer receive buffers, as many as there is room for."""
        driver = self.drivers[2 * pair]
        for _ in range(min(count, driver.free)):
            segment = Segment(self.allocator.alloc(size), size)
            driver.add((), [segment], segment)
        driver.publish()

    def taken(self, pair: int = 0) -> list[tuple[NetHdr, bytes]]:
        """What the guest finds on a receive queue: header and frame."""
        found: list[tuple[NetHdr, bytes]] = []
        data, missing = b"", 0
        for used in self.drivers[2 * pair].poll():
            segment: Segment = used.token  # type: ignore[assignment]
            piece = self.memory.read(segment.addr, used.written)
            self.allocator.free(segment.addr)
            if not missing:
                missing = self.header.parse(piece).num_buffers
            data, missing = data + piece, missing - 1
            if not missing:
                found.append((self.header.parse(data), data[self.header.size :]))
                data = b""
        assert not missing
        return found

    def arrive(self, *frames: bytes) -> list[tuple[NetHdr, bytes]]:
        """Frames from the wire; what the guest gets of them on the first queue pair."""
        self.post()
        self.worker.receive(list(frames))
        return self.taken()

    # The owner

    def uplink(self, frames: list[bytes]) -> None:
        self.wire += frames

    def interrupt(self, index: int) -> None:
        self.interrupts.append(index)

    def punt_transmit(self, pair: int, buffer: bytes) -> list[bytes]:
        self.punted_out.append(buffer)
        return []

    def punt_receive(self, frame: bytes, state: RxState) -> list[tuple[int, bytes]]:
        self.punted_in.append((frame, state))
        return []
