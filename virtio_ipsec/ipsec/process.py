"""Outbound and inbound IPsec processing of IP packets by one SA, and what SA lookup needs to know.

Bytes in, bytes out; every packet begins at its IP header. A refused packet raises PacketError with the
reason, is counted under it in ``sa.stats`` and changes nothing else, except that an authenticated number
stays marked in the replay window.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ah, esp, ip, mutable, outer, padding, udp
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.numbers import IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4

_IP_IN_IP = {4: ip.IPV4_IN_IP, 6: ip.IPV6_IN_IP}
_INNER_VERSION = {protocol: version for version, protocol in _IP_IN_IP.items()}
_SPI_SEQUENCE = struct.Struct("!II")
_MIN_LEN = {ip.ESP: esp.HEADER_LEN, ip.AH: ah.FIXED_LEN}
_SPI_AT = {ip.ESP: 0, ip.AH: 4}
_NO_EXTENSIONS = ip.Chain((), 0, 0, 0)
# Plain ints: arithmetic on flags costs most of a microsecond each time.
_DEC_TTL, _ECN = int(IpsecOption.DEC_TTL), int(IpsecOption.ECN)
# The packet passed every check and is discarded all the same: it counts towards the lifetime.
_PROPERLY_DISCARDED = frozenset((Reason.DUMMY, Reason.CONGESTION))


@dataclass(frozen=True, slots=True)
class IpsecHeader:
    """The outermost IPsec header of a packet: ``protocol`` 50 or 51, ``sequence`` as on the wire (32 bits).

    ``packet`` and ``headers`` are the parsed outer packet; ``offset``/``end`` bound the ESP or AH octets.
    With UDP encapsulation the ports are those of the packet, else 0.
    """

    protocol: int
    spi: int
    sequence: int
    packet: ip.Packet
    headers: ip.Chain
    offset: int
    end: int
    udp: bool
    udp_sport: int
    udp_dport: int


@dataclass(frozen=True, slots=True)
class Inbound:
    """What came out of a protected packet. ``sequence`` is the whole number, 64 bits with ESN."""

    packet: bytes
    soft_expired: bool
    sequence: int
    next_header: int


def outbound(sa: OutboundSa, packet: bytes, mtu: int | None = None) -> bytes:
    """Protect one IP packet. Whether a soft limit is reached stands in ``sa.soft_expired`` afterwards.

    ``mtu``: octets that the result may have if nobody on its way may fragment it (IPv6, Don't Fragment).
    PacketError: NOT_IP, MALFORMED, FRAGMENT (transport mode), TTL_EXPIRED, TOO_BIG, HARD_LIFETIME,
    SEQUENCE_OVERFLOW, HELD. A refused packet takes no sequence number and no part of the lifetime.
    """
    try:
        return _outbound(sa, packet, mtu)
    except PacketError as error:
        sa.stats[error.reason] += 1
        raise


def inbound(sa: InboundSa, packet: bytes, header: IpsecHeader | None = None) -> Inbound:
    """Check and open one packet; ``header`` is what :func:`find_spi` found in it, if at hand.

    PacketError: NOT_IP, MALFORMED, FRAGMENT, NOT_IPSEC (no IPsec header, or UDP encapsulation that the SA
    does not have), UNKNOWN_SA (another SA's), HARD_LIFETIME, REPLAY, BAD_ICV, BAD_PADDING, BAD_NEXT_HEADER,
    BAD_INNER, CONGESTION, DUMMY. None of them carries plaintext.
    """
    try:
        return _inbound(sa, header or _locate(packet))
    except PacketError as error:
        sa.stats[error.reason] += 1
        raise


def find_spi(packet: bytes) -> IpsecHeader | None:
    """The ESP or AH header of a packet: plain, behind IPv6 extension headers, or in UDP (ESP only).

    None for everything else: no IP, no IPsec, fragments (E65), IKE and keepalives (E66), damaged headers. Any
    UDP port is looked at; whether the datagram is meant for an SA, the SA or the filter rule says.
    """
    try:
        return _locate(packet)
    except PacketError:
        return None


def overhead(params: SaParams, payload_len: int | None = None) -> int:
    """Octets that the SA adds to a packet: exact for ``payload_len`` protected octets, else the worst case.

    Protected octets: the whole packet in tunnel mode, what follows the IP header (and the extension headers
    that stay in front) in transport mode. AH in transport mode counts with the 8-octet alignment of IPv6.
    """
    version = 4 if isinstance(params.tunnel, TunnelIPv4) else 6
    added = 0
    if params.is_tunnel:
        added = ip.IPV4_HEADER_LEN if version == 4 else ip.IPV6_HEADER_LEN
    if params.protocol == ip.AH:
        return added + ah.header_len(params, version)
    if params.udp_encap:
        added += udp.HEADER_LEN
    if payload_len is None:
        payload_len = params.suite.alignment - 1  # with its 2 octets of trailer just over a block
    return added + esp.sealed_len(params, payload_len) - payload_len


def _outbound(sa: OutboundSa, data: bytes, mtu: int | None) -> bytes:
    # Everything that can refuse the packet comes before next_sequence().
    params = sa.params
    sa.check_usable()
    packet = ip.parse(data)
    is_ah = params.protocol == ip.AH
    protocol = ip.UDP if params.udp_encap else params.protocol
    addresses = covered_head = b""
    tunnel = sa.tunnel_header
    if tunnel is None:
        headers = _transport_headers(packet, is_ah=is_ah)
        version, next_header = packet.version, headers.protocol
        head, payload = packet.data[: headers.offset], packet.data[headers.offset :]
        length = _protected_len(params, version, len(payload))
        fixed = version == 6 or packet.flags_offset & ip.DONT_FRAGMENT
        _check_mtu(len(head) + length, mtu if fixed else None)
        head = ip.header_for(head, headers.protocol_at, protocol, length)
        if is_ah:
            covered_head = mutable.immutable_part(head, headers, sending=True)
        elif params.udp_encap and version == 6:
            addresses = head[8:24] + mutable.final_destination(head, headers)
        sequence = sa.next_sequence()
    else:
        version, next_header = tunnel.version, _IP_IN_IP[packet.version]
        payload = packet.data
        if params.options & _DEC_TTL:
            payload = outer.with_ttl_decremented(packet)
        length = _protected_len(params, version, len(payload))
        ip.fitting(length + (ip.IPV4_HEADER_LEN if version == 4 else 0))
        fixed = tunnel.is_fixed_size(packet)
        _check_mtu(tunnel.length + length, mtu if fixed else None)
        sequence = sa.next_sequence()
        head = tunnel.build(packet, protocol, length, sequence & 0xFFFF)
        if is_ah:
            covered_head = mutable.immutable_part(head, _NO_EXTENSIONS, sending=True)
        elif version == 6:
            addresses = head[8:40]
    if is_ah:
        protected, octets = ah.seal(sa, sequence, next_header, payload, covered_head)
    else:
        protected, octets = esp.seal(sa, sequence, next_header, payload)
        if params.udp_encap:
            protected = udp.encapsulate(addresses, params.udp_sport, params.udp_dport, protected)
    sa.lifetime.count(octets)
    return head + protected


def _check_mtu(length: int, mtu: int | None) -> None:
    if mtu is not None and length > mtu:
        raise PacketError(Reason.TOO_BIG, f"{length} octets after IPsec, MTU {mtu}")


def _transport_headers(packet: ip.Packet, *, is_ah: bool) -> ip.Chain:
    headers = ip.chain(packet)
    if ip.is_fragment(packet, headers):
        raise PacketError(Reason.FRAGMENT, "transport mode protects whole datagrams only (RFC 4303 3.3.4)")
    if is_ah and any(ext.kind == ip.FRAGMENT for ext in headers.extensions):
        # Reassembly takes the header away before AH is checked, and AH covers what is in front.
        raise PacketError(Reason.FRAGMENT, "AH cannot stand behind an atomic fragment's header")
    return ip.transport_split(packet, headers)


def _protected_len(params: SaParams, version: int, payload_len: int) -> int:
    if params.protocol == ip.AH:
        return ah.header_len(params, version) + payload_len
    return esp.sealed_len(params, payload_len) + (udp.HEADER_LEN if params.udp_encap else 0)


def _locate(data: bytes) -> IpsecHeader:
    packet = ip.parse(data)
    headers = ip.chain(packet)
    if ip.is_fragment(packet, headers):
        raise PacketError(Reason.FRAGMENT, "IPsec comes after reassembly")
    whole = ip.without_atomic_fragment(packet, headers)
    if whole is not packet:
        packet, headers = whole, ip.chain(whole)
    protocol, begin, end = headers.protocol, headers.offset, len(packet.data)
    sport = dport = 0
    in_udp = protocol == ip.UDP
    if in_udp:
        sport, dport, begin, end = udp.decapsulate(packet.data, begin)
        protocol = ip.ESP
    if protocol not in _SPI_AT:
        raise PacketError(Reason.NOT_IPSEC)
    if end - begin < _MIN_LEN[protocol]:
        raise PacketError(Reason.MALFORMED, "IPsec header is cut short")
    spi, sequence = _SPI_SEQUENCE.unpack_from(packet.data, begin + _SPI_AT[protocol])
    if not spi:
        raise PacketError(Reason.NOT_IPSEC, "SPI 0 is never sent (RFC 4303 2.1)")
    return IpsecHeader(protocol, spi, sequence, packet, headers, begin, end, in_udp, sport, dport)


def _inbound(sa: InboundSa, found: IpsecHeader) -> Inbound:
    params, packet = sa.params, found.packet
    if (found.protocol, found.spi) != (params.protocol, params.spi):
        raise PacketError(Reason.UNKNOWN_SA, "the packet belongs to another SA")
    if found.udp and not params.udp_encap:
        raise PacketError(Reason.NOT_IPSEC, "the SA has no UDP encapsulation")
    if packet.version == 4 and ip.checksum(packet.data[: packet.header_len]):
        raise PacketError(Reason.MALFORMED, "wrong checksum in the outer IPv4 header")
    sa.check_usable()
    sequence = sa.window.check(found.sequence)
    if params.protocol == ip.AH:
        payload_at, next_header = ah.split(params, packet.data, packet.version, found.offset)
        octets = ah.verify(sa, sequence, packet.data, found.headers)
        sa.window.accept(sequence)
        payload = packet.data[payload_at:]
    else:
        plaintext = esp.unseal(sa, sequence, packet.data[found.offset : found.end])
        sa.window.accept(sequence)
        octets = len(plaintext)
        payload, next_header = padding.split(plaintext)
    try:
        result = _released(params, found, payload, next_header)
    except PacketError as error:
        if error.reason in _PROPERLY_DISCARDED:
            sa.lifetime.count(octets)
        raise
    sa.lifetime.count(octets)
    return Inbound(result, sa.soft_expired, sequence, next_header)


def _released(params: SaParams, found: IpsecHeader, payload: bytes, next_header: int) -> bytes:
    """The IP packet that an authenticated payload stands for."""
    packet, is_esp = found.packet, params.protocol == ip.ESP
    if is_esp and next_header == ip.NO_NEXT_HEADER:
        raise PacketError(Reason.DUMMY, "dummy packet (RFC 4303 2.6)")
    if not params.is_tunnel:
        if is_esp:
            payload = padding.without_tfc(payload, next_header)
        head = packet.data[: found.headers.offset]
        return ip.header_for(head, found.headers.protocol_at, next_header, len(payload)) + payload
    version = _INNER_VERSION.get(next_header)
    if version is None:
        raise PacketError(Reason.BAD_NEXT_HEADER, "a tunnel carries IPv4 or IPv6")
    try:
        inner = ip.parse(payload)  # cuts traffic flow confidentiality padding off, too
    except PacketError:
        raise PacketError(Reason.BAD_INNER, "the tunnelled packet is malformed") from None
    if inner.version != version:
        raise PacketError(Reason.BAD_INNER, "the tunnelled packet is not what the next header says")
    if params.options & _ECN:
        return outer.with_congestion_mark(inner, packet.traffic_class & 3)
    return inner.data
