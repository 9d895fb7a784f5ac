"""Devices whose capabilities are wrong, listed wrongly, or set wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from registry import mutant

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.capabilities import Capabilities, Capability, IpsecResources, IpsecSaModes
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import Busy, InvalidField, NoSuchObject
from virtio_ipsec.wire.admin import AdminCommand
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import CapId, GroupType, Opcode

InUse = Callable[[tuple[Any, ...]], bool]


@mutant("CAP-DEV-01", "CAP-DEV-02", "CAP-DEV-03", "CAP-DEV-08")
class NoCapSet(AdminCommands):
    """DRIVER_CAP_SET is not supported."""

    def group_types(self) -> dict[int, frozenset[int]]:
        return {g: opcodes - {Opcode.DRIVER_CAP_SET} for g, opcodes in super().group_types().items()}


class ModesNotListed(Capabilities):
    """0x0804 is missing from the bitmap."""

    def listed(self) -> frozenset[int]:
        return super().listed() - {CapId.NET_IPSEC_SA_CAP}


@mutant("NET-IPSEC-DEV-01")
class OneCapabilityNotListed(ModesNotListed):
    """0x0804 is missing from the bitmap."""


@mutant("RFC-26", "NET-IPSEC-DEV-01")
class OneCapabilityNotListedRfc(ModesNotListed):
    """0x0804 is missing from the bitmap of the older dialect."""


@mutant("INF-40", "AVQ-DEV-05")
class BitmapOfBytes(AdminCommands):
    """The bitmap ends with its last byte that is not zero."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        answer = super().process(readable, writable_len)
        listing = readable[:2] == int(Opcode.CAP_ID_LIST_QUERY).to_bytes(2, "little")
        return answer[:8] + answer[8:].rstrip(b"\0") if listing else answer


class NaturalStride(Capabilities):
    """Entries of the SA capability lie at a stride of 48 bytes."""

    def get(self, cap_id: int) -> bytes:
        data = super().get(cap_id)
        if cap_id != CapId.NET_IPSEC_SA_CAP:
            return data
        size = (len(data) - 8) // data[0]
        entries = [data[at : at + size] for at in range(8, len(data), size)]
        return data[:8] + b"".join(entry.ljust(48, b"\0") for entry in entries)


@mutant("INF-02", "CAP-DEV-03")
class EntriesOf48(NaturalStride):
    """Entries of the SA capability are as long as an unpacked C structure."""


@mutant("RFC-27", "CAP-DEV-03")
class EntriesOf48Rfc(NaturalStride):
    """Entries of the SA capability of the older dialect are as long as an unpacked C structure."""


class Altered(IpsecSaModes):
    """The offered entries pass through ``alter``; the driver may set what it was shown."""

    def alter(self, entry: ModeCap) -> ModeCap:
        return entry

    def offered(self) -> IpsecSaCap:
        return IpsecSaCap(tuple(self.alter(entry) for entry in super().offered().modes))


@mutant("INF-13")
class UndefinedOption(Altered):
    """An option bit that is not defined is offered."""

    def alter(self, entry: ModeCap) -> ModeCap:
        return replace(entry, options=entry.options | 1 << 20)


@mutant("INF-13")
class UndefinedCipher(Altered):
    """A cipher bit that is not defined is offered."""

    def alter(self, entry: ModeCap) -> ModeCap:
        return replace(entry, cipher_algo=entry.cipher_algo | 1 << 15)


@mutant("INF-13")
class KeysOf48(Altered):
    """Keys of 48 bytes are offered; no field can hold them."""

    def alter(self, entry: ModeCap) -> ModeCap:
        return replace(entry, max_auth_key_len=48)


@mutant("INF-13")
class ReservedInCapability(Capabilities):
    """A reserved byte of the SA capability is not zero."""

    def get(self, cap_id: int) -> bytes:
        data = super().get(cap_id)
        return data[:9] + b"\x07" + data[10:] if cap_id == CapId.NET_IPSEC_SA_CAP else data


@mutant("RFC-28", "INF-13")
class ModeNumbers(Altered):
    """AH transport has the number 9."""

    def alter(self, entry: ModeCap) -> ModeCap:
        return replace(entry, mode=9 if entry.mode == 4 else entry.mode)


@mutant("CAP-DEV-02")
class LimitsAreFixed(IpsecResources):
    """Limits between zero and the device's cannot be set."""

    def check(self, wanted: IpsecResourceCap, offered: IpsecResourceCap) -> None:
        super().check(wanted, offered)
        if wanted != offered and 2 < wanted.outb_sa_limit < offered.outb_sa_limit > 65535:
            raise InvalidField("limits")


@mutant("CAP-DEV-02")
class LimitsOnlyFall(Capabilities):
    """A limit that was lowered cannot be raised again."""

    def set(self, cap_id: int, data: bytes, in_use: InUse) -> None:
        before = self._driver.get(cap_id)
        super().set(cap_id, data, in_use)
        if isinstance(before, IpsecResourceCap) and self._driver[cap_id].inb_sa_limit > before.inb_sa_limit:
            self._driver[cap_id] = before
            raise InvalidField("limit was lower")


@mutant("CAP-DEV-03")
class OptionsAreFixed(IpsecSaModes):
    """Option bits of the device cannot be left out."""

    def check_mode(self, wanted: ModeCap, limit: ModeCap) -> None:
        super().check_mode(wanted, limit)
        if wanted.options != limit.options:
            raise InvalidField("options")


@mutant("CAP-DEV-03")
class FirstModeIsNeeded(IpsecSaModes):
    """A list of modes must start with the first one of the device."""

    def check(self, wanted: IpsecSaCap, offered: IpsecSaCap) -> None:
        super().check(wanted, offered)
        if wanted.modes and wanted.modes[0].mode != offered.modes[0].mode:
            raise InvalidField("first mode")


@mutant("CAP-DEV-04")
class BeyondIsUnknown(Capabilities):
    """More than the device offers gets ENXIO."""

    def set(self, cap_id: int, data: bytes, in_use: InUse) -> None:
        try:
            super().set(cap_id, data, in_use)
        except InvalidField as error:
            raise NoSuchObject(str(error)) from error


@mutant("CAP-DEV-04", ipsec_limits=IpsecResourceCap(300, 300))
class BeyondIsUsable(IpsecResources):
    """Larger limits than the device's are accepted, and count."""

    def check(self, wanted: IpsecResourceCap, offered: IpsecResourceCap) -> None:
        pass


class CapabilitiesForAll(AdminCommands):
    """The capability commands work for the SR-IOV group as well."""

    def group_types(self) -> dict[int, frozenset[int]]:
        more = frozenset({Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET})
        return {
            group: opcodes | more if group == GroupType.SRIOV else opcodes
            for group, opcodes in super().group_types().items()
        }

    def handle(self, command: AdminCommand) -> bytes:
        return self.handlers[command.opcode](command)


@mutant("CAP-DEV-05", "CAP-DEV-06", members=1)
class CapabilitiesOfVirtualFunctions(CapabilitiesForAll):
    """The capability commands work for the SR-IOV group."""


@mutant("CAP-DEV-06", "CAP-DEV-05", members=1)
class NoErrorForAnotherGroup(CapabilitiesForAll):
    """The capability commands answer OK for the SR-IOV group."""


@mutant("CAP-DEV-07")
class NeverBusy(Capabilities):
    """Capabilities can be set whatever lives under them."""

    def check_unused(self, rule: Capability[Any], in_use: InUse) -> None:
        pass


@mutant("CAP-DEV-07")
class InboundNotCounted(Capabilities):
    """Only outbound SAs keep a capability busy."""

    def check_unused(self, rule: Capability[Any], in_use: InUse) -> None:
        super().check_unused(rule, lambda types: in_use(types[:1]))


@mutant("CAP-DEV-07")
class BusyIsInvalid(Capabilities):
    """Disabling a capability in use gets EINVAL."""

    def check_unused(self, rule: Capability[Any], in_use: InUse) -> None:
        try:
            super().check_unused(rule, in_use)
        except Busy as error:
            raise InvalidField(str(error)) from None


@mutant("ADM-DEV-08")
class BusyButSet(Capabilities):
    """A capability that is in use is set all the same, behind EBUSY."""

    def set(self, cap_id: int, data: bytes, in_use: InUse) -> None:
        try:
            super().set(cap_id, data, in_use)
        except Busy:
            super().set(cap_id, data, lambda types: False)
            raise


@mutant("ADM-DEV-07")
class RefusedButSet(Capabilities):
    """Limits that are refused count all the same."""

    def set(self, cap_id: int, data: bytes, in_use: InUse) -> None:
        try:
            super().set(cap_id, data, in_use)
        except InvalidField:
            if cap_id == CapId.NET_IPSEC_RESOURCE_CAP:
                self._driver[cap_id] = self._rule(cap_id).offered()
            raise


@mutant("CAP-DEV-08")
class UnlistedIsInvalid(Capabilities):
    """An id that is not listed gets EINVAL."""

    def _rule(self, cap_id: int) -> Any:
        try:
            return super()._rule(cap_id)
        except NoSuchObject as error:
            raise InvalidField(str(error)) from None


@mutant("CAP-DEV-09", "CAP-DEV-10", "NET-IPSEC-DEV-03")
class DriverCapabilitiesSurvive(Device):
    """What the driver set survives a reset."""

    def reset(self) -> None:
        kept = self.capabilities.driver_values() or getattr(self, "_kept", {})
        super().reset()
        self._kept = kept

    def _adopt(self, features: int) -> None:
        super()._adopt(features)
        if features:
            for id in {0x803, 0x804} & getattr(self, "_kept", {}).keys() & self.capabilities.listed():
                data = self.config.dialect.capabilities[id].build(self._kept[id])
                self.capabilities.set(id, data, lambda types: False)


@mutant("CAP-DEV-10", "CAP-DEV-09", "NET-IPSEC-DEV-03")
class UnsetMeansEverything(Capabilities):
    """A capability that the driver has not set counts as the device's."""

    def enabled(self, *cap_ids: int) -> bool:
        for cap_id in set(cap_ids) & {CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP}:
            if cap_id in self._rules and cap_id not in self._driver:
                self.set(cap_id, self.get(cap_id), lambda types: False)
        return super().enabled(*cap_ids)
