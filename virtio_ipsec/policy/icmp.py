"""ICMP and ICMPv6 errors: when one may be sent, what it looks like, and what one that arrives quotes.

RFC 792, RFC 1122 3.2.2, RFC 1812 4.3, RFC 4443 2.4 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy.tables import Address

ICMP, ICMPV6 = 1, 58

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_LONGEST = {4: 576, 6: 1280}  # RFC 1812 4.3.2.3, RFC 4443 2.4 (c)
_TTL = 64
_INTERNETWORK_CONTROL = 0xC0
_ERRORS4 = frozenset({3, 4, 5, 11, 12})
_REDIRECT6 = 137


class Problem(Enum):
    """(ICMP type, code), (ICMPv6 type, code)."""

    TOO_BIG = ((3, 4), (2, 0))
    UNREACHABLE = ((3, 1), (1, 3))
    TTL_EXPIRED = ((11, 0), (3, 0))


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error message from the net. ``quoted`` begins at the IP header of the packet that it is about."""

    version: int
    kind: int
    code: int
    number: int  # the 32 bits behind the checksum: the MTU, where there is one
    quoted: bytes

    @property
    def mtu(self) -> int | None:
        """The MTU that the next hop has, as stated (0: by a router that is older than RFC 1191); None: not that."""
        if self.version == 4:
            return self.number & 0xFFFF if (self.kind, self.code) == (3, 4) else None
        return self.number if self.kind == 2 else None


def may_answer(packet: ip.Packet, problem: Problem) -> bool:
    """Whether an error may be sent about a packet: not about errors, groups, later fragments and nobody's packets."""
    headers = ip.chain(packet)
    data, at = packet.data, headers.offset
    if packet.version == 4:
        source, target = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        if packet.flags_offset & 0x1FFF or _is_nobody(source) or target.is_multicast or target.is_reserved:
            return False
        return headers.protocol != ICMP or (at < len(data) and data[at] not in _ERRORS4)
    source6, target6 = IPv6Address(data[8:24]), IPv6Address(data[24:40])
    if _is_nobody(source6) or (target6.is_multicast and problem is not Problem.TOO_BIG):
        return False
    for ext in headers.extensions:
        if ext.kind == ip.FRAGMENT and int.from_bytes(data[ext.offset + 2 : ext.offset + 4]) & 0xFFF8:
            return False
    if headers.protocol != ICMPV6:
        return True
    return at < len(data) and data[at] >= 128 and data[at] != _REDIRECT6


def _is_nobody(address: Address) -> bool:
    reserved = address.version == 4 and address.is_reserved
    return address.is_unspecified or address.is_multicast or address.is_loopback or reserved


def error(packet: ip.Packet, problem: Problem, source: Address, mtu: int = 0) -> bytes:
    """The error packet, from ``source`` (of the packet's IP version) to the packet's sender."""
    if packet.version == 4:
        kind, code = problem.value[0]
        body = struct.pack("!BBHI", kind, code, 0, mtu) + packet.data
        body = body[: _LONGEST[4] - ip.IPV4_HEADER_LEN]
        body = body[:2] + ip.checksum(body).to_bytes(2) + body[4:]
        return ipv4_packet(source.packed, packet.data[12:16], ICMP, body)
    kind, code = problem.value[1]
    body = struct.pack("!BBHI", kind, code, 0, mtu) + packet.data
    body = body[: _LONGEST[6] - ip.IPV6_HEADER_LEN]
    return icmpv6_packet(source.packed, packet.data[8:24], body, _TTL)


def ipv4_packet(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    """An IPv4 packet that nobody fragments, with network control's precedence (RFC 1812 4.3.2.5)."""
    fields = [
        0x45,
        _INTERNETWORK_CONTROL,
        ip.IPV4_HEADER_LEN + len(body),
        0,
        ip.DONT_FRAGMENT,
        _TTL,
        protocol,
        0,
    ]
    fields[7] = ip.checksum(_IPV4.pack(*fields, source, target))
    return _IPV4.pack(*fields, source, target) + body


def icmpv6_packet(source: bytes, target: bytes, body: bytes, hop_limit: int) -> bytes:
    """An ICMPv6 packet; the checksum, zero in ``body``, is filled in."""
    head = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, hop_limit) + source + target
    value = icmpv6_sum(head + body, len(head))
    return head + body[:2] + value.to_bytes(2) + body[4:]


def icmpv6_sum(data: bytes, at: int) -> int:
    """Checksum over the ICMPv6 message at ``at`` and its pseudo header; 0 when the one in it is right."""
    pseudo = data[8:40] + struct.pack("!II", len(data) - at, ICMPV6)
    return ip.checksum(pseudo + data[at:])


def read_error(packet: ip.Packet) -> IcmpError | None:
    """An error message with a right checksum that quotes at least an IP header; None for everything else."""
    headers = ip.chain(packet)
    at, data = headers.offset, packet.data
    if headers.protocol not in {ICMP, ICMPV6} or len(data) < at + 8 or ip.is_fragment(packet, headers):
        return None
    kind, code, number = data[at], data[at + 1], int.from_bytes(data[at + 4 : at + 8])
    quoted = data[at + 8 :]
    if packet.version == 4:
        right = headers.protocol == ICMP and kind in _ERRORS4 and not ip.checksum(data[at:])
        whole = len(quoted) >= ip.IPV4_HEADER_LEN and quoted[0] >> 4 == 4
    else:
        right = headers.protocol == ICMPV6 and kind < 128 and not icmpv6_sum(data, at)
        whole = len(quoted) >= ip.IPV6_HEADER_LEN and quoted[0] >> 4 == 6
    return IcmpError(packet.version, kind, code, number, quoted) if right and whole else None
