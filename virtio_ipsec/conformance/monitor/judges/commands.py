"""Administration commands: lists, frames, capabilities, resource objects (virtio v1.4 2.12, 2.13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Command, Life, Run
from virtio_ipsec.errors import AdminQualifier, AdminStatus, WireError
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    ObjectCommand,
    id_bitmap_parse,
)
from virtio_ipsec.wire.annotate import opcode_name
from virtio_ipsec.wire.device_parts import METADATA_COMMAND, MODE_SET, PARTS_GET, PARTS_SET
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.numbers import CapId, GroupType, Opcode, ResourceType

LISTS = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})
#: Object type -> capabilities that it depends on.
DEPENDS: Mapping[int, tuple[CapId, ...]] = {
    ResourceType.NET_FF_GROUP: (CapId.NET_FF_RESOURCE_CAP,),
    ResourceType.NET_FF_CLASSIFIER: (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP),
    ResourceType.NET_FF_RULE: (
        CapId.NET_FF_RESOURCE_CAP,
        CapId.NET_FF_SELECTOR_CAP,
        CapId.NET_FF_ACTION_CAP,
    ),
    ResourceType.NET_IPSEC_OUTB_SA: (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP),
    ResourceType.NET_IPSEC_INB_SA: (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP),
}
#: Object type -> where its limit stands: capability and field.
LIMITS: Mapping[int, tuple[CapId, str]] = {
    ResourceType.NET_FF_GROUP: (CapId.NET_FF_RESOURCE_CAP, "groups_limit"),
    ResourceType.NET_FF_CLASSIFIER: (CapId.NET_FF_RESOURCE_CAP, "classifiers_limit"),
    ResourceType.NET_FF_RULE: (CapId.NET_FF_RESOURCE_CAP, "rules_limit"),
    ResourceType.NET_IPSEC_OUTB_SA: (CapId.NET_IPSEC_RESOURCE_CAP, "outb_sa_limit"),
    ResourceType.NET_IPSEC_INB_SA: (CapId.NET_IPSEC_RESOURCE_CAP, "inb_sa_limit"),
}
#: Commands about the parts of a member -> bytes of their data that are always there.
_LENGTHS: Mapping[int, int] = {
    Opcode.DEV_PARTS_METADATA_GET: METADATA_COMMAND.fixed_size,
    Opcode.DEV_PARTS_GET: PARTS_GET.fixed_size,
    Opcode.DEV_PARTS_SET: PARTS_SET.fixed_size,
    Opcode.DEV_MODE_SET: MODE_SET.fixed_size,
}


def named(command: Command, dialect: Dialect) -> str:
    """The command, with what it is about."""
    about = command.any_object
    what = f" of {type_name(about.type)} {about.id}" if about else ""
    if command.capability is not None:
        what = f" of capability {command.capability.id:#06x}"
    if command.group == GroupType.SRIOV:
        what += f" for member {command.member}"
    return f"{opcode_name(command.opcode, dialect)}{what}"


def type_name(kind: int) -> str:
    """An object type's name, or its number."""
    return ResourceType(kind).name if kind in ResourceType._value2member_map_ else f"type {kind:#06x}"


def sets(life: Life, *, ok: bool = True) -> Iterator[tuple[Command, int, bytes]]:
    """DRIVER_CAP_SET commands (those that were obeyed): capability id and data."""
    for command in life.commands:
        about = command.capability
        if about is not None and command.opcode == Opcode.DRIVER_CAP_SET and (command.ok or not ok):
            yield command, about.id, about.data


def parsed(dialect: Dialect, cap_id: int, data: bytes) -> Any:
    """A capability's value; None when it is none."""
    codec = dialect.capabilities.get(cap_id)
    try:
        return codec.parse(data) if codec is not None else None
    except WireError:
        return None


# -- lists ------------------------------------------------------------------------------------------------


@judge("ADM-DRV-02", when="a command besides LIST_QUERY and LIST_USE was sent")
def list_use_first(run: Run) -> Iterator[Finding]:
    """No command but LIST_QUERY and LIST_USE before a LIST_USE has succeeded."""
    for life in run.lives:
        used = [c.returned for c in life.commands if c.opcode == Opcode.LIST_USE and c.ok and c.returned]
        for command in life.commands:
            if command.opcode not in LISTS:
                allowed = bool(used) and used[0] < command.exposed
                yield Finding(
                    allowed, "a successful LIST_USE before", named(command, run.dialect), command.at
                )


@judge("ADM-DRV-03", when="LIST_USE was sent")
def list_use_alone(run: Run) -> Iterator[Finding]:
    """LIST_USE is never sent while other commands are outstanding."""
    for life in run.lives:
        for command in life.commands:
            if command.opcode == Opcode.LIST_USE:
                others = [
                    other for other in life.commands if other is not command and _overlap(command, other)
                ]
                seen = f"{named(others[0], run.dialect)} was outstanding" if others else ""
                yield Finding(not others, "no other command outstanding", seen, command.at)


def _overlap(one: Command, other: Command) -> bool:
    """Whether both were with the device at a time."""
    return (other.returned is None or one.exposed < other.returned) and (
        one.returned is None or other.exposed < one.returned
    )


def _known(dialect: Dialect) -> frozenset[int]:
    return frozenset(Opcode) | {dialect.query_opcode, dialect.modify_opcode}


@judge("ADM-DRV-04", when="LIST_USE was sent, after the device had listed an opcode that nobody knows")
def known_opcodes(run: Run) -> Iterator[Finding]:
    """LIST_USE has no opcode that the driver cannot know."""
    known = _known(run.dialect)
    for life in run.lives:
        listed: frozenset[int] = frozenset()
        for command in life.commands:
            if command.opcode == Opcode.LIST_QUERY and command.ok:
                listed |= id_bitmap_parse(command.result) - known
            if command.opcode == Opcode.LIST_USE and listed:
                strange = id_bitmap_parse(command.data) - known
                yield Finding(not strange, "known opcodes only", f"{sorted(map(hex, strange))}", command.at)


@judge("ADM-DRV-05", when="LIST_USE was sent")
def listed_opcodes(run: Run) -> Iterator[Finding]:
    """LIST_USE has only opcodes that LIST_QUERY reported for the same group type."""
    for life in run.lives:
        listed: dict[int, frozenset[int]] = {}
        for command in life.commands:
            if command.opcode == Opcode.LIST_QUERY and command.ok:
                listed[command.group] = id_bitmap_parse(command.result)
            if command.opcode == Opcode.LIST_USE:
                beyond = id_bitmap_parse(command.data) - listed.get(command.group, frozenset())
                seen = f"opcodes {sorted(map(hex, beyond))}"
                yield Finding(
                    not beyond, f"what LIST_QUERY reported for group {command.group}", seen, command.at
                )


@judge("ADM-DRV-06", when="a command besides LIST_QUERY and LIST_USE was sent")
def list_use_of_group(run: Run) -> Iterator[Finding]:
    """No command of a group type before LIST_USE for that group type."""
    for life in run.lives:
        used: dict[int, int] = {}
        for command in life.commands:
            if command.opcode == Opcode.LIST_USE and command.ok and command.returned is not None:
                used.setdefault(command.group, command.returned)
            if command.opcode not in LISTS:
                allowed = used.get(command.group, command.at) < command.exposed
                yield Finding(
                    allowed,
                    f"LIST_USE for group {command.group} before",
                    named(command, run.dialect),
                    command.at,
                )


@judge("ADM-DRV-07", when="LIST_USE left LIST_QUERY or LIST_USE out")
def locked_out(run: Run) -> Iterator[Finding]:
    """A driver that leaves LIST_QUERY or LIST_USE out of the list does not use it afterwards."""
    for life in run.lives:
        for command in life.commands:
            if command.opcode != Opcode.LIST_USE or not command.ok:
                continue
            for out in LISTS - id_bitmap_parse(command.data):
                later = [c for c in life.commands if c.exposed > command.at and c.opcode == out]
                same = [c for c in later if c.group == command.group]
                at = same[0].at if same else command.at
                yield Finding(not same, f"no {Opcode(out).name} from then on", f"{len(same)} of them", at)


# -- answers ----------------------------------------------------------------------------------------------


def _not_believed(run: Run, life: Life, command: Command, about: ObjectCommand) -> Finding:
    """That the driver does not take a refused CREATE for done."""
    for thing, live in life.walk():
        if isinstance(thing, Command):
            if thing.exposed <= command.at:
                continue
            if thing.object is None or (thing.object.type, thing.object.id) != (about.type, about.id):
                continue
            if thing.opcode == Opcode.RESOURCE_OBJ_CREATE:
                return Finding(True, "the object does not exist", "created again", command.at)
            return Finding(False, "the object does not exist", named(thing, run.dialect), thing.at)
        if thing.at > command.at and thing.header is not None:
            marked = thing.header.flags & run.dialect.flag_security
            is_sa = about.type == ResourceType.NET_IPSEC_OUTB_SA
            if (
                marked
                and is_sa
                and thing.header.resource_id == about.id
                and (about.type, about.id) not in live
            ):
                return Finding(False, "the object does not exist", f"a packet names SA {about.id}", thing.at)
    return Finding(True, "the object does not exist", "nothing names it", command.at)


@judge("ADM-DRV-08", when="a CREATE was answered with a status that nobody knows")
def unknown_status(run: Run) -> Iterator[Finding]:
    """A status that is not known counts as EINVAL: what was to be created does not exist."""
    for life in run.lives:
        for command in life.commands:
            strange = command.status is not None and command.status not in AdminStatus._value2member_map_
            about = command.object
            if strange and about is not None and command.opcode == Opcode.RESOURCE_OBJ_CREATE:
                yield _not_believed(run, life, command, about)


@judge("ADM-DRV-09", when="a CREATE was answered with EINVAL and a qualifier that nobody knows")
def unknown_qualifier(run: Run) -> Iterator[Finding]:
    """A qualifier that is not known counts as Q_INVALID_COMMAND: what was to be created does not exist."""
    for life in run.lives:
        for command in life.commands:
            strange = command.status == AdminStatus.EINVAL
            strange = strange and command.qualifier not in AdminQualifier._value2member_map_
            about = command.object
            if strange and about is not None and command.opcode == Opcode.RESOURCE_OBJ_CREATE:
                yield _not_believed(run, life, command, about)


# -- frames -----------------------------------------------------------------------------------------------


def _wanted_length(command: Command, dialect: Dialect) -> int:
    """The length of the structure that the command's readable part is."""
    head = ADMIN_COMMAND.fixed_size
    if command.capability is not None:
        return head + CAP_COMMAND.fixed_size
    about = command.any_object
    if about is None:
        return head + _LENGTHS.get(command.opcode, 0)
    if command.opcode == Opcode.RESOURCE_OBJ_DESTROY:
        return head + RESOURCE_HEADER.fixed_size
    codec = dialect.objects.get(about.type)
    has_data = command.opcode in (Opcode.RESOURCE_OBJ_CREATE, dialect.modify_opcode)
    return head + OBJECT_COMMAND.fixed_size + (codec.fixed_size if codec and has_data else 0)


@judge("AVQ-DRV-02", when="an administration command was sent")
def readable_length(run: Run) -> Iterator[Finding]:
    """The readable part is at least as long as the command's structure."""
    for life in run.lives:
        for command in life.commands:
            wanted, length = _wanted_length(command, run.dialect), len(command.readable)
            seen = f"{length} ({named(command, run.dialect)})"
            yield Finding(length >= wanted, f"{wanted} bytes or more", seen, command.at)


@judge("AVQ-DRV-03", when="an administration command was sent")
def multiples_of_eight(run: Run) -> Iterator[Finding]:
    """Both parts of a command are multiples of eight bytes."""
    for life in run.lives:
        for command in life.commands:
            holds = len(command.readable) % 8 == 0 and command.room % 8 == 0
            seen = f"{len(command.readable)} and {command.room} ({named(command, run.dialect)})"
            yield Finding(holds, "multiples of 8", seen, command.at)


@judge("AVQ-DRV-04", when="an administration command was sent")
def both_parts(run: Run) -> Iterator[Finding]:
    """Neither part of a command is empty."""
    for life in run.lives:
        for command in life.commands:
            holds = bool(command.readable) and command.room > 0
            seen = f"{len(command.readable)} bytes to read, room for {command.room}"
            yield Finding(holds, "a readable and a writable part", seen, command.at)


@judge("AVQ-DRV-05", when="an answer was shorter than the room, and the driver used what it says")
def zeros_beyond(run: Run) -> Iterator[Finding]:
    """Everything beyond the used length counts as zero.

    Judged where the driver gives back what it has read: opcodes in LIST_USE, bytes of capabilities in DRIVER_CAP_SET.
    """
    for life in run.lives:
        query: dict[int, Command] = {}
        read: dict[int, Command] = {}
        for command in life.commands:
            about = command.capability
            if about is not None and command.opcode == Opcode.DEVICE_CAP_GET and command.ok:
                read[about.id] = command
            elif about is not None and about.id in read:
                told = read[about.id]
                if len(told.reply or b"") < told.room:
                    rest = about.data[len(told.result) :]
                    yield Finding(not any(rest), "zeros behind what was read", rest.hex(), command.at)
            if command.opcode == Opcode.LIST_QUERY and command.ok:
                query[command.group] = command
            source = query.get(command.group)
            short = source is not None and len(source.reply or b"") < source.room
            if command.opcode == Opcode.LIST_USE and source is not None and short:
                limit = 8 * len(source.result)
                beyond = [opcode for opcode in id_bitmap_parse(command.data) if opcode >= limit]
                seen = f"opcodes {sorted(map(hex, beyond))}"
                yield Finding(not beyond, f"no opcode from {limit:#x} on", seen, command.at)


@judge("AVQ-DRV-06", when="commands about one object were sent on different administration queues")
def order_over_queues(run: Run) -> Iterator[Finding]:
    """A command that depends on another one is queued behind it, or after it has completed."""
    for life in run.lives:
        latest: dict[tuple[int, int], Command] = {}
        for command in sorted(life.commands, key=lambda each: (each.exposed, each.at)):
            if command.object is None:
                continue
            key = command.object.type, command.object.id
            before = latest.get(key)
            if before is not None and before.queue != command.queue:
                done = before.returned is not None and before.returned < command.exposed
                seen = f"{named(before, run.dialect)} on queue {before.queue} was outstanding"
                yield Finding(done, "the command before it has completed", seen, command.at)
            latest[key] = command


@judge("AVQ-DRV-07", when="a command was answered with EAGAIN")
def tries_again(run: Run) -> Iterator[Finding]:
    """A command that was answered with EAGAIN is sent again."""
    for life in run.lives:
        for command in life.commands:
            if command.status == AdminStatus.EAGAIN:
                again = [c for c in life.commands if c.exposed > command.at and _is_same(c, command)]
                at = again[0].at if again else command.at
                yield Finding(bool(again), "the command once more", named(command, run.dialect), at)


def _is_same(one: Command, other: Command) -> bool:
    if one.object is not None and other.object is not None:
        mine, theirs = one.object, other.object
        return one.opcode == other.opcode and mine.type == theirs.type and mine.data == theirs.data
    return one.readable == other.readable
