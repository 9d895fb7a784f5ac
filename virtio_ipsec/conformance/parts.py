"""Device parts as a case about members works with them: the owner's commands, and one member at work."""

from __future__ import annotations

from collections.abc import Iterable

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.admin import OBJECT_COMMAND, ObjectCommand, id_bitmap_parse
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_CAP,
    DEV_PARTS_OBJECT,
    METADATA_COMMAND,
    MODE_SET,
    PARTS_GET,
    PARTS_SET,
    DevMode,
    DevPartsCap,
    DevPartsObject,
    MetadataCommand,
    ModeCommand,
    Part,
    PartHeader,
    PartsGet,
    PartsGetCommand,
    PartsObject,
    PartsSetCommand,
    headers_build,
    parts_build,
    parts_parse,
)
from virtio_ipsec.wire.numbers import CapId, Feature, GroupType, Opcode, ResourceType

#: What device parts need, besides the resource commands, which other objects share.
PARTS = frozenset(
    {Opcode.DEV_PARTS_METADATA_GET, Opcode.DEV_PARTS_GET, Opcode.DEV_PARTS_SET, Opcode.DEV_MODE_SET}
)
RESOURCES = frozenset(
    {
        Opcode.RESOURCE_OBJ_CREATE,
        Opcode.RESOURCE_OBJ_DESTROY,
        Opcode.RESOURCE_OBJ_MODIFY,
        Opcode.RESOURCE_OBJ_QUERY,
    }
)
GETTER, SETTER = 0, 1


def use_group(bench: Bench) -> frozenset[int]:
    """LIST_USE of all that the SR-IOV group has; which opcodes those are."""
    listed = id_bitmap_parse(demand(bench.admin.list_query(GroupType.SRIOV)).result)
    demand(bench.admin.list_use(listed, GroupType.SRIOV))
    return listed


class PartsBench:
    """An owner that has been started, its objects 0 and 1 for the parts of member 1, and that member at work.

    Raises Unsupported when the group knows no device parts.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        want: Iterable[Feature] = (),
        without: Iterable[Feature] = (),
        limits: DevPartsCap | None = None,
    ) -> None:
        self.bench = bench
        bench.start()
        self.announce(limits)
        for number, kind in ((GETTER, PartsObject.GET), (SETTER, PartsObject.SET)):
            data = DEV_PARTS_OBJECT.build(DevPartsObject(kind))
            self.demand(
                Opcode.RESOURCE_OBJ_CREATE,
                OBJECT_COMMAND.build(ObjectCommand(ResourceType.DEV_PARTS, number, 0, data)),
            )
        self.vf = bench.member(1)
        # No administration queue of its own: what it could set up there is in no part.
        self.vf.start(
            want=want,
            without=(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER, *without),
        )

    def announce(self, limits: DevPartsCap | None = None) -> None:
        """Commands and the capability of an owner that has just been started: how many objects, or as many as there
        can be."""
        admin = self.bench.admin
        admin.use_everything()
        if not use_group(self.bench) >= PARTS | RESOURCES:
            raise Unsupported("the SR-IOV group has no commands for device parts")
        if limits is None:
            admin.accept_caps(CapId.DEV_PARTS_CAP)
            return
        most = DEV_PARTS_CAP.parse(demand(admin.cap_get(CapId.DEV_PARTS_CAP)).result)
        if (
            limits.get_parts_resource_objects_limit > most.get_parts_resource_objects_limit
            or limits.set_parts_resource_objects_limit > most.set_parts_resource_objects_limit
        ):
            raise Unsupported(f"the device has room for fewer objects than {limits}")
        demand(admin.cap_set(CapId.DEV_PARTS_CAP, DEV_PARTS_CAP.build(limits)))

    def command(self, opcode: int, data: bytes, *, room: int = 1 << 16) -> Reply:
        """A command for member 1."""
        return self.bench.admin.command(opcode, data, group=GroupType.SRIOV, member=1, room=room)

    def demand(self, opcode: int, data: bytes) -> bytes:
        """The result of a command that has to work."""
        return demand(self.command(opcode, data)).result

    def metadata(self, kind: int) -> bytes:
        """DEV_PARTS_METADATA_GET."""
        command = MetadataCommand(ResourceType.DEV_PARTS, GETTER, kind)
        return self.demand(Opcode.DEV_PARTS_METADATA_GET, METADATA_COMMAND.build(command))

    def get(self, headers: Iterable[PartHeader] | None = None) -> tuple[Part, ...]:
        """DEV_PARTS_GET of all parts, or of those selected."""
        kind = PartsGet.ALL if headers is None else PartsGet.SELECTED
        command = PartsGetCommand(ResourceType.DEV_PARTS, GETTER, kind, headers_build(headers or ()))
        return parts_parse(self.demand(Opcode.DEV_PARTS_GET, PARTS_GET.build(command)))

    def set(self, *parts: Part) -> Reply:
        """DEV_PARTS_SET."""
        command = PartsSetCommand(ResourceType.DEV_PARTS, SETTER, parts_build(parts))
        return self.command(Opcode.DEV_PARTS_SET, PARTS_SET.build(command))

    def mode(self, flags: int) -> Reply:
        """DEV_MODE_SET."""
        return self.command(Opcode.DEV_MODE_SET, MODE_SET.build(ModeCommand(flags)))

    def stop(self) -> None:
        """Stop the member; it has to work."""
        demand(self.mode(DevMode.STOPPED))

    def resume(self) -> None:
        """Resume the member; it has to work."""
        demand(self.mode(0))
