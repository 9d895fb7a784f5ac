"""Administration command frame, id bitmaps, capability and object commands."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    ADMIN_REPLY,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    AdminCommand,
    AdminReply,
    CapCommand,
    ObjectCommand,
    ResourceHeader,
    id_bitmap_build,
    id_bitmap_parse,
)
from virtio_ipsec.wire.numbers import CapId, Opcode, ResourceType


def test_a_create_command_in_bytes() -> None:
    data = OBJECT_COMMAND.build(ObjectCommand(ResourceType.NET_IPSEC_INB_SA, 5, flags=1, data=b"\xaa"))
    assert data.hex() == "04020000050000000100000000000000aa"
    wire = ADMIN_COMMAND.build(AdminCommand(Opcode.RESOURCE_OBJ_CREATE, 1, 3, data))
    assert wire.hex() == "0a000100" + "00" * 12 + "0300000000000000" + data.hex() + "00" * 7
    parsed = ADMIN_COMMAND.parse(wire)
    assert (parsed.opcode, parsed.group_type, parsed.group_member_id) == (10, 1, 3)
    assert OBJECT_COMMAND.parse(parsed.data) == ObjectCommand(0x204, 5, 1, b"\xaa" + bytes(7))
    assert RESOURCE_HEADER.parse(parsed.data) == ResourceHeader(0x204, 5)


@pytest.mark.parametrize("length", range(20))
def test_both_parts_are_multiples_of_eight_bytes(length: int) -> None:
    data = b"\x01" * length
    assert len(ADMIN_COMMAND.build(AdminCommand(0, data=data))) == 24 + (length + 7) // 8 * 8
    assert len(ADMIN_REPLY.build(AdminReply(result=data))) == 8 + (length + 7) // 8 * 8


def test_reserved_bytes_of_the_frame_are_ignored() -> None:
    wire = bytearray(ADMIN_COMMAND.build(AdminCommand(8, 0, 9)))
    wire[4:16] = b"\xff" * 12
    assert ADMIN_COMMAND.parse(wire) == AdminCommand(8, 0, 9)


def test_a_short_command_is_filled_with_zeros() -> None:
    assert ADMIN_COMMAND.parse(b"") == AdminCommand(Opcode.LIST_QUERY)
    assert ADMIN_COMMAND.parse(b"\x0a") == AdminCommand(Opcode.RESOURCE_OBJ_CREATE)
    assert ADMIN_COMMAND.parse(b"\x0a\0\1\0").group_type == 1
    assert OBJECT_COMMAND.parse(b"\x03\x02") == ObjectCommand(0x203, 0)
    assert CAP_COMMAND.parse(b"\x03\x08") == CapCommand(CapId.NET_IPSEC_RESOURCE_CAP)
    with pytest.raises(WireError):
        ADMIN_COMMAND.parse(b"\x0a", complete=True)


def test_a_reply_in_bytes() -> None:
    wire = ADMIN_REPLY.build(AdminReply(22, 3, b"\xab"))
    assert wire.hex() == "1600030000000000ab" + "00" * 7
    assert ADMIN_REPLY.parse(wire) == AdminReply(22, 3, b"\xab" + bytes(7))
    assert ADMIN_REPLY.parse(wire[:4]) == AdminReply(22, 3)


@pytest.mark.parametrize("length", range(4))
def test_a_reply_without_status_does_not_read_as_success(length: int) -> None:
    with pytest.raises(WireError, match="hold no status"):
        ADMIN_REPLY.parse(bytes(length))


def test_data_that_may_hold_keys_is_not_shown() -> None:
    for value in (
        AdminCommand(10, data=b"SECRET"),
        AdminReply(result=b"SECRET"),
        ObjectCommand(0x203, 1, data=b"SECRET"),
    ):
        assert "SECRET" not in repr(value)


@pytest.mark.parametrize("value", [AdminCommand(1 << 16), AdminCommand(-1), AdminCommand(0, 0, 1 << 64)])
def test_frame_numbers_that_do_not_fit_are_refused(value: AdminCommand) -> None:
    with pytest.raises(WireError, match="does not fit"):
        ADMIN_COMMAND.build(value)


def test_opcode_bitmap_in_bytes() -> None:
    opcodes = {0, 1, 7, 8, 9, 0xA, 0xB, 0xC, 0xD}
    assert id_bitmap_build(opcodes).hex() == "833f000000000000"
    assert id_bitmap_parse(bytes.fromhex("833f000000000000")) == opcodes


@pytest.mark.parametrize(
    ("ids", "words"), [([], 0), ([0], 1), ([63], 1), ([64], 2), ([0x7FF], 32), ([0x800], 33), ([0x804], 33)]
)
def test_a_bitmap_has_just_enough_words(ids: list[int], words: int) -> None:
    assert len(id_bitmap_build(ids)) == words * 8
    assert id_bitmap_parse(id_bitmap_build(ids)) == set(ids)


def test_ipsec_capability_ids_are_bits_3_and_4_of_word_32() -> None:
    wire = id_bitmap_build([CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP])
    assert wire == bytes(256) + b"\x18" + bytes(7)


def test_a_bitmap_may_be_cut_or_absurdly_long() -> None:
    assert id_bitmap_parse(b"\x03") == {0, 1}
    assert id_bitmap_parse(bytes(8) + b"\x01" + bytes(800)) == {64}
    assert max(id_bitmap_parse(b"\xff" * 9000)) == 0xFFFF


@pytest.mark.parametrize("bad", [-1, 0x10000, 1 << 70])
def test_a_bitmap_of_impossible_ids_is_refused(bad: int) -> None:
    with pytest.raises(WireError, match="does not fit 16 bits"):
        id_bitmap_build([1, bad])
