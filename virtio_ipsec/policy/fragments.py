"""Cutting IP packets into fragments (RFC 791 3.2, RFC 8200 4.5)."""

from __future__ import annotations

from virtio_ipsec.ipsec import ip

_COPIED = 0x80  # IPv4 option type: goes into every fragment
_END, _NO_OPERATION = 0, 1
_MORE = 0x2000
_FRAGMENT_HEADER_LEN = 8


def split(data: bytes, mtu: int, identification: int) -> list[bytes]:
    """The packet in pieces of at most ``mtu`` octets, whatever its DF says, which the pieces keep.

    ``identification`` is for IPv6; IPv4 packets have theirs. A packet that fits is its only piece. PacketError when it
    is not well-formed.
    """
    packet = ip.parse(data)
    if len(packet.data) <= mtu:
        return [packet.data]
    return _split4(packet, mtu) if packet.version == 4 else _split6(packet, mtu, identification)


def _split4(packet: ip.Packet, mtu: int) -> list[bytes]:
    head, payload = packet.data[: packet.header_len], packet.data[packet.header_len :]
    later = _later_head(head)
    flags = packet.flags_offset & 0xE000
    first_offset = packet.flags_offset & 0x1FFF
    pieces = []
    at = 0
    while at < len(payload):
        own = later if at else head
        size = min((mtu - len(head)) & ~7, len(payload) - at)
        more = _MORE if at + size < len(payload) else 0
        made = bytearray(own)
        made[6:8] = (flags | more | first_offset + at // 8).to_bytes(2)
        pieces.append(
            ip.header_for(bytes(made), ip.IPV4_PROTOCOL_AT, head[9], size) + payload[at : at + size]
        )
        at += size
    return pieces


def _later_head(head: bytes) -> bytes:
    """The header of fragments behind the first: options that ask for it are copied."""
    options, at = b"", ip.IPV4_HEADER_LEN
    while at < len(head) and head[at] != _END:
        length = 1 if head[at] == _NO_OPERATION else int.from_bytes(head[at + 1 : at + 2])
        if not 0 < length <= len(head) - at or (head[at] != _NO_OPERATION and length < 2):
            break  # damaged: nobody downstream could read them either
        if head[at] & _COPIED:
            options += head[at : at + length]
        at += length
    options += bytes(-len(options) % 4)
    return bytes((0x40 | (ip.IPV4_HEADER_LEN + len(options)) // 4,)) + head[1 : ip.IPV4_HEADER_LEN] + options


def _split6(packet: ip.Packet, mtu: int, identification: int) -> list[bytes]:
    packet = ip.without_atomic_fragment(packet, ip.chain(packet))
    headers = ip.chain(packet)
    at, names_next = _unfragmentable(packet, headers)
    head, payload = bytearray(packet.data[:at]), packet.data[at:]
    protocol = head[names_next]
    head[names_next] = ip.FRAGMENT
    room = (mtu - len(head) - _FRAGMENT_HEADER_LEN) & ~7
    pieces = []
    for start in range(0, len(payload), room):
        part = payload[start : start + room]
        word = start | (start + len(part) < len(payload))
        fragment = bytes((protocol, 0)) + word.to_bytes(2) + identification.to_bytes(4)
        head[4:6] = (len(head) - ip.IPV6_HEADER_LEN + len(fragment) + len(part)).to_bytes(2)
        pieces.append(bytes(head) + fragment + part)
    return pieces


def _unfragmentable(packet: ip.Packet, headers: ip.Chain) -> tuple[int, int]:
    """(length of what each fragment carries, offset in it of the octet that names what follows): everything up to a
    routing header, or else hop-by-hop options alone (RFC 8200 4.5)."""
    end, names_next = ip.IPV6_HEADER_LEN, ip.IPV6_NEXT_HEADER_AT
    routing = [ext for ext in headers.extensions if ext.kind == ip.ROUTING]
    first = headers.extensions[:1]
    last = routing[-1] if routing else first[0] if first and first[0].kind == ip.HOP_BY_HOP else None
    return (last.offset + last.length, last.offset) if last else (end, names_next)
