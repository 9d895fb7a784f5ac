"""Ports, underlays, flows and selectors in the TOML format, and the sample that the package ships."""

from __future__ import annotations

from importlib.resources import files
from ipaddress import ip_address

import pytest
from operator_ports import GATE, SERVICES, flows_text, port, port_text, sas_text, text

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import flow_from, parse, parse_ports, sa_from
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.policy.port_config import Control
from virtio_ipsec.policy.sas import ReferenceSas
from virtio_ipsec.policy.selectors import Selector
from virtio_ipsec.wire.dialect import V14

SAMPLE = files("virtio_ipsec.policy").joinpath("sample.toml").read_text()
UNDERLAY = '[port.underlay]\nmac = "02:00:00:00:00:01"\naddresses = ["192.0.2.1/24"]\n'
OPERATOR = '[port]\ncontrol = "operator"\ndefault = "drop"\n'
DROP = OPERATOR + '[[flow]]\naction = "drop"\nmatch = '
GUEST = '[port]\ncontrol = "guest"\n'


def test_the_sample_is_a_port_that_works() -> None:
    config = parse(SAMPLE)
    assert config.port is not None
    assert (config.port.control, config.port.default, config.port.mss_clamp) == (
        Control.OPERATOR,
        Action.DROP,
        True,
    )
    made = OperatorPort(config, ReferenceSas(bytes), bytes)
    assert list(made.flows) == ["site", "site6", "no-telnet", "metrics", "arp", "nd", "mld", "dhcp"]
    assert config.flows[3].selectors[0].local_ports == (9100, 9199)


def test_what_the_sample_leaves_out_is_right_too() -> None:
    lines = SAMPLE.splitlines()
    commented = [
        line.removeprefix("# ") for line in lines if line.startswith("# ") and ("=" in line or "[[" in line)
    ]
    wanted = [line for line in commented if line.split(" ")[0] in {"socket", "uplink", "queue_pairs"}]
    assert len(wanted) == 3
    with_them = SAMPLE.replace('name = "blue"', 'name = "blue"\n' + "\n".join(wanted))
    ike = '\n[[flow]]\nname = "ike"\nservice = "ike"\naction = "bypass"\n'
    assert '# service = "ike"' in SAMPLE
    config = parse(with_them + ike)
    assert config.port is not None
    assert (config.port.socket, config.port.queue_pairs) == ("/run/virtio-ipsec/blue.sock", 2)
    assert config.flows[-1].selectors == (
        Selector(protocol=17, local_ports=(500, 500)),
        Selector(protocol=17, local_ports=(4500, 4500)),
    )


def test_an_underlay_knows_what_is_on_link() -> None:
    gateways = 'gateways = ["192.0.2.254", "fe80::1"]\nmtu = 1400'
    config = parse(port_text("a", underlay=gateways))
    assert config.port is not None
    underlay = config.port.underlay
    assert underlay is not None
    assert (underlay.mac.hex(":"), underlay.mtu, underlay.next_hop) == (GATE["a"], 1400, None)
    for target, hop, source in (
        ("192.0.2.9", "192.0.2.9", "192.0.2.1"),
        ("198.51.100.1", "192.0.2.254", "192.0.2.1"),
        ("2001:db8::77", "2001:db8::77", "2001:db8::1"),
        ("fe80::77", "fe80::77", "2001:db8::1"),
        ("2001:db9::1", "fe80::1", "2001:db8::1"),
    ):
        assert underlay.hop(ip_address(target)) == ip_address(hop)
        assert underlay.source_for(ip_address(hop)) == ip_address(source)
    assert underlay.owns(ip_address("2001:db8::1"))
    assert not underlay.owns(ip_address("192.0.2.2"))
    only4 = parse(OPERATOR + UNDERLAY).port
    assert only4 is not None
    assert only4.underlay is not None
    assert only4.underlay.hop(ip_address("2001:db8::1")) is None
    assert only4.underlay.source_for(ip_address("2001:db8::1")) is None


def test_a_fixed_next_hop_is_an_ethernet_address() -> None:
    config = parse(OPERATOR + UNDERLAY + 'next_hop = "02:00:00:00:00:09"')
    assert config.port is not None
    assert config.port.underlay is not None
    assert config.port.underlay.next_hop == bytes.fromhex("020000000009")


def test_several_ports_stand_in_one_file() -> None:
    def one(name: str) -> str:
        body = text("a").replace("[port]", f'[[port]]\nname = "{name}"')
        return body.replace("[[sa]]", "[[port.sa]]").replace("[[flow]]", "[[port.flow]]")

    configs = parse_ports(one("blue") + one("red"))
    assert [config.port.name for config in configs if config.port] == ["blue", "red"]
    assert all(len(config.sas) == 2 and len(config.flows) == 6 for config in configs)
    assert configs[1].inbound(1).params.spi == 0x1002
    with pytest.raises(ConfigError, match="more than once"):
        parse(one("blue") + one("red"))
    assert parse(one("blue")).port == configs[0].port
    with pytest.raises(ConfigError, match="port has a name twice"):
        parse_ports(one("blue") + one("blue"))
    with pytest.raises(ConfigError, match="port 2: sa 1: spi must be"):
        parse_ports(one("blue") + one("red").replace("spi = 4097", "spi = 0"))
    with pytest.raises(ConfigError, match=r"write \[\[port.sa\]\]"):
        parse_ports(sas_text("a") + one("blue"))
    with pytest.raises(ConfigError, match="port must be there 1 to 1024 times"):
        parse_ports("port = []")


def test_a_file_without_a_port_is_as_before() -> None:
    config = parse(sas_text("a"))
    assert config.port is None
    with pytest.raises(KeyError):
        config.outbound(7)
    with pytest.raises(ConfigError, match=r"needs \[port\]"):
        OperatorPort(config, ReferenceSas(bytes), bytes)
    with pytest.raises(ConfigError, match=r"needs \[port\]"):
        OperatorPort(parse(GUEST), ReferenceSas(bytes), bytes)


def test_services_are_flows_of_known_selectors() -> None:
    flows = {flow.name: flow for flow in parse(port_text("a") + SERVICES).flows}
    assert flows["arp"].ethertypes == {0x0806, 0x8035}
    assert flows["nd"].selectors == (Selector(protocol=58, icmp=(133 << 8, 136 << 8 | 255)),)
    assert flows["dhcp"].selectors[0] == Selector(protocol=17, local_ports=(68, 68), remote_ports=(67, 67))
    assert all(flow.priority == 100 for flow in flows.values())


def test_flows_and_sas_can_be_read_alone() -> None:
    flow = flow_from(
        {
            "match": {"local": "10.0.0.0/8", "remote_port": "1-9", "protocol": "tcp"},
            "action": "protect",
            "sa": 9,
        }
    )
    assert (flow.sa, flow.selectors[0].remote_ports) == (9, (1, 9))
    assert flow_from({"match": {"protocol": "icmp", "icmp_type": "3-5"}, "action": "drop"}).selectors[
        0
    ].icmp == (0x300, 0x5FF)
    assert flow_from({"match": {"ethertype": 0x88CC}, "action": "bypass"}).ethertypes == {0x88CC}
    key = {
        "key": "00" * 16,
        "salt": "00000001",
        "algorithm": "aes-gcm-16",
        "mode": "esp-transport",
        "id": 3,
        "spi": 5,
    }
    spec = sa_from({**key, "direction": "inbound", "selectors": [{}]}, V14)
    assert spec.admitted is not None
    assert spec.admitted.selectors == (Selector(),)
    with pytest.raises(ConfigError, match=r"^sa: spi must be"):
        sa_from({**key, "direction": "inbound", "spi": 0}, V14)
    with pytest.raises(ConfigError, match=r"^flow: action is missing"):
        flow_from({})


def tunnel(**changes: str) -> str:
    return sas_text("a", **changes)


BAD = {
    "no control": ("[port]", "port: control is missing; one of guest, operator"),
    "no default": ('[port]\ncontrol = "operator"', "port: default is missing; one of drop, bypass"),
    "default protect": ('[port]\ncontrol = "operator"\ndefault = "protect"', "port: default must be one of drop"),
    "guest default": (GUEST + 'default = "drop"', "port: default is for ports under an operator's control"),
    "guest underlay": (GUEST + UNDERLAY, "underlay is for ports under"),
    "guest sa": (GUEST + tunnel(), "the driver owns the SAs of a guest's port"),
    "guest flow": (GUEST + '[[flow]]\naction = "drop"', "flow belongs to the driver"),
    "guest mac": (OPERATOR + 'guest_mac = "01:00:00:00:00:01"', "port: guest_mac must be the Ethernet address of one"),
    "mac form": (OPERATOR + 'guest_mac = "02-00-00-00-00-01"', "guest_mac must be"),
    "mac digits": (OPERATOR + 'guest_mac = "02:00:00:00:00:zz"', "guest_mac must be"),
    "mac signs": (OPERATOR + 'guest_mac = "02:00:00:00:00:+1"', "guest_mac must be"),
    "mac zero": (OPERATOR + 'guest_mac = "00:00:00:00:00:00"', "guest_mac must be"),
    "mac number": (OPERATOR + "guest_mac = 1", "guest_mac must be a string"),
    "name lines": (OPERATOR + 'name = "a\\nb"', "name must be one line"),
    "no mac": (OPERATOR + '[port.underlay]\naddresses = ["192.0.2.1/24"]', "port: underlay: mac is missing"),
    "no addresses": (OPERATOR + '[port.underlay]\nmac = "02:00:00:00:00:01"', "addresses is missing"),
    "addresses text": (OPERATOR + UNDERLAY.replace("[\"192.0.2.1/24\"]", '"192.0.2.1"'), "addresses must be a list"),
    "address": (OPERATOR + UNDERLAY.replace("192.0.2.1/24", "here"), "addresses must be IP addresses"),
    "address group": (OPERATOR + UNDERLAY.replace("192.0.2.1", "224.0.0.1"), "addresses must be addresses of one host"),
    "address zone": (OPERATOR + UNDERLAY.replace("192.0.2.1/24", "fe80::1%eth0/64"), "must be addresses of one host"),
    "address twice": (
        OPERATOR + UNDERLAY.replace('.1/24"', '.1/24", "192.0.2.1/16"'),
        "addresses holds an address twice",
    ),
    "mtu 6": (OPERATOR + UNDERLAY.replace("192.0.2.1/24", "::2/64") + "mtu = 1279", "mtu must be at least 1280"),
    "gateway far": (OPERATOR + UNDERLAY + 'gateways = ["198.51.100.1"]', "gateways must be on-link"),
    "gateway us": (OPERATOR + UNDERLAY + 'gateways = ["192.0.2.1"]', "must not be our own"),
    "gateway prefix": (OPERATOR + UNDERLAY + 'gateways = ["192.0.2.9/24"]', "have no prefix length"),
    "two gateways": (OPERATOR + UNDERLAY + 'gateways = ["192.0.2.8", "192.0.2.9"]', "one of each IP version"),
    "next hop": (OPERATOR + UNDERLAY + 'next_hop = "gateway"', "next_hop must be the Ethernet address"),
    "tunnel without underlay": (OPERATOR + tunnel(), r"outbound sa id 1: a tunnel needs \[port.underlay\]"),
    "tunnel src": (port_text("b") + tunnel(), "tunnel src is not one of the underlay's"),
    "tunnel to us": (port_text("a") + tunnel().replace('dst = "192.0.2.2"', 'dst = "192.0.2.1"'), "another host"),
    "tunnel to all": (port_text("a") + tunnel().replace('dst = "192.0.2.2"', 'dst = "224.0.0.1"'), "another host"),
    "tunnel away": (port_text("a") + tunnel().replace('dst = "192.0.2.2"', 'dst = "8.8.8.8"'), "neither on-link nor"),
    "no selectors": (
        OPERATOR + sas_text("a", "esp-transport").replace("selectors = [", "options = []\n# ["),
        "inbound sa id 1: selectors is missing",
    ),
    "no peer": (port_text("a") + tunnel().replace("peer =", "# peer ="), "sa 2: peer is missing: the address"),
    "peer outbound": (port_text("a") + tunnel(out='peer = "192.0.2.2"'), "sa 1: peer has a meaning only for inbound"),
    "peer transport": (OPERATOR + tunnel(mode="esp-transport", within='peer = "::1"'), "peer is for tunnel modes"),
    "selector": (port_text("a") + tunnel(selectors='{ local = "x" }'), "sa 2: selectors 1: local must be an address"),
    "selectors text": (port_text("a") + tunnel(selectors="1"), r"selectors must be written as"),
    "both names": (DROP + '{ src = "::1", local = "::1" }', "are the same field"),
    "network zone": (DROP + '{ src = "fe80::%eth0" }', "src must have no zone"),
    "range": (DROP + '{ protocol = 6, sport = "9-8" }', "sport must be a number or a range"),
    "range end": (DROP + '{ protocol = 6, sport = "9-70000" }', "at most 65535"),
    "range text": (DROP + '{ protocol = 6, sport = "http" }', "must be a number or a"),
    "range digits": (DROP + f'{{ protocol = 6, sport = "1-{"9" * 9}" }}', "must be a number"),
    "icmp type": (DROP + '{ protocol = 6, icmp_type = 1 }', "must be icmp or icmpv6"),
    "ethertype alone": (DROP + '{ protocol = 6, ethertype = 2048 }', "stands alone"),
    "ethertype IP": (DROP + '{ ethertype = 2048 }', "is that of IP"),
    "protect arp": (
        port_text("a") + tunnel() + '[[flow]]\nservice = "arp"\naction = "protect"\nsa = 1',
        "protect is for IP packets",
    ),
    "service": (OPERATOR + '[[flow]]\nservice = "dns"\naction = "drop"', "flow 1: service must be one of arp, nd"),
    "service and match": (OPERATOR + '[[flow]]\nservice = "arp"\nmatch = {}\naction = "drop"', "exclude each other"),
    "flow name": (OPERATOR + '[[flow]]\nname = "x"\naction = "drop"\n' * 2, "flow has a name twice"),
    "priority": (OPERATOR + '[[flow]]\naction = "drop"\npriority = -1', "priority must be a whole number from 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_refused_with_its_place(name: str) -> None:
    document, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        parse(document)


def test_a_peer_that_moves_is_any() -> None:
    spec = parse(port_text("a") + tunnel().replace('peer = "192.0.2.2"', 'peer = "any"')).inbound(1)
    assert spec.admitted is not None
    assert spec.admitted.peer is None


def test_no_port_shows_a_key() -> None:
    made = port(text("a"))
    for shown in (
        repr(made),
        repr(made.sas),
        repr(made.snapshot()),
        repr(parse(text("a"))),
        str(made.counters()),
    ):
        assert "000102030405" not in shown
        assert "\\x00\\x01\\x02\\x03\\x04" not in shown
    assert flows_text("a").count("protect") == 2
