"""Hostile commands of an owner's driver about its members: declared statuses only, and no trace of what failed.

An input is a script: each command is two bytes of length, then that many bytes, of which the first says which opcode
(or that the member's own driver does something), the second which member.
"""

from __future__ import annotations

import random
import struct
import sys
from functools import cache
from typing import Any

from harness import Target, fuzz

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.transport.loopback_members import LoopbackMember, LoopbackOwner
from virtio_ipsec.wire.device_parts import Part, parts_build, parts_parse
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Feature, mask

OPCODES = (0xA, 0xB, 0xC, 0xD, 0xE, 0xF, 0x10, 0x11, 0, 1)
MEMBER = len(OPCODES)
FEATURES = mask(
    Feature.F_VERSION_1,
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_MAC_ADDR,
    Feature.NET_F_MQ,
    Feature.NET_F_RSS,
)
EVERYTHING = struct.pack("<Q", 3 | 0xFF << 0xA)
SA = V14.sa.build(IpsecSa(mode=1, direction=1, spi=1, salt=bytes(4), cipher_algo=1, cipher_key=bytes(16)))


def frame(opcode: int, data: bytes, group: int, member: int) -> bytes:
    return struct.pack("<HH12xQ", opcode, group, member) + data


def fresh() -> LoopbackOwner:
    """An owner at work with a GET and a SET object for member 1, and a member that is negotiated."""
    config = DeviceConfig(max_queue_pairs=2, owner_managed=True)
    target = LoopbackOwner(Device(config, bytes), [LoopbackMember(Device(config, bytes)) for _ in range(2)])
    target.device.negotiate(config.offered_features)
    for group, opcodes in enumerate((struct.pack("<Q", 0x3F83), EVERYTHING)):
        target.device.admin(frame(1, opcodes, group, 0), 8)
    target.device.admin(frame(9, bytes(8) + b"\x02\x02", 0, 0), 8)
    for number in (0, 1):
        target.device.admin(frame(0xA, struct.pack("<HxxIQQ", 0, number, 0, number), 1, 1), 8)
    target.member(1).device.negotiate(FEATURES)
    return target


def state(link: LoopbackMember) -> Any:
    """Everything of a member that a failed command must leave alone."""
    device = link.device
    context = device.context
    return (
        link.state(),
        link.stopped,
        device.resets,
        device.objects.ids(),
        device.capabilities.driver_values(),
        (context.rx_filter, context.steering, context.guest_offloads),
        device.read_config(0, 28),
    )


def run(script: bytes) -> None:
    target = fresh()
    at = 0
    while at + 4 <= len(script):
        (length,) = struct.unpack_from("<H", script, at)
        what, member, data = (
            script[at + 2] % (MEMBER + 1),
            script[at + 3] % 4,
            script[at + 4 : at + 2 + length],
        )
        at += 2 + max(length, 2)
        if what == MEMBER:
            act(target.member(1), data)
            continue
        group = target.device.commands.group
        assert group is not None
        assert group.parts is not None
        before = [state(target.member(number)) for number in (1, 2)]
        objects, pending = (
            dict(group.parts._objects),
            {k: dict(v.parts) for k, v in group.parts._pending.items()},
        )
        answer = target.device.admin(frame(OPCODES[what], data, 1, member), 1 << 14)
        status, qualifier = struct.unpack_from("<HH", answer)
        assert status in frozenset(AdminStatus)
        assert qualifier in frozenset(AdminQualifier)
        after = [state(target.member(number)) for number in (1, 2)]
        touched = {1, 2} if status == 0 else set()
        assert all(before[number - 1] == after[number - 1] for number in {1, 2} - (touched & {member}))
        if status:
            assert len(answer) == 8
            assert group.parts._objects == objects
            assert {k: v.parts for k, v in group.parts._pending.items()} == pending
        elif OPCODES[what] == 0xF:
            parts_parse(answer[8:])


def act(link: LoopbackMember, data: bytes) -> None:
    """The member's own driver does something."""
    number = data[0] % 4 if data else 0
    if number == 0:
        link.write_status(0)
    elif number == 1:
        link.device.negotiate(FEATURES)
    elif number == 2 and link.device.is_operating:
        link.device.control(data[1:], 1)
    else:
        link.device.negotiate(link.device.offered_features)


@cache
def all_parts() -> tuple[Part, ...]:
    """Those of a member at work."""
    answer = fresh().device.admin(frame(0xF, struct.pack("<HxxIB7x", 0, 0, 1), 1, 1), 1 << 14)
    return parts_parse(answer[8:])


def command(rng: random.Random) -> bytes:
    number = rng.randrange(MEMBER + 1)
    header = struct.pack("<HxxI", rng.choice((0, 0, 0, 0x203, 0x204)), rng.choice((0, 1, 1, 2)))
    if number == MEMBER:
        return bytes((number, 0, rng.randrange(4))) + rng.choice((b"\x00\x00\x01", b"\x02\x00\x07\x00", b""))
    opcode = OPCODES[number]
    if opcode in (0xA, 0xC):
        data = header + bytes(8) + rng.choice((b"\0", b"\1", b"\2", SA))
    elif opcode in (0xE, 0xF):
        data = header + bytes((rng.randrange(4),)) + bytes(7)
    elif opcode == 0x10:
        parts = all_parts()
        data = struct.pack("<HxxI", 0, 1) + parts_build(rng.sample(parts, rng.randrange(1, len(parts))))
    elif opcode == 0x11:
        data = bytes((rng.choice((0, 1, 1, 2)),))
    else:
        data = EVERYTHING if opcode == 1 else header
    return bytes((number, rng.choice((1, 1, 1, 1, 2, 3)))) + data


def script(rng: random.Random) -> bytes:
    # Mostly stopped, so that parts are looked at.
    commands = [bytes((7, 1, 1))] if rng.randrange(3) else []
    commands += [command(rng) for _ in range(rng.randrange(1, 10))]
    return b"".join(struct.pack("<H", len(each)) + each for each in commands)


TARGETS = (Target("members", seed=script, run=run, declared=()),)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
