"""Device parts of a member: read, set and in force again, byte by byte as a driver of the owner packs them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.loopback_members import LoopbackMember, LoopbackOwner
from virtio_ipsec.wire.device_parts import DevPartsCap, Part, parts_build, parts_parse
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.numbers import Feature, mask

LIST_QUERY, LIST_USE, CAP_GET, CAP_SET = 0, 1, 8, 9
CREATE, QUERY, MODIFY, DESTROY = 0xA, 0xB, 0xC, 0xD
METADATA, PARTS_GET, PARTS_SET, MODE_SET = 0xE, 0xF, 0x10, 0x11
OK, BAD_OPCODE, BAD_FIELD, BAD_MEMBER = (0, 0), (22, 2), (22, 3), (22, 5)
TRY_AGAIN = (11, 7)
NO_OBJECT, EXISTS, BUSY, NO_SPACE, NO_MEMORY = (6, 3), (17, 3), (16, 3), (28, 6), (12, 6)
DEV_FEATURES, DRV_FEATURES, COMMON, STATUS, VQ, VQ_NOTIFY, CVQ = (
    0x100,
    0x101,
    0x102,
    0x103,
    0x104,
    0x105,
    0x200,
)
FEATURES = mask(
    Feature.F_VERSION_1,
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_MAC_ADDR,
    Feature.NET_F_MQ,
    Feature.NET_F_RSS,
    Feature.NET_F_HASH_REPORT,
)
GETTER, SETTER = 0, 1
NONE = bytes(8)


class Owner:
    """An owner with two members at work, all commands in use, a GET object 0 and a SET object 1 for member 1."""

    def __init__(self, guest_class: Any, **settings: Any) -> None:
        config = DeviceConfig(max_queue_pairs=2, **settings)
        self.target = LoopbackOwner(
            Device(config, bytes), [LoopbackMember(Device(config, bytes)) for _ in range(2)]
        )
        self.guest = guest_class(self.target.device)
        self.target.device.negotiate(config.offered_features)
        self.guest.use_everything()
        self.list_code = self.guest.send(LIST_USE, self.guest.send(LIST_QUERY, group=1).result, group=1).code
        self.member(1).device.negotiate(FEATURES)

    def ready(self) -> Owner:
        self.guest.enable(0)
        assert self.object(CREATE, 0, bytes(8)) == OK
        assert self.object(CREATE, 1, b"\x01" + bytes(7)) == OK
        return self

    def member(self, number: int) -> LoopbackMember:
        return self.target.member(number)

    def send(self, opcode: int, data: bytes = b"", member: int = 1, room: int = 1 << 16) -> Any:
        return self.guest.send(opcode, data, group=1, member=member, room=room)

    def object(self, opcode: int, number: int, data: bytes = b"", member: int = 1) -> tuple[int, int]:
        head = struct.pack("<HxxI", 0, number) + (b"" if opcode == DESTROY else bytes(8))
        code: tuple[int, int] = self.send(opcode, head + data, member).code
        return code

    def metadata(self, kind: int, member: int = 1, number: int = GETTER, room: int = 1 << 16) -> Any:
        return self.send(METADATA, struct.pack("<HxxIB7x", 0, number, kind), member, room)

    def raw_get(self, kind: int = 1, headers: bytes = b"", member: int = 1, number: int = GETTER) -> Any:
        return self.send(PARTS_GET, struct.pack("<HxxIB7x", 0, number, kind) + headers, member)

    def parts(self) -> dict[tuple[int, bytes], Part]:
        reply = self.raw_get()
        assert reply.code == OK
        return {part.key: part for part in parts_parse(reply.result)}

    def set(self, *parts: Part, member: int = 1, number: int = SETTER) -> tuple[int, int]:
        code: tuple[int, int] = self.send(
            PARTS_SET, struct.pack("<HxxI", 0, number) + parts_build(parts), member
        ).code
        return code

    def mode(self, flags: int, member: int = 1) -> tuple[int, int]:
        code: tuple[int, int] = self.send(MODE_SET, bytes((flags,)), member).code
        return code


@pytest.fixture
def fresh(make: Callable[..., Any]) -> Callable[..., Owner]:
    guest_class = type(make())
    return lambda **settings: Owner(guest_class, **settings)


@pytest.fixture
def owner(fresh: Callable[..., Owner]) -> Owner:
    return fresh().ready()


def test_the_eight_commands_are_there_together_with_the_capability(fresh: Any) -> None:
    it = fresh()
    assert it.list_code == OK
    assert it.send(LIST_QUERY).result == struct.pack("<Q", 3 | 0xFF << 0xA)
    assert it.guest.send(LIST_QUERY).result == struct.pack("<Q", 0x3F83)
    assert it.guest.cap_get(0).result[:2] == b"\x40\x40"
    assert it.guest.send(7).result[0] & 1


def test_a_dialect_without_modify_and_query_has_no_parts(fresh: Any) -> None:
    it = fresh(dialect=RFC_2025_01)
    assert it.send(LIST_QUERY).result == struct.pack("<Q", 3)
    assert not it.guest.send(7).result[0] & 1


def test_a_function_without_members_has_no_parts(make: Any) -> None:
    guest = make()
    assert not guest.send(7).result[0] & 1
    assert guest.cap_get(0).code == NO_OBJECT


def test_objects_are_limited_by_the_capability_of_the_owners_driver(fresh: Any) -> None:
    it = fresh(dev_parts_limits=DevPartsCap(3, 2))
    assert it.object(CREATE, 0, bytes(8)) == BAD_OPCODE
    assert it.guest.cap_set(0, b"\x04\x00").code == BAD_FIELD
    assert it.guest.cap_set(0, b"\x00\x00").code == OK
    assert it.object(CREATE, 0, bytes(8)) == BAD_OPCODE
    assert it.guest.cap_set(0, b"\x01\x02").code == OK
    assert it.object(CREATE, 3, bytes(8)) == BAD_FIELD
    assert it.object(CREATE, 2, b"\x02" + bytes(7)) == BAD_FIELD
    assert it.object(CREATE, 2, bytes(8)) == OK
    assert it.object(CREATE, 2, bytes(8), member=2) == EXISTS
    assert it.object(CREATE, 0, bytes(8), member=2) == NO_SPACE
    assert it.object(CREATE, 0, b"\x01", member=2) == OK
    assert it.guest.cap_set(0, b"\x01\x02").code == BUSY
    assert it.object(MODIFY, 0, bytes(8), member=2) == NO_SPACE
    assert it.object(MODIFY, 2, b"\x01" + bytes(7)) == OK
    assert it.object(MODIFY, 2, b"\x01" + bytes(7)) == OK
    assert it.object(MODIFY, 2, b"\x07" + bytes(7)) == BAD_FIELD
    head = struct.pack("<HxxIQ", 0, 2, 0)
    assert it.send(QUERY, head).result == b"\x01" + bytes(7)
    assert it.send(QUERY, head, member=2).code == NO_OBJECT
    assert it.object(DESTROY, 2, member=2) == NO_OBJECT
    assert it.object(DESTROY, 2) == OK
    assert it.object(DESTROY, 2) == NO_OBJECT
    assert it.object(DESTROY, 0, member=2) == OK
    assert it.guest.cap_set(0, b"\x03\x02").code == OK


def test_security_associations_of_members_are_not_for_the_owner(owner: Owner, layouts: Any) -> None:
    for opcode in (CREATE, QUERY, MODIFY, DESTROY):
        for kind in (0x200, 0x203, 0x204):
            data = struct.pack("<HxxIQ", kind, 0, 0) + layouts.sa()
            assert owner.send(opcode, data).code == BAD_FIELD


def test_the_parts_of_a_member_in_their_order(owner: Owner) -> None:
    parts = list(owner.parts().values())
    kinds = [part.part_type for part in parts]
    assert kinds == sorted(kinds)
    assert kinds[:5] == [DEV_FEATURES, DRV_FEATURES, COMMON, COMMON, STATUS]
    assert kinds.count(VQ) == kinds.count(VQ_NOTIFY) == 6
    assert kinds.count(CVQ) == 10
    device = owner.member(1).device
    assert (parts[0].value, parts[0].flags) == (device.offered_features.to_bytes(16, "little"), 1)
    assert (parts[1].value, parts[1].flags) == (FEATURES.to_bytes(16, "little"), 0)
    assert parts[4].value == bytes((device.status,))
    assert owner.raw_get().result == owner.raw_get().result


def test_metadata_says_how_much_there_is(owner: Owner) -> None:
    parts = owner.parts()
    size = len(parts_build(parts.values()))
    assert owner.metadata(0).result == struct.pack("<II", size + (1 << 16), 0)  # it may still grow
    assert owner.mode(1) == OK
    assert owner.metadata(0).result == struct.pack("<II", size, 0)
    assert owner.metadata(1).result == struct.pack("<II", len(parts), 0)
    listed = owner.metadata(2).result
    assert listed[:8] == struct.pack("<II", len(parts), 0)
    assert [struct.unpack_from("<H", listed, 8 + 16 * at)[0] for at in range(len(parts))] == [
        kind for kind, _ in parts
    ]
    assert owner.metadata(3).code == BAD_FIELD
    assert owner.metadata(0, room=15).code == NO_MEMORY
    assert owner.metadata(0, room=16).code == OK
    assert owner.metadata(2, room=len(listed)).code == NO_MEMORY
    assert owner.metadata(2, room=len(listed) + 8).code == OK


def test_selected_parts_come_in_the_order_of_the_table(owner: Owner) -> None:
    def header(kind: int, selector: bytes = NONE) -> bytes:
        return struct.pack("<HBB8sI", kind, 0, 0, selector, 0)

    wanted = header(VQ, b"\x03" + bytes(7)) + header(STATUS) + header(0x106) + header(DRV_FEATURES)
    found = parts_parse(owner.raw_get(0, wanted).result)
    assert [part.key for part in found] == [(DRV_FEATURES, NONE), (STATUS, NONE), (VQ, b"\x03" + bytes(7))]
    assert owner.raw_get(0).result == b""
    assert owner.raw_get(2).code == BAD_FIELD


def test_commands_want_the_right_object_of_the_right_member(owner: Owner) -> None:
    assert owner.mode(1) == OK
    status = owner.parts()[STATUS, NONE]
    assert owner.metadata(0, number=SETTER).code == BAD_FIELD
    assert owner.raw_get(number=SETTER).code == BAD_FIELD
    assert owner.set(status, number=GETTER) == BAD_FIELD
    for member, code in ((0, BAD_MEMBER), (2, NO_OBJECT), (3, BAD_MEMBER)):
        assert owner.metadata(0, member=member).code == code
        assert owner.raw_get(member=member).code == code
        assert owner.set(status, member=member) == code
    assert owner.mode(1, member=3) == BAD_MEMBER
    assert owner.send(METADATA, struct.pack("<HxxIB7x", 0x203, 0, 0)).code == BAD_FIELD
    assert owner.mode(2) == owner.mode(3) == BAD_FIELD


def test_parts_are_set_while_stopped_and_in_force_when_resumed(owner: Owner) -> None:
    vf = owner.member(1)
    before = owner.parts()
    promisc = before[CVQ, bytes(8)]
    assert owner.set(promisc) == BUSY
    assert owner.mode(1) == owner.mode(1) == OK
    new = Part(CVQ, b"\x01", 0, bytes(8))
    assert owner.set(new) == owner.set(new) == OK
    assert owner.parts()[CVQ, bytes(8)] == new
    assert not vf.device.context.rx_filter.promisc
    assert owner.mode(0) == owner.mode(0) == OK
    assert vf.device.context.rx_filter.promisc
    assert owner.parts() == before | {new.key: new}


def test_a_state_goes_over_to_another_member(owner: Owner) -> None:
    vf = owner.member(1)
    control = vf.device.controls
    for command in (
        b"\x00\x01\x01",
        b"\x00\x04\x01",
        b"\x01\x01\x02\x00\x00\x00\x00\x77",
        b"\x01\x00" + struct.pack("<I6sI6s", 1, b"\x02\0\0\0\0\x09", 1, b"\x01\0\x5e\0\0\x01"),
        b"\x02\x00\x05\x00",
        b"\x02\x00\xff\x0f",
        b"\x04\x02" + struct.pack("<I8xB", 0x3F, 4) + b"keys",
        b"\x04\x00\x02\x00",
    ):
        control.execute(command)
    parts = owner.parts()
    assert parts[CVQ, b"\x02" + bytes(7)].value == b"\x05\x00\xff\x0f"
    assert parts[CVQ, b"\x04\x00" + bytes(6)].value == b"\x02\x00"
    other = owner.member(2)
    assert owner.object(CREATE, 2, b"\x01", member=2) == OK
    assert owner.object(CREATE, 3, b"\x00", member=2) == OK
    assert owner.mode(1, member=2) == OK
    assert owner.set(*parts.values(), member=2, number=2) == OK
    assert other.device.status == 0
    assert owner.mode(0, member=2) == OK
    assert other.device.status == vf.device.status
    assert other.device.driver_features == FEATURES
    assert other.device.context.rx_filter == vf.device.context.rx_filter
    assert other.device.context.steering == vf.device.context.steering
    assert parts_parse(owner.raw_get(member=2, number=3).result) == tuple(parts.values())
    assert other.read_config(0, 6) == b"\x02\0\0\0\0\x77"


def test_rss_goes_over_as_well(owner: Owner) -> None:
    vf = owner.member(1)
    table = struct.pack("<4H", 1, 0, 1, 1)
    vf.device.controls.execute(
        b"\x04\x01" + struct.pack("<IHH", 0x3F, 3, 0) + table + struct.pack("<HB", 2, 0)
    )
    parts = owner.parts()
    assert (CVQ, b"\x04\x00" + bytes(6)) not in parts
    assert owner.mode(1) == OK
    assert owner.set(*parts.values()) == OK
    steering = vf.device.context.steering
    assert owner.mode(0) == OK
    assert vf.device.context.steering == steering
    assert steering.rss


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([Part(STATUS, b"\x0f\x00")], "length"),
        ([Part(STATUS, b"")], "length"),
        ([Part(DRV_FEATURES, bytes(8))], "length"),
        ([Part(VQ, bytes(31), 0, NONE)], "length"),
        ([Part(STATUS, b"\x0f"), Part(STATUS, b"\x0f")], "twice"),
        ([Part(DEV_FEATURES, bytes(16))], "other features"),
        ([Part(DEV_FEATURES, bytes(16), 1)], "other features, though optional"),
        ([Part(DRV_FEATURES, (FEATURES | 1 << 127).to_bytes(16, "little"))], "not offered"),
        ([Part(DRV_FEATURES, bytes(16))], "DRIVER_OK without VERSION_1"),
        ([Part(STATUS, b"\x04")], "DRIVER_OK alone"),
        ([Part(STATUS, b"\x10")], "no such bit"),
        ([Part(COMMON, b"\x63\0", 0, b"\x12" + bytes(7))], "num_queues is the device's"),
        ([Part(COMMON, b"\x63\0", 0, b"\x13" + bytes(7))], "no such field"),
        ([Part(VQ, bytes(32), 0, b"\x06" + bytes(7))], "no such queue"),
        ([Part(VQ, struct.pack("<HHH26x", 0x8000, 0xFFFF, 0), 0, NONE)], "too large"),
        ([Part(VQ, struct.pack("<HHH26x", 0, 0xFFFF, 1), 0, NONE)], "enabled without entries"),
        ([Part(VQ, struct.pack("<HHH26x", 16, 0xFFFF, 2), 0, NONE)], "enabled is 0 or 1"),
        ([Part(VQ_NOTIFY, struct.pack("<HH4x", 9, 0), 0, NONE)], "notify_off is the device's"),
        ([Part(CVQ, b"\x02", 0, bytes(8))], "a switch is 0 or 1"),
        ([Part(CVQ, b"", 0, bytes(8))], "a switch is a byte"),
        ([Part(CVQ, b"\x01\0\0\0\0\x01", 0, b"\x01\x01" + bytes(6))], "a group address"),
        ([Part(CVQ, b"\xff\xff", 0, b"\x02" + bytes(7))], "no such VLAN"),
        ([Part(CVQ, b"\x09\x00" * 4097, 0, b"\x02" + bytes(7))], "more VLANs than there are"),
        ([Part(CVQ, b"\x09", 0, b"\x02" + bytes(7))], "half a VLAN"),
        ([Part(CVQ, b"\x09\x00", 0, b"\x04" + bytes(7))], "too many pairs"),
        ([Part(CVQ, b"", 0, b"\x03" + bytes(7))], "ANNOUNCE_ACK has no part"),
        ([Part(0x106, b"")], "no such part"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_member_cannot_be_is_refused_and_changes_nothing(
    owner: Owner, wrong: list[Part], why: str
) -> None:
    assert owner.mode(1) == OK
    before = owner.parts()
    good = Part(CVQ, b"\x01", 0, bytes(8))
    assert owner.set(good, *wrong) == BAD_FIELD or good.key in {part.key for part in wrong}
    assert owner.set(*wrong) == BAD_FIELD, why
    assert owner.parts() == before
    assert owner.mode(0) == OK
    assert owner.parts() == before


def test_an_unknown_part_that_is_optional_is_ignored(owner: Owner) -> None:
    assert owner.mode(1) == OK
    before = owner.parts()
    assert owner.set(Part(0x106, b"whatever", 1)) == OK
    assert owner.parts() == before


def test_a_part_longer_than_any_is_refused(owner: Owner) -> None:
    assert owner.mode(1) == OK
    data = struct.pack("<HxxI", 0, SETTER) + struct.pack("<HBB8sI", STATUS, 0, 0, NONE, 0xFFFF_FFFF)
    assert owner.send(PARTS_SET, data).code == BAD_FIELD


def test_a_reset_of_the_member_forgets_what_was_set(owner: Owner) -> None:
    vf = owner.member(1)
    assert owner.mode(1) == OK
    assert owner.set(Part(CVQ, b"\x01", 0, bytes(8))) == OK
    vf.write_status(0)
    parts = owner.parts()
    assert parts[STATUS, NONE].value == b"\0"
    assert parts[DRV_FEATURES, NONE].value == bytes(16)
    assert CVQ not in {kind for kind, _ in parts}
    assert owner.mode(0) == OK
    assert vf.device.status == 0


def test_a_member_that_vanished_takes_objects_and_mode_with_it(owner: Owner) -> None:
    assert owner.mode(1) == OK
    owner.target.enable_vfs(None)
    owner.target.enable_vfs(2)
    assert not owner.member(1).stopped
    assert owner.raw_get().code == NO_OBJECT
    assert owner.object(CREATE, 0, bytes(8), member=2) == OK
    assert owner.guest.cap_set(0, b"\x01\x01").code == BUSY
    owner.target.enable_vfs(None)
    assert owner.guest.cap_set(0, b"\x01\x01").code == OK


def test_a_member_with_objects_is_not_read_for_no_part_holds_them(
    owner: Owner, make: Any, layouts: Any
) -> None:
    vf = owner.member(1)
    vf.device.negotiate(vf.device.offered_features)
    inside = type(owner.guest)(vf.device)
    inside.use_everything()
    assert owner.raw_get().code == OK
    inside.enable(0x803, 0x804)
    assert inside.create(0x203, 0, layouts.sa()) == OK
    assert owner.raw_get().code == BUSY
    assert owner.mode(1) == OK
    assert owner.set(Part(CVQ, b"\x01", 0, bytes(8))) == BUSY
    assert owner.mode(0) == OK
    assert inside.query(0x203, 0).result[:196] == layouts.sa()


def test_objects_made_after_a_part_was_set_are_not_lost(owner: Owner, layouts: Any) -> None:
    vf = owner.member(1)
    vf.device.negotiate(vf.device.offered_features)
    inside = type(owner.guest)(vf.device)
    inside.use_everything()
    assert owner.mode(1) == OK
    assert owner.set(Part(CVQ, b"\x01", 0, bytes(8))) == OK
    inside.enable(0x803, 0x804)
    assert inside.create(0x203, 0, layouts.sa()) == OK
    assert owner.mode(0) == BUSY
    assert vf.stopped
    assert inside.query(0x203, 0).code == OK


def test_a_member_that_does_not_answer_is_to_be_tried_again(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_arguments: object) -> None:
        raise TransportError("does not answer")

    for name in ("stop", "state"):
        monkeypatch.setattr(owner.member(1), name, silent)
    assert owner.mode(1) == TRY_AGAIN
    assert owner.raw_get().code == TRY_AGAIN
    assert owner.mode(0) == OK
    assert owner.mode(1, member=2) == OK


def test_what_waits_for_a_resumption_that_was_not_answered_waits_on(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def resume(state: object = None) -> None:
        asked.append(state)
        if len(asked) == 1:
            raise TransportError("does not answer")

    assert owner.mode(1) == OK
    assert owner.set(Part(CVQ, b"\x01", 0, bytes(8))) == OK
    monkeypatch.setattr(owner.member(1), "resume", resume)
    assert owner.mode(0) == TRY_AGAIN
    assert owner.mode(0) == OK
    assert asked[0] is not None
    assert asked[0] == asked[1]


def test_a_reset_of_the_owner_forgets_its_objects_and_leaves_members_stopped(owner: Owner) -> None:
    assert owner.mode(1) == OK
    owner.target.device.negotiate(owner.target.device.offered_features)
    owner.guest.use_everything()
    assert owner.guest.send(LIST_USE, owner.send(LIST_QUERY).result, group=1).code == OK
    assert owner.raw_get().code == NO_OBJECT
    assert owner.member(1).stopped
    assert owner.mode(0) == OK


def test_any_bytes_end_in_an_answer_and_leave_the_other_member_alone(owner: Owner) -> None:
    rng = Random(5)
    other = owner.member(2)
    other.device.negotiate(FEATURES)
    before = other.device.status, other.device.resets, other.device.context.rx_filter
    template = struct.pack("<HxxI", 0, 1) + parts_build(owner.parts().values())
    for _ in range(600):
        opcode = rng.choice((CREATE, QUERY, MODIFY, DESTROY, METADATA, PARTS_GET, PARTS_SET, MODE_SET))
        data = bytearray(rng.choice((template, template, rng.randbytes(rng.randrange(64)))))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        owner.send(opcode, bytes(data), member=rng.choice((0, 1, 1, 1, 3)))
    assert (other.device.status, other.device.resets, other.device.context.rx_filter) == before
    assert not other.stopped
