"""TCP connections through an SA are told what fits, in the maximum segment size option of SYN segments (RFC 9293)."""

from __future__ import annotations

from virtio_ipsec.ipsec import ip

TCP = 6
_SYN = 0x02
_HEADER_LEN = 20
_KIND, _LENGTH = 2, 4
_END, _NO_OPERATION = 0, 1


def clamp(data: bytes, mtu: int) -> bytes:
    """The packet with its MSS option lowered, if need be, to what fits into IP packets of ``mtu`` octets.

    Anything but a whole SYN segment with that option is returned as it is. The checksum is updated, not recomputed: a
    wrong one stays wrong (RFC 1624). PacketError when the packet is not well-formed IP.
    """
    packet = ip.parse(data)
    headers = ip.chain(packet)
    at = headers.offset
    data = packet.data
    if headers.protocol != TCP or ip.is_fragment(packet, headers) or len(data) < at + _HEADER_LEN:
        return data
    if not data[at + 13] & _SYN:
        return data
    option = _option(data, at + _HEADER_LEN, min(at + (data[at + 12] >> 4) * 4, len(data)))
    most = mtu - (ip.IPV4_HEADER_LEN if packet.version == 4 else ip.IPV6_HEADER_LEN) - _HEADER_LEN
    if not option or most < 1 or int.from_bytes(data[option + 2 : option + 4]) <= most:
        return data
    return _replaced(data, at + 16, option + 2, most)


def _option(data: bytes, at: int, end: int) -> int:
    """Offset of the MSS option between ``at`` and ``end``, or 0."""
    while at < end and data[at] != _END:
        if data[at] == _NO_OPERATION:
            at += 1
            continue
        length = data[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return 0
        if data[at] == _KIND and length == _LENGTH:
            return at
        at += length
    return 0


def _replaced(data: bytes, sum_at: int, at: int, value: int) -> bytes:
    """16 bits replaced, and the checksum at ``sum_at`` with them; the option may stand at an odd offset."""
    made = bytearray(data)
    start, end = at & ~1, (at + 3) & ~1
    old = ip.ones_sum(made[start:end])
    made[at : at + 2] = value.to_bytes(2)
    new = ip.ones_sum(made[start:end])
    total = (0xFFFF ^ int.from_bytes(made[sum_at : sum_at + 2])) + (0xFFFF ^ old) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    made[sum_at : sum_at + 2] = (0xFFFF ^ total).to_bytes(2)
    return bytes(made)
