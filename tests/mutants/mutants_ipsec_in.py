"""Devices that open the wrong packets, or tell the wrong things about them."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from registry import mutant

from virtio_ipsec.device.ipsec_objects import InboundSaKind
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.process import IpsecHeader, find_spi
from virtio_ipsec.ipsec.sa import InboundSa, SaParams
from virtio_ipsec.wire.flow_filter import FfRule
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Feature, FfAction, HdrFlag, IpsecMode


class Opening(Receiver):
    """Opens rightly, and then :meth:`opened` changes what is told about it."""

    def open_with(self, packet: Packet, found: IpsecHeader, ident: int, sa: InboundSa) -> bool:
        arrived = Packet(packet.frame, packet.headers)
        good = super().open_with(packet, found, ident, sa)
        if good:
            self.opened(packet, arrived)
        return good

    def opened(self, packet: Packet, arrived: Packet) -> None:
        """``packet`` was made of ``arrived``."""


@mutant("INF-07", "INF-26")
class EtherTypeOfTunnel(Opening):
    """The EtherType of an opened frame is that of the tunnel."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.frame = packet.frame[:12] + arrived.frame[12:14] + packet.frame[14:]


@mutant("RFC-13", "INF-07")
class EtherTypeOfTunnelInRfc(EtherTypeOfTunnel):
    """The same in the older dialect."""


@mutant("INF-07")
class Aes192Opener(InboundSaKind):
    """Of an AES key of 24 octets only 16 are used."""

    def params(self, sa: IpsecSa) -> SaParams:
        params = super().params(sa)
        long = len(params.cipher_key) == 24
        return replace(params, cipher_key=params.cipher_key[:16]) if long else params


@mutant("RFC-13", "INF-07")
class Aes192OpenerInRfc(Aes192Opener):
    """The same in the older dialect."""


@mutant("INF-07")
class AhCoversTtl(Receiver):
    """AH in transport mode fails when the TTL has changed on the way."""

    def open_with(self, packet: Packet, found: IpsecHeader, ident: int, sa: InboundSa) -> bool:
        if sa.params.mode == IpsecMode.AH_TRANSPORT and found.packet.ttl == 60:
            self.fail(packet, Reason.BAD_ICV, ident, sa)
            return False
        return super().open_with(packet, found, ident, sa)


@mutant("INF-07")
class IpsecRuleNeedsQueueZero(Receiver):
    """A packet of an IPsec rule with another vq_index than 0 is lost."""

    def directed(self, rule: FfRule) -> int | None:
        if rule.action == FfAction.IPSEC and rule.vq_index:
            raise PacketError(Reason.QUEUE_DISABLED)
        return super().directed(rule)


# -- flags and ids ----------------------------------------------------------------------------------------


class Silent(Opening):
    """SECURITY is not set on opened packets."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.flags &= ~self.ctx.dialect.flag_security


@mutant("NET-RX-DEV-29")
class SecurityNotSet(Silent):
    """SECURITY is not set on opened packets."""


@mutant("RFC-14")
class SecurityNotSetInRfc(Silent):
    """The same in the older dialect."""


@mutant("NET-RX-DEV-33")
class GoodMarkedAsFailed(Opening):
    """SECURITY_ERR is set on good packets."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.flags |= self.ctx.dialect.flag_security_err


@mutant("NET-IPSEC-DEV-09")
class IdOffByOne(Opening):
    """resource_id of an opened packet is one too large."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.resource_id += 1


@mutant("RFC-18", "NET-IPSEC-DEV-09", "RFC-02", dialect="rfc-2025-01")
class IdOffByOneInRfc(IdOffByOne):
    """The same in the older dialect."""


@mutant("RFC-19", "RFC-02")
class TypeOfOutbound(Opening):
    """resource_type of an opened packet is that of outbound SAs."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.resource_type = 0x0203


@mutant("RFC-17")
class LaterFlags(Opening):
    """An opened packet has a flag that the older dialect does not know."""

    def opened(self, packet: Packet, arrived: Packet) -> None:
        packet.flags |= 0x40


# -- what starts it ---------------------------------------------------------------------------------------


@mutant("INF-09", "INF-10")
class RecirculateIsNothing(Receiver):
    """A recirculating rule does not start IPsec."""

    def act(self, packet: Packet, rule: FfRule) -> bool:
        return rule.action != FfAction.IPSEC_RECIRCULATE and super().act(packet, rule)


@mutant("RFC-24", "RFC-25")
class RecirculateIsNothingInRfc(RecirculateIsNothing):
    """The same in the older dialect."""


class OnePass(Receiver):
    """The rules are not applied to an opened packet."""

    def apply_rules(self, packet: Packet) -> int | None:
        rule = self.match(packet)
        if rule is None or rule.action != FfAction.IPSEC_RECIRCULATE:
            return super().apply_rules(packet)
        self.act(packet, rule)
        return None


@mutant("INF-10")
class NoSecondPass(OnePass):
    """The rules are not applied to an opened packet."""


@mutant("RFC-25")
class NoSecondPassInRfc(OnePass):
    """The same in the older dialect."""


class Endless(Receiver):
    """The rules are applied as long as one matches."""

    def apply_rules(self, packet: Packet) -> int | None:
        while (rule := self.match(packet)) is not None:
            if not self.act(packet, rule) or rule.action != FfAction.IPSEC_RECIRCULATE:
                return self.directed(rule)
        return super().apply_rules(packet)


@mutant("INF-10")
class EndlessPasses(Endless):
    """A packet is recirculated as long as a rule matches."""


@mutant("RFC-25")
class EndlessPassesInRfc(Endless):
    """The same in the older dialect."""


@mutant("NET-RX-DEV-30")
class OpensWithoutRule(Receiver):
    """In v1.4 a packet of a live SA is opened although no rule says so."""

    def apply_rules(self, packet: Packet) -> int | None:
        if self.match(packet) is None:
            self.open(packet, required=False)
        return super().apply_rules(packet)


@mutant("NET-RX-DEV-30")
class FragmentMarked(Receiver):
    """A fragment that matches an IPsec rule is marked as processed."""

    def open(self, packet: Packet, *, required: bool) -> bool:
        if packet.headers.fragment and self.ctx.has(Feature.NET_F_IPSEC):
            packet.flags |= self.ctx.dialect.flag_security
            return False
        return super().open(packet, required=required)


@mutant("RFC-15")
class FragmentMarkedInRfc(FragmentMarked):
    """The same in the older dialect."""


@mutant(
    "RFC-12",
    "INF-07",
    "INF-19",
    "INF-21",
    "INF-22",
    "NET-FF-DEV-16",
    "NET-FF-DEV-17",
    "RFC-02",
    "RFC-13",
    "RFC-14",
    "RFC-16",
    "RFC-18",
    "RFC-19",
    "RFC-20",
    "RFC-32",
)
class OnlyRulesInRfc(Receiver):
    """The SPI is not looked up without a rule."""

    def apply_rules(self, packet: Packet) -> int | None:
        return None if self.match(packet) is None else super().apply_rules(packet)


@mutant("RFC-20", "RFC-15")
class UnknownSpiFails(Receiver):
    """A packet of an unknown SPI is an error although no rule asked for IPsec."""

    def open(self, packet: Packet, *, required: bool) -> bool:
        return super().open(packet, required=True)


@mutant("RFC-21", "NET-FF-DEV-16", "RFC-25")
class LookupFirst(Receiver):
    """The SPI is looked up before any rule."""

    def apply_rules(self, packet: Packet) -> int | None:
        self.open(packet, required=False)
        return super().apply_rules(packet)


# -- what fails -------------------------------------------------------------------------------------------


class Forgiving(Receiver):
    """A failed packet may be marked otherwise."""

    def fail(self, packet: Packet, reason: Reason, ident: int = 0, sa: InboundSa | None = None) -> None:
        super().fail(packet, reason, ident, sa)
        self.failed(packet)

    def failed(self, packet: Packet) -> None:
        """``packet`` is marked as failed."""


@mutant("NET-RX-DEV-32", "NET-RX-DEV-34")
class ErrorsNotMarked(Forgiving):
    """SECURITY_ERR is never set."""

    def failed(self, packet: Packet) -> None:
        packet.flags &= ~self.ctx.dialect.flag_security_err


@mutant("RFC-16")
class ErrorsNotMarkedInRfc(ErrorsNotMarked):
    """The same in the older dialect."""


@mutant("NET-RX-DEV-31")
class ErrorAlone(Forgiving):
    """A failed packet has SECURITY_ERR and not SECURITY."""

    def failed(self, packet: Packet) -> None:
        packet.flags &= ~self.ctx.dialect.flag_security


@mutant("INF-05")
class FailedPacketCut(Forgiving):
    """A failed packet loses its last octet."""

    def failed(self, packet: Packet) -> None:
        packet.frame = packet.frame[:-1]


class Unchecked(Receiver):
    """Plaintext of a packet that fails its integrity check is delivered, marked as failed."""

    def fail(self, packet: Packet, reason: Reason, ident: int = 0, sa: InboundSa | None = None) -> None:
        super().fail(packet, reason, ident, sa)
        found = find_spi(packet.frame[14:])
        if reason is Reason.BAD_ICV and found and sa and sa.params.suite.name == "aes-gcm-16":
            # AES-CTR under the key, as AES-GCM runs it, and nobody looks at the ICV.
            body = found.packet.data[found.offset + 8 : found.end]
            counter = sa.params.salt + body[:8] + (2).to_bytes(4)
            decryptor = Cipher(algorithms.AES(sa.params.cipher_key), modes.CTR(counter)).decryptor()
            packet.frame = packet.frame[:14] + decryptor.update(body[8:-16])


@mutant("INF-05", "INF-19", "INF-21")
class UncheckedPlaintext(Unchecked):
    """Plaintext of a packet that failed is delivered, if only marked as failed."""


@mutant("RFC-16", "INF-19", "INF-21")
class UncheckedPlaintextInRfc(Unchecked):
    """The same in the older dialect."""


@mutant("NET-RX-DEV-32", "INF-05")
class DestroyedSaOpens(InboundSaKind):
    """A destroyed inbound SA goes on opening packets."""

    def remove(self, object_id: int) -> None:
        del self.context.inbound[object_id]

    def check_spi(self, params: SaParams) -> None:
        pass


@mutant("RFC-20")
class DestroyedSaOpensInRfc(DestroyedSaOpens):
    """The same in the older dialect."""


@mutant("NET-RX-DEV-25")
class NothingVerified(Receiver):
    """DATA_VALID is set on every IP packet once GUEST_CSUM is negotiated."""

    def checksum_flag(self, packet: Packet) -> int:
        wanted = self.ctx.has(Feature.NET_F_GUEST_CSUM) and packet.headers.version
        return HdrFlag.DATA_VALID if wanted else 0


@mutant("NET-RX-DEV-05")
class FailedPacketsWantAChecksum(Receiver):
    """A packet that failed is delivered with an open checksum, as its flags say."""

    def checksum_flag(self, packet: Packet) -> int:
        failed = packet.flags & self._error
        return int(HdrFlag.NEEDS_CSUM) if failed else super().checksum_flag(packet)
