"""ESP padding, pad length and next header (RFC 4303 2.4-2.6); traffic flow confidentiality padding (2.7)."""

from __future__ import annotations

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip

_MONOTONE = bytes(range(1, 256))


def trailer(payload_len: int, next_header: int, alignment: int) -> bytes:
    """Shortest trailer that brings payload + trailer to a multiple of ``alignment`` (4 or a cipher block)."""
    length = -(payload_len + 2) % alignment
    return _MONOTONE[:length] + bytes((length, next_header))


def split(plaintext: bytes) -> tuple[bytes, int]:
    """Decrypted octets -> (payload, next header); BAD_PADDING unless the padding is 1, 2, 3 ..."""
    length = plaintext[-2]
    end = len(plaintext) - 2 - length
    if end < 0 or plaintext[end:-2] != _MONOTONE[:length]:
        raise PacketError(Reason.BAD_PADDING)
    return plaintext[:end], plaintext[-1]


def without_tfc(payload: bytes, next_header: int) -> bytes:
    """A transport mode payload cut to the length that its own header states, where one does.

    RFC 4303 2.7: in transport mode the padding can only be told from the payload if the next layer has a
    length: UDP or IP-in-IP, possibly behind destination options. A length that makes no sense is left to
    the layer that it belongs to.
    """
    try:
        headers = ip.walk(payload, next_header, 0, 0)
        offset = headers.offset
        if headers.protocol == ip.UDP:
            length = int.from_bytes(payload[offset + 4 : offset + 6])
            return payload[: offset + length] if length >= 8 else payload
        if headers.protocol in (ip.IPV4_IN_IP, ip.IPV6_IN_IP):
            return payload[:offset] + ip.parse(payload[offset:]).data
    except PacketError:
        pass
    return payload
