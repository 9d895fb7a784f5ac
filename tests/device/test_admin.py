"""Administration frame: order of checks, command lists, lengths (ADM-DEV, AVQ-DEV, E106, E108)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from virtio_ipsec.device.admin_frames import build_reply, parse_command, parse_object
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.admin import ADMIN_COMMAND, ADMIN_REPLY, OBJECT_COMMAND, AdminReply
from virtio_ipsec.wire.dialect import V14

LIST_QUERY, LIST_USE, CAP_LIST, CAP_GET, CREATE, QUERY, MODIFY, DESTROY = 0, 1, 7, 8, 0xA, 0xB, 0xC, 0xD
OUTB = 0x203
INVALID_OPCODE, INVALID_FIELD, INVALID_GROUP, INVALID_MEMBER = (22, 2), (22, 3), (22, 4), (22, 5)
OK = (0, 0)
EVERYTHING = 0x3F83


def test_list_query_shows_exactly_what_is_there(make: Callable[..., Any]) -> None:
    reply = make(ready=False).send(LIST_QUERY)
    assert reply.code == OK
    assert reply.result == struct.pack("<Q", EVERYTHING)


def test_after_reset_only_the_list_commands_are_legal(make: Callable[..., Any]) -> None:
    guest = make(ready=False)
    for opcode in (*range(2, 0x20), 0x7FFF, 0x8000, 0xFFFF):
        assert guest.send(opcode).code == INVALID_OPCODE
    guest.use_everything()
    assert guest.send(CAP_LIST).code == OK
    guest.device.negotiate(guest.device.offered_features)
    assert guest.send(CAP_LIST).code == INVALID_OPCODE
    assert guest.send(LIST_QUERY).code == OK


def test_list_use_replaces_the_legal_set_even_of_the_list_commands(make: Callable[..., Any]) -> None:
    guest = make(ready=False)
    assert guest.send(LIST_USE, struct.pack("<Q", 1 << CAP_LIST | 1 << LIST_USE)).code == OK
    assert guest.send(LIST_QUERY).code == INVALID_OPCODE
    assert guest.send(CAP_LIST).code == OK
    assert guest.send(CAP_GET).code == INVALID_OPCODE
    assert guest.send(LIST_USE, struct.pack("<Q", EVERYTHING)).code == OK
    assert guest.cap_get(0x803).code == OK


@pytest.mark.parametrize("bit", [b for b in range(64) if not EVERYTHING >> b & 1])
def test_list_use_of_an_unsupported_opcode_changes_nothing(make: Callable[..., Any], bit: int) -> None:
    guest = make(ready=False)
    assert guest.send(LIST_USE, struct.pack("<Q", EVERYTHING | 1 << bit)).code == INVALID_FIELD
    assert guest.send(CAP_LIST).code == INVALID_OPCODE


def test_words_behind_the_list_are_ignored(make: Callable[..., Any]) -> None:
    guest = make(ready=False)
    assert guest.send(LIST_USE, struct.pack("<QQ", EVERYTHING, 0xFFFF)).code == OK
    assert guest.send(64).code == INVALID_OPCODE


@pytest.mark.parametrize("group", [1, 2, 0xFFFF])
def test_a_group_that_does_not_exist_is_noticed_first(guest: Any, group: int) -> None:
    for opcode in (LIST_QUERY, LIST_USE, CAP_LIST, 0x12, 0xFFFF):
        assert guest.send(opcode, group=group, member=9).code == INVALID_GROUP


def test_then_the_opcode_then_the_member(guest: Any) -> None:
    assert guest.send(0x12, member=1).code == INVALID_OPCODE
    assert guest.send(CAP_LIST, member=1).code == INVALID_MEMBER
    assert guest.send(DESTROY, member=1 << 63).code == INVALID_MEMBER
    assert guest.send(LIST_QUERY, member=1).code == OK


def test_the_list_never_shrinks_over_resets(make: Callable[..., Any]) -> None:
    guest = make()
    before = guest.send(LIST_QUERY).result
    guest.device.negotiate(guest.device.offered_features)
    assert guest.send(LIST_QUERY).result == before
    assert guest.send(LIST_USE, before).code == OK


@pytest.mark.parametrize("length", range(33))
def test_a_short_command_reads_as_zero_extended(make: Callable[..., Any], length: int) -> None:
    guest = make(ready=False)
    whole = guest.frame(LIST_USE, struct.pack("<Q", EVERYTHING))
    assert len(whole) == 32
    answer = guest.raw(whole[:length])
    if length == 0:
        assert answer == bytes(8) + struct.pack("<Q", EVERYTHING)  # all zero is LIST_QUERY
        return
    assert answer == bytes(8)
    expected = {n for n in range(64) if int.from_bytes(whole[24:length], "little") >> n & 1}
    assert guest.device.commands.used[0] == expected


@pytest.mark.parametrize("room", range(300))
def test_an_answer_is_cut_to_its_room_in_units_of_eight(guest: Any, room: int) -> None:
    whole = guest.raw(guest.frame(CAP_LIST), 10**6)
    assert len(whole) == 8 + 33 * 8
    answer = guest.raw(guest.frame(CAP_LIST), room)
    assert whole.startswith(answer)
    if room < 8:
        assert len(answer) == room
    else:
        assert len(answer) == min(room, len(whole)) // 8 * 8


def test_surplus_input_is_ignored(guest: Any, layouts: Any) -> None:
    junk = b"\xff" * 4096
    assert guest.raw(guest.frame(CAP_GET, struct.pack("<H6x", 0x803)) + junk)[:8] == bytes(8)
    assert guest.create(OUTB, 0, layouts.sa() + junk) == OK
    assert guest.query(OUTB, 0).result[:196] == layouts.sa()
    assert guest.raw(guest.frame(DESTROY, struct.pack("<HxxI", OUTB, 0)) + junk) == bytes(8)


def test_a_short_destroy_names_type_0_id_0(guest: Any) -> None:
    assert guest.send(DESTROY).code == (6, 3)


def test_the_prose_opcodes_are_a_switch_of_the_dialect(make: Callable[..., Any], layouts: Any) -> None:
    """E01: 0x0b MODIFY and 0x0c QUERY."""
    guest = make(DeviceConfig(dialect=replace(V14, query_opcode=0xC, modify_opcode=0xB)))
    assert guest.create(OUTB, 0, layouts.sa()) == OK
    assert guest.object(0xB, OUTB, 0, layouts.sa(obj_id=7)).code == OK
    assert guest.object(0xC, OUTB, 0).result[:196] == layouts.sa(obj_id=7)
    assert guest.object(0xB, OUTB, 0).code == INVALID_FIELD  # an all-zero SA has no mode


def test_every_command_and_every_failure_is_counted(guest: Any) -> None:
    before = dict(guest.device.counters())
    guest.send(CAP_LIST)
    guest.send(0x12)
    after = guest.device.counters()
    assert after["admin_commands"] - before["admin_commands"] == 2
    assert after["admin_errors"] - before.get("admin_errors", 0) == 1


@pytest.mark.parametrize("length", [0, 1, 3, 23, 24, 25, 40, 64])
def test_the_struct_frames_agree_with_the_codecs(length: int) -> None:
    data = bytes(range(1, length + 1))
    assert parse_command(data) == ADMIN_COMMAND.parse(data)
    assert parse_object(data) == OBJECT_COMMAND.parse(data)
    assert build_reply(22, 3, data) == ADMIN_REPLY.build(AdminReply(22, 3, data))
