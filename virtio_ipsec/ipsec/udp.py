"""UDP encapsulation of ESP (RFC 3948; ledger E66)."""

from __future__ import annotations

import struct

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip

HEADER_LEN = 8
PORT = 4500
KEEPALIVE = b"\xff"
NON_ESP_MARKER = bytes(4)

_HEADER = struct.Struct("!HHHH")


def encapsulate(addresses: bytes, sport: int, dport: int, esp: bytes) -> bytes:
    """UDP header + ESP. The checksum is 0 over IPv4 (RFC 3948 2.1), where ``addresses`` is empty.

    Over IPv6 it is computed; ``addresses`` are source and final destination (RFC 8200 8.1), 32 octets.
    """
    length = HEADER_LEN + len(esp)
    value = 0
    if addresses:
        pseudo = addresses + struct.pack("!IBBBB", length, 0, 0, 0, ip.UDP)
        value = ip.checksum(pseudo + _HEADER.pack(sport, dport, length, 0) + esp) or 0xFFFF
    return _HEADER.pack(sport, dport, length, value) + esp


def decapsulate(data: bytes, offset: int) -> tuple[int, int, int, int]:
    """UDP header at ``offset`` -> (source port, destination port, begin and end of the ESP packet).

    The checksum is not looked at: the ICV covers more, and NAT may have spoilt it (RFC 3948 2.1). PacketError
    NOT_IPSEC for IKE (non-ESP marker) and keepalives, MALFORMED for lengths that disagree.
    """
    begin = offset + HEADER_LEN
    if len(data) < begin:
        raise PacketError(Reason.MALFORMED, "UDP header is cut short")
    sport, dport, length, _ = _HEADER.unpack_from(data, offset)
    end = offset + length
    if not begin <= end <= len(data):
        raise PacketError(Reason.MALFORMED, "UDP length disagrees with the packet")
    payload = data[begin:end]
    if payload == KEEPALIVE or payload.startswith(NON_ESP_MARKER):
        raise PacketError(Reason.NOT_IPSEC, "IKE or keepalive on the encapsulation port")
    return sport, dport, begin, end
