"""ESP on the octets behind the IP header (RFC 4303 2 and 3.3-3.4)."""

from __future__ import annotations

import struct

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import padding
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams, sequence_high

HEADER_LEN = 8

_HEADER = struct.Struct("!II")


def sealed_len(params: SaParams, payload_len: int) -> int:
    """Octets of the ESP packet, SPI to ICV, around ``payload_len`` octets."""
    suite = params.suite
    plaintext = payload_len + 2 + (-(payload_len + 2) % suite.alignment)
    return HEADER_LEN + suite.iv_len + plaintext + suite.icv_len


def seal(sa: OutboundSa, sequence: int, next_header: int, payload: bytes) -> tuple[bytes, int]:
    """(ESP packet, octets given to the cipher)."""
    params = sa.params
    plaintext = payload + padding.trailer(len(payload), next_header, params.suite.alignment)
    header = _HEADER.pack(params.spi, sequence & 0xFFFFFFFF)
    iv = sa.iv(sequence)
    return header + iv + sa.esp.seal(header, sequence_high(params, sequence), iv, plaintext), len(plaintext)


def unseal(sa: InboundSa, sequence: int, packet: bytes) -> bytes:
    """Plaintext with its trailer; IntegrityError before anything is decrypted, MALFORMED by length alone."""
    suite = sa.params.suite
    body_at = HEADER_LEN + suite.iv_len
    length = len(packet) - body_at - suite.icv_len
    if length <= 0 or length % suite.alignment:
        raise PacketError(Reason.MALFORMED, "ESP packet has an impossible length")
    high = sequence_high(sa.params, sequence)
    return sa.esp.open(packet[:HEADER_LEN], high, packet[HEADER_LEN:body_at], packet[body_at:])
