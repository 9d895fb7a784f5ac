"""Fuzz the packet paths: net header + frame into transmit, frames from the wire into receive.

Nothing may raise. Further: a buffer marked SECURITY never lets a frame out that is not IPsec, nor any buffer
megabytes; what receive delivers is never longer than what came, and a packet in error comes as it was.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

from harness import Target, fuzz

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))

import plane

from virtio_ipsec.device.frame import view
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import DataPlaneContext, Steering
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, FfAction, IpsecMode, IpsecOption, mask

FEATURES = plane.ALL | mask(Feature.NET_F_HOST_UDP_TUNNEL_GSO, Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM)
L2 = (plane.MAC + plane.PEER, plane.MAC + plane.PEER + b"\x81\0\0\x05")
MOST = 1 << 21


def length(data: bytes, more: int = 0) -> bytes:
    """What a 16-bit length field can say of it."""
    return (len(data) + more & 0xFFFF).to_bytes(2, "big")


def ip_packet(rng: random.Random, protocol: int, body: bytes) -> tuple[bytes, bytes]:
    """(EtherType, packet) of either version, sometimes with options or extension headers."""
    if rng.random() < 0.5:
        options = bytes((1,)) * rng.choice((0, 0, 4, 40))
        fragment = rng.choice((0, 0, 0, 0x4000, 0x2000, 3))
        head = bytes((0x45 + len(options) // 4, 0)) + length(options + body, 20) + b"\0\1"
        head += fragment.to_bytes(2, "big") + bytes((64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)) + options
        checksum = (
            0xFFFF - sum(int.from_bytes(head[i : i + 2], "big") for i in range(0, len(head), 2)) % 0xFFFF
        )
        return b"\x08\0", head[:10] + checksum.to_bytes(2, "big") + head[12:] + body
    for kind in rng.choices((0, 43, 44, 60), k=rng.choice((0, 0, 1, 3))):
        body = bytes((protocol, 0)) + rng.choice((bytes(6), rng.randbytes(6))) + body
        protocol = kind
    if rng.random() < 0.02:  # 2 KB of options each, as long as they fit
        for _ in range(rng.randrange(32)):
            body = bytes((protocol, 255)) + bytes(2046) + body
            protocol = 60
    head = b"\x60\0\0\0" + length(body) + bytes((protocol, 64)) + bytes(16) + b"\1" * 16
    return b"\x86\xdd", head + body


def clear_frame(rng: random.Random) -> bytes:
    """A frame with UDP, TCP, ESP or VXLAN in IP."""
    data = bytes(rng.choice((0, 1, 20, 300, 3000)) if rng.random() < 0.95 else rng.randrange(65536))
    udp = b"\0\1\x11\x94" + length(data, 8) + b"\0\0" + data
    tcp = bytes(12) + b"\x50\x18" + bytes(6) + data
    choice = rng.randrange(4)
    if choice == 3:
        _, inner = ip_packet(rng, 6, tcp)
        vxlan = bytes(8) + bytes(12) + b"\x08\0" + inner
        udp = b"\0\1\x12\xb5" + length(vxlan, 8) + b"\0\0" + vxlan
    ethertype, packet = ip_packet(rng, (17, 6, 50, 17)[choice], (udp, tcp, bytes(40), udp)[choice])
    tags = b"\x81\0\0\x05" * (rng.randrange(20000) if rng.random() < 0.005 else 0)
    return rng.choice(L2) + tags + ethertype + packet


def protected_frame(rng: random.Random) -> bytes:
    """ESP that an SA of :func:`device` opens, sometimes nested, sometimes in UDP."""
    _, packet = ip_packet(rng, 17, b"\0\1\0\2\0\x0c\0\0data")
    ethertype = b""
    for _ in range(rng.choice((1, 1, 2, 3))):
        esp = plane.seal(packet, 4 if packet[0] >> 4 == 4 else 41, rng.randrange(1, 1 << 32))
        protocol = 50
        if rng.random() < 0.2:
            esp = b"\x11\x94\x11\x94" + length(esp, 8) + b"\0\0" + esp
            protocol = 17
        ethertype, packet = ip_packet(rng, protocol, esp)
    return rng.choice(L2) + ethertype + packet


def device(dialect: Dialect) -> DataPlaneContext:
    ctx = plane.make_context(FEATURES & dialect.known_features, dialect)
    plane.outbound_sa(ctx, 0, param=plane.TUNNEL6)
    plane.outbound_sa(ctx, 1, mode=IpsecMode.ESP_TRANSPORT)
    plane.inbound_sa(ctx, 2, replay_win_sz=0, options=int(IpsecOption.UDP_ENCAP))
    ctx.steering = Steering(queue_pairs=4, hash_types=511, key=bytes(40))
    if not dialect.sa_lookup_without_rule:
        for kind, network in ((plane.eth(), plane.ipv4()), (plane.eth(0x86DD), plane.ipv6())):
            plane.add_rule(ctx.filters, FfAction.IPSEC_RECIRCULATE, kind, network, plane.esp())
        plane.add_rule(ctx.filters, FfAction.IPSEC, plane.eth(), plane.ipv4(17), plane.udp(4500))
        plane.add_rule(ctx.filters, FfAction.IPSEC, plane.eth(0x8100))
    return ctx


CONTEXTS = {dialect.name: device(dialect) for dialect in (V14, RFC_2025_01)}


def buffer(dialect: Dialect) -> Callable[[random.Random], bytes]:
    """Makes transmit buffers for this dialect."""
    ctx = CONTEXTS[dialect.name]

    def make(rng: random.Random) -> bytes:
        frame = clear_frame(rng)
        headers = view(frame)
        tcp = headers.protocol == 6
        fitting = (1 if headers.version == 4 else 4) if tcp else rng.choice((3, 5))
        hdr = {
            "flags": rng.choice((0, 1, 1, 9, ctx.dialect.flag_security, ctx.dialect.flag_security | 1)),
            "gso_type": rng.choice(
                (0, 0, fitting, fitting, fitting, rng.choice((1, 3, 4, 5, 0x21, 0x41, 0x81)))
            ),
            "gso_size": rng.choice((0, 1, 8, 100, 1448, 65535)),
            "csum_start": rng.choice((headers.l4, headers.l4, 84, rng.randrange(120))) & 0xFFFF,
            "csum_offset": rng.choice((16 if tcp else 6, 16 if tcp else 6, rng.randrange(30))),
        }
        if ctx.has(Feature.NET_F_IPSEC):
            hdr |= {"resource_id": rng.randrange(3), "resource_type": rng.choice((0x203, 0x203, 0x204, 0))}
        if ctx.has(Feature.NET_F_OUT_NET_HEADER):
            hdr |= {
                "outer_nh_offset": rng.choice((0, 0, 14, 18)),
                "outer_th_offset": rng.choice((34, 54)),
                "inner_nh_offset": rng.choice((64, 84)),
            }
        return ctx.header.build(NetHdr(**{k: int(v) for k, v in hdr.items()})) + frame

    return make


def esp_of(frame: bytes, at: int) -> bytes:
    """The ESP packet in ``frame``, found by hand behind tags and extension headers; IP begins at ``at`` if not 0."""
    if not at:
        at = 14
        while frame[at - 2 : at] in (b"\x81\0", b"\x88\xa8", b"\x91\0"):
            at += 4
    if frame[at] >> 4 == 4:
        protocol, at = frame[at + 9], at + 4 * (frame[at] & 15)
    else:
        protocol, at = frame[at + 6], at + 40
        while protocol in (0, 43, 44, 60):
            protocol, at = frame[at], at + (8 if protocol == 44 else 8 * (frame[at + 1] + 1))
    assert protocol == 50, "plaintext under SECURITY"
    return frame[at:]


def transmit(dialect: Dialect) -> Callable[[bytes], None]:
    """Runs one transmit buffer; what leaves under SECURITY is opened by an AES-GCM of another make."""
    ctx = CONTEXTS[dialect.name]

    def run(data: bytes) -> None:
        frames = Transmitter(ctx).transmit(data, 1)
        assert sum(map(len, frames)) < max(MOST, 2 * len(data))
        if data and data[0] & ctx.dialect.flag_security:
            at = ctx.header.parse(data).outer_nh_offset if frames else 0
            for frame in frames:
                assert plane.unseal(esp_of(frame, at))[0] == plane.SPI

    return run


def receive(dialect: Dialect) -> Callable[[bytes], None]:
    """Runs one wire frame."""
    ctx = CONTEXTS[dialect.name]
    size = ctx.header.size

    def run(data: bytes) -> None:
        for received in Receiver(ctx).receive(data):
            hdr = ctx.header.parse(received.buffer)
            frame = received.buffer[size:]
            assert hdr.num_buffers == 1
            assert 0 <= received.queue < 4
            assert len(frame) <= len(data), "longer than what came"
            if not hdr.flags & ctx.dialect.flag_security:
                assert frame == data, "changed without IPsec"
                assert hdr.resource_type == hdr.resource_id == 0
            elif hdr.flags & ctx.dialect.flag_security_err and not hdr.resource_type:
                assert frame == data, "changed without an SA"

    return run


def wire_frame(rng: random.Random) -> bytes:
    return rng.choice((clear_frame, protected_frame, protected_frame))(rng)


TARGETS = [
    *(Target(f"transmit-{d.name}", buffer(d), transmit(d), declared=()) for d in (V14, RFC_2025_01)),
    *(Target(f"receive-{d.name}", wire_frame, receive(d), declared=()) for d in (V14, RFC_2025_01)),
]

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
