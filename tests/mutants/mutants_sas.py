"""Devices that accept SAs which they must refuse, or refuse what they must accept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from registry import mutant

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.ipsec_objects import InboundSaKind, OutboundSaKind, SaKind
from virtio_ipsec.errors import AlreadyExists, InvalidField, InvalidOpcode, NoSuchObject
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.wire.ipsec import IpsecSa, ModeCap
from virtio_ipsec.wire.numbers import CapId, MacAlgo, Opcode

OUT, IN = "NET-IPSEC-DEV-06", "NET-IPSEC-DEV-08"


@mutant("NET-IPSEC-DEV-02", "INF-39")
class NoModifyInbound(InboundSaKind):
    """MODIFY of inbound SAs is not supported."""

    def prepare_change(self, object_id: int, value: IpsecSa) -> SaParams:
        raise InvalidOpcode("MODIFY")


@mutant("NET-IPSEC-DEV-02", "NET-FF-DEV-02", "INF-39", "RO-DEV-02")
class NoModifyAtAll(AdminCommands):
    """MODIFY is not supported."""

    def group_types(self) -> dict[int, frozenset[int]]:
        return {g: opcodes - {Opcode.RESOURCE_OBJ_MODIFY} for g, opcodes in super().group_types().items()}


class Unpacked(OutboundSaKind):
    """An SA that is long enough is taken for an unpacked C structure."""

    def parse(self, data: bytes) -> tuple[IpsecSa, bytes]:
        packed, at = b"", 0
        for field in (f for f in self.codec.layout() if ".ipv4." not in f.name):
            at += -at % (field.size if field.size in (2, 4, 8) else 1)
            packed += data[at : at + (field.size or 0)]
            at += field.size or 0
        return super().parse(packed if len(data) >= at else data)


@mutant("INF-03", "AVQ-DEV-04")
class UnpackedSa(Unpacked):
    """Long outbound SAs are taken for unpacked C structures."""


@mutant("RFC-29", "INF-03", "AVQ-DEV-04")
class UnpackedSaRfc(Unpacked):
    """Long outbound SAs of the older dialect are taken for unpacked C structures."""


@mutant("RFC-28", "RFC-29", "RFC-30", "RFC-35", "INF-03", "NET-IPSEC-DEV-06")
class NoAhTransport(OutboundSaKind):
    """CREATE in mode 4 is refused, although it is offered."""

    def mode_cap(self, mode: int) -> ModeCap:
        if mode == 4:
            raise InvalidField("mode 4")
        return super().mode_cap(mode)


@mutant("NET-IPSEC-DEV-03")
class DisabledIsUnknown(OutboundSaKind):
    """Commands on outbound SAs get ENXIO while a capability is disabled."""

    def check_enabled(self) -> None:
        try:
            super().check_enabled()
        except InvalidOpcode as error:
            raise NoSuchObject(str(error)) from None


@mutant("NET-IPSEC-DEV-03")
class NoLimitsIsNoReason(InboundSaKind):
    """With an empty list of modes commands on inbound SAs get ENXIO."""

    def check_enabled(self) -> None:
        if CapId.NET_IPSEC_RESOURCE_CAP in self.capabilities.driver_values():
            if not self.capabilities.enabled(*self.needs):
                raise NoSuchObject("no modes")
            return
        super().check_enabled()


class OneMore(SaKind):
    """One id too many."""

    def check_id(self, object_id: int, live: int) -> None:
        if object_id != self.limit():
            super().check_id(object_id, live)


@mutant("NET-IPSEC-DEV-05", "INF-12", "ADM-DEV-07")
class OneMoreOutbound(OneMore, OutboundSaKind):
    """The limit itself is an outbound id."""


@mutant("NET-IPSEC-DEV-07", "INF-12")
class OneMoreInbound(OneMore, InboundSaKind):
    """The limit itself is an inbound id."""


@mutant("RFC-35", "INF-12", "NET-IPSEC-DEV-07")
class OneMoreInboundRfc(OneMore, InboundSaKind):
    """The limit itself is an inbound id, in the older dialect."""


@mutant("NET-IPSEC-DEV-05", "INF-12", "ADM-DEV-07")
class DeviceLimitOutbound(OutboundSaKind):
    """The device's limit bounds outbound ids, not the driver's."""

    def limit(self) -> int:
        return self.context.config.ipsec_limits.outb_sa_limit


@mutant("NET-IPSEC-DEV-05", "INF-12", "CAP-DEV-02")
class LimitsSwapped(OutboundSaKind):
    """The inbound limit bounds outbound ids."""

    def limit(self) -> int:
        limit: int = self.capabilities.driver(CapId.NET_IPSEC_RESOURCE_CAP).inb_sa_limit
        return limit


@mutant("NET-IPSEC-DEV-11")
class EqualSpiExists(InboundSaKind):
    """An SPI in use gets EEXIST."""

    def check_spi(self, params: SaParams) -> None:
        try:
            super().check_spi(params)
        except InvalidField as error:
            raise AlreadyExists(str(error)) from None


@mutant("NET-IPSEC-DEV-11", "NET-IPSEC-DEV-10", "RO-DEV-05", "AVQ-DEV-01")
class SpisStayTaken(InboundSaKind):
    """The SPI of a destroyed inbound SA stays taken."""

    def check_spi(self, params: SaParams) -> None:
        taken = self.__dict__.setdefault("_taken", set())
        if params.spi in taken:
            raise InvalidField("SPI in use")
        taken.add(params.spi)


@mutant("ADM-DEV-07")
class RefusedInboundTakesSpi(InboundSaKind):
    """A CREATE that is refused for its mode keeps the SPI."""

    def prepare(self, object_id: int, value: IpsecSa) -> Any:
        taken = self.__dict__.setdefault("_taken", {})
        if taken.get(value.spi, object_id) is None and value.mode in (1, 2, 3, 4) and not value.options >> 32:
            raise InvalidField("SPI in use")
        try:
            return super().prepare(object_id, value)
        except InvalidField:
            if value.mode == 9:
                taken[value.spi] = None
            raise


@mutant("ADM-DEV-07")
class RefusedCreateIsLive(OutboundSaKind):
    """A CREATE that is refused for its mode leaves an SA of mode 1."""

    def mode_cap(self, mode: int) -> ModeCap:
        return super().mode_cap(1 if mode == 9 else mode)

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, mode=1) if sa.mode == 9 else sa)


@mutant("INF-14")
class OutboundWindow(OutboundSaKind):
    """The window of outbound SAs is checked."""

    check_replay_window = InboundSaKind.check_replay_window


@mutant("RFC-38")
class ModifyInTheOlderDialect(AdminCommands):
    """MODIFY and QUERY exist."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.handlers[Opcode.RESOURCE_OBJ_QUERY] = self.resource_obj_query
        self.handlers[Opcode.RESOURCE_OBJ_MODIFY] = self.resource_obj_modify
        self.supported = self.group_types()


class LenientOptions(SaKind):
    """Options that are not offered are ignored."""

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, options=sa.options & self.mode_cap(sa.mode).options))


@mutant(OUT, "ADM-DEV-07", "INF-22")
class OptionsIgnoredOutbound(LenientOptions, OutboundSaKind):
    """Options that are not offered are ignored, outbound."""


@mutant(IN, "ADM-DEV-07")
class OptionsIgnoredInbound(LenientOptions, InboundSaKind):
    """Options that are not offered are ignored, inbound."""


@mutant("RFC-30", IN, "ADM-DEV-07")
class OptionsIgnoredRfc(LenientOptions, InboundSaKind):
    """Option bits from 5 on are ignored in the older dialect."""


class WideOptions(SaKind):
    """The upper half of options is ignored."""

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, options=sa.options & 0xFFFFFFFF))


@mutant(OUT, "ADM-DEV-07")
class WideOptionsOutbound(WideOptions, OutboundSaKind):
    """The upper half of options is ignored, outbound."""


class AnyMode(SaKind):
    """An unknown mode is ESP tunnel."""

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, mode=sa.mode if 0 < sa.mode < 5 else 1))


@mutant(OUT, "ADM-DEV-07")
class AnyModeOutbound(AnyMode, OutboundSaKind):
    """An unknown mode is ESP tunnel, outbound."""


@mutant(IN, "ADM-DEV-07")
class AnyModeInbound(AnyMode, InboundSaKind):
    """An unknown mode is ESP tunnel, inbound."""


class AnyAlgorithm(SaKind):
    """A MAC that is not offered is replaced by one that is."""

    def params(self, sa: IpsecSa) -> SaParams:
        cap = self.mode_cap(sa.mode)
        if sa.auth_algo and not (sa.auth_algo < 64 and cap.hmac_algo >> sa.auth_algo & 1):
            sa = replace(sa, auth_algo=MacAlgo.HMAC_SHA1, auth_key=bytes(20), auth_key_len=None)
        return super().params(sa)


@mutant(OUT)
class AnyMacOutbound(AnyAlgorithm, OutboundSaKind):
    """A MAC that is not offered is replaced, outbound."""


@mutant(IN)
class AnyMacInbound(AnyAlgorithm, InboundSaKind):
    """A MAC that is not offered is replaced, inbound."""


class CutKeys(SaKind):
    """A key that is too long is cut."""

    def params(self, sa: IpsecSa) -> SaParams:
        if sa.cipher_key_length > 32:
            sa = replace(sa, cipher_key=sa.cipher_key.ljust(32, b"\0"), cipher_key_len=None)
        if sa.auth_key_length > 32:
            sa = replace(sa, auth_key=sa.auth_key.ljust(32, b"\0"), auth_key_len=None)
        return super().params(sa)


@mutant(OUT)
class CutKeysOutbound(CutKeys, OutboundSaKind):
    """A key that is too long is cut, outbound."""


@mutant(IN)
class CutKeysInbound(CutKeys, InboundSaKind):
    """A key that is too long is cut, inbound."""


@mutant(IN)
class AnyWindow(InboundSaKind):
    """A window that is too large is made smaller."""

    def params(self, sa: IpsecSa) -> SaParams:
        most = self.mode_cap(sa.mode).max_replay_win_sz
        return super().params(replace(sa, replay_win_sz=min(sa.replay_win_sz, most)))


class DeviceCapability(SaKind):
    """The device's capability counts, not the driver's."""

    def mode_cap(self, mode: int) -> ModeCap:
        for cap in self.context.config.offered_sa_cap.modes:
            if cap.mode == mode:
                return cap
        return super().mode_cap(mode)


@mutant(OUT)
class DeviceCapabilityOutbound(DeviceCapability, OutboundSaKind):
    """The device's capability counts, outbound."""


@mutant(IN)
class DeviceCapabilityInbound(DeviceCapability, InboundSaKind):
    """The device's capability counts, inbound."""


@mutant("RFC-35", OUT)
class DeviceCapabilityRfc(DeviceCapability, OutboundSaKind):
    """The device's capability counts in the older dialect."""


class HalfDirections(SaKind):
    """Direction 3 is taken for the right one, others are refused."""

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, direction=self.direction) if sa.direction == 3 else sa)


@mutant(OUT)
class HalfDirectionsOutbound(HalfDirections, OutboundSaKind):
    """Direction 3 counts as outbound."""


@mutant(IN)
class HalfDirectionsInbound(HalfDirections, InboundSaKind):
    """Direction 3 counts as inbound."""


@mutant("RFC-33")
class EsnCut(InboundSaKind):
    """The upper half of esn is ignored without the option."""

    def params(self, sa: IpsecSa) -> SaParams:
        return super().params(replace(sa, esn=sa.esn if sa.options & 1 else sa.esn & 0xFFFFFFFF))
