"""The TOML format: what it means, and that every mistake is refused with its place."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import CipherAlgo, Direction, IpsecMode, IpsecOption, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

KEY = "00112233445566778899aabbccddeeff"
TUNNEL = 'tunnel = { src = "192.0.2.1", dst = "192.0.2.2" }'
GOOD = {
    "id": "1",
    "direction": '"outbound"',
    "mode": '"esp-tunnel"',
    "spi": "0x1001",
    "algorithm": '"aes-gcm-16"',
    "key": f'"{KEY}"',
    "salt": '"a0a1a2a3"',
    "tunnel": '{ src = "192.0.2.1", dst = "192.0.2.2" }',
}


def sa(**changes: str | None) -> str:
    """A valid outbound SA with fields changed, or left out where None."""
    fields = {**GOOD, **changes}
    return "[[sa]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)


def test_an_outbound_tunnel_sa_is_read_whole() -> None:
    text = sa(
        options='["esn", "copy-dscp"]',
        replay_window="32",
        lifetime="{ packets_soft = 1, bytes_soft = 2, packets_hard = 3, bytes_hard = 4 }",
        tunnel='{ src = "192.0.2.1", dst = "192.0.2.2", dscp = 10, df = true, ttl = 9 }',
        udp="{ sport = 4501 }",
    )
    spec = parse(text).sas[0]
    assert (spec.id, spec.sa.obj_id, spec.outbound) == (1, 1, True)
    assert spec.sa.mode == IpsecMode.ESP_TUNNEL
    assert spec.sa.direction == Direction.OUTBOUND
    assert spec.sa.spi == 0x1001
    assert (spec.sa.cipher_algo, spec.sa.auth_algo) == (CipherAlgo(1), MacAlgo.NO_MAC)
    assert spec.sa.cipher_key == bytes.fromhex(KEY)
    assert spec.sa.salt == bytes.fromhex("a0a1a2a3")
    assert spec.sa.life == Lifetime(1, 2, 3, 4)
    wanted = IpsecOption.ESN | IpsecOption.COPY_DSCP | IpsecOption.UDP_ENCAP | IpsecOption.SA_LIFETIME
    assert spec.sa.options == wanted
    assert (spec.sa.udp_sport, spec.sa.udp_dport) == (4501, 4500)
    assert isinstance(spec.sa.param, TunnelIPv4)
    assert (spec.sa.param.dscp, spec.sa.param.df, spec.sa.param.ttl) == (10, 1, 9)


def test_an_ipv6_tunnel_and_an_inbound_cbc_sa() -> None:
    text = sa(tunnel='{ src = "2001:db8::1", dst = "2001:db8::2", flow_label = 7, ttl = 3 }') + sa(
        id="2",
        direction='"inbound"',
        mode='"esp-transport"',
        spi="2",
        algorithm='"aes-cbc+hmac-sha2-256-128"',
        auth_key=f'"{KEY}{KEY}"',
        salt=None,
        tunnel=None,
    )
    first, second = parse(text).sas
    assert isinstance(first.sa.param, TunnelIPv6)
    assert (first.sa.param.flabel, first.sa.param.hlimit) == (7, 3)
    assert second.sa.replay_win_sz == 64
    assert not second.outbound


def test_flows_keep_their_order_and_name_outbound_sas() -> None:
    text = sa() + (
        '[[flow]]\nmatch = { src = "10.0.0.0/8", dst = "10.1.0.1", protocol = "udp", sport = 1, dport = 2 }\n'
        'action = "protect"\nsa = 1\n'
        '[[flow]]\nmatch = { protocol = 89 }\naction = "drop"\n'
        '[[flow]]\naction = "bypass"\n'
    )
    config = parse(text)
    assert [flow.action for flow in config.flows] == [Action.PROTECT, Action.DROP, Action.BYPASS]
    assert config.flows[0].selectors[0].protocol == 17
    assert config.flows[1].selectors[0].protocol == 89
    assert config.outbound(1) is config.sas[0]


def test_a_key_can_come_from_a_file() -> None:
    names = []

    def read(name: str) -> bytes:
        names.append(name)
        return bytes.fromhex(KEY)

    spec = parse(sa(key=None, key_file='"k.hex"'), read).sas[0]
    assert spec.sa.cipher_key == bytes.fromhex(KEY)
    assert names == ["k.hex"]


def test_the_rfc_dialect_has_a_first_sequence_number_and_no_lifetimes() -> None:
    spec = parse('dialect = "rfc-2025-01"\n' + sa(first_sequence="77")).sas[0]
    assert spec.sa.esn == 77
    with pytest.raises(ConfigError, match="lifetime does not exist in dialect rfc-2025-01"):
        parse('dialect = "rfc-2025-01"\n' + sa(lifetime="{ packets_hard = 1 }"))
    with pytest.raises(ConfigError, match="first_sequence does not exist"):
        parse(sa(first_sequence="1"))


BAD = {
    "not TOML": ("[[sa", "not TOML"),
    "unknown top": ("port = 1", "file: port must be a table"),
    "sa no table": ("sa = 1", r"written as \[\[sa\]\]"),
    "unknown field": (sa(colour="1"), "sa 1: colour is not known"),
    "no spi": (sa(spi=None), "sa 1: spi is missing"),
    "spi zero": (sa(spi="0"), "sa 1: spi must be a whole number from 1"),
    "spi text": (sa(spi='"x"'), "sa 1: spi must be a whole number"),
    "spi bool": (sa(spi="true"), "sa 1: spi must be a whole number"),
    "no mode": (sa(mode=None), "sa 1: mode is missing; one of esp-tunnel"),
    "bad mode": (sa(mode='"esp"'), "sa 1: mode must be one of"),
    "no algorithm": (sa(algorithm=None), "sa 1: algorithm is missing"),
    "algorithm number": (sa(algorithm="1"), "algorithm must be one of"),
    "bad algorithm": (sa(algorithm='"des"'), "algorithm must be one of "),
    "ah with gcm": (sa(mode='"ah-tunnel"'), "algorithm must be one of "),
    "key hex": (sa(key='"xyz"'), "sa 1: key must be hexadecimal digits"),
    "key short": (sa(key='"00"'), "sa 1: key must be 16 or 24 or 32 octets for aes-gcm-16, not 1"),
    "key twice": (sa(key_file='"f"'), "exclude each other"),
    "key file": (sa(key=None, key_file='"f"'), "key_file cannot be read here"),
    "salt": (sa(salt=None), "sa 1: salt must be 4 octets"),
    "option": (sa(options='["fast"]'), "sa 1: options must be a list of esn"),
    "tunnel gone": (sa(tunnel=None), "an outbound tunnel needs"),
    "tunnel extra": (sa(mode='"esp-transport"'), "only for outbound tunnel modes"),
    "tunnel no table": (sa(tunnel="1"), "sa 1: tunnel must be a table"),
    "tunnel mixed": (sa(tunnel='{ src = "192.0.2.1", dst = "::1" }'), "one address family"),
    "tunnel address": (sa(tunnel='{ src = "host", dst = "::1" }'), "src must be an IP address"),
    "df v6": (sa(tunnel='{ src = "::2", dst = "::1", df = true }'), "df belongs to IPv4"),
    "label v4": (sa(tunnel='{ src = "1.1.1.1", dst = "1.1.1.2", flow_label = 1 }'), "belongs to IPv6"),
    "df number": (sa(tunnel='{ src = "1.1.1.1", dst = "1.1.1.2", df = 1 }'), "df must be true or false"),
    "ttl": (sa(tunnel='{ src = "1.1.1.1", dst = "1.1.1.2", ttl = 256 }'), "ttl must be a whole number"),
    "lifetime order": (sa(lifetime="{ packets_soft = 2, packets_hard = 1 }"), "sa 1: .*packets_soft_limit"),
    "udp with ah": (
        sa(mode='"ah-transport"', tunnel=None, algorithm='"hmac-sha1-96"', key=None, salt=None,
           auth_key=f'"{KEY}00112233"', udp="{}"),
        "sa 1: .*UDP",
    ),
    "id twice": (sa() + sa(spi="9", key=f'"ff{KEY[2:]}"'), "id 1 is used twice"),
    "key reuse": (sa() + sa(id="2"), "has the key and salt of another SA"),
    "spi twice": (
        sa(direction='"inbound"', tunnel=None) + sa(id="2", direction='"inbound"', tunnel=None, salt='"00000001"'),
        "inbound spi 0x1001 is used twice",
    ),
    "flow without sa": ('[[flow]]\naction = "protect"', "flow 1: sa is missing"),
    "flow unknown sa": ('[[flow]]\naction = "protect"\nsa = 3', "names no outbound SA with id 3"),
    "flow sa on drop": (sa() + '[[flow]]\naction = "drop"\nsa = 1', "no meaning with action drop"),
    "flow action": ('[[flow]]\naction = "maybe"', "action must be one of protect, bypass, drop"),
    "flow network": ('[[flow]]\naction = "drop"\nmatch = { src = "10.0.0.1/8" }', "host bits are zero"),
    "flow families": ('[[flow]]\naction = "drop"\nmatch = { src = "10.0.0.1", dst = "::1" }', "one address family"),
    "flow ports": ('[[flow]]\naction = "drop"\nmatch = { sport = 1 }', "protocol must be tcp, udp or sctp"),
    "flow protocol": ('[[flow]]\naction = "drop"\nmatch = { protocol = "x" }', "protocol must be one of icmp"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_refused_with_its_place(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_no_message_and_no_repr_holds_a_key() -> None:
    config = parse(sa())
    assert KEY not in repr(config)
    with pytest.raises(ConfigError) as caught:
        parse(sa() + sa(id="2"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id = " + "9" * 5000, "more digits"),
        ("a = " + "[" * 20000, "nested deeper"),
        ('"a\\nb" = 1', r"file: 'a\nb' is not known here"),
        (sa(key='""', key_file='"k"'), "sa 1: key and key_file exclude each other"),
        (
            sa(tunnel='{ src = "0.0.0.0", dst = "192.0.2.2" }'),
            "sa 1: tunnel: src must be an IP address of one",
        ),
        (
            sa(tunnel='{ src = "fe80::1", dst = "fe80::2%eth0" }'),
            "sa 1: tunnel: dst must be an IP address of",
        ),
    ],
    ids=["digits", "nested", "name", "key", "unspecified", "zone"],
)
def test_what_the_toml_reader_lets_through_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, lambda _name: bytes(16))
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", ["algorithm", "direction", "mode", "salt", "spi", "options", "id"])
def test_a_key_in_the_wrong_field_is_not_quoted(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(sa(**{field: f'"{KEY}"'}))
    assert KEY[:12] not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse(sa() + f"{KEY} = 1")
    assert KEY[:12] not in str(caught.value)


@pytest.mark.parametrize("field", ["src", "dst", "protocol"])
def test_a_key_in_a_flow_is_not_quoted(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(sa() + f'[[flow]]\nmatch = {{ {field} = "{KEY}" }}\naction = "drop"')
    assert KEY[:12] not in str(caught.value)
