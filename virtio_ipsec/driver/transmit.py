"""The header of a packet to send (virtio v1.4 5.1.6.2), and how long it may become.

Where the driver clauses are obeyed:

========================  ======================================================================
NET-TX-DRV-01             one header codec per session serves transmit and receive buffers
NET-TX-DRV-02             ``num_buffers`` stays 0
NET-TX-DRV-03             without CSUM the checksum is completed here and ``flags`` is 0, the
                          IPsec bit aside (E50)
NET-TX-DRV-04             ``outer_nh_offset`` only with OUT_NET_HEADER and an IP header there
NET-TX-DRV-05 to -08, -21 :func:`_gso_type`: each type needs its feature; UFO is never used
NET-TX-DRV-09             :func:`_gso_type`: CWR or ECE needs HOST_ECN and sets GSO_ECN
NET-TX-DRV-10 to -16      :func:`_tunnel`: the bit follows the inner version and needs its feature;
                          never with UFO; UDP_TUNNEL_CSUM only together with it
NET-TX-DRV-25 to -29      :func:`_tunnel`: both offsets; the outer checksum is 0 or seeded
NET-TX-DRV-17 to -20      :func:`_request_checksum` computes offsets and seed itself
NET-TX-DRV-22             a GSO request always asks for the checksum and has a size
NET-TX-DRV-23, -24        ``hdr_len`` is exact wherever the headers are understood
NET-TX-DRV-31, -32        DATA_VALID and RSC_INFO do not occur
NET-TX-DRV-33, -34        the SA is a live handle; ``Sas.for_transmit`` checks that
RFC-05 to -07             :func:`build`: the dialect's flag, the id, and always the type
NET-TX-INT-02             ``outer_nh_offset`` 0 where unknown
NET-IPSEC-DRV-07          ``Driver.send`` checks :func:`packet_lengths` + :func:`worst_overhead`
========================  ======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from virtio_ipsec.crypto.algorithms import Suite, ah_suite, esp_suite
from virtio_ipsec.driver.errors import DriverError, NotNegotiated
from virtio_ipsec.driver.frames import (
    UDP,
    Headers,
    complete_checksum,
    fix_ipv4_checksum,
    parse_frame,
    parse_ip,
    pseudo_sum,
)
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, IpsecMode, IpsecOption, ResourceType, has
from virtio_ipsec.wire.tunnel import TunnelIPv6

TUNNEL_MODES = frozenset({IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL})
_AH_MODES = frozenset({IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT})
_UDP_ENCAP = int(IpsecOption.UDP_ENCAP)
_ECN_FLAGS = 0xC0  # CWR and ECE in byte 13 of a TCP header


@dataclass(frozen=True, slots=True)
class Offload:
    """What the device is asked to do with a packet besides IPsec.

    ``checksum``: complete the transport checksum. ``gso_size``: cut into segments of that many payload bytes
    (0: send as it is); implies ``checksum``. ``inner_network``: offset of the inner network header of a
    UDP-tunnelled packet to segment (0: no tunnel). ``outer_checksum``: complete the outer UDP checksum too.
    """

    checksum: bool = False
    gso_size: int = 0
    inner_network: int = 0
    outer_checksum: bool = False


PLAIN = Offload()


def build(
    frame: bytes,
    features: int,
    dialect: Dialect,
    offload: Offload = PLAIN,
    *,
    sa_id: int | None = None,
) -> tuple[NetHdr, bytes]:
    """Header and frame to queue. ``sa_id``: the outbound SA that protects the packet.

    Raises NotNegotiated for an offload without its feature, DriverError for one the frame does not allow.
    """
    outer = parse_frame(frame)
    data = bytearray(frame)
    header = NetHdr(hdr_len=min(outer.payload, 0xFFFF))
    if has(features, Feature.NET_F_OUT_NET_HEADER) and outer.version:
        header = replace(header, outer_nh_offset=outer.network)
    if offload.inner_network or offload.outer_checksum:
        if sa_id is not None:
            raise DriverError("UDP-tunnel offload of a packet that IPsec protects is not defined (E62)")
        header, outer = _tunnel(header, data, outer, features, offload)
    if offload.gso_size:
        header = replace(
            header,
            gso_type=header.gso_type | _gso_type(frame, outer, features),
            gso_size=_size(offload.gso_size),
            hdr_len=outer.payload,
        )
    if offload.gso_size or offload.checksum:
        header = _request_checksum(header, data, outer, features)
    if sa_id is not None:
        if not outer.version:
            raise DriverError("IPsec protects IP packets only: this frame carries none (E64)")
        kind = ResourceType.NET_IPSEC_OUTB_SA  # E60
        header = replace(
            header, flags=header.flags | dialect.flag_security, resource_id=sa_id, resource_type=kind
        )
    return header, bytes(data)


def _size(gso_size: int) -> int:
    if not 0 < gso_size <= 0xFFFF:
        raise DriverError(f"a segment size of {gso_size} bytes")
    return gso_size


def _gso_type(frame: bytes, headers: Headers, features: int) -> int:
    if not headers.transport:
        raise DriverError("segmentation needs an unfragmented TCP or UDP packet")
    if headers.protocol == UDP:
        _need(features, Feature.NET_F_HOST_USO)
        return GsoType.UDP_L4
    kind, feature = (
        (GsoType.TCPV4, Feature.NET_F_HOST_TSO4)
        if headers.version == 4
        else (GsoType.TCPV6, Feature.NET_F_HOST_TSO6)
    )
    _need(features, feature)
    if frame[headers.transport + 13] & _ECN_FLAGS:
        _need(features, Feature.NET_F_HOST_ECN)
        return kind | GsoType.ECN
    return kind


def _tunnel(
    header: NetHdr, data: bytearray, outer: Headers, features: int, offload: Offload
) -> tuple[NetHdr, Headers]:
    """Tunnel bits and offsets; returns the inner headers, which the other requests then refer to."""
    _need(features, Feature.NET_F_HOST_UDP_TUNNEL_GSO)
    at = offload.inner_network
    if outer.protocol != UDP or not outer.payload <= at < len(data) or not outer.transport:
        raise DriverError(f"no inner network header at {at}: the frame is no UDP tunnel, or it lies outside")
    inner = parse_ip(data, at, data[at] >> 4)
    if not offload.gso_size or not inner.transport:
        raise DriverError("UDP-tunnel offload is for segmentation of an inner TCP or UDP packet only")
    flags, checksum = header.flags, slice(outer.transport + 6, outer.transport + 8)
    if offload.outer_checksum:
        _need(features, Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM)
        flags |= HdrFlag.UDP_TUNNEL_CSUM
        seed = pseudo_sum(data, outer, outer.end - outer.transport)
        data[checksum] = seed.to_bytes(2, "big")
    else:
        # A final sum would have to suit every segment; 0 says that there is none.
        data[checksum] = b"\0\0"
    if outer.version == 4:
        fix_ipv4_checksum(data, outer.network)
    bit = GsoType.UDP_TUNNEL_IPV4 if inner.version == 4 else GsoType.UDP_TUNNEL_IPV6
    header = replace(header, flags=flags, gso_type=bit, outer_th_offset=outer.transport, inner_nh_offset=at)
    return header, inner


def _request_checksum(header: NetHdr, data: bytearray, headers: Headers, features: int) -> NetHdr:
    if not headers.transport:
        raise DriverError("a checksum request needs an unfragmented TCP or UDP packet")
    start, offset = headers.transport, headers.csum_offset
    if headers.version == 4:
        fix_ipv4_checksum(data, headers.network)
    del data[headers.end :]  # padding after the IP packet is no part of the sum
    seed = pseudo_sum(data, headers, len(data) - start)
    data[start + offset : start + offset + 2] = seed.to_bytes(2, "big")
    if not has(features, Feature.NET_F_CSUM):
        complete_checksum(data, start, offset, udp=headers.protocol == UDP)
        return header
    return replace(header, flags=header.flags | HdrFlag.NEEDS_CSUM, csum_start=start, csum_offset=offset)


def _need(features: int, feature: Feature) -> None:
    if not has(features, feature):
        raise NotNegotiated(f"this offload needs {feature.name}, which was not negotiated")


def worst_overhead(sa: IpsecSa) -> int:
    """The most bytes by which protection by ``sa`` can lengthen an IP packet (RFC 4303 2, RFC 4302 2)."""
    suite = suite_of(sa)
    if sa.mode in _AH_MODES:
        added = 12 + suite.icv_field_len
        added += -added % 8  # IPv6 asks for a multiple of 8, IPv4 for 4
    else:
        # SPI, sequence number, IV; padding up to the alignment, pad length, next header; ICV.
        added = 8 + suite.iv_len + (suite.alignment - 1) + 2 + suite.icv_len
        if sa.options & _UDP_ENCAP:
            added += 8
    if sa.mode in TUNNEL_MODES:
        added += 40 if isinstance(sa.param, TunnelIPv6) else 20
    return added


def suite_of(sa: IpsecSa) -> Suite:
    """The algorithm combination of an SA. Raises UnsupportedAlgorithm."""
    if sa.mode in _AH_MODES:
        return ah_suite(sa.auth_algo, sa.auth_key_length, sa.cipher_algo, sa.cipher_key_length)
    return esp_suite(sa.cipher_algo, sa.auth_algo, sa.cipher_key_length, sa.auth_key_length)


def packet_lengths(frame: bytes, offload: Offload) -> list[int]:
    """IP lengths of the packets that leave: one, or one for each segment."""
    headers = parse_frame(frame)
    network, payload = headers.network, headers.payload
    whole = headers.end - network
    if not offload.gso_size:
        return [whole]
    at = offload.inner_network
    if at:
        payload = parse_ip(frame, at, frame[at] >> 4 if at < len(frame) else 0).payload
    head, body = payload - network, network + whole - payload
    full, rest = divmod(body, offload.gso_size)
    return [head + offload.gso_size] * full + ([head + rest] if rest or not full else [])
