"""A packet path to test, and an ESP of our own to judge it by: AES-GCM from `cryptography`, framing by hand."""

from __future__ import annotations

import hmac
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.l2 import Ether

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import DataPlaneContext, FilterObjects, RxFilter
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import V14, Dialect
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import AeadAlgo, Direction, Feature, IpsecMode, SelectorType, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

KEY = bytes(range(16))
SALT = b"salt"
SPI = 0x1234ABCD
MAC = bytes.fromhex("020000000001")
PEER = bytes.fromhex("020000000002")
ETHER = Ether(dst=MAC, src=PEER)
TUNNEL4 = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"))
TUNNEL6 = TunnelIPv6(IPv6Address("2001:db8:a::1"), IPv6Address("2001:db8:b::2"))

ALL = mask(
    Feature.F_VERSION_1,
    Feature.F_ADMIN_VQ,
    Feature.NET_F_CSUM,
    Feature.NET_F_GUEST_CSUM,
    Feature.NET_F_MAC,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_ECN,
    Feature.NET_F_HOST_UFO,
    Feature.NET_F_HOST_USO,
    Feature.NET_F_MRG_RXBUF,
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_MQ,
    Feature.NET_F_HASH_REPORT,
    Feature.NET_F_OUT_NET_HEADER,
    Feature.NET_F_IPSEC,
)


def random_bytes(count: int) -> bytes:
    """Fixed bytes in the place of random ones."""
    return bytes(range(0x40, 0x40 + count))


def make_context(features: int = ALL, dialect: Dialect = V14, **config: Any) -> DataPlaneContext:
    """A context as the control plane makes it for these negotiated features."""
    return DataPlaneContext(
        config=DeviceConfig(dialect=dialect, **config),
        rng=random_bytes,
        dialect=dialect,
        features=features,
        header=dialect.net_hdr(features),
        rx_filter=RxFilter(mac=MAC, promisc=True),
        guest_offloads=features,
    )


def params(mode: int, direction: Direction, dialect: Dialect, **fields: Any) -> SaParams:
    """AES-128-GCM unless the fields say otherwise."""
    wire: dict[str, Any] = {
        "spi": SPI,
        "salt": SALT,
        "cipher_algo": AeadAlgo.GCM,
        "cipher_key": KEY,
        "param": TUNNEL4,
        "replay_win_sz": 64,
    }
    sa = IpsecSa(mode=mode, direction=int(direction), **(wire | fields))
    return SaParams.from_wire(sa, dialect, direction)


def outbound_sa(
    ctx: DataPlaneContext, ident: int = 1, mode: int = IpsecMode.ESP_TUNNEL, **fields: Any
) -> OutboundSa:
    """Create outbound SA ``ident``."""
    sa = OutboundSa(params(mode, Direction.OUTBOUND, ctx.dialect, **fields), ctx.rng)
    ctx.outbound[ident] = sa
    return sa


def inbound_sa(
    ctx: DataPlaneContext, ident: int = 1, mode: int = IpsecMode.ESP_TUNNEL, **fields: Any
) -> InboundSa:
    """Create inbound SA ``ident``."""
    sa = InboundSa(params(mode, Direction.INBOUND, ctx.dialect, **fields))
    ctx.inbound[ident] = sa
    ctx.inbound_by_spi[sa.params.protocol, sa.params.spi] = (ident, sa)
    return sa


def seal(inner: bytes, next_header: int, sequence: int = 1, spi: int = SPI, key: bytes = KEY) -> bytes:
    """ESP (RFC 4106, RFC 4303) around ``inner``."""
    iv = sequence.to_bytes(8, "big")
    pad = -(len(inner) + 2) % 4
    plain = inner + bytes(range(1, pad + 1)) + bytes((pad, next_header))
    head = struct.pack("!II", spi, sequence)
    return head + iv + AESGCM(key).encrypt(SALT + iv, plain, head)


def unseal(esp: bytes, key: bytes = KEY) -> tuple[int, int, bytes, int]:
    """(SPI, sequence number, payload, next header) of an ESP packet; raises InvalidTag."""
    spi, sequence = struct.unpack_from("!II", esp)
    plain = AESGCM(key).decrypt(SALT + esp[8:16], esp[16:], esp[:8])
    pad, next_header = plain[-2:]
    assert plain[-2 - pad : -2] == bytes(range(1, pad + 1))
    return spi, sequence, plain[: -2 - pad], next_header


def authenticated(ip: bytes, payload: bytes, next_header: int, key: bytes, sequence: int = 1) -> bytes:
    """AH (RFC 4302) with HMAC-SHA-256-128 around ``payload``; ``ip`` is an IPv4 header without options."""
    ah = struct.pack("!BBHII", next_header, 5, 0, SPI, sequence)
    length = 20 + len(ah) + 16 + len(payload)
    header = bytearray(ip)
    header[2:4] = length.to_bytes(2, "big")
    header[9] = 51
    covered = bytearray(header)
    for at in (1, 6, 7, 8, 10, 11):  # TOS, flags and offset, TTL, checksum
        covered[at] = 0
    icv = hmac.new(key, bytes(covered) + ah + bytes(16) + payload, "sha256").digest()[:16]
    header[10:12] = b"\0\0"
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    header[10:12] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
    return bytes(header) + ah + icv + payload


def send(ctx: DataPlaneContext, frame: bytes, queue: int = 0, **hdr: int) -> list[bytes]:
    """Transmit ``frame`` with these header fields."""
    return Transmitter(ctx).transmit(ctx.header.build(NetHdr(**hdr)) + bytes(frame), queue)


def arrive(ctx: DataPlaneContext, frame: bytes) -> tuple[int, NetHdr, bytes] | None:
    """Receive ``frame``: (queue, header, delivered frame), or None when it was dropped."""
    received = Receiver(ctx).receive(bytes(frame))
    if not received:
        return None
    (one,) = received
    size = ctx.header.size
    return one.queue, ctx.header.parse(one.buffer), one.buffer[size:]


def eth(ethertype: int = 0x0800, mask_all: bool = False) -> tuple[Selector, bytes]:
    """Selector and key for an EtherType."""
    tail = b"\xff\xff"
    return Selector(SelectorType.ETH, 0, bytes(12) + tail), bytes(12) + ethertype.to_bytes(2, "big")


def ipv4(protocol: int = 50) -> tuple[Selector, bytes]:
    """Selector and key for an IPv4 Protocol."""
    return (
        Selector(SelectorType.IPV4, 0, bytes(9) + b"\xff" + bytes(10)),
        bytes(9) + bytes((protocol,)) + bytes(10),
    )


def ipv6(next_header: int = 50) -> tuple[Selector, bytes]:
    """Selector and key for an IPv6 Next Header."""
    return (
        Selector(SelectorType.IPV6, 0, bytes(6) + b"\xff" + bytes(33)),
        bytes(6) + bytes((next_header,)) + bytes(33),
    )


def esp(spi: int = SPI) -> tuple[Selector, bytes]:
    """Selector and key for an SPI."""
    return Selector(SelectorType.ESP, 0, b"\xff" * 4 + bytes(4)), spi.to_bytes(4, "big") + bytes(4)


def udp(dport: int) -> tuple[Selector, bytes]:
    """Selector and key for a UDP destination port."""
    return Selector(SelectorType.UDP, 0, bytes(2) + b"\xff\xff" + bytes(4)), bytes(2) + dport.to_bytes(
        2, "big"
    ) + bytes(4)


def add_rule(
    filters: FilterObjects,
    action: int,
    *parts: tuple[Selector, bytes],
    group: int = 0,
    priority: int = 1,
    vq_index: int = 0,
) -> FfRule:
    """A rule with a classifier of its own, in ``group`` of that number and priority."""
    filters.groups.setdefault(group, FfGroup(group))
    classifier = len(filters.classifiers)
    filters.classifiers[classifier] = FfClassifier(tuple(selector for selector, _ in parts))
    rule = FfRule(group, classifier, priority, int(action), vq_index, b"".join(key for _, key in parts))
    filters.rules[len(filters.rules)] = rule
    filters.generation += 1
    return rule
