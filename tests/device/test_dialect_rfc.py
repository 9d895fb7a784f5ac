"""The January-2025 dialect on the control plane (RFC-04, RFC-26 to RFC-39)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.dialect import RFC_2025_01

OUTB, INB = 0x203, 0x204
OK, EEXIST, INVALID_OPCODE, INVALID_FIELD = (0, 0), (17, 3), (22, 2), (22, 3)


def sa(
    direction: int = 1, options: int = 0, esn: int = 0, spi: int = 0x1000, window: int = 0, mode: int = 1
) -> bytes:
    """The 166 bytes of the slides: no lifetimes, ``esn`` behind the tunnel parameters, no gaps in the key blobs."""
    out = struct.pack("<BBHII4sQ", mode, direction, 0, 0, spi, b"salt", options)
    out += struct.pack("<B3xIIBBB", 1, 0x0A000001, 0x0A000002, 0, 0, 64).ljust(42, b"\0")
    out += struct.pack("<QHHI", esn, 0, 0, window)
    out += struct.pack("<QH32sQH32s", 1, 16, bytes(range(16)), 0, 0, b"")
    assert len(out) == 166
    return out


@pytest.fixture
def rfc(make: Callable[..., Any]) -> Any:
    return make(DeviceConfig(dialect=RFC_2025_01))


def test_modify_and_query_do_not_exist(rfc: Any) -> None:
    assert rfc.send(0).result == struct.pack("<Q", 0x2783)
    assert rfc.create(OUTB, 0, sa()) == OK
    for opcode in (0xB, 0xC):
        assert rfc.object(opcode, OUTB, 0, sa()).code == INVALID_OPCODE


def test_features_65_to_69_are_not_offered(rfc: Any) -> None:
    assert rfc.device.offered_features >> 64 == 1 << 6


def test_header_is_26_bytes(rfc: Any) -> None:
    assert rfc.device.context.header.size == 26


def test_capability_entries_are_40_bytes(rfc: Any) -> None:
    result = rfc.cap_get(0x804).result
    assert [result[8 + 40 * i] for i in range(4)] == [1, 2, 3, 4]
    assert len(result) == 168
    for index in range(4):
        (options,) = struct.unpack_from("<I", result, 8 + 40 * index + 8)
        assert options & ~0x1F == 0


def test_the_esp_selector_is_not_offered(rfc: Any) -> None:
    assert rfc.cap_get(0x801).result[0] == 5
    assert rfc.create(0x201, 0, struct.pack("<B7xBB2xB3x", 1, 6, 0, 8) + bytes(8)) == INVALID_FIELD


@pytest.mark.parametrize("size", [8, 16])
def test_create_and_delete(rfc: Any, size: int) -> None:
    assert rfc.create(OUTB, 3, sa()) == OK
    assert rfc.create(OUTB, 3, sa()) == EEXIST
    assert rfc.send(0xD, struct.pack("<HxxI", OUTB, 3).ljust(size, b"\0")).code == OK
    assert rfc.create(OUTB, 3, sa()) == OK


@pytest.mark.parametrize("bit", [5, 6, 7, 40])
def test_later_options_are_refused(rfc: Any, bit: int) -> None:
    assert rfc.create(OUTB, 0, sa(options=1 << bit)) == INVALID_FIELD


@pytest.mark.parametrize(
    ("esn", "options", "first"), [(0, 0, 1), (77, 0, 77), (2**32 - 1, 0, 2**32 - 1), (2**32, 1, 2**32)]
)
def test_esn_is_the_first_sequence_number(rfc: Any, esn: int, options: int, first: int) -> None:
    assert rfc.create(OUTB, 0, sa(esn=esn, options=options)) == OK
    assert rfc.device.context.outbound[0].next_sequence() == first


def test_a_first_number_above_32_bits_needs_the_option(rfc: Any) -> None:
    assert rfc.create(OUTB, 0, sa(esn=2**32)) == INVALID_FIELD
    assert rfc.create(INB, 0, sa(direction=2, esn=2**32, window=64)) == INVALID_FIELD
    assert rfc.create(INB, 0, sa(direction=2, esn=2**32, window=64, options=1)) == OK


def test_an_object_of_v14_does_not_pass_for_one_of_the_rfc(rfc: Any, layouts: Any) -> None:
    assert rfc.create(OUTB, 0, layouts.sa()) == INVALID_FIELD
