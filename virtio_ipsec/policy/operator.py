"""A port whose driver knows nothing of IPsec: an operator's SAs and flows hold whatever the guest does.

Between the device and its uplink: what :meth:`Device.transmit` has finished goes through
:meth:`OperatorPort.from_guest`, what the uplink brings goes through :meth:`OperatorPort.from_wire` and then to
:meth:`Device.receive`. Nothing here reads a clock, waits or raises at a packet; ``now`` is in nanoseconds and never
goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.arrivals import Arrivals
from virtio_ipsec.policy.config import Config
from virtio_ipsec.policy.departures import Departures
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.icmp import Problem
from virtio_ipsec.policy.next_hops import NextHops
from virtio_ipsec.policy.port_config import Control, Underlay, check_sa
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.policy.sas import HeldSa, SaDatabase, SaFactory
from virtio_ipsec.policy.selectors import Policy
from virtio_ipsec.policy.state import Departure, PortState, tunnel_target
from virtio_ipsec.policy.state import Output as Output
from virtio_ipsec.policy.state import PeerPath as PeerPath
from virtio_ipsec.policy.tables import Address


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What somebody needs to do the same without asking: constant, and right as long as ``generation`` is the port's.

    ``paths``: how tunnel packets leave, by peer; a peer that is not there has to be asked for. ``policy``: what becomes
    of IP packets, with the ids of SAs as the factory was given them. ``mtu``: octets of IP packet that the wire
    carries, ``narrow``: where the way to an address carries less; ``guest_mtu``: what the guest takes.
    ``learns_guest``: ``guest_mac`` is where the guest has sent from last.

    Left to the port: fragments on the way in, packets that hide what a rule asks for, packets that get too large,
    neighbour discovery (ICMPv6 133 to 137) and ICMP errors, ARP, tagged frames of tunnels, SYN segments with
    ``mss_clamp``, and all that cannot be decided by what stands here.
    """

    generation: int
    policy: Policy
    underlay: Underlay | None
    guest_mac: bytes | None
    paths: Mapping[Address, PeerPath]
    mtu: int
    narrow: Mapping[Address, int]
    guest_mtu: int
    learns_guest: bool
    mss_clamp: bool


class OperatorPort:
    """One port. ``rng`` draws numbers that others should not guess. ConfigError when the configuration is not one of an
    operator's port, or an SA cannot be made."""

    def __init__(self, config: Config, sas: SaFactory, rng: Callable[[int], bytes]) -> None:
        if config.port is None or config.port.control is not Control.OPERATOR:
            raise ConfigError('the file needs [port] with control = "operator"')
        self.spec = config.port
        self._state = PortState(config.port, SaDatabase(sas), rng)
        self._hops = NextHops(self._state, config.port.underlay) if config.port.underlay else None
        self._to_announce = False
        self._departures = Departures(self._state, self._hops)
        self._arrivals = Arrivals(self._state, self._hops, self._departures.packet)
        for spec in config.sas:
            self._add(spec)
        for flow in config.flows:
            self._state.flows[self._name(flow)] = flow
        self._state.rules_changed()

    # ---- frames and time ----

    def from_guest(self, frame: bytes, now: int) -> Output:
        """One complete Ethernet frame that the guest has sent: checksums done, segments cut."""
        out = Output()
        self._departures.frame(frame, now, out)
        self._ask(now, out)
        return out

    def from_wire(self, frame: bytes, now: int) -> Output:
        """One Ethernet frame from the uplink."""
        out = Output()
        self._arrivals.frame(frame, now, out)
        self._ask(now, out)
        return out

    def opened(self, frame: bytes, l3: int, id: int, source: Address | None, now: int) -> Output:
        """The rest of the way of a frame that inbound SA ``id`` has opened elsewhere: ``l3`` is where its packet
        begins, ``source`` the one of its tunnel header. Counted as opened already."""
        out = Output()
        self._arrivals.opened(frame, l3, id, source, out, now)
        return out

    def tick(self, now: int) -> Output:
        """What time alone brings about; to be called at :meth:`deadline`, or more often."""
        out = Output()
        self._ask(now, out)
        self._departures.fragments.tick(now)
        self._arrivals.fragments.tick(now)
        self._state.generation += self._state.paths.tick(now)
        return out

    def retire(self) -> None:
        """Another port has the underlay's addresses: this one says no more on the wire where they are. Keys and flows
        are not touched."""
        self._state.is_active = False
        self._to_announce = False

    def activate(self) -> None:
        """The underlay's addresses are here: neighbours, who may know another place, are told at the next occasion.
        For a port that begins to serve, or has taken over."""
        self._state.is_active = True
        self._to_announce = self._hops is not None

    def deadline(self) -> int | None:
        """When :meth:`tick` is due; None: not before something else happens."""
        return min((time for time in self._deadlines() if time is not None), default=None)

    def _deadlines(self) -> list[int | None]:
        if self._to_announce:
            return [0]
        hops = self._hops.neighbours.deadline() if self._hops else None
        fragments = [each.fragments.deadline() for each in (self._departures, self._arrivals)]
        return [hops, self._state.paths.deadline(), *fragments]

    def _ask(self, now: int, out: Output) -> None:
        if self._hops is None:
            return
        if self._to_announce:
            self._to_announce = False
            self._hops.announce(out)
        for departure in self._hops.tick(now, out):
            self._give_up(departure, now, out)

    def _give_up(self, departure: Departure, now: int, out: Output) -> None:
        self._state.drop("tx", "no_next_hop")
        self._departures.report(departure, Problem.UNREACHABLE, now, out)

    # ---- what is asked about ----

    @property
    def generation(self) -> int:
        """Changes whenever :meth:`snapshot` would."""
        return self._state.generation

    def snapshot(self) -> Snapshot:
        """What holds now."""
        state = self._state
        paths: dict[Address, PeerPath] = {}
        for sa in state.sas:
            peer = tunnel_target(sa.spec.params)
            if peer is not None and self._hops is not None and peer not in paths:
                path = self._hops.path(peer)
                if path is not None:
                    paths[peer] = path
        return Snapshot(
            state.generation,
            state.policy,
            state.underlay,
            state.guest_mac,
            paths,
            state.wire_mtu,
            state.paths.known(state.wire_mtu),
            state.spec.mtu,
            state.spec.guest_mac is None,
            state.spec.mss_clamp,
        )

    def counters(self) -> dict[str, int]:
        """Packets by what became of them. Nothing ever counts down."""
        counts = dict(self._state.counts)
        for way, fragments in (("tx", self._departures.fragments), ("rx", self._arrivals.fragments)):
            for what, number in (("expired", fragments.expired), ("evicted", fragments.evicted)):
                if number:
                    counts[f"{way}_reassembly_{what}"] = number
        return counts

    @property
    def flows(self) -> Mapping[str, Flow]:
        """The flows by name, in the order in which they were given."""
        return dict(self._state.flows)

    @property
    def sas(self) -> tuple[HeldSa, ...]:
        """The live SAs."""
        return tuple(self._state.sas)

    def sa(self, id: int, *, outbound: bool) -> HeldSa:
        """KeyError when there is none."""
        held = self._state.sas.get(outbound=outbound, id=id)
        if held is None:
            raise KeyError(id)
        return held

    @property
    def guest_mac(self) -> bytes | None:
        """Where opened tunnel packets go; None until the guest has spoken."""
        return self._state.guest_mac

    # ---- changes ----

    def add_sa(self, spec: SaSpec) -> HeldSa:
        """Bring an SA to life; ConfigError when it cannot be used here, or its id, SPI or key is taken."""
        held = self._add(spec)
        self._state.rules_changed()
        return held

    def remove_sa(self, id: int, *, outbound: bool) -> HeldSa:
        """Take an SA away. Flows that name it drop from now on. KeyError when there is none."""
        held = self._state.sas.remove(outbound=outbound, id=id)
        for _ in self._hops.sas_changed() if self._hops else ():
            self._state.drop("tx", "no_next_hop")
        self._state.rules_changed()
        return held

    def replace_sa(self, old: int, spec: SaSpec) -> HeldSa:
        """Rekey what leaves, make before break: the new outbound SA comes to life and all flows of the old one go to it
        at once. The old one stays, without flows, until :meth:`remove_sa`: so the order is snapshot, publish, remove.

        KeyError when there is no outbound SA ``old``; ConfigError as for :meth:`add_sa`.
        """
        self.sa(old, outbound=True)
        if not spec.outbound:
            raise ConfigError(
                "an outbound SA is replaced by an outbound one; inbound SAs are added beside the old"
            )
        held = self._add(spec)
        for name, flow in self._state.flows.items():
            if flow.sa == old:
                self._state.flows[name] = replace(flow, sa=spec.id)
        self._state.rules_changed()
        return held

    def add_flow(self, flow: Flow) -> str:
        """Returns its name. ConfigError when the name is taken, or it names an SA that is not there."""
        if flow.action is Action.PROTECT and self._state.sas.get(outbound=True, id=flow.sa or 0) is None:
            raise ConfigError(f"flow: sa names no outbound SA with id {flow.sa}")
        name = self._name(flow)
        self._state.flows[name] = flow
        self._state.rules_changed()
        return name

    def remove_flow(self, name: str) -> Flow:
        """KeyError when there is none of that name."""
        flow = self._state.flows.pop(name)
        self._state.rules_changed()
        return flow

    def close(self) -> None:
        """Wipe all keys. Nothing that needs protection passes any more."""
        for held in self.sas:
            self._state.sas.remove(outbound=held.spec.outbound, id=held.spec.id)
        self._state.rules_changed()

    def _add(self, spec: SaSpec) -> HeldSa:
        check_sa(self.spec, spec)
        return self._state.sas.add(spec)

    def _name(self, flow: Flow) -> str:
        """The flow's name, or a free one that says its place."""
        taken = self._state.flows
        if flow.name:
            if flow.name in taken:
                raise ConfigError(f"flow {flow.name}: the name is taken")
            return flow.name
        number = len(taken) + 1
        while f"flow-{number}" in taken:
            number += 1
        return f"flow-{number}"
