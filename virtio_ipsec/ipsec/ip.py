"""IPv4 and IPv6 as far as IPsec must read or change them: lengths, extension headers, checksums.

Everything works on whole packets that begin at the IP header. Octets behind the length that the IP header
states (Ethernet padding) are cut off by :func:`parse`. Jumbograms (RFC 2675) are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from virtio_ipsec.errors import PacketError, Reason

HOP_BY_HOP = 0
IPV4_IN_IP = 4
UDP = 17
IPV6_IN_IP = 41
ROUTING = 43
FRAGMENT = 44
ESP = 50
AH = 51
NO_NEXT_HEADER = 59
DESTINATION_OPTIONS = 60

IPV4_HEADER_LEN = 20
IPV6_HEADER_LEN = 40
IPV4_PROTOCOL_AT = 9
IPV6_NEXT_HEADER_AT = 6
DONT_FRAGMENT = 0x4000
MAX_LENGTH = 0xFFFF

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))
_MORE_OR_OFFSET = 0x3FFF  # of the IPv4 flags and offset word
_FRAGMENT_MORE_OR_OFFSET = 0xFFF9  # of the same word in an IPv6 Fragment header
_IPV4 = struct.Struct("!BBHHHBBH")
_IPV6 = struct.Struct("!IHBB")


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet whose length fields agree with its octets."""

    version: int
    header_len: int  # IPv4: with options; IPv6: 40
    traffic_class: int  # DSCP in the upper six bits, ECN in the lower two
    ttl: int  # or hop limit
    protocol: int  # or the next header of the fixed header
    flags_offset: int  # IPv4 flags and fragment offset, 0 for IPv6
    data: bytes


@dataclass(frozen=True, slots=True)
class Extension:
    """An IPv6 extension header: its own number, where it begins and how many octets it has."""

    kind: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chain:
    """What stands between the IP header and the first protocol that is no extension header."""

    extensions: tuple[Extension, ...]
    protocol: int  # of what begins at `offset`
    offset: int
    protocol_at: int  # offset of the octet that holds `protocol`


def parse(data: bytes) -> Packet:
    """Read the IP header of a packet and cut off what lies behind it; PacketError NOT_IP or MALFORMED."""
    version = data[0] >> 4 if data else 0
    if version == 4:
        if len(data) < IPV4_HEADER_LEN:
            raise PacketError(Reason.MALFORMED, "IPv4 header is cut short")
        first, tos, total, _, flags_offset, ttl, protocol, _ = _IPV4.unpack_from(data)
        header_len = (first & 15) * 4
        if not IPV4_HEADER_LEN <= header_len <= total <= len(data):
            raise PacketError(Reason.MALFORMED, "IPv4 lengths disagree with the packet")
        if total < len(data):
            data = data[:total]
        return Packet(4, header_len, tos, ttl, protocol, flags_offset, data)
    if version == 6:
        if len(data) < IPV6_HEADER_LEN:
            raise PacketError(Reason.MALFORMED, "IPv6 header is cut short")
        first, payload_len, next_header, hop_limit = _IPV6.unpack_from(data)
        total = IPV6_HEADER_LEN + payload_len
        if payload_len == 0 and next_header == HOP_BY_HOP:
            raise PacketError(Reason.MALFORMED, "IPv6 jumbograms are not supported")
        if total > len(data):
            raise PacketError(Reason.MALFORMED, "IPv6 payload length exceeds the packet")
        if total < len(data):
            data = data[:total]
        return Packet(6, IPV6_HEADER_LEN, first >> 20 & 0xFF, hop_limit, next_header, 0, data)
    raise PacketError(Reason.NOT_IP, "neither IPv4 nor IPv6")


def chain(packet: Packet) -> Chain:
    """Walk the IPv6 extension headers; for IPv4 there are none."""
    if packet.version == 4:
        return Chain((), packet.protocol, packet.header_len, IPV4_PROTOCOL_AT)
    return walk(packet.data, packet.protocol, IPV6_HEADER_LEN, IPV6_NEXT_HEADER_AT)


def walk(data: bytes, protocol: int, offset: int, protocol_at: int) -> Chain:
    """Walk extension headers that begin at ``offset``; the first of them is of kind ``protocol``.

    Hop-by-hop options are an extension header only directly behind the fixed header (RFC 8200 4.1).
    """
    found: list[Extension] = []
    while protocol in _EXTENSIONS and not (protocol == HOP_BY_HOP and found):
        if len(data) < offset + 8:
            raise PacketError(Reason.MALFORMED, "IPv6 extension header is cut short")
        length = 8 if protocol == FRAGMENT else (data[offset + 1] + 1) * 8
        if len(data) < offset + length:
            raise PacketError(Reason.MALFORMED, "IPv6 extension header exceeds the packet")
        found.append(Extension(protocol, offset, length))
        protocol, protocol_at = data[offset], offset
        offset += length
    return Chain(tuple(found), protocol, offset, protocol_at)


def is_fragment(packet: Packet, headers: Chain) -> bool:
    """Whether the packet is a part of a datagram. An atomic fragment (RFC 6946) is a whole one."""
    if packet.version == 4:
        return bool(packet.flags_offset & _MORE_OR_OFFSET)
    return any(
        int.from_bytes(packet.data[ext.offset + 2 : ext.offset + 4]) & _FRAGMENT_MORE_OR_OFFSET
        for ext in headers.extensions
        if ext.kind == FRAGMENT
    )


def without_atomic_fragment(packet: Packet, headers: Chain) -> Packet:
    """The packet as reassembly leaves it (RFC 8200 4.5): IPsec comes after that on receive."""
    for ext in headers.extensions:
        if ext.kind == FRAGMENT:
            data = bytearray(packet.data)
            names_it = IPV6_NEXT_HEADER_AT if ext is headers.extensions[0] else _before(headers, ext)
            data[names_it] = data[ext.offset]
            del data[ext.offset : ext.offset + ext.length]
            data[4:6] = (len(data) - IPV6_HEADER_LEN).to_bytes(2)
            return parse(bytes(data))
    return packet


def _before(headers: Chain, ext: Extension) -> int:
    return headers.extensions[headers.extensions.index(ext) - 1].offset


def transport_split(packet: Packet, headers: Chain) -> Chain:
    """Where a transport mode header goes (RFC 4303 3.1.1, RFC 4302 3.1.1).

    IPv4: behind the options. IPv6: behind hop-by-hop, routing and fragment headers and whatever stands
    before them, so that destination options for the final destination alone are protected.
    """
    kept = 0
    for index, ext in enumerate(headers.extensions):
        if ext.kind != DESTINATION_OPTIONS:
            kept = index + 1
    if kept == len(headers.extensions):
        return headers
    first_protected = headers.extensions[kept]
    protocol_at = headers.extensions[kept - 1].offset if kept else IPV6_NEXT_HEADER_AT
    return Chain(headers.extensions[:kept], first_protected.kind, first_protected.offset, protocol_at)


def header_for(head: bytes, protocol_at: int, protocol: int, payload_len: int) -> bytes:
    """``head`` (with options or extension headers) with its protocol, length and IPv4 checksum set anew.

    PacketError TOO_BIG when ``payload_len`` octets behind it do not fit its length field.
    """
    header = bytearray(head)
    header[protocol_at] = protocol
    if head[0] >> 4 == 4:
        header[2:4] = fitting(len(head) + payload_len).to_bytes(2)
        header[10:12] = b"\0\0"
        header[10:12] = checksum(header).to_bytes(2)
    else:
        header[4:6] = fitting(len(head) - IPV6_HEADER_LEN + payload_len).to_bytes(2)
    return bytes(header)


def fitting(length: int) -> int:
    """``length`` if an IP length field can hold it, else PacketError TOO_BIG."""
    if length > MAX_LENGTH:
        raise PacketError(Reason.TOO_BIG, f"the packet would need a length field of {length}")
    return length


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """Ones' complement sum of 16-bit big-endian words, folded (RFC 1071); odd data is padded with a zero byte.

    2**16 is 1 modulo 65535, so the folded sum is one division; only all-zero data sums to 0.
    """
    number = int.from_bytes(data, "big") << (8 * (len(data) & 1))
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: bytes | bytearray) -> int:
    """Internet checksum (RFC 1071), 16 bits; 0 over data that holds its own right checksum."""
    return 0xFFFF ^ ones_sum(data)


def with_octet(packet: Packet, at: int, value: int) -> bytes:
    """The packet with one octet of an IPv4 header changed; its checksum is updated, not recomputed.

    RFC 1624: an incremental update leaves a wrong checksum wrong, as a router must.
    """
    data = bytearray(packet.data)
    word_at = at & ~1
    old = int.from_bytes(data[word_at : word_at + 2])
    data[at] = value
    new = int.from_bytes(data[word_at : word_at + 2])
    total = (0xFFFF ^ int.from_bytes(data[10:12])) + (0xFFFF ^ old) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    data[10:12] = (0xFFFF ^ total).to_bytes(2)
    return bytes(data)
