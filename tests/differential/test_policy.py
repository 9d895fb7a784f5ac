"""The operator classifier: random rules over random packets through policy/selectors.py and through csrc/.

``FRAMES=1000000 pytest tests/differential/test_policy.py`` makes a soak of it.
"""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from random_frames import PORTS, PROTOCOLS, V4, V6, laid, rounds, spoilt

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.policy import INBOUND_CLEAR, INBOUND_OPENED, OUTBOUND, OUTCOMES, PolicyTable
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.selectors import (
    WITH_PORTS,
    WITH_TYPE,
    Address,
    Decision,
    InboundSa,
    Network,
    Outcome,
    Policy,
    Range,
    Rule,
    Selector,
)


def network(rnd: random.Random, version: int) -> Network | None:
    if rnd.random() < 0.3:
        return None
    bits = rnd.choice((0, 8, 23, 24, 32) if version == 4 else (0, 8, 112, 120, 128))
    return ip_network((rnd.choice(V4 if version == 4 else V6), bits), strict=False)


def numbers(rnd: random.Random) -> Range | None:
    kind = rnd.randrange(4)
    if kind == 0:
        return None
    if kind == 1:
        return (rnd.choice(PORTS),) * 2
    low, high = sorted((rnd.choice(PORTS), rnd.choice(PORTS)))
    return low, high


def selector(rnd: random.Random) -> Selector:
    version = rnd.choice((4, 6))
    protocol = rnd.choice((None, None, 6, 17, 17, *PROTOCOLS))
    ports = protocol in WITH_PORTS
    return Selector(
        network(rnd, version), network(rnd, version), protocol,
        numbers(rnd) if ports else None, numbers(rnd) if ports else None,
        rnd.choice(((0x0800, 0x08FF), (0x8700, 0x8700), (0, 0xFFFF), None)) if protocol in WITH_TYPE else None,
    )  # fmt: skip


def random_policy(rnd: random.Random) -> Policy:
    rules = []
    for _ in range(rnd.choice((0, 1, 5, 20))):
        action = rnd.choice(list(Action))
        sa = rnd.randrange(2**32) if action is Action.PROTECT else None
        rules.append(Rule(selector(rnd), action, sa, rnd.choice((0, 0, 1, 7, 2**32 - 1))))
    inbound = {
        rnd.choice((0, 1, 2, 3, 2**32 - 1)): InboundSa(
            tuple(selector(rnd) for _ in range(rnd.randrange(4))), rnd.choice((None, outer(rnd)))
        )
        for _ in range(4)
    }
    return Policy(tuple(rules), rnd.choice((Action.BYPASS, Action.DROP)), inbound)


def outer(rnd: random.Random) -> Address:
    return ip_address(rnd.choice(V4[:2] + V6[:2]))


def same(found: tuple[str, int | None, int | None], expected: Decision) -> bool:
    return found == (expected.outcome.value, expected.sa, expected.rule)


def test_outcomes_have_the_same_names() -> None:
    _, lib = native.extension()
    assert tuple(each.value for each in Outcome) == OUTCOMES
    assert len(OUTCOMES) == lib.VIPSEC_POLICY_OUTCOME_COUNT


@pytest.mark.parametrize("seed", range(3))
def test_random_rules_decide_the_same(seed: int) -> None:
    rnd = random.Random(seed)
    seen: Counter[Outcome] = Counter()
    for _ in range(rounds(150)):
        policy = random_policy(rnd)
        table = PolicyTable(policy, rnd.getrandbits(64))
        for _ in range(15):
            made = laid(rnd, (0, 1, 3, 8))
            packet = spoilt(rnd, made.data[made.l3 :])
            sa = rnd.choice((0, 1, 2, 3, 4, 2**32 - 1))
            source = rnd.choice((None, outer(rnd)))
            for direction, expected in (
                (OUTBOUND, policy.outbound(packet)),
                (INBOUND_CLEAR, policy.inbound_clear(packet)),
                (INBOUND_OPENED, policy.inbound_opened(sa, packet, source)),
            ):
                found = table.decide(direction, packet, sa, source)
                assert same(found, expected), (found, expected, direction, packet.hex(), policy)
                seen[expected.outcome] += 1
    assert set(seen) == set(Outcome)
    assert min(seen.values()) > 5


def test_packets_that_hide_their_ports() -> None:
    """Whole packets, first and later fragments and cut ones, against rules that name ports and rules that do not."""
    named = Selector(protocol=17, remote_ports=(53, 53))
    tail = bytes((0, 99, 0, 53, 0, 8, 0, 0))
    packets = []
    for field in (0, 1, 6, 8, 9):
        fragment = bytes((17, 0)) + field.to_bytes(2) + bytes(4)
        for packet_tail in (tail, tail[:3]):
            payload = fragment + packet_tail
            packets.append(
                bytes.fromhex("60000000") + len(payload).to_bytes(2) + b"\x2c\x40" + bytes(32) + payload
            )
    for field in (0, 0x2000, 0x4000, 0x8000, 1):
        for packet_tail in (tail, tail[:3]):
            length = (20 + len(packet_tail)).to_bytes(2)
            packets.append(
                b"\x45\0" + length + bytes(2) + field.to_bytes(2) + b"\x40\x11" + bytes(10) + packet_tail
            )
    outcomes = set()
    for action in Action:
        for first in (Selector(protocol=6), Selector(protocol=17, local_ports=(0, 65535))):
            for rules in ((named, first), (first, named), (named,)):
                made = tuple(Rule(each, action, 7 if action is Action.PROTECT else None) for each in rules)
                policy = Policy(made, Action.BYPASS, {0: InboundSa(rules)})
                table = PolicyTable(policy, 1)
                for packet in packets:
                    expected = policy.outbound(packet)
                    assert same(table.decide(OUTBOUND, packet), expected), packet.hex()
                    assert same(table.decide(INBOUND_CLEAR, packet), policy.inbound_clear(packet))
                    assert same(table.decide(INBOUND_OPENED, packet), policy.inbound_opened(0, packet))
                    outcomes.add(expected.outcome)
    assert {Outcome.DROP_HIDDEN, Outcome.PROTECT, Outcome.BYPASS, Outcome.DROP_RULE} <= outcomes


def test_ten_thousand_rules_are_all_found() -> None:
    rules = tuple(
        Rule(Selector(remote=ip_network((0x0A000000 + number, 32)), protocol=17), Action.PROTECT, number)
        for number in range(10000)
    )
    inbound = {sa: InboundSa((rules[sa].selector,), IPv6Address(sa)) for sa in range(0, 10000, 3)}
    policy = Policy(rules, Action.DROP, inbound)
    table = PolicyTable(policy, 5)
    for number in range(10050):
        head = bytes.fromhex("4500001c0000000040110000") + bytes((192, 0, 2, 1))
        packet = head + (0x0A000000 + number).to_bytes(4) + bytes(8)
        expected = ("protect", number, number) if number < 10000 else ("drop_default", None, None)
        assert table.decide(OUTBOUND, packet) == expected
        answer = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        wanted = "drop_cleartext" if number < 10000 else "drop_default"
        assert table.decide(INBOUND_CLEAR, answer)[0] == wanted
        if number in inbound:
            assert table.decide(INBOUND_OPENED, answer, number, IPv6Address(number))[0] == "bypass"
            assert table.decide(INBOUND_OPENED, answer, number, IPv4Address(number))[0] == "drop_peer"
            assert (
                table.decide(INBOUND_OPENED, answer, number + 3, IPv6Address(number + 3))[0]
                == "drop_selector"
            )


def test_numbers_that_do_not_fit_are_refused() -> None:
    policy = Policy((Rule(Selector(), Action.PROTECT, 2**32),), Action.DROP)
    with pytest.raises(ConfigError):
        PolicyTable(policy, 0)


@pytest.mark.parametrize(
    "spoil",
    [
        {"family": 5},
        {"family": 4, "local_bits": 33},
        {"family": 6, "remote_bits": 129},
        {"remote_bits": 1},
        {"protocol": 256},
        {"protocol": -2},
        {"protocol": 6, "local_low": 2, "local_high": 1},
        {"protocol": 6, "remote_low": 2, "remote_high": 1},
        {"protocol": 50, "local_low": 1},
        {"protocol": 1, "remote_low": 1},
    ],
)
def test_selectors_that_cannot_be_are_refused_by_c(spoil: dict[str, int]) -> None:
    ffi, lib = native.extension()
    for kind in ("rule", "inbound"):
        entry = ffi.new(f"struct vipsec_policy_{kind}[1]")
        made = entry[0].selector
        made.local_high = made.remote_high = 0xFFFF
        made.protocol = -1
        config = ffi.new("struct vipsec_policy_config *")
        setattr(config, "rules" if kind == "rule" else kind, entry)
        setattr(config, f"{kind}_count", 1)
        handle = lib.vipsec_policy_new(config)
        assert handle != ffi.NULL
        lib.vipsec_policy_free(handle)
        for name, value in spoil.items():
            setattr(made, name, value)
        assert lib.vipsec_policy_new(config) == ffi.NULL


def test_actions_and_families_that_cannot_be_are_refused_by_c() -> None:
    ffi, lib = native.extension()
    rule = ffi.new("struct vipsec_policy_rule[1]")
    rule[0].selector.local_high = rule[0].selector.remote_high = 0xFFFF
    rule[0].selector.protocol, rule[0].action = -1, lib.VIPSEC_POLICY_OUTCOME_COUNT
    peer = ffi.new("struct vipsec_policy_peer[1]")
    for fields in (
        {"rules": rule, "rule_count": 1},
        {"peers": peer, "peer_count": 1},
        {"default_action": 1},
        {"default_action": 3},
    ):
        config = ffi.new("struct vipsec_policy_config *", fields)
        assert lib.vipsec_policy_new(config) == ffi.NULL
    lib.vipsec_policy_free(ffi.NULL)
