"""Administration commands: validation order, command lists, dispatch, answer (virtio v1.4 2.12, 2.13).

Every command is validated completely before it changes anything; an :class:`AdminError` raised on the way
becomes the status of the answer in exactly one place, :meth:`AdminCommands.process`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtio_ipsec.device.admin_frames import OK, REPLY_SIZE, build_reply, parse_command, parse_object
from virtio_ipsec.device.capabilities import Capabilities
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.counters import Counters
from virtio_ipsec.device.member_commands import MemberCommands
from virtio_ipsec.device.objects import ObjectStore
from virtio_ipsec.errors import (
    AdminError,
    InvalidField,
    InvalidGroup,
    InvalidMember,
    InvalidOpcode,
    TransportError,
    TryAgain,
    WireError,
)
from virtio_ipsec.wire.admin import (
    CAP_COMMAND,
    AdminCommand,
    id_bitmap_build,
    id_bitmap_parse,
)
from virtio_ipsec.wire.numbers import GroupType, Opcode, ResourceType

#: Commands about the command list itself: legal after reset, ``group_member_id`` unused.
LIST_COMMANDS: Final = frozenset({int(Opcode.LIST_QUERY), int(Opcode.LIST_USE)})

Handler = Callable[[AdminCommand], bytes]


class AdminCommands:
    """The administration side of one device between two resets."""

    def __init__(
        self,
        config: DeviceConfig,
        capabilities: Capabilities,
        objects: ObjectStore,
        counters: Counters,
        group: MemberCommands | None = None,
    ) -> None:
        self.config = config
        #: The SR-IOV group; None on a function without that capability.
        self.group = group
        self.capabilities = capabilities
        self.objects = objects
        self.counters = counters
        self.handlers: dict[int, Handler] = {
            Opcode.LIST_QUERY: self.list_query,
            Opcode.LIST_USE: self.list_use,
            Opcode.CAP_ID_LIST_QUERY: self.cap_id_list_query,
            Opcode.DEVICE_CAP_GET: self.device_cap_get,
            Opcode.DRIVER_CAP_SET: self.driver_cap_set,
            Opcode.RESOURCE_OBJ_CREATE: self.resource_obj_create,
            Opcode.RESOURCE_OBJ_DESTROY: self.resource_obj_destroy,
        }
        if config.dialect.supports_modify_query:
            self.handlers[config.dialect.query_opcode] = self.resource_obj_query
            self.handlers[config.dialect.modify_opcode] = self.resource_obj_modify
        #: Supported opcodes by group type; a group type that is absent does not exist on this device.
        self.supported: dict[int, frozenset[int]] = self.group_types()
        #: Bytes that the answer to the command at hand may have beyond its status.
        self.room = 0
        #: Opcodes the driver may use, by group type (ADM-DEV-10 .. ADM-DEV-12).
        self.used: dict[int, frozenset[int]] = dict.fromkeys(self.supported, LIST_COMMANDS)

    def group_types(self) -> dict[int, frozenset[int]]:
        """What each group supports: a function that can have virtual functions knows the SR-IOV group, whether it
        exists or not. Capability commands are for the self group only (CAP-DEV-05, ledger E81).
        """
        groups = {int(GroupType.SELF): frozenset(self.handlers)}
        if self.group is not None:
            groups[int(GroupType.SRIOV)] = LIST_COMMANDS | self.group.handlers.keys()
        return groups

    def process(self, readable: bytes, writable_len: int) -> bytes:
        """One command from its device-readable bytes; returns the bytes to write, which is the used length.

        Short input reads as zero-extended, surplus input is ignored, the answer is cut to what fits
        (AVQ-DEV-01, AVQ-DEV-02): no length makes a command fail.
        """
        self.counters.add("admin_commands")
        self.room = max(writable_len - REPLY_SIZE, 0)
        try:
            answer = build_reply(*OK, self.execute(parse_command(readable)))
        except AdminError as error:
            self.counters.add("admin_errors")
            answer = build_reply(error.status, error.qualifier)
        return self.fit(answer, writable_len)

    def fit(self, answer: bytes, writable_len: int) -> bytes:
        """Cut the answer to the writable part, in units of 8 bytes unless not even 8 fit (AVQ-DEV-05)."""
        if writable_len >= len(answer):
            return answer
        return answer[: writable_len - writable_len % 8] if writable_len >= 8 else answer[:writable_len]

    def execute(self, command: AdminCommand) -> bytes:
        """Validate in the order that ADM-DEV-02..04 demand, then carry out; returns the result bytes."""
        self.check_group(command)
        self.check_opcode(command)
        self.check_member(command)
        try:
            return self.handle(command)
        except WireError as error:
            raise InvalidField(str(error)) from error

    def handle(self, command: AdminCommand) -> bytes:
        """Carry out a command whose frame is valid."""
        if self.group is None or command.group_type == GroupType.SELF or command.opcode in LIST_COMMANDS:
            return self.handlers[command.opcode](command)
        try:
            return self.group.handlers[command.opcode](command.group_member_id, command.data, self.room)
        except TransportError as error:
            raise TryAgain(str(error)) from error

    def check_group(self, command: AdminCommand) -> None:
        """The group type exists (ADM-DEV-02); that of virtual functions while VF Enable is set (ADM-DEV-17)."""
        if command.group_type not in self.supported:
            raise InvalidGroup(f"group type {command.group_type}", clause="ADM-DEV-02")
        if command.group_type == GroupType.SRIOV and self.num_vfs() is None:
            raise InvalidGroup("VF Enable is clear", clause="ADM-DEV-17")

    def check_opcode(self, command: AdminCommand) -> None:
        """The opcode is in the list that the driver announced for the group (ADM-DEV-03, 11, 13)."""
        if command.opcode not in self.used[command.group_type]:
            raise InvalidOpcode(f"opcode {command.opcode:#x}", clause="ADM-DEV-13")

    def check_member(self, command: AdminCommand) -> None:
        """Where a command uses it (E110), the member id is a member's (ADM-DEV-04): 0 in the self group (E106), else a
        VF number (ADM-DEV-18)."""
        if command.opcode in LIST_COMMANDS:
            return
        if command.group_type == GroupType.SELF:
            if command.group_member_id != 0:
                raise InvalidMember(f"group member {command.group_member_id}", clause="ADM-DEV-04")
        elif not 1 <= command.group_member_id <= (self.num_vfs() or 0):
            raise InvalidMember(f"group member {command.group_member_id}", clause="ADM-DEV-18")

    def num_vfs(self) -> int | None:
        """NumVFs while VF Enable is set."""
        return None if self.group is None else self.group.members.num_vfs

    def list_query(self, command: AdminCommand) -> bytes:
        """LIST_QUERY: the supported opcodes of the group."""
        return id_bitmap_build(self.supported[command.group_type])

    def list_use(self, command: AdminCommand) -> bytes:
        """LIST_USE: replaces the legal commands (ADM-DEV-12).

        Words beyond those of the supported list are outside the structure and ignored (E108).
        """
        supported = self.supported[command.group_type]
        wanted = id_bitmap_parse(command.data[: len(id_bitmap_build(supported))])
        if not wanted <= supported:
            raise InvalidField("list holds opcodes that are not supported", clause="ADM-DEV-09")
        self.used[command.group_type] = wanted
        return b""

    def cap_id_list_query(self, _command: AdminCommand) -> bytes:
        """CAP_ID_LIST_QUERY: bitmap of capability ids."""
        return id_bitmap_build(self.capabilities.listed())

    def device_cap_get(self, command: AdminCommand) -> bytes:
        """DEVICE_CAP_GET."""
        return self.capabilities.get(CAP_COMMAND.parse(command.data).id)

    def driver_cap_set(self, command: AdminCommand) -> bytes:
        """DRIVER_CAP_SET."""
        request = CAP_COMMAND.parse(command.data)
        self.capabilities.set(request.id, request.data, self.in_use)
        return b""

    def in_use(self, types: tuple[ResourceType, ...]) -> bool:
        """Whether an object of any of these types is live."""
        return self.objects.in_use(types) or (self.group is not None and self.group.in_use(types))

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        """RESOURCE_OBJ_CREATE."""
        self.objects.create(parse_object(command.data))
        return b""

    def resource_obj_modify(self, command: AdminCommand) -> bytes:
        """RESOURCE_OBJ_MODIFY."""
        self.objects.modify(parse_object(command.data))
        return b""

    def resource_obj_query(self, command: AdminCommand) -> bytes:
        """RESOURCE_OBJ_QUERY."""
        return self.objects.query(parse_object(command.data))

    def resource_obj_destroy(self, command: AdminCommand) -> bytes:
        """RESOURCE_OBJ_DESTROY."""
        self.objects.destroy(parse_object(command.data))
        return b""
