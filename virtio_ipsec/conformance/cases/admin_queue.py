"""The administration virtqueue: buffers of any length, what is written and what is not (virtio v1.4 2.13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.admin import HEADER, ROOM, Reply, frame
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.queues import Buffer
from virtio_ipsec.conformance.sas import TUNNEL4, TYPES, enable, install, make
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.wire.admin import (
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    ObjectCommand,
    ResourceHeader,
    id_bitmap_build,
)
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import CapId, Direction, Opcode, ResourceType

OUTBOUND = ResourceType.NET_IPSEC_OUTB_SA
#: Bytes of the frame before the command's own data.
FRAME = 24
#: SAs that a device is asked to hold.
ENOUGH = 64


def rounded(size: int) -> int:
    """Up to a multiple of 8 bytes."""
    return -(-size // 8) * 8


def cap_get(id: int) -> bytes:
    """The readable part of DEVICE_CAP_GET."""
    return frame(Opcode.DEVICE_CAP_GET, id.to_bytes(8, "little"))


def create(bench: Bench, id: int = 0, direction: Direction = Direction.OUTBOUND) -> bytes:
    """The readable part of CREATE of a valid SA; its last field is not zero, where it may be."""
    sa = make(bench, direction)
    if bench.dialect.has_lifetime:
        sa = replace(sa, life=Lifetime(bytes_hard_limit=1 << 56))
    body = bench.dialect.sa.build(replace(sa, obj_id=id))
    return frame(
        Opcode.RESOURCE_OBJ_CREATE, OBJECT_COMMAND.build(ObjectCommand(TYPES[direction], id, 0, body))
    )


def destroy(id: int = 0, kind: int = OUTBOUND) -> bytes:
    """The readable part of DESTROY."""
    return frame(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(kind, id)))


def query(bench: Bench, id: int = 0) -> bytes:
    """The readable part of QUERY."""
    return frame(bench.dialect.query_opcode, OBJECT_COMMAND.build(ObjectCommand(OUTBOUND, id)))


def readers(bench: Bench) -> dict[str, bytes]:
    """Commands that change nothing and have an answer; outbound SA 0 must exist."""
    commands = {
        "LIST_QUERY": frame(Opcode.LIST_QUERY),
        "CAP_ID_LIST_QUERY": frame(Opcode.CAP_ID_LIST_QUERY),
        "DEVICE_CAP_GET of 0x0803": cap_get(CapId.NET_IPSEC_RESOURCE_CAP),
        "DEVICE_CAP_GET of 0x0804": cap_get(CapId.NET_IPSEC_SA_CAP),
    }
    if bench.dialect.supports_modify_query:
        commands["QUERY"] = query(bench)
    return commands


def cuttable(bench: Bench) -> Iterator[tuple[str, bytes]]:
    """Commands whose data ends in bytes that are not zero, so that a cut matters."""
    yield "DEVICE_CAP_GET", cap_get(CapId.NET_IPSEC_SA_CAP)
    yield "CREATE outbound", create(bench, 3)
    yield "CREATE inbound", create(bench, 3, Direction.INBOUND)


@case("admin-queue-short-readable", "AVQ-DEV-01", "AVQ-DEV-04", needs=("admin", "ipsec"))
def short_readable(bench: Bench) -> None:
    """A readable part that ends early acts as if zeros followed.

    Cuts DEVICE_CAP_GET and CREATE of both SA types at every multiple of eight bytes, and sends each cut also
    with the zeros written out: both must end alike. Shorter than the 24 bytes of the frame, a device
    may insist on a minimum (E91). An SA that is valid up to the cut must be created.
    """
    bench.start()
    enable(bench)
    for name, whole in cuttable(bench):
        for cut in bench.sweep(range(0, len(whole), 8)):
            replies = []
            for command in (whole[:cut], whole[:cut].ljust(len(whole), b"\0")):
                replies.append(bench.admin.raw(command))
                if name.startswith("CREATE") and replies[-1].ok:
                    bench.admin.raw(destroy(3, int.from_bytes(whole[24:26], "little")))
            short, long = replies
            if cut < FRAME:
                alike = short.outcome == long.outcome
                bench.reading("E91", "zeros" if alike else "a minimum")
                continue
            bench.check(
                "AVQ-DEV-01",
                short.outcome == long.outcome and short.valid == long.valid,
                f"{name} cut to {cut} bytes ends as with zeros: {long}",
                short,
            )
    sa = make(bench, param=TUNNEL4)
    body = bench.dialect.sa.build(sa).rstrip(b"\0")
    head = OBJECT_COMMAND.build(ObjectCommand(OUTBOUND, 0))
    command = frame(Opcode.RESOURCE_OBJ_CREATE, head + body)
    reply = bench.admin.raw(command)
    bench.check(
        "AVQ-DEV-04", reply.ok, f"an SA of {len(command)} bytes, zeros behind it left out, is created", reply
    )


@case("admin-queue-short-writable", "AVQ-DEV-01", "AVQ-DEV-04", "AVQ-DEV-06", needs=("admin", "ipsec"))
def short_writable(bench: Bench) -> None:
    """An answer that does not fit is cut, not refused.

    Sends each command that answers something with every room from 8 bytes to beyond the answer, in steps of
    eight: status OK, and the bytes are the beginning of the whole answer. The command that changes something,
    CREATE, is sent with no more room than the status needs.
    """
    bench.start()
    enable(bench)
    reply = bench.admin.raw(create(bench), HEADER)
    bench.check("AVQ-DEV-04", reply.ok, "CREATE with 8 bytes of room", reply)
    for name, command in readers(bench).items():
        whole = bench.admin.raw(command)
        for room in bench.sweep(range(HEADER, len(whole.valid) + 24, 8)):
            reply = bench.admin.raw(command, room)
            bench.check(
                "AVQ-DEV-06",
                reply.written >= 4,
                f"{name} with {room} bytes of room writes status and qualifier",
                f"{reply.written} bytes",
            )
            bench.check("AVQ-DEV-04", reply.ok, f"{name} with {room} bytes of room", reply)
            want = whole.valid[:room]
            bench.check(
                "AVQ-DEV-01",
                reply.valid.rstrip(b"\0") == want.rstrip(b"\0"),
                f"{name} with {room} bytes of room: the first {len(want)} bytes of the answer",
                f"{reply.written} bytes: {reply.valid[:64].hex()}",
            )


def answer_lengths(bench: Bench) -> dict[str, tuple[bytes, int]]:
    """Commands whose answers have an exact length; outbound SA 0 must exist."""
    sa_cap = bench.dialect.sa_cap
    modes = sa_cap.parse(bench.admin.cap_get(CapId.NET_IPSEC_SA_CAP).result)
    sizes = {
        "DEVICE_CAP_GET of 0x0803": (cap_get(CapId.NET_IPSEC_RESOURCE_CAP), 8),
        "DEVICE_CAP_GET of 0x0804": (cap_get(CapId.NET_IPSEC_SA_CAP), len(sa_cap.build(modes))),
        "LIST_USE": (frame(Opcode.LIST_USE, id_bitmap_build(bench.admin.supported())), 0),
        "DESTROY": (destroy(), 0),
        "CREATE": (create(bench), 0),
    }
    if bench.dialect.supports_modify_query:
        # First, for the others take the SA away and make another.
        sizes = {"QUERY": (query(bench), bench.dialect.sa.size or 0), **sizes}
    return sizes


@case("admin-queue-long-buffers", "AVQ-DEV-02", "AVQ-DEV-04", needs=("admin", "ipsec"))
def long_buffers(bench: Bench) -> None:
    """Surplus input is ignored, surplus room stays untouched, and the used length is that of the answer.

    Appends 8, 64 and 2048 bytes of nonsense to commands of a known length, with rooms of 4096 bytes and of the
    exact size. Behind the answer the pattern that the buffer was filled with must stand.
    """
    bench.start()
    enable(bench)
    bench.admin.raw(create(bench))
    for name, (command, result) in answer_lengths(bench).items():
        length = HEADER + rounded(result)
        for surplus in (0, 8, 64, 2048):
            if name == "CREATE":
                bench.admin.raw(destroy())
            if name == "DESTROY":
                bench.admin.raw(create(bench))
            if name == "LIST_USE" and surplus:
                continue  # E108: what surplus words mean is open
            for room in (ROOM, length) if name not in {"CREATE", "DESTROY"} else (ROOM,):
                reply = bench.admin.raw(command + bench.octets(surplus), room)
                what = f"{name} with {surplus} surplus bytes and {room} bytes of room"
                bench.check("AVQ-DEV-04", reply.ok, what, reply)
                bench.check(
                    "AVQ-DEV-02",
                    reply.written == length,
                    f"{what}: used length {length}",
                    f"{reply.written}",
                )
                rest = reply.content[length:]
                bench.check(
                    "AVQ-DEV-02",
                    rest == b"\xaa" * len(rest),
                    f"{what}: nothing is written behind the answer",
                    rest[:64].hex(),
                )


@case("admin-queue-initialised", "AVQ-DEV-03", needs=("admin", "ipsec"))
def initialised(bench: Bench) -> None:
    """Whatever the device says that it wrote, it did write, and the whole answer is there.

    Sends each command that answers something twice, into buffers filled with 0xaa and with 0x55: within the
    answer both must hold the same bytes, and the used length must cover the whole structure.
    """
    bench.start()
    enable(bench)
    install(bench, 0, make(bench))
    for name, command in readers(bench).items():
        answers = [filled(bench, command, fill) for fill in (0xAA, 0x55)]
        same = answers[0].valid == answers[1].valid
        bench.check(
            "AVQ-DEV-03", same, f"{name}: no byte of the answer is left over", "fill bytes shine through"
        )
    for name, (command, result) in answer_lengths(bench).items():
        reply = filled(bench, command, 0x55)
        bench.check(
            "AVQ-DEV-03",
            not reply.ok or reply.written >= HEADER + result,
            f"{name}: the structure of {HEADER + result} bytes is initialised",
            f"{reply.written} bytes",
        )


def filled(bench: Bench, command: bytes, fill: int) -> Reply:
    """Send a command with room that holds ``fill`` bytes."""
    buffer = bench.queues.submit(bench.admin.index, command, ROOM, fill=fill)
    return bench.admin.finish(buffer)


@case("admin-queue-multiple-of-8", "AVQ-DEV-05", needs=("admin", "ipsec"))
def multiple(bench: Bench) -> None:
    """The part of the answer that is initialised is a multiple of eight bytes.

    Looks at the used lengths of commands that succeed and that fail, among them the SA capability, whose
    entries are 44 bytes long (40 in the January-2025 dialect), cut to every multiple of eight bytes.
    """
    bench.start()
    enable(bench)
    bench.admin.raw(create(bench))
    commands = {
        **readers(bench),
        "opcode 0x12": frame(0x12),
        "group type 9": frame(0, group=9),
        "DEVICE_CAP_GET of 0x0fff": cap_get(0x0FFF),
        "DESTROY of no object": destroy(7),
        "CREATE of an existing object": create(bench),
    }
    for name, command in commands.items():
        for room in bench.sweep((ROOM, *range(8, 128, 8))):
            written = bench.admin.raw(command, room).written
            bench.check(
                "AVQ-DEV-05",
                written % 8 == 0 and written > 0,
                f"{name} with {room} bytes of room: a multiple of 8",
                written,
            )


@case("admin-queue-status-written", "AVQ-DEV-06", needs=("admin", "ipsec"))
def status_written(bench: Bench) -> None:
    """Status and qualifier are written by every command, whatever the buffer held.

    Sends good, failing and unknown commands into buffers filled with 0xaa and 0x55 and compares the words.
    """
    bench.start()
    enable(bench)
    commands = {
        "LIST_QUERY": frame(Opcode.LIST_QUERY),
        "DEVICE_CAP_GET": cap_get(CapId.NET_IPSEC_SA_CAP),
        "opcode 0x12": frame(0x12),
        "group type 9": frame(0, group=9),
        "DEVICE_CAP_GET of 0x0fff": cap_get(0x0FFF),
        "DESTROY of no object": destroy(7),
        "LIST_USE": frame(Opcode.LIST_USE, id_bitmap_build(bench.admin.supported())),
    }
    for name, command in commands.items():
        replies = [filled(bench, command, fill) for fill in (0xAA, 0x55)]
        words = {reply.content[:4] for reply in replies}
        bench.check(
            "AVQ-DEV-06",
            len(words) == 1 and all(reply.written >= 4 for reply in replies),
            f"{name}: four bytes of status, the same over any old content",
            ", ".join(f"{reply.content[:4].hex()} of {reply.written}" for reply in replies),
        )


@case("admin-queue-order", "AVQ-DEV-07", needs=("admin", "ipsec"))
def order(bench: Bench) -> None:
    """Commands of one administration virtqueue are processed in the order in which they were queued.

    Queues CREATE, CREATE of the same id, DESTROY, DESTROY, CREATE, DESTROY with one notification, for two ids
    interleaved: OK, exists, OK, missing, OK, OK. Any other order shows in the answers.
    """
    bench.start()
    ids = range(min(2, enable(bench).limit(Direction.OUTBOUND)))
    posted: list[tuple[str, bool, Buffer]] = []
    plan = (("CREATE", True), ("CREATE", False), ("DESTROY", True), ("DESTROY", False), ("CREATE", True))
    for name, works in (*plan, ("DESTROY", True)):
        for id in ids:
            if bench.queues.state(bench.admin.index).free < 2:
                bench.queues.kick(bench.admin.index)
                bench.queues.collect(bench.admin.index)
            command = create(bench, id) if name == "CREATE" else destroy(id)
            posted.append((f"{name} of {id}", works, bench.admin.post(command, 64, kick=False)))
    bench.queues.kick(bench.admin.index)
    for number, (name, works, buffer) in enumerate(posted):
        reply = bench.admin.finish(buffer)
        bench.check(
            "AVQ-DEV-07", reply.ok == works, f"command {number}, {name}: {'OK' if works else 'fails'}", reply
        )


@case("admin-queue-descriptors", "FRM-01", needs=("admin", "ipsec"))
def descriptors(bench: Bench) -> None:
    """How a command and its room are cut into descriptors makes no difference.

    Cuts the frame at every byte, cuts the room at odd places, and uses descriptors of one byte: the answers
    equal the one to a command in one piece.
    """
    bench.start()
    enable(bench)
    command = cap_get(CapId.NET_IPSEC_SA_CAP)
    whole = bench.admin.raw(command)
    layouts: list[tuple[list[bytes], list[int]]] = [
        ([command[:cut], command[cut:]], [ROOM]) for cut in range(1, len(command))
    ]
    layouts += [([command], [cut, ROOM - cut]) for cut in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 61)]
    layouts.append(([command[at : at + 1] for at in range(len(command))], [1] * 16 + [ROOM]))
    most = bench.queues.state(bench.admin.index).size
    fitting = [(pieces, rooms) for pieces, rooms in layouts if len(pieces) + len(rooms) <= most]
    for pieces, rooms in bench.sweep(fitting):
        reply = bench.admin.raw(pieces, rooms)
        bench.check(
            "FRM-01",
            reply.valid == whole.valid,
            f"readable {[len(p) for p in pieces][:4]}…, writable {rooms[:3]}…: the same answer",
            f"{reply}, {reply.written} bytes",
        )


@case("admin-queue-retry-statuses", "AVQ-DEV-09", needs=("admin", "ipsec"))
def retry(bench: Bench) -> None:
    """A command answered with EAGAIN or ENOMEM has had no effect.

    Creates SAs until the device has no room or 64 are made; if the answer is EAGAIN or ENOMEM there must be
    no object. Devices that never give these answers are UNSUPPORTED here.
    """
    bench.start()
    caps = enable(bench)
    for id in range(min(ENOUGH, caps.resources.outb_sa_limit)):
        reply = bench.admin.raw(create(bench, id))
        if reply.status in (AdminStatus.EAGAIN, AdminStatus.ENOMEM):
            gone = bench.admin.raw(destroy(id))
            bench.check(
                "AVQ-DEV-09",
                gone.status == AdminStatus.ENXIO,
                f"no object after {reply}: DESTROY finds none",
                gone,
            )
            return
        if not reply.ok:
            break
    raise Unsupported("the device answered no command with EAGAIN or ENOMEM")
