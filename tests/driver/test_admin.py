"""Administration commands as bytes, and the books behind them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.errors import DriverError, LimitReached, NotNegotiated
from virtio_ipsec.errors import AdminQualifier, AdminStatus, CommandFailed, TransportError
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import CapId, ResourceType

OUTB, INB = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
EINVAL = bytes.fromhex("1600 0300 00000000")


def header(opcode: int) -> bytes:
    return struct.pack("<HH12xQ", opcode, 0, 0)


@pytest.fixture
def admin(fake: Any, start: Any) -> Admin:
    channel = start(fake).session.admin
    assert channel is not None
    return channel


def test_the_frame_of_each_object_command(fake: Any, admin: Admin) -> None:
    admin.create(OUTB, 3, b"\x11\x22\x33")
    admin.query(OUTB, 3, 10)
    admin.modify(OUTB, 3, b"\x44")
    admin.destroy(OUTB, 3)
    target = struct.pack("<H2xI", 0x203, 3)
    assert fake.commands == [
        header(0xA) + target + bytes(8) + b"\x11\x22\x33" + bytes(5),
        header(0xB) + target + bytes(8),
        header(0xC) + target + bytes(8) + b"\x44" + bytes(7),
        header(0xD) + target,
    ]


def test_AVQ_DRV_03_both_parts_are_multiples_of_eight(fake: Any, admin: Admin) -> None:
    rooms = []
    plain = fake._admin
    fake._admin = lambda readable, room: (rooms.append(room), plain(readable, room))[1]
    for length in range(20):
        admin.create(INB, 0, bytes(length))
        admin.query(INB, 0, length)
        admin.destroy(INB, 0)
    assert {len(each) % 8 for each in fake.commands} == {0}
    assert {room % 8 for room in rooms} == {0}
    assert min(rooms) == 8


def test_AVQ_DRV_05_bytes_beyond_the_used_length_are_zero(fake: Any, admin: Admin) -> None:
    admin.create(OUTB, 0, b"")
    fake.replies[0xB] = [bytes(8) + b"\x01\x02\x03"]
    assert admin.query(OUTB, 0, 16) == b"\x01\x02\x03" + bytes(13)
    # Once more: what the first answer left in the buffer does not show through.
    fake.replies[0xB] = [bytes(8)]
    assert admin.query(OUTB, 0, 16) == bytes(16)


@pytest.mark.parametrize("written", [0, 1])
def test_a_reply_without_status_is_no_success(fake: Any, admin: Admin, written: int) -> None:
    fake.replies[0xA] = [bytes(written)]
    with pytest.raises(CommandFailed, match="no status"):
        admin.create(OUTB, 0, b"")
    assert not admin.live(OUTB)


@pytest.mark.parametrize(
    ("raw", "status"),
    [(6, 6), (11, 11), (12, 12), (16, 16), (17, 17), (22, 22), (28, 28), (1, 22), (99, 22), (0xFFFF, 22)],
)
def test_ADM_DRV_08_an_unknown_status_is_handled_like_einval(
    fake: Any, admin: Admin, raw: int, status: int
) -> None:
    fake.replies[0xA] = [struct.pack("<HH4x", raw, 3)] * 20
    with pytest.raises(CommandFailed) as caught:
        admin.create(OUTB, 0, b"")
    assert (caught.value.raw_status, caught.value.status) == (raw, AdminStatus(status))


@pytest.mark.parametrize(("raw", "qualifier"), [(0, 0), (3, 3), (7, 7), (8, 1), (0x55, 1), (0xFFFF, 1)])
def test_ADM_DRV_09_an_unknown_qualifier_is_handled_like_invalid_command(
    fake: Any, admin: Admin, raw: int, qualifier: int
) -> None:
    fake.replies[0xA] = [struct.pack("<HH4x", 22, raw)]
    with pytest.raises(CommandFailed) as caught:
        admin.create(OUTB, 0, b"")
    assert (caught.value.raw_qualifier, caught.value.qualifier) == (raw, AdminQualifier(qualifier))


def test_AVQ_DRV_07_eagain_is_retried_with_the_same_bytes(fake: Any, admin: Admin) -> None:
    fake.replies[0xA] = [bytes.fromhex("0b00 0700 00000000")] * 3
    admin.create(OUTB, 1, b"\x01")
    assert len(fake.commands) == 4
    assert len(set(fake.commands)) == 1
    assert fake.polls == 3
    assert admin.live(OUTB) == {1}


def test_AVQ_DRV_07_retries_are_bounded(fake: Any, start: Any) -> None:
    channel = start(fake, retries=2).session.admin
    fake.replies[0xA] = [bytes.fromhex("0b00 0700 00000000")] * 9
    with pytest.raises(CommandFailed, match="EAGAIN"):
        channel.create(OUTB, 1, b"")
    assert len(fake.commands) == 3


def test_messages_name_what_is_unknown_by_number(fake: Any, admin: Admin) -> None:
    fake.replies[0xA] = [struct.pack("<HH4x", 99, 77)]
    with pytest.raises(CommandFailed, match=r"RESOURCE_OBJ_CREATE: status 99 \(unknown\), qualifier 77"):
        admin.create(OUTB, 1, b"")


def test_key_bytes_do_not_stay_in_shared_memory(fake: Any, admin: Admin) -> None:
    secret = bytes(range(1, 33)) * 2
    admin.create(OUTB, 0, secret)
    fake.replies[0xB] = [bytes(8) + secret]
    assert admin.query(OUTB, 0, 64) == secret
    assert secret[:16] not in fake.memory.read(0x10000, 16 << 20)


def test_ADM_DRV_02_06_no_command_before_list_use(fake: Any, start: Any) -> None:
    begun = start(fake).session.admin
    channel = Admin(begun._queue, V14, pause=lambda: None)
    for attempt in (channel.cap_ids, lambda: channel.cap_get(0x803, 8), lambda: channel.command(0)):
        with pytest.raises(NotNegotiated, match="LIST_USE"):
            attempt()
    assert not fake.commands
    channel.list_query()
    fake.replies[1] = [EINVAL]
    with pytest.raises(CommandFailed):
        channel.list_use()
    with pytest.raises(NotNegotiated):
        channel.cap_ids()
    channel.list_use()
    assert channel.cap_ids() == {0x800, 0x801, 0x802, 0x803, 0x804}
    assert {each[:24] for each in fake.commands} == {header(opcode) for opcode in (0, 1, 7)}


def test_ADM_DRV_05_list_use_never_asks_for_more_than_was_reported(fake: Any, admin: Admin) -> None:
    admin.list_use([0, 1, 7, 0x11, 0x8000])
    assert fake.commands[-1][24:] == (0x83).to_bytes(8, "little")
    with pytest.raises(NotNegotiated, match="0x000a"):
        admin.create(OUTB, 0, b"")


def test_a_refused_list_use_changes_nothing(fake: Any, admin: Admin) -> None:
    fake.replies[1] = [EINVAL]
    with pytest.raises(CommandFailed):
        admin.list_use([0, 1])
    admin.create(OUTB, 0, b"")


def test_RO_DRV_01_no_second_create_of_a_live_id(fake: Any, admin: Admin) -> None:
    admin.create(OUTB, 0, b"")
    admin.create(INB, 0, b"")
    fake.commands.clear()
    with pytest.raises(DriverError, match="NET_IPSEC_OUTB_SA 0 exists"):
        admin.create(OUTB, 0, b"")
    assert not fake.commands


@pytest.mark.parametrize(("kind", "limit"), [(OUTB, 5), (INB, 4), (0x200, 2), (0x201, 8), (0x202, 16)])
def test_RO_DRV_02_objects_stay_below_the_limit(fake: Any, admin: Admin, kind: int, limit: int) -> None:
    for number in range(limit):
        admin.create(kind, number, b"")
    fake.commands.clear()
    for number in (limit, -1):
        with pytest.raises(LimitReached):
            admin.create(kind, number, b"")
    assert not fake.commands


def test_CAP_DRV_01_RO_DRV_06_no_object_before_its_capability(fake: Any, start: Any) -> None:
    fake.cap_bits = 0x07
    channel = start(fake).session.admin
    with pytest.raises(LimitReached):
        channel.create(OUTB, 0, b"")
    with pytest.raises(LimitReached, match="type 0x0999"):
        channel.create(0x999, 0, b"")
    assert not fake.commands


def test_RO_DRV_03_no_command_on_objects_that_do_not_live(fake: Any, admin: Admin) -> None:
    admin.create(OUTB, 0, b"")
    admin.destroy(OUTB, 0)
    fake.commands.clear()
    for attempt in (
        lambda: admin.query(OUTB, 0, 8),
        lambda: admin.modify(OUTB, 0, b""),
        lambda: admin.destroy(OUTB, 0),
        lambda: admin.destroy(INB, 3),
    ):
        with pytest.raises(DriverError, match="does not exist"):
            attempt()
    assert not fake.commands


def test_a_refused_create_leaves_no_object_and_a_refused_destroy_leaves_it(fake: Any, admin: Admin) -> None:
    fake.replies[0xA] = [EINVAL]
    with pytest.raises(CommandFailed):
        admin.create(OUTB, 0, b"")
    assert not admin.live(OUTB)
    admin.create(OUTB, 0, b"")
    fake.replies[0xD] = [EINVAL]
    with pytest.raises(CommandFailed):
        admin.destroy(OUTB, 0)
    assert admin.live(OUTB) == {0}


@pytest.mark.parametrize(
    ("cap", "kind"),
    [
        (CapId.NET_IPSEC_RESOURCE_CAP, OUTB),
        (CapId.NET_IPSEC_SA_CAP, INB),
        (CapId.NET_FF_RESOURCE_CAP, ResourceType.NET_FF_GROUP),
        (CapId.NET_FF_SELECTOR_CAP, ResourceType.NET_FF_CLASSIFIER),
        (CapId.NET_FF_ACTION_CAP, ResourceType.NET_FF_RULE),
    ],
)
def test_CAP_DRV_03_RO_DRV_05_no_capability_is_set_while_objects_depend_on_it(
    fake: Any, admin: Admin, cap: int, kind: int
) -> None:
    admin.create(kind, 0, b"")
    fake.commands.clear()
    with pytest.raises(DriverError, match="cannot be set"):
        admin.cap_set(cap, b"")
    assert not fake.commands
    admin.destroy(kind, 0)
    admin.cap_set(cap, b"\x01")
    assert fake.commands[-1] == header(9) + struct.pack("<H6x", cap) + b"\x01" + bytes(7)


def test_an_unanswered_command_is_an_error_and_its_buffers_stay(fake: Any, admin: Admin) -> None:
    fake.replies[0xA] = [None]
    free = fake.allocator.available
    with pytest.raises(TransportError, match="no answer on queue 9"):
        admin.create(OUTB, 0, b"")
    assert fake.polls == 3
    with pytest.raises(TransportError, match="reset the device"):
        admin.cap_ids()
    assert len(fake.commands) == 1
    assert fake.allocator.available <= free


def test_the_driver_s_own_door_refuses_what_it_keeps_books_about(fake: Any, start: Any) -> None:
    driver = start(fake)
    assert driver.admin(7, b"", 264)[256] == 0x1F
    for opcode in (1, 9, 0xA, 0xB, 0xC, 0xD):
        with pytest.raises(DriverError, match="goes through"):
            driver.admin(opcode)
    with pytest.raises(NotNegotiated):
        driver.admin(0xE)
    assert fake.opcodes_seen() == [7]


def test_without_an_administration_queue_there_are_no_commands(fake: Any, start: Any) -> None:
    fake.carried = 0
    with pytest.raises(NotNegotiated, match="administration"):
        start(fake).admin(7)


def test_the_prose_numbers_of_modify_and_query(fake: Any, start: Any) -> None:
    """Ledger E01: table or prose, by the dialect."""
    from dataclasses import replace

    swapped = replace(V14, query_opcode=0xC, modify_opcode=0xB)
    channel = start(fake, dialect=swapped).session.admin
    channel.create(OUTB, 0, b"")
    channel.query(OUTB, 0, 8)
    channel.modify(OUTB, 0, b"")
    assert fake.opcodes_seen() == [0xA, 0xC, 0xB]
