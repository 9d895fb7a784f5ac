"""The SR-IOV group: which members there are, who answers for them, and the profile that lets the owner in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import ConfigError, InvalidGroup, InvalidMember, PacketError, TransportError

OUTB, INB = 0x203, 0x204
LIST_QUERY, LIST_USE = 0, 1
CREATE, QUERY, MODIFY, DESTROY = 0xA, 0xB, 0xC, 0xD
OK, INVALID_OPCODE, INVALID_FIELD = (0, 0), (22, 2), (22, 3)
INVALID_GROUP, INVALID_MEMBER, NO_OBJECT, EXISTS = (22, 4), (22, 5), (6, 3), (17, 3)


class Vf:
    """A member without a transport."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.life: list[str] = []
        self.entered = 0
        self.stuck = 0
        self.is_shy = False

    def exclusive(self) -> AbstractContextManager[object]:
        self.entered += 1
        return nullcontext()

    def appear(self) -> None:
        if self.is_shy:
            raise TransportError("shy")
        self.life.append("appear")

    def leave(self) -> None:
        """In one thread there is nothing to begin with."""

    def vanish(self) -> None:
        if self.stuck:
            self.stuck -= 1
            raise TransportError("stuck")
        self.device.reset()
        self.life.append("vanish")


class Owner:
    """An owner with ``count`` virtual functions, VF Enable clear."""

    def __init__(self, make: Callable[..., Any], count: int, **settings: Any) -> None:
        self.members = [make() for _ in range(count)]
        self.vfs = [Vf(guest.device) for guest in self.members]
        self.group = SriovGroup(self.vfs)
        self.guest = make(DeviceConfig(**settings), ready=False)
        self.guest.device.members = self.group
        self.guest.device.negotiate(self.guest.device.offered_features)

    def list(self) -> tuple[int, int]:
        """LIST_USE of all that the group has."""
        code: tuple[int, int] = self.send(LIST_USE, self.send(LIST_QUERY).result).code
        return code

    def send(self, opcode: int, data: bytes = b"", member: int = 0) -> Any:
        return self.guest.send(opcode, data, group=1, member=member)

    def object(self, opcode: int, kind: int, number: int, data: bytes = b"", member: int = 1) -> Any:
        head = struct.pack("<HxxI", kind, number) + (b"" if opcode == DESTROY else bytes(8))
        return self.send(opcode, head + data, member)


@pytest.fixture
def owner(make: Callable[..., Any]) -> Callable[..., Owner]:
    def build(count: int = 2, **settings: Any) -> Owner:
        return Owner(make, count, **settings)

    return build


def test_without_vf_enable_every_command_of_the_group_is_for_no_group(owner: Any) -> None:
    it = owner()
    for opcode in range(0x12):
        for member in (0, 1, 2, 3):
            assert it.send(opcode, member=member).code == INVALID_GROUP
    it.group.enable(2)
    assert it.list() == OK
    it.group.disable()
    assert it.send(LIST_QUERY).code == INVALID_GROUP
    assert it.guest.send(LIST_QUERY).code == OK


def test_the_list_commands_of_the_group_look_at_no_member_id(owner: Any) -> None:
    it = owner()
    it.group.enable(1)
    for member in (0, 1, 77):
        assert it.send(LIST_QUERY, member=member).result == struct.pack("<Q", 3)
    assert it.send(LIST_USE, struct.pack("<Q", 2)).code == OK
    assert it.send(LIST_QUERY).code == INVALID_OPCODE
    assert it.guest.send(LIST_QUERY).code == OK
    assert it.guest.send(LIST_QUERY, group=2).code == INVALID_GROUP


def test_members_are_numbered_from_1_to_num_vfs(owner: Any) -> None:
    it = owner(3, owner_managed=True)
    it.group.enable(2)
    assert it.list() == OK
    for member, code in ((0, INVALID_MEMBER), (1, NO_OBJECT), (2, NO_OBJECT), (3, INVALID_MEMBER)):
        assert it.object(DESTROY, OUTB, 0, member=member).code == code
    assert it.object(DESTROY, OUTB, 0, member=1 << 63).code == INVALID_MEMBER
    assert it.object(0x12, OUTB, 0, member=9).code == INVALID_OPCODE


def test_objects_of_members_are_their_own(owner: Any, layouts: Any) -> None:
    it = owner()
    it.group.enable(2)
    assert it.list() == OK
    assert it.members[0].create(OUTB, 0, layouts.sa()) == OK
    for opcode in (CREATE, QUERY, MODIFY, DESTROY):
        assert it.object(opcode, OUTB, 0, layouts.sa()).code == INVALID_OPCODE
    assert it.members[0].query(OUTB, 0).result[:196] == layouts.sa()


def test_an_owner_that_manages_works_in_the_members_store(owner: Any, layouts: Any) -> None:
    it = owner(owner_managed=True)
    it.group.enable(2)
    assert it.list() == OK
    sa = layouts.inbound(spi=0x777)
    assert it.object(CREATE, INB, 5, sa).code == OK
    assert it.object(CREATE, INB, 5, sa).code == EXISTS
    assert it.members[0].query(INB, 5).result[:196] == sa
    assert it.object(CREATE, INB, 6, sa).code == INVALID_FIELD  # the SPI is taken, in this member
    assert it.object(CREATE, INB, 6, sa, member=2).code == OK
    assert it.object(QUERY, INB, 5, member=2).code == NO_OBJECT
    assert it.members[1].destroy(INB, 6) == OK
    assert it.object(QUERY, INB, 6, member=2).code == NO_OBJECT
    wider = layouts.inbound(spi=0x777, window=128)
    assert it.object(MODIFY, INB, 5, wider).code == OK
    assert it.object(QUERY, INB, 5).result[:196] == wider
    assert it.object(DESTROY, INB, 5).code == OK
    assert it.guest.device.objects.ids() == {kind: frozenset() for kind in it.guest.device.objects.ids()}
    assert it.vfs[0].entered == 6
    for kind in (0, 0x200, 0x201, 0x202, 0x205):
        assert it.object(CREATE, kind, 0, bytes(64)).code == INVALID_FIELD


def test_the_owner_is_bound_by_what_the_members_driver_has_set(make: Any, owner: Any, layouts: Any) -> None:
    it = owner(1, owner_managed=True)
    it.group.enable(1)
    assert it.list() == OK
    it.members[0].device.reset()
    assert it.object(CREATE, OUTB, 0, layouts.sa()).code == INVALID_OPCODE
    it.members[0].device.negotiate(it.members[0].device.offered_features)
    it.members[0].use_everything()
    assert it.members[0].cap_set(0x803, struct.pack("<II", 4, 2)).code == OK
    assert it.object(CREATE, OUTB, 0, layouts.sa()).code == INVALID_OPCODE
    it.members[0].enable(0x804)
    assert it.object(CREATE, OUTB, 2, layouts.sa()).code == INVALID_FIELD
    assert it.object(CREATE, OUTB, 1, layouts.sa()).code == OK


def test_a_member_that_vanished_comes_back_with_nothing(owner: Any, layouts: Any) -> None:
    it = owner(owner_managed=True)
    it.group.enable(2)
    assert it.list() == OK
    assert it.object(CREATE, OUTB, 0, layouts.sa()).code == OK
    (sa,) = it.members[0].device.context.outbound.values()
    it.group.disable()
    assert it.vfs[0].life == ["appear", "vanish"]
    assert it.members[0].device.status == 0
    assert not it.members[0].device.context.outbound
    with pytest.raises(PacketError, match="destroyed"):
        sa.check_usable()
    it.group.enable(1)
    assert it.vfs[0].life[2:] == ["appear"]
    assert it.vfs[1].life == ["appear", "vanish"]
    assert it.object(QUERY, OUTB, 0).code == INVALID_OPCODE  # its driver has set nothing yet
    it.members[0].device.negotiate(it.members[0].device.offered_features)
    it.members[0].use_everything()
    it.members[0].enable()
    assert it.object(QUERY, OUTB, 0).code == NO_OBJECT


def test_a_reset_of_the_owner_leaves_its_members_alone(owner: Any, layouts: Any) -> None:
    it = owner(owner_managed=True)
    it.group.enable(2)
    assert it.list() == OK
    assert it.object(CREATE, OUTB, 0, layouts.sa()).code == OK
    it.guest.device.negotiate(it.guest.device.offered_features)
    assert it.object(QUERY, OUTB, 0).code == INVALID_OPCODE
    assert it.list() == OK
    assert it.object(QUERY, OUTB, 0).result[:196] == layouts.sa()


def test_vf_enable_takes_no_more_members_than_there_are(owner: Any) -> None:
    it = owner(2)
    for wrong in (-1, 3, 1 << 16):
        with pytest.raises(ConfigError, match="NumVFs"):
            it.group.enable(wrong)
    assert it.group.num_vfs is None
    with pytest.raises(InvalidGroup):
        it.group.member(1)
    it.group.enable(0)
    assert it.send(LIST_QUERY).code == OK
    assert it.send(LIST_QUERY).result == struct.pack("<Q", 3)
    it.group.enable(2)
    assert it.group.num_vfs == 0
    with pytest.raises(InvalidMember):
        it.group.member(1)
    assert it.group.total_vfs == 2
    with pytest.raises(ConfigError, match="at most 65535"):
        SriovGroup(it.vfs * 0x8000)


def test_a_member_that_does_not_vanish_is_not_there_and_is_asked_again(owner: Any) -> None:
    it = owner(3)
    it.group.enable(3)
    stuck = it.vfs[1]
    stuck.stuck = 2
    with pytest.raises(TransportError, match="stuck"):
        it.group.disable()
    assert it.send(LIST_QUERY).code == INVALID_GROUP
    assert [vf.life for vf in it.vfs] == [["appear", "vanish"], ["appear"], ["appear", "vanish"]]
    with pytest.raises(TransportError, match="stuck"):
        it.group.enable(1)
    assert it.group.num_vfs is None
    it.group.enable(1)
    assert [vf.life for vf in it.vfs] == [
        ["appear", "vanish", "appear"],
        ["appear", "vanish"],
        ["appear", "vanish"],
    ]


def test_a_member_that_does_not_appear_takes_those_before_it_along(owner: Any) -> None:
    it = owner(3)
    it.vfs[1].is_shy = True
    with pytest.raises(TransportError, match="shy"):
        it.group.enable(3)
    assert it.group.num_vfs is None
    assert [vf.life for vf in it.vfs] == [["appear", "vanish"], ["vanish"], []]
    it.vfs[1].is_shy = False
    it.group.enable(2)
    assert [vf.life for vf in it.vfs] == [["appear", "vanish", "appear"], ["vanish", "appear"], []]
