"""SAs and flows in the words of the file: what is described reads back as the same, and keys are masked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from virtio_ipsec.policy.config import flow_from, parse, sa_from
from virtio_ipsec.policy.describe import describe_flow, describe_sa
from virtio_ipsec.wire.dialect import RFC_2025_01, V14

KEY = "000102030405060708090a0b0c0d0e0f"
GCM = {"algorithm": "aes-gcm-16", "key": KEY, "salt": "a0a1a2a3"}
CBC = {"algorithm": "aes-cbc+hmac-sha2-256-128", "key": KEY, "auth_key": KEY * 2}
OUT4 = {"tunnel": {"src": "192.0.2.1", "dst": "192.0.2.2"}}
FULL4 = {"tunnel": {"src": "192.0.2.1", "dst": "192.0.2.2", "dscp": 10, "df": True, "ttl": 3}}
FULL6 = {"tunnel": {"src": "2001:db8::1", "dst": "2001:db8::2", "dscp": 10, "flow_label": 77, "ttl": 3}}
TCP = {
    "local": "10.0.0.0/24",
    "remote": "10.1.0.0/24",
    "protocol": 6,
    "local_port": 80,
    "remote_port": "1000-2000",
}

SAS: list[dict[str, Any]] = [
    {"id": 1, "direction": "outbound", "mode": "esp-tunnel", "spi": 4097, **GCM, **OUT4},
    {
        "id": 2,
        "direction": "outbound",
        "mode": "esp-tunnel",
        "spi": 2**32 - 1,
        **CBC,
        **FULL4,
        "options": ["esn", "ecn"],
    },
    {
        "id": 3,
        "direction": "outbound",
        "mode": "esp-transport",
        "spi": 5,
        **GCM,
        "udp": {"sport": 1, "dport": 2},
    },
    {"id": 4, "direction": "outbound", "mode": "esp-transport", "spi": 5, **GCM, "options": ["udp-encap"]},
    {
        "id": 5,
        "direction": "outbound",
        "mode": "ah-tunnel",
        "spi": 5,
        "algorithm": "hmac-sha1-96",
        "auth_key": "0a" * 20,
        **FULL6,
    },
    {
        "id": 6,
        "direction": "outbound",
        "mode": "esp-transport",
        "spi": 5,
        **GCM,
        "lifetime": {"packets_soft": 1, "bytes_hard": 2**64 - 1},
    },
    {
        "id": 7,
        "direction": "inbound",
        "mode": "esp-tunnel",
        "spi": 5,
        **GCM,
        "peer": "any",
        "selectors": [{}, TCP],
    },
    {
        "id": 8,
        "direction": "inbound",
        "mode": "esp-tunnel",
        "spi": 5,
        **GCM,
        "peer": "2001:db8::9",
        "selectors": [{"protocol": 1, "icmp_type": "3-5"}],
    },
    {
        "id": 9,
        "direction": "inbound",
        "mode": "esp-transport",
        "spi": 5,
        **GCM,
        "replay_window": 4096,
        "selectors": [],
    },
    {
        "id": 9,
        "direction": "inbound",
        "mode": "ah-transport",
        "spi": 5,
        "algorithm": "hmac-sha1-96",
        "auth_key": "0a" * 20,
    },
]


@pytest.mark.parametrize("table", SAS, ids=lambda table: f"{table['direction']} {table['id']}")
def test_a_described_sa_reads_back_as_itself(table: dict[str, Any]) -> None:
    spec = sa_from(table, V14)
    described = json.loads(json.dumps(describe_sa(spec, show_keys=True)))
    assert sa_from(described, V14) == spec
    assert describe_sa(sa_from(described, V14), show_keys=True) == described


def test_a_first_sequence_number_is_kept() -> None:
    table = {"id": 1, "direction": "outbound", "mode": "esp-transport", "spi": 9, **GCM, "first_sequence": 7}
    spec = sa_from(table, RFC_2025_01)
    assert describe_sa(spec)["first_sequence"] == 7
    assert sa_from(describe_sa(spec, show_keys=True), RFC_2025_01) == spec


@pytest.mark.parametrize("table", SAS, ids=lambda table: f"{table['direction']} {table['id']}")
def test_keys_and_salt_are_masked_unless_asked_for(table: dict[str, Any]) -> None:
    secrets = [table[name] for name in ("key", "auth_key", "salt") if name in table]
    described = describe_sa(sa_from(table, V14))
    text = json.dumps(described)
    assert secrets
    for secret in secrets:
        assert secret not in text
        assert "x" * len(secret) in text
    assert all(secret in json.dumps(describe_sa(sa_from(table, V14), show_keys=True)) for secret in secrets)


FLOWS: list[dict[str, Any]] = [
    {"action": "bypass", "service": "arp"},
    {"action": "bypass", "service": "nd", "name": "neighbours", "priority": 5},
    {"action": "drop", "service": "dhcp"},
    {"action": "bypass", "service": "ike"},
    {"action": "bypass", "service": "mld"},
    {"action": "drop"},
    {"action": "bypass", "match": {"ethertype": 0x88CC}},
    {"action": "protect", "sa": 0, "match": TCP},
    {"action": "protect", "sa": 2**32 - 1, "match": {"remote": "2001:db8::/32"}, "priority": 2**32 - 1},
    {"action": "drop", "match": {"protocol": 58, "icmp_type": 135}},
    {"action": "drop", "match": {"protocol": 17, "local_port": "0-65535"}},
]


@pytest.mark.parametrize("table", FLOWS)
def test_a_described_flow_reads_back_as_itself(table: dict[str, Any]) -> None:
    flow = flow_from(table)
    described = json.loads(json.dumps(describe_flow(flow)))
    assert flow_from(described) == flow
    assert described == table | {"match": described["match"]} if "match" in described else described == table


def test_a_flow_can_be_described_under_the_name_that_its_port_gave_it() -> None:
    assert describe_flow(flow_from({"action": "drop"}), "flow-3")["name"] == "flow-3"


def test_all_of_a_file() -> None:
    config = parse(
        '[[flow]]\nmatch = { src = "10.0.0.0/24", sport = 5, protocol = "tcp" }\naction = "drop"\n'
    )
    (flow,) = config.flows
    assert describe_flow(flow)["match"] == {"local": "10.0.0.0/24", "protocol": 6, "local_port": 5}
