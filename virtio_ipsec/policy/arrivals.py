"""From the wire to the guest: what an operator's policy lets in (RFC 4301 5.2).

ESP and AH for an underlay address are opened by a tunnel SA, or dropped; those of transport SAs keep the guest's
addresses. What comes out has to be what its SA is for. What comes in the clear must not be what a rule protects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip, udp
from virtio_ipsec.ipsec.process import IpsecHeader, find_spi
from virtio_ipsec.policy import ethernet
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.fragments import split
from virtio_ipsec.policy.icmp import IcmpError, read_error
from virtio_ipsec.policy.mss import clamp
from virtio_ipsec.policy.net_errors import concerned
from virtio_ipsec.policy.next_hops import NextHops, Said
from virtio_ipsec.policy.reassembly import Fragment, Reassembler, read_fragment
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.policy.selectors import Outcome
from virtio_ipsec.policy.state import Departure, Output, PortState, inner_mtu, tunnel_target
from virtio_ipsec.policy.tables import Address

_IPSEC = frozenset({ip.ESP, ip.AH})


@dataclass(frozen=True, slots=True)
class Arrival:
    """An IP packet from the wire; ``frame`` is None for one that was put together from fragments."""

    link: bytes
    packet: ip.Packet
    tagged: bool
    frame: bytes | None

    @property
    def source(self) -> Address:
        data = self.packet.data
        return IPv4Address(data[12:16]) if self.packet.version == 4 else IPv6Address(data[8:24])

    @property
    def target(self) -> Address:
        data = self.packet.data
        return IPv4Address(data[16:20]) if self.packet.version == 4 else IPv6Address(data[24:40])


class Arrivals:
    """``send``: what goes on with departures that a neighbour's answer sets free."""

    def __init__(
        self, state: PortState, hops: NextHops | None, send: Callable[[Departure, int, Output], None]
    ) -> None:
        self._state = state
        self._hops = hops
        self._send = send
        self.fragments = Reassembler()

    def frame(self, frame: bytes, now: int, out: Output) -> None:
        """One Ethernet frame from the wire."""
        read = self._state.read("rx", frame)
        if read is None:
            return
        link, packet = read
        if packet is None:
            self._other(frame, link, now, out)
            return
        if self._hops is not None and packet.version == 6 and not link.tagged:
            said, freed = self._hops.nd_from_wire(packet, frame[6:12], now, out)
            self._release(freed, now, out)
            if said is Said.HANDLED:
                self._state.count("rx", "nd")
                return
        try:
            self._packet(Arrival(frame[: link.l3], packet, link.tagged, frame), now, out)
        except PacketError as error:
            self._state.drop("rx", error.reason)

    def _other(self, frame: bytes, link: ethernet.Link, now: int, out: Output) -> None:
        """A frame that is not IP."""
        if self._hops is not None and link.ethertype == ethernet.ARP and not link.tagged:
            said, freed = self._hops.arp_from_wire(frame[link.l3 :], now, out)
            self._release(freed, now, out)
            if said is Said.HANDLED:
                self._state.count("rx", "arp")
                return
        if self._state.action_for(link.ethertype) is Action.BYPASS:
            self._state.count("rx", "bypassed")
            out.to_guest.append(frame)
        else:
            self._state.drop("rx", Outcome.NOT_IP)

    def _release(self, freed: list[Departure], now: int, out: Output) -> None:
        for departure in freed:
            self._send(departure, now, out)

    def _packet(self, arrival: Arrival, now: int, out: Output) -> None:
        ours = self._state.underlay is not None and self._state.underlay.owns(arrival.target)
        fragment = read_fragment(arrival.packet) if arrival.frame is not None else None
        if fragment is not None and (ours or self._may_be_protected(fragment)):
            self._join(arrival, fragment, now, out)
            return
        found = find_spi(arrival.packet.data)
        held = self._sa_for(found) if found else None
        if found is not None and held is not None and (ours or not held.spec.params.is_tunnel):
            if self._open(arrival, held, found, now, out):
                return
            if ours:
                self._state.drop("rx", Reason.NOT_IPSEC)  # ESP in UDP, for an SA without
                return
        elif ours and found is not None and (not found.udp or found.udp_dport == udp.PORT):
            self._state.drop("rx", Reason.UNKNOWN_SA)
            return
        elif ours and found is None and ip.chain(arrival.packet).protocol in _IPSEC:
            self._state.drop("rx", Reason.MALFORMED)
            return
        self._clear(arrival, fragment, now, out)

    def _may_be_protected(self, fragment: Fragment) -> bool:
        """Whether a fragment for the guest's own address may be part of what a transport SA protects."""
        return any(
            fragment.protocol == params.protocol or (fragment.protocol == ip.UDP and params.udp_encap)
            for params in self._state.sas.transport_in()
        )

    def _join(self, arrival: Arrival, fragment: Fragment, now: int, out: Output) -> None:
        """The fragment waits for the others of its datagram, which goes on whole: IPsec comes after reassembly."""
        whole = self.fragments.add(fragment, now, ("wire", arrival.link[12:]))
        self._state.count("rx", "fragments")
        if whole is not None:
            self._packet(Arrival(arrival.link, ip.parse(whole), arrival.tagged, None), now, out)

    # ---- protected ----

    def _sa_for(self, found: IpsecHeader) -> HeldSa | None:
        """The SA that the packet names. In UDP it is one only where the SA, or the registered port, says so."""
        held = self._state.sas.by_spi(found.protocol, found.spi)
        if held is not None and found.udp and found.udp_dport != held.spec.params.udp_dport:
            return None
        return held

    def _open(self, arrival: Arrival, held: HeldSa, found: IpsecHeader, now: int, out: Output) -> bool:
        """False: the packet is not IPsec for this SA, and goes on as it is."""
        state, params = self._state, held.spec.params
        if params.is_tunnel and arrival.tagged:
            state.drop("rx", "tagged")
            return True
        try:
            opened = state.sas.unprotect(held, arrival.packet.data, found)
        except PacketError as error:
            if error.reason is Reason.NOT_IPSEC:
                return False
            state.drop("rx", error.reason)
            return True
        state.count("rx", "opened")
        source = arrival.source if params.is_tunnel else None
        self._admit(arrival, held, ip.parse(opened.packet), source, now, out)
        return True

    def opened(self, frame: bytes, l3: int, id: int, source: Address | None, out: Output, now: int) -> None:
        """A frame that an inbound SA has opened elsewhere."""
        held = self._state.sas.get(outbound=False, id=id)
        if held is None:  # it was taken away meanwhile
            self._state.drop("rx", Reason.UNKNOWN_SA)
            return
        try:
            inner = ip.parse(frame[l3:])
            self._admit(Arrival(frame[:l3], inner, False, frame), held, inner, source, now, out)
        except PacketError as error:
            self._state.drop("rx", error.reason)

    def _admit(
        self, arrival: Arrival, held: HeldSa, inner: ip.Packet, source: Address | None, now: int, out: Output
    ) -> None:
        """What an SA opened comes in if it is what the SA is for (RFC 4301 5.2 step 4).

        Selectors that name ports see whole datagrams (RFC 4301 7.3). Fragments of different SAs are not mixed.
        """
        policy = self._state.policy
        decision = policy.inbound_opened(held.spec.id, inner.data, source)
        if decision.outcome is Outcome.DROP_SELECTOR and (fragment := read_fragment(inner)) is not None:
            whole = self.fragments.add(fragment, now, ("sa", held.spec.id))
            self._state.count("rx", "fragments")
            if whole is None:
                return
            inner, arrival = ip.parse(whole), replace(arrival, frame=None)
            decision = policy.inbound_opened(held.spec.id, inner.data, source)
        if decision.outcome is not Outcome.BYPASS:
            self._state.drop("rx", decision.outcome)
            return
        self._deliver(arrival, held, inner, out)

    def _deliver(self, arrival: Arrival, held: HeldSa, inner: ip.Packet, out: Output) -> None:
        state = self._state
        if held.spec.params.is_tunnel and state.underlay is not None:
            if state.guest_mac is None:
                state.drop("rx", "no_guest")
                return
            link = ethernet.header(state.guest_mac, state.underlay.mac, ethernet.ETHERTYPES[inner.version])
        else:
            link = arrival.link
        data = self._clamped(inner) if state.spec.mss_clamp else inner.data
        out.to_guest.extend(link + piece for piece in self._cut(data, held, inner, arrival))

    def _cut(self, data: bytes, held: HeldSa, inner: ip.Packet, arrival: Arrival) -> list[bytes]:
        """The packet in pieces that the guest can take; none when it must not be cut."""
        state = self._state
        if len(data) <= state.spec.mtu:
            return [data]
        joined = arrival.frame is None
        if not joined and (inner.version == 6 or inner.flags_offset & ip.DONT_FRAGMENT):
            state.drop("rx", Reason.TOO_BIG)
            return []
        state.count("rx", "fragmented")
        return split(data, state.spec.mtu, int.from_bytes(state.rng(4)))

    def _clamped(self, inner: ip.Packet) -> bytes:
        """SYN segments are told what the way back can carry."""
        policy = self._state.policy
        back = policy.inbound_clear(inner.data)
        if back.outcome is not Outcome.DROP_CLEARTEXT or back.rule is None:
            return inner.data
        held = self._state.sas.get(outbound=True, id=policy.rules[back.rule].sa or 0)
        if held is None:
            return inner.data
        peer = tunnel_target(held.spec.params)
        mtu = self._state.path_mtu(peer) if peer is not None else self._state.wire_mtu
        return clamp(inner.data, inner_mtu(held.spec.params, inner, mtu))

    # ---- in the clear ----

    def _clear(self, arrival: Arrival, fragment: Fragment | None, now: int, out: Output) -> None:
        state = self._state
        error = read_error(arrival.packet)
        if error is not None and self._net_error(error, now):
            return
        decision = state.policy.inbound_clear(arrival.packet.data)
        if decision.outcome is Outcome.BYPASS:
            state.count("rx", "bypassed")
            out.to_guest.extend(self._as_guest_frames(arrival))
        elif decision.outcome is Outcome.DROP_HIDDEN and fragment is not None:
            self._join(arrival, fragment, now, out)
        else:
            state.drop("rx", decision.outcome)

    def _as_guest_frames(self, arrival: Arrival) -> list[bytes]:
        """A packet that passes. One for the port's own Ethernet address is for a guest that shares the IP address."""
        state = self._state
        link = arrival.link
        if state.underlay and link[:6] == state.underlay.mac and state.guest_mac is not None:
            link = state.guest_mac + link[6:]
        if arrival.frame is not None:
            return [link + arrival.frame[len(link) :]]
        pieces = split(arrival.packet.data, state.spec.mtu, int.from_bytes(state.rng(4)))
        return [link + piece for piece in pieces]

    def _net_error(self, error: IcmpError, now: int) -> bool:
        """Whether an ICMP error is about a packet that the port protected: the guest knows nothing of that."""
        state = self._state
        about = concerned(state, error)
        if about is None:
            return False
        if not about.genuine:
            state.drop("rx", "forged_error")
        elif error.mtu is None:
            state.count("rx", "net_errors")
        else:
            state.count("rx", "mtu_errors")
            state.generation += state.paths.lower(about.target, error.mtu, about.length, now)
        return True
