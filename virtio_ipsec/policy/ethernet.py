"""Ethernet headers of frames: where the packet begins, whose frame it is, and how to write one."""

from __future__ import annotations

from typing import NamedTuple

HEADER = 14
IPV4 = 0x0800
ARP = 0x0806
IPV6 = 0x86DD
TAGS = frozenset({0x8100, 0x88A8, 0x9100})
BROADCAST = b"\xff" * 6
ETHERTYPES = {4: IPV4, 6: IPV6}
#: IP version by EtherType.
VERSIONS = {IPV4: 4, IPV6: 6}


class Link(NamedTuple):
    """``l3``: offset of what the frame carries. ``tagged``: a tag names a VLAN, not a priority alone."""

    l3: int
    ethertype: int
    tagged: bool


def read_link(frame: bytes) -> Link | None:
    """The header of a frame, tags included; None when it is cut short."""
    at = HEADER
    tagged = False
    while len(frame) >= at:
        ethertype = int.from_bytes(frame[at - 2 : at])
        if ethertype not in TAGS:
            return Link(at, ethertype, tagged)
        tagged = tagged or bool(int.from_bytes(frame[at : at + 2]) & 0xFFF)
        at += 4
    return None


def header(target: bytes, source: bytes, ethertype: int) -> bytes:
    """An Ethernet header without tags."""
    return target + source + ethertype.to_bytes(2)


def is_group(mac: bytes) -> bool:
    """Whether the address is one of a group, broadcast included."""
    return bool(mac[0] & 1)


def multicast(address: bytes) -> bytes:
    """The group address that carries an IPv6 multicast address (RFC 2464 7)."""
    return b"\x33\x33" + address[-4:]
