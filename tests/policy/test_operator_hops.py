"""The port as a host on its underlay: whom it answers, whom it asks, and what happens when nobody answers."""

from __future__ import annotations

import pytest
from operator_ports import (
    GATE,
    GUEST,
    HOST,
    HOST6,
    OUTER,
    OUTER6,
    SERVICES,
    datagram,
    drops,
    flows_text,
    from_guest,
    joined,
    met,
    port,
    port_text,
    sas_text,
    text,
)
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_getnsma,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils6 import inet_ntop, inet_pton

from virtio_ipsec.policy import neighbours
from virtio_ipsec.policy.operator import OperatorPort, Output

NOW = 10**12
ROUTER = "02:00:00:00:00:99"
EVERYBODY = "ff:ff:ff:ff:ff:ff"


def arp(sender: str, psrc: str, pdst: str, **fields: object) -> bytes:
    return bytes(Ether(src=sender, dst=EVERYBODY) / ARP(hwsrc=sender, psrc=psrc, pdst=pdst, **fields))


def solicit(sender: str, source: str, target: str, **fields: object) -> bytes:
    group = inet_ntop(10, in6_getnsma(inet_pton(10, target)))
    body = ICMPv6ND_NS(tgt=target)
    if source != "::":
        body /= ICMPv6NDOptSrcLLAddr(lladdr=fields.get("option", sender))
    return bytes(Ether(src=sender, dst="33:33:ff:00:00:01") / IPv6(src=source, dst=group, hlim=255) / body)


def advertise(sender: str, address: str, to: str = OUTER6["a"], **flags: int) -> bytes:
    body = ICMPv6ND_NA(tgt=address, R=0, **flags) / ICMPv6NDOptDstLLAddr(lladdr=sender)
    return bytes(Ether(src=sender, dst=GATE["a"]) / IPv6(src=address, dst=to, hlim=255) / body)


def one(frames: list[bytes]) -> Packet:
    (frame,) = frames
    return Ether(frame)


@pytest.mark.parametrize("side", ["guest", "wire"])
def test_questions_for_underlay_addresses_are_answered_and_go_no_further(side: str) -> None:
    made = port(text("a"))
    ask = made.from_guest if side == "guest" else made.from_wire
    answers, silent = ("to_guest", "to_wire") if side == "guest" else ("to_wire", "to_guest")
    out = ask(arp(GUEST["b"], "192.0.2.7", OUTER["a"]), NOW)
    answer = one(getattr(out, answers))
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, GATE["a"], OUTER["a"])
    assert (answer.dst, answer[ARP].pdst) == (GUEST["b"], "192.0.2.7")
    assert getattr(out, silent) == []
    out = ask(solicit(GUEST["b"], "2001:db8::7", OUTER6["a"]), NOW)
    answer = one(getattr(out, answers))
    assert (answer[ICMPv6ND_NA].tgt, answer[ICMPv6NDOptDstLLAddr].lladdr) == (OUTER6["a"], GATE["a"])
    assert (answer.dst, answer[IPv6].dst) == (GUEST["b"], "2001:db8::7")
    assert getattr(out, silent) == []


def test_a_guest_gateway_is_ours_towards_the_guest_alone() -> None:
    made = port(
        text("a").replace("[port.underlay]", '[port.underlay]\nguest_gateways = ["10.0.1.1", "fd00:1::1"]')
    )
    for question in (arp(GUEST["a"], HOST["a"], "10.0.1.1"), solicit(GUEST["a"], HOST6["a"], "fd00:1::1")):
        out = made.from_guest(question, NOW)
        assert (one(out.to_guest).src, out.to_wire) == (GATE["a"], [])
        out = made.from_wire(question, NOW)
        assert (out.to_guest, out.to_wire) == ([question], [])


def test_questions_with_a_tag_or_from_a_group_are_not_answered() -> None:
    made = port(text("a"))
    for question in (arp(ROUTER, "192.0.2.7", OUTER["a"]), solicit(ROUTER, "2001:db8::7", OUTER6["a"])):
        tagged = question[:12] + b"\x81\x00\x00\x05" + question[12:]
        assert made.from_guest(tagged, NOW).to_guest == made.from_wire(tagged, NOW).to_wire == []
        group = question.replace(bytes.fromhex(ROUTER.replace(":", "")), b"\xff" * 6)
        fixed = Ether(group)
        if ICMPv6ND_NS in fixed:
            del fixed[ICMPv6ND_NS].cksum
        assert made.from_guest(bytes(fixed), NOW).to_guest == made.from_wire(bytes(fixed), NOW).to_wire == []


def test_questions_for_others_pass_by_the_rules() -> None:
    made = port(text("a"))
    for frame in (arp(GUEST["a"], HOST["a"], "10.0.1.9"), solicit(GUEST["a"], HOST6["a"], "fd00:1::9")):
        assert made.from_guest(frame, NOW).to_wire == [frame]
        assert made.from_wire(frame, NOW).to_guest == [frame]
    closed = port(port_text("a"))
    for frame in (arp(GUEST["a"], HOST["a"], "10.0.1.9"), solicit(GUEST["a"], HOST6["a"], "fd00:1::9")):
        assert closed.from_guest(frame, NOW) == Output()
        assert closed.from_wire(frame, NOW) == Output()
    other = bytes(Ether(src=GUEST["a"], dst=EVERYBODY) / ARP(hwtype=6))
    assert made.from_guest(other, NOW).to_wire == [other]
    assert made.from_wire(other, NOW).to_guest == [other]


def test_a_guest_that_asks_whether_our_address_is_free_hears_nothing_from_us() -> None:
    made = port(text("a"))
    probes = (
        arp(GUEST["a"], "0.0.0.0", OUTER["a"]),  # noqa: S104
        arp(GATE["a"], OUTER["a"], OUTER["a"]),
        solicit(GUEST["a"], "::", OUTER6["a"]),
    )  # fmt: skip
    for probe in probes:
        out = made.from_guest(probe, NOW)
        assert out.to_guest == []
        assert out.to_wire == [probe]
    for probe in (probes[0], probes[2]):  # from the wire it is somebody else who wants the address
        assert len(made.from_wire(probe, NOW).to_wire) == 1


def test_a_guest_cannot_claim_our_addresses() -> None:
    made = port(text("a"))
    mine = GUEST["a"]
    forged = (
        arp(mine, OUTER["a"], OUTER["b"]),
        arp(mine, OUTER["a"], OUTER["a"], op=2),
        solicit(mine, OUTER6["a"], OUTER6["b"]),
        bytes(Ether(src=mine, dst=GATE["b"]) / IPv6(src=OUTER6["a"], dst=OUTER6["b"], hlim=255)
              / ICMPv6ND_NA(tgt=OUTER6["a"]) / ICMPv6NDOptDstLLAddr(lladdr=mine)),
    )  # fmt: skip
    for frame in forged:
        assert made.from_guest(frame, NOW) == Output()
    assert made.counters()["tx_drop_forged"] == 4


def test_a_guest_with_the_address_and_mac_of_the_underlay_gets_its_answers() -> None:
    shared = port(text("a").replace('default = "drop"', f'default = "drop"\nguest_mac = "{GATE["a"]}"'))
    asked = arp(GATE["a"], OUTER["a"], OUTER["b"])
    assert shared.from_guest(asked, NOW).to_wire == [asked]
    answer = bytes(
        Ether(src=GATE["b"], dst=GATE["a"]) / ARP(op=2, hwsrc=GATE["b"], psrc=OUTER["b"], pdst=OUTER["a"])
    )
    assert shared.from_wire(answer, NOW).to_guest == [answer]
    answer6 = advertise(GATE["b"], OUTER6["b"], S=1)
    assert shared.from_wire(answer6, NOW).to_guest == [answer6]
    unshared = port(text("a"))
    assert unshared.from_wire(answer, NOW) == unshared.from_wire(answer6, NOW) == Output()


def test_what_passes_for_our_mac_is_for_the_guest_that_shares_the_address() -> None:
    made = port(text("a").replace('default = "drop"', f'default = "drop"\nguest_mac = "{GUEST["a"]}"'))
    ike = IP(src=OUTER["b"], dst=OUTER["a"]) / UDP(sport=500, dport=500) / b"ike"
    got = one(made.from_wire(bytes(Ether(src=GATE["b"], dst=GATE["a"]) / ike), NOW).to_guest)
    assert (got.dst, bytes(got[IP])) == (GUEST["a"], bytes(ike))


def test_answers_are_bounded() -> None:
    made = port(text("a"))
    answered = sum(len(made.from_wire(arp(ROUTER, "192.0.2.7", OUTER["a"]), NOW).to_wire) for _ in range(300))
    assert answered == 100
    assert made.counters()["answers_withheld"] == 200
    assert made.from_wire(solicit(ROUTER, "2001:db8::7", OUTER6["a"]), NOW).to_wire == []
    assert made.from_guest(solicit(ROUTER, "2001:db8::7", OUTER6["a"]), NOW).to_guest == []
    assert made.from_guest(arp(ROUTER, "192.0.2.7", OUTER["a"]), NOW).to_guest == []


def test_a_next_hop_that_nobody_is_makes_the_guest_hear_so() -> None:
    both = joined({"a": text("a"), "b": text("b")})
    made = both.ports["a"]
    out = made.from_guest(datagram("a"), NOW)
    assert one(out.to_wire)[ARP].pdst == OUTER["b"]
    asked = []
    now = NOW
    while (due := made.deadline()) is not None:
        now = due
        out = made.tick(now)
        asked += out.to_wire
    assert now == NOW + 3 * 10**9
    assert len(asked) == 2
    told = one(out.to_guest)
    assert (told[ICMP].type, told[ICMP].code, told[IP].dst) == (3, 1, HOST["a"])
    assert drops(both, "a") == {"tx_drop_no_next_hop": 1}
    made.from_guest(from_guest("a", IPv6(src=HOST6["a"], dst=HOST6["b"]) / UDP()), now)
    while (due := made.deadline()) is not None:
        out = made.tick(due)
    assert one(out.to_guest)[ICMPv6DestUnreach].code == 3


def test_what_waits_is_bounded_and_leaves_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_WAITING_PER_HOP", 20)
    made = port(text("a"))
    sizes = range(30)
    for size in sizes:
        made.from_guest(datagram("a", bytes(size)), NOW)
    assert made.counters()["tx_drop_queue_full"] == 10
    answer = bytes(Ether(dst=GATE["a"]) / ARP(op=2, hwsrc=GATE["b"], psrc=OUTER["b"], pdst=OUTER["a"]))
    out = made.from_wire(answer, NOW)
    assert len(out.to_wire) == 20
    lengths = [Ether(frame)[IP].len for frame in out.to_wire]
    assert lengths == sorted(lengths)


def test_when_no_more_can_be_asked_for_the_guest_hears_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_HOPS", 0)
    told = one(port(text("a")).from_guest(datagram("a"), NOW).to_guest)
    assert (told[ICMP].type, told[ICMP].code) == (3, 1)


def far(side: str) -> str:
    """The peer is behind a gateway."""
    near, away = OUTER[side], {"a": "198.51.100.1", "b": "203.0.113.1"}
    gateway = f'addresses = ["{away[side]}/24"]\ngateways = ["{away[side][:-1]}254"]'
    head = port_text(side).split("addresses")[0] + gateway + "\n"
    assert near not in head
    return head + sas_text(side, outer=away) + flows_text(side) + SERVICES


def test_peers_that_are_not_on_link_are_behind_the_gateway() -> None:
    made = port(far("a"))
    out = made.from_guest(datagram("a"), NOW)
    assert one(out.to_wire)[ARP].pdst == "198.51.100.254"
    answer = ARP(op=2, hwsrc=ROUTER, psrc="198.51.100.254", pdst="198.51.100.1")
    sealed = one(made.from_wire(bytes(Ether(dst=GATE["a"]) / answer), NOW).to_wire)
    assert (sealed.dst, sealed[IP].dst) == (ROUTER, "203.0.113.1")


def test_a_fixed_next_hop_is_never_asked_for() -> None:
    made = port(text("a").replace("[port.underlay]", f'[port.underlay]\nnext_hop = "{ROUTER}"'))
    sealed = one(made.from_guest(datagram("a"), NOW).to_wire)
    assert (sealed.dst, sealed[IP].proto) == (ROUTER, 50)
    assert made.deadline() is None
    assert [path.mac for path in made.snapshot().paths.values()] == [bytes.fromhex(ROUTER.replace(":", ""))]


def resolved(outer: dict[str, str] = OUTER) -> OperatorPort:
    made = port(text("a", outer=outer))  # type: ignore[arg-type]
    made.from_guest(datagram("a"), NOW)
    made.from_wire(
        bytes(Ether(dst=GATE["a"]) / ARP(op=2, hwsrc=GATE["b"], psrc=OUTER["b"], pdst=OUTER["a"]))
        if outer is OUTER
        else advertise(GATE["b"], OUTER6["b"], S=1),
        NOW,
    )
    return made


def test_a_neighbour_that_moves_is_followed_and_one_that_falls_silent_forgotten() -> None:
    made = resolved()
    generation = made.generation
    made.from_wire(
        arp(ROUTER, OUTER["b"], "192.0.2.77"), NOW
    )  # it asks for somebody else, and so shows where it is
    assert made.generation == generation + 1
    assert one(made.from_guest(datagram("a"), NOW).to_wire).dst == ROUTER
    made.from_wire(arp(ROUTER, "0.0.0.0", OUTER["b"]), NOW)  # noqa: S104
    made.from_wire(arp(GATE["a"], OUTER["b"], OUTER["a"]), NOW)  # our own address is nobody's
    assert made.generation == generation + 1
    confirm = one(made.tick(made.deadline() or 0).to_wire)
    assert (confirm.dst, confirm[ARP].pdst) == (ROUTER, OUTER["b"])
    while (due := made.deadline()) is not None:
        made.tick(due)
    assert made.snapshot().paths == {}
    assert made.generation == generation + 2


def test_neighbour_discovery_follows_the_override_flag() -> None:
    made = resolved(OUTER6)
    made.from_wire(advertise(ROUTER, OUTER6["b"], O=0), NOW)
    assert one(made.from_guest(datagram("a"), NOW).to_wire).dst == GATE["b"]
    made.from_wire(advertise(ROUTER, OUTER6["b"], O=1), NOW)
    assert one(made.from_guest(datagram("a"), NOW).to_wire).dst == ROUTER
    made.from_wire(solicit(GATE["b"], OUTER6["b"], "2001:db8::55"), NOW)
    assert one(made.from_guest(datagram("a"), NOW).to_wire).dst == GATE["b"]
    confirm = one(made.tick(made.deadline() or 0).to_wire)
    assert (confirm.dst, confirm[ICMPv6ND_NS].tgt) == (GATE["b"], OUTER6["b"])
    bare = (
        Ether(src=ROUTER, dst=GATE["a"])
        / IPv6(src=OUTER6["b"], dst=OUTER6["a"], hlim=255)
        / ICMPv6ND_NA(tgt=OUTER6["b"])
    )
    assert made.from_wire(bytes(bare), NOW) == Output()


def test_a_port_that_takes_over_says_where_the_addresses_are() -> None:
    both = met(joined({side: text(side) for side in "ab"}))
    both.send("a", datagram("a"))
    moved = port(text("b").replace(GATE["b"], ROUTER))
    moved.retire()
    for question in (arp(GUEST["a"], OUTER["a"], OUTER["b"]), solicit(GUEST["a"], OUTER6["a"], OUTER6["b"])):
        assert moved.from_wire(question, NOW) == Output()
        assert moved.from_guest(question, NOW).to_guest  # its own guest is answered all the same
    assert moved.tick(NOW) == Output()
    moved.activate()
    assert moved.deadline() == 0
    four, six = (Ether(frame) for frame in moved.tick(NOW).to_wire)
    assert moved.deadline() is None
    assert (four.dst, four[ARP].op, four[ARP].psrc, four[ARP].pdst) == (EVERYBODY, 1, OUTER["b"], OUTER["b"])
    assert (six.dst, six[IPv6].dst, six[ICMPv6ND_NA].tgt) == ("33:33:00:00:00:01", "ff02::1", OUTER6["b"])
    assert (six[ICMPv6ND_NA].S, six[ICMPv6ND_NA].O, six[ICMPv6NDOptDstLLAddr].lladdr) == (0, 1, ROUTER)
    for frame in (four, six):
        both.ports["a"].from_wire(bytes(frame), both.now)
    assert one(both.ports["a"].from_guest(datagram("a"), both.now).to_wire).dst == ROUTER
    assert moved.from_wire(arp(GUEST["a"], OUTER["a"], OUTER["b"]), NOW).to_wire
    without = port('[port]\ncontrol = "operator"\ndefault = "drop"\n')
    without.activate()
    assert (without.deadline(), without.tick(NOW)) == (None, Output())


def test_who_speaks_unasked_is_not_remembered() -> None:
    made = port(text("a"))
    for number in range(50):
        made.from_wire(arp(ROUTER, f"192.0.2.{number + 10}", OUTER["a"]), NOW)
    assert made.deadline() is None
    assert made.snapshot().paths == {}


def test_both_ports_find_each_other_after_one_has_lost_the_other() -> None:
    both = met(joined({side: text(side) for side in "ab"}))
    both.send("a", datagram("a"))
    both.send("b", datagram("b"))
    both.pass_time(300)
    both.send("a", datagram("a"))
    assert len(both.guests["b"]) == 2
    assert drops(both, "a") == drops(both, "b") == {}
