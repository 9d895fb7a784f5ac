"""Devices that keep resource objects wrongly."""

from __future__ import annotations

from typing import Any

from registry import mutant

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.ipsec_objects import OutboundSaKind
from virtio_ipsec.device.objects import ObjectKey, ObjectKind, ObjectStore, Record
from virtio_ipsec.errors import AlreadyExists, InvalidField, NoSpace, NoSuchObject
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.sa import OutboundSa
from virtio_ipsec.wire.admin import AdminCommand, ObjectCommand
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import ResourceType

OUTBOUND, INBOUND = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA


class ExistsIsInvalid(ObjectStore):
    """An existing id gets EINVAL."""

    def check_new(self, records: Any, command: ObjectCommand) -> None:
        try:
            super().check_new(records, command)
        except AlreadyExists as error:
            raise InvalidField(str(error)) from None


@mutant("NET-IPSEC-DEV-04", "RO-DEV-01")
class SaExistsIsInvalid(ExistsIsInvalid):
    """An existing SA gets EINVAL."""


@mutant("RO-DEV-01", "NET-IPSEC-DEV-04")
class ObjectExistsIsInvalid(ExistsIsInvalid):
    """An existing object gets EINVAL."""


class CreateReplaces(ObjectStore):
    """CREATE of an existing id replaces the object."""

    def check_new(self, records: Any, command: ObjectCommand) -> None:
        if command.id in records and command.type in (OUTBOUND, INBOUND):
            self._discard(self.kinds[command.type], command.id, records[command.id])
        super().check_new(records, command)


@mutant("NET-IPSEC-DEV-04", "RO-DEV-01", "ADM-DEV-08", "AVQ-DEV-07", "INF-60")
class SecondCreateReplaces(CreateReplaces):
    """CREATE of an existing SA replaces it."""


@mutant("RFC-36", "NET-IPSEC-DEV-04", "RO-DEV-01", "AVQ-DEV-07", "INF-60")
class SecondCreateReplacesRfc(CreateReplaces):
    """CREATE of an existing SA replaces it, in the older dialect."""


@mutant("ADM-DEV-08")
class ExistsButReplaced(ObjectStore):
    """CREATE of an existing SA fails with EEXIST, and replaces it."""

    def create(self, command: ObjectCommand) -> None:
        try:
            super().create(command)
        except AlreadyExists:
            if command.type == OUTBOUND:
                records = self._records[command.type]
                self._discard(self.kinds[command.type], command.id, records[command.id])
                super().create(command)
            raise


@mutant("INF-37", "RO-DEV-06", "RO-DEV-07", "RO-DEV-08")
class IdsAcrossTypes(ObjectStore):
    """An id is taken for both SA types."""

    def check_new(self, records: Any, command: ObjectCommand) -> None:
        super().check_new(records, command)
        if command.type == INBOUND and command.id == 1 and 1 in self._records[OUTBOUND]:
            raise NoSpace("the other type has that id")


@mutant("RO-DEV-04")
class ModifiedUnderRules(ObjectStore):
    """A group or classifier can be modified although rules depend on it."""

    def modify(self, command: ObjectCommand) -> None:
        spared = self._dependants
        self._dependants = {}
        try:
            super().modify(command)
        finally:
            self._dependants = spared


@mutant("RO-DEV-02", "ADM-DEV-07")
class UnknownIsInvalid(ObjectStore):
    """An unknown object gets EINVAL."""

    def _live(self, command: ObjectCommand) -> Any:
        try:
            return super()._live(command)
        except NoSuchObject as error:
            raise InvalidField(str(error)) from None


class Tombstones(ObjectStore):
    """Some ids stay taken once they were destroyed, until the reset."""

    def __init__(self, kinds: Any) -> None:
        super().__init__(kinds)
        self._dead: set[ObjectKey] = set()

    def _discard(self, kind: ObjectKind[Any, Any], object_id: int, record: Record) -> None:
        super()._discard(kind, object_id, record)
        self._dead.add((int(kind.type), object_id))

    def check_new(self, records: Any, command: ObjectCommand) -> None:
        super().check_new(records, command)
        if (command.type, command.id) in self._dead and 20 < command.id < 30:
            raise NoSpace("used up")


@mutant("RO-DEV-05", "NET-IPSEC-DEV-10")
class IdsUsedOnce(Tombstones):
    """An id can be used once."""


@mutant("NET-IPSEC-DEV-10", "RO-DEV-05")
class SaIdsUsedOnce(Tombstones):
    """An SA id can be used once."""


@mutant("RFC-37", "AVQ-DEV-04")
class DestroyWithoutFlags(AdminCommands):
    """DESTROY with flags is refused."""

    def resource_obj_destroy(self, command: AdminCommand) -> bytes:
        if len(command.data) > 8:
            raise InvalidField("flags")
        return super().resource_obj_destroy(command)


@mutant("NET-IPSEC-DEV-10")
class OldKeyReturns(OutboundSaKind):
    """An SA that is created again works with its first key."""

    def install(self, object_id: int, prepared: OutboundSa) -> None:
        first = self.__dict__.setdefault("_first", {}).setdefault(object_id, prepared.params)
        super().install(object_id, OutboundSa(first, self.context.rng))


@mutant("RFC-37", "RFC-10", "NET-IPSEC-DEV-09")
class DestroyedSaLives(OutboundSaKind):
    """A destroyed SA still seals."""

    def remove(self, object_id: int) -> None:
        pass


@mutant("RFC-36", "INF-38", "INF-08", "RFC-09", "RFC-28")
class SeventhNotInTable(OutboundSaKind):
    """Packets that name SA 7 find none."""

    def install(self, object_id: int, prepared: OutboundSa) -> None:
        super().install(object_id + 4096 * (object_id == 7), prepared)

    def remove(self, object_id: int) -> None:
        super().remove(object_id + 4096 * (object_id == 7))


@mutant("INF-38", "INF-08")
class UsableLater(OutboundSaKind):
    """SA 5 can be used when the next one has been created."""

    def install(self, object_id: int, prepared: OutboundSa) -> None:
        waiting = self.__dict__.setdefault("_waiting", {})
        self.context.outbound.update(waiting)
        waiting.clear()
        if object_id == 5:
            waiting[object_id] = prepared
        else:
            super().install(object_id, prepared)

    def live(self, object_id: int) -> OutboundSa:
        return self.__dict__.get("_waiting", {}).get(object_id) or super().live(object_id)

    def remove(self, object_id: int) -> None:
        if self.__dict__.get("_waiting", {}).pop(object_id, None) is None:
            super().remove(object_id)


@mutant("INF-38", "AVQ-DEV-02")
class CreateReturnsId(AdminCommands):
    """CREATE returns the id."""

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        super().resource_obj_create(command)
        return command.data[4:8]


@mutant("RO-DEV-06")
class IdsAscend(ObjectStore):
    """Ids have to ascend."""

    def check_new(self, records: Any, command: ObjectCommand) -> None:
        super().check_new(records, command)
        if command.type in (OUTBOUND, INBOUND) and len(records) > 1 and command.id < max(records):
            raise NoSpace("ids ascend")


class SmallTable(AdminCommands):
    """There is room for 20 SAs."""

    most = 20

    def resource_obj_create(self, command: AdminCommand) -> bytes:
        if sum(len(self.objects.ids()[kind]) for kind in (OUTBOUND, INBOUND)) >= self.most:
            raise NoSpace("no room")
        return super().resource_obj_create(command)


@mutant("RO-DEV-08", "RO-DEV-07", "RO-DEV-06")
class FewerThanLimit(SmallTable):
    """There is room for 20 SAs, whatever the limits say."""


@mutant("RO-DEV-07", "RO-DEV-08", "RO-DEV-06")
class InternalLimit(SmallTable):
    """An internal limit of 20 SAs comes first."""


@mutant("RO-DEV-03", sa_table_size=50)
class NoRoomIsInvalid(OutboundSaKind):
    """A full table gets EINVAL."""

    def check_room(self) -> None:
        try:
            super().check_room()
        except NoSpace as error:
            raise InvalidField(str(error)) from None


@mutant("INF-12", "NET-IPSEC-DEV-05", "ADM-DEV-07")
class OutboundWithoutLimit(OutboundSaKind):
    """Only the device's limit bounds outbound ids."""

    def limit(self) -> int:
        return max(super().limit(), 65535)


@mutant("RO-DEV-10", "INF-39")
class QueryShowsId(ObjectStore):
    """QUERY of an SA has the object's id in obj_id."""

    def query(self, command: ObjectCommand) -> bytes:
        data = super().query(command)
        sa = command.type in (OUTBOUND, INBOUND)
        return data[:4] + command.id.to_bytes(4, "little") + data[8:] if sa else data


@mutant("RO-DEV-10", "INF-39", "RO-DEV-09", zero_keys_in_query=True)
class QueryWithoutKeys(Device):
    """QUERY has zeros for keys and salt."""


@mutant("RO-DEV-10", "INF-39", "NET-FF-DEV-02")
class QueryForgetsModify(ObjectStore):
    """QUERY goes on showing what CREATE gave."""

    def modify(self, command: ObjectCommand) -> None:
        records = self._records.get(command.type, {})
        before = bytes(records[command.id].data) if command.id in records else b""
        super().modify(command)
        records[command.id].data = bytearray(before)


@mutant("INF-39")
class TunnelCannotChange(OutboundSaKind):
    """MODIFY of the tunnel parameters is refused."""

    def check_change(self, old: SaParams, new: SaParams) -> None:
        super().check_change(old, new)
        if old.tunnel != new.tunnel:
            raise InvalidField("tunnel")


@mutant("RO-DEV-09")
class RefusedModifyIsStored(ObjectStore):
    """A MODIFY that is refused shows in QUERY."""

    def modify(self, command: ObjectCommand) -> None:
        try:
            super().modify(command)
        except InvalidField:
            record = self._records[command.type][command.id]
            record.data = bytearray(command.data.ljust(len(record.data), b"\0")[: len(record.data)])
            raise


@mutant("RO-DEV-09")
class RefusedModifyRestarts(OutboundSaKind):
    """After a MODIFY that is refused the sequence numbers start again."""

    def prepare_change(self, object_id: int, value: IpsecSa) -> Any:
        try:
            return super().prepare_change(object_id, value)
        except InvalidField:
            self.live(object_id).sequence = 0
            raise


class ObjectsSurvive(Device):
    """Objects outlive one reset, and go with the next."""

    _survivors: Any = None

    def reset(self) -> None:
        objects, context = self.objects, self.context
        if any(objects.ids().values()) and objects is not self._survivors:
            self.objects = self.objects_class(())
            super().reset()
            self._heritage = objects, context
            return
        self.__dict__.pop("_heritage", None)
        super().reset()

    def _adopt(self, features: int) -> None:
        super()._adopt(features)
        if not features or "_heritage" not in self.__dict__:
            return
        objects, context = self.__dict__.pop("_heritage")
        for kind in objects.kinds.values():
            kind.capabilities, kind.context = self.capabilities, self.context
        for name in ("outbound", "inbound", "inbound_by_spi", "filters"):
            setattr(self.context, name, getattr(context, name))
        self.objects = self._survivors = objects
        self.commands = self.commands_class(self.config, self.capabilities, objects, self._counters)


@mutant("RO-DEV-11", "NET-IPSEC-DEV-12")
class ResetKeepsObjects(ObjectsSurvive):
    """Objects outlive a reset."""


@mutant("NET-IPSEC-DEV-12", "RO-DEV-11")
class ResetKeepsSas(ObjectsSurvive):
    """SAs outlive a reset."""


@mutant("NET-IPSEC-DEV-12")
class ResetKeepsTable(Device):
    """The table that packets are looked up in outlives a reset."""

    def _start(self) -> None:
        before = self.__dict__.get("context")
        super()._start()
        if before is not None:
            self.context.outbound.update(before.outbound)

    def reset(self) -> None:
        table = dict(self.context.outbound)
        params = {id: sa.params for id, sa in table.items()}
        super().reset()
        self.context.outbound.update({id: OutboundSa(p, self._rng) for id, p in params.items()})
