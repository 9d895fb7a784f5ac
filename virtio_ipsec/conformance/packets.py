"""Frames as the suite sends and receives them: any header, any bytes; and proof that nothing else came.

"Nothing was sent" and "nothing was received" are proven by a sentinel frame that is seen afterwards on the same
path, so no case waits for silence. Only when the sentinel itself stays away does the target's patience decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING

from virtio_ipsec.conformance.control import max_pairs
from virtio_ipsec.conformance.queues import Buffer
from virtio_ipsec.conformance.verdict import Wedged
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.net_header import NetHdr, NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, has

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

#: The other end of the wire, locally administered.
PEER_MAC = bytes.fromhex("02567650ee01")
#: IEEE 802 local experimental EtherType 1: no IP rule, no tunnel and no SA ever matches a sentinel.
SENTINEL_TYPE = 0x88B5
RECEIVE_ROOM = 2048
RECEIVE_BUFFERS = 16
#: How often a sentinel from the wire is sent before a device counts as wedged. It may lose frames, no clause forbids
#: that; but what it loses beside them proves nothing, so the report tells of each case in which one was lost.
SENTINELS = 4
#: Seconds that queues get after the sentinel has arrived on another one.
SETTLE = 0.02
#: Room for a header and the largest frame: what a receive buffer needs without VIRTIO_NET_F_MRG_RXBUF.
BIG_ROOM = 65600


@dataclass(frozen=True, slots=True)
class RxFrame:
    """One received frame. ``queue`` counts receive queues from 0; ``buffers`` are the used buffers."""

    queue: int
    header: NetHdr
    frame: bytes
    buffers: tuple[Buffer, ...]


class PacketBench:
    """Transmits and receives on the queues of the bench."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._serial = 0
        #: All that were sent from the wire: one that comes late is no frame of the case.
        self._sentinels: list[bytes] = []
        #: Receive buffers that the device still holds, by queue.
        self._held: Counter[int] = Counter()
        #: Where sentinels from the wire go, when not to the device's own address.
        self.sentinel_to = b""

    def forget(self) -> None:
        """After a reset the device holds no buffers."""
        self._held.clear()
        self.sentinel_to = b""

    @property
    def codec(self) -> NetHdrCodec:
        """The header of the negotiated features."""
        return self._bench.dialect.net_hdr(self._bench.features)

    @property
    def mac(self) -> bytes:
        """The device's address; a fixed one when the device has none."""
        config = NET_CONFIG.parse(self._bench.target.read_config(0, NET_CONFIG.fixed_size))
        return (
            config.mac if has(self._bench.target.device_features(), Feature.NET_F_MAC) else bytes(5) + b"\2"
        )

    def queue_pairs(self) -> int:
        """Receive/transmit queue pairs that exist with the negotiated features."""
        return max_pairs(self._bench)

    # -- transmit -----------------------------------------------------------------------------------------

    def send(
        self, frame: bytes, header: NetHdr | bytes | None = None, *, queue: int = 0, split: Sequence[int] = ()
    ) -> Buffer:
        """Queue header and frame on transmitq ``queue`` and wait until the device gives the buffer back.

        ``header`` may be bytes of any kind; ``split`` gives offsets at which descriptors are cut. Raises
        Wedged when the buffer never comes back.
        """
        bench = self._bench
        head = header if isinstance(header, bytes) else self.codec.build(header or NetHdr())
        data = head + frame
        cuts = [0, *split, len(data)]
        pieces = [data[a:b] for a, b in pairwise(cuts)]
        buffer = bench.queues.submit(2 * queue + 1, pieces)
        bench.trace.add("transmit", f"queue {queue}, {len(data)} bytes", (head.hex(), frame.hex()[:400]))

        def done() -> bool:
            bench.queues.collect(2 * queue + 1)
            return buffer.completed

        bench.wait(done, f"transmit buffer of queue {queue} does not come back")
        return buffer

    def transmit(
        self, frame: bytes, header: NetHdr | bytes | None = None, *, queue: int = 0, split: Sequence[int] = ()
    ) -> list[bytes]:
        """Send one frame and return everything that left on the wire because of it, in order."""
        self.send(frame, header, queue=queue, split=split)
        return self.emitted(queue=queue)

    def emitted(self, *, queue: int = 0) -> list[bytes]:
        """Everything that left on the wire until now, proven complete by a sentinel on that queue."""
        bench = self._bench
        sentinel = self._sentinel(PEER_MAC, self.mac)
        self.send(sentinel, queue=queue)
        seen: list[bytes] = []

        def done() -> bool:
            seen.extend(bench.target.captured())
            return sentinel in seen

        bench.wait(done, f"a plain frame sent on queue {queue} does not leave")
        frames = seen[: seen.index(sentinel)]
        for frame in frames:
            bench.trace.add("wire-out", f"{len(frame)} bytes", (frame.hex()[:400],))
        return frames

    def first_emitted(self) -> list[bytes]:
        """What leaves first, without a sentinel: for cases in which no frame is known to leave as it should.

        Empty when nothing leaves within the target's patience.
        """
        seen: list[bytes] = []

        def done() -> bool:
            seen.extend(self._bench.target.captured())
            return bool(seen)

        with suppress(Wedged):
            self._bench.wait(done, "nothing leaves")
        return seen

    def first_used(self, queue: int = 0) -> list[Buffer]:
        """The receive buffers used first, as they are; as :meth:`first_emitted`."""
        seen: list[Buffer] = []

        def done() -> bool:
            seen.extend(self._bench.queues.collect(2 * queue))
            return bool(seen)

        with suppress(Wedged):
            self._bench.wait(done, "nothing is delivered")
        return seen

    def _sentinel(self, destination: bytes, source: bytes) -> bytes:
        self._serial += 1
        body = b"virtio-ipsec sentinel" + self._serial.to_bytes(4) + self._bench.octets(8)
        return destination + source + SENTINEL_TYPE.to_bytes(2) + body.ljust(46, b"\0")

    # -- receive ------------------------------------------------------------------------------------------

    def post(
        self, *, queue: int = 0, count: int = RECEIVE_BUFFERS, room: int | Sequence[int] = RECEIVE_ROOM
    ) -> None:
        """Give a receive queue ``count`` buffers of ``room`` bytes (or of these descriptors), or as many as it
        has place for."""
        pieces = 1 if isinstance(room, int) else len(room)
        count = min(count, self._bench.queues.state(2 * queue).free // pieces)
        for _ in range(count):
            self._bench.queues.submit(2 * queue, writable=room, kick=False)
        self._held[queue] += count
        self._bench.queues.kick(2 * queue)

    def post_all(self, pairs: int = 1) -> None:
        """Give buffers to the receive queues of the first ``pairs`` queue pairs: those that are in use."""
        for queue in range(pairs):
            self.post(queue=queue)

    def top_up(self, queue: int = 0, count: int = RECEIVE_BUFFERS) -> None:
        """Replace the buffers that the device has used, if less than half of ``count`` are left."""
        if self._held[queue] < count // 2:
            self.post(queue=queue, count=count - self._held[queue])

    def receive(self, *frames: bytes) -> list[RxFrame]:
        """Inject frames and return what the device delivered, in order per queue, without the sentinel.

        Buffers must have been posted. Raises Wedged when the sentinel, a plain frame, is not delivered.
        """
        for frame in frames:
            self.inject(frame)
        return self.delivered()

    def inject(self, frame: bytes) -> None:
        """One frame arrives from the wire."""
        self._bench.trace.add("inject", f"{len(frame)} bytes", (frame.hex()[:400],))
        self._bench.target.inject(frame)

    def delivered(self) -> list[RxFrame]:
        """Everything delivered until now, proven complete by a sentinel.

        A device may lose it: DPDK gives up the rest of a burst with a packet for which there is no place. Where
        there is time for it, there is another sentinel then.
        """
        bench = self._bench
        pause = bench.target.patience / SENTINELS
        begin = monotonic()
        first = len(self._sentinels)
        seen: list[RxFrame] = []

        def send() -> None:
            self._sentinels.append(self._sentinel(self.sentinel_to or self.mac, PEER_MAC))
            bench.target.inject(self._sentinels[-1])

        def done() -> bool:
            seen.extend(self.collect())
            if any(rx.frame in self._sentinels[first:] for rx in seen):
                return True
            sent = len(self._sentinels) - first
            if pause and sent < SENTINELS and monotonic() >= begin + pause * sent:
                send()
            return False

        send()
        try:
            bench.wait(done, "an injected plain frame is not delivered")
            if not any(rx.frame == self._sentinels[first] for rx in seen):
                self.note_loss("a plain frame behind it")
            # Queues of real devices work side by side: those without the sentinel get a moment more.
            bench.target.poll(min(SETTLE, bench.target.patience))
            seen.extend(self.collect())
        finally:
            for rx in seen:
                if rx.frame not in self._sentinels:
                    bench.trace.add("receive", f"queue {rx.queue}: {rx.header}", (rx.frame.hex()[:400],))
        return [rx for rx in seen if rx.frame not in self._sentinels]

    def note_loss(self, what: str) -> None:
        """A frame from the wire did not arrive, and was sent once more."""
        self._bench.trace.add("note", f"{what} was lost, and sent once more")
        self._bench.remark("plain frames were lost on the way: what did not arrive may have been lost, too")

    def collect(self) -> list[RxFrame]:
        """Frames completed on all receive queues since the last call. Raises Wedged for a chain of merged
        buffers that ends early."""
        found = []
        queues = self._bench.queues
        for queue in range(self.queue_pairs()):
            buffers = queues.collect(2 * queue) if 2 * queue in queues.enabled else []
            self._held[queue] -= len(buffers)
            while buffers:
                found.append(self._merge(queue, buffers))
        return found

    def _merge(self, queue: int, buffers: list[Buffer]) -> RxFrame:
        size = self.codec.size
        first = buffers[0].content[: buffers[0].written]
        header = self.codec.parse(first.ljust(size, b"\0"))
        count = header.num_buffers if has(self._bench.features, Feature.NET_F_MRG_RXBUF) else 1
        if count > len(buffers):
            raise Wedged(f"num_buffers is {count}, but only {len(buffers)} buffers became used together")
        used = tuple(buffers[: max(count, 1)])
        del buffers[: len(used)]
        data = b"".join(buffer.content[: buffer.written] for buffer in used)
        return RxFrame(queue, header, data[size:], used)
