"""What becomes used, when, and in which order."""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import switch
from virtio_ipsec.conformance.packets import PEER_MAC, SENTINELS
from virtio_ipsec.conformance.queues import Buffer
from virtio_ipsec.conformance.verdict import Wedged
from virtio_ipsec.errors import RingError
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import CtrlRx, Feature, GroupType, has

ROOM = 256
BUFFERS = 12


def _used(bench: Bench, queue: int, count: int) -> tuple[list[Buffer], str]:
    """``count`` used buffers of a queue as they come, and what was wrong with the ring if they do not."""
    came: list[Buffer] = []

    def done() -> bool:
        came.extend(bench.queues.collect(queue))
        return len(came) >= count

    try:
        bench.wait(done, f"{count} used buffers on queue {queue}")
    except (RingError, Wedged) as error:
        return came, str(error)
    return came, ""


@case("ring-in-order", "BAS-RSVD-09", needs=("wire",))
def ring_in_order(bench: Bench) -> None:
    """With VIRTIO_F_IN_ORDER buffers are used in the order in which they became available.

    Frames are put on a transmit queue before the device is told of any, and frames arrive for a receive queue:
    split and, where it is offered, packed. Buffers that become visible together are in order by definition.
    """
    for packed in (False, True):
        more = (Feature.F_RING_PACKED,) if packed else ()
        if packed and not bench.target.device_features() >> Feature.F_RING_PACKED & 1:
            continue
        bench.start(want=(Feature.F_IN_ORDER, *more), without=() if packed else (Feature.F_RING_PACKED,))
        form = "packed" if packed else "split"
        head = bench.packets.codec.build(NetHdr())
        sent = [
            bench.queues.submit(
                1,
                head
                + frames.ethernet(frames.packet(bench.octets(40)), PEER_MAC, bench.packets.mac)
                + bytes(number),
                kick=False,
            )
            for number in range(BUFFERS)
        ]
        bench.queues.kick(1)
        came, wrong = _used(bench, 1, BUFFERS)
        bench.check("BAS-RSVD-09", came == sent, f"{form}: transmit buffers come back in their order", wrong)
        posted = [bench.queues.submit(0, writable=2048, kick=False) for _ in range(BUFFERS)]
        bench.queues.kick(0)
        for _ in range(BUFFERS):
            frame = frames.ethernet(frames.packet(bench.octets(40)), bench.packets.mac, PEER_MAC)
            bench.packets.inject(frame)
        came, _ = _used(bench, 0, BUFFERS)
        # A frame may be lost; the buffers of those that are not are the first ones.
        seen = f"number {[posted.index(each) for each in came]} of those posted"
        good = bool(came) and came == posted[: len(came)]
        bench.check("BAS-RSVD-09", good, f"{form}: receive buffers are used in their order", seen)


@case("rx-merged-at-once", "NET-RX-DEV-04", needs=("wire",))
def rx_merged_at_once(bench: Bench) -> None:
    """All buffers of a packet that is spread over several become used together.

    Packets that need three and more buffers arrive; whenever the driver sees the first of them used, it sees as
    many as num_buffers says.
    """
    bench.start(want=(Feature.NET_F_MRG_RXBUF,))
    for payload in (500, 700, 900):
        for _ in range(BUFFERS - bench.queues.state(0).outstanding):
            bench.queues.submit(0, writable=ROOM, kick=False)
        bench.queues.kick(0)
        frame = frames.ethernet(frames.packet(bench.octets(payload)), bench.packets.mac, PEER_MAC)
        bench.packets.inject(frame)
        came, wrong = _used(bench, 0, 1)
        for _ in range(0 if came else SENTINELS - 1):
            bench.packets.note_loss("it")
            bench.packets.inject(frame)
            came, wrong = _used(bench, 0, 1)
            if came:
                break
        count = bench.packets.codec.parse(came[0].content).num_buffers if came else 0
        together = not wrong and len(came) >= count > 1
        bench.require(
            "NET-RX-DEV-04",
            together,
            f"a packet of {payload} octets is there whole",
            f"{len(came)} of {count}",
        )


@case("used-buffer-notifications", "INF-63")
def used_buffer_notifications(bench: Bench) -> None:
    """A driver that has not said it wants none is told of used buffers.

    A frame is sent, one arrives if the test bed has a wire, a control command and an administration command are
    carried out where the device has such queues, in split and, where it is offered, packed rings: each time there is a
    used buffer notification of that queue.
    """
    offered = bench.target.device_features()
    for packed in (False, True):
        if packed and not has(offered, Feature.F_RING_PACKED):
            continue
        more = (Feature.F_RING_PACKED,) if packed else ()
        bench.start(want=more, without=() if packed else (Feature.F_RING_PACKED,))
        form = "packed" if packed else "split"
        for name, index, act in _ways(bench):
            bench.target.interrupts()
            act()
            told = _is_told(bench, index)
            bench.check("INF-63", told, f"{form}: a notification of the {name} queue", "none")


def _ways(bench: Bench) -> list[tuple[str, int, Callable[[], object]]]:
    """Name and index of a queue of each kind, and what makes a buffer used in it."""
    packets = bench.packets
    sent = frames.ethernet(frames.packet(bench.octets(40)), PEER_MAC, packets.mac)
    ways: list[tuple[str, int, Callable[[], object]]] = [("transmit", 1, lambda: packets.send(sent))]
    if bench.target.has_wire:
        packets.post()
        ways.append(("receive", 0, packets.delivered))
    if has(bench.features, Feature.NET_F_CTRL_VQ) and has(bench.features, Feature.NET_F_CTRL_RX):
        index = 2 * packets.queue_pairs()
        ways.append(("control", index, lambda: switch(bench, CtrlRx.PROMISC, on=True)))
    if has(bench.features, Feature.F_ADMIN_VQ):
        admin = bench.admin
        ways.append(("administration", admin.index, lambda: admin.list_query(GroupType.SELF)))
    return ways


def _is_told(bench: Bench, index: int) -> bool:
    """Whether a notification of this queue comes."""

    def done() -> bool:
        return index in bench.target.interrupts()

    try:
        bench.wait(done, f"a notification of queue {index}")
    except Wedged:
        return False
    return True
