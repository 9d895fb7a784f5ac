"""Random rules over random frames through the Python device's flow filter and through csrc/.

``FRAMES=1000000 pytest tests/differential/test_flow_filter.py`` makes a soak of it.
"""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from random_frames import frames, laid, rounds, spoilt

from virtio_ipsec.device.config import SELECTOR_SIZES
from virtio_ipsec.device.flow_filter import FlowFilter
from virtio_ipsec.device.flow_objects import CHAIN
from virtio_ipsec.device.frame import view
from virtio_ipsec.device.state import FilterObjects
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath.flow import FlowTable
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.numbers import SelectorType

ETH_ALL = Selector(SelectorType.ETH, 0, b"\xff" * 14)
PORT_ONLY = Selector(SelectorType.UDP, 0, bytes.fromhex("0000ffff00000000"))


class Both:
    """The objects of the Python device and the table of csrc/, changed together."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        self.objects = FilterObjects()
        self.table = FlowTable(rnd.getrandbits(64))

    def match(self, frame: bytes) -> FfRule | None:
        expected = FlowFilter(self.objects).match(frame, view(frame))
        assert self.table.match(frame) is expected, frame.hex()
        return expected

    def match_many(self, frames: list[bytes]) -> None:
        slow = FlowFilter(self.objects)
        expected = [slow.match(frame, view(frame)) for frame in frames]
        assert all(
            found is wanted for found, wanted in zip(self.table.match_many(frames), expected, strict=True)
        )

    def add_group(self, ident: int) -> None:
        taken = {g.group_priority for g in self.objects.groups.values()}
        priority = self.rnd.choice([p for p in range(100) if p not in taken])
        self.objects.groups[ident] = FfGroup(priority)
        self.table.set_group(ident, self.objects.groups[ident])

    def add_classifier(self, ident: int) -> None:
        made = self.objects.classifiers[ident] = FfClassifier(tuple(selectors(self.rnd)))
        self.table.set_classifier(ident, made)

    def add_rule(self, ident: int, frame: bytes | None = None) -> None:
        classifier = self.rnd.choice(list(self.objects.classifiers))
        keys = keys_for(self.rnd, self.objects.classifiers[classifier], frame)
        made = self.objects.rules[ident] = FfRule(
            self.rnd.choice(list(self.objects.groups)), classifier, self.rnd.choice((0, 1, 7, 7, 255)),
            self.rnd.randrange(1, 5), self.rnd.randrange(8), keys,
        )  # fmt: skip
        self.table.set_rule(ident, made)

    def remove_rule(self, ident: int) -> None:
        del self.objects.rules[ident]
        self.table.remove_rule(ident)


def mask(rnd: random.Random, size: int) -> bytes:
    """No bits, all bits, whole octets, or any bits."""
    kind = rnd.randrange(5)
    if kind < 2:
        return (b"\0" if kind else b"\xff") * size
    if kind == 2:
        return bytes(rnd.choice((0, 0, 0, 255)) for _ in range(size))
    if kind == 3:
        return bytes(rnd.choice((0, 0, 0xF0, 1, 255)) for _ in range(size))
    single = bytearray(size)
    single[rnd.randrange(size)] = 1 << rnd.randrange(8)
    return bytes(single)


def selectors(rnd: random.Random) -> list[Selector]:
    """A chain as devices take it, or now and then selectors that no device lets through."""
    if rnd.random() < 0.1:
        chain = [rnd.randrange(1, 9) for _ in range(rnd.randrange(0, 4))]
    else:
        chain = [rnd.choice(sorted(kinds)) for kinds in CHAIN[: rnd.randrange(1, 4)]]
    made = []
    words = 0
    for kind in chain:
        size = SELECTOR_SIZES.get(kind, 4)
        words += (size + 7) // 8
        if words > 10:
            break
        if rnd.random() < 0.05:
            size = rnd.choice((size + 1, size - 1, 0, 7))
        made.append(Selector(kind, 0, mask(rnd, size) if size else b""))
    return made


def keys_for(rnd: random.Random, classifier: FfClassifier, frame: bytes | None) -> bytes:
    """Keys that fit the frame, if there is one, else random ones."""
    keys = b""
    for selector in classifier.selectors:
        size = len(selector.mask)
        part = bytearray(rnd.randbytes(size))
        if frame is not None and len(frame) >= 14:
            headers = view(frame)
            kind = selector.type
            start = 0 if kind == 1 else headers.l3 if kind in (2, 3) else headers.l4
            part = bytearray(frame[start : start + size].ljust(size, b"\0"))
            if kind == 3 and headers.extensions and size > 6:
                part[6] = headers.protocol
            if rnd.random() < 0.1 and size:
                part[rnd.randrange(size)] ^= 1
        keys += part
    return keys


@pytest.mark.parametrize("seed", range(4))
def test_random_rules_while_they_change(seed: int) -> None:
    rnd = random.Random(seed)
    both = Both(rnd)
    for ident in rnd.sample(range(1000), 3):
        both.add_group(ident)
    for ident in rnd.sample(range(1000), 12):
        both.add_classifier(ident)
    pool = list(frames(seed, 40))
    matched = 0
    for _ in range(rounds(2000)):
        live = list(both.objects.rules)
        step = rnd.random()
        if step < 0.3 and len(live) < 60:
            both.add_rule(rnd.randrange(10000), rnd.choice([None, *pool]))
        elif step < 0.38 and live:
            both.remove_rule(rnd.choice(live))
        elif step < 0.42 and live:
            both.add_rule(rnd.choice(live), rnd.choice(pool))
        elif step < 0.43:
            both.add_group(rnd.choice(list(both.objects.groups)))
        elif step < 0.44:
            unused = set(both.objects.classifiers) - {r.classifier_id for r in both.objects.rules.values()}
            both.add_classifier(min(unused, default=max(both.objects.classifiers) + 1))
        pool[rnd.randrange(len(pool))] = spoilt(rnd, laid(rnd).data)
        matched += both.match(rnd.choice(pool)) is not None
        if step > 0.98:
            both.match_many(rnd.choices(pool, k=rnd.choice((0, 1, 31, 32, 33, 70))))
    for ident in list(both.objects.rules):
        both.remove_rule(ident)
        both.match(pool[0])
    both.match_many(pool)
    assert len(both.table) == 0
    assert matched > 50


def test_the_same_key_at_many_priorities() -> None:
    rnd = random.Random(9)
    table = FlowTable(1)
    table.set_group(1, FfGroup(1))
    table.set_classifier(1, FfClassifier((ETH_ALL,)))
    frame = bytes(range(60))
    rules = {i: FfRule(1, 1, rnd.randrange(256), 1, 0, frame[:14]) for i in rnd.sample(range(5000), 300)}
    for ident, rule in rules.items():
        table.set_rule(ident, rule)
    while rules:
        best = min(rules, key=lambda i: (-rules[i].rule_priority, i))
        assert table.match(frame) is rules[best]
        gone = best if rnd.random() < 0.5 else rnd.choice(list(rules))
        table.remove_rule(gone)
        del rules[gone]
    assert table.match(frame) is None


def test_ten_thousand_rules_are_all_found() -> None:
    table = FlowTable(7)
    table.set_group(0, FfGroup(0))
    table.set_classifier(0, FfClassifier((replace(ETH_ALL, mask=b"\xff" * 6 + bytes(8)),)))
    macs = [number.to_bytes(6) for number in range(0, 2_560_000, 256)]
    for ident, mac in enumerate(macs):
        table.set_rule(ident, FfRule(0, 0, 5, 2, 0, mac + bytes(8)))
    for ident, mac in enumerate(macs):
        assert table.verdict(mac + bytes(54)).rule_id == ident
    assert table.match(b"\x77" * 60) is None
    for ident in range(0, len(macs), 2):
        table.remove_rule(ident)
    for ident, mac in enumerate(macs):
        assert (table.match(mac + bytes(54)) is not None) == bool(ident % 2)


def test_the_verdict_names_queue_action_and_udp() -> None:
    table = FlowTable(0)
    table.set_group(1, FfGroup(1))
    table.set_classifier(1, FfClassifier((replace(ETH_ALL, mask=bytes(14)),)))
    table.set_classifier(
        2, FfClassifier((replace(ETH_ALL, mask=bytes(14)), Selector(2, 0, bytes(20)), PORT_ONLY))
    )
    table.set_rule(70000, FfRule(1, 1, 9, 2, 65535, bytes(14)))
    found = table.verdict(bytes(60))
    assert (found.rule_id, found.vq_index, found.action, found.selects_udp) == (70000, 65535, 2, 0)
    frame = (
        bytes(12)
        + bytes.fromhex("0800450000240000000040110000")
        + bytes(8)
        + bytes.fromhex("0000119400100000")
        + bytes(8)
    )
    table.set_rule(2, FfRule(1, 2, 10, 3, 0, bytes(14 + 20) + PORT_ONLY.mask[:2] + b"\x11\x94" + bytes(4)))
    assert (table.verdict(frame).rule_id, table.verdict(frame).selects_udp) == (2, 1)


def test_what_cannot_be_kept_is_refused_and_changes_nothing() -> None:
    table = FlowTable(0)
    table.set_group(1, FfGroup(1))
    table.set_classifier(1, FfClassifier((ETH_ALL,)))
    rule = FfRule(1, 1, 1, 1, 0, bytes(14))
    for wrong in (replace(rule, group_id=2), replace(rule, classifier_id=2), replace(rule, keys=bytes(13))):
        with pytest.raises(ConfigError):
            table.set_rule(1, wrong)
    with pytest.raises(ConfigError):
        table.set_classifier(2, FfClassifier((ETH_ALL,) * 5))
    with pytest.raises(ConfigError):
        table.set_classifier(2, FfClassifier((Selector(3, 0, b"\xff" * 40),) * 3))
    for remove in (table.remove_group, table.remove_classifier):
        with pytest.raises(ConfigError):
            remove(2)
    assert table.match(bytes(60)) is None
    table.set_rule(1, rule)
    with pytest.raises(ConfigError):
        table.set_classifier(1, FfClassifier((PORT_ONLY,)))
    assert table.match(bytes(60)) is rule
    table.remove_group(1)
    assert table.match(bytes(60)) is None
    table.remove_rule(1)
    table.set_group(1, FfGroup(1))
    table.set_rule(1, rule)
    table.remove_classifier(1)
    assert table.match(bytes(60)) is None


def test_lookups_while_another_thread_changes_rules() -> None:
    table = FlowTable(3)
    table.set_group(1, FfGroup(1))
    table.set_classifier(1, FfClassifier((ETH_ALL,)))
    table.set_classifier(2, FfClassifier((replace(ETH_ALL, mask=bytes(14)),)))
    stays = FfRule(1, 1, 9, 1, 1, bytes(14))
    table.set_rule(0, stays)
    done = threading.Event()
    wrong: list[object] = []

    def look() -> None:
        while not done.is_set():
            found = table.verdict(bytes(60))
            if found is None or found.vq_index != 1:
                wrong.append(found)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(2000):
        table.set_rule(
            1 + turn % 50, FfRule(1, 1, turn % 8, 1, 2, bytes(14) if turn % 3 else turn.to_bytes(14))
        )
        if turn % 7 == 0:
            table.set_rule(100, FfRule(1, 2, 3, 1, 3, bytes(14)))
        elif turn % 7 == 3:
            table.remove_rule(100)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
