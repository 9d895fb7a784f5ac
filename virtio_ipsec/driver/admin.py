"""Administration commands (virtio v1.4 2.12, 2.13): building, sending, and the books that are kept.

Where the driver clauses are obeyed:

=====================  ==========================================================================
ADM-DRV-01             a permission not used: other groups are asked when :meth:`Admin.for_members` is used
ADM-DRV-02, -06        :meth:`Admin.command` refuses what no LIST_USE has enabled
ADM-DRV-03             one command at a time: a command returns when it has completed
ADM-DRV-04, -05        :meth:`Admin.list_use` takes the intersection of KNOWN and LIST_QUERY
ADM-DRV-07             a permission not used: both list commands stay enabled
ADM-DRV-08, -09        ``CommandFailed`` maps unknown status and qualifier values
ADM-DRV-10             a command returns when it has completed: who uses :meth:`Admin.for_members` keeps
                       VF Enable, which is the transport's, set for so long
AVQ-DRV-01 to -04      the frame codec pads to 8 bytes; the reply has at least 8 bytes
AVQ-DRV-05             the queue returns only used bytes, the reply is zero beyond them
AVQ-DRV-06             one administration queue is used
AVQ-DRV-07             EAGAIN is retried, a bounded number of times
CAP-DRV-01, RO-DRV-06  an object type has no limit before its capability was set: CREATE is refused
CAP-DRV-03, RO-DRV-05  :meth:`Admin.cap_set` refuses while objects of that capability live
RO-DRV-01, -02, -03    CREATE of a live id or above the limit, commands on dead ids: refused
=====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from virtio_ipsec.driver.errors import DriverError, LimitReached, NotNegotiated
from virtio_ipsec.errors import AdminQualifier, AdminStatus, CommandFailed
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    ADMIN_REPLY,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    AdminCommand,
    CapCommand,
    ObjectCommand,
    ResourceHeader,
    id_bitmap_build,
    id_bitmap_parse,
)
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.numbers import CapId, GroupType, Opcode, ResourceType

#: Which objects depend on which capability.
CAP_OBJECTS: Mapping[int, tuple[int, ...]] = {
    CapId.NET_FF_RESOURCE_CAP: (
        ResourceType.NET_FF_GROUP,
        ResourceType.NET_FF_CLASSIFIER,
        ResourceType.NET_FF_RULE,
    ),
    CapId.NET_FF_SELECTOR_CAP: (ResourceType.NET_FF_CLASSIFIER, ResourceType.NET_FF_RULE),
    CapId.NET_FF_ACTION_CAP: (ResourceType.NET_FF_RULE,),
    CapId.NET_IPSEC_RESOURCE_CAP: (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA),
    CapId.NET_IPSEC_SA_CAP: (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA),
}

_LISTS = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})
_OBJECTS = frozenset({Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY})
#: By group; QUERY and MODIFY, which each dialect has at its own place, come on top.
_KNOWN: Mapping[GroupType, frozenset[int]] = {
    GroupType.SELF: _LISTS
    | _OBJECTS
    | {Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET},
    GroupType.SRIOV: _LISTS
    | _OBJECTS
    | {Opcode.DEV_PARTS_METADATA_GET, Opcode.DEV_PARTS_GET, Opcode.DEV_PARTS_SET, Opcode.DEV_MODE_SET},
}
_HEADER = 8
_LIST_RESULT = 64
#: Capability ids up to 0x0fff: everything that is not reserved.
_CAP_LIST_RESULT = 0x1000 // 8


class RequestQueue(Protocol):
    """A queue that carries one request at a time."""

    def request(self, readable: bytes, writable_len: int) -> bytes:
        """Send ``readable``; the bytes that the device wrote, at most ``writable_len``."""


class Admin:
    """Administration commands for one group over one queue. ``pause`` gives the device time before a retry."""

    def __init__(
        self,
        queue: RequestQueue,
        dialect: Dialect,
        *,
        retries: int = 16,
        pause: Callable[[], None],
        group: GroupType = GroupType.SELF,
    ) -> None:
        self._queue = queue
        self._dialect = dialect
        self._retries = retries
        self._pause = pause
        self._group = group
        self._supported: frozenset[int] = frozenset()
        #: Opcodes in use: none before LIST_USE has succeeded.
        self.opcodes: frozenset[int] = frozenset()
        self._objects: dict[int, set[int]] = {}
        #: Objects that may exist, per type: the driver's own limits (RO-DRV-02). Absent: none.
        self.limits: dict[int, int] = {}
        self._query, self._modify = dialect.query_opcode, dialect.modify_opcode
        #: Opcodes that this driver is familiar with (ADM-DRV-04).
        self.known: frozenset[int] = _KNOWN[group] | {self._query, self._modify}

    def for_members(self) -> Admin:
        """The commands of the SR-IOV group, over the same queue: for an owner whose virtual functions are enabled."""
        return Admin(
            self._queue, self._dialect, retries=self._retries, pause=self._pause, group=GroupType.SRIOV
        )

    def list_query(self) -> frozenset[int]:
        """The opcodes that the device supports. Raises CommandFailed."""
        self._supported = id_bitmap_parse(self._send(Opcode.LIST_QUERY, b"", _LIST_RESULT))
        return self._supported

    def list_use(self, opcodes: Iterable[int] | None = None) -> None:
        """Choose the opcodes to use: by default all known ones that LIST_QUERY reported."""
        chosen = self._supported & (self.known if opcodes is None else frozenset(opcodes) & self.known)
        self._send(Opcode.LIST_USE, id_bitmap_build(chosen), 0)
        self.opcodes = chosen

    def command(self, opcode: int, data: bytes = b"", result_len: int = 0, *, member: int = 0) -> bytes:
        """Send one command that LIST_USE enabled; its result, exactly ``result_len`` bytes, zeros where
        the device wrote nothing. Raises CommandFailed with status and qualifier. ``member``: of the group, from 1 on;
        the self group has none."""
        if opcode not in self.opcodes:
            raise NotNegotiated(f"opcode {opcode:#06x} was not enabled with LIST_USE")
        return self._send(opcode, data, result_len, member)

    def _send(self, opcode: int, data: bytes, result_len: int, member: int = 0) -> bytes:
        frame = ADMIN_COMMAND.build(AdminCommand(opcode, self._group, member, data))
        writable = _HEADER + result_len + -result_len % 8
        for attempt in range(self._retries + 1):
            if attempt:
                self._pause()
            written = self._queue.request(frame, writable)
            reply = ADMIN_REPLY.parse(written.ljust(writable, b"\0"))
            if len(written) < 2:
                # Read as zeros this would say OK: nobody wrote a status, so nobody reported success.
                raise CommandFailed(
                    f"{_name(opcode)}: the device wrote no status",
                    status=AdminStatus.EINVAL,
                    qualifier=AdminQualifier.INVALID_COMMAND,
                )
            if reply.status != AdminStatus.EAGAIN:
                break
        if reply.status != AdminStatus.OK:
            raise CommandFailed(
                f"{_name(opcode)}: status {_status(reply.status)}, qualifier {_qualifier(reply.qualifier)}",
                status=reply.status,
                qualifier=reply.qualifier,
            )
        return reply.result[:result_len]

    # Capabilities (virtio v1.4 2.12.3).

    def cap_ids(self) -> frozenset[int]:
        """The capability ids that the device offers."""
        return id_bitmap_parse(self.command(Opcode.CAP_ID_LIST_QUERY, b"", _CAP_LIST_RESULT))

    def cap_get(self, cap_id: int, result_len: int) -> bytes:
        """The device's capability, zero beyond what it wrote."""
        return self.command(Opcode.DEVICE_CAP_GET, CAP_COMMAND.build(CapCommand(cap_id)), result_len)

    def cap_set(self, cap_id: int, data: bytes) -> None:
        """Set the driver's capability; refused while objects that depend on it exist."""
        for kind in CAP_OBJECTS.get(cap_id, ()):
            if self._objects.get(kind):
                raise DriverError(f"capability {cap_id:#06x} cannot be set while {_type(kind)} objects exist")
        self.command(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(cap_id, data)))

    # Resource objects (virtio v1.4 2.12.4).

    def live(self, kind: int) -> frozenset[int]:
        """Ids of the objects of a type."""
        return frozenset(self._objects.get(kind, ()))

    def create(self, kind: int, number: int, data: bytes) -> None:
        """Create an object; refused for a live id and beyond the limit."""
        limit = self.limits.get(kind, 0)
        alive = self._objects.setdefault(kind, set())
        if number in alive:
            raise DriverError(f"{_type(kind)} {number} exists")
        if not 0 <= number < limit or len(alive) >= limit:
            raise LimitReached(f"{_type(kind)} {number} with {len(alive)} alive: the limit is {limit}")
        self.command(Opcode.RESOURCE_OBJ_CREATE, OBJECT_COMMAND.build(ObjectCommand(kind, number, data=data)))
        alive.add(number)

    def modify(self, kind: int, number: int, data: bytes) -> None:
        """Replace the attributes of a live object."""
        self._must_live(kind, number)
        self.command(self._modify, OBJECT_COMMAND.build(ObjectCommand(kind, number, data=data)))

    def query(self, kind: int, number: int, result_len: int) -> bytes:
        """The attributes of a live object."""
        self._must_live(kind, number)
        return self.command(self._query, OBJECT_COMMAND.build(ObjectCommand(kind, number)), result_len)

    def destroy(self, kind: int, number: int) -> None:
        """Destroy a live object."""
        self._must_live(kind, number)
        self.command(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(kind, number)))
        self._objects[kind].discard(number)

    def _must_live(self, kind: int, number: int) -> None:
        if number not in self._objects.get(kind, ()):
            raise DriverError(f"{_type(kind)} {number} does not exist")


def _name(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"opcode {opcode:#06x}"


def _type(kind: int) -> str:
    return ResourceType(kind).name if kind in ResourceType._value2member_map_ else f"type {kind:#06x}"


def _status(value: int) -> str:
    return AdminStatus(value).name if value in AdminStatus._value2member_map_ else f"{value} (unknown)"


def _qualifier(value: int) -> str:
    known = value in AdminQualifier._value2member_map_
    return AdminQualifier(value).name if known else f"{value} (unknown)"
