"""Fuzz ESP and AH: outbound over any packet, inbound over damaged and over authentic but odd packets.

python tests/fuzz/fuzz_esp.py --seconds N [--seed S]
"""

from __future__ import annotations

import random
import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from harness import Target, fuzz

from virtio_ipsec.errors import PacketError
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound, overhead
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, Direction, IpsecMode, IpsecOption, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

SPI = 0x01020304
ALGORITHMS: dict[bool, tuple[dict[str, Any], ...]] = {
    False: (
        {"cipher_algo": AeadAlgo.GCM, "cipher_key": bytes(16)},
        {
            "cipher_algo": CipherAlgo.AES_CBC,
            "cipher_key": bytes(16),
            "auth_algo": MacAlgo.HMAC_SHA_256,
            "auth_key": bytes(32),
        },
        {"auth_algo": MacAlgo.GMAC_AES, "auth_key": bytes(16)},
    ),
    True: (
        {"auth_algo": MacAlgo.HMAC_SHA_256, "auth_key": bytes(32)},
        {"auth_algo": MacAlgo.GMAC_AES, "auth_key": bytes(16)},
    ),
}
TUNNELS = (
    TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
    TunnelIPv6(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
)
TRANSPORT_OPTIONS = 0x43


def rng_octets(count: int) -> bytes:
    return b"\x5a" * count


def sas(choice: int) -> tuple[OutboundSa, InboundSa]:
    """A pair of SAs; two octets of the input choose mode, algorithm, options and outer family."""
    draw = random.Random(choice)
    mode = IpsecMode(draw.randrange(1, 5))
    is_ah = mode in (IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT)
    options = draw.getrandbits(7) & ~(2 if is_ah else 0)
    if mode in (IpsecMode.ESP_TRANSPORT, IpsecMode.AH_TRANSPORT):
        options &= TRANSPORT_OPTIONS
    fields = draw.choice(ALGORITHMS[is_ah]) | {"options": options, "param": draw.choice(TUNNELS)}
    sender, receiver = (
        SaParams.from_wire(IpsecSa(mode=mode, direction=way, spi=SPI, replay_win_sz=64, **fields), V14)
        for way in Direction
    )
    return OutboundSa(sender, rng_octets), InboundSa(receiver)


def extension(draw: random.Random, next_header: int) -> bytes:
    length = draw.randrange(3)
    return bytes((next_header, length)) + draw.randbytes(6 + 8 * length)


def packet(draw: random.Random) -> bytes:
    """A well-formed IP packet, sometimes with options or extension headers."""
    payload = draw.randbytes(draw.randrange(60))
    if draw.random() < 0.5:
        payload = struct.pack("!HHHH", 1, draw.choice((2, 4500)), 8 + len(payload), 0) + payload
    if draw.random() < 0.5:
        options = draw.choice((b"", b"\x94\4\0\0", b"\x83\x0b\4" + bytes(8) + b"\1", draw.randbytes(8)))
        head = struct.pack(
            "!BBHHHBBH8s",
            0x45 + len(options) // 4,
            draw.randrange(256),
            20 + len(options) + len(payload),
            1,
            draw.choice((0, 0, 0, 0x4000, 0x2000, 5)),
            draw.randrange(256),
            draw.choice((17, 17, 6, 4, 41, 59)),
            0,
            bytes(8),
        )
        head += options
        return head[:10] + ip.checksum(head).to_bytes(2) + head[12:] + payload
    kind = 17
    for _ in range(draw.randrange(4)):
        outer = draw.choice((0, 43, 44, 60))
        payload = extension(draw, kind) + payload if outer != 44 else bytes((kind,)) + bytes(7) + payload
        kind = outer
    first = 6 << 28 | draw.getrandbits(28)
    return struct.pack("!IHBB32s", first, len(payload), kind, draw.randrange(256), bytes(32)) + payload


def chosen(draw: random.Random) -> bytes:
    return draw.randbytes(2)


def state(sa: OutboundSa | InboundSa) -> tuple[int, ...]:
    mark = sa.sequence if isinstance(sa, OutboundSa) else sa.window.top
    return mark, sa.packets, sa.bytes


def run_outbound(data: bytes) -> None:
    """What is sealed opens to what was sent; what is refused changes nothing."""
    sender, receiver = sas(int.from_bytes(data[:2]))
    before = state(sender)
    try:
        protected = outbound(sender, data[2:])
    except PacketError:
        assert state(sender) == before
        raise
    assert state(sender)[:2] == (1, 1)
    sent = ip.parse(data[2:]).data
    assert len(protected) - len(sent) <= overhead(sender.params)
    assert find_spi(protected) is not None
    # In transport mode an unfinished route, next header 59 or octets behind UDP may end otherwise.
    opened = inbound(receiver, protected).packet
    if sender.params.is_tunnel and not sender.params.options & IpsecOption.DEC_TTL:
        assert opened == sent


def run_inbound(data: bytes) -> None:
    """Damaged packets: nothing but declared errors, and no trace in the SA."""
    _, receiver = sas(int.from_bytes(data[:2]))
    find_spi(data[2:])
    try:
        inbound(receiver, data[2:])
    except PacketError:
        assert receiver.packets == 0 or receiver.stats.keys() & {"dummy", "congestion"}
        raise
    assert state(receiver)[0] > 0


def seed_inbound(draw: random.Random) -> bytes:
    while True:
        choice = chosen(draw)
        try:
            return choice + outbound(sas(int.from_bytes(choice))[0], packet(draw))
        except PacketError:
            continue


def run_authentic(data: bytes) -> None:
    """Any plaintext under a right ICV: what a faulty or malicious peer may send."""
    sender, receiver = sas(int.from_bytes(data[:2]))
    if sender.params.protocol != ip.ESP:
        return
    suite, sequence = sender.params.suite, sender.next_sequence()
    header, iv = struct.pack("!II", SPI, sequence), sender.iv(sequence)
    high = bytes(4) if sender.params.esn else None
    content = data[2:]
    plaintext = content[: len(content) // suite.alignment * suite.alignment]
    esp = header + iv + sender.esp.seal(header, high, iv, plaintext)
    head = struct.pack("!IHBB32s", 6 << 28, len(esp), 50, 64, bytes(32))
    inbound(receiver, head + esp)


def seed_authentic(draw: random.Random) -> bytes:
    content = packet(draw)
    length = -(len(content) + 2) % 16
    trailer = bytes(range(1, length + 1)) + bytes((length, draw.choice((4, 41, 59, 17, 60, 0))))
    return chosen(draw) + content + trailer


TARGETS = (
    Target("outbound", seed=lambda draw: chosen(draw) + packet(draw), run=run_outbound),
    Target("inbound", seed=seed_inbound, run=run_inbound),
    Target("authentic", seed=seed_authentic, run=run_authentic),
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
