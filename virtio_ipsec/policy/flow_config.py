"""Flows as a configuration file gives them, and the selectors of flows and inbound SAs."""

from __future__ import annotations

from collections.abc import Collection

from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.selectors import WITH_PORTS, WITH_TYPE, Range, Selector
from virtio_ipsec.policy.tables import Network, Table

IP_PROTOCOLS = {
    "icmp": 1,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "sctp": 132,
    "udplite": 136,
}
FLOW_FIELDS = frozenset({"name", "match", "service", "action", "sa", "priority"})
SELECTOR_FIELDS = frozenset(
    {"src", "dst", "local", "remote", "protocol", "sport", "dport", "local_port", "remote_port", "icmp_type"}
)
MATCH_FIELDS = SELECTOR_FIELDS | {"ethertype"}
HIGHEST_PRIORITY = 0xFFFF_FFFF

_UDP, _ICMPV6 = IP_PROTOCOLS["udp"], IP_PROTOCOLS["icmpv6"]
_IP_ETHERTYPES = frozenset({0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100})


def _icmpv6(first: int, last: int) -> Selector:
    return Selector(protocol=_ICMPV6, icmp=(first << 8, last << 8 | 0xFF))


def _udp(local: int, remote: int | None = None) -> Selector:
    ports = None if remote is None else (remote, remote)
    return Selector(protocol=_UDP, local_ports=(local, local), remote_ports=ports)


#: Traffic that a host cannot do without in front of IPsec, by name. IKE is bound to our own ports only: a rule for the
#: other side's ports would let everybody in who sends from port 500. RARP tells switches where a migrated guest is.
SERVICES: dict[str, tuple[tuple[Selector, ...], frozenset[int]]] = {
    "arp": ((), frozenset({0x0806, 0x8035})),
    "nd": ((_icmpv6(133, 136),), frozenset()),
    "mld": ((_icmpv6(130, 132), _icmpv6(143, 143)), frozenset()),
    "dhcp": ((_udp(68, 67), _udp(546, 547)), frozenset()),
    "ike": ((_udp(500), _udp(4500)), frozenset()),
}


def read_flow(table: Table, outbound: Collection[int] | None) -> Flow:
    """A flow; ``outbound``: the ids that its ``sa`` may name, None for any. Raises ConfigError."""
    action = Action(table.choice("action", {action.value: action for action in Action}))
    selectors: tuple[Selector, ...]
    if table.has("service"):
        if table.has("match"):
            table.refuse("match", "and service exclude each other")
        selectors, ethertypes = SERVICES[table.choice("service", SERVICES)]
    else:
        selectors, ethertypes = _match(table)
    if ethertypes and action is Action.PROTECT:
        table.refuse("action", "protect is for IP packets")
    sa = None
    if action is Action.PROTECT:
        sa = table.integer("sa", 0, 0xFFFF_FFFF)
        if outbound is not None and sa not in outbound:
            table.refuse("sa", f"names no outbound SA with id {sa}")
    elif table.has("sa"):
        table.refuse("sa", f"has no meaning with action {action.value}")
    priority = table.integer("priority", 0, HIGHEST_PRIORITY, 0)
    return Flow(action, selectors, ethertypes, sa, priority, table.line("name") or "")


def _match(table: Table) -> tuple[tuple[Selector, ...], frozenset[int]]:
    match = table.table("match", MATCH_FIELDS)
    if match is None:
        return (Selector(),), frozenset()
    if not match.has("ethertype"):
        return (read_selector(match),), frozenset()
    if len(match.values) > 1:
        match.refuse("ethertype", "stands alone: it is for frames that are not IP")
    ethertype = match.integer("ethertype", 0x600, 0xFFFF)
    if ethertype in _IP_ETHERTYPES:
        match.refuse("ethertype", "is that of IP or of a tag; match addresses and protocols instead")
    return (), frozenset({ethertype})


def read_selector(match: Table) -> Selector:
    """A selector. ``src``, ``sport`` and ``dst``, ``dport`` are those of packets that leave. Raises ConfigError."""
    local, remote = _network(match, "src", "local"), _network(match, "dst", "remote")
    if local is not None and remote is not None and local.version != remote.version:
        match.refuse("src", "and dst must be of one address family")
    protocol = _protocol(match)
    ports = _ports(match, "sport", "local_port"), _ports(match, "dport", "remote_port")
    if any(ports) and protocol not in WITH_PORTS:
        match.refuse("protocol", "must be tcp, udp or sctp when a port is given")
    types = match.span("icmp_type", 255)
    if types and protocol not in WITH_TYPE:
        match.refuse("protocol", "must be icmp or icmpv6 when icmp_type is given")
    icmp = (types[0] << 8, types[1] << 8 | 0xFF) if types else None
    return Selector(local, remote, protocol, ports[0], ports[1], icmp)


def _one_of(match: Table, leaving: str, ours: str) -> str:
    if match.has(leaving) and match.has(ours):
        match.refuse(ours, f"and {leaving} are the same field")
    return ours if match.has(ours) else leaving


def _network(match: Table, leaving: str, ours: str) -> Network | None:
    return match.network(_one_of(match, leaving, ours))


def _ports(match: Table, leaving: str, ours: str) -> Range | None:
    return match.span(_one_of(match, leaving, ours), 0xFFFF)


def _protocol(match: Table) -> int | None:
    if not match.has("protocol"):
        return None
    if isinstance(match.values["protocol"], str):
        return IP_PROTOCOLS[match.choice("protocol", IP_PROTOCOLS)]
    return match.integer("protocol", 0, 255)
