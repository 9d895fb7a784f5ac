"""AH: header, padding of the ICV field, what the integrity check covers (RFC 4302 2, 3.3, 3.4)."""

from __future__ import annotations

import struct

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip, mutable
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams, sequence_high

FIXED_LEN = 12

_HEADER = struct.Struct("!BBHII")


def header_len(params: SaParams, version: int) -> int:
    """Octets of the AH header: a multiple of 4 with IPv4, of 8 with IPv6 (RFC 4302 3.3.3.2.1)."""
    length = FIXED_LEN + params.suite.icv_field_len
    return length + -length % (4 if version == 4 else 8)


def seal(
    sa: OutboundSa, sequence: int, next_header: int, payload: bytes, covered_head: bytes
) -> tuple[bytes, int]:
    """(AH header + payload, octets given to the algorithm).

    ``covered_head``: the IP header in front as :func:`mutable.immutable_part` leaves it.
    """
    params = sa.params
    length = header_len(params, covered_head[0] >> 4)
    fixed = _HEADER.pack(next_header, length // 4 - 2, 0, params.spi, sequence & 0xFFFFFFFF)
    high = sequence_high(params, sequence) or b""
    covered = b"".join((covered_head, fixed, bytes(length - FIXED_LEN), payload, high))
    icv = sa.ah.icv(covered, sa.iv(sequence))
    return (fixed + icv).ljust(length, b"\0") + payload, len(covered)


def split(params: SaParams, packet: bytes, version: int, offset: int) -> tuple[int, int]:
    """(offset of what AH protects, its next header); MALFORMED unless the length is one this SA can have.

    RFC 4302 3.3.3.2.1 forbids more padding than the alignment needs. With IPv4 both the 4- and the 8-octet
    alignment are accepted: Linux pads to 8 there unless told otherwise.
    """
    length = (packet[offset + 1] + 2) * 4
    possible = {header_len(params, version), header_len(params, 6)}
    if length not in possible or offset + length > len(packet):
        raise PacketError(Reason.MALFORMED, "AH length does not fit the SA")
    return offset + length, packet[offset]


def verify(sa: InboundSa, sequence: int, packet: bytes, headers: ip.Chain) -> int:
    """Check the ICV of a whole packet; octets given to the algorithm. IntegrityError if it does not match."""
    at = headers.offset + FIXED_LEN
    end = at + sa.params.suite.icv_field_len
    covered = b"".join(
        (
            mutable.immutable_part(packet[: headers.offset], headers, sending=False),
            packet[headers.offset : at],
            bytes(end - at),
            packet[end:],
            sequence_high(sa.params, sequence) or b"",
        )
    )
    sa.ah.verify(covered, packet[at:end])
    return len(covered)
