"""What the two ways through an operator's port share: rules, SAs, paths, counters and the guest's address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.outer import addresses
from virtio_ipsec.ipsec.process import overhead
from virtio_ipsec.ipsec.sa import SaParams
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.ethernet import VERSIONS, Link, is_group, read_link
from virtio_ipsec.policy.flows import Flow, ordered
from virtio_ipsec.policy.path_mtu import PathMtus
from virtio_ipsec.policy.port_config import PortSpec, Underlay
from virtio_ipsec.policy.rate import SECOND, TokenBucket
from virtio_ipsec.policy.sas import SaDatabase
from virtio_ipsec.policy.selectors import Policy
from virtio_ipsec.policy.tables import Address

#: ICMP errors to the guest, and answers to questions for our addresses, per second and at once.
ERRORS_PER_SECOND, ERRORS_AT_ONCE = 100, 50
ANSWERS_PER_SECOND, ANSWERS_AT_ONCE = 500, 100
#: How often a guest whose address is learnt may have a new one.
RELEARN = SECOND


@dataclass(frozen=True, slots=True)
class Output:
    """Frames that leave, in their order: towards the wire and towards the guest."""

    to_wire: list[bytes] = field(default_factory=list)
    to_guest: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PeerPath:
    """How tunnel packets to a peer leave: the next hop's Ethernet address, and the octets that they may have."""

    mac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Departure:
    """An IP packet on its way out. ``link``: the guest's Ethernet header, with tags. ``joined``: it was put together
    from the guest's fragments, so it may be cut again whatever its DF says."""

    link: bytes
    packet: ip.Packet
    tagged: bool
    joined: bool = False
    frame: bytes | None = None  # as the guest sent it, if it did


class PortState:
    """``rng`` draws the identification of IPv6 fragments."""

    def __init__(self, spec: PortSpec, sas: SaDatabase, rng: Callable[[int], bytes]) -> None:
        self.spec = spec
        self.sas = sas
        self.rng = rng
        self.paths = PathMtus()
        self.counts: Counter[str] = Counter()
        self.errors = TokenBucket(ERRORS_PER_SECOND, ERRORS_AT_ONCE)
        self.answers = TokenBucket(ANSWERS_PER_SECOND, ANSWERS_AT_ONCE)
        self.guest_mac = spec.guest_mac
        self.generation = 0
        self.is_active = True  # the underlay's addresses are here, not at another port that shares them
        self.flows: dict[str, Flow] = {}
        self._default = spec.default or Action.DROP
        self._policy: Policy | None = None
        self._others: dict[int, Action] = {}
        self._learnt = -RELEARN

    @property
    def underlay(self) -> Underlay | None:
        """None on a port without tunnels."""
        return self.spec.underlay

    @property
    def wire_mtu(self) -> int:
        """Octets of IP packet that the wire carries."""
        return self.spec.underlay.mtu if self.spec.underlay else self.spec.mtu

    def rules_changed(self) -> None:
        """Flows or SAs are others now: the classifier is made anew when it is asked next."""
        self._policy = None
        self.generation += 1

    @property
    def policy(self) -> Policy:
        """The classifier. Thousands of SAs are added one by one: it is not made for each."""
        if self._policy is None:
            rules = tuple(rule for flow in self.flows.values() for rule in flow.rules)
            admitted = {sa.spec.id: sa.spec.admitted for sa in self.sas if sa.spec.admitted is not None}
            self._policy = Policy(rules, self._default, MappingProxyType(admitted))
            self._others = {}
            for flow in ordered(self.flows.values()):
                for ethertype in flow.ethertypes:
                    self._others.setdefault(ethertype, flow.action)
        return self._policy

    def action_for(self, ethertype: int) -> Action:
        """What happens to frames that are not IP."""
        default = self.policy.default
        return self._others.get(ethertype, default)

    def learn_guest(self, mac: bytes, now: int) -> None:
        """A frame of the guest came from ``mac``."""
        if mac == self.guest_mac or self.spec.guest_mac is not None or is_group(mac) or not any(mac):
            return
        if now - self._learnt >= RELEARN or self.guest_mac is None:
            self._learnt = now
            self.guest_mac = mac
            self.generation += 1

    def read(self, way: str, frame: bytes) -> tuple[Link, ip.Packet | None] | None:
        """An Ethernet frame: where its payload is, and the IP packet if it carries one. None: it is malformed, which is
        counted."""
        link = read_link(frame)
        version = VERSIONS.get(link.ethertype) if link is not None else None
        packet = _parsed(frame[link.l3 :], version) if link is not None and version is not None else None
        if link is None or (version is not None and packet is None):
            self.drop(way, Reason.MALFORMED)
            return None
        return link, packet

    def path_mtu(self, target: Address) -> int:
        """Octets that a packet to ``target`` may have on the wire."""
        return self.paths.get(target, self.wire_mtu)

    def count(self, way: str, what: str) -> None:
        """``way`` is tx (from the guest) or rx (from the wire)."""
        self.counts[f"{way}_{what}"] += 1

    def drop(self, way: str, why: str) -> None:
        """Count a packet that ends here."""
        self.counts[f"{way}_drop_{why}"] += 1


def sealed_size(params: SaParams, packet: ip.Packet) -> int:
    """Octets that the packet will have once ``params`` protect it; PacketError for broken extension headers."""
    if params.is_tunnel:
        return len(packet.data) + overhead(params, len(packet.data))
    return len(packet.data) + overhead(params, len(packet.data) - _kept(packet))


def inner_mtu(params: SaParams, packet: ip.Packet, mtu: int) -> int:
    """The octets that a packet like this one may have for the protected one to have at most ``mtu``."""
    kept = 0 if params.is_tunnel else _kept(packet)
    payload = mtu - kept - overhead(params, 0) + params.suite.alignment
    while payload > 0 and kept + payload + overhead(params, payload) > mtu:
        payload -= 1
    return kept + max(payload, 0)


def _kept(packet: ip.Packet) -> int:
    """Octets in front of what transport mode protects."""
    return ip.transport_split(packet, ip.chain(packet)).offset


def tunnel_target(params: SaParams) -> Address | None:
    """The peer of an outbound tunnel; None in transport mode."""
    return None if params.tunnel is None else addresses(params.tunnel)[1]


def _parsed(data: bytes, version: int) -> ip.Packet | None:
    """The IP packet that a frame carries; None when it is malformed or not of the version that the frame says."""
    try:
        packet = ip.parse(data)
    except PacketError:
        return None
    return packet if packet.version == version else None
