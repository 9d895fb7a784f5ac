"""Address resolution for IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from virtio_ipsec.policy.ethernet import ARP, BROADCAST, header

REQUEST, REPLY = 1, 2

_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET_IPV4 = (1, 0x0800, 6, 4)


@dataclass(frozen=True, slots=True)
class ArpPacket:
    """``sender_mac`` is what the packet claims, which need not be the source of the frame."""

    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target: IPv4Address

    @property
    def claims(self) -> bool:
        """Whether the sender says that it has an address: a probe (RFC 5227) says nothing."""
        return not self.sender.is_unspecified


def read(payload: bytes) -> ArpPacket | None:
    """A request or reply for IPv4 over Ethernet; None for everything else."""
    if len(payload) < _PACKET.size:
        return None
    *kind, operation, sender_mac, sender, _, target = _PACKET.unpack_from(payload)
    if tuple(kind) != _ETHERNET_IPV4 or operation not in {REQUEST, REPLY}:
        return None
    return ArpPacket(operation, sender_mac, IPv4Address(sender), IPv4Address(target))


def request(mac: bytes, source: IPv4Address, target: IPv4Address, to: bytes = BROADCAST) -> bytes:
    """A frame that asks who has ``target``; ``to``: where it is thought to be, to ask there alone."""
    body = _PACKET.pack(*_ETHERNET_IPV4, REQUEST, mac, source.packed, bytes(6), target.packed)
    return header(to, mac, ARP) + body


def reply(mac: bytes, asked: ArpPacket) -> bytes:
    """The frame that answers: ``mac`` has the address asked for."""
    body = _PACKET.pack(
        *_ETHERNET_IPV4, REPLY, mac, asked.target.packed, asked.sender_mac, asked.sender.packed
    )
    return header(asked.sender_mac, mac, ARP) + body
