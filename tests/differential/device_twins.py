"""Two devices, one with the C packet path and one without, given the same guest and the same wire.

Everything that can be seen of them is compared after each step: frames that leave, bytes in guest memory, interrupts,
counters of the device and of each SA.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plane
from fuzz_packets import clear_frame, ip_packet, length, protected_frame

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.device.fast_rings import FastRings
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.device.frame import view
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.packed import packed_parts
from virtio_ipsec.ring.queue import allocate_layout, driver_queue, free_layout
from virtio_ipsec.ring.split import split_parts
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.net_control import (
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, FfAction, Opcode, ResourceType, has, mask

OUTBOUND, INBOUND = int(ResourceType.NET_IPSEC_OUTB_SA), int(ResourceType.NET_IPSEC_INB_SA)
PAIRS = 2
QUEUE_SIZE = 32
RINGS = mask(Feature.F_RING_PACKED, Feature.F_INDIRECT_DESC, Feature.F_EVENT_IDX, Feature.F_IN_ORDER)
#: What C counts besides, for its own sake.
OWN_COUNTS = ("tx_punted", "rx_punted")


def fixed_bytes(count: int) -> bytes:
    """The same "random" bytes for both, whatever the order in which they are drawn."""
    return bytes(range(0x40, 0x40 + count % 64)) + bytes(count - count % 64)


class Guest:
    """A driver's side of one device, through rings; all addresses follow from what was done."""

    def __init__(self, device: Device, features: int) -> None:
        self.device = device
        self.link = Loopback(device, memory_size=4 << 20)
        self.features = features
        self.queues: dict[int, DriverQueue] = {}
        self._layouts: dict[int, QueueLayout] = {}
        #: Segments of what was offered on each queue and has not come back.
        self._offered: dict[int, list[list[Segment]]] = {}
        self.start()

    def start(self) -> None:
        """From reset to a device at work, without objects."""
        self.device.negotiate(self.features)
        for index in range(2 * PAIRS):
            self.enable(index)
        self.admin(Opcode.LIST_USE, self.admin(Opcode.LIST_QUERY)[8:])
        for cap in (0x800, 0x801, 0x802, 0x803, 0x804):
            value = self.admin(Opcode.DEVICE_CAP_GET, struct.pack("<H6x", cap))[8:]
            self.admin(Opcode.DRIVER_CAP_SET, struct.pack("<H6x", cap) + value)
        if self.device.context.has(Feature.NET_F_MQ):
            self.control(4, 0, PAIRS.to_bytes(2, "little"))

    def restart(self) -> None:
        """Device reset, and up again."""
        self.link.write_status(0)
        for index in range(2 * PAIRS):
            self._forget(index)
        self.start()

    def enable(self, index: int) -> None:
        layout = self._layouts[index] = allocate_layout(self.link.allocator, QUEUE_SIZE, self.features)
        parts = packed_parts if has(self.features, Feature.F_RING_PACKED) else split_parts
        for _, address, _, size in parts(layout):
            self.link.memory.write(address, bytes(size))
        self.queues[index] = driver_queue(self.link.memory, layout, self.features, self.link.allocator)
        self.link.enable_queue(index, layout)

    def reset_queue(self, index: int) -> None:
        """What was on the queue is the driver's again."""
        self.link.reset_queue(index)
        self._forget(index)

    def _forget(self, index: int) -> None:
        if self.queues.pop(index, None) is not None:
            free_layout(self.link.allocator, self._layouts.pop(index))
        for segments in self._offered.pop(index, []):
            for segment in segments:
                self.link.allocator.free(segment.addr)

    def admin(self, opcode: int, data: bytes = b"") -> bytes:
        whole = struct.pack("<HH12xQ", opcode, 0, 0) + data
        return self.device.admin(whole + bytes(-len(whole) % 8), 8192)

    def control(self, ctrl_class: int, command: int, data: bytes = b"") -> bytes:
        return self.device.control(bytes((ctrl_class, command)) + data, 1)

    def object(self, opcode: int, kind: int, ident: int, data: bytes = b"") -> bytes:
        header = struct.pack("<HxxI", kind, ident)
        return self.admin(
            opcode, header + (b"" if opcode == Opcode.RESOURCE_OBJ_DESTROY else bytes(8)) + data
        )

    def post(self, index: int, sizes: list[int]) -> None:
        """Offer one buffer of these segments on a receive queue, if there is room."""
        queue = self.queues.get(index)
        if queue is not None and queue.free >= len(sizes):
            segments = [Segment(self.link.allocator.alloc(size), size) for size in sizes]
            queue.add((), segments, segments)
            self._offered.setdefault(index, []).append(segments)
            queue.publish()

    def send(self, pair: int, buffer: bytes, cuts: list[int], indirect: bool) -> None:
        """Queue one transmit buffer, cut at these places; :meth:`kick` tells the device."""
        queue = self.queues.get(2 * pair + 1)
        pieces = [buffer[a:b] for a, b in zip([0, *cuts], [*cuts, len(buffer)], strict=True)]
        pieces = [piece for piece in pieces if piece]
        if not pieces or queue is None or queue.free < len(pieces):
            return
        segments = []
        for piece in pieces:
            segments.append(Segment(self.link.allocator.alloc(len(piece)), len(piece)))
            self.link.memory.write(segments[-1].addr, piece)
        queue.add(segments, (), segments, indirect=indirect)
        self._offered.setdefault(2 * pair + 1, []).append(segments)

    def kick(self, pair: int) -> None:
        queue = self.queues.get(2 * pair + 1)
        if queue is not None:
            queue.publish()
        self.link.kick(2 * pair + 1)

    def receive_batch(self, frames: list[bytes]) -> None:
        rings = self.link.rings
        if not isinstance(rings, FastRings) or rings._worker is None:
            for frame in frames:
                self.link.inject(frame)
        elif self.device.is_operating:
            rings._publish(rings._worker.port)
            rings._worker.receive(frames)
            rings._check_queues()

    def seen(self) -> list[Any]:
        """What came of the last step: wire frames, interrupts, used buffers with their bytes."""
        found: list[Any] = [self.link.captured(), sorted(self.link.interrupts()), int(self.device.status)]
        for index, queue in self.queues.items():
            for used in queue.poll():
                segments: list[Segment] = used.token  # type: ignore[assignment]
                data = b"".join(self.link.memory.read(s.addr, s.length) for s in segments)
                found.append((index, used.written, data[: used.written] if not index & 1 else b""))
                self._offered[index] = [other for other in self._offered[index] if other is not segments]
                for segment in segments:
                    self.link.allocator.free(segment.addr)
        counts = {k: v for k, v in self.device.counters().items() if k not in OWN_COUNTS}
        sas = [
            (kind, ident, dict(self.device.sa_counters(kind, ident)))
            for kind, table in ((OUTBOUND, "outbound"), (INBOUND, "inbound"))
            for ident in sorted(getattr(self.device.context, table))
        ]
        return [*found, counts, sas]


class Twins:
    """The two, and a hand for both."""

    def __init__(self, dialect: Dialect, features: int, **config: Any) -> None:
        made = DeviceConfig(
            dialect=dialect, mac=plane.MAC, max_queue_pairs=PAIRS, queue_size=QUEUE_SIZE, **config
        )
        features &= made.offered_features
        self.dialect = dialect
        self.python = Guest(Device(made, fixed_bytes), features)
        self.fast = Guest(Device(made, fixed_bytes, FastPath(fixed_bytes)), features)

    def do(self, step: Callable[[Guest], object], what: str = "") -> list[Any]:
        """The same step for both; what was seen, which is the same."""
        answers = [step(guest) for guest in (self.python, self.fast)]
        assert answers[0] == answers[1], what
        python, fast = self.python.seen(), self.fast.seen()
        assert fast == python, what
        return python

    def punted(self) -> tuple[int, int]:
        counts = self.fast.device.counters()
        return counts.get("tx_punted", 0), counts.get("rx_punted", 0)


def sa_objects(dialect: Dialect) -> dict[tuple[int, int], IpsecSa]:
    """SAs of both engines: (type, id) to object. Inbound SA 2 opens what ``protected_frame`` makes."""
    gcm = {"salt": plane.SALT, "cipher_algo": 1, "cipher_key": plane.KEY}
    cbc = {"salt": bytes(4), "cipher_algo": 3, "cipher_key": bytes(16), "auth_algo": 4, "auth_key": bytes(32)}
    ah = {"salt": bytes(4), "auth_algo": 4, "auth_key": bytes(32)}
    lifetimes = {"options": 64} if dialect.has_lifetime else {}

    def sa(mode: int, direction: int, spi: int, **fields: Any) -> IpsecSa:
        return IpsecSa(**({"mode": mode, "direction": direction, "spi": spi, "replay_win_sz": 64} | fields))

    return {
        (OUTBOUND, 0): sa(1, 1, plane.SPI, param=plane.TUNNEL6, **gcm),
        (OUTBOUND, 1): sa(2, 1, plane.SPI, param=plane.TUNNEL4, **gcm),
        (OUTBOUND, 2): sa(1, 1, plane.SPI, param=plane.TUNNEL4, **(gcm | {"cipher_key": bytes(32), "options": 3})),
        (OUTBOUND, 3): sa(1, 1, 77, param=plane.TUNNEL4, **cbc),
        (OUTBOUND, 4): sa(3, 1, 78, param=plane.TUNNEL4, **ah),
        (OUTBOUND, 5): sa(
            1, 1, 79, param=plane.TUNNEL4, **(gcm | lifetimes),
            life=Lifetime(packets_soft_limit=3, packets_hard_limit=9) if lifetimes else Lifetime(),
        ),
        (INBOUND, 2): sa(1, 2, plane.SPI, **(gcm | {"replay_win_sz": 0, "options": 2})),
        (INBOUND, 3): sa(1, 2, 77, **cbc),
        (INBOUND, 4): sa(3, 2, 78, **ah),
        # What these send comes back to their like.
        (OUTBOUND, 6): sa(1, 1, 80, param=plane.TUNNEL4, **(gcm | {"cipher_key": bytes(24), "options": 1})),
        (INBOUND, 6): sa(1, 2, 80, **(gcm | {"cipher_key": bytes(24), "options": 1, "replay_win_sz": 4096})),
        (OUTBOUND, 7): sa(2, 1, 81, **gcm),
        (INBOUND, 7): sa(2, 2, 81, **gcm),
        (OUTBOUND, 8): sa(1, 1, 82, param=plane.TUNNEL6, **(gcm | {"options": 60})),
        (INBOUND, 8): sa(1, 2, 82, **(gcm | {"options": 60, "replay_win_sz": 32})),
    }  # fmt: skip


def ready(dialect: Dialect, features: int, rng: random.Random, **config: Any) -> Twins:
    """Twins at work."""
    twins = Twins(dialect, features, **config)
    make_ready(twins, rng)
    return twins


def make_ready(twins: Twins, rng: random.Random) -> None:
    """SAs, rules and receive buffers."""
    dialect = twins.dialect
    for (kind, ident), sa in sa_objects(dialect).items():
        data = dialect.sa.build(sa)
        twins.do(
            lambda g, k=kind, i=ident, d=data: g.object(Opcode.RESOURCE_OBJ_CREATE, k, i, d), f"SA {ident}"
        )
    _rules(twins)
    for _ in range(QUEUE_SIZE):
        sizes = [rng.choice((64, 600, 2048)) for _ in range(rng.choice((1, 1, 2)))]
        for index in range(0, 2 * PAIRS, 2):
            twins.do(lambda g, i=index, s=sizes: g.post(i, s))


def _rules(twins: Twins) -> None:
    """ESP of both versions is opened and looked at again; a few more."""
    dialect = twins.dialect

    def create(kind: ResourceType, ident: int, value: object) -> None:
        data = dialect.objects[kind].build(value)
        twins.do(
            lambda g: g.object(Opcode.RESOURCE_OBJ_CREATE, int(kind), ident, data), f"{kind.name} {ident}"
        )

    create(ResourceType.NET_FF_GROUP, 0, FfGroup(7))
    eth = Selector(1, 0, bytes(12) + b"\xff\xff")
    ip4 = Selector(2, 0, bytes(9) + b"\xff" + bytes(10))
    ip6 = Selector(3, 0, bytes(6) + b"\xff" + bytes(33))
    udp = Selector(5, 0, bytes(2) + b"\xff\xff" + bytes(4))
    create(ResourceType.NET_FF_CLASSIFIER, 0, FfClassifier((eth, ip4)))
    create(ResourceType.NET_FF_CLASSIFIER, 1, FfClassifier((eth, ip6)))
    create(ResourceType.NET_FF_CLASSIFIER, 2, FfClassifier((eth, ip4, udp)))

    def keys(version: int, protocol: int, port: int | None = None) -> bytes:
        ether = bytes(12) + (b"\x08\0" if version == 4 else b"\x86\xdd")
        head = (
            bytes(9) + bytes((protocol,)) + bytes(10)
            if version == 4
            else bytes(6) + bytes((protocol,)) + bytes(33)
        )
        return ether + head + (b"" if port is None else bytes(2) + port.to_bytes(2, "big") + bytes(4))

    rules = [
        FfRule(0, 0, 10, FfAction.IPSEC_RECIRCULATE, 0, keys(4, 50)),
        FfRule(0, 1, 11, FfAction.IPSEC_RECIRCULATE, 0, keys(6, 50)),
        FfRule(0, 2, 12, FfAction.IPSEC, 0, keys(4, 17, 4500)),
        FfRule(0, 0, 13, FfAction.DIRECT_RX_VQ, 2, keys(4, 6)),
        FfRule(0, 0, 14, FfAction.IPSEC, 0, keys(4, 51)),
    ]
    for ident, rule in enumerate(rules):
        create(ResourceType.NET_FF_RULE, ident, rule)


def large_frame(rng: random.Random) -> bytes:
    """TCP or UDP with as much data as one segmentation may get."""
    data = rng.randbytes(64) * rng.randrange(100, 1016)
    transport = b"\0\1\x11\x94" + length(data, 8) + b"\0\0" + data
    protocol = rng.choice((6, 17))
    if protocol == 6:
        transport = b"\0\1\x11\x94" + rng.randbytes(8) + b"\x50\xdb" + bytes(6) + data
    ethertype, packet = ip_packet(rng, protocol, transport)
    return plane.PEER + plane.MAC + ethertype + packet


def transmit_buffer(dialect: Dialect, guest: Guest, rng: random.Random) -> bytes:
    """A header that mostly makes sense, and a frame."""
    frame = large_frame(rng) if rng.random() < 0.1 else clear_frame(rng)
    headers = view(frame)
    tcp = headers.protocol == 6
    fitting = (1 if headers.version == 4 else 4) if tcp else 5
    secure = int(dialect.flag_security)
    gso = rng.choice((0, 0, 0, fitting, rng.choice((1, 3, 4, 5, 0x21, 0x81))))
    hdr: dict[str, int] = {
        "flags": rng.choice((0, secure, secure, secure | 1, 1)) | (1 if gso else 0),
        "gso_type": gso,
        "gso_size": rng.choice((1, 8, 100, 536, 1448, 9000, 65535)) if gso else rng.choice((0, 0, 7)),
        "csum_start": rng.choice((headers.l4,) * 5 + (rng.randrange(120),)) & 0xFFFF,
        "csum_offset": rng.choice((16 if tcp else 6,) * 5 + (rng.randrange(30),)),
    }
    context = guest.device.context
    if context.has(Feature.NET_F_IPSEC):
        hdr |= {"resource_id": rng.randrange(10), "resource_type": rng.choice((0x203,) * 6 + (0x204, 0))}
    if context.has(Feature.NET_F_OUT_NET_HEADER):
        hdr["outer_nh_offset"] = rng.choice((0, 14, 14, 14, 18))
    buffer = context.header.build(NetHdr(**hdr)) + frame
    return buffer[: rng.randrange(len(buffer))] if rng.random() < 0.03 else buffer


class Story:
    """A random sequence of steps."""

    def __init__(self, seed: int, dialect: Dialect, features: int, **config: Any) -> None:
        self.rng = random.Random(seed)
        self.title = f"{dialect.name}, features {features:#x}, {config}"
        self.twins = ready(dialect, features, self.rng, **config)
        self.dialect = dialect
        #: Bytes of the segments of a receive buffer.
        self.room = self.rng.choice(((12, 40, 200, 1600, 70000), (64, 70, 90), (2048,)))
        #: Frames that left, to be sent back or damaged.
        self.wire: list[bytes] = []

    def run(self, steps: int) -> None:
        choices = (
            (self.send,) * 6
            + (self.receive,) * 8
            + (self.post,) * 4
            + (self.receive_batch,) * 2
            + (self.modify, self.recreate, self.control)
        )
        for number in range(steps):
            step = self.rng.choice(choices)
            if self.rng.random() < 0.01:
                step = self.rng.choice((self.queue_reset,) * 4 + (self.device_reset,))
            seen = step(f"step {number}: {step.__name__}")
            if seen is not None:
                self.wire = (self.wire + seen[0])[-64:]

    def send(self, what: str) -> list[Any]:
        pair = self.rng.randrange(PAIRS)
        for _ in range(self.rng.choice((1, 1, 3, 8))):
            data = transmit_buffer(self.dialect, self.twins.python, self.rng)
            cuts = sorted({self.rng.randrange(len(data) + 1) for _ in range(self.rng.choice((0, 1, 3)))})
            indirect = (
                self.twins.python.device.context.has(Feature.F_INDIRECT_DESC) and self.rng.random() < 0.3
            )
            for guest in (self.twins.python, self.twins.fast):
                guest.send(pair, data, cuts, indirect)
        return self.twins.do(lambda g: g.kick(pair), what)

    def receive(self, what: str) -> list[Any]:
        frame = self.rng.choice((clear_frame, protected_frame, protected_frame, self.returned))(self.rng)
        return self.twins.do(lambda g: g.link.inject(frame), what)

    def returned(self, rng: random.Random) -> bytes:
        """What left, as it was or damaged; once more, perhaps."""
        if not self.wire:
            return clear_frame(rng)
        frame = bytearray(plane.MAC + plane.PEER + rng.choice(self.wire)[12:])
        if len(frame) > 14 and rng.random() < 0.4:
            frame[rng.randrange(14, len(frame))] ^= 1 << rng.randrange(8)
        return bytes(frame[: rng.randrange(len(frame))] if rng.random() < 0.1 else frame)

    def post(self, what: str) -> list[Any]:
        index = 2 * self.rng.randrange(PAIRS)
        sizes = [self.rng.choice(self.room) for _ in range(self.rng.choice((1, 1, 3)))]
        return self.twins.do(lambda g: g.post(index, sizes), what)

    def modify(self, what: str) -> list[Any] | None:
        objects = sa_objects(self.dialect)
        kind, ident = self.rng.choice(sorted(objects))
        if not self.dialect.supports_modify_query:
            return None
        sa = objects[kind, ident]
        if self.rng.random() < 0.5:
            sa = replace(sa, replay_win_sz=self.rng.choice((1, 32, 64, 100, 1024, 4096)))
        if self.dialect.has_lifetime and self.rng.random() < 0.5:
            limits = [self.rng.choice((0, 5, 1000, 100000)) for _ in range(4)]
            sa = replace(sa, options=sa.options | 64, life=Lifetime(*limits))
        data = self.dialect.sa.build(sa)
        return self.twins.do(lambda g: g.object(Opcode.RESOURCE_OBJ_MODIFY, kind, ident, data), what)

    def queue_reset(self, what: str) -> list[Any]:
        """A queue is taken away; sometimes packets come and go before it is there again."""
        index = self.rng.randrange(2 * PAIRS)
        seen = self.twins.do(lambda g: g.reset_queue(index), what)
        for _ in range(self.rng.choice((0, 5))):
            self.rng.choice((self.send, self.receive))(f"{what}, without queue {index}")
        self.twins.do(lambda g: g.enable(index), what)
        if not index & 1:
            for _ in range(QUEUE_SIZE // 2):
                self.twins.do(lambda g: g.post(index, [2048]), what)
        return seen

    def device_reset(self, what: str) -> list[Any]:
        seen = self.twins.do(Guest.restart, what)
        make_ready(self.twins, self.rng)
        return seen

    def receive_batch(self, what: str) -> list[Any]:
        """Many frames in one call of the C path. None needs two passes, which a batch may overtake."""
        frames = [
            self.rng.choice((clear_frame, self.returned))(self.rng)
            for _ in range(self.rng.choice((2, 9, 80)))
        ]
        return self.twins.do(lambda g: g.receive_batch(frames), what)

    def recreate(self, what: str) -> list[Any]:
        objects = sa_objects(self.dialect)
        context = self.twins.python.device.context
        gone = [
            key
            for key in sorted(objects)
            if key[1] not in (context.outbound, context.inbound)[key[0] == INBOUND]
        ]
        kind, ident = self.rng.choice(gone or sorted(objects))
        data = self.dialect.sa.build(objects[kind, ident])
        live = not gone
        opcode = Opcode.RESOURCE_OBJ_DESTROY if live else Opcode.RESOURCE_OBJ_CREATE
        return self.twins.do(lambda g: g.object(opcode, kind, ident, b"" if live else data), what)

    def control(self, what: str) -> list[Any]:
        ctrl_class, command, data = self.rng.choice(
            [
                (0, 0, b"\0"), (0, 0, b"\1"), (0, 1, b"\1"), (0, 3, b"\1"), (0, 3, b"\0"),
                (2, 0, b"\5\0"), (2, 1, b"\5\0"),
                (4, 0, b"\1\0"), (4, 0, b"\2\0"),
                (5, 0, struct.pack("<Q", 0)), (5, 0, struct.pack("<Q", 2)),
                (0, 1, b"\0"), (0, 2, b"\1"), (0, 2, b"\0"), (0, 4, b"\1"), (0, 4, b"\0"), (0, 5, b"\0"),
                (1, 0, MAC_TABLES.build(MacTables((plane.PEER, plane.MAC), (b"\1" + bytes(5),)))),
                (1, 0, MAC_TABLES.build(MacTables((), ()))), (1, 1, plane.PEER), (1, 1, plane.MAC),
                (4, 1, RSS_CONFIG.build(RssConfig(self.rng.randrange(512), 0, (0, 1, 1, 0), 2, bytes(range(40))))),
                (4, 1, RSS_CONFIG.build(RssConfig(0x3F, 1, (1,), 1, self.rng.randbytes(40)))),
                (4, 2, HASH_CONFIG.build(HashConfig(self.rng.randrange(512), self.rng.randbytes(40)))),
            ]
        )  # fmt: skip
        return self.twins.do(lambda g: g.control(ctrl_class, command, data), what)


#: Features that a story may be without.
OPTIONAL = (
    Feature.NET_F_RSS, Feature.NET_F_MRG_RXBUF, Feature.NET_F_HASH_REPORT, Feature.NET_F_OUT_NET_HEADER,
    Feature.NET_F_IPSEC, Feature.F_INDIRECT_DESC, Feature.F_EVENT_IDX, Feature.F_IN_ORDER, Feature.F_RING_PACKED,
)  # fmt: skip


def random_story(seed: int) -> Story:
    """A story whose dialect, features and settings are drawn, too."""
    rng = random.Random(f"story {seed}")
    missing = mask(*(f for f in OPTIONAL if rng.random() < (0.1 if f is Feature.NET_F_IPSEC else 0.35)))
    if has(missing, Feature.NET_F_RSS):
        missing |= mask(Feature.NET_F_RSS_CONTEXT)
    return Story(
        seed,
        DIALECTS[rng.choice(sorted(DIALECTS))],
        IMPLEMENTED & ~missing,
        mtu=rng.choice((1500, 1500, 9000)),
        drop_error_packets=rng.random() < 0.3,
    )
