"""Drivers whose receive buffers are wrong, or that take received packets for what they are not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from driver_registry import REFUSED, Wrong, driver_mutant

from virtio_ipsec.driver import receive
from virtio_ipsec.driver.driver import Driver, Received
from virtio_ipsec.driver.queues import ReceiveQueue
from virtio_ipsec.driver.sas import SaHandle, Sas
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

TUNNEL = int(GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6)
Patches = tuple[AbstractContextManager[Any], ...]


class SmallDriver(Driver):
    """Its receive buffers hold 200 octets."""

    @property
    def receive_buffer_size(self) -> int:
        return 200


@driver_mutant("NET-RXB-DRV-01", face="split")
class SmallBuffersForSegmentation(Wrong):
    """Buffers too small for what the device may merge."""

    driver_class = SmallDriver


@driver_mutant("NET-RXB-DRV-02", face="plain")
class SmallBuffers(Wrong):
    """Buffers too small for a frame."""

    driver_class = SmallDriver


@driver_mutant("NET-RXB-DRV-03")
class BuffersBelowTheHeader(Wrong):
    """Buffers of 16 octets."""

    def patches(self) -> Patches:
        def add(queue: Any, address: int) -> None:
            queue._ring.add([], [Segment(address, 16)], address)

        return (patch.object(ReceiveQueue, "_add", add),)


@driver_mutant("NET-RXB-DRV-05")
class EmptySecondQueue(Wrong):
    """The second receive queue has no buffers."""

    def patches(self) -> Patches:
        fill = ReceiveQueue.fill

        def fill_first(queue: Any, count: int) -> None:
            if queue._index == 0:
                fill(queue, count)

        return (patch.object(ReceiveQueue, "fill", fill_first),)


class Deceived(Wrong):
    """Answers questions; what it understands of a header is :meth:`understood`."""

    only = ("answer_everything",)

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        """The header as this driver reads it; REFUSED for a packet that it drops."""
        return header

    def judged(self, packet: Received, header: NetHdr) -> Received:
        return packet

    def patches(self) -> Patches:
        sound = receive.interpret

        def interpret(header: Any, frame: bytes, queue: int, features: int, dialect: Any, find: Any) -> Any:
            read = self.understood(header, frame, features)
            return self.judged(sound(read, frame, queue, features, dialect, find), header)

        return (patch("virtio_ipsec.driver.driver.interpret", interpret),)


@driver_mutant("NET-RX-DRV-01")
class RefusesUnknownFlags(Deceived):
    """A flag that it does not know is a reason to drop."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        if header.flags & 0x80:
            raise REFUSED
        return header


@driver_mutant("NET-RX-DRV-02", face="split")
class UsesNetworkOffset(Deceived):
    """outer_nh_offset is used though its feature is not negotiated."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        if not has(features, Feature.NET_F_OUT_NET_HEADER) and header.outer_nh_offset >= len(frame):
            raise REFUSED
        return header


@driver_mutant("NET-RX-DRV-03")
class UsesChecksumFields(Deceived):
    """csum_start is looked at whatever the flags say."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        if header.csum_start >= len(frame):
            raise REFUSED
        return header


@driver_mutant("NET-RX-DRV-04")
class BelievesHeaderLength(Deceived):
    """hdr_len is relied on."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        if header.hdr_len > len(frame):
            raise REFUSED
        return header


@driver_mutant("NET-RX-DRV-05")
class BelievesEveryChecksum(Deceived):
    """A packet without flags counts as checked."""

    def judged(self, packet: Received, header: NetHdr) -> Received:
        return replace(packet, checksum_valid=True)


@driver_mutant("NET-RX-DRV-06")
class TakesBothTunnelBits(Deceived):
    """Both tunnel bits are no reason to drop."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        return replace(header, gso_type=0, flags=0) if header.gso_type & TUNNEL == TUNNEL else header


@driver_mutant("NET-RX-DRV-07")
class UsesTunnelOffsets(Deceived):
    """The tunnel offsets are looked at without a tunnel bit."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        if header.inner_nh_offset >= len(frame):
            raise REFUSED
        return header


@driver_mutant("NET-RX-DRV-08")
class TakesAnyTunnel(Deceived):
    """A tunnel bit comes with any other field."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        one = header.gso_type & TUNNEL not in (0, TUNNEL)
        return replace(header, gso_type=0, flags=0) if one else header


@driver_mutant("NET-RX-DRV-09")
class TakesTunnelFlagAlone(Deceived):
    """The tunnel-checksum flag is ignored."""

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        alone = header.flags & HdrFlag.UDP_TUNNEL_CSUM and not header.gso_type & TUNNEL
        return replace(header, flags=0) if alone else header


@driver_mutant("NET-IPSEC-INT-01")
class RemembersSas(Wrong):
    """An inbound SA that was destroyed is found as before."""

    only = ("create_sas", "answer_everything", "destroy_inbound", "answer_about_the_past")

    def destroy_inbound(self) -> None:
        for sa in self.inbound:
            self.driver.sas.destroy(sa)

    def patches(self) -> Patches:
        def find(_sas: Any, number: int) -> SaHandle | None:
            return next((sa for sa in self.inbound if sa.id == number), None)

        return (patch.object(Sas, "find_inbound", find),)


@driver_mutant("RFC-22")
class TakesErrorsForGood(Deceived):
    """SECURITY_ERR is not looked at."""

    only = ("create_sas", "answer_everything")

    def understood(self, header: NetHdr, frame: bytes, features: int) -> NetHdr:
        return replace(header, flags=header.flags & ~self.dialect.flag_security_err)


@driver_mutant("RFC-23")
class FindsSasByAddress(Wrong):
    """The SA of a packet is the one that its sender used before."""

    only = ("create_sas", "answer_everything")

    def answer(self, received: Received, reply: bytes) -> None:
        sender = received.frame[29] - 11
        self.send(reply, self.outbound[sender] if received.protected else None)
