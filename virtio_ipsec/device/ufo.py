"""UDP fragmentation offload (`VIRTIO_NET_HDR_GSO_UDP`): a datagram into IP fragments (RFC 791, RFC 8200).

Unlike the other segmentation types, the pieces share one UDP header and one checksum, which is finished
before the cut.
"""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.device.checksum import complete_checksum, ipv4_checksum
from virtio_ipsec.device.pieces import pieces
from virtio_ipsec.errors import PacketError, Reason

_MORE = 0x2000
_UNFRAGMENTABLE = frozenset({0, 43})
_DESTINATION = 60
_FRAGMENT = 44
_FRAGMENT_LEN = 8


def fragment_udp(
    frame: bytes, l3: int, version: int, l4: int, size: int, rng: Callable[[int], bytes]
) -> list[bytes]:
    """Fragments of the UDP datagram at ``l4``, each carrying at most ``size`` bytes, in multiples of eight.

    Raises PacketError(BAD_GSO) when ``size`` is below 8, when the datagram or a fragment with its header is
    too long to be one IP packet, and when there would be too many.
    """
    size &= ~7
    if not size:
        raise PacketError(Reason.BAD_GSO, "gso_size below 8 cannot fragment")
    if len(frame) - l3 - (40 if version == 6 else 0) > 0xFFFF:
        raise PacketError(Reason.BAD_GSO, "the datagram exceeds 65535 bytes")
    whole = bytearray(frame)
    complete_checksum(whole, l4, 6)
    return _ipv4(whole, l3, l4, size) if version == 4 else _ipv6(whole, l3, size, rng(4))


def _ipv4(whole: bytearray, l3: int, l4: int, size: int) -> list[bytes]:
    """All fragments keep the Identification; only the first keeps options that are not to be copied."""
    fragments = []
    body = len(whole) - l4
    pieces(body, size, l4)
    for at in range(0, body, size):
        out = whole[:l4] + whole[l4 + at : l4 + at + size]
        out[l3 + 2 : l3 + 4] = (len(out) - l3).to_bytes(2, "big")
        # The driver asked for fragments, so Don't Fragment cannot be meant.
        more = _MORE if at + size < body else 0
        out[l3 + 6 : l3 + 8] = (more | at // 8).to_bytes(2, "big")
        if at:
            _drop_uncopied_options(out, l3 + 20, l4)
        ipv4_checksum(out, l3)
        fragments.append(bytes(out))
    return fragments


def _drop_uncopied_options(out: bytearray, at: int, end: int) -> None:
    """Overwrite options without the copied flag by No-Operation (RFC 791 3.1)."""
    while at < end and out[at] != 0:
        length = 1 if out[at] == 1 or at + 1 >= end else max(out[at + 1], 2)
        if not out[at] & 0x80:
            stop = min(at + length, end)
            out[at:stop] = b"\x01" * (stop - at)
        at += length


def _ipv6(whole: bytearray, l3: int, size: int, ident: bytes) -> list[bytes]:
    """A Fragment header goes after the headers that every hop or waypoint reads (RFC 8200 4.5)."""
    pointer, start = _unfragmentable(whole, l3)
    body = len(whole) - start
    pieces(body, size, start + _FRAGMENT_LEN)
    if start + _FRAGMENT_LEN + min(size, body) - l3 - 40 > 0xFFFF:
        raise PacketError(Reason.BAD_GSO, "a fragment would exceed its length field")
    fragments = []
    for at in range(0, body, size):
        more = 1 if at + size < body else 0
        out = whole[:start]
        out += bytes((whole[pointer], 0)) + (at | more).to_bytes(2, "big") + ident
        out += whole[start + at : start + at + size]
        out[pointer] = _FRAGMENT
        out[l3 + 4 : l3 + 6] = (len(out) - l3 - 40).to_bytes(2, "big")
        fragments.append(bytes(out))
    return fragments


def _unfragmentable(whole: bytearray, l3: int) -> tuple[int, int]:
    """(offset of the Next Header field to change, start of the fragmentable part)."""
    pointer, at = l3 + 6, l3 + 40
    found = pointer, at
    while whole[pointer] in _UNFRAGMENTABLE or whole[pointer] in (_DESTINATION, _FRAGMENT):
        if whole[pointer] == _FRAGMENT:
            raise PacketError(Reason.BAD_GSO, "the datagram has a Fragment header already")
        ends = whole[pointer] in _UNFRAGMENTABLE
        pointer, at = at, at + (whole[at + 1] + 1) * 8
        # Destination options count only when a routing header still follows.
        if ends:
            found = pointer, at
    return found
