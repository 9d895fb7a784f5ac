"""An operator's port with its packet path in C against the same one in Python: every frame, verdict and counter.

Both have the same configuration, keys and bases of IVs, and get the same frames: from a guest that sends all kinds of
things, and from a wire with a peer behind it (an operator's port of its own) and somebody who interferes.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

import pytest
from operator_ports import (
    GATE,
    GUEST,
    HOST,
    HOST6,
    OUTER,
    OUTER6,
    SECOND,
    SERVICES,
    flows_text,
    port,
    port_text,
    sas_text,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.device.status import Status
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.transport.datapath import NativePath, Surroundings
from virtio_ipsec.transport.exchange import Exchange
from virtio_ipsec.transport.operator_sas import PortSas
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, mask

FEATURES = mask(
    Feature.F_VERSION_1, Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_USO, Feature.NET_F_MRG_RXBUF, Feature.NET_F_GUEST_CSUM,
)  # fmt: skip
OFFER = IMPLEMENTED & ~mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)
HEADER = V14.net_hdr(FEATURES)
QUEUE, BUFFER, BASE = 256, 4096, 0x10000
CBC = 'algorithm = "aes-cbc+hmac-sha2-256-128"\nauth_key = "' + "55" * 32 + '"'
NOBODY = ".".join("0000")
SECOND_NET = {"a": "10.0.3.0/24", "b": "10.0.4.0/24"}


class Box:
    """A device and its operator, all in Python."""

    def __init__(self, config: str, engine: str = "python") -> None:
        self.now = 5 * SECOND
        fast = fast_path(engine, bytes)
        self.device = Device(DeviceConfig(features=OFFER, mtu=1500), bytes, fast)
        self.operator = OperatorPort(parse(config), PortSas(fast, bytes), bytes)
        for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
            self.device.status |= bit
        self.device.write_driver_features(FEATURES)
        self.device.status |= Status.FEATURES_OK
        self.device.status |= Status.DRIVER_OK
        self.exchange = Exchange(self.device, self.operator, lambda: self.now)
        self.wire: list[bytes] = []
        self.guest: list[bytes] = []

    def send(self, buffers: list[bytes]) -> None:
        for buffer in buffers:
            self.wire += self.exchange.transmit(buffer)
            self._kept()

    def arrive(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.guest += [received.buffer for received in self.exchange.receive(frame)]
            self._kept()

    def tick(self) -> None:
        self.exchange.tick()
        self._kept()

    def changed(self) -> None:
        """The operator has changed something by hand."""

    def counters(self) -> dict[str, int]:
        return dict(Counter(self.device.counters()) + Counter(self.operator.counters()))

    def take(self) -> tuple[list[bytes], list[tuple[int, bytes]]]:
        """What has left since the last time, and what the guest has got: header flags and frame."""
        wire, self.wire = self.wire, []
        guest, self.guest = self.guest, []
        return wire, [(HEADER.parse(each).flags, each[HEADER.size :]) for each in guest]

    def _kept(self) -> None:
        to_wire, to_guest = self.exchange.take()
        self.wire += to_wire
        self.guest += [received.buffer for received in to_guest]


class FastBox(Box):
    """The same with rings and packet path in C."""

    native: str | None = None

    def __init__(self, config: str, draw: random.Random) -> None:
        super().__init__(config, "c")
        self.draw = draw
        assert self.device.fast is not None
        around = Surroundings(self.exchange, self, threading.RLock())  # type: ignore[arg-type]
        self.path = NativePath(around, self.device.fast)
        self.worker = self.path.new_worker()
        self.path.enter(self.worker)
        self.memory = GuestMemory.anonymous(16 << 20, BASE)
        self.allocator = Allocator(BASE, 16 << 20)
        layouts = [allocate_layout(self.allocator, QUEUE, FEATURES) for _ in range(2)]
        self.receiving, self.sending = [
            driver_queue(self.memory, layout, FEATURES, self.allocator) for layout in layouts
        ]
        self.queues = [FastDeviceQueue(self.memory, layout, FEATURES) for layout in layouts]
        self.path.set_queues(0, *self.queues)
        self.changed()

    # The uplink.

    def send(self, frames: list[bytes]) -> None:  # both the guest's and the uplink's: told apart by who calls
        if frames and self.busy:
            self.wire += frames
        else:
            self.queue(frames)

    busy = False

    def queue(self, buffers: list[bytes]) -> None:
        self._offer()
        for buffer in buffers:
            segment = Segment(self.allocator.alloc(len(buffer)), len(buffer))
            self.memory.write(segment.addr, buffer)
            self.sending.add([segment], (), segment)
        self.sending.publish()
        self._busy(lambda: self.worker.transmit(0, QUEUE))
        for used in self.sending.poll():
            self.allocator.free(used.token.addr)  # type: ignore[attr-defined]

    def arrive(self, frames: list[bytes]) -> None:
        self._offer()
        self._busy(lambda: self.worker.receive(frames))

    def tick(self) -> None:
        self.exchange.tick()
        to_wire, to_guest = self.exchange.take()
        self.wire += to_wire
        self._offer()
        self._busy(lambda: self.path.deliver(to_guest))

    def changed(self) -> None:
        self.path.publish()
        self.told = self.operator.guest_mac

    def _busy(self, work: Any) -> None:
        """C at work; what it finds to be news is published now or later."""
        self.busy = True
        work()
        self.busy = False
        assert not any(queue.faulty for queue in self.queues)
        data, missing = b"", 0
        for used in self.receiving.poll():
            segment: Segment = used.token  # type: ignore[assignment]
            piece = self.memory.read(segment.addr, used.written)
            self.allocator.free(segment.addr)
            missing = missing or HEADER.parse(piece).num_buffers
            data, missing = data + piece, missing - 1
            if not missing:
                self.guest.append(data)
                data = b""
        if self.draw.random() < 0.7 or self.operator.guest_mac != self.told:
            self.changed()

    def _offer(self) -> None:
        for _ in range(self.receiving.free):
            segment = Segment(self.allocator.alloc(BUFFER), BUFFER)
            self.receiving.add((), [segment], segment)
        self.receiving.publish()

    def counters(self) -> dict[str, int]:
        found = Counter(super().counters()) + self.path.counts()
        return {name: count for name, count in found.items() if not name.endswith("_punted")}


class Traffic:
    """What is sent. ``draw`` decides. Guests of tunnels use their ports as gateways, others another router."""

    def __init__(self, draw: random.Random, is_tunnel: bool) -> None:
        self.draw = draw
        self.to = GATE if is_tunnel else {"a": "02:00:00:00:0d:01", "b": "02:00:00:00:0d:02"}
        self.sequence = 0

    def addresses(self, side: str, version: int) -> tuple[str, str]:
        draw = self.draw
        other = "b" if side == "a" else "a"
        near, far = (HOST, HOST6)[version == 6][side], (HOST, HOST6)[version == 6][other]
        kind = draw.random()
        if version == 4 and kind < 0.2:
            return ("10.0.3.5", "10.0.4.5") if side == "a" else ("10.0.4.5", "10.0.3.5")
        if kind < 0.3:
            return near, "203.0.113.9" if version == 4 else "2001:db8:9::9"
        if kind < 0.35:
            return near, (OUTER, OUTER6)[version == 6][other]
        return near, far

    def body(self, size: int) -> bytes:
        self.sequence += 1
        return (b"%08d" % self.sequence * (size // 8 + 1))[:size]

    def size(self) -> int:
        edges = range(1330, 1480)
        return self.draw.choice(edges) if self.draw.random() < 0.3 else self.draw.randrange(1200)

    def packet(self, side: str) -> Packet:
        draw = self.draw
        version = draw.choice((4, 4, 6))
        source, target = self.addresses(side, version)
        ttl = draw.choice((64,) * 9 + (1,))
        inner: Packet
        if version == 4:
            inner = IP(
                src=source, dst=target, ttl=ttl, flags=draw.choice(("DF", "DF", 0)), tos=draw.randrange(256)
            )
        else:
            inner = IPv6(src=source, dst=target, hlim=ttl, tc=draw.randrange(256))
            if draw.random() < 0.1:
                inner /= IPv6ExtHdrDestOpt()
        kind = draw.random()
        data = Raw(self.body(self.size()))
        if kind < 0.5:
            return inner / UDP(sport=1000, dport=draw.choice((2000, 53, 4500, 500))) / data
        if kind < 0.8:
            flags = draw.choice(("A", "PA", "S", "SA", "F"))
            return (
                inner / TCP(sport=1, dport=draw.choice((80, 23)), flags=flags, options=[("MSS", 1460)]) / data
            )
        if version == 4:
            return inner / ICMP(type=draw.choice((8, 0, 3, 11))) / data
        return inner / ICMPv6EchoRequest(data=bytes(data))

    def cut(self, packet: Packet) -> list[Packet]:
        """Sometimes in fragments, not all of which come."""
        draw = self.draw
        if IP in packet and not packet[IP].flags.DF and draw.random() < 0.15:
            pieces = fragment(packet, fragsize=draw.choice((64, 512, 1000)))
            return [piece for piece in pieces if draw.random() < 0.95]
        if IPv6 in packet and draw.random() < 0.1:
            body = bytes(packet[IPv6].payload)
            half = len(body) // 16 * 8
            nh, ident = packet[IPv6].nh, draw.randrange(1 << 32)
            head = IPv6(src=packet[IPv6].src, dst=packet[IPv6].dst)
            parts = [(body[:half], 0, 1), (body[half:], half // 8, 0)]
            return [head / IPv6ExtHdrFragment(nh=nh, offset=at, m=m, id=ident) / Raw(b) for b, at, m in parts]
        return [packet]

    def guest(self, side: str) -> list[bytes]:
        """Frames of a guest."""
        draw = self.draw
        kind = draw.random()
        source = GUEST[side] if draw.random() < 0.997 else "02:00:00:00:0c:99"
        to = draw.choice((self.to[side],) * 8 + (GATE[side], "02:00:00:00:0d:01", "ff:ff:ff:ff:ff:ff"))
        if kind < 0.04:
            target = draw.choice((OUTER[side], "10.0.1.77"))
            return [bytes(Ether(src=source, dst=to) / ARP(psrc=HOST[side], pdst=target, hwsrc=source))]
        if kind < 0.08:
            ask = ICMPv6ND_NS(tgt=OUTER6[side]) / ICMPv6NDOptSrcLLAddr(lladdr=source)
            return [
                bytes(Ether(src=source, dst=to) / IPv6(src=HOST6[side], dst=OUTER6[side], hlim=255) / ask)
            ]
        if kind < 0.1:
            dhcp = IP(src=NOBODY, dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(bytes(300))
            return [bytes(Ether(src=source, dst="ff:ff:ff:ff:ff:ff") / dhcp)]
        link: Packet = Ether(src=source, dst=to)
        if draw.random() < 0.08:
            link /= Dot1Q(vlan=draw.choice((0, 0, 7)), prio=3)
        frames = [bytes(link / piece) for piece in self.cut(self.packet(side))]
        return [self.spoilt(frame) if draw.random() < 0.04 else frame for frame in frames]

    def spoilt(self, frame: bytes) -> bytes:
        made = bytearray(frame)
        if self.draw.random() < 0.3:
            return bytes(made[: self.draw.randrange(len(made))])
        at = self.draw.randrange(12, len(made))
        made[at] ^= 1 << self.draw.randrange(8)
        return bytes(made)

    def buffer(self, frame: bytes) -> bytes:
        """The frame as a driver queues it: sometimes with a checksum that is still to be done, or to be cut."""
        draw = self.draw
        fields: dict[str, int] = {}
        packet = Ether(frame) if len(frame) > 60 else None
        if packet is not None and packet.haslayer(TCP) and draw.random() < 0.4 and len(frame) > 700:
            at = len(frame) - len(bytes(packet[TCP]))
            if draw.random() < 0.5:
                kind = 1 if IP in packet else 4
                fields = {"flags": 1, "gso_type": kind, "gso_size": 500, "csum_start": at, "csum_offset": 16}
            else:
                offset = draw.choice((16, 16, 16, 4, 0))
                fields = {"flags": 1, "csum_start": draw.choice((at, at, at, 26)), "csum_offset": offset}
        elif packet is not None and packet.haslayer(UDP) and draw.random() < 0.3:
            at = len(frame) - len(bytes(packet[UDP]))
            fields = {"flags": 1, "csum_start": at, "csum_offset": 6}
        return HEADER.build(NetHdr(**fields)) + frame

    def stranger(self, seen: list[bytes]) -> list[bytes]:
        """What somebody on the wire makes up, or of what passed."""
        draw = self.draw
        kind = draw.random()
        link = Ether(src="02:00:00:00:0b:fe", dst=draw.choice((GATE["a"], GUEST["a"], "ff:ff:ff:ff:ff:ff")))
        if kind < 0.3 and seen:
            return [draw.choice(seen[-50:])]
        if kind < 0.5 and seen:
            return [self.spoilt(draw.choice(seen[-50:]))]
        if kind < 0.6:
            target = draw.choice((OUTER["a"], HOST["a"]))
            return [bytes(link / ARP(psrc=OUTER["b"], pdst=target, hwsrc="02:00:00:00:0b:fe"))]
        if kind < 0.7 and seen:
            quoted = draw.choice(seen[-50:])
            if quoted[12:14] == b"\x08\x00":
                error = ICMP(type=3, code=4, nexthopmtu=draw.choice((1300, 1400, 900))) / Raw(quoted[14:80])
                return [bytes(link / IP(src="192.0.2.77", dst=OUTER["a"]) / error)]
            error6 = ICMPv6PacketTooBig(mtu=draw.choice((1280, 1400))) / Raw(quoted[14:100])
            return [bytes(link / IPv6(src="2001:db8::77", dst=OUTER6["a"]) / error6)]
        if kind < 0.8 and seen:
            frame = Ether(draw.choice(seen[-50:]))
            if IP in frame:
                frame[IP].flags = 0
                return [bytes(link / piece) for piece in fragment(frame[IP], fragsize=400)]
            return [
                bytes(Ether(src=frame.src, dst=frame.dst) / Dot1Q(vlan=draw.choice((0, 5))) / frame.payload)
            ]
        if kind < 0.85 and seen:
            frame = Ether(draw.choice(seen[-50:]))
            return [
                bytes(Ether(src=frame.src, dst=frame.dst) / Dot1Q(vlan=draw.choice((0, 5))) / frame.payload)
            ]
        return [bytes(link / piece) for piece in self.cut(self.packet("b"))]


def pair(
    mode: str = "esp-tunnel", *, within: str = "", out: str = "", outer: Any = OUTER, a: str = "", b: str = "",
    underlay: str = "", second: str = CBC,
) -> tuple[str, str]:  # fmt: skip
    """Two configurations: of the port in question and of its peer. The second flow's SA is one that only Python has."""
    made = []
    for side, more in (("a", a), ("b", b)):
        other = "b" if side == "a" else "a"
        made.append(
            port_text(side, port=more, underlay=underlay)
            + sas_text(side, mode, outer=outer, out=out, within=within)
            + sas_text(
                side, id=2, spis=(0x2001, 0x2002), suite=second, salt="",
                selectors=f'{{ local = "{SECOND_NET[side]}", remote = "{SECOND_NET[other]}" }}',
            )
            + flows_text(side)
            + f'[[flow]]\nname = "second"\nmatch = {{ src = "{SECOND_NET[side]}", dst = "{SECOND_NET[other]}" }}\n'
            'action = "protect"\nsa = 2\n'
            '[[flow]]\nname = "telnet"\nmatch = { protocol = "tcp", dport = 23 }\naction = "drop"\npriority = 200\n'
            + SERVICES
        )  # fmt: skip
    return made[0], made[1]


LIMITED = 'lifetime = { packets_hard = 60 }\noptions = ["esn", "copy-dscp", "dec-ttl", "copy-df", "ecn"]'
CASES: dict[str, tuple[str, str]] = {
    "tunnel": pair(),
    "tunnel over ipv6": pair(outer=OUTER6, out='options = ["ecn", "dec-ttl"]', within='options = ["ecn"]'),
    "configured": pair(
        a=f'guest_mac = "{GUEST["a"]}"\nmss_clamp = true', underlay=f'next_hop = "{GATE["b"]}"'
    ),
    "in udp": pair(out="udp = {}", within="udp = {}"),
    "limits": pair(out=LIMITED, within='options = ["esn", "ecn"]', a="mtu = 1400"),
    "transport": pair("esp-transport"),
    "transport in udp": pair("esp-transport", out="udp = {}", within="udp = {}", underlay="mtu = 1400"),
}


def same(found: list[tuple[list[bytes], list[tuple[int, bytes]]]], step: int) -> None:
    """Both have sent the same frames in the same order, and their guests have got the same."""
    (wire, guest), (fast_wire, fast_guest) = found
    for one, two in zip(wire, fast_wire, strict=False):
        assert one == two, step
    for mine, theirs in zip(guest, fast_guest, strict=False):
        assert mine == theirs, step
    assert (len(wire), len(guest)) == (len(fast_wire), len(fast_guest)), step


def run(name: str, seed: int, steps: int) -> Counter[str]:
    """What C has counted when both have done the same."""
    draw = random.Random(f"{name} {seed}")
    traffic = Traffic(draw, "transport" not in name)
    config, others = CASES[name]
    slow, fast, peer = Box(config), FastBox(config, random.Random(1)), port(others)
    seen: list[bytes] = []
    for step in range(steps):
        now = slow.now + draw.choice((0, 1000, SECOND // 3, 2 * SECOND))
        slow.now = fast.now = now
        frames = [frame for _ in range(draw.choice((1, 3, 8))) for frame in traffic.guest("a")]
        buffers = [traffic.buffer(frame) for frame in frames]
        if draw.random() < 0.1:
            buffers.append(b"short")
        slow.send(buffers)
        fast.queue(buffers)
        arriving: list[bytes] = []
        found = [box.take() for box in (slow, fast)]
        same(found, step)
        wire = found[0][0]
        for frame in wire:
            arriving += peer.from_wire(frame, now).to_wire
        seen += wire
        for _ in range(draw.choice((0, 2, 6))):
            for frame in traffic.guest("b"):
                arriving += peer.from_guest(frame, now).to_wire
        arriving += peer.tick(now).to_wire
        seen += arriving
        for _ in range(draw.choice((0, 1, 4))):
            for frame in traffic.stranger(seen):
                arriving.insert(draw.randrange(len(arriving) + 1), frame)
        slow.arrive(arriving)
        fast.arrive(arriving)
        for box in (slow, fast):
            box.tick()
        found = [box.take() for box in (slow, fast)]
        same(found, step)
        for frame in found[0][0]:
            for each in peer.from_wire(frame, now).to_wire:
                for box in (slow, fast):
                    box.arrive([each])
        found = [box.take() for box in (slow, fast)]
        same(found, step)
        assert fast.counters() == slow.counters(), step
        for one, two in zip(slow.operator.sas, fast.operator.sas, strict=True):
            assert one.engine.state() == two.engine.state(), step  # type: ignore[attr-defined]
    return fast.path.counts()


@pytest.mark.parametrize("name", CASES)
def test_both_do_the_same(name: str) -> None:
    counts = run(name, 0, 12)
    assert min(counts["tx_protected"], counts["rx_opened"]) > 0, counts
