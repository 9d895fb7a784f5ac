"""What is to be served: the file's ports, the command line on top, and every contradiction refused by name."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import parse_ports
from virtio_ipsec.transport.service_plan import plan_ports
from virtio_ipsec.wire.numbers import Feature, has

OPERATOR = """
[port]
name = "green"
control = "operator"
default = "drop"
guest_mac = "02:00:00:00:00:77"
mtu = 1400
queue_pairs = 2
socket = "/run/green.sock"
uplink = "tap:green0"
"""


def several(*ports: str) -> str:
    return "".join(f'[[port]]\ncontrol = "operator"\ndefault = "drop"\n{port}\n' for port in ports)


def sa(key: str) -> str:
    return f"""[[port.sa]]
id = 1
direction = "outbound"
mode = "esp-transport"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{key}"
salt = "a0a1a2a3"
"""


def test_the_file_says_it_all() -> None:
    (plan,) = plan_ports(parse_ports(OPERATOR))
    assert (plan.name, plan.socket, plan.uplink) == ("green", "/run/green.sock", "tap:green0")
    device = plan.device_config()
    assert device.mac == bytes.fromhex("020000000077")
    assert (device.mtu, device.max_queue_pairs, device.queue_size) == (1400, 2, 1024)


def test_the_command_line_stands_above_the_file_of_one_port() -> None:
    (plan,) = plan_ports(parse_ports(OPERATOR), socket="/run/s", uplink="null")
    assert (plan.socket, plan.uplink) == ("/run/s", "null")


def test_an_operators_port_never_offers_ipsec_to_the_driver() -> None:
    (operator,) = plan_ports(parse_ports(OPERATOR))
    (guest,) = plan_ports(None, socket="/run/s", uplink="null")
    for bit in (Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER):
        assert not has(operator.device_config().offered_features, bit)
        assert has(guest.device_config().offered_features, bit)
    assert operator.by_operator
    assert not guest.by_operator


def test_several_ports_stand_in_one_file() -> None:
    text = several('socket = "/a"\nuplink = "null"', 'name = "b"\nsocket = "/b"\nuplink = "null"')
    assert [plan.name for plan in plan_ports(parse_ports(text))] == ["port0", "b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"\[port\] is missing"),
        ('[port]\ncontrol = "guest"', "port port0: no socket; give --socket or --vfio-user PATH"),
        ('[port]\ncontrol = "guest"\nsocket = "/s"', "port port0: no uplink; give --uplink URI"),
        ('[port]\ncontrol = "guest"\nsocket = "/s"\nuplink = "pigeon:1"', "no uplink is called 'pigeon'"),
        (several(*['socket = "/a"\nuplink = "null"'] * 2), "two ports have the socket /a"),
        (several(*[f'socket = "/{n}"\nuplink = "tap:t0"' for n in "ab"]), "two ports have the uplink tap:t0"),
        (
            several('name = "port1"\nsocket = "/a"\nuplink = "null"', 'socket = "/b"\nuplink = "null"'),
            "two ports have the name port1",
        ),
        (
            several(*[f'socket = "/{n}"\nuplink = "null"\n{sa("00" * 16)}' for n in "ab"]),
            "port port1: outbound sa id 1 has the key and salt of one of port port0",
        ),
        ('[port]\ncontrol = "guest"\nsocket = "/s"\nuplink = "null"\nguest_mac = "01:00:00:00:00:01"', "mac"),
    ],
)
def test_what_cannot_be_served_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_ports(parse_ports(text))


def test_ports_with_keys_of_their_own_are_fine() -> None:
    text = several(*[f'socket = "/{n}"\nuplink = "null"\n{sa(f"{n:02x}" * 16)}' for n in (1, 2)])
    assert len(plan_ports(parse_ports(text))) == 2


def test_a_port_without_a_file_needs_both() -> None:
    with pytest.raises(ConfigError, match="no socket"):
        plan_ports(None, uplink="null")


def test_one_socket_for_several_ports_is_refused() -> None:
    text = several('socket = "/a"\nuplink = "null"', 'socket = "/b"\nuplink = "null"')
    with pytest.raises(ConfigError, match="--socket, --uplink and what concerns vfio-user are for one port"):
        plan_ports(parse_ports(text), uplink="null")
