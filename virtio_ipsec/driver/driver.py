"""The driver: a session and, on top of it, SAs, flows, packets and control commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.control import Control
from virtio_ipsec.driver.errors import DriverError, NotNegotiated, PathMtuExceeded
from virtio_ipsec.driver.features import GUEST_GSO
from virtio_ipsec.driver.flows import Flows
from virtio_ipsec.driver.frames import ethernet_payload
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.queues import ReceiveQueue, TransmitQueue
from virtio_ipsec.driver.receive import Fault, ReceivedPacket, Refused, interpret
from virtio_ipsec.driver.sas import SaHandle, Sas
from virtio_ipsec.driver.session import Caps, Session
from virtio_ipsec.driver.transmit import PLAIN, Offload, build, packet_lengths
from virtio_ipsec.errors import CommandFailed
from virtio_ipsec.wire.dialect import V14, Dialect
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.net_header import NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, Opcode, has

#: Largest frame without guest GSO, and with it (virtio v1.4 5.1.6.3; the header comes on top: E17).
_FRAME, _GSO_FRAME = 1514, 65589
_ETHERNET = 18  # with one VLAN tag
#: Commands that change what the driver keeps books about: they go through ``sas``, ``flows`` and the session.
_KEPT = frozenset(
    {Opcode.LIST_USE, Opcode.DRIVER_CAP_SET, Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY}
)

Received = ReceivedPacket[SaHandle]


class Driver:
    """Drives one device over any :class:`~virtio_ipsec.driver.link.Link`.

    It sends nothing that a driver clause forbids; such a request raises a DriverError or ConfigError first.
    ``counters`` counts received packets that were refused, by reason.
    """

    def __init__(self, link: Link, dialect: Dialect = V14, *, config: DriverConfig | None = None) -> None:
        self.link = link
        self.dialect = dialect
        self.config = config or DriverConfig()
        self.counters: Counter[str] = Counter()
        self._clear()

    def _clear(self) -> None:
        #: Owns memory until the device has been reset; ``_session`` is the same one once it runs.
        self._held: Session | None = None
        self._session: Session | None = None
        self._sas: Sas | None = None
        self._flows: Flows | None = None
        self._control: Control | None = None
        self._header: NetHdrCodec = self.dialect.net_hdr(0)
        self._receive: list[ReceiveQueue] = []
        self._transmit: list[TransmitQueue[SaHandle | None]] = []
        self._transmit_in_use = 1
        self._backlog: list[Received] = []

    def start(self) -> None:
        """Bring the device up. Raises FeatureError, TransportError, CommandFailed."""
        self.stop()
        session = self._held = Session(self.link, self.dialect, self.config)
        session.start()
        self._session = session
        self._header = self.dialect.net_hdr(session.features)
        admin, caps = session.admin, session.caps
        if admin is not None and caps.ipsec_sas is not None and caps.ipsec_resources is not None:
            limits = caps.ipsec_resources
            self._sas = Sas(admin, self.dialect, caps.ipsec_sas, limits.inb_sa_limit, limits.outb_sa_limit)
        if (
            admin is not None
            and caps.filter_resources is not None
            and caps.filter_selectors is not None
            and caps.filter_actions is not None
        ):
            self._flows = Flows(
                admin,
                self.dialect,
                caps.filter_resources,
                caps.filter_selectors,
                caps.filter_actions,
                session.pairs,
            )
        if session.control_queue is not None:
            self._control = Control(
                session.control_queue, session.features, session.net, session.pairs, self._use_pairs
            )
        self._start_queues(session)

    def _start_queues(self, session: Session) -> None:
        mergeable = has(session.features, Feature.NET_F_MRG_RXBUF)
        for pair in range(session.pairs):
            queue = ReceiveQueue(
                self.link,
                2 * pair,
                session.data_rings[2 * pair],
                self._header,
                self.receive_buffer_size,
                mergeable=mergeable,
                refused=self._count,
            )
            queue.fill(self.config.receive_buffers)
            self._receive.append(queue)
            ring = session.data_rings[2 * pair + 1]
            self._transmit.append(TransmitQueue(self.link, 2 * pair + 1, ring, self._sent))

    def stop(self) -> None:
        """Reset the device. SAs, flows and queues are gone with it. Nothing when it was never started."""
        if self._held is not None:
            self._held.reset()
            for receive in self._receive:
                receive.release()
            for transmit in self._transmit:
                transmit.release()
            self._held.release()
        self._clear()

    # What was agreed.

    @property
    def session(self) -> Session:
        """The running session; DriverError before ``start``."""
        if self._session is None:
            raise DriverError("the driver has not been started")
        return self._session

    @property
    def features(self) -> int:
        """Negotiated features."""
        return self.session.features

    @property
    def caps(self) -> Caps:
        """Capabilities as set by this driver."""
        return self.session.caps

    @property
    def net_config(self) -> NetConfig:
        """The device configuration as last read; fields that the device does not have keep their defaults."""
        return self.session.net

    @property
    def sas(self) -> Sas:
        """IPsec SAs; NotNegotiated when the device does no IPsec."""
        if self._sas is None:
            raise NotNegotiated(f"the device does no IPsec: {self._missing()}")
        return self._sas

    @property
    def flows(self) -> Flows:
        """Flow filter; NotNegotiated when the device has none."""
        if self._flows is None:
            raise NotNegotiated(f"the device has no flow filter: {self._missing()}")
        return self._flows

    @property
    def control(self) -> Control:
        """Control commands; NotNegotiated without CTRL_VQ."""
        if self._control is None:
            raise NotNegotiated("the device has no control virtqueue")
        return self._control

    @property
    def mtu(self) -> int:
        """Largest IP packet, bytes."""
        device = self.session.net.mtu if has(self.features, Feature.NET_F_MTU) else 0
        return min(self.config.mtu, device) if device else self.config.mtu

    @property
    def receive_buffer_size(self) -> int:
        """Bytes of each receive buffer (NET-RXB-DRV-01 to -04; the header that is really used: E17)."""
        frame = _GSO_FRAME if self.features & GUEST_GSO else _FRAME
        device = self.session.net.mtu if has(self.features, Feature.NET_F_MTU) else 0
        most = self._header.size + max(frame, device + _ETHERNET)
        if not has(self.features, Feature.NET_F_MRG_RXBUF):
            return most
        # All buffers together hold the largest packet.
        share = -(-most // min(self.config.receive_buffers, self.session.data_rings[0].size))
        return max(self.config.receive_buffer_size, self._header.size, share)

    def _missing(self) -> str:
        if not has(self.features, Feature.F_ADMIN_VQ):
            return "no administration virtqueue was negotiated"
        return str(self.session.discovery_error or "feature, commands or capabilities are missing")

    # Administration.

    def admin(self, opcode: int, data: bytes = b"", result_len: int = 0) -> bytes:
        """Send an administration command that neither names an object nor changes what the driver keeps books
        about: a raw QUERY could name one that has been destroyed (RO-DRV-03)."""
        channel = self._admin()
        if opcode in _KEPT or opcode in (self.dialect.query_opcode, self.dialect.modify_opcode):
            raise DriverError(f"opcode {opcode:#06x} goes through sas, flows or start()")
        return channel.command(opcode, data, result_len)

    def _admin(self) -> Admin:
        if self.session.admin is None:
            raise NotNegotiated("the device has no administration virtqueue")
        return self.session.admin

    # Packets.

    def send(
        self,
        frame: bytes,
        sa: SaHandle | None = None,
        *,
        offload: Offload = PLAIN,
        queue: int = 0,
    ) -> None:
        """Queue an Ethernet frame on transmit queue ``queue``, protected by ``sa`` when given.

        Raises PathMtuExceeded, NotNegotiated, DriverError or QueueFull; then nothing was queued. TransportError
        and RingError mean that the device is of no more use until it is started again.
        """
        features = self.features
        if not 0 <= queue < self._transmit_in_use:
            raise DriverError(f"transmit queue {queue}; {self._transmit_in_use} in use")
        if sa is not None:
            sa = self.sas.for_transmit(sa)
        overhead, mtu = (sa.overhead, min(sa.path_mtu or self.mtu, self.mtu)) if sa else (0, self.mtu)
        lengths = packet_lengths(frame, offload)
        needed = max(lengths) + overhead
        header, data = build(frame, features, self.dialect, offload, sa_id=None if sa is None else sa.id)
        if not offload.gso_size:
            # What follows the IP packet in the frame is not sealed, but it is sent.
            needed = max(needed, len(data) - ethernet_payload(data)[0])
        if needed > mtu:
            raise PathMtuExceeded(needed, mtu)
        self._transmit[queue].put(self._header.build(header) + data, sa)
        if sa is not None:
            sa.in_flight += 1
            sa.count(lengths)
        self._transmit[queue].flush()
        self._retire()

    def receive(self) -> list[Received]:
        """Everything received since the last call, all queues, in the order of the queues."""
        self._collect()
        packets, self._backlog = self._backlog, []
        self.reap()
        return packets

    def reap(self) -> None:
        """Take back transmit buffers that the device has consumed, and destroy replaced SAs they held up."""
        for queue in self._transmit:
            queue.reap()
        self._retire()

    @property
    def unsent(self) -> int:
        """Packets in transmit queues that the device is not known to have consumed."""
        return sum(queue.waiting for queue in self._transmit)

    def _collect(self) -> None:
        """Interpret what lies in the receive queues now, while the SAs it names are those of now."""
        session = self.session
        find = self._sas.find_inbound if self._sas is not None else _nobody
        for number, queue in enumerate(self._receive):
            for buffer in queue.collect():
                header, frame = self._header.parse(buffer), buffer[self._header.size :]
                try:
                    packet = interpret(header, frame, number, session.features, self.dialect, find)
                except Refused as refusal:
                    self._count(refusal.fault)
                else:
                    self._backlog.append(packet)

    def reset_pair(self, pair: int) -> None:
        """Reset both queues of a pair and set them up anew (virtio v1.4 2.6.1); needs RING_RESET.

        Packets in them are lost: to be sent or received but not yet collected.
        """
        if not has(self.features, Feature.F_RING_RESET):
            raise NotNegotiated("resetting a queue needs F_RING_RESET, which was not negotiated")
        if not 0 <= pair < len(self._receive):
            raise DriverError(f"queue pair {pair}; {len(self._receive)} have been configured")
        for index, release in (
            (2 * pair, self._receive[pair].release),
            (2 * pair + 1, self._transmit[pair].release),
        ):
            self.link.reset_queue(index)
            release()
            self.link.enable_queue(index, self.session.data_rings[index].layout)
        self._receive[pair].fill(self.config.receive_buffers)

    # Rekeying.

    def rekey_outbound(self, old: SaHandle, sa: IpsecSa) -> SaHandle:
        """Replace an outbound SA: the new one exists before the switch, the old one goes when its last packet
        has left the queue. Packets sent with ``old`` from now on use the new SA."""
        new = self.sas.rekey_outbound(old, sa)
        self.reap()
        return new

    def rekey_inbound(
        self, old: SaHandle, sa: IpsecSa, *, versions: Sequence[int] = (4, 6), recirculate: bool = False
    ) -> SaHandle:
        """Add the inbound SA that follows ``old``, with rules like its own. Both work until
        :meth:`destroy_inbound` is called on ``old``, when the peer has switched."""
        new = self.sas.create_inbound(sa)
        if old.rules:
            try:
                self.flows.protect(new, versions=versions, recirculate=recirculate)
            except BaseException:
                self.sas.destroy(new)
                raise
        return new

    def destroy_inbound(self, sa: SaHandle) -> None:
        """Destroy an inbound SA after its rules (RO-DRV-04). Packets of it that are already received keep
        their handle; later ones are ``stale``."""
        self._collect()
        if sa.rules:
            self.flows.unprotect(sa)
        self.sas.destroy(sa)

    def _retire(self) -> None:
        """Destroy replaced SAs that nothing names any more. One that the device will not let go stays among
        ``sas.all()``: that is no reason for a packet to fail."""
        if self._sas is not None:
            for sa in self._sas.take_drained():
                try:
                    self._sas.destroy(sa)
                except CommandFailed:
                    self.counters["sa_not_destroyed"] += 1

    def _sent(self, sa: SaHandle | None) -> None:
        if sa is not None:
            sa.in_flight -= 1

    def _use_pairs(self, pairs: int) -> None:
        self._transmit_in_use = pairs

    def _count(self, fault: Fault) -> None:
        self.counters[fault.value] += 1


def _nobody(_number: int) -> None:
    return None
