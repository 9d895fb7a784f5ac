"""An owner of virtual functions: the SR-IOV group and device parts (virtio v1.4 2.12, 2.12.1.4, 6).

What the mode of a member is does not end with a reset of its owner, so all of this is read over lives: a device that
stands before a driver anew is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.judges.commands import LISTS, named
from virtio_ipsec.conformance.monitor.life import Command, Life, Run
from virtio_ipsec.errors import AdminStatus, WireError
from virtio_ipsec.transport.monitor.events import (
    Ended,
    FeaturesWritten,
    MemberAccessed,
    MembersChanged,
    StatusRead,
)
from virtio_ipsec.wire.admin import ADMIN_REPLY
from virtio_ipsec.wire.device_parts import (
    METADATA_COMMAND,
    METADATA_RESULT,
    MODE_SET,
    PART_HEADER,
    PARTS_GET,
    PARTS_SET,
    DevMode,
    Metadata,
    PartsGet,
    PartType,
    parts_parse,
)
from virtio_ipsec.wire.numbers import Feature, GroupType, Opcode, Status, has

_MEMBERS = "members"
#: The table of parts; others stand in no table, and no rule says where they come.
_ORDER = (
    PartType.DEV_FEATURES,
    PartType.DRV_FEATURES,
    PartType.PCI_COMMON_CFG,
    PartType.DEVICE_STATUS,
    PartType.VQ_CFG,
    PartType.VQ_NOTIFY_CFG,
)
_STATUSES = ADMIN_REPLY.fixed_size


def _devices(run: Run) -> Iterator[tuple[Life, ...]]:
    """The lives of each device that stood before the driver."""
    lives: list[Life] = []
    for life in run.lives:
        if lives and lives[0].began is not life.began:
            yield tuple(lives)
            lives = []
        lives.append(life)
    if lives:
        yield tuple(lives)


def _group_commands(lives: tuple[Life, ...], *opcodes: int) -> Iterator[Command]:
    """Commands of the SR-IOV group: all, or those with these opcodes."""
    for life in lives:
        for command in life.commands:
            if command.group == GroupType.SRIOV and (not opcodes or command.opcode in opcodes):
                yield command


# -- the capability ---------------------------------------------------------------------------------------


@judge("BAS-RSVD-05", when="VIRTIO_F_SR_IOV was accepted, or virtual functions were enabled", shown=_MEMBERS)
def sriov_agreed_on(run: Run) -> Iterator[Finding]:
    """Virtual functions are enabled only when VIRTIO_F_SR_IOV has once been negotiated, and FEATURES_OK seen.

    Where there is no SR-IOV capability the feature is not accepted.
    """
    for lives in _devices(run):
        agreed = False
        for life in lives:
            for at, event in life.of(FeaturesWritten, StatusRead, MembersChanged):
                if isinstance(event, StatusRead):
                    agreed = agreed or bool(life.has(Feature.F_SR_IOV) and event.value & Status.FEATURES_OK)
                elif isinstance(event, MembersChanged):
                    if event.num_vfs is not None:
                        seen = f"{event.num_vfs} enabled, and it never was"
                        yield Finding(agreed, "VIRTIO_F_SR_IOV negotiated before", seen, at)
                elif isinstance(event, FeaturesWritten) and has(event.word, Feature.F_SR_IOV):
                    expected = "an SR-IOV capability behind VIRTIO_F_SR_IOV"
                    yield Finding(life.shows(_MEMBERS), expected, "there is none", at)


@dataclass(frozen=True, slots=True)
class _Switch:
    """VF Enable from place ``at`` on."""

    at: int
    num_vfs: int | None


def _switches(lives: tuple[Life, ...]) -> list[_Switch]:
    found = [_Switch(lives[0].begin, None)]
    found += [_Switch(at, event.num_vfs) for life in lives for at, event in life.of(MembersChanged)]
    return found


@judge("ADM-DRV-10", when="a command of the SR-IOV group was sent", shown=_MEMBERS)
def enabled_while_outstanding(run: Run) -> Iterator[Finding]:
    """VF Enable is set from before a command of the SR-IOV group until it has completed.

    LIST_QUERY is left out, for a driver may use it to find out whether there is such a group (ADM-DRV-01). A command
    that names no member from 1 to NumVFs is a warning.
    """
    expected = "VF Enable set until it has completed"
    for lives in _devices(run):
        switches = _switches(lives)
        gone = [at for life in lives for at, _ in life.of(Ended)]
        for command in _group_commands(lives):
            if command.opcode == Opcode.LIST_QUERY:
                continue
            ends = gone if command.returned is None else [command.returned]
            end = min((at for at in ends if at > command.exposed), default=len(run.events))
            before = [each for each in switches if each.at < command.exposed][-1]
            cleared = [each for each in switches if each.num_vfs is None and command.exposed < each.at < end]
            if before.num_vfs is None:
                yield Finding(False, expected, f"{named(command, run.dialect)}: clear", command.at)
            elif cleared:
                seen = f"cleared while {named(command, run.dialect)} was outstanding"
                yield Finding(False, expected, seen, cleared[0].at)
            else:
                yield Finding(True, expected, "set", command.at)
                if command.opcode not in LISTS:
                    holds = 1 <= command.member <= before.num_vfs
                    seen = f"member {command.member}"
                    yield Finding(
                        holds, f"a member from 1 to {before.num_vfs}", seen, command.at, advisory=True
                    )


# -- device parts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stop:
    """A member that was stopped, from the answer to the command that did it to the one that ends it. ``until`` is None
    where nothing does."""

    member: int
    since: int
    until: int | None


def _stops(lives: tuple[Life, ...]) -> list[_Stop]:
    """Stops end with the next command about the mode that is obeyed, or with VF Enable."""
    modes = [c for c in _group_commands(lives, Opcode.DEV_MODE_SET) if c.ok and c.returned is not None]
    ends = [each.at for each in _switches(lives) if each.num_vfs is None]
    found = []
    for command in modes:
        since = command.returned
        if since is None or not MODE_SET.parse(command.data).flags & DevMode.STOPPED:
            continue
        later = [c.exposed for c in modes if c.member == command.member and c.exposed > since]
        later += [at for at in ends if at > since]
        found.append(_Stop(command.member, since, min(later, default=None)))
    return found


@judge("DP-DRV-01", when="DEV_PARTS_SET was sent", shown=_MEMBERS)
def stopped_before_set(run: Run) -> Iterator[Finding]:
    """A member is stopped before its parts are set, and not resumed before that is done."""
    for lives in _devices(run):
        stops = _stops(lives)
        for command in _group_commands(lives, Opcode.DEV_PARTS_SET):
            holds = any(
                stop.member == command.member
                and stop.since < command.exposed
                and (stop.until is None or command.exposed < stop.until)
                for stop in stops
            )
            yield Finding(holds, f"member {command.member} stopped before", "it is not", command.at)


@judge("DP-DRV-02", when="several parts were set with one command", shown=_MEMBERS)
def parts_in_order(run: Run) -> Iterator[Finding]:
    """Several parts in one DEV_PARTS_SET come in the order of the table."""
    for lives in _devices(run):
        for command in _group_commands(lives, Opcode.DEV_PARTS_SET):
            try:
                parts = parts_parse(PARTS_SET.parse(command.data).parts)
            except WireError:
                continue
            kinds = [PartType(part.part_type) for part in parts if part.part_type in _ORDER]
            if len(kinds) > 1:
                holds = kinds == sorted(kinds, key=_ORDER.index)
                names = ", ".join(dict.fromkeys(kind.name for kind in kinds))
                yield Finding(holds, "the order of the table", names, command.at)


@judge("DP-DRV-03", when="a member was stopped", shown=_MEMBERS)
def stopped_left_alone(run: Run) -> Iterator[Finding]:
    """The device configuration of a stopped member is neither read nor written."""
    for lives in _devices(run):
        accesses = [(at, event) for life in lives for at, event in life.of(MemberAccessed)]
        for stop in _stops(lives):
            expected = f"no access to the configuration of member {stop.member} while it is stopped"
            within = [
                (at, event)
                for at, event in accesses
                if event.member == stop.member and stop.since < at and (stop.until is None or at < stop.until)
            ]
            for at, event in within:
                verb = "written" if event.is_write else "read"
                seen = f"{len(event.data)} bytes {verb} at offset {event.offset}"
                yield Finding(False, expected, seen, at)
            if not within:
                yield Finding(True, expected, "none", stop.since)


@judge("DP-DRV-04", when="DEV_PARTS_METADATA_GET was answered", shown=_MEMBERS)
def room_for_metadata(run: Run) -> Iterator[Finding]:
    """There is room for all of the metadata that DEV_PARTS_METADATA_GET asks for."""
    for lives in _devices(run):
        for command in _group_commands(lives, Opcode.DEV_PARTS_METADATA_GET):
            if command.status in (AdminStatus.OK, AdminStatus.ENOMEM):
                seen = f"{command.room - _STATUSES} bytes, and ENOMEM"
                yield Finding(command.ok, "room for the metadata", seen, command.at)


@judge("DP-DRV-05", when="DEV_PARTS_GET was answered", shown=_MEMBERS)
def room_for_parts(run: Run) -> Iterator[Finding]:
    """There is room for all of the parts that DEV_PARTS_GET asks for.

    Too little of it shows in an answer that fills it and ends within a part, or that should have had as many bytes as
    DEV_PARTS_METADATA_GET said before.
    """
    for lives in _devices(run):
        sizes: dict[int, int] = {}
        for command in _group_commands(lives, Opcode.DEV_PARTS_METADATA_GET, Opcode.DEV_PARTS_GET):
            if not command.ok:
                continue
            if command.opcode == Opcode.DEV_PARTS_METADATA_GET:
                if METADATA_COMMAND.parse(command.data).type == Metadata.SIZE:
                    sizes[command.member] = METADATA_RESULT.parse(command.result).count
                continue
            room = command.room - _STATUSES
            is_full = len(command.result) >= room - room % 8
            wants_all = PARTS_GET.parse(command.data).type == PartsGet.ALL
            is_short = wants_all and room < sizes.get(command.member, 0)
            cut = is_full and (is_short or _ends_within(command.result))
            yield Finding(not cut, "room for the parts", f"{room} bytes, which end within them", command.at)


def _ends_within(data: bytes) -> bool:
    """Whether the last of the parts in ``data`` is not whole."""
    at = 0
    while at < len(data):
        if at + PART_HEADER.fixed_size > len(data):
            return any(data[at:])
        header, at = PART_HEADER.read(data, at)
        at += header.length
        if not header.part_type:  # padding
            return False
    return at > len(data)
