"""Devices that trust frames and requests that contradict themselves, or see too little of a packet in a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from mutants_segments import OtherPieces
from mutants_steering import OtherHash
from registry import mutant

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.control import ControlQueue
from virtio_ipsec.device.flow_objects import ClassifierKind, RuleKind
from virtio_ipsec.device.frame import IPV4, IPV6, PROTO_TCP, PROTO_UDP
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import AdminError, InvalidField, InvalidGroup, InvalidMember, PacketError, Reason
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.admin import AdminCommand
from virtio_ipsec.wire.flow_filter import FfClassifier, FfRule, Selector
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, HashReport, HdrFlag, ResourceType, SelectorType

# -- receive ----------------------------------------------------------------------------------------------


@mutant("NET-RX-DEV-25")
class ShortTcpVouched(Receiver):
    """A TCP header that is cut short counts as verified."""

    def checksum_flag(self, packet: Packet) -> int:
        view = packet.headers
        short = view.protocol == PROTO_TCP and view.transport and view.end - view.transport < 20
        wanted = self.ctx.has(Feature.NET_F_GUEST_CSUM)
        return int(HdrFlag.DATA_VALID) if short and wanted else super().checksum_flag(packet)


@mutant("NET-RX-DEV-25")
class AbsentSumVouched(Receiver):
    """UDP without a checksum counts as verified."""

    def checksum_flag(self, packet: Packet) -> int:
        at = packet.headers.transport
        absent = packet.headers.protocol == PROTO_UDP and at and packet.frame[at + 6 : at + 8] == b"\0\0"
        wanted = self.ctx.has(Feature.NET_F_GUEST_CSUM)
        return int(HdrFlag.DATA_VALID) if absent and wanted else super().checksum_flag(packet)


@mutant("NET-RX-INT-01")
class OffsetOfNothing(Receiver):
    """A packet that cannot be IP has a network header one octet further on."""

    def header(self, packet: Packet, hashed: tuple[int, int]) -> bytes:
        wrong = packet.headers.version == 0 and packet.headers.ethertype in {IPV4, IPV6}
        if wrong and self.ctx.has(Feature.NET_F_OUT_NET_HEADER):
            moved = replace(packet.headers, version=4, l3=packet.headers.l3 + 1)
            packet = replace(packet, headers=moved)
        return super().header(packet, hashed)


@mutant("INF-49")
class NothingHashed(OtherHash):
    """A packet that cannot be IP is reported as hashed."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        wrong = packet.headers.version == 0 and packet.headers.ethertype in {IPV4, IPV6}
        known = wrong and self.ctx.steering.hash_types
        return (value, int(HashReport.IPV4)) if known else (value, report)


@mutant("NET-RX-DEV-32")
class ShortEspIgnored(Receiver):
    """A packet that ends within its ESP header is delivered unmarked."""

    def fail(self, packet: Packet, reason: Reason, ident: int = 0, sa: InboundSa | None = None) -> None:  # type: ignore[override]
        if reason is not Reason.MALFORMED:
            super().fail(packet, reason, ident, sa)


@mutant("INF-58")
class OffloadsStay(ControlQueue):
    """GUEST_OFFLOADS_SET is acknowledged and does nothing."""

    def guest_offloads_set(self, data: bytes) -> None:
        pass


# -- rules ------------------------------------------------------------------------------------------------


@mutant("NET-FF-DEV-02", "INF-28")
class NoTcpFlags(ClassifierKind):
    """A classifier cannot look at TCP control bits."""

    def check_selector(self, selector: Selector) -> None:
        super().check_selector(selector)
        if selector.type == SelectorType.TCP and selector.mask[13] and not any(selector.mask[:13]):
            raise InvalidField("no control bits")


@mutant("INF-32", "INF-28")
class FlowLabelUnseen(Receiver):
    """Rules see every IPv6 packet as one without a flow label."""

    def match(self, packet: Packet) -> FfRule | None:
        view = packet.headers
        if view.version == 6:
            at = view.l3 + 1
            frame = packet.frame[:at] + bytes((packet.frame[at] & 0xF0, 0, 0)) + packet.frame[at + 3 :]
            packet = replace(packet, frame=frame)
        return super().match(packet)


@mutant("INF-38")
class RulesWaitForGroups(RuleKind):
    """A rule is seen from the next group or classifier on."""

    def install(self, object_id: int, prepared: FfRule) -> None:
        super().install(object_id, prepared)
        self.context.filters.generation -= 1


@mutant("INF-28")
class WholeOctets(ClassifierKind):
    """A partial mask on an address is taken for one on the whole address."""

    def prepare(self, object_id: int, value: FfClassifier) -> FfClassifier:
        found = super().prepare(object_id, value)
        selectors = tuple(
            replace(one, mask=one.mask[:16] + b"\xff" * 4)
            if one.type == SelectorType.IPV4 and any(one.mask[16:])
            else one
            for one in found.selectors
        )
        return replace(found, selectors=selectors)


# -- transmit ---------------------------------------------------------------------------------------------


@mutant("INF-54")
class ConfusedByZero(OtherPieces):
    """After a gso_size of zero the next large packet is lost."""

    __slots__ = ("_confused",)

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        codec = self.ctx.header
        hdr = codec.parse(buffer[: codec.size].ljust(codec.size, b"\0"))
        was = getattr(self, "_confused", False)
        if hdr.gso_type:
            self._confused = not hdr.gso_size
            if was:
                raise PacketError(Reason.BAD_GSO)
        return super().process(buffer, queue)


@mutant("NET-TX-DEV-03")
class ClearAtWrongOffsets(Transmitter):
    """A packet whose network offset lies beyond its end leaves as it is."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        found = super().security_association(hdr)
        return None if found is not None and hdr.outer_nh_offset == 0xFFFF else found  # type: ignore[return-value]


# -- refusals ---------------------------------------------------------------------------------------------


class OthersBlamed(AdminCommands):
    """A refusal of objects of some types blames something else."""

    types: ClassVar[frozenset[int]]
    instead: ClassVar[type[AdminError]]

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        try:
            return super().resource_obj_create(command)
        except InvalidField as error:
            if int.from_bytes(command.data[:2], "little") not in self.types:
                raise
            raise self.instead(str(error)) from error


@mutant("INF-59")
class GroupBlamedForSas(OthersBlamed):
    """An SA that cannot be is answered with Q_INVALID_GROUP."""

    types = frozenset({ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA})
    instead = InvalidGroup


@mutant("INF-59")
class MemberBlamedForRules(OthersBlamed):
    """A rule that cannot be is answered with Q_INVALID_MEMBER."""

    types = frozenset({ResourceType.NET_FF_RULE})
    instead = InvalidMember


# -- lengths ----------------------------------------------------------------------------------------------


@mutant("INF-07")
class OneOctetOfLength(Receiver):
    """Of IPv6 packets longer than 255 octets only so many are looked at."""

    def open(self, packet: Packet, *, required: bool) -> bool:
        view = packet.headers
        if view.version == 6 and view.end - view.l3 - 40 > 255:
            packet.headers = replace(view, end=view.l3 + 40 + (view.end - view.l3 - 40) % 256)
        return super().open(packet, required=required)


@mutant("INF-08")
class NoPayloadNoPacket(Transmitter):
    """A datagram without payload is not sealed."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:  # type: ignore[override]
        if len(frame) == 60 and frame[14 + 9] == PROTO_UDP and frame[14 + 24 : 14 + 26] == b"\0\x08":
            raise PacketError(Reason.MALFORMED)
        return super().protect(sa, frame, l3)
