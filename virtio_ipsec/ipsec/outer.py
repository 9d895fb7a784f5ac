"""The tunnel header: what goes into it, and what comes back out of it (RFC 4301 5.1.2, RFC 6040).

Encapsulation: DSCP, DF and ECN come from the inner header where the SA's options say so, else from its
tunnel parameters (ECN: 00). The inner TTL is decremented with DEC_TTL only. Nothing else of the inner packet
changes, no IPv4 option is copied, the flow label is the configured one. Decapsulation: the inner packet is
delivered as it was, except for congestion marks with ECN (ledger E26, E67).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.wire.numbers import IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

DEFAULT_TTL = 64
NOT_ECT, ECT1, ECT0, CE = range(4)

_DF = ip.DONT_FRAGMENT
# Plain ints: arithmetic on flags costs most of a microsecond each time.
_COPY_DSCP, _COPY_DF, _ECN = (
    int(option) for option in (IpsecOption.COPY_DSCP, IpsecOption.COPY_DF, IpsecOption.ECN)
)
_IPV4 = struct.Struct("!BBHHHBBH4s4s")

# RFC 6040 figure 4: (inner, outer) -> mark of the delivered packet; None: the packet is dropped.
DECAPSULATED: dict[tuple[int, int], int | None] = {
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): None,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


class TunnelHeader:
    """Builder of one SA's outer headers."""

    __slots__ = ("_dst", "_options", "_param", "_src", "length", "version")

    def __init__(self, param: TunnelIPv4 | TunnelIPv6, options: int) -> None:
        self._param = param
        self._options = options
        src, dst = addresses(param)
        self._src, self._dst = src.packed, dst.packed
        self.version = src.version
        self.length = ip.IPV4_HEADER_LEN if src.version == 4 else ip.IPV6_HEADER_LEN

    def build(self, inner: ip.Packet, protocol: int, payload_len: int, identification: int) -> bytes:
        """Outer header of ``inner`` (as the guest sent it) with ``payload_len`` octets behind it.

        ``identification``: IPv4 only. Callers pass the low 16 bits of the sequence number: it costs nothing,
        tells nothing that the wire does not show, and does not repeat within 65,536 packets (RFC 6864 4.3
        wants that for packets that may be fragmented).
        """
        param = self._param
        dscp = inner.traffic_class >> 2 if self._options & _COPY_DSCP else param.dscp
        ecn = inner.traffic_class & 3 if self._options & _ECN else NOT_ECT
        tos = dscp << 2 | ecn
        if isinstance(param, TunnelIPv6):
            first = 6 << 28 | tos << 20 | param.flabel
            head = struct.pack("!IHBB", first, payload_len, protocol, param.hlimit or DEFAULT_TTL)
            return head + self._src + self._dst
        flags = _DF if self.is_fixed_size(inner) else 0
        ttl = param.ttl or DEFAULT_TTL
        total = ip.IPV4_HEADER_LEN + payload_len
        fields = [0x45, tos, total, identification, flags, ttl, protocol, 0, self._src, self._dst]
        fields[7] = ip.checksum(_IPV4.pack(*fields))
        return _IPV4.pack(*fields)

    def is_fixed_size(self, inner: ip.Packet) -> bool:
        """Whether nobody may fragment the packet that ``inner`` becomes: outer IPv6, or DF in outer IPv4."""
        if isinstance(self._param, TunnelIPv6):
            return True
        if self._options & _COPY_DF:
            # IPv6 packets are never fragmented on their way: inside IPv4 they count as "do not fragment".
            return inner.version == 6 or bool(inner.flags_offset & _DF)
        return bool(self._param.df)


def addresses(
    param: TunnelIPv4 | TunnelIPv6,
) -> tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address]:
    """Source and destination of the tunnel."""
    if isinstance(param, TunnelIPv4):
        return param.src_ip, param.dst_ip
    return param.src_addr, param.dst_addr


def with_ttl_decremented(inner: ip.Packet) -> bytes:
    """The inner packet one hop further; PacketError TTL_EXPIRED when it would reach 0."""
    if inner.ttl <= 1:
        raise PacketError(Reason.TTL_EXPIRED, "time to live would reach zero")
    if inner.version == 4:
        return ip.with_octet(inner, 8, inner.ttl - 1)
    return inner.data[:7] + bytes((inner.ttl - 1,)) + inner.data[8:]


def with_congestion_mark(inner: ip.Packet, outer_ecn: int) -> bytes:
    """The inner packet as RFC 6040 4.2 delivers it; PacketError CONGESTION where it is dropped."""
    inner_ecn = inner.traffic_class & 3
    mark = DECAPSULATED[inner_ecn, outer_ecn]
    if mark is None:
        raise PacketError(Reason.CONGESTION, "congestion was met by a packet that does not understand marks")
    if mark == inner_ecn:
        return inner.data
    traffic_class = inner.traffic_class & 0xFC | mark
    if inner.version == 4:
        return ip.with_octet(inner, 1, traffic_class)
    first = int.from_bytes(inner.data[:4]) & 0xF00FFFFF | traffic_class << 20
    return first.to_bytes(4) + inner.data[4:]
