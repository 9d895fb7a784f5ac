"""Group administration commands: what is validated, in which order, and the command list (virtio v1.4 2.12)."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import Reply, demand, frame
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.resource_objects import begin
from virtio_ipsec.conformance.sas import enable, install, make, read_caps
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.admin import id_bitmap_parse
from virtio_ipsec.wire.numbers import CapId, Direction, Opcode, ResourceType, Status

EINVAL = AdminStatus.EINVAL
LISTS = frozenset({int(Opcode.LIST_QUERY), int(Opcode.LIST_USE)})
CAPS = (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP)
#: Group types that are reserved.
NO_GROUPS = (2, 3, 0x7FFF, 0x8000, 0xFFFF)
#: Opcodes that are reserved and whose frame is the usual one (0x8000 and above may have another).
NO_OPCODES = (0x12, 0x13, 0x3F, 0x40, 0x7F, 0x100, 0x7FFF)


def is_invalid_opcode(reply: Reply) -> bool:
    """EINVAL with Q_INVALID_OPCODE."""
    return reply.outcome == (EINVAL, AdminQualifier.INVALID_OPCODE)


def refused(bench: Bench, reply: Reply, what: str, clause: str, qualifier: AdminQualifier) -> None:
    """The answer to an invalid frame: EINVAL (ADM-DEV-01) with the qualifier that ``clause`` names."""
    bench.check("ADM-DEV-01", reply.status == EINVAL, f"EINVAL for {what}", reply)
    bench.check(clause, reply.qualifier == qualifier, f"Q_{qualifier.name} for {what}", reply)


@case("admin-group-type", "ADM-DEV-01", "ADM-DEV-02", needs=("admin",))
def group_type(bench: Bench) -> None:
    """A reserved group type is refused with Q_INVALID_GROUP before anything else is looked at.

    Sends reserved group types with a legal opcode, with a reserved opcode, and with a wrong member id as well,
    before and after LIST_USE.
    """
    bench.start()
    for used in (False, True):
        if used:
            bench.admin.use_everything()
        for group in NO_GROUPS:
            for opcode, member in (
                (Opcode.LIST_QUERY, 0),
                (Opcode.CAP_ID_LIST_QUERY, 0),
                (0x7FFF, 0),
                (0, 9),
            ):
                reply = bench.admin.command(opcode, group=group, member=member)
                what = f"group type {group:#x} with opcode {int(opcode):#x}"
                refused(bench, reply, what, "ADM-DEV-02", AdminQualifier.INVALID_GROUP)


@case("admin-opcode", "ADM-DEV-01", "ADM-DEV-03", needs=("admin",))
def opcode(bench: Bench) -> None:
    """A reserved or unsupported opcode is refused with Q_INVALID_OPCODE.

    Sends the hole 0x12, reserved opcodes, and defined ones that LIST_QUERY does not report, to the self group,
    also with a member id that does not exist: the opcode is looked at first. Opcodes from 0x8000 may have
    another frame, so they only must not read as success.
    """
    bench.start()
    bench.admin.use_everything()
    missing = {opcode.value for opcode in Opcode} - bench.admin.supported()
    for number in sorted({*NO_OPCODES, *missing}):
        for member in (0, 1):
            reply = bench.admin.command(number, member=member)
            what = f"opcode {number:#x}, member id {member}"
            refused(bench, reply, what, "ADM-DEV-03", AdminQualifier.INVALID_OPCODE)
    for number in (0x8000, 0x800A, 0xFFFF):
        reply = bench.admin.command(number)
        bench.check("ADM-DEV-01", not reply.ok, f"no success for opcode {number:#x}", reply)


@case("admin-member", "ADM-DEV-01", "ADM-DEV-04", "INF-41", needs=("admin", "ipsec"))
def member(bench: Bench) -> None:
    """A member id other than 0 in the self group is refused with Q_INVALID_MEMBER by commands that use it.

    Sends ids with low, middle and high bits set to object commands, which must refuse them, or ignore them by
    the second reading of E106. LIST_QUERY and LIST_USE do not use the field and work with any id.
    """
    bench.start()
    enable(bench)
    ignoring = 0
    ids = (1, 2, 0xFFFF, 1 << 16, 1 << 32, 1 << 63, (1 << 64) - 1)
    for number in ids:
        reply = bench.admin.command(
            Opcode.RESOURCE_OBJ_DESTROY, bytes((4, 2)) + bytes(6), member=number
        )  # inbound SA 0, which does not exist
        if reply.status == AdminStatus.ENXIO:
            ignoring += 1
            continue
        refused(
            bench, reply, f"DESTROY with member id {number:#x}", "ADM-DEV-04", AdminQualifier.INVALID_MEMBER
        )
    if bench.check(
        "ADM-DEV-04",
        ignoring in {0, len(ids)},
        "one reading for all ids",
        f"{ignoring} of {len(ids)} ignored",
    ):
        bench.reading("E106", "member id ignored" if ignoring else "Q_INVALID_MEMBER")
    for number in ids:
        reply = bench.admin.command(Opcode.LIST_QUERY, member=number)
        bench.check("INF-41", reply.ok, f"LIST_QUERY ignores member id {number:#x}", reply)


@case("admin-success-status", "ADM-DEV-05", "INF-42", needs=("admin", "ipsec"))
def success(bench: Bench) -> None:
    """A command that took effect has status OK, and then the qualifier is zero.

    Sends every command once and looks for its effect by the next ones; the status words must say OK and zero.
    """
    bench.start()

    def ok(reply: Reply, what: str, effect: bool) -> None:
        if effect:
            bench.check("ADM-DEV-05", reply.ok, f"OK: {what} took effect", reply)
        bench.check("INF-42", not reply.ok or reply.qualifier == 0, f"qualifier 0 with OK: {what}", reply)

    supported = bench.admin.list_query()
    ids = id_bitmap_parse(supported.result)
    ok(supported, "LIST_QUERY", ids >= LISTS)
    used = bench.admin.list_use(ids)
    listed = bench.admin.command(Opcode.CAP_ID_LIST_QUERY)
    ok(used, "LIST_USE", not is_invalid_opcode(listed))
    ok(listed, "CAP_ID_LIST_QUERY", bool(id_bitmap_parse(listed.result)))
    read_caps(bench)
    bench.admin.accept_caps(CapId.NET_IPSEC_RESOURCE_CAP)
    answer = bench.admin.cap_get(CapId.NET_IPSEC_SA_CAP)
    ok(answer, "DEVICE_CAP_GET", len(answer.result) > 8)
    setting = bench.admin.cap_set(CapId.NET_IPSEC_SA_CAP, answer.result)
    sa = make(bench)
    created = install(bench, 0, sa)
    ok(setting, "DRIVER_CAP_SET", created.ok)
    again = install(bench, 0, sa)
    ok(created, "CREATE", again.status == AdminStatus.EEXIST)
    if bench.dialect.supports_modify_query:
        query = bench.admin.query(ResourceType.NET_IPSEC_OUTB_SA, 0)
        data = bench.dialect.sa.build(sa)
        ok(query, "QUERY", any(query.result))
        ok(bench.admin.modify(ResourceType.NET_IPSEC_OUTB_SA, 0, data), "MODIFY", effect=False)
    gone = bench.admin.destroy(ResourceType.NET_IPSEC_OUTB_SA, 0)
    missing = bench.admin.destroy(ResourceType.NET_IPSEC_OUTB_SA, 0)
    ok(gone, "DESTROY", created.ok and missing.status == AdminStatus.ENXIO)


@case("admin-failure-status", "ADM-DEV-06", needs=("admin", "ipsec"))
def failure(bench: Bench) -> None:
    """A command that cannot have had an effect does not have status OK.

    Sends commands that no device can carry out: reserved opcodes, a capability and objects that do not exist,
    an SA of the reserved mode 0.
    """
    bench.start()
    enable(bench)
    outbound = ResourceType.NET_IPSEC_OUTB_SA
    attempts = {
        "opcode 0x12": bench.admin.command(0x12),
        "opcode 0x7fff": bench.admin.command(0x7FFF),
        "DEVICE_CAP_GET of capability 0x0fff": bench.admin.cap_get(0x0FFF),
        "DRIVER_CAP_SET of capability 0x0fff": bench.admin.cap_set(0x0FFF, bytes(8)),
        "DESTROY of no object": bench.admin.destroy(outbound, 3),
        "DESTROY of object type 0x0500": bench.admin.destroy(0x0500, 3),
        "CREATE of object type 0x0500": bench.admin.create(0x0500, 0, bytes(200)),
        "CREATE of an SA of zeros": bench.admin.create(outbound, 3, bytes(200)),
        "MODIFY of no object": bench.admin.modify(outbound, 3, bench.dialect.sa.build(make(bench))),
        "QUERY of no object": bench.admin.query(outbound, 3),
    }
    for what, reply in attempts.items():
        bench.check("ADM-DEV-06", not reply.ok, f"no OK for {what}", reply)


@case("admin-reserved-fields", "INF-41", needs=("admin", "ipsec"))
def reserved_fields(bench: Bench) -> None:
    """Nonsense in reserved fields changes nothing, and reserved fields of answers are zero.

    Fills ``reserved1`` of the frame, the reserved bytes of capability and object headers, and ``flags`` of
    object commands (E105); the outcome is as with zeros.
    """
    bench.start()
    enable(bench)
    sa = make(bench, Direction.OUTBOUND)
    body = bench.dialect.sa.build(sa)
    outbound = int(ResourceType.NET_IPSEC_OUTB_SA)
    head = outbound.to_bytes(4, "little") + bytes(4)
    commands = {
        "LIST_QUERY": (Opcode.LIST_QUERY, b""),
        "CAP_ID_LIST_QUERY": (Opcode.CAP_ID_LIST_QUERY, b""),
        "DEVICE_CAP_GET": (Opcode.DEVICE_CAP_GET, int(CapId.NET_IPSEC_SA_CAP).to_bytes(8, "little")),
        "CREATE": (Opcode.RESOURCE_OBJ_CREATE, head + bytes(8) + body),
        "DESTROY": (Opcode.RESOURCE_OBJ_DESTROY, head),
    }
    for name, (number, data) in commands.items():
        plain = frame(number, data)
        poisoned = bytearray(plain)
        poisoned[4:16] = bench.octets(11) + b"\x5a"
        if data:
            poisoned[26:28] = b"\xff\x5a"
        if name == "DEVICE_CAP_GET":
            poisoned[28:32] = b"\xff" * 4
        if name == "CREATE":
            poisoned[32:40] = b"\xff" * 8
        reply = bench.admin.raw(bytes(poisoned))
        bench.check("INF-41", reply.ok, f"{name} with nonsense in reserved fields succeeds", reply)
        bench.check(
            "INF-41", reply.valid[4:8] == bytes(4), f"reserved2 of {name} is zero", reply.valid[4:8].hex()
        )
        if name not in {"CREATE", "DESTROY"}:
            clean = bench.admin.raw(plain)
            bench.check("INF-41", reply.valid == clean.valid, f"the same answer to {name}", "another one")


@case("admin-einval-no-effect", "ADM-DEV-07", needs=("admin", "ipsec"))
def einval(bench: Bench) -> None:
    """A command that is answered with EINVAL leaves no trace.

    Refused CREATEs leave no object, keep no id, no SPI and no room; a refused DRIVER_CAP_SET keeps the old
    value; DEVICE_NEEDS_RESET stays clear and good commands work afterwards.
    """
    begin(bench, 1, 1)

    def refuse(reply: Reply) -> bool:
        return reply.status == EINVAL

    for direction, kind in (
        (Direction.OUTBOUND, ResourceType.NET_IPSEC_OUTB_SA),
        (Direction.INBOUND, ResourceType.NET_IPSEC_INB_SA),
    ):
        good = make(bench, direction)
        body = bytearray(bench.dialect.sa.build(good))
        for at, value, what in ((0, 0, "mode 0"), (0, 9, "mode 9"), (23, 0x80, "option bit 63")):
            bad = bytearray(body)
            bad[at] = value
            if not refuse(bench.admin.create(kind, 0, bytes(bad))):
                continue
            gone = bench.admin.destroy(kind, 0)
            bench.check(
                "ADM-DEV-07",
                gone.status == AdminStatus.ENXIO,
                f"no object after a refused CREATE ({what}): DESTROY finds none",
                gone,
            )
        reply = bench.admin.create(kind, 0, bytes(body))
        bench.check("ADM-DEV-07", reply.ok, "id, SPI and room are still free after refused CREATEs", reply)
        bench.admin.destroy(kind, 0)
    too_many = bytes((255,)) * 8
    if refuse(bench.admin.cap_set(CapId.NET_IPSEC_RESOURCE_CAP, too_many)):
        reply = install(bench, 0, make(bench))
        bench.check(
            "ADM-DEV-07", reply.ok, "the capability before a refused DRIVER_CAP_SET allows id 0", reply
        )
        reply = install(bench, 1, make(bench))
        bench.check(
            "ADM-DEV-07", not reply.ok, "the capability before a refused DRIVER_CAP_SET forbids id 1", reply
        )
    status = bench.target.status()
    bench.check("ADM-DEV-07", not status & Status.DEVICE_NEEDS_RESET, "DEVICE_NEEDS_RESET is clear", status)


@case("admin-other-failures", "ADM-DEV-08", needs=("admin", "ipsec"))
def other_failures(bench: Bench) -> None:
    """A command that fails for another reason than EINVAL leaves the device as it was.

    CREATE of an existing id with other parameters, DESTROY of a missing id, and disabling a capability under a
    live SA: the SA is still there and unchanged, and others can be made.
    """
    begin(bench, need=2)
    outbound = ResourceType.NET_IPSEC_OUTB_SA
    first = make(bench)
    demand(install(bench, 1, first))
    modify_query = bench.dialect.supports_modify_query
    before = bench.admin.query(outbound, 1).result if modify_query else b""
    attempts = {
        "CREATE of an existing id": install(bench, 1, make(bench)),
        "DESTROY of a missing id": bench.admin.destroy(outbound, 0),
        "DESTROY of the other type": bench.admin.destroy(ResourceType.NET_IPSEC_INB_SA, 1),
        **{f"disabling {id:#x}": bench.admin.cap_set(id, bytes(8)) for id in CAPS},
    }
    failed = [what for what, reply in attempts.items() if not reply.ok]
    bench.admin.accept_caps(*(id for id in CAPS if attempts[f"disabling {id:#x}"].ok))
    if not failed:
        raise Unsupported("none of the commands fails")
    if modify_query:
        after = bench.admin.query(outbound, 1)
        bench.check(
            "ADM-DEV-08", after.ok and after.result == before, f"the SA is unchanged after {failed}", after
        )
    reply = install(bench, 0, make(bench))
    bench.check("ADM-DEV-08", reply.ok, f"another SA can be made after {failed}", reply)
    reply = bench.admin.destroy(outbound, 1)
    bench.check("ADM-DEV-08", reply.ok, f"the SA is still there after {failed}", reply)
