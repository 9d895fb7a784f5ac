"""Plain frames for cases: Ethernet with IPv4 or IPv6 and UDP, TCP or anything, every checksum right."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

TCP, UDP, ESP = 6, 17, 50
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
#: Source and destination address by IP version: documentation hosts (RFC 5737, RFC 3849).
HOSTS = {
    4: (IPv4Address("198.51.100.1").packed, IPv4Address("198.51.100.2").packed),
    6: (IPv6Address("2001:db8:1::1").packed, IPv6Address("2001:db8:1::2").packed),
}


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Shape:
    """What a packet looks like; the defaults make a small UDP datagram between two documentation hosts."""

    version: int = 4
    protocol: int = UDP
    sport: int = 4000
    dport: int = 4001
    tos: int = 0
    ttl: int = 64
    df: bool = False
    ident: int = 0x1234
    flags: int = 0x18
    sequence: int = 1
    #: Source and destination address, where they are not those above.
    hosts: tuple[bytes, bytes] | None = None

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        """Source and destination address."""
        return self.hosts or HOSTS[self.version]


def pseudo_header(
    version: int, protocol: int, length: int, hosts: tuple[bytes, bytes] | None = None
) -> bytes:
    """What TCP and UDP sum besides themselves, for the hosts above or others."""
    src, dst = hosts or HOSTS[version]
    tail = (
        struct.pack("!BBH", 0, protocol, length) if version == 4 else struct.pack("!I3xB", length, protocol)
    )
    return src + dst + tail


def transport(shape: Shape, payload: bytes) -> bytes:
    """The transport header with its checksum, and the payload; just the payload for other protocols."""
    if shape.protocol == UDP:
        head = struct.pack("!HHHH", shape.sport, shape.dport, 8 + len(payload), 0)
        at = 6
    elif shape.protocol == TCP:
        head = struct.pack(
            "!HHIIBBHHH", shape.sport, shape.dport, shape.sequence, 1, 5 << 4, shape.flags, 0xFFFF, 0, 0
        )
        at = 16
    else:
        return payload
    body = bytearray(head + payload)
    value = checksum(pseudo_header(shape.version, shape.protocol, len(body), shape.hosts) + bytes(body))
    body[at : at + 2] = (value or 0xFFFF).to_bytes(2)
    return bytes(body)


def packet(payload: bytes = b"virtio-ipsec", shape: Shape = Shape()) -> bytes:
    """An IP packet."""
    body = transport(shape, payload)
    src, dst = shape.addresses
    if shape.version == 6:
        first = 6 << 28 | shape.tos << 20
        return struct.pack("!IHBB", first, len(body), shape.protocol, shape.ttl) + src + dst + body
    head = struct.pack(
        "!BBHHHBBH",
        0x45,
        shape.tos,
        20 + len(body),
        shape.ident,
        shape.df << 14,
        shape.ttl,
        shape.protocol,
        0,
    )
    head += src + dst
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + body


def esp(spi: int, sequence: int, body: bytes = bytes(32), version: int = 4) -> bytes:
    """An IP packet that begins like ESP and holds nothing that any SA could open."""
    return packet(struct.pack("!II", spi, sequence) + body, Shape(version, ESP))


def with_options(ipv4: bytes, options: bytes = b"\x94\x04\0\0") -> bytes:
    """An IPv4 packet with options (router alert), a multiple of 4 octets."""
    length = 20 + len(options)
    head = bytes((0x40 | length // 4, ipv4[1])) + (len(ipv4) + len(options)).to_bytes(2) + ipv4[4:10]
    head += bytes(2) + ipv4[12:20] + options
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + ipv4[20:]


def with_extension(ipv6: bytes, kind: int = 60) -> bytes:
    """An IPv6 packet with an extension header (destination options, all padding) in front of its payload."""
    extension = bytes((ipv6[6], 0, 1, 4, 0, 0, 0, 0))
    length = int.from_bytes(ipv6[4:6]) + len(extension)
    return ipv6[:4] + length.to_bytes(2) + bytes((kind,)) + ipv6[7:40] + extension + ipv6[40:]


def tagged(frame: bytes, vlan: int) -> bytes:
    """A frame with a VLAN tag (IEEE 802.1Q) of this id."""
    return frame[:12] + b"\x81\0" + vlan.to_bytes(2) + frame[12:]


def ethernet(ip_packet: bytes, destination: bytes, source: bytes) -> bytes:
    """A frame around an IP packet, padded to the smallest frame as a wire would."""
    frame = destination + source + ETHERTYPES[ip_packet[0] >> 4].to_bytes(2) + ip_packet
    return frame.ljust(60, b"\0")


def ip_of(frame: bytes) -> bytes:
    """The IP packet of an untagged frame, without Ethernet padding; b"" when it is not IP."""
    kind = int.from_bytes(frame[12:14])
    data = frame[14:]
    if kind == ETHERTYPES[4] and len(data) >= 20:
        return data[: int.from_bytes(data[2:4])]
    if kind == ETHERTYPES[6] and len(data) >= 40:
        return data[: 40 + int.from_bytes(data[4:6])]
    return b""
