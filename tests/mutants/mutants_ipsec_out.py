"""Devices that seal wrongly, or send what they should not."""

from __future__ import annotations

from dataclasses import replace

from registry import mutant

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.ipsec_objects import OutboundSaKind
from virtio_ipsec.device.state import DataPlaneContext
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import InvalidField, PacketError, Reason
from virtio_ipsec.ipsec.sa import OutboundSa, SaParams
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import IpsecMode


class Sealing(OutboundSaKind):
    """Makes its SAs with ``sa_class``."""

    sa_class: type[OutboundSa] = OutboundSa

    def prepare(self, object_id: int, value: IpsecSa) -> OutboundSa:
        super().prepare(object_id, value)
        return self.sa_class(self.params(value), self.context.rng)


# -- what is sealed ---------------------------------------------------------------------------------------


@mutant("INF-08", "INF-22", "INF-23", "INF-24")
class EtherTypeKept(Transmitter):
    """The EtherType stays that of the inner packet when the outer one has the other IP version."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:
        sealed = super().protect(sa, frame, l3)
        return sealed[:12] + frame[12:14] + sealed[14:]


@mutant("INF-08")
class Aes192AsAes128(Sealing):
    """Of an AES key of 24 octets only 16 are used."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        long = len(params.cipher_key) == 24
        return replace(params, cipher_key=params.cipher_key[:16]) if long else params


@mutant("RFC-09", "INF-08")
class Aes192AsAes128InRfc(Aes192AsAes128):
    """The same in the older dialect."""


@mutant("INF-08")
class AhCoversOptions(Transmitter):
    """The ICV of AH in transport mode is wrong when IPv4 options or IPv6 extensions are in front."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:
        sealed = super().protect(sa, frame, l3)
        if sa.params.mode == IpsecMode.AH_TRANSPORT and (frame[14] == 0x46 or frame[20] == 60):
            return sealed[:80] + bytes((sealed[80] ^ 1,)) + sealed[81:]
        return sealed


@mutant("RFC-28", "INF-08", "RFC-09")
class AhNamedEsp(Transmitter):
    """What an AH mode makes is called ESP by the header in front of it, over IPv6."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:
        sealed = super().protect(sa, frame, l3)
        if sealed[14] >> 4 == 6 and sealed[20] == 51:
            return sealed[:20] + b"\x32" + sealed[21:]
        return sealed


class EarlierSa(Transmitter):
    """Of several SAs with neighbouring ids another one may be used."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        sa = super().security_association(hdr)
        return self.ctx.outbound.get(hdr.resource_id ^ 1, sa) if sa and sa.params.spi < 0x1000 else sa


@mutant("NET-IPSEC-DEV-09", "INF-16")
class OtherSa(EarlierSa):
    """Packets of an SA with a small SPI leave through its neighbour."""


@mutant("RFC-08", "INF-16", "NET-IPSEC-DEV-09", "RFC-29", dialect="rfc-2025-01")
class OtherSaInRfc(EarlierSa):
    """The same in the older dialect."""


@mutant("INF-16", "NET-IPSEC-DEV-09")
class SpiSwapped(Sealing):
    """SPIs of 0xffff0000 and above leave in the wrong byte order."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        swapped = int.from_bytes(params.spi.to_bytes(4), "little")
        return replace(params, spi=swapped) if params.spi >= 0xFFFF0000 else params


@mutant("INF-17")
class SaltScrambled(Sealing):
    """The salt is neither in memory order nor in network order."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        salt = params.salt
        return replace(params, salt=salt[3:] + salt[1:3] + salt[:1])


@mutant("RFC-29", "INF-17")
class SaltScrambledInRfc(SaltScrambled):
    """The same in the older dialect."""


@mutant("INF-08")
class TtlOfDevice(Sealing):
    """The outer TTL is 63 where the SA says 64."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        if not params.tunnel or getattr(params.tunnel, "ttl", 0) != 64:
            return params
        return replace(params, tunnel=replace(params.tunnel, ttl=63))  # type: ignore[call-arg]


class RepeatingIv(OutboundSa):
    """After 128 packets the IVs come again."""

    def iv(self, sequence: int) -> bytes:
        return super().iv(sequence & 0x7F)


@mutant("INF-08")
class IvRepeats(Sealing):
    """After 128 packets the IVs come again."""

    sa_class = RepeatingIv


@mutant("RFC-09", "INF-08")
class IvRepeatsInRfc(IvRepeats):
    """The same in the older dialect."""


@mutant("INF-08")
class OnlyFirstSegmentSealed(Transmitter):
    """Of a segmented packet only the first segment is sealed."""

    def protect_all(self, sa: OutboundSa, frames: list[bytes], l3: int) -> list[bytes]:
        return [*super().protect_all(sa, frames[:1], l3), *frames[1:]]


# -- what leaves all the same -----------------------------------------------------------------------------


@mutant("INF-08", "NET-IPSEC-DEV-09", "NET-IPSEC-DEV-12")
class UnknownSaInClear(Transmitter):
    """A packet whose SA does not exist leaves in clear."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        try:
            return super().security_association(hdr)
        except PacketError:
            return None


@mutant("RFC-10", "INF-08", "NET-IPSEC-DEV-09", "NET-IPSEC-DEV-12", "RFC-37", dialect="rfc-2025-01")
class UnknownSaInClearInRfc(UnknownSaInClear):
    """The same in the older dialect."""


@mutant("RFC-10", "NET-IPSEC-DEV-09")
class AnyTypeInRfc(Transmitter):
    """resource_type of a marked packet is not looked at."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        return super().security_association(replace(hdr, resource_type=0x0203))


@mutant("NET-IPSEC-DEV-09")
class AnyType(Transmitter):
    """resource_type of a marked packet is not looked at: an inbound type finds an outbound SA."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        return super().security_association(replace(hdr, resource_type=0))


@mutant("INF-08")
class UnsealableInClear(Transmitter):
    """What is not IP, or a fragment in transport mode, leaves in clear."""

    def protect(self, sa: OutboundSa, frame: bytes, l3: int) -> bytes:
        try:
            return super().protect(sa, frame, l3)
        except PacketError as error:
            if error.reason in (Reason.NOT_IP, Reason.MALFORMED, Reason.FRAGMENT):
                return frame
            raise


# -- objects ----------------------------------------------------------------------------------------------


@mutant("NET-IPSEC-DEV-10")
class IdsAreUsedUp(OutboundSaKind):
    """The id of a destroyed SA that has sealed packets cannot be used again until reset."""

    def __init__(self, context: DataPlaneContext, capabilities: object) -> None:
        super().__init__(context, capabilities)  # type: ignore[arg-type]
        self.gone: set[int] = set()

    def remove(self, object_id: int) -> None:
        if self.live(object_id).packets:
            self.gone.add(object_id)
        super().remove(object_id)

    def check_id(self, object_id: int, live: int) -> None:
        super().check_id(object_id, live)
        if object_id in self.gone:
            raise InvalidField("the id was used before")


@mutant("NET-IPSEC-DEV-12")
class SasSurviveReset(Device):
    """After a reset the lookup table still leads to the SAs of before."""

    def _start(self) -> None:
        kept = dict(getattr(self, "kept", {}))
        super()._start()
        self.context.outbound.update(kept)

    def reset(self) -> None:
        live = self.context.outbound
        self.kept = {ident: OutboundSa(sa.params, self._rng) for ident, sa in live.items()}
        super().reset()


class Slow(Transmitter):
    """Every eighth SA loses its first packet."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        sa = super().security_association(hdr)
        if sa and hdr.resource_id % 8 == 7 and not sa.stats[Reason.UNKNOWN_SA]:
            sa.stats[Reason.UNKNOWN_SA] += 1
            raise PacketError(Reason.UNKNOWN_SA)
        return sa


@mutant("INF-38", "INF-08")
class NotUsableAtOnce(Slow):
    """Every eighth SA can be used from its second packet on."""


@mutant("RFC-36", "INF-08", "INF-38", "RFC-09", "RFC-28")
class NotUsableAtOnceInRfc(Slow):
    """The same in the older dialect."""


@mutant("INF-39")
class ModifyRestarts(OutboundSaKind):
    """MODIFY makes the SA anew: sequence numbers and lifetimes begin again."""

    def change(self, object_id: int, prepared: SaParams) -> None:
        self.context.outbound[object_id] = OutboundSa(prepared, self.context.rng)
