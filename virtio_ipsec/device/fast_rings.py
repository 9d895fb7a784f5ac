"""The device's rings with the C packet path behind the data queues.

Control and administration queues stay Python's; their rings, too, are walked in C, which survives a guest that takes
its memory away.
"""

from __future__ import annotations

from collections import Counter

from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.device.rings import ByteDevice, Rings
from virtio_ipsec.device.state import DataPlaneContext
from virtio_ipsec.fastpath.pipeline import Port, PortConfig, RxState, Worker
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.wire.numbers import Feature, has


class FastRings(Rings):
    """As :class:`Rings`; ``kick`` and ``deliver`` of data queues run in C.

    The port is made with the first queue after negotiation and ends with the reset; its counts stay.
    """

    def __init__(self, device: ByteDevice, memory: GuestMemory, fast: FastPath) -> None:
        super().__init__(device, memory)
        self._fast = fast
        self._worker: Worker | None = None
        #: What C was told of the control plane's decisions.
        self._published: tuple[object, ...] = ()
        #: Frames that have left during the present kick.
        self._frames: list[bytes] = []
        #: What workers of earlier ports have counted.
        self._counted: Counter[str] = Counter()

    # Set-up

    def _new_queue(self, layout: QueueLayout) -> DeviceQueue:
        return FastDeviceQueue(self.memory, layout, self.device.context.features)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        super().enable_queue(index, layout)
        self._tell_port(index)

    def go_on(self, index: int, position: int) -> None:
        super().go_on(index, position)
        self._tell_port(index)  # C has another handle of it

    def reset_queue(self, index: int) -> None:
        gone = self._queues.get(index)
        super().reset_queue(index)
        self._tell_port(index)
        del gone  # not before C has let go of it

    def reset(self) -> None:
        if self._worker is not None:
            self._counted.update(self._worker.counts())
        self._worker = None
        self._published = ()
        super().reset()

    def _tell_port(self, index: int) -> None:
        """The queues of the pair that ``index`` belongs to."""
        if index >= self.control_queue_index:
            return
        if self._worker is None:
            if not self.device.context.features:
                return
            port = Port(self._fast.sas, port_config(self.device.context), self)
            port.set_flow(self._fast.flow)
            self._worker = Worker(port)
        pair = index >> 1
        self._worker.port.set_queues(pair, self._handle(2 * pair), self._handle(2 * pair + 1))

    def _handle(self, index: int) -> object:
        queue = self._queues.get(index)
        return queue.handle if isinstance(queue, FastDeviceQueue) else None

    # Traffic

    def kick(self, index: int) -> list[bytes]:
        if not self._is_transmit(index) or self._worker is None:
            return super().kick(index)
        queue = self._queues.get(index)
        if queue is None or not self.device.is_operating:
            return []
        self._publish(self._worker.port)
        self._worker.transmit(index >> 1, queue.size)
        self._check_queues()
        frames, self._frames = self._frames, []
        return frames

    def deliver(self, frame: bytes) -> None:
        if not self.device.is_operating:
            return
        if self._worker is None:  # without a queue there is no port, and nothing to deliver to
            super().deliver(frame)
            return
        self._publish(self._worker.port)
        self._worker.receive([frame])
        self._check_queues()

    def _is_transmit(self, index: int) -> bool:
        return bool(index & 1) and index < self.control_queue_index

    def _publish(self, port: Port) -> None:
        """Tell C what the control plane has changed since the last time."""
        context = self.device.context
        block = self._fast.steering(context.rx_filter, context.steering, context.features)
        checksum = has(context.guest_offloads, Feature.NET_F_GUEST_CSUM)
        news = (block, checksum, context.python_inbound)
        if news != self._published:
            port.set_steering(block)
            port.set_guest_checksum(checksum)
            port.set_foreign_sas(context.python_inbound)
            self._published = news

    def _check_queues(self) -> None:
        """A driver that broke the rules of a ring, or took its memory away, needs a reset."""
        if any(isinstance(queue, FastDeviceQueue) and queue.faulty for queue in self._queues.values()):
            self.device.needs_reset()

    # What the port asks

    def uplink(self, frames: list[bytes]) -> None:
        """Frames that leave."""
        self._frames += frames

    def interrupt(self, index: int) -> None:
        """The driver wants to be told."""
        self._interrupts.add(index)

    def punt_transmit(self, pair: int, buffer: bytes) -> list[bytes]:
        """What C does not do, Python does."""
        return self.device.transmit(buffer, pair)

    def punt_receive(self, frame: bytes, state: RxState) -> list[tuple[int, bytes]]:
        """What C does not do, or has begun, Python does."""
        found = self.device.resume(frame, state) if state.opened else self.device.receive(frame)
        return [(received.queue, received.buffer) for received in found]

    def counts(self) -> Counter[str]:
        """What C has counted, by the names of the device's counters."""
        found = Counter(self._counted)
        if self._worker is not None:
            found.update(self._worker.counts())
        return found


def port_config(context: DataPlaneContext) -> PortConfig:
    """What negotiation has fixed, as C wants it."""
    dialect, features = context.dialect, context.features
    places = {field.name: field.offset for field in context.header.layout()}
    return PortConfig(
        features=features,
        pairs=context.config.max_queue_pairs,
        mtu=context.config.mtu,
        header_size=context.header.size,
        flag_security=int(dialect.flag_security),
        flag_security_err=int(dialect.flag_security_err),
        flag_soft_expiry=int(dialect.flag_soft_expiry),
        flag_tunnel_csum=int(dialect.flag_udp_tunnel_csum),
        type_required=dialect.tx_resource_type_required,
        open_unasked=dialect.sa_lookup_without_rule,
        drop_errors=context.config.drop_error_packets,
        hash_at=places.get("hash_value"),
        outer_nh_at=places.get("outer_nh_offset"),
        resource_id_at=places.get("ipsec_resource_hdr.resource_id"),
        resource_type_at=places.get("ipsec_resource_hdr.resource_type"),
    )
