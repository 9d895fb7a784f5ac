"""Owners and members that get the SR-IOV group or device parts wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from registry import mutant

from virtio_ipsec.device.admin import LIST_COMMANDS, AdminCommands
from virtio_ipsec.device.member_commands import MemberCommands
from virtio_ipsec.device.member_parts import MemberParts
from virtio_ipsec.device.members import FunctionState
from virtio_ipsec.errors import Busy, InvalidField, InvalidGroup
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain
from virtio_ipsec.transport.loopback_members import LoopbackMember
from virtio_ipsec.wire.admin import AdminCommand, ObjectCommand
from virtio_ipsec.wire.device_parts import PARTS_SET, Part, PartType, parts_build, parts_parse
from virtio_ipsec.wire.numbers import GroupType


@mutant("ADM-DEV-18", members=2)
class AnyNumberIsAMember(AdminCommands):
    """Member ids beyond NumVFs mean the last member, and 0 the first."""

    def execute(self, command: AdminCommand) -> bytes:
        if command.group_type == GroupType.SRIOV and command.opcode not in LIST_COMMANDS:
            most = self.num_vfs() or 1
            command = replace(command, group_member_id=min(max(command.group_member_id, 1), most))
        return super().execute(command)


@mutant("ADM-DEV-18", members=2)
class OneMemberTooFew(AdminCommands):
    """The last member is refused."""

    def check_member(self, command: AdminCommand) -> None:
        more = int(command.group_type == GroupType.SRIOV)
        super().check_member(replace(command, group_member_id=command.group_member_id + more))


@mutant("ADM-DEV-17", members=2)
class GroupWithoutVfEnable(AdminCommands):
    """While VF Enable is clear, commands of the group succeed."""

    def execute(self, command: AdminCommand) -> bytes:
        if command.group_type == GroupType.SRIOV and self.num_vfs() is None:
            return b""
        return super().execute(command)


class Rewritten(MemberParts):
    """Parts are changed on their way."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        """What is read."""
        return parts

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        """What is set."""
        return parts

    def parts(self, number: int) -> tuple[Part, ...]:
        return tuple(self.outgoing(super().parts(number)))

    def parts_set(self, number: int, data: bytes, room: int) -> bytes:
        request = PARTS_SET.parse(data)
        parts = parts_build(self.incoming(number, parts_parse(request.parts)))
        return super().parts_set(number, PARTS_SET.build(replace(request, parts=parts)), room)


@mutant("DP-DEV-02", "DP-DEV-01", "DP-DEV-05", members=2)
class PartsLeftOutLater(Rewritten):
    """Only the first answer holds what the control queue has set."""

    read = False

    def parts_get(self, number: int, data: bytes, room: int) -> bytes:
        answer = super().parts_get(number, data, room)
        self.read = True
        return answer

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return (part for part in parts if not self.read or part.part_type != PartType.NET_CVQ_CFG)


def moved(kind: PartType, behind: PartType) -> Callable[[tuple[Part, ...]], list[Part]]:
    """The order of the table with one type behind another."""
    order = [float(each) for each in PartType]
    order[list(PartType).index(kind)] = behind + 0.5
    places = dict(zip(PartType, order, strict=True))
    return lambda parts: sorted(parts, key=lambda part: places[PartType(part.part_type)])


@mutant("DP-DEV-03", members=2)
class NotificationsFirst(Rewritten):
    """How queues are configured comes behind how they are notified."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return moved(PartType.VQ_CFG, PartType.VQ_NOTIFY_CFG)(parts)


@mutant("DP-DEV-24", "DP-DEV-03", members=2)
class DriverFeaturesFirst(Rewritten):
    """The driver's features come before the device's."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return moved(PartType.DEV_FEATURES, PartType.DRV_FEATURES)(parts)


@mutant("DP-DEV-25", "DP-DEV-03", "DP-DEV-24", "DP-DEV-26", members=2)
class DeviceFeaturesLate(Rewritten):
    """The device's features come behind the common configuration."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return moved(PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG)(parts)


@mutant("DP-DEV-26", "DP-DEV-03", members=2)
class DriverFeaturesLate(Rewritten):
    """The driver's features come behind the common configuration."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return moved(PartType.DRV_FEATURES, PartType.PCI_COMMON_CFG)(parts)


@mutant("DP-DEV-04", members=2)
class PartsOfARunningMember(MemberParts):
    """Parts are taken while the member runs."""

    def check_stopped(self, number: int) -> None:
        pass


@mutant("DP-DEV-05", members=2)
class PartsSetOnce(Rewritten):
    """A part that has been set is not taken a second time."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        known = self.__dict__.setdefault("_known", set())
        if any(part.key in known for part in parts):
            raise Busy("set already")
        known |= {part.key for part in parts}
        return parts


@mutant("DP-DEV-05", members=2)
class StatusIsNotRestored(Rewritten):
    """The status is not taken over."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        for part in parts:
            yield replace(part, value=b"\x01") if part.part_type == PartType.DEVICE_STATUS else part


@mutant("DP-DEV-06", "DP-DEV-05", members=2)
class LengthsAreMadeToFit(Rewritten):
    """Values are cut or filled up."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        sizes = {part.key: len(part.value) for part in self.parts(number)}
        for part in parts:
            size = sizes.get(part.key, len(part.value))
            yield replace(part, value=part.value[:size].ljust(size, b"\0"))


@mutant("DP-DEV-07", "DP-DEV-06", members=2)
class DeviceFeaturesIgnored(Rewritten):
    """DEV_FEATURES is not looked at."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        return (part for part in parts if part.part_type != PartType.DEV_FEATURES)


@mutant("DP-DEV-28", members=2)
class NumQueuesIsApplied(Rewritten):
    """A read-only field is what was set."""

    applied: tuple[Part, ...] = ()

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        known = {part.key: part.value for part in self.parts(number)}
        self.applied = tuple(
            part
            for part in parts
            if part.part_type == PartType.PCI_COMMON_CFG and known.get(part.key, part.value) != part.value
        )
        return (part for part in parts if part not in self.applied)

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        applied = {part.key: part for part in self.applied}
        return (applied.get(part.key, part) for part in parts)


class SameModeIsRefused(MemberParts):
    """Refuses DEV_MODE_SET with the mode that the member has."""

    refused: bool

    def mode_set(self, number: int, data: bytes, room: int) -> bytes:
        if bool(data[0]) is self.refused and self._member(number).stopped is self.refused:
            raise Busy("that mode already")
        return super().mode_set(number, data, room)


@mutant("DP-DEV-20", members=2)
class StoppedIsNotStoppedAgain(SameModeIsRefused):
    """Stopping a stopped member fails."""

    refused = True


@mutant("DP-DEV-21", "DP-DEV-18", members=2)
class RunningIsNotResumed(SameModeIsRefused):
    """Resuming a running member fails."""

    refused = False


@mutant("DP-DEV-18", "DP-DEV-05", members=2)
class BusyBehindAReset(MemberParts):
    """The first DEV_MODE_SET or DEV_PARTS_SET behind a reset of the member is refused."""

    def _check(self, number: int) -> None:
        resets = self.members.member(number).device.resets
        known = self.__dict__.setdefault("_resets", {})
        if known.setdefault(number, resets) != resets:
            known[number] = resets
            raise Busy("just reset")

    def mode_set(self, number: int, data: bytes, room: int) -> bytes:
        self._check(number)
        return super().mode_set(number, data, room)

    def parts_set(self, number: int, data: bytes, room: int) -> bytes:
        self._check(number)
        return super().parts_set(number, data, room)


@mutant("DP-DEV-22", members=2)
class PartsOutliveAReset(MemberParts):
    """What was read of a stopped member is answered until it is resumed, whatever its driver does."""

    def parts(self, number: int) -> tuple[Part, ...]:
        known = self.__dict__.setdefault("_known", {})
        if not self._member(number).stopped:
            known.pop(number, None)
            return super().parts(number)
        found: tuple[Part, ...] = known.setdefault(number, super().parts(number))
        return found


class WritesNothingBack(LoopbackMember):
    """Frames are sent at once, and their buffers used when the member is resumed for the first time."""

    was_resumed = False

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.held: list[tuple[DeviceQueue, Chain]] = []

    def kick(self, index: int) -> None:
        if self.stopped or self.was_resumed or index != 1:
            super().kick(index)
            return
        queue = self.rings._queues[index]
        while (chain := queue.pop()) is not None:
            for frame in self.device.transmit(chain.read(self.memory)):
                self._wire(frame)
            self.held.append((queue, chain))

    def resume(self, state: FunctionState | None = None) -> None:
        for queue, chain in self.held:
            queue.push(chain, 0)
        self.held.clear()
        self.was_resumed = True
        super().resume(state)

    def vanish(self) -> None:
        self.held.clear()
        self.was_resumed = False
        super().vanish()


@mutant("DP-DEV-09", "DP-DEV-10", "DP-DEV-21", members=2)
class StopsInTheMiddle(WritesNothingBack):
    """The command that stops a member completes while buffers are under way."""


@mutant("DP-DEV-10", "DP-DEV-09", "DP-DEV-21", members=2)
class StopsWithoutWritingBack(WritesNothingBack):
    """Buffers that a member has seen are not used when it is stopped."""


@mutant("DP-DEV-08", members=2)
class SendsWhileStopped(LoopbackMember):
    """Frames that arrive at a stopped member are sent back."""

    def inject(self, frame: bytes) -> None:
        if self.stopped:
            self._wire(frame)
        super().inject(frame)


@mutant("DP-DEV-15", "DP-DEV-08", "DP-DEV-16", members=2)
class ReceivesWhileStopped(LoopbackMember):
    """A stopped member puts frames into receive buffers."""

    def inject(self, frame: bytes) -> None:
        self.rings.deliver(frame)


@mutant("DP-DEV-16", members=2)
class NotifiesWhileStopped(LoopbackMember):
    """A stopped member notifies its first receive queue, for nothing."""

    def interrupts(self) -> set[int]:
        return {0} if self.stopped else super().interrupts()


@mutant("DP-DEV-11", members=2)
class DeafWhileStopped(LoopbackMember):
    """What is announced to a stopped member is forgotten."""

    def kick(self, index: int) -> None:
        if not self.stopped:
            super().kick(index)


@mutant("DP-DEV-12", members=2)
class OnesWhileStopped(LoopbackMember):
    """The device configuration of a stopped member reads as ones."""

    def read_config(self, offset: int, length: int) -> bytes:
        return b"\xff" * length if self.stopped else super().read_config(offset, length)


@mutant("DP-DEV-13", "DP-DEV-22", members=2)
class NoResetWhileStopped(LoopbackMember):
    """A stopped member ignores what is written to its status."""

    def write_status(self, value: int) -> None:
        if not self.stopped:
            super().write_status(value)


@mutant("RO-DEV-10", members=2)
class PartsObjectsOfOnePurpose(MemberParts):
    """QUERY says of every object that it gets parts."""

    def query(self, number: int, command: ObjectCommand) -> bytes:
        return bytes(len(super().query(number, command)))


@mutant("CAP-DEV-07", members=2)
class PartsObjectsHoldNoCapability(MemberCommands):
    """The capability of device parts can be taken back under its objects."""

    def in_use(self, types: Iterable[int]) -> bool:
        return False


@mutant("DP-DEV-01", members=2)
class CountsOneMore(MemberParts):
    """Metadata tell of one part more than there are."""

    def metadata_get(self, number: int, data: bytes, room: int) -> bytes:
        answer = super().metadata_get(number, data, room)
        return (answer[0] + 1).to_bytes(1) + answer[1:]


@mutant("DP-DEV-05", members=2)
class ControlPartsAreForgotten(Rewritten):
    """What the driver has set through the control queue is not taken over."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        return (part for part in parts if part.part_type != PartType.NET_CVQ_CFG)


@mutant("DP-DEV-22", "DP-DEV-18", members=2)
class PendingPartsOutliveAReset(MemberParts):
    """What was set in a stopped member counts although its driver has reset it since."""

    def _pending_of(self, number: int) -> Any:
        return self._pending.get(number) if self._member(number).stopped else None


@mutant("INF-59", members=2)
class PartsBlameTheGroup(MemberParts):
    """Whatever is wrong with parts, the group is blamed."""

    def parts_set(self, number: int, data: bytes, room: int) -> bytes:
        try:
            return super().parts_set(number, data, room)
        except InvalidField as error:
            raise InvalidGroup(str(error)) from error


@mutant("DP-DEV-20", members=2)
class StopToggles(MemberParts):
    """Stopping a stopped member sets it going."""

    def mode_set(self, number: int, data: bytes, room: int) -> bytes:
        if data[0] and self._member(number).stopped:
            return super().mode_set(number, bytes(1), room)
        return super().mode_set(number, data, room)


@mutant("DP-DEV-22", members=2)
class VanishesWithoutReset(LoopbackMember):
    """A virtual function that comes back is what it was."""

    def vanish(self) -> None:
        self.stopped = self.live = False
