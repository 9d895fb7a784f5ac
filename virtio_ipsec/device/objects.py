"""Resource objects: ids, existence, dependencies, all-or-nothing changes (virtio v1.4 2.12.1.3).

:class:`ObjectStore` knows the rules that hold for every type; an :class:`ObjectKind` per type knows its own
structure and rules. A change is parsed and checked completely before the first thing is written, so a failed
command leaves no trace (ADM-DEV-07, RO-DEV-09).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from virtio_ipsec.device.capabilities import Capabilities
from virtio_ipsec.device.state import DataPlaneContext
from virtio_ipsec.errors import AlreadyExists, Busy, InvalidField, InvalidOpcode, NoSuchObject
from virtio_ipsec.wire.admin import ObjectCommand
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.numbers import ResourceType

V = TypeVar("V")
#: What a change prepares while it can still fail, and installs when it cannot.
P = TypeVar("P")

ObjectKey = tuple[int, int]
"""(type, id)."""


@dataclass(slots=True)
class Record:
    """One live object: the bytes the driver gave, for QUERY, and the objects it depends on."""

    data: bytearray = field(repr=False)
    depends_on: tuple[ObjectKey, ...] = ()

    def wipe(self) -> None:
        """Overwrite the bytes, which may hold keys (E82)."""
        self.data[:] = bytes(len(self.data))


class ObjectKind(ABC, Generic[V, P]):
    """The rules of one resource object type."""

    type: ResourceType
    #: Capabilities that must be enabled before any command on this type is legal (E34).
    needs: tuple[int, ...]
    #: The clause behind that.
    disabled_clause: str

    def __init__(self, context: DataPlaneContext, capabilities: Capabilities) -> None:
        self.context = context
        self.capabilities = capabilities

    @property
    def codec(self) -> Codec[V]:
        """The object's structure."""
        return self.context.dialect.objects[self.type]

    def check_enabled(self) -> None:
        """InvalidOpcode while a capability of this type is disabled (NET-IPSEC-DEV-03, NET-FF-DEV-03)."""
        if not self.capabilities.enabled(*self.needs):
            raise InvalidOpcode(f"{self.type.name}: capability disabled", clause=self.disabled_clause)

    @abstractmethod
    def check_id(self, object_id: int, live: int) -> None:
        """Refuse an id that the driver's limit leaves no place for; ``live`` counts this type."""

    def parse(self, data: bytes) -> tuple[V, bytes]:
        """The value, and exactly the structure's bytes: short data zero-extended, surplus cut (E94)."""
        value, end = self.codec.read(data, 0)
        return value, data[:end].ljust(end, b"\0")

    def depends_on(self, value: V) -> tuple[ObjectKey, ...]:
        """Objects that must outlive this one."""
        return ()

    @abstractmethod
    def prepare(self, object_id: int, value: V) -> P:
        """Check a CREATE; raises AdminError, changes nothing."""

    @abstractmethod
    def install(self, object_id: int, prepared: P) -> None:
        """Make the object live; cannot fail."""

    @abstractmethod
    def prepare_change(self, object_id: int, value: V) -> P:
        """Check a MODIFY of a live object; raises AdminError, changes nothing."""

    @abstractmethod
    def change(self, object_id: int, prepared: P) -> None:
        """Carry out a MODIFY; cannot fail."""

    @abstractmethod
    def remove(self, object_id: int) -> None:
        """Take the object away and wipe its secrets; cannot fail."""

    def answer(self, record: Record) -> bytes:
        """The bytes of QUERY: those of the last CREATE or MODIFY (RO-DEV-10)."""
        return bytes(record.data)


class ObjectStore:
    """All live objects of one device between two resets."""

    def __init__(self, kinds: Iterable[ObjectKind[Any, Any]]) -> None:
        self.kinds: dict[int, ObjectKind[Any, Any]] = {int(kind.type): kind for kind in kinds}
        self._records: dict[int, dict[int, Record]] = {number: {} for number in self.kinds}
        self._dependants: dict[ObjectKey, int] = {}

    def ids(self) -> Mapping[int, frozenset[int]]:
        """Ids of the live objects by type."""
        return {number: frozenset(records) for number, records in self._records.items()}

    def in_use(self, types: Iterable[int]) -> bool:
        """Whether an object of any of these types is live."""
        return any(self._records.get(number) for number in types)

    def create(self, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_CREATE; the order of the checks is E85. ``flags`` is ignored (E105)."""
        kind = self.kinds.get(command.type)
        if kind is None:
            raise InvalidField(f"object type {command.type:#x} is not supported")
        kind.check_enabled()
        records = self._records[command.type]
        self.check_new(records, command)
        kind.check_id(command.id, len(records))
        value, data = kind.parse(command.data)
        prepared = kind.prepare(command.id, value)
        kind.install(command.id, prepared)
        records[command.id] = Record(bytearray(data), kind.depends_on(value))
        self._count_dependants(records[command.id].depends_on, 1)

    def modify(self, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_MODIFY: replaces the whole structure (E40)."""
        kind, record = self._live(command)
        self.check_no_dependants(command)
        value, data = kind.parse(command.data)
        prepared = kind.prepare_change(command.id, value)
        kind.change(command.id, prepared)
        self._count_dependants(record.depends_on, -1)
        record.wipe()
        record.data = bytearray(data)
        record.depends_on = kind.depends_on(value)
        self._count_dependants(record.depends_on, 1)

    def query(self, command: ObjectCommand) -> bytes:
        """RESOURCE_OBJ_QUERY."""
        kind, record = self._live(command)
        return kind.answer(record)

    def destroy(self, command: ObjectCommand) -> None:
        """RESOURCE_OBJ_DESTROY."""
        kind, record = self._live(command)
        self.check_no_dependants(command)
        self._discard(kind, command.id, record)

    def destroy_all(self) -> None:
        """Device reset: every object goes and its secrets are wiped (RO-DEV-11, NET-IPSEC-DEV-12)."""
        for number, records in self._records.items():
            for object_id, record in list(records.items()):
                self._discard(self.kinds[number], object_id, record)

    def check_new(self, records: Mapping[int, Record], command: ObjectCommand) -> None:
        """(type, id) is free (RO-DEV-01, NET-IPSEC-DEV-04)."""
        if command.id in records:
            raise AlreadyExists(f"object {command.type:#x}/{command.id} exists", clause="RO-DEV-01")

    def check_no_dependants(self, command: ObjectCommand) -> None:
        """No other object depends on this one (RO-DEV-04, NET-FF-DEV-07, NET-FF-DEV-08)."""
        if self._dependants.get((command.type, command.id)):
            raise Busy(f"object {command.type:#x}/{command.id} has dependants", clause="RO-DEV-04")

    def _live(self, command: ObjectCommand) -> tuple[ObjectKind[Any, Any], Record]:
        """The object that a command names (RO-DEV-02); an unknown type has none, so it ends likewise."""
        kind = self.kinds.get(command.type)
        if kind is not None:
            kind.check_enabled()
            record = self._records[command.type].get(command.id)
            if record is not None:
                return kind, record
        raise NoSuchObject(f"no object {command.type:#x}/{command.id}", clause="RO-DEV-02")

    def _discard(self, kind: ObjectKind[Any, Any], object_id: int, record: Record) -> None:
        kind.remove(object_id)
        self._count_dependants(record.depends_on, -1)
        record.wipe()
        del self._records[int(kind.type)][object_id]

    def _count_dependants(self, keys: Iterable[ObjectKey], step: int) -> None:
        for key in keys:
            count = self._dependants.get(key, 0) + step
            if count:
                self._dependants[key] = count
            else:
                self._dependants.pop(key, None)
