"""ICMP errors about packets that a port has protected (RFC 4301 6.1.1, 8.2).

Anybody can write such a message. One is believed if it quotes the SPI that an SA of ours sends to that destination, and
a sequence number that was used lately; that is what somebody knows who has seen the packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy.icmp import IcmpError
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.policy.state import PortState, tunnel_target
from virtio_ipsec.policy.tables import Address

#: How far behind the number used last a quoted one may be.
RECENT = 1 << 16
_UDP_HEADER_LEN = 8
_FRAGMENT_HEADER_LEN = 8


@dataclass(frozen=True, slots=True)
class Concerned:
    """The destination and length of the packet that was quoted. ``genuine``: it can be one of ours."""

    target: Address
    length: int
    genuine: bool


def concerned(state: PortState, error: IcmpError) -> Concerned | None:
    """What an error is about; None when that is no packet with IPsec, so that the error is somebody else's."""
    quoted = error.quoted
    source: Address
    target: Address
    if error.version == 4:
        source, target = IPv4Address(quoted[12:16]), IPv4Address(quoted[16:20])
        protocol, at, length = quoted[9], (quoted[0] & 15) * 4, int.from_bytes(quoted[2:4])
        if int.from_bytes(quoted[6:8]) & 0x1FFF:
            return None  # a later fragment shows no SPI
    else:
        source, target = IPv6Address(quoted[8:24]), IPv6Address(quoted[24:40])
        protocol, at, length = quoted[6], ip.IPV6_HEADER_LEN, int.from_bytes(quoted[4:6]) + ip.IPV6_HEADER_LEN
        if protocol == ip.FRAGMENT and len(quoted) >= at + _FRAGMENT_HEADER_LEN:
            if int.from_bytes(quoted[at + 2 : at + 4]) & 0xFFF8:
                return None
            protocol, at = quoted[at], at + _FRAGMENT_HEADER_LEN
    in_udp = protocol == ip.UDP
    if in_udp:
        ports = quoted[at : at + 4]
        protocol, at = ip.ESP, at + _UDP_HEADER_LEN
    spi_at = at + (4 if protocol == ip.AH else 0)
    if protocol not in {ip.ESP, ip.AH} or len(quoted) < spi_at + 8:
        return None
    spi, sequence = (int.from_bytes(quoted[n : n + 4]) for n in (spi_at, spi_at + 4))
    possible = [
        held
        for held in state.sas.sent_with(protocol, spi)
        if held.spec.params.udp_encap == in_udp and (not in_udp or ports == _ports(held))
    ]
    if not possible:
        ours = state.underlay is not None and state.underlay.owns(source)
        return Concerned(target, length, genuine=False) if ours and not in_udp else None
    genuine = any(_sent(state, held, source, target, sequence) for held in possible)
    return Concerned(target, length, genuine)


def _ports(held: HeldSa) -> bytes:
    return held.spec.params.udp_sport.to_bytes(2) + held.spec.params.udp_dport.to_bytes(2)


def _sent(state: PortState, held: HeldSa, source: Address, target: Address, sequence: int) -> bool:
    """Whether the SA can have sent a packet to ``target`` under that number not long ago."""
    peer = tunnel_target(held.spec.params)
    if peer is not None and (peer != target or state.underlay is None or not state.underlay.owns(source)):
        return False
    last: int = getattr(held.engine, "sequence", 0)
    behind = (last - sequence) & 0xFFFF_FFFF
    return behind < min(RECENT, last)
