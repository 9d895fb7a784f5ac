"""Where the headers of a driver's frame lie, and sums over them: the judges' own view, apart from any driver's."""

from __future__ import annotations

from dataclasses import dataclass

TCP, UDP = 6, 17
_TAGS = frozenset({0x8100, 0x88A8})
_IP = {0x0800: 4, 0x86DD: 6}
#: EtherTypes by which a frame is recognised as one: IP, ARP, LLDP, 802.1X, and tags.
_KNOWN = frozenset({*_IP, *_TAGS, 0x0806, 0x88CC, 0x888E})
_EXTENSIONS = frozenset({0, 43, 60})
_SUM_AT = {TCP: 16, UDP: 6}


@dataclass(frozen=True, slots=True)
class Headers:
    """Offsets from the start of the frame. ``version`` 0: no IP; ``transport`` 0: no TCP or UDP header; ``payload``:
    behind all headers that are understood; ``end``: of the IP packet."""

    is_plausible: bool
    network: int = 0
    version: int = 0
    protocol: int = 0
    transport: int = 0
    payload: int = 0
    end: int = 0

    @property
    def sum_at(self) -> int:
        """Where the checksum of the transport header lies; 0 without one."""
        return self.transport + _SUM_AT[self.protocol] if self.transport else 0


def frame_headers(frame: bytes) -> Headers:
    """The headers of an Ethernet frame."""
    if len(frame) < 14:
        return Headers(False)
    at = 12
    kind = int.from_bytes(frame[at : at + 2], "big")
    plausible = kind in _KNOWN
    while kind in _TAGS and at + 6 <= len(frame):
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    network = at + 2
    if kind not in _IP:
        return Headers(plausible, network, payload=network, end=len(frame))
    if network >= len(frame) or frame[network] >> 4 != _IP[kind]:
        return Headers(False, network)
    return ip_headers(frame, network)


def ip_headers(frame: bytes, at: int) -> Headers:
    """The headers from the IP header at ``at`` on."""
    version = frame[at] >> 4 if at < len(frame) else 0
    if version == 4 and len(frame) >= at + 20:
        behind = at + 4 * (frame[at] & 15)
        total = int.from_bytes(frame[at + 2 : at + 4], "big")
        end = at + total if behind <= at + total <= len(frame) else len(frame)
        whole = not int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF
        return _with_transport(frame, at, 4, frame[at + 9], behind, end, whole=whole)
    if version == 6 and len(frame) >= at + 40:
        total = int.from_bytes(frame[at + 4 : at + 6], "big")
        end = at + 40 + total if total and at + 40 + total <= len(frame) else len(frame)
        kind, behind = frame[at + 6], at + 40
        while kind in _EXTENSIONS and behind + 8 <= end:
            kind, behind = frame[behind], behind + 8 * (frame[behind + 1] + 1)
        return _with_transport(frame, at, 6, kind, behind, end, whole=True)
    return Headers(True, at, payload=at, end=len(frame))


def _with_transport(
    frame: bytes, network: int, version: int, protocol: int, at: int, end: int, *, whole: bool
) -> Headers:
    length = 0
    if whole and protocol == UDP and at + 8 <= end:
        length = 8
    elif whole and protocol == TCP and at + 20 <= end:
        length = 4 * (frame[at + 12] >> 4)
    if not length or at + length > end:
        return Headers(True, network, version, protocol, 0, min(at, end), end)
    return Headers(True, network, version, protocol, at, at + length, end)


def ones_sum(*pieces: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071). All pieces but the last have even length."""
    total = 0
    for piece in pieces:
        padded = piece + b"\0" * (len(piece) & 1)
        total += sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(frame: bytes, headers: Headers, length: int | None = None) -> int:
    """The sum of the pseudo header of the transport header in ``headers``; ``length``: of the transport packet."""
    at = headers.network
    addresses = frame[at + 12 : at + 20] if headers.version == 4 else frame[at + 8 : at + 40]
    size = headers.end - headers.transport if length is None else length
    return ones_sum(addresses, headers.protocol.to_bytes(2, "big"), size.to_bytes(4, "big"))


def is_sum_right(frame: bytes, headers: Headers) -> bool:
    """Whether the transport checksum is complete; an absent one of UDP over IPv4 is."""
    field = frame[headers.sum_at : headers.sum_at + 2]
    if headers.protocol == UDP and headers.version == 4 and field == b"\0\0":
        return True
    seed = pseudo_sum(frame, headers).to_bytes(2, "big")
    return ones_sum(seed, frame[headers.transport : headers.end]) == 0xFFFF


def is_ipv4_sum_right(frame: bytes, at: int) -> bool:
    """Whether the checksum of the IPv4 header at ``at`` is right."""
    return ones_sum(frame[at : at + 4 * (frame[at] & 15)]) == 0xFFFF
