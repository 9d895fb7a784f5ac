"""From a wire frame to a receive buffer (virtio v1.4 5.1.6.4, Flow filter, IPsec Operation).

Order (NET-FF-DEV-15): receive mode, MAC and VLAN filters; flow filter; RSS or automatic steering for what no
rule has directed. A rule's IPSEC action opens the packet, RECIRCULATE also sends the result through the rules
once more (ledger E58). What the header says (checksum, hash, offsets) is about the delivered frame (E63).

A packet that fails IPsec is delivered as it came, marked SECURITY and SECURITY_ERR, or dropped where the
configuration says so (E53); never does plaintext leave without its integrity checked. An IPSEC action on a
packet without an IPsec header (IKE on port 4500, other UDP, a fragment: E65, E66) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from virtio_ipsec.device.checksum import transport_checksum_ok
from virtio_ipsec.device.engines import AnyInboundSa, unprotect
from virtio_ipsec.device.flow_filter import FlowFilter
from virtio_ipsec.device.frame import ETHERNET_HEADER, IPV4, IPV6, FrameView, view
from virtio_ipsec.device.state import DataPlaneContext, Received
from virtio_ipsec.device.steering import FlowMemory, admits, choose_queue, packet_hash
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.ip import AH, ESP
from virtio_ipsec.ipsec.process import IpsecHeader, find_spi
from virtio_ipsec.ipsec.udp import PORT as ESP_IN_UDP
from virtio_ipsec.wire.flow_filter import FfRule
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, FfAction, HdrFlag, ResourceType, SelectorType, has

_ETHERTYPES = {4: IPV4.to_bytes(2, "big"), 6: IPV6.to_bytes(2, "big")}
_IPSEC_ACTIONS = frozenset((int(FfAction.IPSEC), int(FfAction.IPSEC_RECIRCULATE)))
_IPSEC_PROTOCOLS = frozenset((ESP, AH))
_DATA_VALID = int(HdrFlag.DATA_VALID)
_INBOUND_TYPE = int(ResourceType.NET_IPSEC_INB_SA)
#: Authenticated packets whose proper treatment is to vanish (RFC 4303 2.6, RFC 6040 4.2).
_VANISH = frozenset((Reason.DUMMY, Reason.CONGESTION))


@dataclass(slots=True)
class Packet:
    """A frame on its way through the receive path, and what has been done to it.

    ``flags`` holds the security flags only; the resource fields go with SECURITY (E51, E52).
    """

    frame: bytes
    headers: FrameView
    flags: int = 0
    resource_id: int = 0
    resource_type: int = 0
    #: The rule that is being applied.
    rule: FfRule | None = None


class Receiver:
    """The receive path of one device; all state is in the context."""

    __slots__ = ("_error", "_security", "_soft", "ctx")

    def __init__(self, ctx: DataPlaneContext) -> None:
        self.ctx = ctx
        # Plain ints: arithmetic on enum members costs a microsecond each.
        self._security = int(ctx.dialect.flag_security)
        self._error = int(ctx.dialect.flag_security_err)
        self._soft = int(ctx.dialect.flag_soft_expiry)

    def receive(self, frame: bytes) -> list[Received]:
        """What one wire frame becomes: one buffer, or nothing. Never raises, whatever the frame."""
        return self._counted(lambda: self.process(frame))

    def resume(self, frame: bytes, l3: int, resource_id: int, *, soft_expired: bool) -> list[Received]:
        """What becomes of a frame that SA ``resource_id`` opened elsewhere, for a rule that recirculates it."""
        soft = self._soft if soft_expired else 0
        packet = Packet(frame, view(frame, l3), self._security | soft, resource_id, _INBOUND_TYPE)
        return self._counted(lambda: self.place(packet, self.recirculate(packet)))

    def _counted(self, work: Callable[[], Received]) -> list[Received]:
        try:
            received = work()
        except PacketError as error:
            self.ctx.counters.refuse_rx(error.reason)
            return []
        self.ctx.counters.add("rx_frames")
        self.ctx.counters.add("rx_bytes", len(received.buffer) - self.ctx.header.size)
        return [received]

    def process(self, frame: bytes) -> Received:
        """As :meth:`receive`, but a frame that is dropped is a PacketError."""
        if len(frame) < ETHERNET_HEADER:
            raise PacketError(Reason.MALFORMED, "no Ethernet header")
        if not self.admitted(frame):
            raise PacketError(Reason.FILTERED)
        packet = Packet(frame, view(frame))
        return self.place(packet, self.apply_rules(packet))

    def admitted(self, frame: bytes) -> bool:
        """Whether the driver has asked for frames like this one."""
        return admits(frame, self.ctx.rx_filter, self.ctx.features)

    def place(self, packet: Packet, queue: int | None) -> Received:
        """The finished packet with its header, on ``queue`` or where steering puts it."""
        self.check_size(packet)
        if self.ctx.fast is not None:
            block = self.ctx.fast.steering(self.ctx.rx_filter, self.ctx.steering, self.ctx.features)
            chosen, hashed = block.choose(packet.frame, self.ctx.live_rx_queues)
        else:
            hashed = self.hash(packet)
            chosen = self.steer(packet, hashed) if queue is None else None
        if queue is None:
            queue = chosen
        if queue is None:
            raise PacketError(Reason.QUEUE_DISABLED, "the receive queue is not enabled")
        return Received(queue, self.header(packet, hashed) + packet.frame)

    def check_size(self, packet: Packet) -> None:
        """With the MTU negotiated nothing longer is delivered (NET-CFG-DEV-05)."""
        size = len(packet.frame) - packet.headers.l3
        if self.ctx.has(Feature.NET_F_MTU) and size > self.ctx.config.mtu:
            raise PacketError(Reason.TOO_BIG, f"{size} bytes exceed the MTU")

    def match(self, packet: Packet) -> FfRule | None:
        """The flow filter rule for ``packet`` as it is now."""
        filters = self.ctx.filters
        if not filters.rules:
            return None
        if self.ctx.fast is not None:
            return self.ctx.fast.flow.match(packet.frame, packet.headers.l3)
        if filters.compiled is None or filters.compiled.generation != filters.generation:
            filters.compiled = FlowFilter(filters)
        return filters.compiled.match(packet.frame, packet.headers)

    def apply_rules(self, packet: Packet) -> int | None:
        """Do what the rules say to ``packet``; the queue they direct it to, or None for steering to choose.

        At most two passes, whatever the rules: the action of the second is final (E58).
        """
        rule = self.match(packet)
        if rule is None:
            if self.ctx.dialect.sa_lookup_without_rule:
                self.open(packet, required=False)
            return None
        opened = self.act(packet, rule)
        if rule.action == FfAction.IPSEC_RECIRCULATE and opened:
            return self.recirculate(packet)
        return self.directed(rule)

    def recirculate(self, packet: Packet) -> int | None:
        """The second pass, as :meth:`apply_rules`."""
        rule = self.match(packet)
        if rule is None:
            return None
        self.act(packet, rule)
        return self.directed(rule)

    def act(self, packet: Packet, rule: FfRule) -> bool:
        """Drop or IPsec, as the rule says. True when the packet was opened."""
        packet.rule = rule
        if rule.action == FfAction.DROP:
            raise PacketError(Reason.RULE_DROP)
        return rule.action in _IPSEC_ACTIONS and self.open(packet, required=True)

    def directed(self, rule: FfRule) -> int | None:
        """The receive queue of a DIRECT_RX_VQ rule; IPsec actions leave it to steering: None (E59).

        ``vq_index`` counts virtqueues: receiveqN is 2(N-1). A reset queue drops (NET-FF-DEV-10).
        """
        if rule.action != FfAction.DIRECT_RX_VQ:
            return None
        queue = rule.vq_index >> 1
        live = self.ctx.live_rx_queues
        if live is not None and queue not in live:
            raise PacketError(Reason.QUEUE_DISABLED, f"receive queue {queue} is not enabled")
        return queue

    def open(self, packet: Packet, *, required: bool) -> bool:
        """IPsec processing in place; True when ``packet`` now holds the plaintext.

        The SA is found by protocol and SPI (E57). Without one, and without a whole ESP or AH header where
        there should be one, the packet is in error if a rule wanted it opened (``required``), else left alone.
        """
        ctx = self.ctx
        headers = packet.headers
        if not headers.version or not ctx.has(Feature.NET_F_IPSEC):
            return False
        found = find_spi(packet.frame[headers.l3 : headers.end])
        if found is None:
            if required and headers.protocol in _IPSEC_PROTOCOLS and not headers.fragment:
                self.fail(packet, Reason.MALFORMED)
                return False
            ctx.counters.add("rx_not_ipsec")
            return False
        entry = ctx.inbound_by_spi.get((found.protocol, found.spi))
        if found.udp and not self.is_for_ipsec(packet, found, entry[1] if entry else None):
            ctx.counters.add("rx_not_ipsec")
            return False
        if entry is None:
            if required:
                self.fail(packet, Reason.UNKNOWN_SA)
            return False
        return self.open_with(packet, found, *entry)

    def is_for_ipsec(self, packet: Packet, found: IpsecHeader, sa: AnyInboundSa | None) -> bool:
        """Whether a UDP datagram is ESP at all: its first bytes may equal an SPI by chance (RFC 3948, E66).

        A rule that looks at UDP says so, and with an SA any other rule, too (E78). Else the port decides: that
        of the SA, or the registered one.
        """
        rule = packet.rule
        if rule is not None:
            selectors = self.ctx.filters.classifiers[rule.classifier_id].selectors
            if sa is not None or any(s.type == SelectorType.UDP for s in selectors):
                return True
        return found.udp_dport == (sa.params.udp_dport if sa else ESP_IN_UDP)

    def open_with(self, packet: Packet, found: IpsecHeader, ident: int, sa: AnyInboundSa) -> bool:
        """Process ``packet`` with inbound SA number ``ident``."""
        headers = packet.headers
        try:
            result = unprotect(sa, packet.frame[headers.l3 : headers.end], found)
        except PacketError as error:
            if error.reason is Reason.NOT_IPSEC:
                self.ctx.counters.add("rx_not_ipsec")
            elif error.reason in _VANISH:
                raise
            else:
                self.fail(packet, error.reason, ident, sa)
            return False
        l2 = packet.frame[: headers.l3 - 2]
        packet.frame = l2 + _ETHERTYPES[result.packet[0] >> 4] + result.packet
        packet.headers = view(packet.frame, headers.l3)
        packet.flags = self._security | self.soft_flag(sa)
        packet.resource_id = ident
        packet.resource_type = _INBOUND_TYPE
        self.ctx.counters.add("rx_opened")
        return True

    def fail(self, packet: Packet, reason: Reason, ident: int = 0, sa: AnyInboundSa | None = None) -> None:
        """Mark ``packet`` as in error, its bytes as they are, or drop it where so configured (E53).

        What an earlier pass has opened keeps naming the SA that opened it (E58).
        """
        if self.ctx.config.drop_error_packets:
            raise PacketError(reason)
        self.ctx.counters.refuse_rx(reason)
        if not packet.flags and sa is not None:
            packet.resource_id = ident
            packet.resource_type = _INBOUND_TYPE
            packet.flags = self.soft_flag(sa)
        packet.flags |= self._security | self._error

    def soft_flag(self, sa: AnyInboundSa) -> int:
        """SOFT_EXPIRY_WARN from the packet that reaches the limit on (E55)."""
        return self._soft if sa.soft_expired else 0

    def hash(self, packet: Packet) -> tuple[int, int]:
        """(`hash_value`, `hash_report`) when RSS or HASH_REPORT wants one."""
        steering = self.ctx.steering
        if not steering.rss and not self.ctx.has(Feature.NET_F_HASH_REPORT):
            return 0, 0
        return packet_hash(packet.frame, packet.headers, steering.hash_types, steering.key)

    def steer(self, packet: Packet, hashed: tuple[int, int]) -> int | None:
        """The receive queue by RSS or automatic steering; None when it is not enabled."""
        ctx = self.ctx
        if ctx.flows is None:
            ctx.flows = FlowMemory()
        return choose_queue(ctx.steering, ctx.flows, ctx.live_rx_queues, packet.frame, packet.headers, hashed)

    def checksum_flag(self, packet: Packet) -> int:
        """DATA_VALID after the outermost transport checksum was verified (NET-RX-DEV-25).

        Nothing is vouched for in a packet that is delivered as an error.
        """
        if packet.flags & self._error:
            return 0
        wanted = has(self.ctx.guest_offloads, Feature.NET_F_GUEST_CSUM)
        return _DATA_VALID if wanted and transport_checksum_ok(packet.frame, packet.headers) else 0

    def header(self, packet: Packet, hashed: tuple[int, int]) -> bytes:
        """`virtio_net_hdr` of the delivered frame, for one buffer."""
        ctx = self.ctx
        flags = packet.flags | self.checksum_flag(packet)
        reports_hash = ctx.has(Feature.NET_F_HASH_REPORT)
        # Behind 16,000 VLAN tags the offset does not fit its field: then there is none to report.
        fits = packet.headers.version and packet.headers.l3 <= 0xFFFF
        reports_offset = fits and ctx.has(Feature.NET_F_OUT_NET_HEADER)
        return ctx.header.build(
            NetHdr(
                flags=flags,
                num_buffers=1,
                hash_value=hashed[0] if reports_hash else 0,
                hash_report=hashed[1] if reports_hash else 0,
                outer_nh_offset=packet.headers.l3 if reports_offset else 0,
                resource_id=packet.resource_id,
                resource_type=packet.resource_type,
            )
        )
