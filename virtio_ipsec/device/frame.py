"""What the data path needs to know about an Ethernet frame: where its headers are.

Reading never raises: a frame that is not well-formed IP simply has ``version`` 0, and one without a readable
transport header has ``l4`` 0. AH and ESP are not walked through: they end the chain of extension headers, so
``protocol`` is 51 or 50 there (ledger E69).
"""

from __future__ import annotations

from dataclasses import dataclass

ETHERNET_HEADER = 14
IPV4 = 0x0800
IPV6 = 0x86DD
VLAN_TPIDS = frozenset({0x8100, 0x88A8, 0x9100})

PROTO_TCP = 6
PROTO_UDP = 17
PROTO_ESP = 50

_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_DESTINATION = 60
#: Extension headers of the common form (RFC 6564): next header, length in 8-octet units less one.
_CHAINED = frozenset({_HOP_BY_HOP, _ROUTING, _DESTINATION, 135, 139, 140})


@dataclass(frozen=True, slots=True)
class FrameView:
    """Offsets into one frame, in bytes from its first byte; 0 where there is no such header.

    ``ethertype`` is the one after all VLAN tags. ``protocol`` is the IPv4 Protocol, or the Next Header of the
    last IPv6 extension header. ``end`` is where the IP packet ends by its own length field (Ethernet padding
    lies beyond it). ``l4`` is 0 on a fragment that is not the first. ``home`` and ``routing`` are the offsets
    of the home address option and of the type 2 routing header's address, for the IP_EX hash types.
    """

    l3: int
    version: int
    ethertype: int
    protocol: int = -1
    l4: int = 0
    end: int = 0
    fragment: bool = False
    extensions: bool = False
    home: int = 0
    routing: int = 0

    @property
    def transport(self) -> int:
        """Offset of the transport header of an unfragmented packet, else 0."""
        return 0 if self.fragment else self.l4


def network_offset(frame: bytes | bytearray) -> tuple[int, int]:
    """(offset of the network header, its EtherType) after any number of VLAN tags; (0, 0) when cut short."""
    offset = ETHERNET_HEADER
    size = len(frame)
    while size >= offset:
        ethertype = frame[offset - 2] << 8 | frame[offset - 1]
        if ethertype not in VLAN_TPIDS:
            return offset, ethertype
        offset += 4
    return 0, 0


def view(frame: bytes | bytearray, l3: int = 0) -> FrameView:
    """Find the headers of ``frame``; ``l3`` != 0 is where in the frame the network header is known to be."""
    if l3:
        ethertype = frame[l3 - 2] << 8 | frame[l3 - 1]
    else:
        l3, ethertype = network_offset(frame)
    if ethertype == IPV4:
        return ipv4_view(frame, l3)
    if ethertype == IPV6:
        return ipv6_view(frame, l3)
    return FrameView(l3, 0, ethertype)


def ipv4_view(frame: bytes | bytearray, l3: int, *, oversize: bool = False) -> FrameView:
    """The IPv4 packet at ``l3``; ``version`` 0 when its lengths cannot be true.

    ``oversize``: the packet is to be segmented, so it reaches to the end of the frame whatever it says.
    """
    size = len(frame) - l3
    if size < 20 or frame[l3] >> 4 != 4:
        return FrameView(l3, 0, IPV4)
    header = (frame[l3] & 15) * 4
    total = size if oversize else frame[l3 + 2] << 8 | frame[l3 + 3]
    if header < 20 or not header <= total <= size:
        return FrameView(l3, 0, IPV4)
    field = frame[l3 + 6] << 8 | frame[l3 + 7]
    first = field & 0x1FFF == 0
    return FrameView(
        l3,
        4,
        IPV4,
        frame[l3 + 9],
        l3 + header if first else 0,
        l3 + total,
        field & 0x3FFF != 0,
    )


def ipv6_view(frame: bytes | bytearray, l3: int, *, oversize: bool = False) -> FrameView:
    """The IPv6 packet at ``l3`` with its extension headers walked; ``version`` 0 when it is cut short.

    ``oversize`` as for :func:`ipv4_view`.
    """
    if len(frame) < l3 + 40 or frame[l3] >> 4 != 6:
        return FrameView(l3, 0, IPV6)
    end = len(frame) if oversize else l3 + 40 + (frame[l3 + 4] << 8 | frame[l3 + 5])
    if end > len(frame):
        return FrameView(l3, 0, IPV6)
    protocol = frame[l3 + 6]
    at = l3 + 40
    if protocol not in _CHAINED and protocol != _FRAGMENT:  # the usual packet
        return FrameView(l3, 6, IPV6, protocol, at, end)
    fragment = False
    home = routing = 0
    while protocol in _CHAINED or protocol == _FRAGMENT:
        if at + 8 > end:
            return FrameView(l3, 0, IPV6)
        if protocol == _FRAGMENT:
            field = frame[at + 2] << 8 | frame[at + 3]
            # An atomic fragment (RFC 6946) has offset 0 and M 0: it is a whole packet.
            fragment = fragment or field & 0xFFF9 != 0
            if field & 0xFFF8:
                return FrameView(l3, 6, IPV6, frame[at], 0, end, True, True, home, routing)
            length = 8
        else:
            length = (frame[at + 1] + 1) * 8
            if at + length > end:
                return FrameView(l3, 0, IPV6)
            if protocol == _ROUTING and frame[at + 2] == 2 and length == 24:
                routing = at + 8
            elif protocol == _DESTINATION:
                home = _home_address(frame, at + 2, at + length) or home
        protocol = frame[at]
        at += length
    return FrameView(l3, 6, IPV6, protocol, at, end, fragment, True, home, routing)


def _home_address(frame: bytes | bytearray, at: int, end: int) -> int:
    """Offset of the address in a Home Address option (RFC 6275 6.3) between ``at`` and ``end``, or 0."""
    while at < end:
        kind = frame[at]
        if kind == 0:  # Pad1
            at += 1
            continue
        if at + 2 > end:
            return 0
        length = frame[at + 1]
        if kind == 0xC9 and length == 16 and at + 18 <= end:
            return at + 2
        at += 2 + length
    return 0
