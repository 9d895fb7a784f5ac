"""Packets and SAs for the tests, built without the code under test."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, Direction, IpsecMode, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

A4, B4 = IPv4Address("10.1.0.1"), IPv4Address("10.2.0.2")
A6, B6 = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:2::2")
TUNNEL4 = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"))
TUNNEL6 = TunnelIPv6(IPv6Address("2001:db8:a::1"), IPv6Address("2001:db8:b::2"))
SPI = 0x1234ABCD

GCM: dict[str, Any] = {"cipher_algo": AeadAlgo.GCM, "cipher_key": bytes(range(16)), "salt": b"salt"}
CBC_SHA256: dict[str, Any] = {
    "cipher_algo": CipherAlgo.AES_CBC,
    "cipher_key": bytes(range(32)),
    "auth_algo": MacAlgo.HMAC_SHA_256,
    "auth_key": bytes(range(100, 132)),
}
AH_SHA256: dict[str, Any] = {"auth_algo": MacAlgo.HMAC_SHA_256, "auth_key": bytes(range(32))}
AH_GMAC: dict[str, Any] = {"auth_algo": MacAlgo.GMAC_AES, "auth_key": bytes(range(16)), "salt": b"gmac"}
AH_SHA1: dict[str, Any] = {"auth_algo": MacAlgo.HMAC_SHA1, "auth_key": bytes(range(20))}

ESP_MODES = (IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT)
AH_MODES = (IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT)


def sum16(data: bytes | bytearray) -> int:
    """RFC 1071 word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(
    payload: bytes = b"",
    protocol: int = 17,
    *,
    options: bytes = b"",
    tos: int = 0,
    ttl: int = 64,
    flags_offset: int = 0,
    ident: int = 7,
    src: IPv4Address = A4,
    dst: IPv4Address = B4,
) -> bytes:
    length = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        tos,
        length + len(payload),
        ident,
        flags_offset,
        ttl,
        protocol,
        0,
        src.packed,
        dst.packed,
    )
    head += options
    checksum = 0xFFFF ^ sum16(head)
    return head[:10] + checksum.to_bytes(2) + head[12:] + payload


def ipv6(
    payload: bytes = b"",
    next_header: int = 17,
    *,
    traffic_class: int = 0,
    flow_label: int = 0,
    hop_limit: int = 64,
    src: IPv6Address = A6,
    dst: IPv6Address = B6,
) -> bytes:
    first = 6 << 28 | traffic_class << 20 | flow_label
    return (
        struct.pack("!IHBB16s16s", first, len(payload), next_header, hop_limit, src.packed, dst.packed)
        + payload
    )


def udp(payload: bytes, sport: int = 1111, dport: int = 2222) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def options6(next_header: int, data: bytes) -> bytes:
    """Hop-by-hop or destination options header; ``data`` makes it a multiple of 8."""
    assert (len(data) + 2) % 8 == 0
    return bytes((next_header, (len(data) + 2) // 8 - 1)) + data


PADN6 = b"\x01\x04\0\0\0\0"


def routing6(next_header: int, addresses: list[bytes], left: int, kind: int = 0) -> bytes:
    return bytes((next_header, 2 * len(addresses), kind, left, 0, 0, 0, 0)) + b"".join(addresses)


def fragment6(next_header: int, offset: int = 0, more: bool = False) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 99)


def wire_sa(mode: int, direction: int, **fields: Any) -> IpsecSa:
    base: dict[str, Any] = {"spi": SPI, "replay_win_sz": 64, "param": TUNNEL4}
    base |= AH_SHA256 if mode in AH_MODES else GCM
    return IpsecSa(mode=mode, direction=direction, **(base | fields))


def params(mode: int, direction: int, **fields: Any) -> SaParams:
    """Checked parameters; a given ``esn`` (first sequence number) means the RFC dialect."""
    return SaParams.from_wire(wire_sa(mode, direction, **fields), RFC_2025_01 if "esn" in fields else V14)


def counting_rng() -> Callable[[int], bytes]:
    """Not random: every call gives other octets, the same in every run."""
    calls = 0

    def rng(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return (calls * 0x0101010101010101).to_bytes(16)[-count:].rjust(count, b"\x5a")

    return rng


def out_sa(mode: int, **fields: Any) -> OutboundSa:
    return OutboundSa(params(mode, Direction.OUTBOUND, **fields), counting_rng())


def in_sa(mode: int, **fields: Any) -> InboundSa:
    return InboundSa(params(mode, Direction.INBOUND, **fields))


def pair(mode: int, **fields: Any) -> tuple[OutboundSa, InboundSa]:
    return out_sa(mode, **fields), in_sa(mode, **fields)
