"""A port as a configuration file gives it: who controls IPsec there, and the network under an operator's tunnels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.ipsec.outer import addresses
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.policy.tables import Address, Table

Interface = IPv4Interface | IPv6Interface

PORT_FIELDS = frozenset(
    {
        "name",
        "control",
        "default",
        "guest_mac",
        "mtu",
        "mss_clamp",
        "socket",
        "vfio_user",
        "vfs",
        "vf_uplink",
        "owner_managed",
        "uplink",
        "queue_pairs",
        "underlay",
    }
)
UNDERLAY_FIELDS = frozenset({"mac", "addresses", "mtu", "next_hop", "gateways", "guest_gateways"})
AUTO = "auto"
DEFAULT_MTU = 1500
#: RFC 791 3.2 and RFC 8200 5: what every link must carry.
LEAST_MTU = {4: 68, 6: 1280}
MAX_QUEUE_PAIRS = 32768
#: Each is a port with threads of its own.
MAX_VFS = 64


class Control(StrEnum):
    """Who owns the SAs and flows of a port."""

    GUEST = "guest"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Underlay:
    """The network that carries the tunnels: our Ethernet address and IP addresses there, and the way out.

    ``mtu``: octets of IP packet. ``next_hop``: where every frame goes; None: on-link destinations and ``gateways``
    (one for each IP version at most) are resolved by ARP and neighbour discovery. ``guest_gateways``: further addresses
    that are ours towards the guest alone, in its own network, so that it can have one of them as its gateway.
    """

    mac: bytes
    addresses: tuple[Interface, ...]
    mtu: int = DEFAULT_MTU
    next_hop: bytes | None = None
    gateways: tuple[Address, ...] = ()
    guest_gateways: tuple[Address, ...] = ()

    def owns(self, address: Address) -> bool:
        """Whether the address is one of ours."""
        return any(each.ip == address for each in self.addresses)

    def serves(self, address: Address) -> bool:
        """Whether the address is one of ours towards the guest."""
        return address in self.guest_gateways or self.owns(address)

    def is_on_link(self, target: Address) -> bool:
        """Whether the address is of a neighbour: within a prefix of ours, or link-local."""
        near = any(target.version == each.version and target in each.network for each in self.addresses)
        return near or (target.version == 6 and target.is_link_local)

    def hop(self, target: Address) -> Address | None:
        """The neighbour that packets for ``target`` go to: itself when on-link, a gateway, or None."""
        if self.is_on_link(target):
            return target
        return next((each for each in self.gateways if each.version == target.version), None)

    def source_for(self, neighbour: Address) -> Address | None:
        """Our address from which to speak to a neighbour; None without one of its IP version."""
        same = [each for each in self.addresses if each.version == neighbour.version]
        near = (each.ip for each in same if neighbour in each.network)
        return next(near, same[0].ip if same else None)


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port. ``socket``, ``uplink``, ``queue_pairs`` and what follows are for the verb that serves it: over
    vhost-user at ``socket``, or as a PCI function at ``vfio_user`` with ``vfs`` virtual functions.

    ``default``: what happens where no flow matches; None on a guest's port. ``guest_mac`` None: learnt from the
    guest's frames. ``mtu``: the guest's, octets of IP packet. ``mss_clamp``: TCP connections through an SA are told
    to use segments that fit.
    """

    control: Control
    default: Action | None = None
    name: str = ""
    guest_mac: bytes | None = None
    mtu: int = DEFAULT_MTU
    mss_clamp: bool = False
    underlay: Underlay | None = None
    socket: str | None = None
    uplink: str | None = None
    queue_pairs: int = 1
    vfio_user: str | None = None
    vfs: int = 0
    vf_uplink: str | None = None
    owner_managed: bool = False


def read_port(table: Table) -> PortSpec:
    """The port's own fields; :func:`check_sas` looks at the rest. Raises ConfigError."""
    control = Control(table.choice("control", {each.value: each for each in Control}))
    default = None
    if control is Control.OPERATOR:
        default = Action(table.choice("default", {Action.DROP.value: 0, Action.BYPASS.value: 0}))
    else:
        for name in ("default", "underlay", "mss_clamp"):
            if table.has(name):
                table.refuse(name, "is for ports under an operator's control")
    underlay = table.table("underlay", UNDERLAY_FIELDS)
    return PortSpec(
        control=control,
        default=default,
        name=table.line("name") or "",
        guest_mac=table.mac("guest_mac"),
        mtu=table.integer("mtu", LEAST_MTU[4], 65535, DEFAULT_MTU),
        mss_clamp=table.boolean("mss_clamp"),
        underlay=_underlay(underlay) if underlay else None,
        socket=table.line("socket"),
        uplink=table.line("uplink"),
        queue_pairs=table.integer("queue_pairs", 1, MAX_QUEUE_PAIRS, 1),
        vfio_user=table.line("vfio_user"),
        vfs=table.integer("vfs", 0, MAX_VFS, 0),
        vf_uplink=table.line("vf_uplink"),
        owner_managed=table.boolean("owner_managed"),
    )


def _underlay(table: Table) -> Underlay:
    mac = table.mac("mac")
    if mac is None:
        table.refuse("mac", "is missing")
    mtu = table.integer("mtu", LEAST_MTU[4], 65535, DEFAULT_MTU)
    found = tuple(_interface(table, text) for text in table.texts("addresses"))
    if not found:
        table.refuse("addresses", 'is missing: our addresses with prefix length, as "192.0.2.1/24"')
    if len({each.ip for each in found}) < len(found):
        table.refuse("addresses", "holds an address twice")
    if any(mtu < LEAST_MTU[each.version] for each in found):
        table.refuse("mtu", f"must be at least {LEAST_MTU[6]} with IPv6 addresses")
    gateways, guest_gateways = (
        tuple(_interface(table, text, name).ip for text in table.texts(name))
        for name in ("gateways", "guest_gateways")
    )
    if len({each.version for each in gateways}) < len(gateways):
        table.refuse("gateways", "has room for one of each IP version")
    next_hop = None if table.values.get("next_hop", AUTO) == AUTO else table.mac("next_hop")
    result = Underlay(mac, found, mtu, next_hop, gateways, guest_gateways)
    for gateway in gateways:
        if not result.is_on_link(gateway):
            table.refuse("gateways", "must be on-link: within the prefix of one of the addresses")
        if result.owns(gateway):
            table.refuse("gateways", "must not be our own address")
    return result


def _interface(table: Table, text: str, name: str = "addresses") -> Interface:
    try:
        found = ip_interface(text)
    except ValueError:
        table.refuse(name, "must be IP addresses")
    address = found.ip
    if (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or getattr(found, "scope_id", None)
    ):
        table.refuse(name, "must be addresses of one host, without a zone")
    if name != "addresses" and "/" in text:
        table.refuse(name, "have no prefix length")
    return found


def check_sas(port: PortSpec, sas: Iterable[SaSpec]) -> None:
    """Refuse SAs that an operator's port could not use as they are meant. Raises ConfigError."""
    for spec in sas:
        check_sa(port, spec)


def check_sa(port: PortSpec, spec: SaSpec) -> None:
    """:func:`check_sas` for one."""
    place = f"{'outbound' if spec.outbound else 'inbound'} sa id {spec.id}"
    if port.control is Control.GUEST:
        raise ConfigError(f"{place}: the driver owns the SAs of a guest's port")
    if not spec.outbound and spec.admitted is None:
        raise ConfigError(f"{place}: selectors is missing: an operator's port must know what may come out")
    if spec.params.is_tunnel and port.underlay is None:
        raise ConfigError(f"{place}: a tunnel needs [port.underlay]")
    tunnel = spec.params.tunnel
    if tunnel is None or port.underlay is None:
        return
    source, target = addresses(tunnel)
    if not port.underlay.owns(source):
        raise ConfigError(f"{place}: tunnel src is not one of the underlay's addresses")
    if target.is_multicast or port.underlay.owns(target):
        raise ConfigError(f"{place}: tunnel dst must be the address of another host")
    if port.underlay.next_hop is None and port.underlay.hop(target) is None:
        raise ConfigError(f"{place}: tunnel dst is neither on-link nor behind a gateway")
