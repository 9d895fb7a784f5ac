"""From the guest to the wire: what an operator's policy makes of each frame (RFC 4301 5.1).

A packet that a rule wants protected leaves protected or not at all: an SA that is gone, used up or frozen, a next hop
that nobody knows and a packet that is too large are reasons to drop it, and each is counted.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy import ethernet, icmp
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.fragments import split
from virtio_ipsec.policy.mss import clamp
from virtio_ipsec.policy.next_hops import NextHops, Said
from virtio_ipsec.policy.port_config import LEAST_MTU
from virtio_ipsec.policy.reassembly import Reassembler, read_fragment
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.policy.selectors import Outcome
from virtio_ipsec.policy.state import (
    Departure,
    Output,
    PeerPath,
    PortState,
    inner_mtu,
    sealed_size,
    tunnel_target,
)
from virtio_ipsec.policy.tables import Address

_TAGGED = "tagged"
_MISDIRECTED = "misdirected"


class Departures:
    """``hops`` is None on a port without underlay."""

    def __init__(self, state: PortState, hops: NextHops | None) -> None:
        self._state = state
        self._hops = hops
        self.fragments = Reassembler()

    def frame(self, frame: bytes, now: int, out: Output) -> None:
        """One complete Ethernet frame of the guest."""
        read = self._state.read("tx", frame)
        if read is None:
            return
        link, packet = read
        self._state.learn_guest(frame[6:12], now)
        if packet is None:
            self._other(frame, link, now, out)
            return
        if self._hops is not None and packet.version == 6 and not link.tagged:
            said = self._hops.nd_from_guest(packet, frame[6:12], now, out)
            if said is not Said.OTHER:
                self._said("nd", said)
                return
        self.packet(Departure(frame[: link.l3], packet, link.tagged, frame=frame), now, out)

    def _other(self, frame: bytes, link: ethernet.Link, now: int, out: Output) -> None:
        """A frame that is not IP."""
        if self._hops is not None and link.ethertype == ethernet.ARP and not link.tagged:
            said = self._hops.arp_from_guest(frame[link.l3 :], now, out)
            if said is not Said.OTHER:
                self._said("arp", said)
                return
        if self._state.action_for(link.ethertype) is Action.BYPASS:
            self._state.count("tx", "bypassed")
            out.to_wire.append(frame)
        else:
            self._state.drop("tx", Outcome.NOT_IP)

    def _said(self, kind: str, said: Said) -> None:
        if said is Said.FORGED:
            self._state.drop("tx", "forged")
        else:
            self._state.count("tx", kind)

    def packet(self, departure: Departure, now: int, out: Output) -> None:
        """An IP packet of the guest, or one that has waited."""
        state = self._state
        decision = state.policy.outbound(departure.packet.data)
        if decision.outcome is Outcome.BYPASS:
            self._bypass(departure, out)
        elif decision.outcome is Outcome.PROTECT and decision.sa is not None:
            held = state.sas.get(outbound=True, id=decision.sa)
            if held is None:
                state.drop("tx", Reason.UNKNOWN_SA)
            elif held.spec.params.is_tunnel or not self._join(departure, now, out):
                self._protect(departure, held, now, out)
        elif decision.outcome is not Outcome.DROP_HIDDEN or not self._join(departure, now, out):
            state.drop("tx", decision.outcome)

    def _join(self, departure: Departure, now: int, out: Output) -> bool:
        """Whether the packet is a fragment: then it waits for the others of its datagram, which is looked at whole.

        Transport mode protects whole datagrams only (RFC 4303 3.3.4), and rules that name ports want to see them.
        """
        try:
            fragment = read_fragment(departure.packet)
            if fragment is None:
                return False
            whole = self.fragments.add(fragment, now, departure.link[12:])
        except PacketError as error:
            self._state.drop("tx", error.reason)
            return True
        self._state.count("tx", "fragments")
        if whole is not None:
            joined = Departure(departure.link, ip.parse(whole), departure.tagged, joined=True)
            self.packet(joined, now, out)
        return True

    def _bypass(self, departure: Departure, out: Output) -> None:
        state = self._state
        if self._is_for_the_port(departure):
            state.drop("tx", _MISDIRECTED)
            return
        state.count("tx", "bypassed")
        if departure.frame is not None:
            out.to_wire.append(departure.frame)
            return
        pieces = self._cut(departure.packet.data, min(state.spec.mtu, state.wire_mtu))
        out.to_wire.extend(departure.link + piece for piece in pieces)

    def _is_for_the_port(self, departure: Departure) -> bool:
        """Whether the guest takes the port for a gateway: it is one to its tunnels, and to nowhere else."""
        underlay, link = self._state.underlay, departure.link
        return underlay is not None and link[:6] == underlay.mac != link[6:12]

    # ---- protection ----

    def _protect(self, departure: Departure, held: HeldSa, now: int, out: Output) -> None:
        peer = tunnel_target(held.spec.params)
        path = None
        if peer is None and self._is_for_the_port(departure):
            self._state.drop("tx", _MISDIRECTED)
            return
        if peer is not None:
            if departure.tagged:
                self._state.drop("tx", _TAGGED)  # the tunnel would mix it with the traffic of no VLAN
                return
            path = self._hops.path(peer) if self._hops else None
            if path is None:
                self._wait(departure, peer, now, out)
                return
        try:
            self._seal(departure, held, path, now, out)
        except PacketError as error:
            self._state.drop("tx", error.reason)
            if error.reason is Reason.TTL_EXPIRED:
                self.report(departure, icmp.Problem.TTL_EXPIRED, now, out)

    def _wait(self, departure: Departure, peer: Address, now: int, out: Output) -> None:
        late = self._hops.wait(peer, departure, now) if self._hops else [departure]
        self._state.count("tx", "waited")
        for each in late:
            self._state.drop("tx", "queue_full")
            if each is departure:
                self.report(each, icmp.Problem.UNREACHABLE, now, out)

    def _seal(self, departure: Departure, held: HeldSa, path: PeerPath | None, now: int, out: Output) -> None:
        state, params = self._state, held.spec.params
        packet = departure.packet
        mtu = path.mtu if path else state.path_mtu(_target(packet))
        fitting = inner_mtu(params, packet, mtu)
        if state.spec.mss_clamp:
            packet = ip.parse(clamp(packet.data, fitting))
        reported = max(fitting, LEAST_MTU[packet.version])
        if sealed_size(params, packet) > mtu and not _may_cut(departure, reported):
            state.drop("tx", Reason.TOO_BIG)
            self.report(departure, icmp.Problem.TOO_BIG, now, out, reported)
            return
        sealed = state.sas.protect(held, packet.data, ip.MAX_LENGTH)
        if path is not None and self._hops is not None:
            link = self._hops.link_header(path.mac, sealed)
        else:
            link = departure.link
        pieces = self._cut(sealed, mtu)
        state.count("tx", "protected")
        if len(pieces) > 1:
            state.count("tx", "fragmented")
        out.to_wire.extend(link + piece for piece in pieces)

    def _cut(self, packet: bytes, mtu: int) -> list[bytes]:
        return split(packet, mtu, int.from_bytes(self._state.rng(4)) if len(packet) > mtu else 0)

    # ---- what the guest is told ----

    def report(
        self, departure: Departure, problem: icmp.Problem, now: int, out: Output, mtu: int = 0
    ) -> None:
        """Tell the sender of a packet what became of it, if it may be told."""
        state, packet = self._state, departure.packet
        link = departure.link
        if ethernet.is_group(link[:6]) or ethernet.is_group(link[6:12]):
            return
        try:
            allowed = icmp.may_answer(packet, problem)
        except PacketError:
            return
        if not allowed:
            return
        if not state.errors.take(now):
            state.count("tx", "errors_withheld")
            return
        state.count("tx", "errors_sent")
        mac = state.underlay.mac if state.underlay else link[:6]
        answer = icmp.error(packet, problem, self._speaker(packet, mac), mtu)
        out.to_guest.append(link[6:12] + mac + link[12:] + answer)

    def _speaker(self, packet: ip.Packet, mac: bytes) -> Address:
        """Our address of the version, unless the guest has it, too: hosts ignore what seems to come from themselves.
        Without any, the destination speaks: a route to it the guest has."""
        underlay, target = self._state.underlay, _target(packet)
        ours = (*underlay.guest_gateways, *(each.ip for each in underlay.addresses)) if underlay else ()
        for each in ours:
            if each.version == packet.version and each != _source(packet):
                return each
        if not target.is_multicast:
            return target
        interface = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]  # RFC 4291 appendix A
        return IPv6Address(bytes.fromhex("fe80000000000000") + interface)


def _source(packet: ip.Packet) -> Address:
    data = packet.data
    return IPv4Address(data[12:16]) if packet.version == 4 else IPv6Address(data[8:24])


def _target(packet: ip.Packet) -> Address:
    data = packet.data
    return IPv4Address(data[16:20]) if packet.version == 4 else IPv6Address(data[24:40])


def _may_cut(departure: Departure, reported: int) -> bool:
    """Whether a packet that gets too large is cut after it was protected, instead of told to its sender.

    IPv4 without DF; IPv6 that is no longer than every link must carry, for its sender cannot do better (RFC 2473 7.1).
    """
    packet = departure.packet
    if departure.joined:
        return True
    if packet.version == 4:
        return not packet.flags_offset & ip.DONT_FRAGMENT
    return len(packet.data) <= reported
