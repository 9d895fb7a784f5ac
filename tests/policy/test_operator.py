"""An operator's port between a guest and a wire: what goes through, in which form, and what does not."""

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
    Wire,
    datagram,
    drops,
    flows_text,
    from_guest,
    joined,
    met,
    sas_text,
    text,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6MLReport, ICMPv6ND_NS, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

TUNNELS = {"IPv4": OUTER, "IPv6": OUTER6}
HMAC = {"suite": 'algorithm = "hmac-sha2-256-128"\nauth_key = "' + "77" * 32 + '"', "salt": ""}
GCM256 = {"suite": 'algorithm = "aes-gcm-16"', "keys": ("11" * 32, "22" * 32)}
ESN = 'options = ["esn"]'
CBC = 'algorithm = "aes-cbc+hmac-sha2-256-128"\nauth_key = "' + "77" * 32 + '"'
KINDS = {
    "gcm 256 esn": {**GCM256, "out": ESN, "within": ESN},
    "cbc": {"suite": CBC, "salt": ""},
    "chacha": {"suite": 'algorithm = "chacha20-poly1305"', "keys": ("11" * 32, "22" * 32)},
    "udp": {"out": "udp = {}", "within": "udp = {}"},
    "ah": {"mode": "ah-tunnel", **HMAC},
    "esp transport": {"mode": "esp-transport"},
    "udp transport": {"mode": "esp-transport", "out": "udp = {}", "within": "udp = {}"},
    "ah transport": {"mode": "ah-transport", **HMAC},
}  # fmt: skip


def wire(**changes: object) -> Wire:
    return met(joined({side: text(side, **changes) for side in "ab"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("outside", TUNNELS)
def test_a_tunnel_packet_waits_for_its_next_hop_and_arrives_as_it_was(outside: str) -> None:
    both = wire(outer=TUNNELS[outside])
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
    counts = both.ports["a"].counters()
    assert (counts["tx_protected"], counts["tx_waited"]) == (1, 1)
    assert both.ports["b"].counters()["rx_opened"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sa_crosses_both_ways(kind: str) -> None:
    both = wire(**KINDS[kind])
    to = None if "transport" not in kind else GUEST
    for side, other in (("a", "b"), ("b", "a")):
        inner4 = IP(src=HOST[side], dst=HOST[other], id=5) / UDP(sport=7, dport=8) / b"secret-secret"
        inner6 = IPv6(src=HOST6[side], dst=HOST6[other]) / UDP(sport=7, dport=8) / b"secret-secret"
        for inner in (inner4, inner6):
            sent = from_guest(side, inner, to[other] if to else None)
            both.send(side, sent)
            assert both.guests[other][-1][14:] == sent[14:]
            assert Ether(both.guests[other][-1]).dst == GUEST[other]
            assert (b"secret" in both.seen[-1][1]) == (kind.startswith("ah"))
    assert drops(both, "a") == drops(both, "b") == {}


def test_ipv6_inside_ipv4_gets_the_right_ethertype_on_both_sides() -> None:
    both = wire()
    both.send("a", from_guest("a", IPv6(src=HOST6["a"], dst=HOST6["b"]) / UDP(sport=1, dport=2) / b"six"))
    assert Ether(both.guests["b"][-1])[UDP].payload.load == b"six"
    assert Ether(both.guests["b"][-1]).type == 0x86DD
    assert Ether(both.seen[-1][1]).type == 0x0800


CLEAR = {
    "another host": IP(src="10.0.1.5", dst="203.0.113.1") / UDP(),
    "a forged source": IP(src="203.0.113.9", dst="10.0.2.5") / UDP(),
    "multicast": IP(src="10.0.1.5", dst="224.0.0.251") / UDP(sport=5353, dport=5353),
    "link-local": IPv6(src="fe80::1", dst="fe80::2") / UDP(),
    "link-local echo": IPv6(src="fe80::1", dst="ff02::1") / ICMPv6EchoRequest(),
    "multicast listener": IPv6(src="fe80::1", dst="ff02::16") / ICMPv6MLReport(),
    "ike from another port": IP(src="10.0.1.5", dst="203.0.113.1") / UDP(sport=501, dport=500),
    "dhcp to another port": IP(src="10.0.1.5", dst="203.0.113.1") / UDP(sport=68, dport=68),
    "esp of the guest": IP(src="10.0.1.5", dst="203.0.113.1", proto=50) / bytes(40),
}


@pytest.mark.parametrize("name", CLEAR)
def test_nothing_leaves_in_the_clear_that_no_flow_lets_out(name: str) -> None:
    both = wire()
    both.send("a", from_guest("a", CLEAR[name], "02:00:00:00:00:77"))
    assert both.seen == []
    assert drops(both, "a") == {"tx_drop_drop_default": 1}


PASSED = {
    "dhcp": IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),  # noqa: S104
    "dhcpv6": IPv6(src="fe80::1", dst="ff02::1:2") / UDP(sport=546, dport=547),
    "ike": IP(src="10.0.1.5", dst="203.0.113.1") / UDP(sport=500, dport=500) / b"ike",
    "router solicitation": IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
    "neighbour solicitation": IPv6(src="fe80::1", dst="ff02::1:ff00:9", hlim=255)
    / ICMPv6ND_NS(tgt="fe80::9"),
}


@pytest.mark.parametrize("name", PASSED)
def test_a_named_service_passes_untouched_both_ways(name: str) -> None:
    both = wire()
    frame = bytes(Ether(src=GUEST["a"], dst="ff:ff:ff:ff:ff:ff") / PASSED[name])
    both.send("a", frame)
    assert both.seen == [("a", frame)]
    lldp = bytes(Ether(src=GUEST["a"], dst="01:80:c2:00:00:0e", type=0x88CC) / bytes(46))
    both.send("a", lldp)
    assert len(both.seen) == 1
    assert drops(both, "a") == {"tx_drop_not_ip": 1}


def test_a_default_of_bypass_lets_out_what_no_flow_holds() -> None:
    config = text("a").replace('default = "drop"', 'default = "bypass"') + (
        '[[flow]]\nname = "no"\nmatch = { dst = "203.0.113.1" }\naction = "drop"\n'
        '[[flow]]\nmatch = { ethertype = 0x88cc }\naction = "drop"\n'
    )
    both = joined({"a": config, "b": text("b")})
    lldp = bytes(Ether(src=GUEST["a"], dst="01:80:c2:00:00:0e", type=0x88CC) / bytes(46))
    other = bytes(Ether(src=GUEST["a"], dst="02:00:00:00:00:77", type=0x88CD) / bytes(46))
    passed = from_guest("a", CLEAR["multicast"], "01:00:5e:00:00:fb")
    both.send("a", lldp, other, passed, from_guest("a", CLEAR["another host"], "02:00:00:00:00:77"))
    assert [frame for _, frame in both.seen] == [other, passed]
    assert drops(both, "a") == {"tx_drop_not_ip": 1, "tx_drop_drop_rule": 1}
    assert both.guests["b"] == []


BROKEN = {
    "short": b"\x02" * 13,
    "cut tag": b"\x02" * 12 + b"\x81\x00\x00",
    "no header": bytes(Ether(src=GUEST["a"], dst=GATE["a"], type=0x800)),
    "other version": bytes(Ether(src=GUEST["a"], dst=GATE["a"], type=0x86DD) / IP()),
    "length": bytes(Ether(src=GUEST["a"], dst=GATE["a"]) / IP(src=HOST["a"], dst=HOST["b"], len=100)),
    "hop-by-hop late": bytes(Ether(src=GUEST["a"], dst=GATE["a"]) / IPv6(nh=60) / (b"\0\0\1\4\0\0\0\0" * 3)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_well_formed_ends_here(name: str) -> None:
    both = wire()
    both.send("a", BROKEN[name])
    assert both.seen == []
    assert sum(drops(both, "a").values()) == 1
    out = both.ports["b"].from_wire(BROKEN[name], both.now)
    assert (out.to_wire, out.to_guest) == ([], [])
    assert sum(drops(both, "b").values()) == 1


def test_cleartext_that_should_be_protected_does_not_come_in() -> None:
    both = wire()
    clear = IP(src=HOST["a"], dst=HOST["b"]) / UDP(sport=1000, dport=2000) / b"forged"
    out = both.ports["b"].from_wire(bytes(Ether(dst=GUEST["b"]) / clear), both.now)
    assert out.to_guest == []
    assert drops(both, "b") == {"rx_drop_drop_cleartext": 1}
    answer = IP(src="10.9.9.9", dst="255.255.255.255") / UDP(sport=67, dport=68)
    frame = bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / answer)
    assert both.ports["b"].from_wire(frame, both.now).to_guest == [frame]
    for port in (500, 68):  # a rule for our port does not let in who sends from it
        out = both.ports["b"].from_wire(
            bytes(Ether(dst=GUEST["b"]) / IP(dst=HOST["b"]) / UDP(sport=port, dport=22)), both.now
        )
        assert out.to_guest == []


def sealed_by(both: Wire, frame: bytes) -> bytes:
    """What port a makes of a guest's frame."""
    both.ports["a"].from_wire(
        bytes(Ether(dst=GATE["a"]) / ARP(op=2, hwsrc=GATE["b"], psrc=OUTER["b"], pdst=OUTER["a"])), both.now
    )
    both.send("a", datagram("a"))
    out = both.ports["a"].from_guest(frame, both.now)
    return out.to_wire[-1]


def test_what_comes_out_of_an_sa_must_be_what_it_is_for() -> None:
    loose = text("a").replace(f'src = "{"10.0.1.0/24"}"', 'src = "10.0.0.0/8"')
    both = joined({"a": loose, "b": text("b")})
    both.send("b", datagram("b"))
    inner = IP(src="10.0.7.7", dst=HOST["b"]) / UDP(sport=1, dport=2)
    frame = sealed_by(both, from_guest("a", inner))
    before = len(both.guests["b"])
    assert both.ports["b"].from_wire(frame, both.now).to_guest == []
    assert drops(both, "b") == {"rx_drop_drop_selector": 1}
    assert len(both.guests["b"]) == before


def test_a_tunnel_packet_comes_from_its_peer_to_our_address() -> None:
    both = wire()
    frame = sealed_by(both, datagram("a", b"one"))
    moved = Ether(frame)
    moved[IP].src = "192.0.2.77"
    del moved[IP].chksum
    assert both.ports["b"].from_wire(bytes(moved), both.now).to_guest == []
    assert drops(both, "b") == {"rx_drop_drop_peer": 1}
    elsewhere = Ether(sealed_by(both, datagram("a", b"two")))
    elsewhere[IP].dst = "192.0.2.88"
    del elsewhere[IP].chksum
    assert both.ports["b"].from_wire(bytes(elsewhere), both.now).to_guest == []
    assert both.ports["b"].counters()["rx_drop_drop_default"] == 1


def test_a_peer_that_moves_may_come_from_anywhere() -> None:
    both = joined({"a": text("a"), "b": text("b").replace(f'peer = "{OUTER["a"]}"', 'peer = "any"')})
    both.send("b", datagram("b"))
    moved = Ether(sealed_by(both, datagram("a", b"one")))
    moved[IP].src = "192.0.2.77"
    del moved[IP].chksum
    assert len(both.ports["b"].from_wire(bytes(moved), both.now).to_guest) == 1


def test_ipsec_for_us_that_no_sa_knows_is_not_the_guests() -> None:
    both = wire()
    frame = Ether(sealed_by(both, datagram("a")))
    spi = Ether(bytes(frame))
    spi[IP].payload = type(spi[IP].payload)(b"\0\0\x77\x77" + bytes(spi[IP].payload)[4:])
    in_udp = (
        Ether(dst=GATE["b"])
        / IP(src=OUTER["a"], dst=OUTER["b"])
        / UDP(sport=4500, dport=4500)
        / (b"\0\0\x77\x77" + bytes(60))
    )
    short = Ether(dst=GATE["b"]) / IP(src=OUTER["a"], dst=OUTER["b"], proto=50) / b"\0\0\x77"
    for each in (spi, in_udp, short):
        assert both.ports["b"].from_wire(bytes(each), both.now).to_guest == []
    assert drops(both, "b") == {"rx_drop_unknown_sa": 2, "rx_drop_malformed": 1}


def test_replayed_and_damaged_packets_are_counted_by_reason() -> None:
    both = wire()
    frame = sealed_by(both, datagram("a"))
    damaged = frame[:-1] + bytes((frame[-1] ^ 1,))
    for each in (damaged, frame, frame):
        both.ports["b"].from_wire(each, both.now)
    assert drops(both, "b") == {"rx_drop_bad_icv": 1, "rx_drop_replay": 1}


def test_udp_with_an_esp_look_that_is_not_for_the_sa_is_a_datagram() -> None:
    both = joined(
        {
            "a": text("a"),
            "b": text("b", within="udp = { dport = 4600 }")
            + '[[flow]]\nmatch = { protocol = "udp", sport = 53 }\naction = "bypass"\n',
        }
    )
    both.send("b", datagram("b"))
    inner = (
        Ether(dst=GUEST["b"])
        / IP(src=OUTER["a"], dst=OUTER["b"])
        / UDP(sport=9, dport=53)
        / (b"\0\0\x10\x01" + bytes(60))
    )
    assert len(both.ports["b"].from_wire(bytes(inner), both.now).to_guest) == 1


def test_plain_esp_for_an_sa_in_udp_and_back_is_told_apart() -> None:
    both = wire()
    frame = Ether(sealed_by(both, datagram("a")))
    esp = bytes(frame[IP].payload)
    in_udp = Ether(dst=GATE["b"]) / IP(src=OUTER["a"], dst=OUTER["b"]) / UDP(sport=4500, dport=4500) / esp
    out = both.ports["b"].from_wire(bytes(in_udp), both.now)  # an SA without encapsulation does not take it
    assert out.to_guest == []
    assert drops(both, "b") == {"rx_drop_not_ipsec": 1}


def test_tagged_frames_keep_their_tag_except_that_tunnels_refuse_them() -> None:
    tagged = Ether(src=GUEST["a"], dst=GATE["a"]) / Dot1Q(vlan=5) / Ether(datagram("a"))[IP]
    priority = Ether(src=GUEST["a"], dst=GATE["a"]) / Dot1Q(vlan=0, prio=3) / Ether(datagram("a"))[IP]
    both = wire()
    both.send("a", bytes(tagged))
    assert drops(both, "a") == {"tx_drop_tagged": 1}
    both.send("a", bytes(priority))
    assert len(both.guests["b"]) == 1
    sealed = both.seen[-1][1]
    both.ports["b"].from_wire(sealed[:12] + b"\x81\x00\x00\x05" + sealed[12:], both.now)
    assert drops(both, "b") == {"rx_drop_tagged": 1}
    flat = wire(mode="esp-transport")
    flat.send("a", from_guest("a", Dot1Q(vlan=5) / Ether(datagram("a"))[IP], GUEST["b"]))
    assert Ether(flat.seen[-1][1])[Dot1Q].vlan == 5
    assert Ether(flat.guests["b"][-1])[Dot1Q].vlan == 5


def test_the_port_is_a_gateway_to_its_tunnels_only() -> None:
    both = wire(mode="esp-transport")
    both.send("a", datagram("a"), from_guest("a", PASSED["ike"]))
    assert both.seen == []
    assert drops(both, "a") == {"tx_drop_misdirected": 2}


def test_a_packet_for_a_guest_that_has_not_spoken_is_dropped() -> None:
    both = joined({side: text(side) for side in "ab"})
    both.send("a", datagram("a"))
    assert both.guests["b"] == []
    assert drops(both, "b") == {"rx_drop_no_guest": 1}
    named = joined(
        {
            "a": text("a"),
            "b": text("b").replace('default = "drop"', f'default = "drop"\nguest_mac = "{GUEST["b"]}"'),
        }
    )
    named.send("a", datagram("a"))
    assert len(named.guests["b"]) == 1
    named.send("b", bytes(Ether(src="02:00:00:00:00:66", dst=GATE["b"]) / Ether(datagram("b"))[IP]))
    assert named.ports["b"].guest_mac == bytes.fromhex(GUEST["b"].replace(":", ""))


def test_a_learnt_guest_changes_its_address_once_a_second_at_most() -> None:
    both = wire()
    made = both.ports["a"]
    generation = made.generation
    for source in ("02:00:00:00:00:61", "02:00:00:00:00:62", "01:00:00:00:00:01", "00:00:00:00:00:00"):
        made.from_guest(bytes(Ether(src=source, dst="ff:ff:ff:ff:ff:ff") / ARP()), both.now)
    assert made.generation == generation
    both.pass_time(1)
    for source in ("02:00:00:00:00:61", "02:00:00:00:00:62"):
        made.from_guest(bytes(Ether(src=source, dst="ff:ff:ff:ff:ff:ff") / ARP()), both.now)
    assert made.guest_mac == bytes.fromhex("020000000061")
    assert made.snapshot().guest_mac == made.guest_mac
    assert made.generation == generation + 1


def test_priorities_stand_above_the_order_of_the_file() -> None:
    flow = '[[flow]]\nname = "first"\nmatch = { protocol = "udp", dport = 2000 }\naction = "drop"\npriority = 7\n'
    both = joined({"a": text("a") + flow, "b": text("b")})
    both.send("a", datagram("a"))
    assert drops(both, "a") == {"tx_drop_drop_rule": 1}
    both.ports["a"].remove_flow("first")
    both.send("a", datagram("a"))
    assert both.ports["a"].counters()["tx_protected"] == 1


def test_a_port_without_underlay_protects_in_transport_mode() -> None:
    config = {
        side: '[port]\ncontrol = "operator"\ndefault = "drop"\n'
        + sas_text(side, "esp-transport")
        + flows_text(side)
        + SERVICES
        for side in "ab"
    }
    both = joined(config)
    sent = from_guest("a", IP(src=HOST["a"], dst=HOST["b"]) / TCP(), GUEST["b"])
    both.send("a", sent)
    assert both.guests["b"] == [sent]
    assert both.ports["a"].deadline() is None
    arp = bytes(Ether(src=GUEST["a"], dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=HOST["a"], pdst=HOST["b"]))
    both.send("a", arp)
    assert both.guests["b"][-1] == arp
