"""Hostile administration and control commands: only declared statuses, and no trace of what failed.

An input is a script of commands to one device: each is two bytes of length, then that many bytes, of which the
first says what it is (administration, control queue, configuration read, reset and renegotiation).
"""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

from harness import Target, fuzz

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.admin import CAP_COMMAND, OBJECT_COMMAND, CapCommand, ObjectCommand, id_bitmap_build
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import CapId, Direction, Opcode, ResourceType

ADMIN, CONTROL, CONFIG, RESET = range(4)
ROOM = 1024
OPCODES = (0, 1, 7, 8, 9, 10, 11, 12, 13)
STATUSES = frozenset(AdminStatus)
QUALIFIERS = frozenset(AdminQualifier)


def fresh(dialect: Dialect) -> Device:
    """A small device with every command and capability in use."""
    device = Device(DeviceConfig(dialect=dialect), lambda n: bytes(n))
    device.negotiate(device.offered_features)
    device.admin(frame(Opcode.LIST_USE, id_bitmap_build(device.commands.supported[0])), 8)
    for cap in sorted(device.capabilities.listed()):
        value = device.capabilities.get(cap)
        device.admin(frame(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(cap, value))), 8)
    return device


def frame(opcode: int, data: bytes) -> bytes:
    return struct.pack("<HH12xQ", opcode, 0, 0) + data


def state(device: Device) -> Any:
    """Everything that a failed command must leave alone."""
    context = device.context
    return (
        device.status,
        device.objects.ids(),
        [bytes(record.data) for records in device.objects._records.values() for record in records.values()],
        dict(device.objects._dependants),
        device.capabilities.driver_values(),
        dict(device.commands.used),
        {number: sa.params for number, sa in context.outbound.items()},
        {key: number for key, (number, _) in context.inbound_by_spi.items()},
        (context.rx_filter, context.steering, context.guest_offloads),
        (context.filters.groups | context.filters.classifiers, dict(context.filters.rules)),
        device.read_config(0, 28),
    )


def check(device: Device, kind: int, data: bytes) -> None:
    """Run one command and look at what it did."""
    before = state(device)
    if kind == ADMIN:
        answer = device.admin(data, ROOM)
        status, qualifier = struct.unpack_from("<HH", answer)
        assert len(answer) % 8 == 0
        assert status in STATUSES
        assert qualifier in QUALIFIERS
        assert (status == 0) == (qualifier == 0)
        failed = status != 0
        assert len(answer) == 8 or not failed
    else:
        (ack,) = device.control(data, 1)
        assert ack in (0, 1)
        failed = ack == 1
    if failed:
        assert state(device) == before
    ids = device.objects.ids()
    assert ids[ResourceType.NET_IPSEC_OUTB_SA] == set(device.context.outbound)
    assert ids[ResourceType.NET_IPSEC_INB_SA] == set(device.context.inbound)
    assert len(device.context.inbound_by_spi) == len(device.context.inbound)
    assert ids[ResourceType.NET_FF_RULE] == set(device.context.filters.rules)
    for rule in device.context.filters.rules.values():
        assert rule.group_id in device.context.filters.groups
        assert rule.classifier_id in device.context.filters.classifiers


def run(dialect: Dialect, script: bytes) -> None:
    device = fresh(dialect)
    at = 0
    while at + 3 <= len(script):
        (length,) = struct.unpack_from("<H", script, at)
        kind, data = script[at + 2] % 4, script[at + 3 : at + 2 + length]
        at += 2 + max(length, 1)
        if kind in (ADMIN, CONTROL):
            check(device, kind, data)
        elif kind == CONFIG:
            offset = int.from_bytes(data[:4], "little")
            assert len(device.read_config(offset, 8)) == 8
        else:
            device.negotiate(device.offered_features)
            assert not any(device.objects.ids().values())
            device = fresh(dialect)
    device.reset()
    assert not device.context.outbound
    assert not device.context.inbound


def sa(rng: random.Random, kind: int, dialect: Dialect) -> bytes:
    inbound = kind == ResourceType.NET_IPSEC_INB_SA
    value = IpsecSa(
        mode=rng.choice((1, 2)),
        direction=Direction.INBOUND if inbound else Direction.OUTBOUND,
        spi=rng.randrange(1, 6),
        options=rng.choice((0, 0, 1, 2)),
        param=dialect.tunnel_param.parse(bytes([rng.choice((1, 2))])),
        replay_win_sz=64,
        cipher_algo=1,
        cipher_key=rng.randbytes(16),
    )
    return dialect.sa.build(value)


def object_data(rng: random.Random, kind: int, dialect: Dialect) -> bytes:
    if kind in (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA):
        return sa(rng, kind, dialect)
    ethernet, ipv4 = Selector(1, 0, b"\xff" * 14), Selector(2, 0, b"\xff" * 20)
    value: Any = FfGroup(rng.randrange(4))
    if kind == ResourceType.NET_FF_CLASSIFIER:
        value = FfClassifier(rng.choice(((ethernet,), (ethernet, ipv4))))
    elif kind == ResourceType.NET_FF_RULE:
        value = FfRule(
            0, 0, rng.randrange(9), rng.randrange(1, 5), 2 * rng.randrange(8), bytes(rng.choice((14, 34)))
        )
    return dialect.objects[kind].build(value)


def control(rng: random.Random) -> bytes:
    shapes = (
        bytes((0, rng.randrange(6), rng.randrange(2))),
        bytes((1, 0)) + struct.pack("<I6sI6s", 1, b"\x02" * 6, 1, b"\x03" * 6),
        bytes((1, 1)) + b"\x02" + rng.randbytes(5),
        bytes((2, rng.randrange(2))) + struct.pack("<H", rng.randrange(4096)),
        bytes((3, 0)),
        bytes((4, 0)) + struct.pack("<H", rng.randrange(1, 9)),
        bytes((4, 1)) + struct.pack("<IHHHHHB", 0x3F, 1, 0, 0, 1, 2, 40) + rng.randbytes(40),
        bytes((4, 2)) + struct.pack("<I8xB", 0x3F, 40) + rng.randbytes(40),
        bytes((5, 0)) + struct.pack("<Q", 2),
    )
    return rng.choice(shapes)


def admin(rng: random.Random, dialect: Dialect) -> bytes:
    opcode = rng.choice((*OPCODES, 10, 10, 10, 13))
    kind, number = rng.choice((0x200, 0x201, 0x202, 0x203, 0x204)), rng.choice((0, 0, 1, 2))
    if opcode in (8, 9):
        cap = rng.choice(list(CapId)[1:])
        value = fresh(dialect).capabilities.get(cap) if opcode == 9 else b""
        return frame(opcode, CAP_COMMAND.build(CapCommand(cap, value)))
    if opcode >= 10:
        data = object_data(rng, kind, dialect) if opcode in (10, 12) else b""
        return frame(opcode, OBJECT_COMMAND.build(ObjectCommand(kind, number, 0, data)))
    return frame(opcode, id_bitmap_build(OPCODES) if opcode == 1 else b"")


def script(rng: random.Random, dialect: Dialect) -> bytes:
    out = b""
    for _ in range(rng.randrange(1, 12)):
        kind = rng.choice((ADMIN,) * 8 + (CONTROL,) * 3 + (CONFIG, RESET))
        data = admin(rng, dialect) if kind == ADMIN else control(rng) if kind == CONTROL else b"\x01"
        out += struct.pack("<HB", len(data) + 1, kind) + data
    return out


TARGETS = tuple(
    Target(
        dialect.name,
        seed=lambda rng, d=dialect: script(rng, d),
        run=lambda data, d=dialect: run(d, data),
        declared=(),
    )  # type: ignore[misc]
    for dialect in (V14, RFC_2025_01)
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
