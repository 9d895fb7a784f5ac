"""Ethernet frames of every kind for differential tests: mostly sound, some wrong in one place, some cut short.

Addresses and ports come from small pools, so that rules and selectors made from the same pools match.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from virtio_ipsec.ipsec.ip import ones_sum

MACS = (
    bytes.fromhex("020000000001"),
    bytes.fromhex("020000000002"),
    bytes.fromhex("01005e000001"),
    bytes.fromhex("333300000001"),
    b"\xff" * 6,
)
V4 = tuple(bytes((10, 0, net, host)) for net in (0, 1) for host in (1, 2, 200))
V6 = tuple(b"\xfd" + bytes(13) + bytes((net, host)) for net in (0, 1) for host in (1, 2, 200))
PORTS = (0, 53, 80, 500, 4500, 0x1234, 65535)
TAGS = (0x8100, 0x88A8, 0x9100)
PROTOCOLS = (6, 17, 50, 51, 1, 58, 132, 33, 136, 59, 4)


def rounds(default: int) -> int:
    """How many random frames a test draws: ``FRAMES`` in the environment makes a soak of it."""
    return int(os.environ.get("FRAMES", default))


@dataclass(frozen=True)
class Laid:
    """A frame, and where its builder put the headers."""

    data: bytes
    l3: int
    l4: int
    protocol: int


def addresses(rnd: random.Random, version: int) -> bytes:
    pool = V4 if version == 4 else V6
    return rnd.choice(pool) + rnd.choice(pool)


def pseudo(version: int, addresses: bytes, protocol: int, length: int) -> int:
    return ones_sum(addresses + struct.pack("!II", length, protocol)) if version else 0


def transport(rnd: random.Random, protocol: int, payload: bytes, version: int, addrs: bytes) -> bytes:
    """A transport header with its payload; right checksums in most of TCP and UDP."""
    ports = struct.pack("!HH", rnd.choice(PORTS), rnd.choice(PORTS))
    if protocol == 6:
        words = rnd.choice((5, 5, 5, 8, 15, 4, 0))
        head = ports + rnd.randbytes(8) + bytes((words << 4 | rnd.randrange(16), rnd.randrange(256)))
        head += rnd.randbytes(2) + bytes(4) + rnd.randbytes(max(0, words - 5) * 4)
        at = 16
    elif protocol == 17:
        length = 8 + len(payload)
        stated = length if rnd.random() < 0.9 else rnd.choice((0, 7, 8, length + 1, length - 1, 65535))
        head = ports + struct.pack("!HH", stated & 0xFFFF, 0)
        at = 6
    elif protocol == 50:
        return rnd.randbytes(8) + payload
    elif protocol in (132, 33, 136):
        return ports + rnd.randbytes(8) + payload
    elif protocol in (1, 58):
        return bytes((rnd.choice((0, 8, 133, 135, 136)), rnd.randrange(2))) + rnd.randbytes(6) + payload
    else:
        return payload
    body = bytearray(head + payload)
    if rnd.random() < 0.8:
        seed = pseudo(version, addrs, protocol, len(body))
        value = 0xFFFF ^ ones_sum(struct.pack("!H", seed) + bytes(body))
        body[at : at + 2] = struct.pack("!H", value or (0xFFFF if rnd.random() < 0.9 else 0))
    elif rnd.random() < 0.5:
        body[at : at + 2] = rnd.randbytes(2)
    return bytes(body)


def ipv4(rnd: random.Random, protocol: int, payload: bytes) -> tuple[bytes, int]:
    """An IPv4 packet and the length of its header."""
    options = rnd.randbytes(4 * rnd.choice((0, 0, 0, 0, 1, 5, 10)))
    addrs = addresses(rnd, 4)
    body = transport(rnd, protocol, payload, 4, addrs)
    words = 5 + len(options) // 4
    total = 4 * words + len(body)
    if rnd.random() < 0.05:
        total += rnd.choice((-1, 1, -total, 5, 65535 - total))
    offset = 0 if rnd.random() < 0.85 else rnd.choice((0x2000, 0x4000, 1, 0x2001, 0x8000, 185))
    head = bytearray(
        struct.pack("!BBHHHBBH", 0x40 | words, rnd.randrange(256), total & 0xFFFF, rnd.randrange(65536), offset,
                    64, protocol, 0)
    )  # fmt: skip
    head += addrs + options
    if rnd.random() < 0.95:
        head[10:12] = struct.pack("!H", 0xFFFF ^ ones_sum(bytes(head)))
    if rnd.random() < 0.03:
        head[0] = rnd.choice((0x44, 0x4F, 0x65, 0x40, 0x46))
    return bytes(head) + body, 4 * words


def destination_options(rnd: random.Random) -> bytes:
    options = b""
    for _ in range(rnd.randrange(4)):
        options += rnd.choice(
            (b"\0", b"\x01\x00", b"\x01\x03\0\0\0", b"\xc9\x10" + rnd.choice(V6), b"\xc9\x04" + bytes(4))
        )
    # Up to whole octuplets, or down, through an option.
    size = (len(options) + 2 + rnd.choice((7, 7, 0))) // 8 * 8 - 2
    return options.ljust(max(size, 6), rnd.choice((b"\0", b"\xc9")))[: max(size, 6)]


def extension(rnd: random.Random, kind: int) -> bytes:
    """An extension header without its next header."""
    if kind == 44:
        offset = rnd.choice((0, 0, 0, 1, 8, 9, 1480, 6))
        return b"\0" + struct.pack("!H", offset) + rnd.randbytes(4)
    if kind == 60:
        options = destination_options(rnd)
    elif kind == 43:
        routing_type = rnd.choice((2, 2, 0, 4))
        options = (
            bytes((routing_type, rnd.randrange(2))) + bytes(4) + rnd.choice((rnd.choice(V6), b"", bytes(32)))
        )
    else:
        options = rnd.randbytes(6 + 8 * rnd.choice((0, 0, 1, 3)))
    length = (len(options) + 2) // 8 - 1
    if rnd.random() < 0.03:
        length = rnd.choice((255, length + 1))
    return bytes((length,)) + options


def ipv6(rnd: random.Random, protocol: int, payload: bytes) -> tuple[bytes, int]:
    """An IPv6 packet and the offset of its transport header."""
    addrs = addresses(rnd, 6)
    kinds = [
        rnd.choice((0, 43, 44, 60, 60, 135, 139, 140)) for _ in range(rnd.choice((0, 0, 0, 0, 1, 1, 2, 4)))
    ]
    body = b""
    for index, kind in enumerate(kinds):
        following = kinds[index + 1] if index + 1 < len(kinds) else protocol
        body += bytes((following,)) + extension(rnd, kind)
    l4 = 40 + len(body)
    body += transport(rnd, protocol, payload, 6, addrs)
    length = len(body)
    if rnd.random() < 0.05:
        length += rnd.choice((-1, 1, -length, 5, 65535 - length))
    first = 0x60 if rnd.random() < 0.98 else 0x40
    head = bytes((first, 0, 0, 0)) + struct.pack("!HBB", length & 0xFFFF, kinds[0] if kinds else protocol, 64)
    return head + addrs + body, l4


def laid(rnd: random.Random, sizes: tuple[int, ...] = (0, 1, 2, 7, 8, 31, 64, 200, 1400)) -> Laid:
    """A frame as its builder wants it, and where its headers are."""
    payload = rnd.randbytes(rnd.choice(sizes))
    protocol = rnd.choice((6, 6, 6, 17, 17, 17, *PROTOCOLS))
    l2 = rnd.choice(MACS) + rnd.choice(MACS)
    for _ in range(rnd.choice((0, 0, 0, 0, 0, 1, 1, 2, 3, 30))):
        l2 += struct.pack("!HH", rnd.choice(TAGS), rnd.choice((0, 1, 5, 4095, 0x2005)))
    kind = rnd.random()
    if kind < 0.45:
        packet, header = ipv4(rnd, protocol, payload)
        ethertype = 0x0800
    elif kind < 0.95:
        packet, header = ipv6(rnd, protocol, payload)
        ethertype = 0x86DD
    else:
        packet, header, ethertype = payload, 0, rnd.choice((0x0806, 0, 0xFFFF, 0x0800, 0x86DD, 0x8100))
    l3 = len(l2) + 2
    padding = b"" if rnd.random() < 0.8 else rnd.randbytes(rnd.choice((1, 6, 46)))
    return Laid(l2 + struct.pack("!H", ethertype) + packet + padding, l3, l3 + header, protocol)


def spoilt(rnd: random.Random, frame: bytes) -> bytes:
    """The frame, now and then cut short or with one bit turned."""
    chance = rnd.random()
    if chance < 0.1:
        return frame[: rnd.randrange(len(frame) + 1)]
    if chance < 0.2 and frame:
        data = bytearray(frame)
        data[rnd.randrange(min(len(data), 120))] ^= 1 << rnd.randrange(8)
        return bytes(data)
    return frame


def frames(seed: int, count: int) -> Iterator[bytes]:
    rnd = random.Random(seed)
    for _ in range(count):
        yield spoilt(rnd, laid(rnd).data)
