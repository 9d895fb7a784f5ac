"""Flow-filter groups, classifiers and rules as objects (NET-FF-DEV, RO-DEV, E72-E75, E77)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.flow_objects import FIELD_BITS
from virtio_ipsec.wire.flow_filter import FfSelectorCap, Selector
from virtio_ipsec.wire.numbers import Feature, mask

GROUP, CLASSIFIER, RULE = 0x200, 0x201, 0x202
OUTB = 0x203
OK, ENXIO, EBUSY, EEXIST, INVALID_FIELD, ENOSPC = (0, 0), (6, 3), (16, 3), (17, 3), (22, 3), (28, 6)
ETH, IPV4, IPV6, TCP, UDP, ESP = 1, 2, 3, 4, 5, 6
SIZES = {ETH: 14, IPV4: 20, IPV6: 40, TCP: 20, UDP: 8, ESP: 8}
DROP, DIRECT, IPSEC, RECIRCULATE = 1, 2, 3, 4


def priority(value: int) -> bytes:
    return struct.pack("<H", value)


def limits(guest: Any, **changes: int) -> None:
    v = {"groups": 4, "classifiers": 4, "rules": 8, "per_group": 8, "last": 10, "selectors": 3} | changes
    data = struct.pack(
        "<IIIIBBxx", v["groups"], v["classifiers"], v["rules"], v["per_group"], v["last"], v["selectors"]
    )
    assert guest.cap_set(0x800, data).code == OK


@pytest.fixture
def filled(guest: Any, layouts: Any) -> Any:
    """Small limits, group 0, and classifier 0 on the whole Ethernet header."""
    limits(guest)
    assert guest.create(GROUP, 0, priority(5)) == OK
    assert guest.create(CLASSIFIER, 0, layouts.classifier(layouts.selector(ETH, b"\xff" * 14))) == OK
    return guest


def chain(layouts: Any, *types: int, **masks: bytes) -> bytes:
    made: bytes = layouts.classifier(
        *(layouts.selector(t, masks.get(f"m{t}", b"\xff" * SIZES.get(t, 4))) for t in types)
    )
    return made


@pytest.mark.parametrize("kind", [GROUP, CLASSIFIER, RULE])
def test_all_four_commands_work(filled: Any, layouts: Any, kind: int) -> None:
    data = {
        GROUP: priority(6),
        CLASSIFIER: chain(layouts, ETH, IPV4),
        RULE: layouts.rule(),
    }[kind]
    assert filled.create(kind, 1, data) == OK
    assert filled.create(kind, 1, data) == EEXIST
    assert filled.query(kind, 1).result[: len(data)] == data
    assert filled.modify(kind, 1, data) == OK
    assert filled.destroy(kind, 1) == OK
    for attempt in (filled.query(kind, 1).code, filled.modify(kind, 1, data), filled.destroy(kind, 1)):
        assert attempt == ENXIO


def test_query_gives_the_structure_and_nothing_else(filled: Any, layouts: Any) -> None:
    data = chain(layouts, ETH, IPV6, ESP)
    assert filled.create(CLASSIFIER, 1, data + b"\xaa" * 32) == OK
    result = filled.query(CLASSIFIER, 1).result
    assert result == data + bytes(-len(data) % 8)


def test_group_priorities_are_distinct(filled: Any) -> None:
    assert filled.create(GROUP, 1, priority(5)) == INVALID_FIELD
    assert filled.create(GROUP, 1, priority(6)) == OK
    assert filled.modify(GROUP, 1, priority(5)) == INVALID_FIELD
    assert filled.modify(GROUP, 1, priority(6)) == OK
    assert filled.modify(GROUP, 1, priority(7)) == OK
    assert filled.create(GROUP, 2, priority(6)) == OK
    assert filled.device.context.filters.groups[1].group_priority == 7


@pytest.mark.parametrize(("kind", "room"), [(GROUP, 4), (CLASSIFIER, 4), (RULE, 8)])
def test_ids_and_numbers_are_limited(filled: Any, layouts: Any, kind: int, room: int) -> None:
    def data(number: int) -> bytes:
        made: bytes = {
            GROUP: priority(100 + number), CLASSIFIER: chain(layouts, ETH), RULE: layouts.rule(),
        }[kind]  # fmt: skip
        return made

    assert filled.create(kind, room, data(0)) == INVALID_FIELD
    assert filled.create(kind, 0xFFFFFFFF, data(0)) == INVALID_FIELD
    start = 0 if kind == RULE else 1
    for number in range(start, room):
        assert filled.create(kind, number, data(number)) == OK
    assert filled.create(kind, room, data(room)) == ENOSPC
    assert filled.destroy(kind, room - 1) == OK
    assert filled.create(kind, room - 1, data(room)) == OK


def test_rules_per_group(guest: Any, layouts: Any) -> None:
    """E74: counted per group, also when a rule moves."""
    limits(guest, per_group=2)
    for number in (0, 1):
        assert guest.create(GROUP, number, priority(number)) == OK
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH)) == OK
    assert guest.create(RULE, 0, layouts.rule()) == OK
    assert guest.create(RULE, 5, layouts.rule()) == OK
    assert guest.create(RULE, 1, layouts.rule()) == ENOSPC
    assert guest.modify(RULE, 5, layouts.rule(priority=1)) == OK
    assert guest.create(RULE, 1, layouts.rule(group=1)) == OK
    assert guest.modify(RULE, 1, layouts.rule(group=0)) == ENOSPC
    assert guest.modify(RULE, 5, layouts.rule(group=1)) == OK
    assert guest.modify(RULE, 1, layouts.rule(group=0)) == OK
    assert guest.create(RULE, 2, layouts.rule()) == ENOSPC
    assert guest.destroy(RULE, 1) == OK
    assert guest.create(RULE, 2, layouts.rule()) == OK


def test_groups_and_classifiers_with_rules_are_busy(filled: Any, layouts: Any) -> None:
    assert filled.create(RULE, 0, layouts.rule()) == OK
    assert filled.create(RULE, 1, layouts.rule()) == OK
    for _ in range(2):
        assert filled.destroy(GROUP, 0) == EBUSY
        assert filled.destroy(CLASSIFIER, 0) == EBUSY
        assert filled.modify(GROUP, 0, priority(9)) == EBUSY
        assert filled.modify(CLASSIFIER, 0, chain(layouts, ETH)) == EBUSY
        rule = min(filled.device.objects.ids()[RULE])
        assert filled.destroy(RULE, rule) == OK
    assert filled.modify(GROUP, 0, priority(9)) == OK
    assert filled.destroy(GROUP, 0) == OK
    assert filled.destroy(CLASSIFIER, 0) == OK


def test_dependencies_follow_a_rule_that_moves(filled: Any, layouts: Any) -> None:
    assert filled.create(GROUP, 1, priority(1)) == OK
    assert filled.create(CLASSIFIER, 1, chain(layouts, ETH, IPV4)) == OK
    assert filled.create(RULE, 0, layouts.rule()) == OK
    assert filled.modify(RULE, 0, layouts.rule(group=1, classifier=1, keys=bytes(34))) == OK
    assert filled.destroy(GROUP, 0) == OK
    assert filled.destroy(CLASSIFIER, 0) == OK
    assert filled.destroy(GROUP, 1) == EBUSY
    assert filled.destroy(CLASSIFIER, 1) == EBUSY


CHAINS = {
    (): False,
    (ETH,): True,
    (ETH, IPV4): True,
    (ETH, IPV6): True,
    (ETH, IPV4, TCP): True,
    (ETH, IPV4, UDP): True,
    (ETH, IPV4, ESP): True,
    (ETH, IPV6, TCP): True,
    (ETH, IPV6, UDP): True,
    (ETH, IPV6, ESP): True,
    (IPV4,): False,
    (ETH, ETH): False,
    (ETH, TCP): False,
    (ETH, IPV4, IPV6): False,
    (ETH, IPV4, IPV4): False,
    (IPV4, ETH): False,
    (ETH, IPV4, TCP, UDP): False,
    (0,): False,
    (7,): False,
    (ETH, 255): False,
}


@pytest.mark.parametrize(("types", "good"), CHAINS.items(), ids=str)
def test_selectors_follow_the_headers(guest: Any, layouts: Any, types: tuple[int, ...], good: bool) -> None:
    assert guest.create(CLASSIFIER, 0, chain(layouts, *types)) == (OK if good else INVALID_FIELD)
    assert (0 in guest.device.context.filters.classifiers) is good


def test_selectors_per_classifier(guest: Any, layouts: Any) -> None:
    limits(guest, selectors=2)
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH, IPV4, TCP)) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH, IPV4)) == OK


@pytest.mark.parametrize("length", [0, 1, 13, 15, 255])
def test_a_mask_is_as_long_as_its_header(guest: Any, layouts: Any, length: int) -> None:
    data = layouts.classifier(layouts.selector(ETH, b"\xff" * length))
    assert guest.create(CLASSIFIER, 0, data) == INVALID_FIELD


def test_the_fields_fill_the_headers() -> None:
    assert {kind: sum(widths) for kind, widths in FIELD_BITS.items()} == {k: 8 * n for k, n in SIZES.items()}


PARTS = {
    "one bit of an address": (ETH, b"\x01" + bytes(13)),
    "half an ethertype": (ETH, bytes(12) + b"\xff\x00"),
    "one flag of ipv4": (IPV4, bytes(6) + b"\x40" + bytes(13)),
    "an ipv4 prefix": (IPV4, bytes(16) + b"\xff\xff\xff\x00"),
    "half a port": (UDP, b"\xff" + bytes(7)),
    "part of an spi": (ESP, b"\xff\xff\xff\xfe" + bytes(4)),
    "part of a flow label": (IPV6, b"\x00\x00\xff\xff" + bytes(36)),
}
WHOLE = {
    "no field": (ETH, bytes(14)),
    "source address": (ETH, bytes(6) + b"\xff" * 6 + bytes(2)),
    "ipv4 flags as a whole": (IPV4, bytes(6) + b"\xe0" + bytes(13)),
    "ipv4 fragment offset": (IPV4, bytes(6) + b"\x1f\xff" + bytes(12)),
    "dscp without ecn": (IPV4, b"\x00\xfc" + bytes(18)),
    "ipv6 traffic class": (IPV6, b"\x0f\xf0" + bytes(38)),
    "ipv6 flow label": (IPV6, b"\x00\x0f\xff\xff" + bytes(36)),
    "one tcp control bit": (TCP, bytes(13) + b"\x02" + bytes(6)),
    "spi": (ESP, b"\xff" * 4 + bytes(4)),
}


def with_mask(layouts: Any, kind: int, wanted: bytes, flags: int = 0) -> bytes:
    types = {ETH: (ETH,), IPV4: (ETH, IPV4), IPV6: (ETH, IPV6)}.get(kind, (ETH, IPV4, kind))
    made: bytes = layouts.classifier(
        *(
            layouts.selector(t, wanted if t == kind else bytes(SIZES[t]), flags if t == kind else 0)
            for t in types
        )
    )
    return made


@pytest.mark.parametrize(("kind", "wanted"), PARTS.values(), ids=PARTS.keys())
def test_part_of_a_field_needs_the_partial_mask_flag(
    guest: Any, layouts: Any, kind: int, wanted: bytes
) -> None:
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, kind, wanted)) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, kind, wanted, 1)) == OK


@pytest.mark.parametrize(("kind", "wanted"), WHOLE.values(), ids=WHOLE.keys())
def test_whole_fields_do_not(guest: Any, layouts: Any, kind: int, wanted: bytes) -> None:
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, kind, wanted)) == OK


def test_the_partial_mask_flag_is_fine_with_full_masks(guest: Any, layouts: Any) -> None:
    """NET-FF-DEV-18, in the selector and in the command's flags (E75)."""
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, ETH, b"\xff" * 14, 1)) == OK
    assert guest.create(CLASSIFIER, 1, with_mask(layouts, ETH, b"\xff" * 14), flags=1) == OK


def test_selectors_keep_to_what_the_driver_set(make: Callable[..., Any], layouts: Any) -> None:
    guest = make(ready=False)
    guest.use_everything()
    guest.enable(0x800, 0x802)
    mine = layouts.classifier(
        layouts.selector(ETH, bytes(12) + b"\xff\xff"), layouts.selector(IPV4, b"\xff" * 20)
    )
    assert guest.cap_set(0x801, mine).code == OK
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH)) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, IPV6, bytes(40))) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, IPV4, b"\x80" + bytes(19), 1)) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, IPV4, b"\xff" * 20)) == OK


def test_a_device_without_partial_masks_refuses_them(make: Callable[..., Any], layouts: Any) -> None:
    guest = make(DeviceConfig(ff_selectors=FfSelectorCap((Selector(ETH, 0, b"\xff" * 14),))))
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, ETH, b"\x01" + bytes(13), 1)) == INVALID_FIELD
    assert guest.create(CLASSIFIER, 0, with_mask(layouts, ETH, b"\xff" * 14)) == OK


RULES = {
    "no group": {"group": 1},
    "no classifier": {"classifier": 1},
    "priority above the last": {"priority": 11},
    "key too short": {"keys": bytes(13)},
    "key too long": {"keys": bytes(15)},
    "no key": {"keys": b""},
    "action 0": {"action": 0},
    "action 5": {"action": 5},
    "a transmit queue": {"action": DIRECT, "vq": 1},
    "a queue behind the last": {"action": DIRECT, "vq": 16},
    "the control queue": {"action": DIRECT, "vq": 0xFFFF},
}


@pytest.mark.parametrize("changes", RULES.values(), ids=RULES.keys())
def test_what_a_rule_may_not_be(filled: Any, layouts: Any, changes: dict[str, Any]) -> None:
    assert filled.create(RULE, 0, layouts.rule(**changes)) == INVALID_FIELD
    assert filled.query(RULE, 0).code == ENXIO
    assert filled.create(RULE, 0, layouts.rule()) == OK
    before = filled.query(RULE, 0).result
    generation = filled.device.context.filters.generation
    assert filled.modify(RULE, 0, layouts.rule(**changes)) == INVALID_FIELD
    assert filled.query(RULE, 0).result == before
    assert filled.device.context.filters.generation == generation


@pytest.mark.parametrize("changes", [
    {"priority": 10},
    {"action": DIRECT, "vq": 14},
    {"action": DROP, "vq": 0xFFFF},
    {"action": IPSEC, "vq": 1},
    {"action": RECIRCULATE},
    {"keys": b"\xff" * 14},
], ids=str)  # fmt: skip
def test_what_a_rule_may_be(filled: Any, layouts: Any, changes: dict[str, Any]) -> None:
    """E73: the last priority is included."""
    data = layouts.rule(**changes)
    assert filled.create(RULE, 0, data) == OK
    assert filled.query(RULE, 0).result == data + bytes(-len(data) % 8)


def test_missing_key_bytes_are_zero(filled: Any, layouts: Any) -> None:
    assert filled.create(RULE, 0, layouts.rule(keys=b"\xaa", key_length=14)) == OK
    assert filled.device.context.filters.rules[0].keys == b"\xaa" + bytes(13)


def test_actions_keep_to_what_the_driver_set(make: Callable[..., Any], layouts: Any) -> None:
    guest = make(ready=False)
    guest.use_everything()
    guest.enable(0x800, 0x801)
    assert guest.cap_set(0x802, struct.pack("<B7xB", 1, DROP)).code == OK
    assert guest.create(GROUP, 0, priority(0)) == OK
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH)) == OK
    assert guest.create(RULE, 0, layouts.rule(action=DIRECT)) == INVALID_FIELD
    assert guest.create(RULE, 0, layouts.rule(action=DROP)) == OK


@pytest.mark.parametrize("action", [IPSEC, RECIRCULATE])
def test_ipsec_actions_need_ipsec(make: Callable[..., Any], layouts: Any, action: int) -> None:
    """E77: the action is in the capability, IPsec is disabled by the driver."""
    guest = make(ready=False)
    guest.use_everything()
    guest.enable(0x800, 0x801, 0x802)
    assert guest.create(GROUP, 0, priority(0)) == OK
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH)) == OK
    assert guest.create(RULE, 0, layouts.rule(action=action)) == INVALID_FIELD
    guest.enable(0x803, 0x804)
    assert guest.create(RULE, 0, layouts.rule(action=action)) == OK


def test_without_multiqueue_there_is_one_receive_queue(make: Callable[..., Any], layouts: Any) -> None:
    guest = make(features=mask(Feature.F_VERSION_1, Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC))
    assert guest.create(GROUP, 0, priority(0)) == OK
    assert guest.create(CLASSIFIER, 0, chain(layouts, ETH)) == OK
    assert guest.create(RULE, 0, layouts.rule(action=DIRECT, vq=2)) == INVALID_FIELD
    assert guest.create(RULE, 0, layouts.rule(action=DIRECT, vq=0)) == OK


def test_every_change_shows_in_the_generation(filled: Any, layouts: Any) -> None:
    filters = filled.device.context.filters
    seen = [filters.generation]
    for step, arguments in (
        (filled.create, (RULE, 0, layouts.rule())),
        (filled.modify, (RULE, 0, layouts.rule(priority=3))),
        (filled.destroy, (RULE, 0)),
        (filled.modify, (GROUP, 0, priority(8))),
        (filled.modify, (CLASSIFIER, 0, chain(layouts, ETH))),
        (filled.destroy, (CLASSIFIER, 0)),
    ):
        assert step(*arguments) == OK
        seen.append(filters.generation)
    assert seen == sorted(set(seen))


def test_reset_leaves_no_flow_filter_behind(filled: Any, layouts: Any) -> None:
    assert filled.create(RULE, 0, layouts.rule()) == OK
    filled.device.negotiate(filled.device.offered_features)
    filters = filled.device.context.filters
    assert not filters.groups
    assert not filters.classifiers
    assert not filters.rules
    filled.use_everything()
    filled.enable()
    assert filled.create(GROUP, 0, priority(5)) == OK
    assert filled.destroy(GROUP, 0) == OK
