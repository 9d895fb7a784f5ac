"""Drivers of owners that are wrong about virtual functions."""

from __future__ import annotations

from typing import Any

from driver_registry import Wrong, driver_mutant, replace

from virtio_ipsec.conformance.monitor.script import Hands
from virtio_ipsec.conformance.monitor.script_members import CONFIG, MEMBER
from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.errors import DriverError
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.wire.admin import ADMIN_COMMAND, AdminCommand
from virtio_ipsec.wire.device_parts import MODE_SET, Metadata, ModeCommand, parts_build, parts_parse
from virtio_ipsec.wire.numbers import Feature, GroupType, Opcode, Status, mask

SR_IOV = mask(Feature.F_SR_IOV)
#: Of what the face offers, all that the driver would leave out when it tries less.
BEYOND = (Feature.F_ACCESS_PLATFORM, Feature.F_ORDER_PLATFORM, Feature.F_NOTIF_CONFIG_DATA)


class Owner(Wrong):
    only = ("own_members",)

    def start_member(self, function: Any) -> None:
        """Nobody is at work in the member."""


@driver_mutant("BAS-RSVD-05", over_pci=True)
class EnablesUnasked(Owner):
    """Virtual functions are enabled without VIRTIO_F_SR_IOV."""

    config = replace(CONFIG, wanted=SUPPORTED & ~SR_IOV)


class EarlyHands(Hands):
    def write_status(self, value: int) -> None:
        if value & Status.FEATURES_OK and not self._link.status() & Status.FEATURES_OK:
            self._link.virtual_functions.enable(1)  # type: ignore[attr-defined]
        super().write_status(value)


@driver_mutant("BAS-RSVD-05", over_pci=True)
class EnablesEarly(Wrong):
    """Virtual functions are enabled before FEATURES_OK."""

    hands_class = EarlyHands


class AcceptingHands(Hands):
    def write_driver_features(self, word: int) -> None:
        self._link.write_driver_features(word | SR_IOV)


@driver_mutant("BAS-RSVD-05", "BAS-FEAT-01", face="split", without=BEYOND, over_pci=True)
class AcceptsWithoutCapability(Wrong):
    """VIRTIO_F_SR_IOV is accepted from a function without the capability."""

    hands_class = AcceptingHands


@driver_mutant("ADM-DRV-10", over_pci=True)
class DisablesEarly(Owner):
    """VF Enable is cleared while a command for a member is outstanding."""

    def resume_member(self, group: Admin) -> None:
        data = MODE_SET.build(ModeCommand(0))
        command = AdminCommand(Opcode.DEV_MODE_SET, GroupType.SRIOV, MEMBER, data)
        self.post(self.requests, ADMIN_COMMAND.build(command), 8)
        self.link.virtual_functions.disable()
        self.link.kick(self.link.admin_queue_index())
        self.link.poll(0.0)
        raise DriverError("they are gone")


@driver_mutant("ADM-DRV-10", over_pci=True)
class CommandsTheGone(Owner):
    """A command for a member comes after VF Enable was cleared."""

    def own_members(self) -> None:
        super().own_members()
        self.raw(Opcode.DEV_MODE_SET, bytes(8), group=GroupType.SRIOV)


@driver_mutant("ADM-DRV-10", over_pci=True)
class NoSuchMember(Owner):
    """A command names a member that does not exist."""

    def while_stopped(self, function: Any) -> None:
        self.raw(Opcode.DEV_MODE_SET, bytes(8), group=GroupType.SRIOV)


@driver_mutant("DP-DRV-01", over_pci=True)
class SetsTheRunning(Owner):
    """Parts are set in a member that is not stopped."""

    def stop_member(self, group: Admin) -> None:
        pass


@driver_mutant("DP-DRV-01", over_pci=True)
class SetsTheResumed(Owner):
    """Parts are set in a member that was stopped and has been resumed."""

    def while_stopped(self, function: Any) -> None:
        self.resume_member(self.group)

    def stop_member(self, group: Admin) -> None:
        self.group = group
        super().stop_member(group)


@driver_mutant("DP-DRV-02", over_pci=True)
class AnyOrder(Owner):
    """Parts are set in another order."""

    def set_parts(self, group: Admin, parts: bytes) -> None:
        super().set_parts(group, parts_build(reversed(parts_parse(parts))))


@driver_mutant("DP-DRV-03", over_pci=True)
class ReadsTheStopped(Owner):
    """The configuration of a stopped member is read."""

    def while_stopped(self, function: Any) -> None:
        function.read_config(0, 6)


@driver_mutant("DP-DRV-04", over_pci=True)
class LittleRoomForMetadata(Owner):
    """The list of parts has room for all but one of them."""

    def metadata(self, group: Admin, kind: Metadata, room: int) -> bytes:
        return super().metadata(group, kind, room - 16 * (kind is Metadata.LIST))


@driver_mutant("DP-DRV-05", over_pci=True)
class LittleRoomForParts(Owner):
    """There is room for half of the parts."""

    def metadata(self, group: Admin, kind: Metadata, room: int) -> bytes:
        answer = super().metadata(group, kind, room)
        if kind is Metadata.SIZE:
            return (int.from_bytes(answer[:4], "little") // 2).to_bytes(4, "little") + answer[4:]
        return answer
