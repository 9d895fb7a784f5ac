"""Sums of csrc/checksum.c against the Python ones and against scapy, at every length and alignment."""

from __future__ import annotations

import random

import pytest
from scapy.utils import checksum as scapy_checksum

from virtio_ipsec.fastpath import native
from virtio_ipsec.ipsec.ip import ones_sum

LENGTHS = (*range(300), 1499, 1500, 9000, 65534, 65535)


def sums(data: bytes, align: int) -> tuple[int, int]:
    """The sum, and the sum while copying, after a check of the copy and of what lies around it."""
    ffi, lib = native.extension()
    size = len(data)
    source, target = (ffi.new("uint8_t[]", b"\xa5" * (size + 128)) for _ in range(2))
    ffi.memmove(source + 32 + align, data, size)
    plain = lib.vipsec_checksum_sum(ffi.NULL, source + 32 + align, size)
    copying = lib.vipsec_checksum_sum(target + 33, source + 32 + align, size)
    expected = b"\xa5" * 33 + data + b"\xa5" * 95
    assert bytes(ffi.buffer(target, size + 128)) == expected
    return plain, copying


@pytest.mark.parametrize("align", range(4))
def test_sum_at_every_length(align: int) -> None:
    rnd = random.Random(align)
    for length in LENGTHS:
        for data in (rnd.randbytes(length), b"\xff" * length, bytes(length)):
            expected = ones_sum(data)
            assert sums(data, align) == (expected, expected), (length, data[:8])


def test_scapy_agrees() -> None:
    rnd = random.Random(1)
    for length in range(1, 400):
        data = rnd.randbytes(length)
        assert 0xFFFF ^ sums(data, 0)[0] == scapy_checksum(data)
