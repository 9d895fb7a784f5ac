"""Devices whose SAs keep the wrong account: options, replay window, lifetimes, first numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from registry import device_with, mutant

from virtio_ipsec.device.ipsec_objects import InboundSaKind, OutboundSaKind
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.lifetime import LifetimeCounters
from virtio_ipsec.ipsec.process import IpsecHeader
from virtio_ipsec.ipsec.replay import ReplayWindow
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import IpsecMode, IpsecOption

Change = Callable[[SaParams], SaParams]


def outbound_with(change: Change) -> type[OutboundSaKind]:
    """Outbound SAs whose parameters are changed behind the driver's back."""

    class Changed(OutboundSaKind):
        def params(self, sa: IpsecSa) -> SaParams:
            return change(super().params(sa))

    return Changed


def inbound_with(change: Change) -> type[InboundSaKind]:
    """The same for inbound SAs."""

    class Changed(InboundSaKind):
        def params(self, sa: IpsecSa) -> SaParams:
            return change(super().params(sa))

    return Changed


def without(option: IpsecOption) -> Change:
    """The option is not applied."""
    return lambda params: replace(params, options=params.options & ~option)


class Filling(InboundSaKind):
    """Makes inbound SAs and lets :meth:`fill` change them."""

    def prepare(self, object_id: int, value: IpsecSa) -> InboundSa:
        sa = super().prepare(object_id, value)
        self.fill(sa)
        return sa

    def fill(self, sa: InboundSa) -> None:
        """Change a new SA."""


# -- options ----------------------------------------------------------------------------------------------


@mutant("INF-21")
class EsnIgnoredOutbound(device_with(outbound_with(without(IpsecOption.ESN)))):  # type: ignore[misc]
    """Outbound SAs count in 32 bits whatever the option says."""


@mutant("INF-21", "INF-19")
class EsnIgnoredInbound(device_with(inbound_with(without(IpsecOption.ESN)))):  # type: ignore[misc]
    """Inbound SAs count in 32 bits whatever the option says."""


@mutant("INF-22")
class NeverInUdp(device_with(outbound_with(without(IpsecOption.UDP_ENCAP)))):  # type: ignore[misc]
    """ESP leaves bare whatever the option says."""


def _ports(params: SaParams) -> SaParams:
    return replace(params, udp_sport=params.udp_dport, udp_dport=params.udp_sport)


@mutant("INF-18")
class PortsSwapped(device_with(outbound_with(_ports))):  # type: ignore[misc]
    """Source and destination port of the encapsulation change places."""


@mutant("INF-22")
class UdpWhenPortsAreSet(OutboundSaKind):
    """ESP leaves in UDP when ports are set, without the option."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        return replace(params, options=params.options | IpsecOption.UDP_ENCAP) if sa.udp_sport else params


@mutant("INF-22", "NET-IPSEC-DEV-06")
class AhInUdpAccepted(OutboundSaKind):
    """An AH mode with UDP encapsulation is accepted and the option forgotten."""

    def params(self, sa: IpsecSa) -> SaParams:
        ah = sa.mode in (IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT)
        return super().params(replace(sa, options=sa.options & ~IpsecOption.UDP_ENCAP) if ah else sa)


@mutant("INF-22")
class ChecksumLeftOut(Transmitter):
    """The UDP checksum is zero over IPv6, too."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:
        sealed = super().protect(sa, frame, l3)
        if sealed[12:14] == b"\x86\xdd" and sealed[20] == 17:
            return sealed[:60] + bytes(2) + sealed[62:]
        return sealed


@mutant("INF-23")
class DscpNotCopied(device_with(outbound_with(without(IpsecOption.COPY_DSCP)))):  # type: ignore[misc]
    """The outer DSCP is always that of the parameters."""


@mutant("INF-24")
class TtlNotDecremented(device_with(outbound_with(without(IpsecOption.DEC_TTL)))):  # type: ignore[misc]
    """The inner TTL stays."""


@mutant("INF-25")
class DfNotCopied(device_with(outbound_with(without(IpsecOption.COPY_DF)))):  # type: ignore[misc]
    """The outer DF bit is always that of the parameters."""


@mutant("INF-26")
class EcnNotCopied(device_with(outbound_with(without(IpsecOption.ECN)))):  # type: ignore[misc]
    """The outer ECN field is always zero."""


@mutant("INF-26")
class CongestionLost(device_with(inbound_with(without(IpsecOption.ECN)))):  # type: ignore[misc]
    """A congestion mark of the outer header is lost."""


def _always_ecn(params: SaParams) -> SaParams:
    tunnel = params.mode == IpsecMode.ESP_TUNNEL
    return replace(params, options=params.options | IpsecOption.ECN) if tunnel else params


@mutant("INF-26")
class EcnAlwaysCopied(device_with(outbound_with(_always_ecn))):  # type: ignore[misc]
    """The outer ECN field is the inner one without the option, too."""


# -- replay window ----------------------------------------------------------------------------------------


@mutant("INF-19")
class WindowTooNarrow(Filling):
    """The window is one number narrower than the SA says."""

    def fill(self, sa: InboundSa) -> None:
        sa.window = ReplayWindow(max(sa.window.size - 1, 0), esn=sa.window.esn, first=sa.window.top + 1)


@mutant("INF-19", "INF-21")
class WindowTooWide(Filling):
    """The window is twice as wide as the SA says."""

    def fill(self, sa: InboundSa) -> None:
        sa.window = ReplayWindow(sa.window.size * 2, esn=sa.window.esn, first=sa.window.top + 1)


@mutant("INF-19")
class WindowNeverOff(Filling):
    """A window of zero is a window of 32."""

    def fill(self, sa: InboundSa) -> None:
        if not sa.window.size:
            sa.window = ReplayWindow(32)


class Forgetful(ReplayWindow):
    """Remembers the highest number only."""

    def check(self, low: int) -> int:
        sequence = super().check(low)
        self._bits &= 1
        return sequence

    def accept(self, sequence: int) -> None:
        super().accept(sequence)
        self._bits &= 1


@mutant("INF-19")
class RepetitionsInWindow(Filling):
    """A number inside the window may come again."""

    def fill(self, sa: InboundSa) -> None:
        sa.window = Forgetful(sa.window.size, esn=sa.window.esn, first=sa.window.top + 1)


@mutant("INF-19", "INF-05", "INF-20", "NET-RX-DEV-32")
class WindowMovesUnchecked(Receiver):
    """The window moves before the packet is known to be authentic."""

    def open_with(self, packet: Packet, found: IpsecHeader, ident: int, sa: InboundSa) -> bool:
        good = super().open_with(packet, found, ident, sa)
        if not good and found.sequence > sa.window.top:
            sa.window.accept(found.sequence)
        return good


@mutant("INF-39")
class ModifyClearsWindow(InboundSaKind):
    """MODIFY clears the replay window."""

    def change(self, object_id: int, prepared: SaParams) -> None:
        super().change(object_id, prepared)
        self.live(object_id).window = ReplayWindow(prepared.replay_window, esn=prepared.esn)


# -- lifetimes --------------------------------------------------------------------------------------------


class OneMore(LifetimeCounters):
    """Hard limits allow one packet more."""

    def check(self) -> None:
        self.packets -= 1
        try:
            super().check()
        finally:
            self.packets += 1


class NoBytes(LifetimeCounters):
    """Octets are not counted."""

    def count(self, octets: int) -> None:
        super().count(0)


class NeverSoft(LifetimeCounters):
    """Soft limits are not noticed."""

    @property
    def soft_expired(self) -> bool:
        return False


class SoonSoft(LifetimeCounters):
    """A soft limit in packets is noticed two packets too early."""

    @property
    def soft_expired(self) -> bool:
        limit = self.limits.packets_soft_limit
        return bool(limit) and self.packets + 2 >= limit


class SoftIsHard(LifetimeCounters):
    """A soft limit stops the SA."""

    def check(self) -> None:
        super().check()
        if self.soft_expired:
            raise PacketError(Reason.HARD_LIFETIME)


@mutant("INF-20", "INF-39")
class OnePacketMoreOutbound(OutboundSaKind):
    """An outbound SA seals one packet more than its hard limit."""

    def prepare(self, object_id: int, value: IpsecSa) -> OutboundSa:
        sa = super().prepare(object_id, value)
        sa.lifetime = OneMore(sa.params.lifetime)
        return sa


@mutant("INF-20", "INF-39", "NET-RX-DEV-32", "INF-05")
class OnePacketMoreInbound(Filling):
    """An inbound SA opens one packet more than its hard limit."""

    def fill(self, sa: InboundSa) -> None:
        sa.lifetime = OneMore(sa.params.lifetime)


@mutant("INF-20", "NET-RX-DEV-35")
class OctetsNotCounted(Filling):
    """The octets of inbound packets are not counted."""

    def fill(self, sa: InboundSa) -> None:
        sa.lifetime = NoBytes(sa.params.lifetime)


@mutant("INF-20")
class FailuresCount(Receiver):
    """Packets that fail count towards the hard limit."""

    def open_with(self, packet: Packet, found: IpsecHeader, ident: int, sa: InboundSa) -> bool:
        good = super().open_with(packet, found, ident, sa)
        if not good:
            sa.lifetime.count(0)
        return good


@mutant("NET-RX-DEV-35")
class NeverWarns(Filling):
    """No soft limit leads to a warning."""

    def fill(self, sa: InboundSa) -> None:
        sa.lifetime = NeverSoft(sa.params.lifetime)


@mutant("NET-RX-DEV-35")
class WarnsEarly(Filling):
    """The warning comes two packets early."""

    def fill(self, sa: InboundSa) -> None:
        sa.lifetime = SoonSoft(sa.params.lifetime)


@mutant("INF-20", "NET-RX-DEV-34")
class SoftLimitStops(Filling):
    """A soft limit stops the SA."""

    def fill(self, sa: InboundSa) -> None:
        sa.lifetime = SoftIsHard(sa.params.lifetime)


@mutant("NET-RX-DEV-34")
class WarningHidesError(Receiver):
    """A packet that fails on an SA past its soft limit has the warning and no error."""

    def fail(self, packet: Packet, reason: Reason, ident: int = 0, sa: InboundSa | None = None) -> None:
        super().fail(packet, reason, ident, sa)
        if packet.flags & self.ctx.dialect.flag_soft_expiry:
            packet.flags &= ~self.ctx.dialect.flag_security_err


@mutant("INF-27")
class LimitsAlwaysActive(InboundSaKind):
    """Limits act without the option."""

    def params(self, sa: IpsecSa) -> SaParams:
        return replace(super().params(sa), lifetime=sa.life)


# -- first numbers ----------------------------------------------------------------------------------------


def _after(params: SaParams) -> SaParams:
    later = params.first_sequence + 1 if params.first_sequence != 1 else 1
    return replace(params, first_sequence=later)


@mutant("RFC-31")
class EsnWasUsed(device_with(outbound_with(_after))):  # type: ignore[misc]
    """esn is the number used last."""


@mutant("RFC-32")
class EsnOfInboundIgnored(device_with(inbound_with(lambda params: replace(params, first_sequence=1)))):  # type: ignore[misc]
    """An inbound SA accepts numbers from 1 whatever esn says."""
