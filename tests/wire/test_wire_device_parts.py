"""Device parts: bytes by hand against the codecs, and input of any kind."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply
from virtio_ipsec.wire.device_parts import (
    DEV_PARTS_CAP,
    DEV_PARTS_OBJECT,
    METADATA_COMMAND,
    METADATA_RESULT,
    MODE_SET,
    PARTS_GET,
    PARTS_SET,
    QUEUE_CONFIG,
    QUEUE_NOTIFY,
    DevPartsCap,
    DevPartsObject,
    MetadataCommand,
    MetadataResult,
    ModeCommand,
    Part,
    PartHeader,
    PartsGetCommand,
    PartsSetCommand,
    QueueConfig,
    QueueNotify,
    control_selector,
    features_build,
    headers_build,
    headers_parse,
    offset_selector,
    parts_build,
    parts_parse,
    queue_selector,
)
from virtio_ipsec.wire.dialect import V14

STATUS = Part(0x103, b"\x0f")
VECTOR = Part(0x102, b"\xff\xff", 0, offset_selector(16))
PARTS = struct.pack("<HBxQIB", 0x103, 0, 0, 1, 0x0F) + struct.pack("<HBxIIIH", 0x102, 0, 16, 0, 2, 0xFFFF)


def test_the_structures_in_bytes() -> None:
    assert DEV_PARTS_CAP.build(DevPartsCap(3, 2)) == b"\x03\x02"
    assert DEV_PARTS_OBJECT.build(DevPartsObject(1)) == b"\x01" + bytes(7)
    assert METADATA_COMMAND.build(MetadataCommand(0, 5, 2)) == struct.pack("<HxxIB7x", 0, 5, 2)
    assert METADATA_RESULT.build(MetadataResult(9, b"h")) == struct.pack("<I4x", 9) + b"h"
    assert PARTS_GET.build(PartsGetCommand(0, 5, 1)) == struct.pack("<HxxIB7x", 0, 5, 1)
    assert PARTS_SET.build(PartsSetCommand(0, 5, b"p")) == struct.pack("<HxxI", 0, 5) + b"p"
    assert MODE_SET.build(ModeCommand(1)) == b"\x01"
    config = QueueConfig(256, 0xFFFF, 1, 1 << 12, 1 << 13, 1 << 40)
    assert QUEUE_CONFIG.build(config) == struct.pack("<HHHxxQQQ", 256, 0xFFFF, 1, 1 << 12, 1 << 13, 1 << 40)
    assert QUEUE_NOTIFY.build(QueueNotify(3, 4)) == struct.pack("<HH4x", 3, 4)
    assert features_build(1 << 70 | 1) == struct.pack("<QQ", 1, 1 << 6)
    assert (offset_selector(18), queue_selector(0x102)) == (b"\x12" + bytes(7), b"\x02\x01" + bytes(6))
    assert control_selector(4, 1) == b"\x04\x01" + bytes(6)


def test_parts_lie_one_behind_the_other() -> None:
    assert parts_build((STATUS, VECTOR)) == PARTS
    assert parts_parse(PARTS) == (STATUS, VECTOR)
    assert parts_parse(PARTS + bytes(40)) == (STATUS, VECTOR)
    assert parts_parse(b"") == parts_parse(bytes(64)) == ()
    assert (STATUS.header, VECTOR.key) == (PartHeader(0x103, length=1), (0x102, offset_selector(16)))
    headers = (STATUS.header, VECTOR.header)
    assert headers_parse(headers_build(headers)) == headers
    assert headers_parse(headers_build(headers) + bytes(16)) == headers
    assert headers_parse(b"\x03\x01") == (PartHeader(0x103),)


def test_missing_bytes_are_zero() -> None:
    assert parts_parse(PARTS[:-1]) == (STATUS, Part(0x102, b"\xff\0", 0, offset_selector(16)))
    assert parts_parse(PARTS[:3]) == (Part(0x103, b""),)


def test_no_length_makes_the_parser_reach_beyond_its_input() -> None:
    with pytest.raises(WireError, match="4294967295 bytes"):
        parts_parse(struct.pack("<HBxQI", 0x103, 0, 0, 0xFFFF_FFFF))


@given(st.binary(max_size=200))
def test_any_bytes_are_parts_or_a_wire_error(data: bytes) -> None:
    try:
        parts = parts_parse(data)
    except WireError:
        return
    again = parts_parse(parts_build(parts))
    assert again == parts[: len(again)]
    assert set(parts[len(again) :]) <= {Part(0, b"")}  # only a reserved byte said that it is there


@given(st.binary(max_size=200), st.sampled_from([0x0E, 0x0F, 0x10, 0x11]), st.binary(max_size=200))
def test_annotation_takes_anything(data: bytes, opcode: int, answer: bytes) -> None:
    readable = struct.pack("<HH12xQ", opcode, 1, 1) + data
    for whole, views in (
        (readable, annotate_admin(readable, V14)),
        (answer, annotate_reply(readable, answer, V14)),
    ):
        assert b"".join(view.raw for view in sorted(views, key=lambda view: view.offset)) == whole


def test_annotation_names_parts() -> None:
    command = struct.pack("<HH12xQ", 0x10, 1, 1) + PARTS_SET.build(PartsSetCommand(0, 5, PARTS))
    names = {view.name: view.text for view in annotate_admin(command, V14)}
    assert names["opcode"] == "DEV_PARTS_SET (0x10)"
    assert names["hdr.id"] == "5"
    assert names["parts[0].hdr.part_type"] == "DEVICE_STATUS (0x103)"
    assert names["parts[1].value"] == "ffff"
    asked = (
        struct.pack("<HH12xQ", 0x0F, 1, 1) + struct.pack("<HxxIB7x", 0, 5, 0) + headers_build([VECTOR.header])
    )
    names = {view.name: view.text for view in annotate_admin(asked, V14)}
    assert names["hdr_list[0].part_type"] == "PCI_COMMON_CFG (0x102)"
    assert {v.name for v in annotate_reply(asked, bytes(8) + PARTS, V14)} >= {
        "parts[0].value",
        "parts[1].hdr.length",
    }
    meta = struct.pack("<HH12xQ", 0x0E, 1, 1) + struct.pack("<HxxIB7x", 0, 5, 2)
    answer = bytes(8) + struct.pack("<I4x", 1) + headers_build([STATUS.header])
    assert "hdr_list.hdrs[0].length" in {view.name for view in annotate_reply(meta, answer, V14)}
