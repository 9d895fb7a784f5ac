"""The numbers of the binding against its document, and its document's conversation byte by byte."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.binding import DEVICE_INFO, FEATURE_WORDS, WITH_BINDING, DeviceInfo
from virtio_ipsec.transport.vhost_user.messages import FRONTEND, Request
from virtio_ipsec.wire.numbers import Feature, Status, mask

DOCUMENT = (Path(__file__).parents[3] / "spec" / "vhost-user-binding.md").read_text(encoding="utf-8")
OFFERED = mask(Feature.F_VERSION_1, Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_MAC)
WANTED = OFFERED & ~mask(Feature.NET_F_MAC)
EXAMPLE = DeviceInfo(0, 3, 3, 1, 256, OFFERED, 0)


def conversation() -> list[tuple[str, bytes]]:
    """The messages of the example: who sends, and the bytes."""
    lines = DOCUMENT.split("## Example")[1].splitlines()
    found: list[tuple[str, bytes]] = []
    for line in (line.strip() for line in lines if line.startswith("    ")):
        side, words = (line[0], line[1:].split()) if line[0] in "<>" else ("", line.split())
        data = b""
        for word in words:
            if not re.fullmatch("([0-9a-f]{2})+", word):
                break
            data += bytes.fromhex(word)
        if side:
            found.append((side, data))
        else:
            found[-1] = (found[-1][0], found[-1][1] + data)
    return found


def test_the_numbers_are_those_of_the_document() -> None:
    table = dict(
        re.findall(r"^\| (?:\w+-?\w+ )*(?:request |feature )`(\w+)` \| (?:bit )?(\w+) \|$", DOCUMENT, re.M)
    )
    assert {name: int(value, 0) for name, value in table.items()} == {
        "IPSEC_BINDING": binding.PROTOCOL_FEATURE,
        "IPSEC_GET_DEVICE": binding.GET_DEVICE,
        "IPSEC_SET_DRIVER_FEATURES": binding.SET_DRIVER_FEATURES,
    }


def test_the_layout_is_the_table_of_the_document() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (u16|u32|u32\[4\]) \|", DOCUMENT, re.M)
    form = {"u16": "H", "u32": "I", "u32[4]": "4I"}
    layout = "=" + "".join(form[kind] for _, _, kind in rows)
    assert struct.calcsize(layout) == DEVICE_INFO.largest
    at = 0
    for offset, _, kind in rows:
        assert int(offset) == at
        at += struct.calcsize("=" + form[kind])
    assert [name for _, name, _ in rows] == ["version", *DeviceInfo.__slots__]


def test_every_message_of_the_example_is_whole_and_legal() -> None:
    messages = conversation()
    assert len(messages) == 14
    for side, data in messages:
        number, flags, size = struct.unpack_from("=III", data)
        assert size == len(data) - 12
        assert flags in ({1, 9} if side == ">" else {5})
        if side == ">":
            WITH_BINDING[number].check("", data[12:], 0)


def test_the_example_says_what_it_means() -> None:
    sent = {data[:4]: data[12:] for side, data in conversation() if side == ">"}
    answers = {data[:4]: data[12:] for side, data in conversation() if side == "<"}

    def key(number: int) -> bytes:
        return number.to_bytes(4, "little")

    features = binding.NEEDED | 1 << binding.PROTOCOL_FEATURE
    assert sent[key(Request.SET_PROTOCOL_FEATURES)] == struct.pack("=Q", features)
    assert answers[key(binding.GET_DEVICE)] == DEVICE_INFO.build(EXAMPLE)
    assert DEVICE_INFO.parse(answers[key(binding.GET_DEVICE)]) == EXAMPLE
    assert FEATURE_WORDS.parse(sent[key(binding.SET_DRIVER_FEATURES)]) == WANTED
    (plain,) = struct.unpack("=Q", sent[key(Request.SET_FEATURES)])
    assert plain == (WANTED & ~binding.HIDDEN | 1 << 30) & (1 << 64) - 1
    up_to_features = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
    assert answers[key(Request.GET_STATUS)] == struct.pack("=Q", up_to_features)


def test_only_a_front_end_that_acknowledged_it_has_the_two_requests() -> None:
    assert set(WITH_BINDING) - set(FRONTEND) == {binding.GET_DEVICE, binding.SET_DRIVER_FEATURES}


def test_feature_words_hold_128_bits_and_no_more() -> None:
    every = (1 << 128) - 1
    assert FEATURE_WORDS.build(every) == b"\xff" * 16
    assert FEATURE_WORDS.parse(b"\xff" * 16) == every
    with pytest.raises(WireError, match="128"):
        FEATURE_WORDS.build(1 << 128)


def test_another_version_and_another_length_are_refused() -> None:
    data = DEVICE_INFO.build(EXAMPLE)
    with pytest.raises(WireError, match="version 2"):
        DEVICE_INFO.parse(b"\2" + data[1:])
    with pytest.raises(MessageError):
        DEVICE_INFO.parse(data[:-1])
