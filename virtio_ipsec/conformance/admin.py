"""Administration commands as the suite sends them: any bytes, any lengths, every answer kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtio_ipsec.conformance.queues import Buffer
from virtio_ipsec.errors import AdminQualifier, AdminStatus, CommandFailed
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
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
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply
from virtio_ipsec.wire.codec import FieldView
from virtio_ipsec.wire.numbers import CapId, GroupType, Opcode

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

#: Room for answers: a whole capability bitmap and then some.
ROOM = 4096
#: What the writable part is filled with: bytes the device leaves alone stay visible.
FILL = 0xAA
HEADER = 8
STATUSES = {member.value: f"{member.name} ({member.value})" for member in AdminStatus}
QUALIFIERS = {member.value: f"Q_{member.name}" for member in AdminQualifier}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came. ``written`` is the used length; ``content`` the whole writable part."""

    written: int
    content: bytes

    @property
    def status(self) -> int:
        """Status word; bytes beyond the used length count as zero (AVQ-DRV-05)."""
        return int.from_bytes(self.valid[0:2], "little")

    @property
    def qualifier(self) -> int:
        """Status qualifier word."""
        return int.from_bytes(self.valid[2:4], "little")

    @property
    def valid(self) -> bytes:
        """What the device says it wrote."""
        return self.content[: self.written]

    @property
    def result(self) -> bytes:
        """Command-specific result."""
        return self.valid[HEADER:]

    @property
    def ok(self) -> bool:
        """Whether the status is OK."""
        return self.status == AdminStatus.OK

    @property
    def outcome(self) -> tuple[int, int]:
        """(status, qualifier)."""
        return self.status, self.qualifier

    def __str__(self) -> str:
        return f"{status_name(self.status)}/{qualifier_name(self.qualifier)}"


def status_name(status: int) -> str:
    """EINVAL (22), or the bare number."""
    return STATUSES.get(status, f"status {status}")


def qualifier_name(qualifier: int) -> str:
    """Q_INVALID_FIELD, or the bare number."""
    return QUALIFIERS.get(qualifier, f"qualifier {qualifier}")


class AdminBench:
    """Sends commands on the first administration virtqueue."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @property
    def index(self) -> int:
        """Virtqueue index of the administration virtqueue."""
        return self._bench.target.admin_queue_index()

    # -- bytes --------------------------------------------------------------------------------------------

    def post(
        self, readable: bytes | Sequence[bytes], writable: int | Sequence[int] = ROOM, *, kick: bool = True
    ) -> Buffer:
        """Put a command on the queue and return at once."""
        return self._bench.queues.submit(self.index, readable, writable, fill=FILL, kick=kick)

    def finish(self, buffer: Buffer) -> Reply:
        """Wait for a posted command. Raises Wedged when no answer comes."""
        bench = self._bench

        def done() -> bool:
            bench.queues.collect(buffer.queue)
            return buffer.completed

        sent = b"".join(bench.target.memory.read(part.addr, part.length) for part in buffer.readable)

        def lines() -> tuple[str, ...]:
            return tuple(_line(">", view) for view in annotate_admin(sent, bench.dialect))

        with bench.trace.unanswered("admin", _name(sent), lines):
            bench.wait(done, "administration command")
        return Reply(buffer.written, buffer.content)

    def raw(self, readable: bytes | Sequence[bytes], writable: int | Sequence[int] = ROOM) -> Reply:
        """Send exactly these bytes with exactly this much room and wait for the answer."""
        reply = self.finish(self.post(readable, writable))
        whole = readable if isinstance(readable, bytes) else b"".join(readable)
        self._note(whole, reply)
        return reply

    def _note(self, readable: bytes, reply: Reply) -> None:
        dialect = self._bench.dialect

        def lines() -> tuple[str, ...]:
            return (
                *(_line(">", view) for view in annotate_admin(readable, dialect)),
                *(_line("<", view) for view in annotate_reply(readable, reply.valid, dialect)),
            )

        self._bench.trace.add("admin", f"{_name(readable)}: {reply}, {reply.written} bytes written", lines)

    # -- commands -----------------------------------------------------------------------------------------

    def command(
        self,
        opcode: int,
        data: bytes = b"",
        *,
        group: int = GroupType.SELF,
        member: int = 0,
        room: int = ROOM,
    ) -> Reply:
        """A well-formed frame with any contents."""
        return self.raw(frame(opcode, data, group=group, member=member), room)

    def list_query(self, group: int = GroupType.SELF) -> Reply:
        """LIST_QUERY."""
        return self.command(Opcode.LIST_QUERY, group=group)

    def list_use(self, opcodes: Iterable[int], group: int = GroupType.SELF) -> Reply:
        """LIST_USE with exactly these opcodes."""
        return self.command(Opcode.LIST_USE, id_bitmap_build(opcodes), group=group)

    def supported(self) -> frozenset[int]:
        """The opcodes that LIST_QUERY reports, and the list commands whether it does or not. Raises
        CommandFailed."""
        return id_bitmap_parse(demand(self.list_query()).result) | {Opcode.LIST_QUERY, Opcode.LIST_USE}

    def use_everything(self) -> AdminBench:
        """LIST_USE with everything supported. Raises CommandFailed."""
        demand(self.list_use(self.supported()))
        return self

    def cap_ids(self) -> frozenset[int]:
        """The capability ids that are listed. Raises CommandFailed."""
        return id_bitmap_parse(demand(self.command(Opcode.CAP_ID_LIST_QUERY)).result)

    def cap_get(self, id: int) -> Reply:
        """DEVICE_CAP_GET."""
        return self.command(Opcode.DEVICE_CAP_GET, CAP_COMMAND.build(CapCommand(id)))

    def cap_set(self, id: int, data: bytes) -> Reply:
        """DRIVER_CAP_SET with these bytes."""
        return self.command(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(id, data)))

    def accept_caps(self, *ids: CapId) -> None:
        """Set the driver capabilities to just what the device offers. Raises CommandFailed."""
        for id in ids:
            codec = self._bench.dialect.capabilities[id]
            value = codec.parse(demand(self.cap_get(id)).result)
            demand(self.cap_set(id, codec.build(value)))

    def create(self, type: int, id: int, data: bytes, *, flags: int = 0) -> Reply:
        """RESOURCE_OBJ_CREATE."""
        return self._object(Opcode.RESOURCE_OBJ_CREATE, type, id, data, flags)

    def modify(self, type: int, id: int, data: bytes, *, flags: int = 0) -> Reply:
        """RESOURCE_OBJ_MODIFY, by the dialect's opcode (ledger E01)."""
        return self._object(self._bench.dialect.modify_opcode, type, id, data, flags)

    def query(self, type: int, id: int) -> Reply:
        """RESOURCE_OBJ_QUERY, by the dialect's opcode (ledger E01)."""
        return self._object(self._bench.dialect.query_opcode, type, id)

    def destroy(self, type: int, id: int) -> Reply:
        """RESOURCE_OBJ_DESTROY."""
        return self.command(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(type, id)))

    def _object(self, opcode: int, type: int, id: int, data: bytes = b"", flags: int = 0) -> Reply:
        return self.command(opcode, OBJECT_COMMAND.build(ObjectCommand(type, id, flags, data)))


def frame(opcode: int, data: bytes = b"", *, group: int = GroupType.SELF, member: int = 0) -> bytes:
    """The readable part of a command."""
    return ADMIN_COMMAND.build(AdminCommand(opcode, group, member, data))


def demand(reply: Reply) -> Reply:
    """The reply, if its status is OK; else CommandFailed, which ends the case as ERROR: it is a precondition
    of the case that did not hold, and the case of that clause will say so."""
    if not reply.ok:
        raise CommandFailed(f"precondition: {reply}", status=reply.status, qualifier=reply.qualifier)
    return reply


def _name(readable: bytes) -> str:
    opcode = int.from_bytes(readable[:2], "little")
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"opcode {opcode:#x}"


def _line(direction: str, view: FieldView) -> str:
    raw = "**" * len(view.raw) if view.secret else view.raw.hex()
    text = "(secret)" if view.secret else view.text
    shown = raw if len(raw) <= 64 else raw[:64] + "…"
    return f"{direction} {view.offset:4d} {view.name:<40} {shown}  {text}"
