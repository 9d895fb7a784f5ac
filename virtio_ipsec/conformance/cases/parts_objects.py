"""The objects through which device parts are reached, metadata, and what a refusal of all these commands blames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.admin import HEADER, Reply
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.admin_qualifiers import WRONG
from virtio_ipsec.conformance.cases.device_parts import NEEDS, NONE, by_key
from virtio_ipsec.conformance.parts import GETTER, PARTS, RESOURCES, SETTER, PartsBench, use_group
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.wire.admin import OBJECT_COMMAND, ObjectCommand
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_CAP,
    DEV_PARTS_OBJECT,
    METADATA_COMMAND,
    METADATA_RESULT,
    PARTS_GET,
    PARTS_SET,
    QUEUE_CONFIG,
    DevMode,
    DevPartsCap,
    DevPartsObject,
    Metadata,
    MetadataCommand,
    Part,
    PartsGet,
    PartsGetCommand,
    PartsObject,
    PartsSetCommand,
    PartType,
    control_selector,
    headers_parse,
    parts_build,
    queue_selector,
)
from virtio_ipsec.wire.numbers import (
    CapId,
    CtrlClass,
    CtrlMac,
    CtrlMq,
    CtrlRx,
    CtrlVlan,
    Opcode,
    ResourceType,
)

CREATE, MODIFY = Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_MODIFY
QUERY, DESTROY = Opcode.RESOURCE_OBJ_QUERY, Opcode.RESOURCE_OBJ_DESTROY
#: An id below the sum of the limits, which is free.
SPARE = 2
#: No object type.
STRANGE = 0x500


def of(kind: int) -> bytes:
    """Data of an object for this purpose."""
    return DEV_PARTS_OBJECT.build(DevPartsObject(kind))


def on(it: PartsBench, opcode: int, id: int, data: bytes = b"", type: int = ResourceType.DEV_PARTS) -> Reply:
    """A resource command on an object of member 1."""
    return it.command(opcode, OBJECT_COMMAND.build(ObjectCommand(type, id, 0, data)))


@case(
    "parts-objects", "RO-DEV-01", "RO-DEV-02", "RO-DEV-03", "RO-DEV-05", "RO-DEV-08", "RO-DEV-09", "RO-DEV-10",
    "RO-DEV-11", "CAP-DEV-07", "CAP-DEV-10",
    needs=NEEDS,
)  # fmt: skip
def objects(bench: Bench) -> None:
    """Device parts objects obey the rules of resource objects.

    The driver allows itself two objects that get and one that sets. Two are there: CREATE of one of them again; CREATE
    of a second that sets; a third object that gets, which QUERY shows as such, also after a MODIFY that there is no
    room for, and after the object that sets is gone as one that sets. MODIFY, QUERY and DESTROY of what was destroyed,
    CREATE of it anew. The capability cannot be taken back meanwhile. An object of a type that there is not is none of
    these. After a reset of the owner none is there, and none can be made until the capability is set again.
    """
    it = PartsBench(bench, limits=DevPartsCap(2, 1))
    admin = bench.admin

    def shows(id: int, kind: PartsObject, when: str) -> None:
        reply = on(it, QUERY, id)
        same = reply.ok and reply.result == of(kind)
        bench.check("RO-DEV-10", same, f"{when}: QUERY of object {id} says {kind.name}", reply.result.hex())

    reply = on(it, CREATE, GETTER, of(PartsObject.GET))
    exists = reply.status == AdminStatus.EEXIST
    bench.check("RO-DEV-01", exists, "EEXIST for an object that exists", reply)
    reply = on(it, CREATE, SPARE, of(PartsObject.SET))
    full = reply.status == AdminStatus.ENOSPC
    bench.check("RO-DEV-03", full, "ENOSPC for one that there is no room for", reply)
    if reply.ok:
        on(it, DESTROY, SPARE)
    reply = on(it, CREATE, SPARE, of(PartsObject.GET))
    bench.require("RO-DEV-08", reply.ok, "two that get and one that sets, as announced", reply)
    for id, kind in ((GETTER, PartsObject.GET), (SETTER, PartsObject.SET), (SPARE, PartsObject.GET)):
        shows(id, kind, "created")
        reply = on(it, MODIFY, id, of(kind))
        bench.check("RO-DEV-10", reply.ok, f"object {id} can be made what it is", reply)
    if not on(it, MODIFY, SPARE, of(PartsObject.SET)).ok:
        reply = on(it, QUERY, SPARE)
        bench.check(
            "RO-DEV-09", reply.result == of(PartsObject.GET), "a MODIFY that fails has no effect", reply
        )
    reply = on(it, DESTROY, SETTER)
    bench.require("RO-DEV-05", reply.ok, "an object can be destroyed", reply)
    for opcode in (MODIFY, QUERY, DESTROY):
        reply = on(it, opcode, SETTER, of(PartsObject.GET))
        gone = reply.status == AdminStatus.ENXIO
        bench.check("RO-DEV-02", gone, f"ENXIO for {Opcode(opcode).name} of what was destroyed", reply)
    reply = on(it, MODIFY, SPARE, of(PartsObject.SET))
    bench.check("RO-DEV-10", reply.ok, "MODIFY where there is room", reply)
    shows(SPARE, PartsObject.SET, "modified")
    reply = on(it, DESTROY, SPARE)
    bench.require("RO-DEV-05", reply.ok, "a modified object can be destroyed", reply)
    reply = on(it, CREATE, SETTER, of(PartsObject.SET))
    bench.check("RO-DEV-05", reply.ok, "a destroyed object can be created again", reply)
    reply = admin.cap_set(CapId.DEV_PARTS_CAP, DEV_PARTS_CAP.build(DevPartsCap()))
    busy = reply.status == AdminStatus.EBUSY
    bench.check("CAP-DEV-07", busy, "EBUSY when the capability is disabled under objects", reply)
    if on(it, CREATE, SPARE, of(PartsObject.GET), type=STRANGE).ok:
        reply = on(it, QUERY, SPARE, type=STRANGE)
        bench.check("RO-DEV-10", reply.ok, "an object of another type that was created is there", reply)
    reply = on(it, QUERY, SPARE)
    bench.check("RO-DEV-02", not reply.ok, "an object of another type is none of these", reply)
    for opcode in (MODIFY, QUERY, DESTROY):
        reply = on(it, opcode, SETTER, of(PartsObject.SET), type=STRANGE)
        bench.check("RO-DEV-02", not reply.ok, f"{Opcode(opcode).name} of an object of another type", reply)
    bench.start()
    admin.use_everything()
    use_group(bench)
    reply = on(it, QUERY, GETTER)
    bench.require("RO-DEV-11", not reply.ok, "no object outlives a reset of the owner", reply)
    it.announce(DevPartsCap(1, 0))
    reply = on(it, CREATE, GETTER, of(PartsObject.GET))
    bench.check("RO-DEV-08", reply.ok, "one that gets where none may set", reply)
    bench.start()
    admin.use_everything()
    use_group(bench)
    reply = on(it, CREATE, GETTER, of(PartsObject.GET))
    bench.check("CAP-DEV-10", not reply.ok, "no object without the capability", reply)


@case("parts-metadata", "DP-DEV-01", needs=NEEDS)
def metadata(bench: Bench) -> None:
    """DEV_PARTS_METADATA_GET, which belongs to what a device with parts supports, tells of the parts that there are.

    Number, headers and size of the parts of a member that is stopped and of one that runs, against what DEV_PARTS_GET
    answers; each part named alone; and all with a part named that the device does not have.
    """
    bench.start()
    known = use_group(bench)
    if not known & PARTS:
        raise Unsupported("the SR-IOV group has no commands for device parts")
    missing = sorted((PARTS | RESOURCES) - known)
    bench.require("DP-DEV-01", not missing, "all commands that device parts need", f"not {missing}")
    it = PartsBench(bench)
    for when in ("running", "stopped"):
        if when == "stopped":
            it.stop()
        parts = it.get()
        size, count, listed = (METADATA_RESULT.parse(it.metadata(kind)) for kind in Metadata)
        headers = tuple(headers_parse(listed.headers))
        wanted = tuple(part.header for part in parts)
        octets = len(parts_build(parts))
        bench.check("DP-DEV-01", size.count >= octets, f"{when}: room for {octets} bytes", size.count)
        bench.check("DP-DEV-01", count.count == len(parts), f"{when}: {len(parts)} parts", count.count)
        bench.check("DP-DEV-01", listed.count == len(parts), f"{when}: {len(parts)} headers", listed.count)
        bench.check("DP-DEV-01", headers == wanted, f"{when}: the headers of the parts", headers)
    answer = it.metadata(Metadata.LIST)
    asked = METADATA_COMMAND.build(MetadataCommand(ResourceType.DEV_PARTS, GETTER, Metadata.LIST))
    reply = it.command(Opcode.DEV_PARTS_METADATA_GET, asked, room=HEADER + len(answer))
    whole = reply.ok and reply.result == answer
    bench.check("DP-DEV-01", whole, f"headers into room for {len(answer)} bytes", reply)
    for part in bench.sweep(parts):
        found = it.get([part.header])
        what = f"part {part.part_type:#x} {part.selector.hex()}"
        bench.check("DP-DEV-01", found == (part,), f"{what} is what was asked for", found)
    other = Part(PartType.VQ_CFG, b"", 0, queue_selector(0xFFFF)).header
    found = it.get([other, *(part.header for part in parts)])
    bench.check("DP-DEV-01", found == parts, "a part that there is not is left out", f"{len(found)} parts")


@case("admin-qualifier-of-parts", "INF-59", needs=NEEDS)
def qualifier_of_parts(bench: Bench) -> None:
    """A refusal of a command about device parts does not blame opcode, group type or member id.

    Objects of other types, ids and purposes than there are, metadata and selections of other types, parts that the
    device does not have, twice, of other lengths and values, modes that there are not. EINVAL comes with another
    qualifier than those three.
    """
    it = PartsBench(bench)
    told = [("parts of a member that runs", it.set(*it.get()))]
    it.stop()
    for what, reply in (*told, *_objects(it), *_commands(it), *_parts(it)):
        fair = reply.status != AdminStatus.EINVAL or reply.qualifier not in WRONG
        bench.check("INF-59", fair, f"{what}: opcode, group and member are not blamed", reply)


def _objects(it: PartsBench) -> Iterator[tuple[str, Reply]]:
    yield "an id that is taken", on(it, CREATE, GETTER, of(PartsObject.GET))
    yield "an id beyond all limits", on(it, CREATE, 0xFFFF_FFFF, of(PartsObject.GET))
    yield "an object for nothing", on(it, CREATE, SPARE, of(2))
    yield "an object for nothing, by MODIFY", on(it, MODIFY, GETTER, of(0xFF))
    for opcode in (CREATE, MODIFY, QUERY, DESTROY):
        name = Opcode(opcode).name
        if opcode != CREATE:
            yield f"{name} of an object that there is not", on(it, opcode, SPARE, of(PartsObject.GET))
        yield f"{name} of another type", on(it, opcode, GETTER, bytes(64), type=STRANGE)


def _commands(it: PartsBench) -> Iterator[tuple[str, Reply]]:
    get, one = Opcode.DEV_PARTS_METADATA_GET, PartsGet.ALL
    for what, type, id in (
        ("another type", STRANGE, GETTER),
        ("an id that there is not", ResourceType.DEV_PARTS, SPARE),
        ("the other purpose", ResourceType.DEV_PARTS, SETTER),
    ):
        yield f"metadata, {what}", it.command(get, METADATA_COMMAND.build(MetadataCommand(type, id, 0)))
        parts_get = PARTS_GET.build(PartsGetCommand(type, id, one))
        yield f"parts get, {what}", it.command(Opcode.DEV_PARTS_GET, parts_get)
        parts_set = PARTS_SET.build(PartsSetCommand(type, SETTER + GETTER - id if id != SPARE else id))
        yield f"parts set, {what}", it.command(Opcode.DEV_PARTS_SET, parts_set)
    for kind in (3, 0xFF):
        asked = MetadataCommand(ResourceType.DEV_PARTS, GETTER, kind)
        yield f"metadata of type {kind}", it.command(get, METADATA_COMMAND.build(asked))
        selected = PartsGetCommand(ResourceType.DEV_PARTS, GETTER, kind)
        yield f"parts get of type {kind}", it.command(Opcode.DEV_PARTS_GET, PARTS_GET.build(selected))
    for flags in (2, 0x81):
        yield f"mode {flags:#x}", it.mode(flags)
    it.mode(DevMode.STOPPED)


def _parts(it: PartsBench) -> Iterator[tuple[str, Reply]]:
    """Sets of parts that are refused, or may be. What is accepted nevertheless is void after the member's reset."""
    parts = by_key(it.get())
    features, status = parts[PartType.DRV_FEATURES, NONE], parts[PartType.DEVICE_STATUS, NONE]
    queue = parts[PartType.VQ_CFG, queue_selector(0)]
    config = QUEUE_CONFIG.parse(queue.value)
    device = parts[PartType.DEV_FEATURES, NONE]
    wrong = {
        "a part twice": (status, status),
        "a part of no known type": (Part(0x1FF, bytes(8)),),
        "a queue that there is not": (replace(queue, selector=queue_selector(0xFFFF)),),
        "a status of two bytes": (replace(status, value=bytes(2)),),
        "other features of the device": (replace(device, value=bytes(len(device.value))),),
        "driver features beyond the offer": (replace(features, value=b"\xff" * len(features.value)),),
        "a status without FEATURES_OK": (replace(status, value=b"\x07"),),
        "a queue that is enabled twice": (
            replace(queue, value=QUEUE_CONFIG.build(replace(config, enabled=2))),
        ),
        "a queue of no entries": (replace(queue, value=QUEUE_CONFIG.build(replace(config, queue_size=0))),),
        "a queue of 65535 entries": (
            replace(queue, value=QUEUE_CONFIG.build(replace(config, queue_size=0xFFFF))),
        ),
        "another place of notifications": (
            replace(parts[PartType.VQ_NOTIFY_CFG, queue_selector(0)], value=b"\xff" * 4 + bytes(4)),
        ),
    }
    for part in parts.values():
        if part.part_type == PartType.PCI_COMMON_CFG:
            what = f"another value of the common configuration at {part.selector[0]}"
            wrong[what] = (replace(part, value=bytes(octet ^ 0x55 for octet in part.value)),)
    for group, number, value in (
        (CtrlClass.RX, CtrlRx.PROMISC, bytes(2)),
        (CtrlClass.RX, CtrlRx.PROMISC, b"\x07"),
        (CtrlClass.MAC, CtrlMac.TABLE_SET, b"\xff" * 4),
        (CtrlClass.MAC, CtrlMac.ADDR_SET, bytes(5)),
        (CtrlClass.VLAN, CtrlVlan.ADD, bytes(1)),
        (CtrlClass.VLAN, CtrlVlan.ADD, bytes(2 * 4097)),
        (CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET, bytes(2)),
        (CtrlClass.MQ, CtrlMq.RSS_CONFIG, b"\xff" * 4),
        (CtrlClass.MQ, CtrlMq.HASH_CONFIG, b"\xff" * 4),
    ):
        what = f"{len(value)} bytes of control class {group}, command {number}"
        wrong[what] = (Part(PartType.NET_CVQ_CFG, value, 0, control_selector(group, number)),)
    for what, some in wrong.items():
        reply = it.set(*some)
        yield what, reply
        if reply.ok:
            it.vf.target.reset()
            it.set(features, status)
