"""The port as a host on its underlay: it answers for its addresses and knows where its tunnel packets go.

Questions (ARP, neighbour solicitations) for underlay addresses are answered towards the wire, and towards the guest,
which may use such an address as its gateway. Towards the guest nothing is said when it asks whether an address is free:
a guest in transport mode may have the address itself.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy import arp, nd
from virtio_ipsec.policy.ethernet import ETHERTYPES, header, is_group
from virtio_ipsec.policy.neighbours import Neighbours
from virtio_ipsec.policy.port_config import Underlay
from virtio_ipsec.policy.state import Departure, Output, PeerPath, PortState, tunnel_target
from virtio_ipsec.policy.tables import Address


class Said(Enum):
    """What became of a message about addresses."""

    HANDLED = "handled"  # it goes no further
    FORGED = "forged"  # it claims an address of ours
    OTHER = "other"  # not, or not only, for the port


class NextHops:
    """Neighbours of the underlay; departures wait here, as they came from the guest, until they can be sent."""

    def __init__(self, state: PortState, underlay: Underlay) -> None:
        self._state = state
        self._underlay = underlay
        self.neighbours: Neighbours[Departure] = Neighbours()

    def path(self, peer: Address) -> PeerPath | None:
        """How packets to a tunnel peer leave at this moment; None while that is not known."""
        hop = self._underlay.hop(peer)
        mac = self._underlay.next_hop or (self.neighbours.mac(hop) if hop else None)
        return PeerPath(mac, self._state.path_mtu(peer)) if mac else None

    def wait(self, peer: Address, departure: Departure, now: int) -> list[Departure]:
        """Let a departure wait for the next hop towards ``peer``; returns what cannot wait any more."""
        hop = self._underlay.hop(peer)
        return [departure] if hop is None else self.neighbours.wait(hop, departure, len(departure.packet.data), now)

    def link_header(self, mac: bytes, packet: bytes) -> bytes:
        """The Ethernet header of a tunnel packet."""
        return header(mac, self._underlay.mac, ETHERTYPES[packet[0] >> 4])

    def sas_changed(self) -> list[Departure]:
        """Hops that no SA needs are forgotten; returns what waited for them."""
        peers = {peer for sa in self._state.sas if (peer := tunnel_target(sa.spec.params)) is not None}
        return self.neighbours.keep({hop for peer in peers if (hop := self._underlay.hop(peer)) is not None})

    def announce(self, out: Output) -> None:
        """Say where our addresses are (RFC 5227 2.3, RFC 4861 7.2.6): neighbours may know another place."""
        mac = self._underlay.mac
        for each in self._underlay.addresses:
            address = each.ip
            if isinstance(address, IPv4Address):
                out.to_wire.append(arp.request(mac, address, address))
            else:
                out.to_wire.append(nd.announcement(mac, address))

    def tick(self, now: int, out: Output) -> list[Departure]:
        """Ask what is due; returns the departures that waited in vain."""
        due = self.neighbours.tick(now)
        for address, mac in due.questions:
            source = self._underlay.source_for(address)
            if isinstance(address, IPv4Address) and isinstance(source, IPv4Address):
                to = {"to": mac} if mac else {}
                out.to_wire.append(arp.request(self._underlay.mac, source, address, **to))
            elif isinstance(address, IPv6Address) and isinstance(source, IPv6Address):
                out.to_wire.append(nd.solicitation(self._underlay.mac, source, address, mac))
        self._state.generation += due.lost
        return due.given_up

    # ---- messages ----

    def arp_from_guest(self, payload: bytes, now: int, out: Output) -> Said:
        """An ARP packet of the guest."""
        message = arp.read(payload)
        if message is None:
            return Said.OTHER
        if self._underlay.owns(message.sender) and message.sender_mac != self._underlay.mac:
            return Said.FORGED
        if message.operation != arp.REQUEST or not self._underlay.serves(message.target):
            return Said.OTHER
        if not message.claims or message.sender == message.target:
            return Said.OTHER
        if self._may_answer(message.sender_mac, now):
            out.to_guest.append(arp.reply(self._underlay.mac, message))
        return Said.HANDLED

    def arp_from_wire(self, payload: bytes, now: int, out: Output) -> tuple[Said, list[Departure]]:
        """An ARP packet from the wire, and the departures that it sets free."""
        message = arp.read(payload)
        if message is None:
            return Said.OTHER, []
        freed = self._learn(message.sender, message.sender_mac, now) if message.claims else []
        if not self._underlay.owns(message.target):
            return Said.OTHER, freed
        if message.operation == arp.REPLY:
            return self._answer_is_ours(), freed
        if self._state.is_active and self._may_answer(message.sender_mac, now):
            out.to_wire.append(arp.reply(self._underlay.mac, message))
        return Said.HANDLED, freed

    def nd_from_guest(self, packet: ip.Packet, sender: bytes, now: int, out: Output) -> Said:
        """A packet of the guest, if it is a solicitation or an advertisement."""
        message = nd.read(packet.data)
        if message is None:
            return Said.OTHER
        claimed = message.target if message.kind == nd.ADVERTISEMENT else message.source
        if self._underlay.owns(claimed) and message.mac not in (None, self._underlay.mac):
            return Said.FORGED
        if message.kind == nd.ADVERTISEMENT or not self._underlay.serves(message.target):
            return Said.OTHER
        if message.source.is_unspecified or message.source == message.target:
            return Said.OTHER
        asker = message.mac or sender
        if self._may_answer(asker, now):
            out.to_guest.append(nd.advertisement(self._underlay.mac, message, asker))
        return Said.HANDLED

    def nd_from_wire(
        self, packet: ip.Packet, sender: bytes, now: int, out: Output
    ) -> tuple[Said, list[Departure]]:
        """A packet from the wire, if it is a solicitation or an advertisement, and what it sets free."""
        message = nd.read(packet.data)
        if message is None:
            return Said.OTHER, []
        if message.kind == nd.ADVERTISEMENT:
            override = bool(message.flags & nd.OVERRIDE)
            freed = self._learn(message.target, message.mac, now, override=override) if message.mac else []
            return self._answer_is_ours() if self._underlay.owns(message.destination) else Said.OTHER, freed
        claims = message.mac is not None and not message.source.is_unspecified
        freed = self._learn(message.source, message.mac, now) if claims and message.mac else []
        if not self._underlay.owns(message.target):
            return Said.OTHER, freed
        asker = message.mac or sender
        if self._state.is_active and self._may_answer(asker, now):
            out.to_wire.append(nd.advertisement(self._underlay.mac, message, asker))
        return Said.HANDLED, freed

    def _answer_is_ours(self) -> Said:
        """An answer to an address of ours is for nobody else, unless the guest shares it, which shows by its MAC."""
        return Said.OTHER if self._state.guest_mac == self._underlay.mac else Said.HANDLED

    def _may_answer(self, asker: bytes, now: int) -> bool:
        """One question brings one answer, to one host, and not too many of them."""
        allowed = not is_group(asker) and self._state.answers.take(now)
        self._state.counts["answers" if allowed else "answers_withheld"] += 1
        return allowed

    def _learn(self, address: Address, mac: bytes, now: int, *, override: bool = True) -> list[Departure]:
        if mac == self._underlay.mac:
            return []
        freed, changed = self.neighbours.learn(address, mac, now, override=override)
        self._state.generation += changed
        return freed
