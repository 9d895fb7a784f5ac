"""Where the headers of an Ethernet frame lie, and ones' complement sums: the stuff of offload requests."""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.driver.errors import DriverError

TCP, UDP = 6, 17
#: EtherTypes of tags that may stand between the addresses and the network header (802.1Q, 802.1ad).
_TAGS = (0x8100, 0x88A8, 0x9100)
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
#: IPv6 extension headers that may precede a transport header (hop-by-hop, routing, destination options).
#: A fragment header is not among them: behind it lies no whole packet.
_EXTENSIONS = (0, 43, 60)
_CSUM_OFFSET = {TCP: 16, UDP: 6}


@dataclass(frozen=True, slots=True)
class Headers:
    """Offsets in bytes from the start of the frame. ``version`` 0: no IP header.

    ``transport`` is 0 when there is none to offload: not TCP or UDP, cut short, or a fragment. ``payload`` is
    where the transport payload starts, or the end of what was understood; ``end`` is where the IP packet ends,
    which is before the end of a padded frame.
    """

    network: int
    version: int = 0
    protocol: int = 0
    transport: int = 0
    payload: int = 0
    end: int = 0

    @property
    def csum_offset(self) -> int:
        """Where the checksum lies in the transport header."""
        return _CSUM_OFFSET[self.protocol]


def ethernet_payload(frame: bytes) -> tuple[int, int]:
    """Offset of what follows the Ethernet header and its tags, and its EtherType."""
    at = 12
    while True:
        kind = int.from_bytes(frame[at : at + 2], "big")
        at += 2
        if kind not in _TAGS or at + 4 > len(frame):
            return at, kind
        at += 2


def parse_frame(frame: bytes) -> Headers:
    """Headers of an Ethernet frame. Raises DriverError when it is shorter than its Ethernet header."""
    if len(frame) < 14:
        raise DriverError(f"a frame of {len(frame)} bytes has no Ethernet header")
    at, kind = ethernet_payload(frame)
    return parse_ip(frame, at, _ETHERTYPES.get(kind, 0))


def parse_ip(frame: bytes | bytearray, at: int, version: int = 0) -> Headers:
    """Headers from the network header at ``at`` on; ``version`` 0 is understood as "not IP"."""
    size = len(frame) - at
    if version == 4 and size >= 20 and frame[at] >> 4 == 4:
        length = (frame[at] & 15) * 4
        fragment = int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF
        if 20 <= length <= size:
            total = int.from_bytes(frame[at + 2 : at + 4], "big")
            end = at + total if length <= total <= size else len(frame)
            return _transport(frame, at, 4, 0 if fragment else frame[at + 9], at + length, end)
    if version == 6 and size >= 40 and frame[at] >> 4 == 6:
        total = int.from_bytes(frame[at + 4 : at + 6], "big")
        end = at + 40 + total if 0 < total <= size - 40 else len(frame)
        kind, behind = frame[at + 6], at + 40
        while kind in _EXTENSIONS and behind + 8 <= end:
            kind, behind = frame[behind], behind + 8 + frame[behind + 1] * 8
        return _transport(frame, at, 6, kind, behind, end)
    return Headers(at, payload=at, end=len(frame))


def _transport(
    frame: bytes | bytearray, network: int, version: int, protocol: int, at: int, end: int
) -> Headers:
    length = 0
    if protocol == UDP and at + 8 <= end:
        length = 8
    elif protocol == TCP and at + 20 <= end:
        words = frame[at + 12] >> 4
        length = words * 4 if 20 <= words * 4 <= end - at else 0
    if not length:
        return Headers(network, version, protocol, 0, min(at, end), end)
    return Headers(network, version, protocol, at, at + length, end)


def ones_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """Ones' complement sum of the 16-bit words of ``data`` (RFC 1071), not inverted, 0..0xffff."""
    # 2**16 is 1 modulo 0xffff, so the sum of the words is the number itself modulo 0xffff.
    padded = bytes(data) + b"\0" * (len(data) & 1)
    total = int.from_bytes(padded, "big") + start
    return 0 if not total else (total - 1) % 0xFFFF + 1


def pseudo_sum(frame: bytes | bytearray, headers: Headers, length: int) -> int:
    """Sum of the pseudo header for ``length`` bytes from the transport header on."""
    at = headers.network
    addresses = frame[at + 12 : at + 20] if headers.version == 4 else frame[at + 8 : at + 40]
    return ones_sum(addresses, headers.protocol + length)


def complete_checksum(frame: bytearray, start: int, offset: int, *, udp: bool = False) -> None:
    """Sum from ``start`` to the end over the field at ``start + offset``, which holds the pseudo-header sum,
    and store the inverse there. For UDP 0 is sent as 0xffff (RFC 768)."""
    at = start + offset
    value = ~ones_sum(memoryview(frame)[start:]) & 0xFFFF
    frame[at : at + 2] = (value or (0xFFFF if udp else 0)).to_bytes(2, "big")


def fix_ipv4_checksum(frame: bytearray, at: int) -> None:
    """Write the header checksum of the IPv4 header at ``at``."""
    end = at + (frame[at] & 15) * 4
    frame[at + 10 : at + 12] = b"\0\0"
    frame[at + 10 : at + 12] = (~ones_sum(memoryview(frame)[at:end]) & 0xFFFF).to_bytes(2, "big")
