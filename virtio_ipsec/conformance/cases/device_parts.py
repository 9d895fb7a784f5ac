"""Reading and setting the state of a member, and stopping it (virtio v1.4 2.12.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.parts import PartsBench
from virtio_ipsec.conformance.queues import Buffer
from virtio_ipsec.conformance.verdict import Wedged
from virtio_ipsec.wire.device_parts import (
    METADATA_RESULT,
    QUEUE_CONFIG,
    DevMode,
    Metadata,
    Part,
    PartFlag,
    PartType,
    headers_parse,
    offset_selector,
    queue_selector,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Status

NEEDS = ("admin", "members")
NONE = bytes(8)
ORDER = tuple(PartType)
#: Offset of ``num_queues`` in the common configuration; nobody can write it.
NUM_QUEUES = 18
BUFFERS = 5


def by_key(parts: Sequence[Part]) -> dict[tuple[int, bytes], Part]:
    """Parts by type and selector."""
    return {part.key: part for part in parts}


def check_order(bench: Bench, kinds: Sequence[int], what: str) -> None:
    """The order of the table, and what it means for single parts."""
    places = [ORDER.index(PartType(kind)) for kind in kinds if kind in ORDER]
    shown = ", ".join(f"{kind:#x}" for kind in kinds)
    bench.check("DP-DEV-03", places == sorted(places), f"{what}: the order of the table", shown)
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}

    def precedes(clause: str, before: PartType, after: PartType) -> None:
        if after in first:
            bench.check(
                clause,
                before in first and first[before] < first[after],
                f"{what}: {before.name} comes before {after.name}",
                shown,
            )

    precedes("DP-DEV-24", PartType.DEV_FEATURES, PartType.DRV_FEATURES)
    precedes("DP-DEV-24", PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG)
    precedes("DP-DEV-25", PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG)
    precedes("DP-DEV-26", PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG)
    precedes("DP-DEV-26", PartType.DRV_FEATURES, PartType.PCI_COMMON_CFG)


@case("parts-read", "DP-DEV-02", "DP-DEV-03", "DP-DEV-24", "DP-DEV-25", "DP-DEV-26", needs=NEEDS)
def read(bench: Bench) -> None:
    """The parts of a member can be read again and again, and come in the order of the specification's table.

    DEV_PARTS_GET of all parts three times while the member stands still, of parts that are named in the reverse order,
    and the list of DEV_PARTS_METADATA_GET.
    """
    it = PartsBench(bench)
    it.stop()
    parts = it.get()
    bench.check("DP-DEV-02", bool(parts), "there are parts", "none")
    for _ in range(2):
        again = it.get()
        bench.check(
            "DP-DEV-02", again == parts, "the same parts again", f"{len(again)} parts, {len(parts)} before"
        )
    check_order(bench, [part.part_type for part in parts], "all parts")
    headers = headers_parse(it.metadata(Metadata.LIST)[8:])
    check_order(bench, [header.part_type for header in headers], "metadata")
    chosen = it.get(part.header for part in reversed(parts))
    check_order(bench, [part.part_type for part in chosen], "parts that were named the other way round")


@case("parts-set", "DP-DEV-04", "DP-DEV-05", needs=NEEDS)
def set_parts(bench: Bench) -> None:
    """Parts are set while the member is stopped, any number of times, and only then.

    All the parts of a member are given back to it: refused while it runs; accepted when it is stopped, twice all of
    them and twice one of them, and after it was resumed and stopped anew. What it is afterwards is what it was.
    """
    it = PartsBench(bench)
    parts = it.get()
    reply = it.set(*parts)
    bench.check("DP-DEV-04", not reply.ok, "an error for a member that runs", reply)
    status = by_key(parts)[PartType.DEVICE_STATUS, NONE]
    for turn in range(2):
        it.stop()
        for what, some in (
            ("all", parts),
            ("all again", parts),
            ("one", (status,)),
            ("one again", (status,)),
        ):
            reply = it.set(*some)
            bench.check("DP-DEV-05", reply.ok, f"time {turn}: {what} can be set", reply)
        it.resume()
        after = by_key(it.get())
        bench.check(
            "DP-DEV-05",
            after[PartType.DRV_FEATURES, NONE] == by_key(parts)[PartType.DRV_FEATURES, NONE]
            and it.vf.target.status() == status.value[0],
            f"time {turn}: the member has the features and the status that were set",
            f"status {it.vf.target.status():#x}",
        )


@case("parts-lengths", "DP-DEV-06", needs=NEEDS)
def lengths(bench: Bench) -> None:
    """A part of another length than the device's is an error.

    Every part but the tables of the control queue, a byte longer and, where it has any, a byte shorter.
    """
    it = PartsBench(bench)
    it.stop()
    for part in bench.sweep([part for part in it.get() if part.part_type != PartType.NET_CVQ_CFG]):
        for value in {part.value + b"\0", part.value[:-1]} - {part.value}:
            reply = it.set(replace(part, value=value))
            bench.check(
                "DP-DEV-06",
                not reply.ok,
                f"part {part.part_type:#x} {part.selector.hex()}: {len(value)} bytes instead of {len(part.value)}",
                reply,
            )


@case("parts-device-features", "DP-DEV-07", "INF-62", needs=NEEDS)
def device_features(bench: Bench) -> None:
    """The device's features are compared with those in DEV_FEATURES, and stay what they are.

    DEV_FEATURES is marked as optional in the parts and in their metadata. As the member has it, it is accepted, with a
    bit more or less it is not; the member offers the same features before and after it is resumed.
    """
    it = PartsBench(bench)
    offered = it.vf.target.device_features()
    it.stop()
    part = by_key(it.get())[PartType.DEV_FEATURES, NONE]
    headers = headers_parse(METADATA_RESULT.parse(it.metadata(Metadata.LIST)).headers)
    for what, each in (
        ("part", part.header),
        *(("header", header) for header in headers if header.part_type == PartType.DEV_FEATURES),
    ):
        optional = bool(each.flags & PartFlag.OPTIONAL)
        bench.check(
            "INF-62", optional, f"the {what} of the device's features is optional", f"{each.flags:#x}"
        )
    reply = it.set(part)
    bench.check("DP-DEV-07", reply.ok, "the features of the device", reply)
    word = int.from_bytes(part.value, "little")
    for other in (word ^ 1 << Feature.NET_F_MAC, word ^ 1 << 63, 0):
        reply = it.set(replace(part, value=other.to_bytes(len(part.value), "little")))
        bench.check("DP-DEV-07", not reply.ok, f"other features: {other:#x}", reply)
        bench.check(
            "DP-DEV-07",
            by_key(it.get())[part.key].value == part.value,
            "the part is what it was",
            by_key(it.get())[part.key].value.hex(),
        )
    it.resume()
    bench.check(
        "DP-DEV-07",
        it.vf.target.device_features() == offered,
        "the device offers what it offered",
        f"{it.vf.target.device_features():#x}",
    )


@case("parts-read-only", "DP-DEV-28", needs=NEEDS)
def read_only(bench: Bench) -> None:
    """What a driver cannot write in the common configuration is not written by DEV_PARTS_SET either.

    num_queues with another value: refused or ignored, and never what the device shows afterwards.
    """
    it = PartsBench(bench)
    queues = it.vf.target.num_queues()
    it.stop()
    wanted = Part(PartType.PCI_COMMON_CFG, (queues + 2).to_bytes(2, "little"), 0, offset_selector(NUM_QUEUES))
    reply = it.set(wanted)
    bench.reading("E111", "read-only fields are ignored" if reply.ok else "read-only fields are compared")
    it.resume()
    shown = by_key(it.get()).get(wanted.key, wanted)
    bench.check(
        "DP-DEV-28",
        it.vf.target.num_queues() == queues and (shown is wanted or shown.value != wanted.value),
        f"num_queues stays {queues}",
        f"{it.vf.target.num_queues()}, part {shown.value.hex()}",
    )


@case("member-mode-again", "DP-DEV-20", "DP-DEV-21", needs=NEEDS)
def mode_again(bench: Bench) -> None:
    """Stopping a member that is stopped, and resuming one that runs, succeeds.

    DEV_MODE_SET twice in a row with each mode, beginning with the member at work. The member does what the mode says:
    it uses the buffers that it is told of, or leaves them alone.
    """
    it = PartsBench(bench)

    def works() -> bool:
        posted = transmit(it.vf, 1)
        for _ in range(3):
            it.vf.target.poll(it.vf.target.patience / 10)
        it.vf.queues.collect(1)
        return posted[0].completed

    for _ in range(2):
        reply = it.mode(0)
        bench.check("DP-DEV-21", reply.ok, "a member that runs is resumed", reply)
    bench.check("DP-DEV-21", works(), "it runs")
    for _ in range(3):
        reply = it.mode(DevMode.STOPPED)
        bench.check("DP-DEV-20", reply.ok, "a member is stopped, again and again", reply)
        bench.check("DP-DEV-20", not works(), "it stands still")
    for _ in range(2):
        reply = it.mode(0)
        bench.check("DP-DEV-21", reply.ok, "a member is resumed, again and again", reply)
        bench.check("DP-DEV-21", works(), "it runs again")


def transmit(vf: Bench, count: int, *, kick: bool = True) -> list[Buffer]:
    """Frames on the member's first transmit queue."""
    head = vf.packets.codec.build(NetHdr())
    frame = frames.ethernet(frames.packet(bytes(40)), PEER_MAC, vf.packets.mac)
    posted = [vf.queues.submit(1, head + frame, kick=False) for _ in range(count)]
    if kick:
        vf.queues.kick(1)
    return posted


@case(
    "member-stopped-queues", "DP-DEV-08", "DP-DEV-09", "DP-DEV-10", "DP-DEV-11", "DP-DEV-15", "DP-DEV-16",
    needs=NEEDS,
)  # fmt: skip
def stopped_queues(bench: Bench) -> None:
    """A stopped member has completed what it has seen, and touches neither queues nor buffers until it is resumed.

    Frames are sent and the member is stopped: for every frame that is on its wire, if the test bed has one, a buffer
    is used. Then buffers are made available and announced, and a frame arrives: no byte of rings and buffers changes,
    no frame leaves, nothing is notified. After the resumption the announced buffers are used.
    """
    it = PartsBench(bench)
    vf = it.vf
    wire = vf.target.has_wire
    vf.packets.post()
    first = transmit(vf, BUFFERS)
    it.stop()
    vf.queues.collect(1)
    done = sum(buffer.completed for buffer in first)
    sent = len(vf.target.captured()) if wire else 0
    seen = f"{sent} frames on the wire, {done} buffers used"
    bench.check("DP-DEV-10", sent <= done, "the buffers that it has taken are used", seen)
    bench.check("DP-DEV-09", sent <= done, "nothing is outstanding when the command is complete", seen)
    vf.target.interrupts()
    later = transmit(vf, BUFFERS, kick=False)
    before = vf.queues.memory()
    vf.queues.kick(1)
    if wire:
        vf.target.inject(frames.ethernet(frames.packet(bytes(40)), vf.packets.mac, PEER_MAC))
    for _ in range(3):
        vf.target.poll(vf.target.patience / 10)
    same = vf.queues.memory() == before
    left = len(vf.target.captured()) if wire else 0
    bench.check("DP-DEV-15", same, "no byte of rings and buffers changes", "something was written")
    bench.check(
        "DP-DEV-08", same and not left, "no transaction is begun", f"{left} frames left, memory same: {same}"
    )
    notified = vf.target.interrupts()
    bench.check("DP-DEV-16", not notified, "no virtqueue is notified", f"queues {sorted(notified)}")
    it.resume()

    def used() -> bool:
        vf.queues.collect(1)
        return all(buffer.completed for buffer in (*first, *later))

    try:
        vf.wait(used, "buffers that were announced to the stopped member")
    except Wedged as error:
        bench.check("DP-DEV-11", False, "what was announced meanwhile is used after the resumption", error)
    else:
        bench.check("DP-DEV-11", True, "what was announced meanwhile is used after the resumption")


@case("member-stopped-registers", "DP-DEV-12", "DP-DEV-13", needs=NEEDS)
def stopped_registers(bench: Bench) -> None:
    """Registers of a stopped member can be read, and its driver can reset it.

    Features, status, number and sizes of the queues and the device configuration are the same before and after the
    stop. Then 0 is written to the status: it reads as 0, and the device can be brought up again when it is resumed.
    """
    it = PartsBench(bench)
    target = it.vf.target

    def registers() -> tuple[object, ...]:
        return (
            target.device_features(),
            target.driver_features(),
            target.status(),
            target.num_queues(),
            [target.queue_max_size(index) for index in range(target.num_queues())],
            target.read_config(0, 6),
        )

    before = registers()
    it.stop()
    bench.check("DP-DEV-12", registers() == before, "registers read as before", f"{registers()}")
    it.vf.reset()
    bench.check("DP-DEV-13", target.status() == 0, "a stopped member can be reset", f"{target.status():#x}")
    it.resume()
    it.vf.start(without=(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC))
    status = target.status()
    bench.check("DP-DEV-13", bool(status & Status.DRIVER_OK), "and brought up again", f"{status:#x}")


@case("member-reset-parts", "DP-DEV-18", "DP-DEV-22", needs=NEEDS)
def reset_parts(bench: Bench) -> None:
    """A member that its driver has reset has the parts of a fresh one, and goes on answering.

    The driver of a stopped member resets it, after a part was set: status and driver features are zero, no queue is
    enabled, before and after the resumption. DEV_MODE_SET and DEV_PARTS_SET right behind the reset are answered.
    """
    it = PartsBench(bench)
    it.stop()
    parts = by_key(it.get())
    it.set(parts[PartType.DEVICE_STATUS, NONE])
    it.vf.reset()
    for when in ("stopped", "resumed"):
        found = by_key(it.get())
        for key in ((PartType.DEVICE_STATUS, NONE), (PartType.DRV_FEATURES, NONE)):
            value = found[key].value
            bench.check("DP-DEV-22", not any(value), f"{when}: {key[0].name} is zero", value.hex())
        on = [
            index
            for index in range(it.vf.target.num_queues())
            if (queue_selector(index), PartType.VQ_CFG)[::-1] in found
            and QUEUE_CONFIG.parse(found[PartType.VQ_CFG, queue_selector(index)].value).enabled
        ]
        bench.check("DP-DEV-22", not on, f"{when}: no queue is enabled", f"queues {on}")
        reply = it.mode(0)
        bench.check("DP-DEV-18", reply.ok, f"{when}: DEV_MODE_SET after a reset", reply)
    it.stop()
    it.vf.reset()
    reply = it.set(by_key(it.get())[PartType.DRV_FEATURES, NONE])
    bench.check("DP-DEV-18", reply.ok, "DEV_PARTS_SET after a reset", reply)
