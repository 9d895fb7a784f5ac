"""The commands about device parts of members, and the objects through which they work (virtio v1.4 2.12.1.4)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from virtio_ipsec.device.capabilities import Capabilities
from virtio_ipsec.device.device_parts import Key, changed, check_parts, parts_of
from virtio_ipsec.device.members import FunctionState, Members, StoppableMember
from virtio_ipsec.errors import (
    AlreadyExists,
    Busy,
    InvalidField,
    InvalidOpcode,
    NoMemory,
    NoSpace,
    NoSuchObject,
)
from virtio_ipsec.wire.admin import ObjectCommand
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_OBJECT,
    METADATA_COMMAND,
    METADATA_RESULT,
    MODE_SET,
    PARTS_GET,
    PARTS_SET,
    DevMode,
    DevPartsCap,
    DevPartsObject,
    Metadata,
    MetadataResult,
    Part,
    PartsGet,
    PartsObject,
    headers_build,
    headers_parse,
    parts_build,
    parts_parse,
)
from virtio_ipsec.wire.numbers import CapId, ResourceType

#: What the tables that a running driver fills may grow by, until it is stopped: "maximum size" has to hold then, too.
_GROWTH = 1 << 16


@dataclass(slots=True)
class _Object:
    """A device parts object: whose, and for what. Void when its member has vanished."""

    member: int
    type: PartsObject
    life: int


@dataclass(slots=True)
class _Pending:
    """Parts that a driver has set in a stopped member, and that count from its resumption on. Void after a reset of the
    member (DP-DEV-22)."""

    resets: int
    parts: dict[Key, Part] = field(default_factory=dict)


class MemberParts:
    """Device parts objects are the owner's: one range of ids for all members."""

    def __init__(self, members: Members, capabilities: Capabilities) -> None:
        self.members = members
        self.capabilities = capabilities
        self._objects: dict[int, _Object] = {}
        self._pending: dict[int, _Pending] = {}

    # Objects

    def limits(self) -> DevPartsCap:
        """How many objects of each kind the driver has announced; none before it has."""
        if not self.capabilities.enabled(CapId.DEV_PARTS_CAP):
            return DevPartsCap()
        return cast(DevPartsCap, self.capabilities.driver(CapId.DEV_PARTS_CAP))

    def has_objects(self) -> bool:
        """Whether there is any."""
        return bool(self._live())

    def create(self, number: int, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_CREATE; the order of the checks is that of the self group (E85)."""
        limits = self.limits()
        most = limits.get_parts_resource_objects_limit + limits.set_parts_resource_objects_limit
        if not most:
            raise InvalidOpcode("VIRTIO_DEV_PARTS_CAP is not set", clause="CAP-DEV-10")
        if command.id in self._live():
            raise AlreadyExists(f"device parts object {command.id} exists", clause="RO-DEV-01")
        if command.id >= most:
            raise InvalidField(f"device parts object {command.id}: limit {most}")
        self._objects[command.id] = _Object(number, self._kind(command), self.members.lives)

    def modify(self, number: int, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_MODIFY: an object may be for the other purpose, within the limits."""
        found = self._object(number, command.id)
        if DEV_PARTS_OBJECT.parse(command.data).type != found.type:
            found.type = self._kind(command)

    def query(self, number: int, command: ObjectCommand) -> bytes:
        """RESOURCE_OBJ_QUERY."""
        return DEV_PARTS_OBJECT.build(DevPartsObject(self._object(number, command.id).type))

    def destroy(self, number: int, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_DESTROY."""
        self._object(number, command.id)
        del self._objects[command.id]

    # Commands

    def metadata_get(self, number: int, data: bytes, room: int) -> bytes:
        """DEV_PARTS_METADATA_GET; unlike any other command it fails when its answer does not fit."""
        request = METADATA_COMMAND.parse(data)
        self._usable(number, request.object_type, request.object_id, PartsObject.GET)
        parts = self.parts(number)
        growth = 0 if self._member(number).stopped else _GROWTH
        answers = {
            Metadata.SIZE: MetadataResult(len(parts_build(parts)) + growth),
            Metadata.COUNT: MetadataResult(len(parts)),
            Metadata.LIST: MetadataResult(len(parts), headers_build(part.header for part in parts)),
        }
        if request.type not in answers:
            raise InvalidField(f"metadata of type {request.type}")
        answer = METADATA_RESULT.build(answers[Metadata(request.type)])
        if len(answer) > room:
            raise NoMemory(f"{len(answer)} bytes of metadata: room for {room}")
        return answer

    def parts_get(self, number: int, data: bytes, _room: int) -> bytes:
        """DEV_PARTS_GET: all, or those selected that there are, in the order of the table (DP-DEV-03)."""
        request = PARTS_GET.parse(data)
        self._usable(number, request.object_type, request.object_id, PartsObject.GET)
        if request.type not in frozenset(PartsGet):
            raise InvalidField(f"device parts get of type {request.type}")
        self.check_whole(number)
        parts = self.parts(number)
        if request.type == PartsGet.SELECTED:
            keys = {(header.part_type, header.selector) for header in headers_parse(request.headers)}
            parts = tuple(part for part in parts if part.key in keys)
        return parts_build(parts)

    def parts_set(self, number: int, data: bytes, _room: int) -> bytes:
        """DEV_PARTS_SET: checked now, in force when the member is resumed."""
        request = PARTS_SET.parse(data)
        self._usable(number, request.object_type, request.object_id, PartsObject.SET)
        self.check_stopped(number)
        self.check_whole(number)
        member = self._member(number)
        state = member.state()
        pending = self._pending_of(number) or _Pending(member.device.resets)
        with member.exclusive():
            wanted = check_parts(parts_of(member.device, state), parts_parse(request.parts))
            parts = pending.parts | wanted
            changed(member.device, state, parts)
        pending.parts = parts
        self._pending[number] = pending
        return b""

    def mode_set(self, number: int, data: bytes, _room: int) -> bytes:
        """DEV_MODE_SET; nothing happens where the mode is the same already (DP-DEV-20, DP-DEV-21)."""
        flags = MODE_SET.parse(data).flags
        if flags & ~int(DevMode.STOPPED):
            raise InvalidField(f"mode flags {flags:#x}")
        member = self._member(number)
        if flags and not member.stopped:
            self._pending.pop(number, None)
            member.stop()
        elif not flags and member.stopped:
            member.resume(self._resumed(number))
            self._pending.pop(number, None)
        return b""

    def parts(self, number: int) -> tuple[Part, ...]:
        """The parts of a member, with those that wait for its resumption in their places."""
        member = self._member(number)
        state = member.state()
        pending = self._pending_of(number)
        with member.exclusive():
            parts = parts_of(member.device, state)
        if pending is None:
            return parts
        own = {part.key for part in parts}
        more = (part for key, part in pending.parts.items() if key not in own)
        return (*(_with_flags(pending.parts.get(part.key, part), part.flags) for part in parts), *more)

    def check_stopped(self, number: int) -> None:
        """The member is stopped (DP-DEV-04)."""
        if not self._member(number).stopped:
            raise Busy(f"member {number} is not stopped", clause="DP-DEV-04")

    def check_whole(self, number: int) -> None:
        """Parts hold everything that there is of the member: no objects, no driver capabilities (E80)."""
        member = self._member(number)
        with member.exclusive():
            device = member.device
            if any(device.objects.ids().values()) or device.capabilities.driver_values():
                raise Busy(f"member {number} has capabilities or objects, which are in no device part")

    def _resumed(self, number: int) -> FunctionState | None:
        """What a member is to be resumed with; None: what it has."""
        pending = self._pending_of(number)
        if pending is None:
            return None
        self.check_whole(number)
        member = self._member(number)
        state = member.state()
        with member.exclusive():
            return changed(member.device, state, pending.parts)

    def _pending_of(self, number: int) -> _Pending | None:
        pending = self._pending.get(number)
        member = self._member(number)
        if pending is None or pending.resets != member.device.resets or not member.stopped:
            return None
        return pending

    def _member(self, number: int) -> StoppableMember:
        return cast(StoppableMember, self.members.member(number))

    def _live(self) -> dict[int, _Object]:
        """The objects whose members have not vanished since; the others are gone."""
        if any(each.life != self.members.lives for each in self._objects.values()):
            self._objects = {
                key: each for key, each in self._objects.items() if each.life == self.members.lives
            }
        return self._objects

    def _object(self, number: int, object_id: int) -> _Object:
        found = self._live().get(object_id)
        if found is None or found.member != number:
            raise NoSuchObject(f"member {number} has no device parts object {object_id}", clause="RO-DEV-02")
        return found

    def _usable(self, number: int, object_type: int, object_id: int, purpose: PartsObject) -> None:
        """The object that a command names is for what the command does."""
        if object_type != ResourceType.DEV_PARTS:
            raise InvalidField(f"object type {object_type:#x} has no parts")
        if self._object(number, object_id).type != purpose:
            raise InvalidField(f"device parts object {object_id} is not for {purpose.name}")

    def _kind(self, command: ObjectCommand) -> PartsObject:
        """The purpose that a CREATE or MODIFY asks for, of which there is room for one more."""
        wanted = DEV_PARTS_OBJECT.parse(command.data).type
        if wanted not in frozenset(PartsObject):
            raise InvalidField(f"device parts object of type {wanted}")
        kind, limits = PartsObject(wanted), self.limits()
        room = {
            PartsObject.GET: limits.get_parts_resource_objects_limit,
            PartsObject.SET: limits.set_parts_resource_objects_limit,
        }[kind]
        if sum(each.type is kind for each in self._live().values()) >= room:
            raise NoSpace(f"{room} device parts objects to {kind.name} exist", clause="RO-DEV-03")
        return kind


def _with_flags(part: Part, flags: int) -> Part:
    """A part as the device has it: whether it is optional is not the driver's to say."""
    return part if part.flags == flags else replace(part, flags=flags)
