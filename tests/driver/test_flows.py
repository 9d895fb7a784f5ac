"""Flow filter objects as bytes, the rules that feed SAs, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from virtio_ipsec.driver import DriverError, LimitReached
from virtio_ipsec.driver.flows import Flows
from virtio_ipsec.errors import CommandFailed, ConfigError
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.flow_filter import Selector
from virtio_ipsec.wire.ipsec import IpsecSa

FF = b"\xff"
EINVAL = bytes.fromhex("1600 0300 00000000")
ETH = Selector(1, 0, bytes(12) + FF * 2)
ANY_ETH = Selector(1, 0, bytes(14))
IP4 = Selector(2, 0, bytes(9) + FF + bytes(10))
IP6 = Selector(3, 0, bytes(6) + FF + bytes(33))
TCP = Selector(4, 0, bytes(2) + FF * 2 + bytes(16))
UDP = Selector(5, 0, bytes(2) + FF * 2 + bytes(4))
ESP = Selector(6, 0, FF * 4 + bytes(4))


def selector_bytes(kind: int, mask: bytes) -> bytes:
    return struct.pack("<BB2xB3x", kind, 0, len(mask)) + mask


def keys(ethertype: int, protocol: int, rest: bytes, version: int = 4) -> bytes:
    ip = (
        bytes(9) + bytes((protocol,)) + bytes(10)
        if version == 4
        else bytes(6) + bytes((protocol,)) + bytes(33)
    )
    return bytes(12) + struct.pack(">H", ethertype) + ip + rest


@pytest.fixture
def flows(fake: Any, start: Any) -> Flows:
    return start(fake).flows


def payload(command: bytes) -> bytes:
    return command[40:]


def test_protect_esp_over_ipv4_is_group_classifier_and_rule(fake: Any, flows: Flows) -> None:
    flows.protect_esp(0x11223344, 4)
    classifier, group, rule = (
        next(each for each in fake.commands if each[24:26] == struct.pack("<H", kind))
        for kind in (0x201, 0x200, 0x202)
    )
    assert payload(group)[:2] == struct.pack("<H", 0x8000)
    body = (
        struct.pack("<B7x", 3)
        + selector_bytes(1, bytes(12) + FF * 2)
        + selector_bytes(2, bytes(9) + FF + bytes(10))
        + selector_bytes(6, FF * 4 + bytes(4))
    )
    assert payload(classifier)[: len(body)] == body
    head = struct.pack("<IIBBBxH2x", 0, 0, 0, 42, 3, 0)
    assert payload(rule)[:58] == head + keys(0x0800, 50, b"\x11\x22\x33\x44" + bytes(4))
    assert len(rule) == 104


def test_protect_esp_over_ipv6_and_recirculation(fake: Any, flows: Flows) -> None:
    flows.protect_esp(0x11223344, 6, recirculate=True)
    rule = payload(fake.commands[-1])
    assert rule[:16] == struct.pack("<IIBBBxH2x", 0, 0, 0, 62, 4, 0)
    assert rule[16 : 16 + 62] == keys(0x86DD, 50, b"\x11\x22\x33\x44" + bytes(4), 6)
    assert rule[16 + 54 : 16 + 58] == b"\x11\x22\x33\x44"


def test_E78_protect_udp_encapsulation_matches_the_port(fake: Any, flows: Flows) -> None:
    flows.protect_udp_encap(4)
    assert payload(fake.commands[-1])[16:58] == keys(0x0800, 17, b"\0\0\x11\x94" + bytes(4))


def test_E69_protect_ah_matches_the_protocol(fake: Any, flows: Flows) -> None:
    flows.protect_ah(6)
    rule = payload(fake.commands[-1])
    assert rule[:16] == struct.pack("<IIBBBxH2x", 0, 0, 0, 54, 3, 0)
    assert rule[16:70] == keys(0x86DD, 51, b"", 6)


def test_rules_of_an_sa_follow_its_mode_and_options(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    ah = replace(gcm, mode=4, spi=2, cipher_algo=0, cipher_key=b"", auth_algo=4, auth_key=bytes(32))
    udp = replace(gcm, spi=3, options=2, udp_dport=5000)
    protocols = []
    for sa in (gcm, ah, udp):
        handle = driver.sas.create_inbound(sa)
        (rule,) = driver.flows.protect(handle, versions=(4,))
        protocols.append((rule.keys[23], rule.keys[34:38]))
        assert handle.rules == (rule,)
    assert protocols == [(50, b"\x11\x22\x33\x44"), (51, b""), (17, b"\0\0\x13\x88")]


def test_rules_that_match_no_spi_are_shared_and_go_with_the_last_sa(
    fake: Any, start: Any, gcm: IpsecSa
) -> None:
    driver = start(fake)
    handles = [driver.sas.create_inbound(replace(gcm, spi=number, options=2)) for number in (1, 2)]
    rules = {driver.flows.protect(handle, versions=(4,))[0] for handle in handles}
    assert len(rules) == 1
    assert len(driver.flows.rules()) == 1
    driver.destroy_inbound(handles[0])
    assert len(driver.flows.rules()) == 1
    driver.destroy_inbound(handles[1])
    assert driver.flows.rules() == ()
    # The next one makes a new rule.
    handle = driver.sas.create_inbound(replace(gcm, spi=3, options=2))
    assert driver.flows.protect(handle, versions=(4,))[0].id == 1


def test_E56_the_rfc_needs_no_rule(fake: Any, start: Any, gcm: IpsecSa) -> None:
    entry = struct.pack("<B3xIIQQIII", 1, 64, 0x1F, 8, 0x10, 2, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    driver = start(fake, dialect=RFC_2025_01)
    handle = driver.sas.create_inbound(gcm)
    fake.commands.clear()
    assert driver.flows.protect(handle) == ()
    assert not fake.commands


def test_only_inbound_sas_are_fed_by_rules(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    with pytest.raises(DriverError, match="inbound"):
        driver.flows.protect(driver.sas.create_outbound(gcm))


def test_a_failed_protect_takes_its_rules_back(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_inbound(gcm)
    driver.flows.protect_esp(0x1, 4)
    driver.flows.protect_esp(0x1, 6)
    fake.replies[0xA] = [bytes(8), EINVAL]
    with pytest.raises(CommandFailed):
        driver.flows.protect(handle)
    assert handle.rules == ()
    assert len(driver.flows.rules()) == 2
    assert fake.opcodes_seen()[-1] == 0xD


def test_groups_and_classifiers_are_made_once(fake: Any, flows: Flows) -> None:
    """Two groups of one priority would be refused (NET-FF-DEV-04)."""
    assert flows.group(7) is flows.group(7)
    assert flows.classifier([ETH, IP4]) is flows.classifier([ETH, IP4])
    assert len(fake.commands) == 2


def test_NET_FF_DRV_02_03_RO_DRV_04_nothing_goes_before_what_depends_on_it(fake: Any, flows: Flows) -> None:
    group, classifier = flows.group(1), flows.classifier([ANY_ETH])
    rule = flows.rule(group, classifier, bytes(14), 1)
    fake.commands.clear()
    with pytest.raises(DriverError, match="still has rules"):
        flows.destroy_group(group)
    with pytest.raises(DriverError, match="still has rules"):
        flows.destroy_classifier(classifier)
    assert not fake.commands
    flows.destroy_rule(rule)
    flows.destroy_classifier(classifier)
    flows.destroy_group(group)
    assert [each[24:26] for each in fake.commands] == [b"\x02\x02", b"\x01\x02", b"\x00\x02"]


def test_clear_goes_in_reverse_dependency_order(fake: Any, flows: Flows) -> None:
    for spi in (1, 2):
        flows.protect_esp(spi, 4)
        flows.protect_udp_encap(6)
    flows.group(3)
    fake.commands.clear()
    flows.clear()
    kinds = [each[24] for each in fake.commands]
    assert kinds == [2] * 3 + [1] * 2 + [0] * 2


def test_after_clear_an_sa_has_no_rules_to_destroy(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_inbound(gcm)
    driver.flows.protect(handle)
    driver.flows.clear()
    fake.commands.clear()
    driver.destroy_inbound(handle)
    assert [each[0] for each in fake.commands] == [0xD]
    assert not handle.alive
    assert handle.rules == ()


def test_RO_DRV_03_destroyed_objects_are_not_used(fake: Any, flows: Flows) -> None:
    group, classifier = flows.group(1), flows.classifier([ANY_ETH])
    rule = flows.rule(group, classifier, bytes(14), 1)
    flows.clear()
    fake.commands.clear()
    other_group = flows.group(2)
    attempts: list[Callable[[], object]] = [
        lambda: flows.destroy_rule(rule),
        lambda: flows.destroy_group(group),
        lambda: flows.destroy_classifier(classifier),
        lambda: flows.rule(group, classifier, bytes(14), 1),
        lambda: flows.rule(other_group, classifier, bytes(14), 1),
    ]
    for attempt in attempts:
        with pytest.raises(DriverError, match="has been destroyed"):
            attempt()
    assert len(fake.commands) == 1


@pytest.mark.parametrize("protocol", [(IP4, TCP), (IP4, UDP), (IP6, ESP), (IP6,), ()])
def test_NET_FF_DRV_05_the_orders_that_are_allowed(flows: Flows, protocol: tuple[Selector, ...]) -> None:
    flows.classifier([ETH, *protocol])


@pytest.mark.parametrize(
    "selectors",
    [
        [],
        [IP4],
        [ETH, ETH],
        [ETH, UDP],
        [ETH, IP4, IP6],
        [ETH, IP4, UDP, ESP],
        [Selector(7, 0, bytes(8))],
        [ANY_ETH, IP4],
        [ETH, Selector(2, 0, bytes(20)), UDP],
        [ETH, Selector(3, 0, bytes(40)), ESP],
        [Selector(1, 0, bytes(13))],
        [Selector(1, 1, bytes(14))],
        [Selector(1, 0, b"\x0f" + bytes(13))],
        [ETH, Selector(2, 0, bytes(12) + FF * 3 + bytes(5))],
    ],
)
def test_NET_FF_DRV_05_06_09_other_classifiers_are_refused(
    fake: Any, flows: Flows, selectors: list[Selector]
) -> None:
    with pytest.raises(ConfigError):
        flows.classifier(selectors)
    assert not fake.commands


def test_NET_FF_DRV_09_partial_masks_need_the_flag_and_the_device(fake: Any, start: Any) -> None:
    half = Selector(2, 1, bytes(12) + FF * 3 + bytes(5))
    fake.caps[0x801] = (
        struct.pack("<B7x", 2) + selector_bytes(1, FF * 14) + (struct.pack("<BB2xB3x", 2, 1, 20) + FF * 20)
    )
    flows = start(fake).flows
    flows.classifier([ETH, half])
    assert payload(fake.commands[-1])[8 + 22 : 8 + 24] == b"\x02\x01"
    with pytest.raises(ConfigError, match="partial"):
        flows.classifier([ETH, replace(half, flags=0)])


def test_fields_that_the_device_cannot_match_are_refused(fake: Any, start: Any) -> None:
    fake.caps[0x801] = (
        struct.pack("<B7x", 2) + selector_bytes(1, FF * 14) + (selector_bytes(2, bytes(12) + FF * 8))
    )
    flows = start(fake).flows
    flows.classifier([ETH, Selector(2, 0, bytes(16) + FF * 4)])
    with pytest.raises(ConfigError, match="cannot match"):
        flows.classifier([ETH, IP4])
    with pytest.raises(ConfigError, match="cannot match"):
        flows.classifier([ETH, Selector(3, 0, bytes(40))])


def test_more_selectors_than_the_device_takes_are_refused(fake: Any, start: Any) -> None:
    fake.caps[0x800] = struct.pack("<IIIIBB2x", 2, 8, 16, 12, 9, 2)
    with pytest.raises(ConfigError, match="3 selectors"):
        start(fake).flows.protect_esp(1)


@pytest.mark.parametrize(
    "content",
    [
        keys(0x0800, 17, bytes(7)),
        keys(0x0800, 17, bytes(9)),
        keys(0x86DD, 17, bytes(8)),
        keys(0, 17, bytes(8)),
        keys(0x0800, 6, bytes(8)),
        keys(0x0800, 0, bytes(8)),
    ],
)
def test_NET_FF_DRV_07_08_keys_must_name_what_follows(fake: Any, flows: Flows, content: bytes) -> None:
    group, classifier = flows.group(1), flows.classifier([ETH, IP4, UDP])
    fake.commands.clear()
    with pytest.raises(ConfigError, match="keys"):
        flows.rule(group, classifier, content, 1)
    assert not fake.commands
    flows.rule(group, classifier, keys(0x0800, 17, bytes(8)), 1)


@pytest.mark.parametrize(
    ("action", "settings"),
    [
        (0, {}),
        (5, {}),
        (2, {"vq_index": 1}),
        (2, {"vq_index": 2}),
        (2, {"vq_index": -2}),
        (1, {"priority": 10}),
        (1, {"priority": -1}),
    ],
)
def test_rules_outside_the_capability_are_refused(
    fake: Any, flows: Flows, action: int, settings: dict[str, int]
) -> None:
    group, classifier = flows.group(1), flows.classifier([ANY_ETH])
    fake.commands.clear()
    with pytest.raises(ConfigError):
        flows.rule(group, classifier, bytes(14), action, **settings)
    assert not fake.commands


def test_a_direct_rule_names_its_virtqueue(fake: Any, start: Any) -> None:
    flows = start(fake, 1 << 17 | 1 << 22, queue_pairs=2).flows
    flows.rule(flows.group(1), flows.classifier([ANY_ETH]), bytes(14), 2, vq_index=2, priority=9)
    assert payload(fake.commands[-1])[:16] == struct.pack("<IIBBBxH2x", 0, 0, 9, 14, 2, 2)


def test_NET_FF_DRV_04_rules_of_a_group_get_distinct_priorities(fake: Any, flows: Flows) -> None:
    group, classifier = flows.group(1), flows.classifier([ETH])
    first = flows.rule(group, classifier, bytes(12) + b"\x08\x00", 1, priority=1)
    priorities = [
        flows.rule(group, classifier, bytes(12) + struct.pack(">H", number), 1).priority
        for number in range(4)
    ]
    assert (first.priority, priorities) == (1, [0, 2, 3, 4])
    with pytest.raises(ConfigError, match="may match the same packet"):
        flows.rule(group, flows.classifier([ANY_ETH]), bytes(14), 1, priority=1)
    # Another group has priorities of its own.
    flows.rule(flows.group(2), flows.classifier([ANY_ETH]), bytes(14), 1, priority=1)


def test_NET_FF_DRV_04_a_priority_is_shared_only_by_rules_that_exclude_each_other(
    fake: Any, flows: Flows
) -> None:
    group, classifier = flows.group(1), flows.classifier([ETH])
    for number in range(10):
        flows.rule(group, classifier, bytes(12) + struct.pack(">H", number), 1)
    eleventh = flows.rule(group, classifier, b"\x55" * 12 + struct.pack(">H", 10), 1)
    assert eleventh.priority == 0
    # The same keys where they are compared: this one would overlap with the eleventh.
    twelfth = flows.rule(group, classifier, bytes(12) + struct.pack(">H", 10), 1)
    assert twelfth.priority == 1


def test_no_priority_left_is_a_limit(fake: Any, start: Any) -> None:
    fake.caps[0x800] = struct.pack("<IIIIBB2x", 2, 8, 16, 12, 0, 3)
    flows = start(fake).flows
    flows.protect_esp(1, 4)
    flows.protect_esp(2, 4)
    with pytest.raises(LimitReached, match="no rule priority"):
        flows.protect_esp(1, 6)


def test_RO_DRV_02_limits_of_groups_rules_and_rules_per_group(fake: Any, flows: Flows) -> None:
    for spi in range(12):
        flows.protect_esp(spi + 1, 4)
    with pytest.raises(LimitReached, match="group 0 holds 12"):
        flows.protect_esp(99, 4)
    flows.group(1)
    with pytest.raises(LimitReached, match="all 2 ids of groups"):
        flows.group(2)
    for number in range(4):
        flows.rule(flows.group(1), flows.classifier([ETH]), bytes(12) + struct.pack(">H", number), 1)
    with pytest.raises(LimitReached, match="all 16 ids of rules"):
        flows.rule(flows.group(1), flows.classifier([ETH]), bytes(12) + b"\x99\x99", 1)


def test_a_refused_rule_leaves_its_id_and_priority_free(fake: Any, flows: Flows) -> None:
    group, classifier = flows.group(1), flows.classifier([ANY_ETH])
    fake.replies[0xA] = [EINVAL]
    with pytest.raises(CommandFailed):
        flows.rule(group, classifier, bytes(14), 1)
    assert flows.rules() == ()
    rules = [flows.rule(group, classifier, bytes(14), 1) for _ in range(10)]
    assert [rule.priority for rule in rules] == list(range(10))
