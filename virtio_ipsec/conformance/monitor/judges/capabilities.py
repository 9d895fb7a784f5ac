"""Driver capabilities: set before objects, within the device's, left alone while objects exist (virtio v1.4 2.12.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.judges.commands import DEPENDS, named, parsed, sets, type_name
from virtio_ipsec.conformance.monitor.life import Life, Objects, Run
from virtio_ipsec.wire.numbers import Opcode


@judge("CAP-DRV-01", "RO-DRV-06", when="an object was created")
def capability_before_objects(run: Run) -> Iterator[Finding]:
    """DRIVER_CAP_SET of what an object type depends on completes before the first CREATE of that type."""
    for life in run.lives:
        done = {cap: command.returned for command, cap, _ in sets(life)}
        first: set[int] = set()
        for command in life.commands:
            about = command.object
            if about is None or command.opcode != Opcode.RESOURCE_OBJ_CREATE or about.type in first:
                continue
            first.add(about.type)
            for cap in DEPENDS.get(about.type, ()):
                when = _first_set(life, cap)
                holds = cap in done and when is not None and when < command.exposed
                yield Finding(holds, f"{cap.name} set before", named(command, run.dialect), command.at)


def _first_set(life: Life, cap: int) -> int | None:
    return next((c.returned for c, name, _ in sets(life) if name == cap), None)


def _beyond(ours: Any, theirs: Any) -> list[str]:
    """What of a capability's value goes beyond another one."""
    if not isinstance(ours, tuple):
        names = [name for name in ours.__dataclass_fields__ if name not in ("mode", "type", "mask")]
        found = []
        for name in names:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if isinstance(mine, tuple):
                found += [f"{name}: {text}" for text in _beyond(mine, other)]
            elif mine & ~other if name in ("options", "flags") or name.endswith("_algo") else mine > other:
                found.append(f"{name} {mine:#x} of {other:#x}")
        if getattr(ours, "mask", None) is not None:
            pairs = zip(ours.mask, theirs.mask.ljust(len(ours.mask), b"\0"), strict=False)
            found += ["mask"] if any(mine & ~other for mine, other in pairs) else []
        return found
    if all(isinstance(each, int) for each in ours):
        return [f"{each}" for each in ours if each not in theirs]
    key = "mode" if ours and hasattr(ours[0], "mode") else "type"
    known = {getattr(each, key): each for each in theirs}
    found = []
    for entry in ours:
        kind = getattr(entry, key)
        if kind not in known:
            found.append(f"{key} {kind}")
        else:
            found += [f"{key} {kind} {text}" for text in _beyond(entry, known[kind])]
    return found


@judge("CAP-DRV-02", when="a capability was set that had been read")
def within_the_device(run: Run) -> Iterator[Finding]:
    """No limit, flag or entry that is set goes beyond what the device reported."""
    for life in run.lives:
        reported: dict[int, Any] = {}
        for command in life.commands:
            about = command.capability
            if about is None:
                continue
            if command.opcode == Opcode.DEVICE_CAP_GET and command.ok:
                reported[about.id] = parsed(run.dialect, about.id, command.result)
            elif command.opcode == Opcode.DRIVER_CAP_SET and reported.get(about.id) is not None:
                ours = parsed(run.dialect, about.id, about.data)
                beyond = ["not a capability"] if ours is None else _beyond(ours, reported[about.id])
                yield Finding(not beyond, "nothing beyond the device's", "; ".join(beyond), command.at)


def _dependent(live: Objects, cap: int) -> list[str]:
    return [f"{type_name(kind)} {number}" for kind, number in live if cap in DEPENDS.get(kind, ())]


def _is_off(run: Run, cap: int, data: bytes) -> bool:
    value = parsed(run.dialect, cap, data)
    if value is None:
        return not any(data)
    fields = [getattr(value, name) for name in value.__dataclass_fields__]
    return not any(fields)


def _had_objects(life: Life) -> bool:
    return any(c.ok and c.opcode == Opcode.RESOURCE_OBJ_CREATE for c in life.commands)


@judge("CAP-DRV-03", when="capabilities were set, and objects created")
def not_disabled_in_use(run: Run) -> Iterator[Finding]:
    """No capability is disabled (all zero, or no entries) while objects that depend on it exist."""
    for life in filter(_had_objects, run.lives):
        for command, live in life.commands_with():
            about = command.capability
            if about is not None and command.opcode == Opcode.DRIVER_CAP_SET:
                users = _dependent(live, about.id)
                wrong = bool(users) and _is_off(run, about.id, about.data)
                yield Finding(not wrong, "no objects that depend on it", ", ".join(users[:4]), command.at)


@judge("RO-DRV-05", when="capabilities were set, and objects created")
def not_set_in_use(run: Run) -> Iterator[Finding]:
    """No capability is set while objects related to it exist."""
    for life in filter(_had_objects, run.lives):
        for command, live in life.commands_with():
            about = command.capability
            if about is not None and command.opcode == Opcode.DRIVER_CAP_SET:
                users = _dependent(live, about.id)
                yield Finding(not users, "no objects that depend on it", ", ".join(users[:4]), command.at)
