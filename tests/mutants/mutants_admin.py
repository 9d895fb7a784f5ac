"""Devices that validate or answer administration commands wrongly."""

from __future__ import annotations

from typing import Any

from registry import mutant

from virtio_ipsec.device.admin import LIST_COMMANDS, AdminCommands
from virtio_ipsec.device.admin_frames import build_reply, parse_command
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import (
    AdminError,
    AdminQualifier,
    AdminStatus,
    InvalidField,
    InvalidGroup,
    InvalidMember,
    InvalidOpcode,
)
from virtio_ipsec.wire.admin import AdminCommand, id_bitmap_build, id_bitmap_parse
from virtio_ipsec.wire.numbers import GroupType, Opcode


def with_outcome(error: AdminError, *, status: int | None = None, qualifier: int | None = None) -> AdminError:
    """The error with another status or qualifier on the wire."""
    error.status = error.status if status is None else status
    error.qualifier = error.qualifier if qualifier is None else qualifier
    return error


@mutant("ADM-DEV-01", "ADM-DEV-17", "CAP-DEV-05", "CAP-DEV-06")
class WrongStatusForGroup(AdminCommands):
    """A bad group type gets ENXIO."""

    def check_group(self, command: AdminCommand) -> None:
        try:
            super().check_group(command)
        except InvalidGroup as error:
            raise with_outcome(error, status=AdminStatus.ENXIO) from None


@mutant("ADM-DEV-01", "ADM-DEV-11", "ADM-DEV-13")
class WrongStatusForOpcode(AdminCommands):
    """A bad opcode gets ENOMEM."""

    def check_opcode(self, command: AdminCommand) -> None:
        try:
            super().check_opcode(command)
        except InvalidOpcode as error:
            raise with_outcome(error, status=AdminStatus.ENOMEM) from None


@mutant("ADM-DEV-01")
class WrongStatusForMember(AdminCommands):
    """A bad member id gets ENOSPC."""

    def check_member(self, command: AdminCommand) -> None:
        try:
            super().check_member(command)
        except InvalidMember as error:
            raise with_outcome(error, status=AdminStatus.ENOSPC) from None


@mutant("ADM-DEV-01", "ADM-DEV-02")
class HighOpcodeSucceeds(AdminCommands):
    """An opcode from 0x8000 reads as success, and the group type with it."""

    def check_group(self, command: AdminCommand) -> None:
        if command.opcode < 0x8000 and command.group_type < 0x8000:
            super().check_group(command)

    def check_opcode(self, command: AdminCommand) -> None:
        if command.opcode < 0x8000 and command.group_type < 0x8000:
            super().check_opcode(command)

    def execute(self, command: AdminCommand) -> bytes:
        if command.opcode >= 0x8000 or command.group_type >= 0x8000:
            return b""
        return super().execute(command)


@mutant("ADM-DEV-02", "ADM-DEV-17")
class OpcodeBeforeGroup(AdminCommands):
    """The opcode is looked at before the group type."""

    def check_group(self, command: AdminCommand) -> None:
        if command.opcode not in self.used.get(command.group_type, LIST_COMMANDS):
            raise InvalidOpcode("opcode first")
        super().check_group(command)


@mutant("ADM-DEV-03", "ADM-DEV-11", "ADM-DEV-13")
class MemberBeforeOpcode(AdminCommands):
    """The member id is looked at before the opcode; what is left gets Q_INVALID_COMMAND."""

    def check_opcode(self, command: AdminCommand) -> None:
        self.check_member(command)
        if command.opcode not in self.used[command.group_type]:
            raise with_outcome(InvalidOpcode("opcode"), qualifier=AdminQualifier.INVALID_COMMAND)


@mutant("ADM-DEV-03")
class MemberFirst(AdminCommands):
    """The member id is looked at before the opcode."""

    def check_opcode(self, command: AdminCommand) -> None:
        self.check_member(command)
        super().check_opcode(command)


@mutant("ADM-DEV-04")
class MemberIsField(AdminCommands):
    """A bad member id gets Q_INVALID_FIELD."""

    def check_member(self, command: AdminCommand) -> None:
        try:
            super().check_member(command)
        except InvalidMember as error:
            raise InvalidField(str(error)) from None


@mutant("ADM-DEV-04")
class MemberLowHalf(AdminCommands):
    """Only the low 32 bits of the member id are looked at."""

    def check_member(self, command: AdminCommand) -> None:
        if command.group_member_id & 0xFFFFFFFF:
            super().check_member(command)


@mutant(
    "ADM-DEV-05",
    "NET-IPSEC-DEV-02",
    "RO-DEV-10",
    "RO-DEV-09",
    "INF-39",
    "AVQ-DEV-01",
    "AVQ-DEV-04",
    "ADM-DEV-08",
    "NET-FF-DEV-02",
)
class SuccessWithStatus(AdminCommands):
    """QUERY works, and its status is 1."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        answer = super().process(readable, writable_len)
        query = readable[:2] == int(Opcode.RESOURCE_OBJ_QUERY).to_bytes(2, "little")
        return b"\x01" + answer[1:] if query and answer[:1] == b"\0" and len(answer) > 8 else answer


@mutant("ADM-DEV-06", "CAP-DEV-08")
class FailureWithoutStatus(AdminCommands):
    """DEVICE_CAP_GET of a capability that does not exist answers OK."""

    def device_cap_get(self, command: AdminCommand) -> bytes:
        try:
            return super().device_cap_get(command)
        except AdminError:
            return b""


@mutant("ADM-DEV-06", "ADM-DEV-13", "ADM-DEV-03", "ADM-DEV-01")
class UnknownOpcodeIsFine(AdminCommands):
    """An opcode that does not exist answers OK and does nothing."""

    def execute(self, command: AdminCommand) -> bytes:
        try:
            return super().execute(command)
        except InvalidOpcode:
            if command.opcode <= Opcode.DEV_MODE_SET:
                raise
            return b""


@mutant("ADM-DEV-07")
class RefusedListForgetsList(AdminCommands):
    """A LIST_USE that is refused clears the list."""

    def list_use(self, command: AdminCommand) -> bytes:
        try:
            return super().list_use(command)
        except InvalidField:
            self.used[command.group_type] = LIST_COMMANDS
            raise


@mutant("ADM-DEV-07")
class RefusedListCounts(AdminCommands):
    """A LIST_USE that is refused adds the supported opcodes of its list."""

    def list_use(self, command: AdminCommand) -> bytes:
        try:
            return super().list_use(command)
        except InvalidField:
            self.used[command.group_type] = self.supported[command.group_type]
            raise


@mutant("ADM-DEV-13")
class UnsupportedBecomesLegal(AdminCommands):
    """LIST_USE makes opcodes legal that are not supported: they answer OK."""

    def list_use(self, command: AdminCommand) -> bytes:
        self.used[command.group_type] = id_bitmap_parse(command.data)
        return b""

    def execute(self, command: AdminCommand) -> bytes:
        legal = command.opcode in self.used.get(command.group_type, ())
        return b"" if legal and command.opcode not in self.handlers else super().execute(command)


@mutant("ADM-DEV-13")
class ListsAddUp(AdminCommands):
    """LIST_USE adds to the list before it."""

    def list_use(self, command: AdminCommand) -> bytes:
        before = self.used[command.group_type]
        answer = super().list_use(command)
        self.used[command.group_type] |= before
        return answer


@mutant("ADM-DEV-13")
class ListCommandsStay(AdminCommands):
    """LIST_QUERY and LIST_USE cannot be left out of the list."""

    def list_use(self, command: AdminCommand) -> bytes:
        answer = super().list_use(command)
        self.used[command.group_type] |= LIST_COMMANDS
        return answer


@mutant("ADM-DEV-12")
class ListsShrinkOnly(AdminCommands):
    """After the first LIST_USE the list can only become shorter."""

    def list_use(self, command: AdminCommand) -> bytes:
        before = self.used[command.group_type]
        answer = super().list_use(command)
        if before != LIST_COMMANDS:
            self.used[command.group_type] &= before
        return answer


@mutant("ADM-DEV-12")
class ListUseBlocksListUse(AdminCommands):
    """A list without LIST_QUERY blocks LIST_USE as well."""

    def list_use(self, command: AdminCommand) -> bytes:
        answer = super().list_use(command)
        if int(Opcode.LIST_QUERY) not in self.used[command.group_type]:
            self.used[command.group_type] -= LIST_COMMANDS
        return answer


@mutant("ADM-DEV-11")
class EverythingIsLegal(AdminCommands):
    """No LIST_USE is needed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.used = dict(self.supported)


@mutant("ADM-DEV-11", "ADM-DEV-12")
class ListSurvivesReset(Device):
    """The list that LIST_USE set stays in force over a reset."""

    def reset(self) -> None:
        used = self.commands.used
        super().reset()
        self._kept = used

    def _adopt(self, features: int) -> None:
        super()._adopt(features)
        for group, opcodes in getattr(self, "_kept", {}).items():
            self.commands.used[group] = opcodes


@mutant("ADM-DEV-10", members=2)
class OneListForAllGroups(AdminCommands):
    """The group types share one list."""

    def list_use(self, command: AdminCommand) -> bytes:
        answer = super().list_use(command)
        for group in self.used:
            self.used[group] = self.used[command.group_type]
        return answer

    def handle(self, command: AdminCommand) -> bytes:
        return self.handlers[command.opcode](command)


@mutant("ADM-DEV-10", "CAP-DEV-05", "CAP-DEV-06", members=2)
class SelfListForVirtualFunctions(AdminCommands):
    """The list of the self group holds for the SR-IOV group."""

    def check_opcode(self, command: AdminCommand) -> None:
        if command.opcode not in self.used[GroupType.SELF]:
            super().check_opcode(command)

    def handle(self, command: AdminCommand) -> bytes:
        return self.handlers[command.opcode](command)


@mutant("ADM-DEV-14")
class ListQueryShowsUsed(AdminCommands):
    """LIST_QUERY reports what LIST_USE has set."""

    def list_query(self, command: AdminCommand) -> bytes:
        used = self.used[command.group_type]
        return super().list_query(command) if used == LIST_COMMANDS else id_bitmap_build(used)


class ForgetfulLists(Device):
    """A list of three opcodes is not accepted a second time after a reset."""

    def _adopt(self, features: int) -> None:
        super()._adopt(features)
        commands, plain = self.commands, self.commands.list_use
        known = self.__dict__.setdefault("_known", set())
        fresh: set[frozenset[int]] = set()
        self._lives = getattr(self, "_lives", 0) + 1

        def list_use(command: AdminCommand) -> bytes:
            wanted = id_bitmap_parse(command.data)
            if len(wanted) == 3 and wanted in known - fresh:
                raise InvalidField("list was used before")
            known.add(wanted)
            fresh.add(wanted)
            return plain(command)

        commands.handlers[Opcode.LIST_USE] = list_use


@mutant("ADM-DEV-15", "ADM-DEV-16")
class RefusesKnownLists(ForgetfulLists):
    """A list of three opcodes is not accepted a second time after a reset."""


@mutant("ADM-DEV-16", "ADM-DEV-15")
class RefusesBecauseOfTheList(ForgetfulLists):
    """A list of three opcodes is refused after a reset because it was used before."""


@mutant("ADM-DEV-17")
class GroupOneIsAnOpcodeProblem(AdminCommands):
    """Without virtual functions the SR-IOV group answers Q_INVALID_OPCODE."""

    def check_group(self, command: AdminCommand) -> None:
        if command.group_type == GroupType.SRIOV:
            raise InvalidOpcode("group 1")
        super().check_group(command)


@mutant("ADM-DEV-17", "ADM-DEV-10", "CAP-DEV-05", "CAP-DEV-06")
class GroupOneIsSelf(AdminCommands):
    """All commands but LIST_QUERY treat group type 1 as 0."""

    def execute(self, command: AdminCommand) -> bytes:
        if command.group_type == GroupType.SRIOV and command.opcode != Opcode.LIST_QUERY:
            command = AdminCommand(command.opcode, 0, 0, command.data)
        return super().execute(command)


@mutant("INF-41")
class ReservedMustBeZero(AdminCommands):
    """reserved1 of the frame is looked at."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        if any(readable[4:16]):
            return self.fit(build_reply(AdminStatus.EINVAL, AdminQualifier.INVALID_FIELD), writable_len)
        return super().process(readable, writable_len)


@mutant("INF-41", "NET-FF-DEV-18")
class FlagsMustBeZero(AdminCommands):
    """The flags of CREATE are looked at."""

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        if any(command.data[8:16]):
            raise InvalidField("flags")
        return super().resource_obj_create(command)


@mutant("INF-41")
class MemberOfListQuery(AdminCommands):
    """LIST_QUERY looks at the member id."""

    def check_member(self, command: AdminCommand) -> None:
        if command.group_member_id:
            raise InvalidMember("member id")


@mutant("INF-41")
class ReservedNotZeroed(AdminCommands):
    """reserved2 of answers holds a number."""

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        return super().fit(answer[:4] + b"\x01\0\0\0" + answer[8:], writable_len)


@mutant("INF-42")
class QualifierWithOk(AdminCommands):
    """A successful DESTROY carries Q_INVALID_COMMAND."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        answer = super().process(readable, writable_len)
        destroy = readable[:2] == int(Opcode.RESOURCE_OBJ_DESTROY).to_bytes(2, "little")
        return answer[:2] + b"\x01\0" + answer[4:] if destroy and answer[:2] == bytes(2) else answer


@mutant("INF-43")
class ListCommandsNotListed(AdminCommands):
    """LIST_QUERY leaves out the list commands."""

    def list_query(self, command: AdminCommand) -> bytes:
        return id_bitmap_build(self.supported[command.group_type] - LIST_COMMANDS)


@mutant("DP-DEV-01")
class PartsWithoutMode(AdminCommands):
    """The commands that read device parts are there, and none of the others."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        for opcode in (Opcode.DEV_PARTS_METADATA_GET, Opcode.DEV_PARTS_GET):
            self.handlers[opcode] = lambda command: bytes(8)
        self.supported = self.group_types()


@mutant("AVQ-DEV-01", "AVQ-DEV-04")
class OnesBehindTheEnd(AdminCommands):
    """A short readable part is extended with ones."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        return super().process(readable if len(readable) < 24 else readable + b"\xff" * 240, writable_len)


@mutant("AVQ-DEV-01")
class ShortRoomGetsStatusOnly(AdminCommands):
    """An answer that does not fit is left out but for the status."""

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        return super().fit(answer if len(answer) <= writable_len else answer[:8], writable_len)


@mutant("AVQ-DEV-02", "INF-02", "INF-38", "FRM-01")
class RoomIsCleared(AdminCommands):
    """The whole room is filled with zeros behind the answer."""

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        return super().fit(answer.ljust(writable_len // 8 * 8, b"\0"), writable_len)


@mutant("AVQ-DEV-04", "AVQ-DEV-01")
class MinimumLengthOfCreate(AdminCommands):
    """CREATE insists on the whole structure."""

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        if command.data[:2] in (b"\x03\x02", b"\x04\x02") and len(command.data) < 196 + 16:
            raise InvalidField("too short")
        return super().resource_obj_create(command)


@mutant("AVQ-DEV-04", "AVQ-DEV-01")
class RoomMustSuffice(AdminCommands):
    """A command whose answer does not fit fails."""

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        if len(answer) > writable_len >= 8:
            answer = build_reply(AdminStatus.EINVAL, AdminQualifier.INVALID_COMMAND)
        return super().fit(answer, writable_len)


@mutant("AVQ-DEV-04", "AVQ-DEV-02")
class SurplusInputRefused(AdminCommands):
    """DEVICE_CAP_GET with more than its 8 bytes fails."""

    def device_cap_get(self, command: AdminCommand) -> bytes:
        if len(command.data) > 8:
            raise InvalidField("too long")
        return super().device_cap_get(command)


@mutant("AVQ-DEV-05", "AVQ-DEV-02")
class AnswersNotPadded(AdminCommands):
    """Answers end where their structure ends."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        answer = super().process(readable, writable_len)
        query = readable[:2] == int(Opcode.RESOURCE_OBJ_QUERY).to_bytes(2, "little")
        return answer[:204] if query else answer


@mutant("AVQ-DEV-06", "AVQ-DEV-05", "ADM-DEV-03", "ADM-DEV-13")
class FailureWritesStatusAlone(AdminCommands):
    """A failing command writes two bytes."""

    def process(self, readable: bytes, writable_len: int) -> bytes:
        answer = super().process(readable, writable_len)
        unknown = parse_command(readable).opcode == 0x12
        return answer[:2] if unknown else answer


@mutant("AVQ-DEV-06", "AVQ-DEV-02", "AVQ-DEV-05")
class TinyRoomGetsNothing(AdminCommands):
    """With 8 bytes of room nothing is written at all."""

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        return super().fit(answer, writable_len) if writable_len > 8 else b""


@mutant("AVQ-DEV-09", "ADM-DEV-08")
class NoMemoryButCreated(AdminCommands):
    """From the 49th SA on CREATE answers ENOMEM, and creates it all the same."""

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        answer = super().resource_obj_create(command)
        if sum(len(ids) for ids in self.objects.ids().values()) > 48:
            raise with_outcome(AdminError("no memory"), status=AdminStatus.ENOMEM)
        return answer
