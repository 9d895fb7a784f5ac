"""Neighbour discovery for IPv6 over Ethernet (RFC 4861): solicitations and advertisements."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy import ethernet
from virtio_ipsec.policy.icmp import ICMPV6, icmpv6_packet, icmpv6_sum

SOLICITATION, ADVERTISEMENT = 135, 136
SOLICITED, OVERRIDE = 0x4000_0000, 0x2000_0000
HOP_LIMIT = 255

_SOURCE_LINK, _TARGET_LINK = 1, 2
_ALL_NODES = IPv6Address("ff02::1")
_FIXED = 24  # type, code, checksum, flags, target


@dataclass(frozen=True, slots=True)
class NdMessage:
    """``mac``: the link-layer address in the message's option, None without one. ``flags``: of advertisements."""

    kind: int
    source: IPv6Address
    destination: IPv6Address
    target: IPv6Address
    mac: bytes | None
    flags: int = 0


def solicited_node(address: IPv6Address) -> IPv6Address:
    """The multicast address at which a host listens for solicitations of ``address`` (RFC 4291 2.7.1)."""
    return IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + address.packed[-3:])


def read(data: bytes) -> NdMessage | None:
    """A solicitation or advertisement that passes the checks of RFC 4861 7.1; None for everything else.

    ``data`` is a packet that :func:`virtio_ipsec.ipsec.ip.parse` has accepted. Messages behind extension headers,
    and so fragments (RFC 6980), are not looked at.
    """
    packet = ip.parse(data)
    data = packet.data
    at = ip.IPV6_HEADER_LEN
    if packet.version != 6 or packet.protocol != ICMPV6 or packet.ttl != HOP_LIMIT or len(data) < at + _FIXED:
        return None
    kind, code = data[at], data[at + 1]
    if kind not in {SOLICITATION, ADVERTISEMENT} or code or icmpv6_sum(data, at):
        return None
    source, destination = IPv6Address(data[8:24]), IPv6Address(data[24:40])
    target = IPv6Address(data[at + 8 : at + _FIXED])
    options = _options(data[at + _FIXED :])
    if target.is_multicast or options is None:
        return None
    mac = options.get(_SOURCE_LINK if kind == SOLICITATION else _TARGET_LINK)
    flags = int.from_bytes(data[at + 4 : at + 8])
    if kind == SOLICITATION and source.is_unspecified and (mac or destination != solicited_node(target)):
        return None
    if kind == ADVERTISEMENT and destination.is_multicast and flags & SOLICITED:
        return None
    return NdMessage(kind, source, destination, target, mac, flags)


def _options(data: bytes) -> dict[int, bytes] | None:
    """Link-layer addresses by option; None when an option is empty or cut short (RFC 4861 4.6)."""
    found: dict[int, bytes] = {}
    while data:
        length = data[1] * 8 if len(data) > 1 else 0
        if not 0 < length <= len(data):
            return None
        if length == 8 and data[0] in {_SOURCE_LINK, _TARGET_LINK}:
            found[data[0]] = data[2:8]
        data = data[length:]
    return found


def solicitation(mac: bytes, source: IPv6Address, target: IPv6Address, to: bytes | None = None) -> bytes:
    """A frame that asks who has ``target``; ``to``: where it is thought to be, to ask there alone."""
    destination = target if to else solicited_node(target)
    body = bytes((SOLICITATION, 0, 0, 0)) + bytes(4) + target.packed + bytes((_SOURCE_LINK, 1)) + mac
    packet = icmpv6_packet(source.packed, destination.packed, body, HOP_LIMIT)
    return ethernet.header(to or ethernet.multicast(destination.packed), mac, ethernet.IPV6) + packet


def advertisement(mac: bytes, asked: NdMessage, to: bytes) -> bytes:
    """The frame that answers a solicitation: ``mac`` has the address asked for.

    Who probes whether the address is free (from the unspecified one) is answered at the address of all nodes.
    """
    if asked.source.is_unspecified:
        return announcement(mac, asked.target)
    return _advertisement(mac, asked.target, asked.source, to, SOLICITED | OVERRIDE)


def announcement(mac: bytes, address: IPv6Address) -> bytes:
    """The frame that tells all nodes, unasked, that ``mac`` has the address."""
    return _advertisement(mac, address, _ALL_NODES, ethernet.multicast(_ALL_NODES.packed), OVERRIDE)


def _advertisement(mac: bytes, address: IPv6Address, target: IPv6Address, to: bytes, flags: int) -> bytes:
    body = (
        bytes((ADVERTISEMENT, 0, 0, 0)) + flags.to_bytes(4) + address.packed + bytes((_TARGET_LINK, 1)) + mac
    )
    packet = icmpv6_packet(address.packed, target.packed, body, HOP_LIMIT)
    return ethernet.header(to, mac, ethernet.IPV6) + packet
