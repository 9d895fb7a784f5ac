"""Commands of the SR-IOV group: what the owner's driver does with members (virtio v1.4 2.12, group type 1).

Security associations are the member's own business (ledger E81). With the profile ``owner_managed`` the owner's
driver reaches them too: in the member's store, under the capabilities and limits that the member's driver has set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtio_ipsec.device.admin_frames import parse_object
from virtio_ipsec.device.capabilities import SA_TYPES
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.members import Member, Members
from virtio_ipsec.device.objects import ObjectStore
from virtio_ipsec.errors import InvalidField
from virtio_ipsec.wire.admin import ObjectCommand
from virtio_ipsec.wire.numbers import Opcode

#: ``(member id, command_specific_data)`` to result bytes.
MemberHandler = Callable[[int, bytes], bytes]

#: Objects of a member that its owner reaches in the profile ``owner_managed``.
OWNER_MANAGED: Final = frozenset(SA_TYPES)


class MemberCommands:
    """The commands that use a member id, between two resets of the owner."""

    def __init__(self, config: DeviceConfig, members: Members) -> None:
        self.config = config
        self.members = members
        #: By opcode; what is here is listed by LIST_QUERY of the group.
        self.handlers: dict[int, MemberHandler] = {}
        if config.owner_managed:
            self.handlers[Opcode.RESOURCE_OBJ_CREATE] = self.resource_obj_create
            self.handlers[Opcode.RESOURCE_OBJ_DESTROY] = self.resource_obj_destroy
            if config.dialect.supports_modify_query:
                self.handlers[config.dialect.query_opcode] = self.resource_obj_query
                self.handlers[config.dialect.modify_opcode] = self.resource_obj_modify

    def member(self, number: int) -> Member:
        """The member that a command names; InvalidGroup or InvalidMember when there is none."""
        return self.members.member(number)

    def resource_obj_create(self, number: int, data: bytes) -> bytes:
        """RESOURCE_OBJ_CREATE."""
        self._in_store(number, data, ObjectStore.create)
        return b""

    def resource_obj_modify(self, number: int, data: bytes) -> bytes:
        """RESOURCE_OBJ_MODIFY."""
        self._in_store(number, data, ObjectStore.modify)
        return b""

    def resource_obj_query(self, number: int, data: bytes) -> bytes:
        """RESOURCE_OBJ_QUERY."""
        return self._in_store(number, data, ObjectStore.query) or b""

    def resource_obj_destroy(self, number: int, data: bytes) -> bytes:
        """RESOURCE_OBJ_DESTROY."""
        self._in_store(number, data, ObjectStore.destroy)
        return b""

    def _in_store(
        self, number: int, data: bytes, what: Callable[[ObjectStore, ObjectCommand], bytes | None]
    ) -> bytes | None:
        """A command on an object in the member's own store."""
        command = parse_object(data)
        if command.type not in OWNER_MANAGED:
            raise InvalidField(f"objects {command.type:#x} are the member's own")
        member = self.member(number)
        with member.exclusive():
            return what(member.device.objects, command)
