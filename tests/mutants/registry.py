"""Mutants: devices that break exactly one rule each, and know nothing of the suite.

A file `mutants_<room>.py` in this directory defines them with :func:`mutant` on a class that replaces one part
of the device: the :class:`Device` itself, or a subclass of one of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from registration import Registration

from virtio_ipsec.conformance.case import Case, load_cases
from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.capabilities import Capabilities, Capability
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.control import ControlQueue
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.member_commands import MemberCommands
from virtio_ipsec.device.member_parts import MemberParts
from virtio_ipsec.device.objects import ObjectKind, ObjectStore
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.rings import Rings
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.specification import clause
from virtio_ipsec.transport.loopback_members import LoopbackMember
from virtio_ipsec.transport.targets import LoopbackTarget, loopback
from virtio_ipsec.wire.dialect import DIALECTS

Part = TypeVar("Part", bound=type)

#: Queue pairs: enough for every case, and the suite starts the device hundreds of times per mutant.
PAIRS = 2
#: Which attribute of the device class holds a part.
PARTS: tuple[tuple[type, str], ...] = (
    (AdminCommands, "commands_class"),
    (MemberCommands, "member_commands_class"),
    (Capabilities, "capabilities_class"),
    (ControlQueue, "controls_class"),
    (Transmitter, "transmitter_class"),
    (Receiver, "receiver_class"),
    (Rings, "rings_class"),
    (ObjectStore, "objects_class"),
)


@dataclass(frozen=True)
class Mutant:
    """A wrong device. A case that cites ``clause`` must have a failing check on it; failing checks on other
    clauses are allowed only for ``dependants``, which say the same thing from another side or rest on it.

    ``config`` are settings of the device that differ from the defaults, and ``members``: how many it owns.
    """

    name: str
    clause: str
    device: type[Device]
    dependants: frozenset[str]
    dialect: str
    config: tuple[tuple[str, Any], ...] = ()
    #: What its virtual functions are.
    member: type[LoopbackMember] = LoopbackMember

    def target(self) -> LoopbackTarget:
        """A fresh device of this kind; two of them behave alike."""
        dialect = DIALECTS[self.dialect]
        settings = {"max_queue_pairs": PAIRS, **dict(self.config)}
        members = settings.pop("members", 0)
        config = DeviceConfig(dialect=dialect, **settings)
        return loopback(
            f"python,members={members}", dialect, self.device, config, Random(1).randbytes, self.member
        )

    def __str__(self) -> str:
        return self.name


_mutants: Registration[Mutant] = Registration("mutants_")


def mutant(
    broken: str, *dependants: str, dialect: str | None = None, **config: object
) -> Callable[[Part], Part]:
    """Register the decorated class as a mutant that breaks the clause ``broken``.

    ``dialect`` defaults to the first one that has the clause. The class may be a :class:`Device`, one of its
    parts, an object kind, a capability's rules or a virtual function; the rest of the device stays as it is.
    """

    def register(part: Part) -> Part:
        made = Mutant(
            part.__name__,
            broken,
            device_with(part),
            frozenset(dependants),
            dialect or clause(broken).dialects[0],
            tuple(config.items()),
            part if issubclass(part, LoopbackMember) else LoopbackMember,
        )
        _mutants.add(part, dependants, made)
        return part

    return register


def device_with(*parts: type) -> type[Device]:
    """The device with these parts in place of its own."""
    attributes: dict[str, Any] = {}
    base = Device
    for part in parts:
        if issubclass(part, Device):
            base = part
        elif issubclass(part, LoopbackMember):
            pass
        elif issubclass(part, MemberParts):
            attributes["member_commands_class"] = type(
                part.__name__, (MemberCommands,), {"parts_class": part}
            )
        elif issubclass(part, ObjectKind):
            kinds = attributes.get("object_kinds", base.object_kinds)
            attributes["object_kinds"] = _replaced(kinds, part)
        elif issubclass(part, Capability):
            held = attributes.get("capabilities_class", base.capabilities_class)
            attributes["capabilities_class"] = type(
                part.__name__, (held,), {"kinds": _replaced(held.kinds, part)}
            )
        else:
            attributes[next(name for kind, name in PARTS if issubclass(part, kind))] = part
    return type(parts[0].__name__, (base,), attributes) if attributes else base


def _replaced(kinds: Iterable[type], part: type) -> tuple[type, ...]:
    """``kinds`` with ``part`` in place of the one it derives from."""
    known = tuple(kinds)
    if not any(issubclass(part, kind) for kind in known):
        raise TypeError(f"{part.__name__} derives from none of {known}")
    return tuple(part if issubclass(part, kind) else kind for kind in known)


def mutant_free(dialect: str) -> Mutant:
    """The device itself, in the settings of the mutants."""
    return Mutant("none", "", Device, frozenset(), dialect)


def load_mutants() -> tuple[Mutant, ...]:
    """All mutants, by name."""
    return _mutants.load()


def cases_in(dialect: str) -> tuple[Case, ...]:
    """The cases that run in a dialect."""
    return tuple(case for case in load_cases() if case.clauses_in(dialect))
