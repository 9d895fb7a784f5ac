"""Commands of the SR-IOV group: what the owner's driver does with members (virtio v1.4 2.12, group type 1).

Security associations are the member's own business (ledger E81). With the profile ``owner_managed`` the owner's
driver reaches them too: in the member's store, under the capabilities and limits that the member's driver has set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from virtio_ipsec.device.admin_frames import parse_object
from virtio_ipsec.device.capabilities import SA_TYPES, Capabilities
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.member_parts import MemberParts
from virtio_ipsec.device.members import Member, Members
from virtio_ipsec.device.objects import ObjectStore
from virtio_ipsec.errors import InvalidField
from virtio_ipsec.wire.admin import ObjectCommand
from virtio_ipsec.wire.numbers import Opcode, ResourceType

#: ``(member id, command_specific_data, room for a result)`` to result bytes.
MemberHandler = Callable[[int, bytes, int], bytes]

#: Objects of a member that its owner reaches in the profile ``owner_managed``.
OWNER_MANAGED: Final = frozenset(SA_TYPES)


class MemberCommands:
    """The commands that use a member id, between two resets of the owner. ``capabilities`` are the owner's."""

    #: A variant of the device replaces it by a subclass.
    parts_class: ClassVar[type[MemberParts]] = MemberParts

    def __init__(self, config: DeviceConfig, members: Members, capabilities: Capabilities) -> None:
        self.config = config
        self.members = members
        self.parts = self.parts_class(members, capabilities) if self.handles_parts(config, members) else None
        #: By opcode; what is here is listed by LIST_QUERY of the group.
        self.handlers: dict[int, MemberHandler] = {}
        if config.owner_managed or self.parts is not None:
            self.handlers[Opcode.RESOURCE_OBJ_CREATE] = self.resource_obj_create
            self.handlers[Opcode.RESOURCE_OBJ_DESTROY] = self.resource_obj_destroy
            if config.dialect.supports_modify_query:
                self.handlers[config.dialect.query_opcode] = self.resource_obj_query
                self.handlers[config.dialect.modify_opcode] = self.resource_obj_modify
        if self.parts is not None:
            self.handlers[Opcode.DEV_PARTS_METADATA_GET] = self.parts.metadata_get
            self.handlers[Opcode.DEV_PARTS_GET] = self.parts.parts_get
            self.handlers[Opcode.DEV_PARTS_SET] = self.parts.parts_set
            self.handlers[Opcode.DEV_MODE_SET] = self.parts.mode_set

    @staticmethod
    def handles_parts(config: DeviceConfig, members: Members) -> bool:
        """Device parts take all of their eight commands or none (DP-DEV-01): the dialect must have them, and members
        must be such that can be stopped."""
        return members.stoppable and config.dialect.supports_modify_query

    def in_use(self, types: Iterable[int]) -> bool:
        """Whether the owner has objects of any of these types for its members."""
        return self.parts is not None and ResourceType.DEV_PARTS in types and self.parts.has_objects()

    def member(self, number: int) -> Member:
        """The member that a command names; InvalidGroup or InvalidMember when there is none."""
        return self.members.member(number)

    def resource_obj_create(self, number: int, data: bytes, _room: int) -> bytes:
        """RESOURCE_OBJ_CREATE."""
        command = parse_object(data)
        if self.parts is not None and command.type == ResourceType.DEV_PARTS:
            self.parts.create(number, command)
        else:
            self.in_store(number, command, ObjectStore.create)
        return b""

    def resource_obj_modify(self, number: int, data: bytes, _room: int) -> bytes:
        """RESOURCE_OBJ_MODIFY."""
        command = parse_object(data)
        if self.parts is not None and command.type == ResourceType.DEV_PARTS:
            self.parts.modify(number, command)
        else:
            self.in_store(number, command, ObjectStore.modify)
        return b""

    def resource_obj_query(self, number: int, data: bytes, _room: int) -> bytes:
        """RESOURCE_OBJ_QUERY."""
        command = parse_object(data)
        if self.parts is not None and command.type == ResourceType.DEV_PARTS:
            return self.parts.query(number, command)
        return self.in_store(number, command, ObjectStore.query) or b""

    def resource_obj_destroy(self, number: int, data: bytes, _room: int) -> bytes:
        """RESOURCE_OBJ_DESTROY."""
        command = parse_object(data)
        if self.parts is not None and command.type == ResourceType.DEV_PARTS:
            self.parts.destroy(number, command)
        else:
            self.in_store(number, command, ObjectStore.destroy)
        return b""

    def in_store(
        self, number: int, command: ObjectCommand, what: Callable[[ObjectStore, ObjectCommand], bytes | None]
    ) -> bytes | None:
        """A command on an object in the member's own store."""
        if command.type not in OWNER_MANAGED or not self.config.owner_managed:
            raise InvalidField(f"objects of type {command.type:#x} are the members' own")
        member = self.member(number)
        with member.exclusive():
            return what(member.device.objects, command)
