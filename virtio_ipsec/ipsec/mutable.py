"""What the AH integrity check sees of the IP header (RFC 4302 3.3.3.1 and appendix A).

Fields that change on the way count as zero. Fields that change predictably (the destination, with source
routing) count as what they are at the receiver: a sender has to work that out, a receiver finds it there.
"""

from __future__ import annotations

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip

_END, _NOP = 0, 1
_LOOSE_ROUTE, _STRICT_ROUTE = 131, 137
# End, no operation, security, extended security, commercial security, router alert, sender directed
# multi-destination delivery. Every other option is mutable, experimental or superseded: zeroed whole.
IMMUTABLE_IPV4_OPTIONS = frozenset((_END, _NOP, 130, 133, 134, 148, 149))
_CHANGES_EN_ROUTE = 0x20  # of an IPv6 option type
_PAD1 = 0
# Routing headers whose addresses rotate through the destination: type 0 (RFC 2460), type 2 (RFC 6275).
_ROTATING = frozenset((0, 2))


def immutable_part(head: bytes, headers: ip.Chain, *, sending: bool) -> bytes:
    """IP header with options, or with the extension headers in front of AH, as the ICV covers it."""
    if head[0] >> 4 == 4:
        return _ipv4(bytearray(head), sending=sending)
    return _ipv6(bytearray(head), headers, sending=sending)


def final_destination(head: bytes, headers: ip.Chain) -> bytes:
    """The 16 octets that an IPv6 destination has at the end of its route (for the pseudo header, too)."""
    routed = bytearray(head)
    _follow_route(routed, headers)
    return bytes(routed[24:40])


def _ipv4(head: bytearray, *, sending: bool) -> bytes:
    route_end = _ipv4_options(head)
    if sending and route_end:
        head[16:20] = route_end
    head[1] = 0  # type of service
    head[6:8] = b"\0\0"  # flags, fragment offset
    head[8] = 0  # time to live
    head[10:12] = b"\0\0"  # checksum
    return bytes(head)


def _ipv4_options(head: bytearray) -> bytes:
    """Zero the mutable options; the last address of a source route that is not used up, else nothing."""
    route_end = b""
    at = ip.IPV4_HEADER_LEN
    while at < len(head) and head[at] != _END:
        kind = head[at]
        if kind == _NOP:
            at += 1
            continue
        length = head[at + 1] if at + 1 < len(head) else 0
        if not 2 <= length <= len(head) - at:
            raise PacketError(Reason.MALFORMED, "IPv4 option has an impossible length")
        if kind in (_LOOSE_ROUTE, _STRICT_ROUTE) and length >= 7 and head[at + 2] <= length - 3:
            route_end = bytes(head[at + length - 4 : at + length])
        if kind not in IMMUTABLE_IPV4_OPTIONS:
            head[at : at + length] = bytes(length)
        at += length
    return route_end


def _ipv6(head: bytearray, headers: ip.Chain, *, sending: bool) -> bytes:
    for ext in headers.extensions:
        if ext.kind in (ip.HOP_BY_HOP, ip.DESTINATION_OPTIONS):
            _ipv6_options(head, ext)
    if sending:
        _follow_route(head, headers)
    head[0:4] = b"\x60\0\0\0"  # traffic class, flow label
    head[7] = 0  # hop limit
    return bytes(head)


def _ipv6_options(head: bytearray, ext: ip.Extension) -> None:
    at, end = ext.offset + 2, ext.offset + ext.length
    while at < end:
        if head[at] == _PAD1:
            at += 1
            continue
        data_at = at + 2
        after = data_at + head[at + 1] if data_at <= end else end + 1
        if after > end:
            raise PacketError(Reason.MALFORMED, "IPv6 option exceeds its header")
        if head[at] & _CHANGES_EN_ROUTE:
            head[data_at:after] = bytes(after - data_at)
        at = after


def _follow_route(head: bytearray, headers: ip.Chain) -> None:
    """Rearrange a routing header and the destination as the last hop sees them (RFC 2460 4.4)."""
    for ext in headers.extensions:
        if ext.kind != ip.ROUTING:
            continue
        kind, left = head[ext.offset + 2], head[ext.offset + 3]
        if left == 0:
            continue
        hops = (ext.length - 8) // 16
        if kind not in _ROTATING or (ext.length - 8) % 16 or left > hops:
            raise PacketError(Reason.MALFORMED, "routing header whose end cannot be predicted")
        for hop in range(hops - left, hops):
            at = ext.offset + 8 + 16 * hop
            head[24:40], head[at : at + 16] = head[at : at + 16], head[24:40]
        head[ext.offset + 3] = 0
