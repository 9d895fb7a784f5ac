"""The Internet checksum (RFC 1071): completing what a driver left open, verifying what came from the wire."""

from __future__ import annotations

from virtio_ipsec.device.frame import PROTO_TCP, PROTO_UDP, FrameView
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.ip import ones_sum


def complete_checksum(frame: bytearray, start: int, offset: int) -> None:
    """Put the checksum over ``frame[start:]`` at ``start + offset``; the field holds its seed.

    A result of 0 is stored as 0xffff, which every protocol reads alike and UDP needs. Raises PacketError when
    the field is not within the frame.
    """
    at = start + offset
    if at + 2 > len(frame):
        raise PacketError(Reason.BAD_CHECKSUM_REQUEST, "checksum field outside the frame")
    value = ~ones_sum(memoryview(frame)[start:]) & 0xFFFF or 0xFFFF
    frame[at] = value >> 8
    frame[at + 1] = value & 0xFF


def transport_checksum_ok(frame: bytes, headers: FrameView) -> bool:
    """Whether ``frame`` is a whole TCP or UDP packet with a checksum that is present and right.

    An IPv4 header whose own checksum is wrong also says no.
    """
    l3, l4, end = headers.l3, headers.transport, headers.end
    if not l4 or headers.protocol not in (PROTO_TCP, PROTO_UDP):
        return False
    if headers.version == 4:
        if ones_sum(frame[l3:l4]) != 0xFFFF:
            return False
        addresses = frame[l3 + 12 : l3 + 20]
    else:
        addresses = frame[l3 + 8 : l3 + 40]
    length = end - l4
    if headers.protocol == PROTO_UDP:
        if length < 8 or frame[l4 + 6 : l4 + 8] == b"\0\0":
            return False
        stated = frame[l4 + 4] << 8 | frame[l4 + 5]
        if not 8 <= stated <= length:
            return False
        length = stated
    elif length < 20:
        return False
    pseudo = ones_sum(addresses) + headers.protocol + length
    return (pseudo + ones_sum(frame[l4 : l4 + length])) % 0xFFFF == 0


def ipv4_checksum(packet: bytearray, at: int) -> None:
    """Write the header checksum of the IPv4 header at ``at``."""
    packet[at + 10 : at + 12] = b"\0\0"
    value = ~ones_sum(packet[at : at + (packet[at] & 15) * 4]) & 0xFFFF
    packet[at + 10 : at + 12] = value.to_bytes(2, "big")
