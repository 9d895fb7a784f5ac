"""Status, reset and queue reset: what the device leaves alone, and when (virtio v1.4 2.1, 2.4, 2.6.1)."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import HEADER, ROOM, demand, frame
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import ethernet, packet
from virtio_ipsec.conformance.packets import PEER_MAC, RECEIVE_ROOM
from virtio_ipsec.conformance.queues import QUEUE_SIZE, Buffer
from virtio_ipsec.conformance.verdict import Wedged
from virtio_ipsec.errors import RingError
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Opcode, Status

#: Seconds that a device gets to do what it must not do, where the target needs time at all.
SETTLE = 0.05
OK = "OK (0)/Q_OK"


def settle(bench: Bench) -> None:
    """Give the device the chance to do something wrong."""
    bench.target.poll(min(SETTLE, bench.target.patience))


def plain(bench: Bench) -> bytes:
    """A net header of zeros and a frame."""
    return bench.packets.codec.build(NetHdr()) + ethernet(packet(), PEER_MAC, bench.packets.mac)


def used(bench: Bench, *buffers: Buffer) -> list[int]:
    """The queues of those buffers that the device has used."""
    for index in {buffer.queue for buffer in buffers}:
        bench.queues.collect(index)
    return [buffer.queue for buffer in buffers if buffer.completed]


@case("status-reset-from-anywhere", "BAS-RESET-01", needs=("status",))
def reset_anywhere(bench: Bench) -> None:
    """The status reads 0 after a reset from every state.

    After ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK and FAILED; the driver waits until it reads 0, which
    the target's reset does, and it stays so.
    """
    offered = bench.target.device_features()
    for state in ("ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK", "FAILED"):
        bench.reset()
        if state == "ACKNOWLEDGE":
            bench.target.write_status(Status.ACKNOWLEDGE)
        elif state == "DRIVER":
            bench.target.write_status(Status.ACKNOWLEDGE)
            bench.target.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        elif state == "FEATURES_OK":
            bench.negotiate(offered & (1 << Feature.F_VERSION_1))
        else:
            bench.start()
            if state == "FAILED":
                bench.target.write_status(bench.target.status() | Status.FAILED)
        bench.reset()
        settle(bench)
        status = bench.target.status()
        bench.check("BAS-RESET-01", status == 0, f"status 0 after a reset from {state}", f"{status:#x}")


@case("status-before-driver-ok", "BAS-STATUS-05", needs=("admin",))
def before_driver_ok(bench: Bench) -> None:
    """Before DRIVER_OK no buffer is used and no notification sent; afterwards they are.

    An administration command and a transmit frame are queued and notified, against the driver's rules, with
    FEATURES_OK and without DRIVER_OK. Nothing may happen until DRIVER_OK and another notification.
    """
    bench.start(driver_ok=False)
    command = bench.admin.post(frame(Opcode.LIST_QUERY), 64)
    sent = bench.queues.submit(1, plain(bench))
    settle(bench)
    done = used(bench, command, sent)
    bench.check("BAS-STATUS-05", not done, "no buffer is used before DRIVER_OK", f"queues {done}")
    notified = bench.target.interrupts()
    bench.check(
        "BAS-STATUS-05", not notified, "no used-buffer notification before DRIVER_OK", sorted(notified)
    )
    if bench.target.has_wire:
        left = bench.target.captured()
        bench.check(
            "BAS-STATUS-05", not left, "nothing is transmitted before DRIVER_OK", f"{len(left)} frames"
        )
    bench.driver_ok()
    for index in (command.queue, 1):
        bench.queues.kick(index)
    reply = bench.admin.finish(command)
    bench.check("BAS-STATUS-05", reply.ok, "the same command is answered after DRIVER_OK", reply)


@case("status-receive-before-driver-ok", "BAS-STATUS-05", needs=("wire",))
def receive_before_driver_ok(bench: Bench) -> None:
    """Before DRIVER_OK no receive buffer is used.

    Receive buffers are there and frames arrive; with DRIVER_OK later frames are delivered.
    """
    bench.start(driver_ok=False)
    bench.packets.post()
    for _ in range(3):
        bench.packets.inject(ethernet(packet(), bench.packets.mac, PEER_MAC))
    settle(bench)
    early = bench.packets.collect()
    bench.check("BAS-STATUS-05", not early, "nothing is delivered before DRIVER_OK", f"{len(early)} frames")
    bench.driver_ok()
    bench.packets.delivered()  # until the device has begun, frames may be lost
    wanted = ethernet(packet(b"after DRIVER_OK"), bench.packets.mac, PEER_MAC)
    got = [rx.frame for rx in bench.packets.receive(wanted)]
    bench.check("BAS-STATUS-05", wanted in got, "a frame after DRIVER_OK is delivered", f"{len(got)} frames")


@case("reset-leaves-queues-alone", "BAS-RESET-02", needs=("admin",))
def reset_leaves_queues(bench: Bench) -> None:
    """After a reset the device touches no queue and no buffer and sends no notification.

    Commands, transmit frames and receive buffers wait in their rings, frames arrive from the wire, and the
    driver notifies the old queues, against its rules: the memory of rings and buffers stays as it was.
    """
    bench.start()
    if bench.target.has_wire:
        bench.packets.post()
    bench.queues.submit(bench.admin.index, frame(Opcode.LIST_QUERY), 64, kick=False)
    bench.queues.submit(1, plain(bench), kick=False)
    bench.target.write_status(0)
    bench.wait(lambda: bench.target.status() == 0, "status 0 after a reset")
    bench.target.interrupts()
    before = bench.queues.memory()
    for index in (bench.admin.index, 0, 1):
        bench.queues.kick(index)
    if bench.target.has_wire:
        bench.packets.inject(ethernet(packet(), bench.packets.mac, PEER_MAC))
    settle(bench)
    bench.check("BAS-RESET-02", bench.queues.memory() == before, "rings and buffers are untouched", "changed")
    notified = bench.target.interrupts()
    bench.check("BAS-RESET-02", not notified, "no notification", sorted(notified))
    if bench.target.has_wire:
        left = bench.target.captured()
        bench.check("BAS-RESET-02", not left, "nothing is transmitted", f"{len(left)} frames")


@case("queue-reset-stops", "BAS-RESET-04", needs=("admin", "queue_reset"))
def queue_reset_stops(bench: Bench) -> None:
    """A queue that was reset executes nothing and notifies nobody; the others go on.

    A command that creates nothing but an answer waits in the administration queue, and a frame in a transmit
    queue; both queues are reset and notified, against the driver's rules.
    """
    bench.start()
    command = bench.admin.post(frame(Opcode.LIST_QUERY), ROOM, kick=False)
    sent = bench.queues.submit(1, plain(bench), kick=False)
    for index in (1, command.queue):
        bench.target.reset_queue(index)
    # What was executed while the reset went on is open.
    early = used(bench, command, sent)
    bench.target.interrupts()
    if bench.target.has_wire:
        bench.target.captured()
    before = bench.queues.memory(1, command.queue)
    for index in (1, command.queue):
        bench.queues.kick(index)
    settle(bench)
    done = [index for index in used(bench, command, sent) if index not in early]
    bench.check("BAS-RESET-04", not done, "nothing is used in a queue that was reset", f"queues {done}")
    after = bench.queues.memory(1, command.queue)
    bench.check("BAS-RESET-04", after == before, "rings and buffers are untouched", "changed")
    notified = bench.target.interrupts()
    bench.check("BAS-RESET-04", not notified, "no notification for a queue that was reset", sorted(notified))
    if bench.target.has_wire:
        left = bench.target.captured()
        bench.check("BAS-RESET-04", not left, "nothing is transmitted", f"{len(left)} frames")


@case("queue-reset-receive-stops", "BAS-RESET-04", needs=("wire", "queue_reset"))
def queue_reset_receive_stops(bench: Bench) -> None:
    """A receive queue that was reset delivers nothing.

    Buffers wait in receive queue 0; the queue is reset, frames arrive: no buffer is used.
    """
    bench.start()
    waiting = [bench.queues.submit(0, writable=RECEIVE_ROOM, kick=False) for _ in range(4)]
    bench.queues.kick(0)
    bench.target.reset_queue(0)
    before = bench.queues.memory(0)
    for _ in range(3):
        bench.packets.inject(ethernet(packet(), bench.packets.mac, PEER_MAC))
    settle(bench)
    done = used(bench, *waiting)
    bench.check("BAS-RESET-04", not done, "no buffer of the reset receive queue is used", f"{len(done)}")
    bench.check(
        "BAS-RESET-04", bench.queues.memory(0) == before, "rings and buffers are untouched", "changed"
    )


@case("queue-reset-starts-anew", "BAS-RESET-05", "BAS-RESET-08", needs=("admin", "queue_reset"))
def queue_reset_anew(bench: Bench) -> None:
    """A queue that was reset starts from the beginning, with the size and place it is given now.

    The administration queue serves some commands, is reset with one waiting, and is enabled again, with the
    same size and with half and a quarter of it elsewhere in memory: commands are answered, as many as go once
    round the ring, and the one from before is not.
    """
    bench.start()
    bench.admin.use_everything()
    most = min(QUEUE_SIZE, bench.target.queue_max_size(bench.admin.index))
    for size, clause in (
        (most, "BAS-RESET-05"),
        (max(most // 2, 2), "BAS-RESET-08"),
        (max(most // 4, 2), "BAS-RESET-08"),
    ):
        for _ in range(3):
            demand(bench.admin.list_query())
        stale = bench.admin.post(frame(Opcode.LIST_QUERY), HEADER + 8, kick=False)
        bench.target.reset_queue(stale.queue)
        old = bench.queues.content(stale)
        bench.queues.drop(stale.queue)
        bench.queues.enable(stale.queue, size)
        for number in range(size + 3):
            try:
                outcome = str(bench.admin.list_query())
            except (Wedged, RingError) as error:
                outcome = str(error)
            what = f"command {number} is answered, ring of {size} after queue reset"
            bench.require(clause, outcome == OK, what, outcome)
        bench.check(
            "BAS-RESET-05",
            bench.queues.content(stale) == old,
            "the command from before the queue reset is not executed",
            "it is",
        )


@case("queue-reset-transmit-anew", "BAS-RESET-05", "BAS-RESET-08", needs=("wire", "queue_reset"))
def queue_reset_transmit(bench: Bench) -> None:
    """Frames flow through queues that were reset and enabled again with another size.

    Transmit queue 0 and receive queue 0 carry frames, are reset, and are enabled with the same size and with a
    smaller one: frames flow both ways, more of them than the ring has entries.
    """
    bench.start()
    most = min(QUEUE_SIZE, bench.target.queue_max_size(1))
    for size, clause in ((most, "BAS-RESET-05"), (max(most // 4, 8), "BAS-RESET-08")):
        for index in (0, 1):
            bench.target.reset_queue(index)
            bench.queues.drop(index)
            bench.queues.enable(index, size)
        for number in range(size + 3):
            body = packet(b"frame %d" % number)
            out = ethernet(body, PEER_MAC, bench.packets.mac)
            try:
                bench.packets.send(out)
                left: object = bench.packets.first_emitted()
            except (Wedged, RingError) as error:
                left = error
            bench.require(clause, left == [out], f"frame {number} leaves, ring of {size}", left)
        bench.packets.post(count=4)
        wanted = ethernet(packet(b"inward"), bench.packets.mac, PEER_MAC)
        got = [rx.frame for rx in bench.packets.receive(wanted)]
        bench.check(clause, got == [wanted], f"a frame arrives, ring of {size}", f"{len(got)} frames")


@case("admin-queue-index", "INF-44", "INF-45", needs=("admin",))
def admin_queue_index(bench: Bench) -> None:
    """The administration queues have the announced indices, outside the count of the other queues.

    Reads num_queues, admin_queue_index and admin_queue_num, and sends a command on every announced queue.
    """
    bench.start(driver_ok=False)
    first, count = bench.target.admin_queue_index(), bench.target.admin_queue_num()
    others = bench.target.num_queues()
    bench.check("INF-44", first >= others, f"the first index is not among the {others} other queues", first)
    bench.check("INF-45", count >= 1, "at least one administration queue", count)
    there = [index for index in range(first, first + count) if bench.target.queue_max_size(index)]
    bench.check("INF-45", len(there) == count, f"queues {first} to {first + count - 1} exist", there)
    for index in there:
        if index != first:
            bench.queues.enable(index)
    bench.driver_ok()
    for index in there:
        try:
            outcome = str(bench.admin.finish(bench.queues.submit(index, frame(Opcode.LIST_QUERY), 64)))
        except Wedged as error:
            outcome = str(error)
        bench.check("INF-45", outcome == OK, f"a command on queue {index} is answered", outcome)
