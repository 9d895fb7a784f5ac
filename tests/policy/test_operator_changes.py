"""SAs and flows that come and go while packets run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from operator_ports import (
    HOST,
    Wire,
    datagram,
    drops,
    from_guest,
    joined,
    met,
    port,
    port_text,
    sas_text,
    text,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import flow_from, parse
from virtio_ipsec.policy.flows import Action, Flow
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.policy.selectors import Outcome, Selector

NEW_KEYS = "aa" * 16, "bb" * 16


def wire() -> Wire:
    return met(joined({side: text(side) for side in "ab"}))


def new(side: str, **changes: object) -> tuple[SaSpec, SaSpec]:
    """(outbound, inbound) of a second generation."""
    wanted = {"keys": NEW_KEYS, "spis": (0x2001, 0x2002), "id": 2, **changes}
    return parse(port_text(side) + sas_text(side, **wanted)).sas  # type: ignore[return-value, arg-type]


def spi_of(both: Wire) -> int:
    return int.from_bytes(both.seen[-1][1][34:38])


def test_rekey_loses_no_packet_in_either_direction() -> None:
    both = wire()
    for step in range(12):
        if step == 2:
            both.ports["b"].add_sa(new("b")[1])  # first both can open the new ones
            both.ports["a"].add_sa(new("a")[1])
        if step == 4:
            both.ports["a"].replace_sa(1, new("a")[0])
        if step == 6:
            both.ports["b"].replace_sa(1, new("b")[0])
        if step == 8:
            for made in both.ports.values():
                made.remove_sa(1, outbound=True)
                made.remove_sa(1, outbound=False)
        both.send("a", datagram("a"))
        assert spi_of(both) == (0x1001 if step < 4 else 0x2001)
        both.send("b", datagram("b"))
        assert spi_of(both) == (0x1002 if step < 6 else 0x2002)
    assert (len(both.guests["a"]), len(both.guests["b"])) == (12, 12)
    assert drops(both, "a") == drops(both, "b") == {}


def test_a_flow_whose_sa_is_gone_drops() -> None:
    both = wire()
    made = both.ports["a"]
    made.remove_sa(1, outbound=True)
    both.send("a", datagram("a"))
    assert both.seen == []
    assert drops(both, "a") == {"tx_drop_unknown_sa": 1}
    assert made.snapshot().policy.outbound(datagram("a")[14:]).outcome is Outcome.PROTECT
    clear = made.from_wire(bytes(Ether() / IP(src=HOST["b"], dst=HOST["a"]) / UDP()), both.now)
    assert clear.to_guest == []


def test_an_inbound_sa_that_is_gone_opens_nothing() -> None:
    both = wire()
    both.ports["b"].remove_sa(1, outbound=False)
    both.send("a", datagram("a"))
    assert both.guests["b"] == []
    assert drops(both, "b") == {"rx_drop_unknown_sa": 1}


def test_an_sa_that_is_used_up_or_frozen_drops() -> None:
    both = met(
        joined(
            {
                "a": text("a", out="lifetime = { packets_hard = 2 }"),
                "b": text("b"),
            }
        )
    )
    for _ in range(4):
        both.send("a", datagram("a"))
    assert len(both.guests["b"]) == 2
    assert drops(both, "a") == {"tx_drop_hard_lifetime": 2}
    engine = both.ports["b"].sa(1, outbound=True).engine
    engine.freeze()  # type: ignore[attr-defined]
    both.send("b", datagram("b"))
    assert both.guests["a"] == []
    assert drops(both, "b") == {"tx_drop_held": 1}


def test_what_waits_for_a_next_hop_is_judged_again_when_it_leaves() -> None:
    made = port(text("a"))
    made.from_guest(datagram("a"), 0)
    made.remove_sa(1, outbound=True)
    assert made.counters()["tx_drop_no_next_hop"] == 1  # nobody needs that hop any more
    assert made.deadline() is None


def test_flows_come_and_go_by_name() -> None:
    both = wire()
    made = both.ports["a"]
    generation = made.generation
    drop = flow_from(
        {"name": "no", "match": {"protocol": "udp", "dport": 2000}, "action": "drop", "priority": 9}
    )
    assert made.add_flow(drop) == "no"
    both.send("a", datagram("a"))
    assert drops(both, "a") == {"tx_drop_drop_rule": 1}
    with pytest.raises(ConfigError, match="flow no: the name is taken"):
        made.add_flow(drop)
    assert made.remove_flow("no") == drop
    both.send("a", datagram("a"))
    assert len(both.guests["b"]) == 1
    with pytest.raises(KeyError):
        made.remove_flow("no")
    unnamed = replace(drop, name="")
    assert [made.add_flow(unnamed) for _ in range(2)] == ["flow-7", "flow-8"]
    made.remove_flow("flow-7")
    assert made.add_flow(unnamed) == "flow-9"
    assert "flow-7" not in made.flows
    assert made.generation > generation
    with pytest.raises(ConfigError, match="no outbound SA with id 9"):
        made.add_flow(Flow(Action.PROTECT, (Selector(),), sa=9))


def test_an_sa_that_cannot_be_is_refused_and_changes_nothing() -> None:
    made = port(text("a"))
    before = made.sas
    out, within = parse(text("a")).sas
    for spec, message in (
        (out, "id 1 is used twice"),
        (within, "id 1 is used twice"),
        (replace(within, id=9), "inbound spi 0x1002 is used twice"),
        (
            new("a", keys=("000102030405060708090a0b0c0d0e0f", "cc" * 16))[0],
            "has the key and salt of another SA",
        ),
        (new("b")[0], "not one of the underlay's addresses"),
        (replace(new("a")[1], admitted=None), "selectors is missing"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.add_sa(spec)
    with pytest.raises(KeyError):
        made.remove_sa(7, outbound=True)
    with pytest.raises(KeyError):
        made.replace_sa(7, new("a")[0])
    with pytest.raises(ConfigError, match="by an outbound one"):
        made.replace_sa(1, new("a")[1])
    assert made.sas == before
    with pytest.raises(KeyError):
        made.sa(7, outbound=True)


def test_ids_spis_and_keys_are_free_again_after_removal() -> None:
    made = port(text("a"))
    out, within = parse(text("a")).sas
    generation = made.generation
    made.remove_sa(1, outbound=True)
    made.remove_sa(1, outbound=False)
    made.add_sa(out)
    made.add_sa(within)
    assert made.generation == generation + 4
    assert made.sa(1, outbound=True).engine.packets == 0


def test_sas_of_different_peers_may_have_the_same_spi() -> None:
    made = port(text("a"))
    made.add_sa(new("a", spis=(0x1001, 0x2002))[0])
    made.remove_sa(2, outbound=True)
    assert len(made.sas) == 2


def test_a_closed_port_has_no_keys_and_protects_nothing() -> None:
    both = wire()
    made = both.ports["a"]
    engine = made.sa(1, outbound=True).engine
    made.close()
    assert made.sas == ()
    assert engine.params.cipher_key == b""
    both.send("a", datagram("a"))
    assert both.seen == []
    assert drops(both, "a") == {"tx_drop_unknown_sa": 1}


def test_a_thousand_sas_are_added_and_looked_up() -> None:
    made = port(port_text("a"))

    def pair(number: int) -> tuple[SaSpec, SaSpec]:
        keys = f"{number:032x}", f"{number + 5000:032x}"
        return new("a", id=number, keys=keys, spis=(0x10000 + number, 0x20000 + number))

    first = pair(1)
    for number in range(1, 1001):
        out = replace(first[0], id=number, sa=replace(first[0].sa, cipher_key=number.to_bytes(16)))
        made.add_sa(out)
        match = {"dst": f"10.2.{number >> 8}.{number & 255}"}
        made.add_flow(flow_from({"match": match, "action": "protect", "sa": number}))
    assert len(made.sas) == len(made.flows) == 1000
    packet = from_guest("a", IP(src=HOST["a"], dst="10.2.3.232") / UDP())
    assert made.snapshot().policy.outbound(packet[14:]).sa == 1000


def test_the_snapshot_says_what_holds() -> None:
    both = wire()
    made: OperatorPort = both.ports["a"]
    empty = made.snapshot()
    assert empty.paths == {}
    both.send("a", datagram("a"))
    now = made.snapshot()
    assert now.generation == made.generation > empty.generation
    assert [(str(peer), path.mtu) for peer, path in now.paths.items()] == [("192.0.2.2", 1500)]
    assert (now.mtu, now.mss_clamp, now.guest_mac) == (1500, False, made.guest_mac)
    assert now.underlay is made.spec.underlay
    assert list(now.policy.inbound) == [1]
    both.send("a", datagram("a"))
    assert made.generation == now.generation
