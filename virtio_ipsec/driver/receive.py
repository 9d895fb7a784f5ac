"""What a received packet means (virtio v1.4 5.1.6.4).

Where the driver clauses are obeyed:

====================  =========================================================================
NET-RX-DRV-01        only known flag bits are looked at
NET-RX-DRV-02        ``network_offset`` is None unless OUT_NET_HEADER and non-zero
NET-RX-DRV-03        :func:`_checksum`: offsets are used with NEEDS_CSUM and without RSC_INFO only
NET-RX-DRV-04        ``hdr_len`` is not used at all
NET-RX-DRV-05        ``checksum_valid`` needs NEEDS_CSUM or DATA_VALID
NET-RX-DRV-06 to -09 :func:`_tunnel_fault`: the packet is refused; offsets only with a tunnel bit
RFC-22, RFC-23       ``protected`` needs SECURITY without SECURITY_ERR, and an SA by ``resource_id``
NET-IPSEC-INT-01     an id without a live SA gives ``sa`` None, ``stale`` and not ``protected``
====================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from virtio_ipsec.driver.errors import DriverError
from virtio_ipsec.driver.frames import complete_checksum
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, ResourceType, has

Sa = TypeVar("Sa")

_UDP_CSUM_OFFSET = 6
_TUNNEL = GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6
#: gso_type without its flags -> features of which one must have been negotiated
_GSO_FEATURES: dict[int, tuple[Feature, ...]] = {
    GsoType.TCPV4: (Feature.NET_F_GUEST_TSO4,),
    GsoType.UDP: (Feature.NET_F_GUEST_UFO,),
    GsoType.TCPV6: (Feature.NET_F_GUEST_TSO6,),
    GsoType.UDP_L4: (Feature.NET_F_GUEST_USO4, Feature.NET_F_GUEST_USO6),
}


class Fault(StrEnum):
    """Why a received buffer was not taken as a packet: the name of its counter."""

    SHORT = "rx_short"
    BAD_LENGTH = "rx_bad_length"
    BAD_NUM_BUFFERS = "rx_bad_num_buffers"
    BAD_CHECKSUM_OFFSETS = "rx_bad_checksum_offsets"
    BAD_GSO = "rx_bad_gso"
    BAD_TUNNEL = "rx_bad_tunnel"


class Refused(DriverError):
    """A received packet that the driver does not accept."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"received packet refused: {fault.value}")
        self.fault = fault


@dataclass(frozen=True, slots=True)
class ReceivedPacket(Generic[Sa]):
    """One received packet.

    ``protected``: the device opened it with a live inbound SA (``sa``) and reports no error. ``error``: IPsec
    failed; ``frame`` is what came from the wire and must not pass as protected. ``stale``: the device names
    an SA that has been destroyed meanwhile. ``checksum_valid``: the transport checksum was verified, or the
    device vouched for the packet and left the sum to the driver, who completed it in ``frame``.
    ``soft_expired``: that SA reached a soft limit. ``flags`` are the header's, as received.
    """

    frame: bytes
    queue: int
    flags: int
    protected: bool
    error: bool
    soft_expired: bool
    sa: Sa | None
    stale: bool
    checksum_valid: bool
    gso_type: int = GsoType.NONE
    gso_size: int = 0
    hash_value: int = 0
    hash_report: int = 0
    network_offset: int | None = None
    tunnel_offsets: tuple[int, int] | None = None


def interpret(
    header: NetHdr,
    frame: bytes,
    queue: int,
    features: int,
    dialect: Dialect,
    find: Callable[[int], Sa | None],
) -> ReceivedPacket[Sa]:
    """What ``header`` says about ``frame``. ``find`` maps the id of an inbound SA to its handle, None when it
    is not live. Raises Refused for a packet that must not, or cannot, be accepted."""
    flags = header.flags if has(features, Feature.NET_F_GUEST_CSUM) else 0
    base = header.gso_type & ~(_TUNNEL | GsoType.ECN)
    if _tunnel_fault(header, base, features, dialect):
        raise Refused(Fault.BAD_TUNNEL)
    if base != GsoType.NONE:
        allowed = any(has(features, one) for one in _GSO_FEATURES.get(base, ()))
        if not allowed or not flags & HdrFlag.NEEDS_CSUM or not header.gso_size:
            raise Refused(Fault.BAD_GSO)

    ipsec = header.flags if has(features, Feature.NET_F_IPSEC) else 0
    error = bool(ipsec & dialect.flag_security_err)
    processed = bool(ipsec & dialect.flag_security)
    named = processed and header.resource_type == ResourceType.NET_IPSEC_INB_SA  # E51, E52
    sa = find(header.resource_id) if named else None
    tunnel = header.gso_type & _TUNNEL
    hashed = has(features, Feature.NET_F_HASH_REPORT)
    use_network = has(features, Feature.NET_F_OUT_NET_HEADER) and 0 < header.outer_nh_offset < len(frame)
    # A packet that IPsec refused stays as it came, and nobody vouches for it.
    frame, valid = (frame, False) if error else _checksum(header, frame, flags)
    return ReceivedPacket(
        frame=frame,
        queue=queue,
        flags=header.flags,
        protected=processed and not error and sa is not None,
        error=error,
        soft_expired=processed and bool(ipsec & dialect.flag_soft_expiry),
        sa=sa,
        stale=named and sa is None,
        checksum_valid=valid,
        gso_type=header.gso_type,
        gso_size=header.gso_size if base != GsoType.NONE else 0,
        hash_value=header.hash_value if hashed else 0,
        hash_report=header.hash_report if hashed else 0,
        network_offset=header.outer_nh_offset if use_network else None,
        tunnel_offsets=(header.outer_th_offset, header.inner_nh_offset) if tunnel else None,
    )


def _tunnel_fault(header: NetHdr, base: int, features: int, dialect: Dialect) -> bool:
    tunnel, flags = header.gso_type & _TUNNEL, header.flags
    if not tunnel:
        return bool(flags & dialect.flag_udp_tunnel_csum and flags & HdrFlag.NEEDS_CSUM)
    return (
        tunnel == _TUNNEL
        or not has(features, Feature.NET_F_GUEST_UDP_TUNNEL_GSO)
        or not flags & HdrFlag.NEEDS_CSUM
        or bool(flags & HdrFlag.DATA_VALID)
        or base == GsoType.NONE
    )


def _checksum(header: NetHdr, frame: bytes, flags: int) -> tuple[bytes, bool]:
    if not flags & HdrFlag.NEEDS_CSUM or flags & HdrFlag.RSC_INFO:
        return frame, bool(flags & HdrFlag.DATA_VALID)
    start, offset = header.csum_start, header.csum_offset
    if start + offset + 2 > len(frame):
        raise Refused(Fault.BAD_CHECKSUM_OFFSETS)
    data = bytearray(frame)
    complete_checksum(data, start, offset, udp=offset == _UDP_CSUM_OFFSET)
    return bytes(data), True
