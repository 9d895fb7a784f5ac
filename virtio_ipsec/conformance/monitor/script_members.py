"""The script's part for an owner of virtual functions: one is stopped, read as parts, set to them, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, cast

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.link import Link
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.wire.admin import OBJECT_COMMAND, RESOURCE_HEADER, ObjectCommand, ResourceHeader
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_CAP,
    DEV_PARTS_OBJECT,
    METADATA_COMMAND,
    METADATA_RESULT,
    MODE_SET,
    PART_HEADER,
    PARTS_GET,
    PARTS_SET,
    DevMode,
    DevPartsObject,
    Metadata,
    MetadataCommand,
    ModeCommand,
    PartsGet,
    PartsGetCommand,
    PartsObject,
    PartsSetCommand,
)
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.numbers import CapId, Feature, Opcode, ResourceType, mask

CONFIG = DriverConfig(
    queue_pairs=2,
    queue_size=64,
    receive_buffers=8,
    inbound_sas=8,
    outbound_sas=8,
    polls=4,
    poll_timeout=0.0,
)
#: The member that is worked on, and the objects through which that is done.
MEMBER, GETTER, SETTER = 1, 0, 1
#: What a member with parts cannot have: its objects and capabilities are in none (ledger E80).
_IN_NO_PART = mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)
_FRAME = bytes.fromhex("020000000a01020000000a0288b5").ljust(60, b"\0")


class _Switch(Protocol):
    """VF Enable, as the transport has it."""

    @property
    def total(self) -> int: ...

    def enable(self, count: int) -> None: ...

    def disable(self) -> None: ...


class Owning:
    """Steps of a script whose device may own virtual functions."""

    link: Any
    dialect: Dialect
    driver: Driver
    config = CONFIG

    def own_members(self) -> None:
        """Virtual functions come, one of them is carried as device parts, and they go. Nothing where there are none."""
        switch: _Switch | None = getattr(self.link, "virtual_functions", None)
        admin = self.driver.session.admin
        if switch is None or admin is None:
            return
        switch.enable(switch.total)
        try:
            group = admin.for_members()
            group.list_query()
            group.list_use()
            if Opcode.DEV_PARTS_SET in group.opcodes:
                self.carry(admin, group)
        finally:
            switch.disable()

    def carry(self, admin: Admin, group: Admin) -> None:
        """A member at work, if the link leads to it, becomes device parts and the same member again."""
        admin.cap_set(CapId.DEV_PARTS_CAP, admin.cap_get(CapId.DEV_PARTS_CAP, DEV_PARTS_CAP.fixed_size))
        for number, kind in ((GETTER, PartsObject.GET), (SETTER, PartsObject.SET)):
            data = DEV_PARTS_OBJECT.build(DevPartsObject(kind))
            command = OBJECT_COMMAND.build(ObjectCommand(ResourceType.DEV_PARTS, number, data=data))
            group.command(Opcode.RESOURCE_OBJ_CREATE, command, member=MEMBER)
        lead: Callable[[int], Any] | None = getattr(self.link, "member", None)
        function = lead(MEMBER) if lead is not None else None
        try:
            at_work = self.start_member(function) if function is not None else None
            self.stop_member(group)
            self.while_stopped(function)
            self.set_parts(group, self.get_parts(group))
            self.resume_member(group)
            if at_work is not None:
                at_work.send(_FRAME)
                at_work.stop()
        finally:
            if function is not None:
                with suppress(VirtioIpsecError):
                    function.close()
        for number in (GETTER, SETTER):
            command = RESOURCE_HEADER.build(ResourceHeader(ResourceType.DEV_PARTS, number))
            group.command(Opcode.RESOURCE_OBJ_DESTROY, command, member=MEMBER)

    def start_member(self, function: Any) -> Driver | None:
        """A driver of the member, or none."""
        config = replace(self.config, queue_pairs=1, wanted=self.config.wanted & ~_IN_NO_PART)
        driver = Driver(cast(Link, function), self.dialect, config=config)
        driver.start()
        driver.send(_FRAME)
        return driver

    def stop_member(self, group: Admin) -> None:
        """Its queues rest."""
        group.command(Opcode.DEV_MODE_SET, MODE_SET.build(ModeCommand(DevMode.STOPPED)), member=MEMBER)

    def while_stopped(self, function: Any) -> None:
        """What its own driver does now: nothing."""

    def resume_member(self, group: Admin) -> None:
        """They go on."""
        group.command(Opcode.DEV_MODE_SET, MODE_SET.build(ModeCommand(0)), member=MEMBER)

    def get_parts(self, group: Admin) -> bytes:
        """All of its parts: as many bytes as they are said to be. Their list is read, too."""
        head = METADATA_RESULT.fixed_size
        size = METADATA_RESULT.parse(self.metadata(group, Metadata.SIZE, head)).count
        count = METADATA_RESULT.parse(self.metadata(group, Metadata.COUNT, head)).count
        self.metadata(group, Metadata.LIST, head + count * PART_HEADER.fixed_size)
        command = PARTS_GET.build(PartsGetCommand(ResourceType.DEV_PARTS, GETTER, PartsGet.ALL))
        return group.command(Opcode.DEV_PARTS_GET, command, size, member=MEMBER)

    def metadata(self, group: Admin, kind: Metadata, room: int) -> bytes:
        """DEV_PARTS_METADATA_GET with room for so many bytes."""
        command = METADATA_COMMAND.build(MetadataCommand(ResourceType.DEV_PARTS, GETTER, kind))
        return group.command(Opcode.DEV_PARTS_METADATA_GET, command, room, member=MEMBER)

    def set_parts(self, group: Admin, parts: bytes) -> None:
        """All parts in one command."""
        command = PARTS_SET.build(PartsSetCommand(ResourceType.DEV_PARTS, SETTER, parts))
        group.command(Opcode.DEV_PARTS_SET, command, member=MEMBER)
