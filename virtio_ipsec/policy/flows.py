"""Which packet is protected by which SA: selectors in order, first match decides (RFC 4301 4.4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from virtio_ipsec.ipsec.ip import chain, is_fragment, parse

#: Protocols whose header begins with source and destination port: TCP, UDP, SCTP.
WITH_PORTS = frozenset({6, 17, 132})


class Action(StrEnum):
    """What to do with a packet that a flow matches."""

    PROTECT = "protect"
    BYPASS = "bypass"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Selector:
    """The fields a packet must have; None matches anything. A packet whose ports cannot be seen (a later
    fragment, an encrypted payload) does not match a selector that names one."""

    src: IPv4Network | IPv6Network | None = None
    dst: IPv4Network | IPv6Network | None = None
    protocol: int | None = None
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A selector with its action; ``sa`` is the id of the outbound SA when the action is PROTECT."""

    selector: Selector
    action: Action
    sa: int | None = None


def first_match(flows: Iterable[Flow], packet: bytes) -> Flow | None:
    """The first flow whose selector matches the IP packet, or None.

    Raises PacketError when the packet is not well-formed IP.
    """
    fields = _fields(packet)
    return next((flow for flow in flows if _matches(flow.selector, fields)), None)


@dataclass(frozen=True, slots=True)
class _Fields:
    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    protocol: int
    ports: tuple[int, int] | None


def _fields(data: bytes) -> _Fields:
    packet = parse(data)
    headers = chain(packet)
    at = headers.offset
    visible = not is_fragment(packet, headers) and headers.protocol in WITH_PORTS
    ports = packet.data[at : at + 4] if visible else b""
    pair = (int.from_bytes(ports[:2]), int.from_bytes(ports[2:])) if len(ports) == 4 else None
    if packet.version == 4:
        return _Fields(IPv4Address(data[12:16]), IPv4Address(data[16:20]), headers.protocol, pair)
    return _Fields(IPv6Address(data[8:24]), IPv6Address(data[24:40]), headers.protocol, pair)


def _matches(selector: Selector, fields: _Fields) -> bool:
    wanted_ports = selector.sport is not None or selector.dport is not None
    return (
        (selector.src is None or _inside(fields.src, selector.src))
        and (selector.dst is None or _inside(fields.dst, selector.dst))
        and (selector.protocol is None or fields.protocol == selector.protocol)
        and (not wanted_ports or (fields.ports is not None and _ports_match(selector, fields.ports)))
    )


def _inside(address: IPv4Address | IPv6Address, network: IPv4Network | IPv6Network) -> bool:
    return address.version == network.version and address in network


def _ports_match(selector: Selector, ports: tuple[int, int]) -> bool:
    return selector.sport in {None, ports[0]} and selector.dport in {None, ports[1]}
