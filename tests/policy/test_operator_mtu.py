"""Packets that get too large, fragments on both sides, and what the net says about the path."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from operator_ports import (
    GATE,
    GUEST,
    HOST,
    HOST6,
    OTHER,
    OUTER,
    OUTER6,
    SECOND,
    SERVICES,
    Wire,
    drops,
    flows_text,
    from_guest,
    joined,
    met,
    port_text,
    sas_text,
    text,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, defragment
from scapy.layers.inet import fragment as scapy_cut
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    defragment6,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from virtio_ipsec.policy.config import flow_from
from virtio_ipsec.policy.path_mtu import AGE


def big(size: int, **fields: object) -> IP:
    """An IPv4 packet of that many octets."""
    data = bytes(i % 251 for i in range(size - 28))
    return IP(src=HOST["a"], dst=HOST["b"], id=9, **fields) / UDP(sport=1, dport=2) / data


def big6(size: int) -> IPv6:
    return (
        IPv6(src=HOST6["a"], dst=HOST6["b"])
        / UDP(sport=1, dport=2)
        / bytes(i % 251 for i in range(size - 48))
    )


def wire(
    mode: str = "esp-tunnel", outer: dict[str, str] = OUTER, port: str = "", underlay: str = "", **more: str
) -> Wire:
    def config(side: str) -> str:
        sas = sas_text(side, mode, outer=outer, **more)  # type: ignore[arg-type]
        return port_text(side, port=port, underlay=underlay) + sas + flows_text(side) + SERVICES

    return met(joined({side: config(side) for side in "ab"}))


def said(both: Wire, side: str = "a") -> Ether:
    return Ether(both.guests[side][-1])


@pytest.mark.parametrize("outer", [OUTER, OUTER6])
@pytest.mark.parametrize("mode", ["esp-tunnel", "esp-transport", "ah-tunnel"])
def test_a_guest_is_told_the_largest_packet_that_fits(mode: str, outer: dict[str, str]) -> None:
    more = (
        {"suite": 'algorithm = "hmac-sha1-96"\nauth_key = "' + "77" * 20 + '"', "salt": ""}
        if "ah" in mode
        else {}
    )
    both = wire(mode, outer, **more)
    to = GUEST["b"] if "transport" in mode else GATE["a"]
    both.send("a", from_guest("a", big(1500, flags="DF"), to))
    answer = said(both)
    assert (answer.dst, answer.src) == (GUEST["a"], GATE["a"])
    assert (answer[IP].src, answer[IP].dst, answer[ICMP].type, answer[ICMP].code) == (
        OUTER["a"],
        HOST["a"],
        3,
        4,
    )
    assert answer[IPerror].dst == HOST["b"]
    fits = answer[ICMP].nexthopmtu
    both.send("a", from_guest("a", big(fits, flags="DF"), to))
    assert bytes(Ether(both.guests["b"][-1])[IP]) == bytes(big(fits, flags="DF"))
    assert len(both.seen[-1][1]) <= 1514
    before = len(both.seen)
    both.send("a", from_guest("a", big(fits + 1, flags="DF"), to))
    assert len(both.seen) == before
    assert drops(both, "a") == {"tx_drop_too_big": 2}
    both.send("a", from_guest("a", big6(1500), to))
    answer6 = said(both)[ICMPv6PacketTooBig]
    assert said(both)[IPv6].src == OUTER6["a"]
    assert answer6[IPerror6].dst == HOST6["b"]
    both.send("a", from_guest("a", big6(answer6.mtu), to))
    assert bytes(Ether(both.guests["b"][-1])[IPv6]) == bytes(big6(answer6.mtu))


@pytest.mark.parametrize("outer", [OUTER, OUTER6])
def test_a_packet_that_may_be_cut_is_cut_after_esp_and_arrives_whole(outer: dict[str, str]) -> None:
    both = wire(outer=outer)
    both.send("a", from_guest("a", big(1500)))
    frames = [Ether(frame) for side, frame in both.seen if side == "a"][-2:]
    assert all(len(frame) <= 1514 for frame in frames)
    if outer is OUTER:
        (whole,) = defragment([frame[IP] for frame in frames])
        assert whole.proto == 50
    else:
        assert frames[0][IPv6ExtHdrFragment].nh == 50
        assert defragment6([frame[IPv6] for frame in frames]).nh == 50
    assert bytes(Ether(both.guests["b"][-1])[IP]) == bytes(big(1500))
    assert both.ports["a"].counters()["tx_fragmented"] == 1
    assert both.ports["b"].counters()["rx_fragments"] == 2


def test_fragments_of_esp_arrive_in_any_order_and_a_lost_one_is_forgotten() -> None:
    both = wire()
    both.send("a", from_guest("a", big(100)))
    first, second = both.ports["a"].from_guest(from_guest("a", big(1500)), both.now).to_wire
    made = both.ports["b"]
    assert made.from_wire(second, both.now).to_guest == []
    (arrived,) = made.from_wire(first, both.now).to_guest
    assert bytes(Ether(arrived)[IP]) == bytes(big(1500))
    _, lost = both.ports["a"].from_guest(from_guest("a", big(1500)), both.now).to_wire
    made.from_wire(lost, both.now)
    both.pass_time(31)
    assert made.counters()["rx_reassembly_expired"] == 1


def test_an_ipv6_packet_of_1280_octets_is_cut_since_nobody_can_send_less() -> None:
    both = wire(underlay="mtu = 1280", outer=OUTER6)
    both.send("a", from_guest("a", big6(1281)))
    assert said(both)[ICMPv6PacketTooBig].mtu == 1280
    both.send("a", from_guest("a", big6(1280)))
    assert bytes(Ether(both.guests["b"][-1])[IPv6]) == bytes(big6(1280))
    assert both.ports["a"].counters()["tx_fragmented"] == 1


def guest_fragments(packet: Packet) -> list[bytes]:
    if IP in packet:
        return [from_guest("a", piece, GUEST["b"]) for piece in scapy_cut(packet, 1400)]
    body = IPv6(src=HOST6["a"], dst=HOST6["b"]) / IPv6ExtHdrFragment(id=3) / packet[UDP]
    return [from_guest("a", piece, GUEST["b"]) for piece in fragment6(body, 1400)]


@pytest.mark.parametrize("packet", [big(4000), big6(4000)], ids=["IPv4", "IPv6"])
def test_transport_mode_protects_what_the_guest_cut_as_a_whole(packet: Packet) -> None:
    both = wire("esp-transport")
    both.send("a", *guest_fragments(packet))
    assert both.ports["a"].counters()["tx_protected"] == 1
    layer = IP if IP in packet else IPv6
    arrived = [Ether(frame)[layer] for frame in both.guests["b"]]
    assert len(arrived) > 1
    assert all(len(bytes(piece)) <= 1500 for piece in arrived)
    whole = defragment(arrived)[0] if layer is IP else IPv6(bytes(defragment6(arrived)))
    assert bytes(whole[UDP]) == bytes(packet[UDP])


def test_tunnels_carry_fragments_and_rules_with_ports_see_whole_datagrams() -> None:
    both = wire()
    pieces = [from_guest("a", piece) for piece in scapy_cut(big(4000), 1000)]
    both.send("a", *pieces)
    assert [frame[14:] for frame in both.guests["b"]] == [piece[14:] for piece in pieces]
    ported = {
        side: (port_text(side) + sas_text(side, selectors=f'{{ protocol = "udp", {mine}_port = 2 }}')
               + f'[[flow]]\nmatch = {{ protocol = "udp", {mine}_port = 2 }}\naction = "protect"\nsa = 1\n' + SERVICES)
        for side, mine in (("a", "remote"), ("b", "local"))
    }  # fmt: skip
    both = met(joined(ported))
    both.send("a", *pieces)
    assert drops(both, "a") == {}
    assert bytes(defragment([Ether(frame)[IP] for frame in both.guests["b"]])[0][UDP]) == bytes(
        big(4000)[UDP]
    )


def test_fragments_out_of_a_tunnel_are_admitted_whole() -> None:
    narrow = sas_text("b", selectors='{ protocol = "udp", local_port = 2 }')
    both = met(joined({"a": text("a"), "b": port_text("b") + narrow + flows_text("b") + SERVICES}))
    both.send("a", *(from_guest("a", piece) for piece in scapy_cut(big(3000), 1000)))
    assert bytes(defragment([Ether(frame)[IP] for frame in both.guests["b"]])[0][UDP]) == bytes(
        big(3000)[UDP]
    )
    both.guests["b"].clear()
    body = IPv6(src=HOST6["a"], dst=HOST6["b"]) / IPv6ExtHdrFragment(id=3) / big6(3000)[UDP]
    both.send("a", *(from_guest("a", piece) for piece in fragment6(body, 1300)))
    six = IPv6(bytes(defragment6([Ether(frame)[IPv6] for frame in both.guests["b"]])))
    assert bytes(six[UDP]) == bytes(big6(3000)[UDP])
    assert all(len(frame) <= 1514 for frame in both.guests["b"])
    assert drops(both, "b") == {}
    refused = big(3000)
    refused[UDP].dport = 3
    both.guests["b"].clear()
    both.send("a", *(from_guest("a", piece) for piece in scapy_cut(refused, 1000)))
    assert both.guests["b"] == []
    assert drops(both, "b") == {"rx_drop_drop_selector": 1}


def test_overlapping_fragments_of_the_guest_end_their_datagram() -> None:
    both = wire("esp-transport")
    first, second, *_ = guest_fragments(big(4000))
    moved = Ether(second)
    moved[IP].frag -= 1
    del moved[IP].chksum
    both.send("a", first, bytes(moved), second)
    assert drops(both, "a") == {"tx_drop_fragment": 2}
    damaged = IPv6(src=HOST6["a"], dst=HOST6["b"], nh=0) / b"\x2c\xff\0\0\0\0\0\0"
    both.send("a", from_guest("a", damaged, GUEST["b"]))
    assert drops(both, "a")["tx_drop_drop_malformed"] == 1


def test_a_bypassed_datagram_that_was_joined_leaves_in_pieces() -> None:
    flow = '[[flow]]\nmatch = { protocol = "udp", dport = 2 }\naction = "protect"\nsa = 1\n'
    rest = '[[flow]]\naction = "bypass"\n'
    both = met(joined({"a": port_text("a") + sas_text("a") + flow + rest, "b": text("b")}))
    other = big(4000)
    other[UDP].dport = 3
    both.send("a", *guest_fragments(other))
    frames = [Ether(frame)[IP] for side, frame in both.seen if side == "a"]
    assert bytes(defragment(frames)[0][UDP]) == bytes(other[UDP])


def test_a_clear_datagram_is_joined_where_a_rule_asks_for_ports() -> None:
    rules = (
        '[[flow]]\nmatch = { protocol = "udp", sport = 7 }\naction = "drop"\n[[flow]]\naction = "bypass"\n'
    )
    both = met(joined({"a": text("a"), "b": port_text("b") + sas_text("b") + rules}))
    for dport, passes in ((2, True), (7, False)):
        both.guests["b"].clear()
        packet = big(4000)
        packet[UDP].dport = dport
        frames = [bytes(Ether(src=GUEST["a"], dst=GUEST["b"]) / piece) for piece in scapy_cut(packet, 1000)]
        for frame in frames:
            both.guests["b"] += both.ports["b"].from_wire(frame, both.now).to_guest
        assert bool(both.guests["b"]) is passes
    short = Ether(dst=GUEST["b"]) / IP(proto=17) / b"\0"
    assert both.ports["b"].from_wire(bytes(short), both.now).to_guest == []
    assert drops(both, "b")["rx_drop_drop_hidden"] == 1


def test_what_is_too_large_for_the_guest_is_cut_if_it_may_be() -> None:
    both = met(
        joined({"a": text("a"), "b": text("b").replace('default = "drop"', 'default = "drop"\nmtu = 576')})
    )
    both.send("a", from_guest("a", big(1000)))
    assert bytes(defragment([Ether(frame)[IP] for frame in both.guests["b"]])[0][UDP]) == bytes(
        big(1000)[UDP]
    )
    both.guests["b"].clear()
    both.send("a", from_guest("a", big(1000, flags="DF")), from_guest("a", big6(1000)))
    assert both.guests["b"] == []
    assert drops(both, "b") == {"rx_drop_too_big": 2}


def net_error(both: Wire, mtu: int, **changes: object) -> bytes:
    """What a router says about the last packet on the wire."""
    quoted = bytearray(both.seen[-1][1][14:][:28])
    quoted[12:16] = bytes(map(int, str(changes.get("src", OUTER["a"])).split(".")))
    quoted[20:24] = changes.get("spi", bytes(quoted[20:24]))  # type: ignore[assignment]
    quoted[24:28] = changes.get("sequence", bytes(quoted[24:28]))  # type: ignore[assignment]
    kind = ICMP(type=changes.get("type", 3), code=changes.get("code", 4), nexthopmtu=mtu)
    return bytes(Ether(dst=GATE["a"]) / IP(src="192.0.2.99", dst=OUTER["a"]) / kind / bytes(quoted))


def test_a_router_lowers_the_path_and_time_raises_it() -> None:
    both = wire(out='options = ["copy-df"]')
    both.send("a", from_guest("a", big(1400, flags="DF")))
    made = both.ports["a"]
    generation = made.generation
    assert made.from_wire(net_error(both, 1300), both.now).to_guest == []
    assert made.generation == generation + 1
    assert [path.mtu for path in made.snapshot().paths.values()] == [1300]
    both.send("a", from_guest("a", big(1400, flags="DF")))
    assert 1200 < said(both)[ICMP].nexthopmtu < 1300
    assert made.counters()["rx_mtu_errors"] == 1
    both.pass_time(AGE // SECOND + 1)
    both.send("a", from_guest("a", big(1400, flags="DF")))
    assert len(both.guests["b"]) == 2


@pytest.mark.parametrize(
    "changes",
    [{"spi": b"\0\0\x99\x99"}, {"sequence": b"\0\0\xff\0"}, {"sequence": b"\0\0\0\0"}, {"src": "192.0.2.50"}],
    ids=["spi", "future", "zero", "source"],
)
def test_an_error_about_what_we_did_not_send_is_not_believed(changes: dict[str, object]) -> None:
    both = wire()
    both.send("a", from_guest("a", big(500)))
    out = both.ports["a"].from_wire(net_error(both, 700, **changes), both.now)
    assert out.to_guest == []
    assert [path.mtu for path in both.ports["a"].snapshot().paths.values()] == [1500]
    assert drops(both, "a") == {"rx_drop_forged_error": 1}


def test_errors_of_other_kinds_are_counted_and_those_of_others_left_to_the_rules() -> None:
    both = wire()
    both.send("a", from_guest("a", big(500)))
    both.ports["a"].from_wire(net_error(both, 0, code=1), both.now)
    assert both.ports["a"].counters()["rx_net_errors"] == 1
    about = IP(src="10.0.1.5", dst="203.0.113.5") / UDP(sport=1, dport=2)
    other = Ether(dst=GUEST["a"]) / IP(dst=HOST["a"]) / ICMP(type=3, code=4) / bytes(about)
    later = (
        Ether(dst=GUEST["a"])
        / IP(dst=HOST["a"])
        / ICMP(type=3, code=4)
        / bytes(IP(frag=5, proto=50) / bytes(8))
    )
    for each in (other, later):
        both.ports["a"].from_wire(bytes(each), both.now)
    assert drops(both, "a") == {"rx_drop_drop_default": 2}


@pytest.mark.parametrize("fragment", [False, True])
def test_ipv6_routers_are_heard(fragment: bool) -> None:
    both = wire(outer=OUTER6, out="udp = {}", within="udp = {}")
    both.send("a", from_guest("a", big(1400)))
    sent = Ether(both.seen[-1][1])[IPv6]
    quoted = sent
    if fragment:
        quoted = IPv6(src=sent.src, dst=sent.dst) / IPv6ExtHdrFragment(m=1, nh=17) / bytes(sent.payload)
    error = (
        Ether(dst=GATE["a"])
        / IPv6(src="2001:db8::99", dst=OUTER6["a"])
        / ICMPv6PacketTooBig(mtu=1300)
        / bytes(quoted)
    )
    both.ports["a"].from_wire(bytes(error), both.now)
    assert both.ports["a"].snapshot().paths.popitem()[1].mtu == 1300  # type: ignore[attr-defined]
    for broken in (
        IPv6(src=sent.src, dst=sent.dst) / IPv6ExtHdrFragment(offset=9, nh=17) / bytes(sent.payload),
        IPv6(src=sent.src, dst=sent.dst, nh=17) / bytes(sent.payload)[:15],
    ):
        frame = Ether(dst=GATE["a"]) / IPv6(dst=OUTER6["a"]) / ICMPv6PacketTooBig(mtu=1290) / bytes(broken)
        both.ports["a"].from_wire(bytes(frame), both.now)
    assert drops(both, "a") == {"rx_drop_drop_default": 2}


def test_transport_paths_are_lowered_by_destination() -> None:
    both = wire("esp-transport", out="", within="")
    both.send("a", from_guest("a", big(1000, flags="DF"), GUEST["b"]))
    quoted = both.seen[-1][1][14:42]
    error = (
        Ether(dst=GUEST["a"])
        / IP(src="192.0.2.99", dst=HOST["a"])
        / ICMP(type=3, code=4, nexthopmtu=800)
        / quoted
    )
    assert both.ports["a"].from_wire(bytes(error), both.now).to_guest == []
    both.send("a", from_guest("a", big(900, flags="DF"), GUEST["b"]))
    assert 700 < said(both)[ICMP].nexthopmtu < 800


def test_tcp_is_told_what_fits_both_ways() -> None:
    both = wire(port="mss_clamp = true")
    for version, hosts, headers in ((IP, HOST, 40), (IPv6, HOST6, 60)):
        both.send(
            "a",
            from_guest(
                "a", version(src=hosts["a"], dst=hosts["b"]) / TCP(flags="S", options=[("MSS", 1460)])
            ),
        )
        out = dict(Ether(both.guests["b"][-1])[TCP].options)["MSS"]
        both.send("a", from_guest("a", version(src=hosts["a"], dst=hosts["b"]) / TCP(flags="A") / bytes(out)))
        assert Ether(both.guests["b"][-1]).len == out + headers if version is IP else True
        both.send(
            "a",
            from_guest("a", version(src=hosts["a"], dst=hosts["b"]) / TCP(flags="S", options=[("MSS", out)])),
        )
        assert dict(Ether(both.guests["b"][-1])[TCP].options)["MSS"] == out
    one = met(
        joined(
            {"a": text("a"), "b": text("b").replace('default = "drop"', 'default = "drop"\nmss_clamp = true')}
        )
    )
    one.send("a", from_guest("a", IP(src=HOST["a"], dst=HOST["b"]) / TCP(flags="S", options=[("MSS", 1460)])))
    assert dict(Ether(one.guests["b"][-1])[TCP].options)["MSS"] < 1420
    one.ports["b"].remove_sa(1, outbound=True)
    one.send("a", from_guest("a", IP(src=HOST["a"], dst=HOST["b"]) / TCP(flags="S", options=[("MSS", 1460)])))
    assert dict(Ether(one.guests["b"][-1])[TCP].options)["MSS"] == 1460
    for name in ("to-peer", "to-peer6"):
        one.ports["b"].remove_flow(name)
    one.send("a", from_guest("a", IP(src=HOST["a"], dst=HOST["b"]) / TCP(flags="S", options=[("MSS", 1460)])))
    assert dict(Ether(one.guests["b"][-1])[TCP].options)["MSS"] == 1460


def test_a_clamped_segment_of_a_transport_sa_fits_the_wire() -> None:
    both = wire("esp-transport", port="mss_clamp = true")
    both.send(
        "a",
        from_guest(
            "a", IP(src=HOST["a"], dst=HOST["b"]) / TCP(flags="S", options=[("MSS", 1460)]), GUEST["b"]
        ),
    )
    told = dict(Ether(both.guests["b"][-1])[TCP].options)["MSS"]
    full = IP(src=HOST["a"], dst=HOST["b"], flags="DF") / TCP(flags="A") / bytes(told)
    both.send("a", from_guest("a", full, GUEST["b"]))
    assert len(both.seen[-1][1]) <= 1514
    assert drops(both, "a") == {}


def test_errors_to_the_guest_are_few() -> None:
    both = wire()
    for _ in range(200):
        both.send("a", from_guest("a", big(1500, flags="DF")))
    counts = both.ports["a"].counters()
    assert (counts["tx_errors_sent"], counts["tx_errors_withheld"]) == (50, 150)
    for frame in (
        bytes(Ether(src=GUEST["a"], dst="ff:ff:ff:ff:ff:ff") / big(1500, flags="DF")),
        from_guest("a", big(1500, flags="DF", frag=1)),
    ):
        both.send("a", frame)
    assert both.ports["a"].counters()["tx_errors_withheld"] == 150


def test_a_hop_limit_that_ends_here_is_told() -> None:
    both = wire(out='options = ["dec-ttl"]')
    both.send("a", from_guest("a", IP(src=HOST["a"], dst=HOST["b"], ttl=1) / UDP()))
    assert (said(both)[ICMP].type, said(both)[ICMP].code) == (11, 0)
    assert drops(both, "a") == {"tx_drop_ttl_expired": 1}


def test_a_port_without_addresses_lets_the_destination_speak() -> None:
    config = (
        '[port]\ncontrol = "operator"\ndefault = "drop"\n' + sas_text("a", "esp-transport") + flows_text("a")
    )
    both = joined({"a": config, "b": text(OTHER["a"])})
    both.send("a", from_guest("a", big(1500, flags="DF"), GUEST["b"]))
    assert (said(both)[IP].src, said(both).src) == (HOST["b"], GUEST["b"])
    both.send("a", from_guest("a", big6(1500), GUEST["b"]))
    assert said(both)[IPv6].src == HOST6["b"]
    group = IPv6(src=HOST6["a"], dst="ff05::1") / UDP() / bytes(1500)
    both.ports["a"].add_flow(flow_from({"match": {"dst": "ff05::1"}, "action": "protect", "sa": 1}))
    both.send("a", from_guest("a", group, GUEST["b"]))
    assert said(both)[IPv6].src == "fe80::ff:fe00:b01"


def test_what_was_opened_elsewhere_goes_on_here() -> None:
    both = wire(selectors='{ protocol = "udp", local_port = 2 }', port="mtu = 576")
    made = both.ports["b"]
    link = bytes.fromhex(GUEST["b"].replace(":", "") + GATE["b"].replace(":", "")) + b"\x08\x00"
    peer = ip_address(OUTER["a"])
    frames = [
        frame
        for piece in scapy_cut(big(1000), 504)
        for frame in made.opened(link + bytes(piece), 14, 1, peer, 0).to_guest
    ]
    assert bytes(defragment([Ether(frame)[IP] for frame in frames])[0][UDP]) == bytes(big(1000)[UDP])
    assert all(len(frame) <= 590 for frame in frames)
    assert made.opened(link + bytes(big(100)), 14, 1, ip_address("192.0.2.9"), 0).to_guest == []
    assert made.opened(link + bytes(big(100)), 14, 7, peer, 0).to_guest == []
    assert made.opened(link + bytes(big(100))[:50], 14, 1, peer, 0).to_guest == []
    assert drops(both, "b") == {"rx_drop_drop_peer": 1, "rx_drop_unknown_sa": 1, "rx_drop_malformed": 1}


def test_a_fragment_behind_which_headers_seem_to_go_on_is_reported_to_nobody() -> None:
    both = wire()
    later = (
        IPv6(src=HOST6["a"], dst=HOST6["b"])
        / IPv6ExtHdrFragment(offset=9, nh=60)
        / (b"\x2b\xff" + bytes(1400))
    )
    both.send("a", from_guest("a", later))
    assert both.guests["a"] == []
    assert drops(both, "a") == {"tx_drop_too_big": 1}


def test_no_error_seems_to_come_from_the_guest_itself() -> None:
    both = wire(
        "esp-transport",
        selectors="{}",
        underlay='guest_gateways = ["fd00:1::1"]',
        port=f'guest_mac = "{GATE["a"]}"',
    )
    flow = {"match": {"dst": HOST["b"]}, "action": "protect", "sa": 1}
    both.ports["a"].add_flow(flow_from(flow))
    packet = big(1500, flags="DF")
    packet.src = OUTER["a"]
    both.send("a", bytes(Ether(src=GATE["a"], dst=GUEST["b"]) / packet))
    assert (said(both)[IP].src, said(both)[IP].dst) == (HOST["b"], OUTER["a"])
    both.send("a", from_guest("a", big6(1500), GUEST["b"]))
    assert said(both)[IPv6].src == "fd00:1::1"
