"""Owners that get device parts objects wrong, or what parts say of what a member's driver has set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mutants_members import Rewritten
from registry import mutant

from virtio_ipsec.device.member_parts import MemberParts
from virtio_ipsec.errors import AlreadyExists, Busy, InvalidField, NoSpace, NoSuchObject
from virtio_ipsec.transport.loopback_members import LoopbackMember
from virtio_ipsec.wire.admin import ObjectCommand
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_OBJECT,
    DevPartsCap,
    Part,
    PartsObject,
    PartType,
    control_selector,
)
from virtio_ipsec.wire.numbers import CapId, CtrlClass, CtrlMq, CtrlVlan

VLAN_TABLE = control_selector(CtrlClass.VLAN, CtrlVlan.ADD)
PAIRS = control_selector(CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET)


@mutant("RO-DEV-01", members=2)
class PartsObjectsAreReplaced(MemberParts):
    """CREATE of an object that exists makes it anew."""

    def create(self, number: int, command: ObjectCommand) -> None:
        self._live().pop(command.id, None)
        super().create(number, command)


@mutant("RO-DEV-02", members=2)
class MissingPartsObjectsAreBad(MemberParts):
    """EINVAL for an object that does not exist."""

    def _object(self, number: int, object_id: int) -> Any:
        try:
            return super()._object(number, object_id)
        except NoSuchObject as error:
            raise InvalidField(str(error)) from error


@mutant("RO-DEV-03", members=2)
class NoRoomForPartsIsBusy(MemberParts):
    """EBUSY for an object that there is no room for."""

    def create(self, number: int, command: ObjectCommand) -> None:
        try:
            super().create(number, command)
        except NoSpace as error:
            raise Busy(str(error)) from error


@mutant("RO-DEV-05", members=2)
class PartsObjectsOnlyOnce(MemberParts):
    """An id that was used is never free again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._used: set[int] = set()

    def create(self, number: int, command: ObjectCommand) -> None:
        if command.id in self._used - self._live().keys():
            raise AlreadyExists("was there once")
        super().create(number, command)
        self._used.add(command.id)


@mutant("RO-DEV-08", members=2)
class OnePartsObjectOfAKind(MemberParts):
    """Whatever was announced, there is room for one object of each kind."""

    def create(self, number: int, command: ObjectCommand) -> None:
        wanted = DEV_PARTS_OBJECT.parse(command.data).type
        if command.id not in self._live() and any(each.type == wanted for each in self._live().values()):
            raise NoSpace("one is there")
        super().create(number, command)


@mutant("RO-DEV-09", members=2)
class FailedModifyOfPartsObjects(MemberParts):
    """A MODIFY that there is no room for fails, and is done."""

    def modify(self, number: int, command: ObjectCommand) -> None:
        try:
            super().modify(number, command)
        except NoSpace:
            self._object(number, command.id).type = PartsObject(DEV_PARTS_OBJECT.parse(command.data).type)
            raise


@mutant("RO-DEV-10", members=2)
class ModifyOfPartsObjectsDoesNothing(MemberParts):
    """MODIFY succeeds, and the object is what it was."""

    def modify(self, number: int, command: ObjectCommand) -> None:
        before = self._object(number, command.id).type
        super().modify(number, command)
        self._object(number, command.id).type = before


@mutant("RO-DEV-11", members=2)
class PartsObjectsOutliveTheOwner(MemberParts):
    """After a reset of the owner the objects of its last life are there until one is made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        last = self.members.__dict__.get("_last")
        self._old: dict[int, Any] = (last._objects or last._old) if last else {}
        self.members.__dict__["_last"] = self

    def _object(self, number: int, object_id: int) -> Any:
        return self._old.get(object_id) or super()._object(number, object_id)

    def create(self, number: int, command: ObjectCommand) -> None:
        self._old = {}
        super().create(number, command)


@mutant("CAP-DEV-10", members=2)
class PartsObjectsWithoutCapability(MemberParts):
    """Before the capability is set there is room for objects."""

    def limits(self) -> DevPartsCap:
        return super().limits() if self.capabilities.enabled(CapId.DEV_PARTS_CAP) else DevPartsCap(4, 4)


class ControlParts(Rewritten):
    """The parts of the control queue are changed on their way to the owner."""

    def told(self, part: Part) -> Part | None:
        """What is said instead; None: nothing."""
        return part

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        for part in parts:
            told = self.told(part) if part.part_type == PartType.NET_CVQ_CFG else part
            if told is not None:
                yield told


@mutant("INF-61", "DP-DEV-05", members=2)
class NoControlParts(ControlParts):
    """What the driver has set is in no part."""

    def told(self, part: Part) -> Part | None:
        return None


@mutant("INF-61", "DP-DEV-05", members=2)
class NoPartForVlans(ControlParts):
    """There is no part for the VLAN table."""

    def told(self, part: Part) -> Part | None:
        return None if part.selector == VLAN_TABLE else part


@mutant("INF-61", members=2)
class PairsOfThreeOctets(ControlParts):
    """The number of queue pairs has an octet more than in its command."""

    def told(self, part: Part) -> Part | None:
        return replace(part, value=part.value + b"\0") if part.selector == PAIRS else part


@mutant("DP-DEV-05", members=2)
class VlansAreLostOnTheWay(Rewritten):
    """The VLAN table is told and not taken over, and told as it was before."""

    def incoming(self, number: int, parts: tuple[Part, ...]) -> Iterable[Part]:
        kept = self.__dict__.setdefault("_kept", {})
        for part in parts:
            if part.key == (PartType.NET_CVQ_CFG, VLAN_TABLE):
                kept[number] = part
                part = replace(part, value=b"")
            yield part

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        for part in parts:
            known = [each for each in self.__dict__.get("_kept", {}).values() if each.key == part.key]
            yield known[0] if known else part


@mutant("DP-DEV-05", members=2)
class QueuesBeginAnew(LoopbackMember):
    """A queue that was given back begins at its first entry."""

    def _become(self, state: Any) -> None:
        super()._become(state)
        for index in self._layouts:
            self.rings.go_on(index, 0)


@mutant("INF-62", members=2)
class NothingIsOptional(Rewritten):
    """No part is marked as optional."""

    def outgoing(self, parts: tuple[Part, ...]) -> Iterable[Part]:
        return (replace(part, flags=0) for part in parts)
