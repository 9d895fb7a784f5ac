"""Random administration commands against a model of the resource store made of dicts.

The model knows the rules in its own words and packs bytes by hand. After every command the device's answer must
be the model's, and what can be asked of the device (lists, capabilities, objects by QUERY) must be what the
model holds; so a command that failed has changed nothing.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device

OK, ENXIO, EBUSY, EEXIST = (0, 0), (6, 3), (16, 3), (17, 3)
INVALID_OPCODE, INVALID_FIELD, INVALID_GROUP, INVALID_MEMBER, ENOSPC = (
    (22, 2),
    (22, 3),
    (22, 4),
    (22, 5),
    (28, 6),
)
GROUP, CLASSIFIER, RULE, OUTB, INB = range(0x200, 0x205)
LIST_QUERY, LIST_USE, CAP_LIST, CAP_GET, CAP_SET = 0, 1, 7, 8, 9
CREATE, QUERY, MODIFY, DESTROY = 10, 11, 12, 13
SUPPORTED = {0, 1, 7, 8, 9, 10, 11, 12, 13}
DEVICE_LIMITS = (65536, 65536)
FF_DEVICE = (64, 256, 4096, 4096, 255, 3)
LENGTHS = {1: 14, 2: 20, 3: 40, 4: 20, 5: 8, 6: 8}
CAPS_OF = {GROUP: "ff", CLASSIFIER: "ff", RULE: "ff", OUTB: "ipsec", INB: "ipsec"}


@dataclass(frozen=True)
class Command:
    """One command by meaning; ``data`` is what the model needs to know of it."""

    opcode: int
    group: int = 0
    member: int = 0
    kind: int = 0
    number: int = 0
    data: Any = None
    junk: int = 0


def sa_of(kind: int, spec: tuple[Any, ...]) -> bytes:
    mode, spi, key, options, window, flip, cookie = spec
    direction = (1 if kind == OUTB else 2) ^ (3 if flip else 0)
    out = struct.pack("<BBHII4sQ", mode, direction, 0, cookie, spi, b"salt", options)
    out += struct.pack("<B3xII", 1, 1, 2).ljust(44, b"\0") + struct.pack("<HHI", 0, 0, window)
    out += struct.pack("<QHxx32sQHxx32s", 1, len(key), key, 0, 0, b"")
    return out + bytes(32)


def classifier_of(types: tuple[int, ...]) -> bytes:
    parts = (struct.pack("<BxxxB3x", t, LENGTHS.get(t, 3)) + b"\xff" * LENGTHS.get(t, 3) for t in types)
    return struct.pack("<B7x", len(types)) + b"".join(parts)


def rule_of(spec: tuple[Any, ...]) -> bytes:
    group, classifier, priority, action, vq, length = spec
    head: bytes = struct.pack("<IIBBBxHxx", group, classifier, priority, length, action, vq)
    return head + b"\x55" * int(length)


def data_of(kind: int, spec: Any) -> bytes:
    if kind in (OUTB, INB):
        return sa_of(kind, spec)
    if kind == CLASSIFIER:
        return classifier_of(spec)
    return rule_of(spec) if kind == RULE else struct.pack("<H", spec)


def cap_of(cap: int, spec: Any) -> bytes:
    if cap == 0x803:
        return struct.pack("<II", *spec)
    if cap == 0x804:
        modes = (struct.pack("<B3xIIIQQIII", m, 64, options, 0, 0, 0, 2, 16, 0) for m, options in spec)
        return struct.pack("<B7x", len(spec)) + b"".join(modes)
    if cap == 0x800:
        return struct.pack("<IIIIBBxx", *spec)
    if cap == 0x801:
        return classifier_of(spec)
    return struct.pack("<B7x", len(spec)) + bytes(spec)


def encode(command: Command) -> bytes:
    if command.opcode == LIST_USE:
        body = struct.pack("<Q", sum(1 << bit for bit in command.data))
    elif command.opcode in (CAP_GET, CAP_SET):
        body = struct.pack("<H6x", command.kind)
        body += cap_of(command.kind, command.data) if command.opcode == CAP_SET else b""
    elif command.opcode in (CREATE, MODIFY, QUERY):
        body = struct.pack("<HxxIQ", command.kind, command.number, command.junk)
        body += data_of(command.kind, command.data) if command.opcode != QUERY else b""
    elif command.opcode == DESTROY:
        body = struct.pack("<HxxI", command.kind, command.number)
    else:
        body = b""
    return struct.pack("<HH12xQ", command.opcode, command.group, command.member) + body


@dataclass
class Model:
    """What a device of default configuration holds."""

    used: set[int] = field(default_factory=lambda: {LIST_QUERY, LIST_USE})
    caps: dict[int, Any] = field(default_factory=dict)
    objects: dict[tuple[int, int], Any] = field(default_factory=dict)

    def of(self, *kinds: int) -> dict[int, Any]:
        return {number: spec for (kind, number), spec in self.objects.items() if kind in kinds}

    def step(self, c: Command) -> tuple[int, int]:
        if c.group != 0:
            return INVALID_GROUP
        if c.opcode not in self.used:
            return INVALID_OPCODE
        if c.member and c.opcode not in (LIST_QUERY, LIST_USE):
            return INVALID_MEMBER
        if c.opcode == LIST_USE:
            if not set(c.data) <= SUPPORTED:
                return INVALID_FIELD
            self.used = set(c.data)
            return OK
        if c.opcode in (LIST_QUERY, CAP_LIST):
            return OK
        if c.opcode in (CAP_GET, CAP_SET):
            return self.capability(c)
        return self.object(c)

    def capability(self, c: Command) -> tuple[int, int]:
        if c.kind not in (0x800, 0x801, 0x802, 0x803, 0x804):
            return ENXIO
        if c.opcode == CAP_GET:
            return OK
        if self.of(OUTB, INB) if c.kind >= 0x803 else self.of(GROUP, CLASSIFIER, RULE):
            return EBUSY
        if not self.legal_cap(c.kind, c.data):
            return INVALID_FIELD
        self.caps[c.kind] = c.data
        return OK

    @staticmethod
    def legal_cap(cap: int, spec: Any) -> bool:
        if cap in (0x803, 0x800):
            return all(
                a <= b for a, b in zip(spec, DEVICE_LIMITS if cap == 0x803 else FF_DEVICE, strict=True)
            )
        keys = [m for m, _ in spec] if cap == 0x804 else list(spec)
        if keys != sorted(set(keys)):
            return False
        if cap == 0x804:
            # The aead mask of the entries is 2 and AH has no AEAD; transport modes lack the tunnel options.
            return all(m in (1, 2) and not o & ~(127 if m == 1 else 67) for m, o in spec)
        return set(keys) <= set(range(1, 7) if cap == 0x801 else range(1, 5))

    def enabled(self, family: str) -> bool:
        if family == "ipsec":
            return any(self.caps.get(0x803, (0,))) and bool(self.caps.get(0x804))
        limits = self.caps.get(0x800, (0, 0, 0))
        return any(limits[:3]) and bool(self.caps.get(0x801)) and bool(self.caps.get(0x802))

    def object(self, c: Command) -> tuple[int, int]:
        key = (c.kind, c.number)
        if c.kind not in CAPS_OF:
            return INVALID_FIELD if c.opcode == CREATE else ENXIO
        if not self.enabled(CAPS_OF[c.kind]):
            return INVALID_OPCODE
        if c.opcode == CREATE:
            if key in self.objects:
                return EEXIST
            status = self.fits(c) or self.legal(c)
        else:
            if key not in self.objects:
                return ENXIO
            if c.opcode == QUERY:
                return OK
            if self.depended_on(key):
                return EBUSY
            if c.opcode == DESTROY:
                del self.objects[key]
                return OK
            status = self.legal(c)
        if status is None:
            self.objects[key] = c.data
        return status or OK

    def depended_on(self, key: tuple[int, int]) -> bool:
        kind, number = key
        at = {GROUP: 0, CLASSIFIER: 1}.get(kind)
        return at is not None and any(rule[at] == number for rule in self.of(RULE).values())

    def fits(self, c: Command) -> tuple[int, int] | None:
        if c.kind in (OUTB, INB):
            inbound, outbound = self.caps[0x803]
            return INVALID_FIELD if c.number >= (outbound if c.kind == OUTB else inbound) else None
        limit = self.caps[0x800][c.kind - GROUP]
        if len(self.of(c.kind)) >= limit:
            return ENOSPC
        return INVALID_FIELD if c.number >= limit else None

    def legal(self, c: Command) -> tuple[int, int] | None:
        good = {GROUP: self.good_group, CLASSIFIER: self.good_classifier, RULE: self.good_rule}.get(c.kind)
        if not (good or self.good_sa)(c):
            return INVALID_FIELD
        if c.kind == RULE:
            others = [r for n, r in self.of(RULE).items() if n != c.number and r[0] == c.data[0]]
            old = self.objects.get((RULE, c.number))
            if len(others) >= self.caps[0x800][3] and not (old and old[0] == c.data[0]):
                return ENOSPC
        return None

    def good_group(self, c: Command) -> bool:
        return all(p != c.data or n == c.number for n, p in self.of(GROUP).items())

    def good_classifier(self, c: Command) -> bool:
        chains = [(1,), (1, 2), (1, 3)] + [(1, ip, l4) for ip in (2, 3) for l4 in (4, 5, 6)]
        return (
            c.data in chains and len(c.data) <= self.caps[0x800][5] and set(c.data) <= set(self.caps[0x801])
        )

    def good_rule(self, c: Command) -> bool:
        group, classifier, priority, action, vq, length = c.data
        return (
            (GROUP, group) in self.objects
            and (CLASSIFIER, classifier) in self.objects
            and priority <= self.caps[0x800][4]
            and length == sum(LENGTHS[t] for t in self.objects[CLASSIFIER, classifier])
            and action in self.caps[0x802]
            and (action < 3 or self.enabled("ipsec"))
            and (action != 2 or (vq % 2 == 0 and vq < 16))
        )

    def good_sa(self, c: Command) -> bool:
        mode, spi, key, options, window, flip, _ = c.data
        allowed = dict(self.caps[0x804])
        if mode not in allowed or options & ~allowed[mode] or flip or spi == 0 or len(key) != 16:
            return False
        old = self.objects.get((c.kind, c.number))
        if c.kind == INB:
            if window > 64 or (options & 1 and not window):
                return False
            if old is None and any(spec[1] == spi for spec in self.of(INB).values()):
                return False
        return old is None or (old[:3] == c.data[:3] and not (old[3] ^ options) & 1)


CHAINS = [(1,), (1, 2), (1, 3), (1, 2, 6), (1, 3, 4), (1, 2, 5)]
BAD_CHAINS = [(2,), (1, 1), (1, 2, 3), (), (1, 7), (1, 2, 4, 5)]
#: A value of each capability for one in two, then others, legal and not.
CAP_VALUES: dict[int, list[Any]] = {
    0x800: [(2, 2, 3, 2, 9, 3), (3, 3, 2, 2, 255, 2), (0, 0, 0, 0, 0, 0), (65, 1, 1, 1, 1, 1)],
    0x801: [(1, 2, 3, 4, 5, 6), (1, 2, 6), (), (2, 1), (1, 7)],
    0x802: [(1, 2, 3, 4), (1, 2), (), (2, 1), (0,)],
    0x803: [(3, 3), (0, 3), (2, 0), (0, 0), (65537, 1)],
    0x804: [((1, 127), (2, 3)), ((1, 65),), (), ((2, 0), (1, 0)), ((2, 4),), ((5, 0),)],
    0x805: [None],
}
READY = [Command(LIST_USE, data=tuple(SUPPORTED))]
READY += [Command(CAP_SET, kind=cap, data=values[0]) for cap, values in CAP_VALUES.items() if cap < 0x805]


def choose(rng: random.Random, good: list[Any], bad: list[Any], chance: float = 0.06) -> Any:
    return rng.choice(bad if not good or rng.random() < chance else good)


def make_spec(rng: random.Random, model: Model, kind: int, number: int) -> Any:
    """Data of an object: mostly what the present state allows, each field now and then not."""
    if kind == GROUP:
        return rng.randrange(6)
    if kind == CLASSIFIER:
        return choose(rng, CHAINS, BAD_CHAINS, 0.2)
    if kind == RULE:
        classifiers = model.of(CLASSIFIER)
        classifier = choose(rng, sorted(classifiers), [0, 1, 4])
        lengths = [sum(LENGTHS.get(t, 0) for t in classifiers.get(classifier, ()))]
        return (
            choose(rng, sorted(model.of(GROUP)), [0, 1, 4]), classifier, choose(rng, [0, 9], [10, 255]),
            choose(rng, [1, 2, 3, 4], [0, 5]), choose(rng, [0, 2, 14], [1, 16]), choose(rng, lengths, [0, 14, 34]),
        )  # fmt: skip
    old = model.objects.get((kind, number), ())
    keep = bool(old) and rng.random() < 0.9
    options = choose(
        rng, [0, 0, 2, 64, 1] if not keep else [old[3], old[3] | 64, old[3] | 4], [1, 4, 128, 1 << 33]
    )
    return (
        old[0] if keep else choose(rng, [1, 1, 2], [0, 3, 5]), old[1] if keep else choose(rng, [5, 6, 7, 8], [0]),
        old[2] if keep else choose(rng, [b"k" * 16], [b"q" * 16, b"k" * 17]), options,
        choose(rng, [64, 32], [0, 65]), rng.random() < 0.04, rng.randrange(9),
    )  # fmt: skip


def make_command(rng: random.Random, model: Model) -> Command:
    group, member = choose(rng, [0], [1, 2, 0xFFFF], 0.02), choose(rng, [0], [1, 1 << 40], 0.02)
    shape = rng.random()
    if shape < 0.04:
        return Command(rng.choice([LIST_QUERY, CAP_LIST, 2, 0xE, 0x12, 0xFFFF]), group, member)
    if shape < 0.08:
        lists = [tuple(SUPPORTED)] * 8 + [(0, 1), (0, 1, 2), (1, 7, 8, 9, 10, 11, 12, 13)]
        return Command(LIST_USE, group, member, data=rng.choice(lists))
    if shape < 0.2:
        cap = rng.choice(sorted(CAP_VALUES))
        opcode = CAP_GET if cap == 0x805 or rng.random() < 0.2 else CAP_SET
        return Command(
            opcode, group, member, cap, data=choose(rng, CAP_VALUES[cap][:1], CAP_VALUES[cap], 0.5)
        )
    kind = choose(rng, [GROUP, CLASSIFIER, RULE, RULE, OUTB, INB], [0, 0x205, 0xFFFF], 0.02)
    opcode = rng.choice([CREATE, CREATE, CREATE, CREATE, MODIFY, MODIFY, QUERY, DESTROY])
    number = choose(rng, [0, 1, 2, 3], [4, 0xFFFFFFFF], 0.05)
    spec = make_spec(rng, model, kind, number) if kind in CAPS_OF else 0
    return Command(opcode, group, member, kind, number, spec, rng.choice([0, 0, 1, 2**64 - 1]))


def answer(device: Device, readable: bytes, room: int = 4096) -> tuple[tuple[int, int], bytes]:
    written = device.admin(readable, room)
    assert len(written) % 8 == 0
    status, qualifier = struct.unpack_from("<HH", written)
    return (status, qualifier), written[8:]


def compare(device: Device, model: Model) -> None:
    """Everything the device shows is what the model holds."""
    assert device.commands.used == {0: frozenset(model.used)}
    live = {kind: frozenset(model.of(kind)) for kind in CAPS_OF}
    assert device.objects.ids() == live
    assert set(device.capabilities.driver_values()) == set(model.caps)
    for cap, value in model.caps.items():
        shown = device.config.dialect.capabilities[cap].build(device.capabilities.driver(cap))
        expected = cap_of(cap, value)
        assert shown == expected
    if QUERY in model.used:
        for (kind, number), spec in model.objects.items():
            code, result = answer(device, encode(Command(QUERY, kind=kind, number=number)))
            expected = data_of(kind, spec)
            assert code == OK
            assert result == expected + bytes(-len(expected) % 8)
    context = device.context
    assert {n: sa.params.spi for n, sa in context.outbound.items()} == {
        n: s[1] for n, s in model.of(OUTB).items()
    }
    assert {key: n for key, (n, _) in context.inbound_by_spi.items()} == {
        (50, s[1]): n for n, s in model.of(INB).items()
    }
    assert set(context.filters.rules) == set(model.of(RULE))


def fresh() -> Device:
    device = Device(DeviceConfig(), lambda n: bytes(n))
    device.negotiate(device.offered_features)
    return device


def run(seed: int, length: int, ready: bool = True) -> tuple[Device, Model, Counter[Any]]:
    """``length`` commands, each judged; also how often each (opcode, type, answer) came up."""
    rng = random.Random(seed)
    device, model = fresh(), Model()
    seen: Counter[Any] = Counter()
    for command in READY if ready else []:
        assert answer(device, encode(command))[0] == model.step(command) == OK
    for _ in range(length):
        command = make_command(rng, model)
        code, _ = answer(device, encode(command))
        assert code == model.step(command), command
        compare(device, model)
        seen[command.opcode, command.kind, code] += 1
    return device, model, seen


seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, ready=st.booleans())
def test_any_sequence_of_commands_ends_as_the_model_says(seed: int, ready: bool) -> None:
    device, _, _ = run(seed, 40, ready)
    assert device.status == 15


def test_long_sequences_meet_every_kind_of_answer() -> None:
    """Also a check of the generator: what it never reaches, the test above does not show."""
    seen: Counter[Any] = Counter()
    for seed in range(10):
        seen += run(seed, 300, ready=seed % 2 == 0)[2]
    for kind in CAPS_OF:
        for opcode in (CREATE, MODIFY, QUERY, DESTROY):
            assert seen[opcode, kind, OK], (opcode, hex(kind))
        assert seen[CREATE, kind, EEXIST]
        assert seen[CREATE, kind, INVALID_FIELD]
        assert seen[MODIFY, kind, ENXIO]
        assert seen[CREATE, kind, INVALID_OPCODE]
    for kind in (GROUP, CLASSIFIER):
        assert seen[DESTROY, kind, EBUSY]
        assert seen[MODIFY, kind, EBUSY]
    for kind in (GROUP, CLASSIFIER, RULE):
        assert seen[CREATE, kind, ENOSPC]
    for cap in (0x800, 0x801, 0x802, 0x803, 0x804):
        assert all(seen[CAP_SET, cap, code] for code in (OK, EBUSY, INVALID_FIELD))


@given(seed=seeds, junk=st.lists(st.binary(max_size=300), max_size=10), room=st.integers(0, 80))
def test_junk_is_answered_and_what_fails_changes_nothing(seed: int, junk: list[bytes], room: int) -> None:
    device, _, _ = run(seed, 10)
    for data in junk:
        before = (device.objects.ids(), device.capabilities.driver_values(), dict(device.commands.used))
        code, _ = answer(device, data)
        after = (device.objects.ids(), device.capabilities.driver_values(), dict(device.commands.used))
        assert code == OK or before == after
        assert len(device.admin(data, room)) <= room


@given(seed=seeds)
def test_reset_is_like_a_new_device(seed: int) -> None:
    device, _, _ = run(seed, 20)
    device.negotiate(device.offered_features)
    compare(device, Model())
