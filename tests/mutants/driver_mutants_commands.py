"""Drivers that use administration commands wrongly."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from driver_registry import HEADER, Wrong, driver_mutant

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.transport.monitor.faces import UNKNOWN_OPCODE, UNKNOWN_QUALIFIER, UNKNOWN_STATUS
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    AdminCommand,
    ObjectCommand,
    ResourceHeader,
    id_bitmap_build,
    id_bitmap_parse,
)
from virtio_ipsec.wire.flow_filter import FfGroup
from virtio_ipsec.wire.numbers import CapId, Opcode, ResourceType

GROUP = ResourceType.NET_FF_GROUP
Patches = tuple[AbstractContextManager[Any], ...]


def is_opcode(readable: bytes, opcode: int) -> bool:
    return readable[:2] == opcode.to_bytes(2, "little")


def framed(opcode: int, data: bytes = b"") -> bytes:
    return ADMIN_COMMAND.build(AdminCommand(opcode, 0, 0, data))


@driver_mutant("ADM-DRV-02", "ADM-DRV-06")
class CommandsAtOnce(Wrong):
    """A command before any list."""

    def patches(self) -> Patches:
        query = Admin.list_query

        def list_query(admin: Any) -> Any:
            with suppress(VirtioIpsecError):
                admin._send(Opcode.CAP_ID_LIST_QUERY, b"", 16)
            return query(admin)

        return (patch.object(Admin, "list_query", list_query),)


@driver_mutant("ADM-DRV-03")
class ListUseAmongOthers(Wrong):
    """LIST_USE while another command is outstanding."""

    only = ("together",)

    def together(self) -> None:
        opcodes = self.driver.session.admin.opcodes  # type: ignore[union-attr]
        ring = self.post(self.requests, framed(Opcode.CAP_ID_LIST_QUERY), 512)
        self.post(self.requests, framed(Opcode.LIST_USE, id_bitmap_build(opcodes)), 8)
        self.link.kick(self.requests._index)
        ring.poll()


class OtherList(Wrong):
    """Another bitmap in LIST_USE."""

    extra = 0

    def command(self, readable: bytes, room: int) -> tuple[bytes, int]:
        if is_opcode(readable, Opcode.LIST_USE):
            opcodes = id_bitmap_parse(readable[HEADER:]) | {self.extra}
            readable = framed(Opcode.LIST_USE, id_bitmap_build(opcodes))
        return readable, room


@driver_mutant("ADM-DRV-04")
class UsesWhateverIsListed(OtherList):
    """An opcode that nobody knows."""

    extra = UNKNOWN_OPCODE


@driver_mutant("ADM-DRV-05")
class UsesUnlisted(OtherList):
    """An opcode that is not listed."""

    extra = Opcode.DEV_PARTS_METADATA_GET


@driver_mutant("AVQ-DRV-05", "ADM-DRV-04", "ADM-DRV-05")
class ReadsStaleBytes(OtherList):
    """An opcode from beyond the used length of the answer to LIST_QUERY."""

    extra = 0x100


@driver_mutant("ADM-DRV-06", "ADM-DRV-10")
class OtherGroup(Wrong):
    """A command of a group type without its list."""

    only = ("other_group",)

    def other_group(self) -> None:
        self.raw(Opcode.CAP_ID_LIST_QUERY, room=16, group=1)


@driver_mutant("ADM-DRV-07")
class AsksAgain(Wrong):
    """LIST_QUERY after it was locked out."""

    only = ("lock_lists",)

    def after_lock(self) -> None:
        self.raw(Opcode.LIST_QUERY, room=16)


class Believing(Wrong):
    """Takes an answer that it does not know for success."""

    only = ("create_sas",)
    refusal = (0, 0)

    def reply(self, readable: bytes, answer: bytes) -> bytes:
        status, qualifier = (int.from_bytes(answer[at : at + 2], "little") for at in (0, 2))
        return bytes(8) if (status, qualifier) == self.refusal else answer


@driver_mutant("ADM-DRV-08", "NET-TX-DRV-34")
class BelievesUnknownStatus(Believing):
    """A status that nobody knows."""

    refusal = (UNKNOWN_STATUS, 0)


@driver_mutant("ADM-DRV-09", "NET-TX-DRV-34")
class BelievesUnknownQualifier(Believing):
    """EINVAL with a qualifier that nobody knows."""

    refusal = (22, UNKNOWN_QUALIFIER)


class OtherCapList(Wrong):
    """CAP_ID_LIST_QUERY in another frame."""

    def command(self, readable: bytes, room: int) -> tuple[bytes, int]:
        return (
            self.other(readable, room) if is_opcode(readable, Opcode.CAP_ID_LIST_QUERY) else (readable, room)
        )

    def other(self, readable: bytes, room: int) -> tuple[bytes, int]:
        raise NotImplementedError


@driver_mutant("AVQ-DRV-02")
class ShortCommand(OtherCapList):
    """The readable part is cut."""

    def other(self, readable: bytes, room: int) -> tuple[bytes, int]:
        return readable[:16], room


@driver_mutant("AVQ-DRV-03")
class OddRoom(OtherCapList):
    """The writable part is no multiple of eight."""

    def other(self, readable: bytes, room: int) -> tuple[bytes, int]:
        return readable, room + 4


@driver_mutant("AVQ-DRV-04")
class NoRoom(Wrong):
    """A command without a writable part."""

    only = ("roomless",)

    def roomless(self) -> None:
        ring = self.post(self.requests, framed(Opcode.CAP_ID_LIST_QUERY), 0)
        self.link.kick(self.requests._index)
        ring.poll()


@driver_mutant("AVQ-DRV-06", face="split")
class TwoQueuesAtOnce(Wrong):
    """CREATE on one administration queue and DESTROY on the other before it is answered."""

    only = ("order_two_queues",)

    def order_two_queues(self) -> None:
        create = OBJECT_COMMAND.build(
            ObjectCommand(GROUP, 0, 0, self.dialect.objects[GROUP].build(FfGroup(1)))
        )
        first, second = self.requests, self._second
        assert second is not None
        rings = [
            self.post(first, framed(Opcode.RESOURCE_OBJ_CREATE, create), 8),
            self.post(
                second,
                framed(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(GROUP, 0))),
                8,
            ),
        ]
        for queue in (second, first):
            self.link.kick(queue._index)
        for ring in rings:
            ring.poll()


@driver_mutant("AVQ-DRV-07")
class GivesUp(Wrong):
    """EAGAIN is final."""

    only = ("create_sas",)
    config = replace(Wrong.config, retries=0)


# -- capabilities -----------------------------------------------------------------------------------------


class BeforeCapability(Wrong):
    """Something comes before a capability is set."""

    cap = CapId.NET_FF_RESOURCE_CAP

    def first(self) -> None:
        self.make(GROUP, 0, FfGroup(1))

    def patches(self) -> Patches:
        cap_set = Admin.cap_set

        def too_late(admin: Any, cap_id: int, data: bytes) -> None:
            if cap_id == self.cap:
                self.first()
            cap_set(admin, cap_id, data)

        return (patch.object(Admin, "cap_set", too_late),)


@driver_mutant("CAP-DRV-01", "RO-DRV-06", "NET-FF-DRV-01")
class GroupTooEarly(BeforeCapability):
    """A group before the flow-filter capabilities."""


@driver_mutant("RO-DRV-06", "CAP-DRV-01", "NET-FF-DRV-01")
class GroupTooEarlyAgain(BeforeCapability):
    """The same, for the sentence that says it again."""


@driver_mutant("INF-11", "CAP-DRV-01", "RO-DRV-06")
class SaTooEarly(BeforeCapability):
    """An SA before its capability."""

    cap = CapId.NET_IPSEC_SA_CAP

    def first(self) -> None:
        self.make(ResourceType.NET_IPSEC_OUTB_SA, 0, replace(self.sa(), direction=1))


class SkipsCapability(Wrong):
    """One capability is not set."""

    skipped = 0

    def patches(self) -> Patches:
        cap_set = Admin.cap_set

        def skip(admin: Any, cap_id: int, data: bytes) -> None:
            if cap_id != self.skipped:
                cap_set(admin, cap_id, data)

        return (patch.object(Admin, "cap_set", skip),)


@driver_mutant("NET-FF-DRV-01")
class FiltersWithoutActions(SkipsCapability):
    """A group, and no action capability."""

    skipped = CapId.NET_FF_ACTION_CAP
    only = ("make_group",)

    def make_group(self) -> None:
        self.make(GROUP, 0, FfGroup(1))


@driver_mutant("NET-IPSEC-DRV-03")
class ResourcesUnset(SkipsCapability):
    """The IPsec resource capability is not set."""

    skipped = CapId.NET_IPSEC_RESOURCE_CAP


@driver_mutant("CAP-DRV-02")
class BeyondTheDevice(Wrong):
    """A replay window larger than the device's."""

    def command(self, readable: bytes, room: int) -> tuple[bytes, int]:
        if is_opcode(readable, Opcode.DRIVER_CAP_SET) and readable[HEADER : HEADER + 2] == b"\x04\x08":
            at = HEADER + 8 + 8 + 4
            readable = readable[:at] + (1 << 20).to_bytes(4, "little") + readable[at + 4 :]
        return readable, room


class SetInUse(Wrong):
    """A capability is set while a group exists."""

    only = ("set_in_use",)

    def set_in_use(self) -> None:
        caps = self.driver.caps.filter_resources
        self.make(GROUP, 0, FfGroup(1))
        cap = CapId.NET_FF_RESOURCE_CAP
        self.cap_set(cap, self.data(self.dialect.capabilities[cap].build(caps)))

    def data(self, usual: bytes) -> bytes:
        return usual


@driver_mutant("RO-DRV-05")
class SetsInUse(SetInUse):
    """Set to what it was."""


@driver_mutant("CAP-DRV-03", "RO-DRV-05")
class DisablesInUse(SetInUse):
    """All limits zero."""

    def data(self, usual: bytes) -> bytes:
        return bytes(len(usual))


@driver_mutant("NET-IPSEC-DRV-01")
class KnowsTheCapabilities(Wrong):
    """The list of capabilities is not asked for."""

    def patches(self) -> Patches:
        return (patch.object(Admin, "cap_ids", lambda _admin: frozenset(CapId)),)


class KnowsTheLimits(Wrong):
    """The IPsec resource capability is not read."""

    def patches(self) -> Patches:
        cap_get = Admin.cap_get

        def get(admin: Any, cap_id: int, length: int) -> bytes:
            if cap_id == CapId.NET_IPSEC_RESOURCE_CAP:
                return (8).to_bytes(4, "little") * 2
            return cap_get(admin, cap_id, length)

        return (patch.object(Admin, "cap_get", get),)


@driver_mutant("NET-IPSEC-DRV-02")
class LimitsUnread(KnowsTheLimits):
    """Nothing else."""


@driver_mutant("RFC-34", "NET-IPSEC-DRV-02")
class LimitsUnreadBeforeSas(KnowsTheLimits):
    """And then SAs are created."""

    only = ("create_sas",)
