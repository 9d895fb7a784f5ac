"""An operator's port between a guest and a wire: what goes through, in which form, and what does not."""

from __future__ import annotations

import pytest
from operator_ports import GATE, GUEST, HOST, HOST6, OUTER, OUTER6, Wire, datagram, from_guest, joined, text
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether

TUNNELS = {"IPv4": OUTER, "IPv6": OUTER6}


def wire(**changes: object) -> Wire:
    return joined({side: text(side, **changes) for side in "ab"})  # type: ignore[arg-type]


@pytest.mark.parametrize("outside", TUNNELS)
def test_a_tunnel_packet_waits_for_its_next_hop_and_arrives_as_it_was(outside: str) -> None:
    both = wire(outer=TUNNELS[outside])
    both.send("b", from_guest("b", IP(src=HOST["b"], dst="255.255.255.255") / UDP()))  # so b knows its guest
    sent = datagram("a")
    both.send("a", sent)
    (arrived,) = both.guests["b"]
    assert arrived[14:] == sent[14:]
    assert (Ether(arrived).dst, Ether(arrived).src) == (GUEST["b"], GATE["b"])
    asked, answered, sealed = (Ether(frame) for _, frame in both.seen)
    if outside == "IPv4":
        assert (asked[ARP].op, asked[ARP].psrc, asked[ARP].pdst) == (1, OUTER["a"], OUTER["b"])
        assert (answered[ARP].op, answered[ARP].hwsrc, answered.dst) == (2, GATE["b"], GATE["a"])
        assert sealed[IP].proto == 50
    else:
        assert asked[ICMPv6ND_NS].tgt == OUTER6["b"]
        assert answered.dst == GATE["a"]
        assert sealed[IPv6].nh == 50
    assert (sealed.src, sealed.dst) == (GATE["a"], GATE["b"])
    assert b"question" not in bytes(sealed)


def test_ipv6_inside_ipv4_gets_the_right_ethertype_on_both_sides() -> None:
    both = wire()
    both.send("b", datagram("b"))
    inner = IPv6(src=HOST6["a"], dst=HOST6["b"]) / UDP(sport=1, dport=2) / b"six"
    both.send("a", from_guest("a", inner))
    assert Ether(both.guests["b"][-1])[UDP].payload.load == b"six"
    assert Ether(both.guests["b"][-1]).type == 0x86DD
    assert Ether(both.seen[-1][1]).type == 0x0800
