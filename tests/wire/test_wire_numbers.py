"""The numbers that a typing slip would spoil, written out a second time from the specification's tables."""

from __future__ import annotations

from enum import IntEnum

import pytest

from virtio_ipsec.wire import numbers
from virtio_ipsec.wire.numbers import Feature, has, mask

VALUES = {
    "Status": "1 2 4 8 16 64 128",
    "Feature": "0 1 2 3 5 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 28 29 32 33 34 35 36 37 38 39 40 41 43"
    " 50 51 52 53 54 55 56 57 59 60 61 62 63 64 65 66 67 68 69 70",
    "Opcode": "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17",
    "AdminStatus": "0 6 11 12 16 17 22 28",
    "AdminQualifier": "0 1 2 3 4 5 6 7",
    "CapId": "0 2048 2049 2050 2051 2052",
    "ResourceType": "0 512 513 514 515 516",
    "IpsecMode": "1 2 3 4",
    "Direction": "1 2",
    "IpsecOption": "1 2 4 8 16 32 64",
    "TunnelType": "1 2",
    "CipherAlgo": "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14",
    "MacAlgo": "0 1 2 3 4 5 6 25 26 27 28 41 42 49 50 53 54",
    "AeadAlgo": "0 1 2 3",
    "HdrFlag": "1 2 4 8 16 32 64",
    "GsoType": "0 1 3 4 5 32 64 128",
    "HashReport": "0 1 2 3 4 5 6 7 8 9",
    "SelectorType": "1 2 3 4 5 6",
    "FfAction": "1 2 3 4",
    "CtrlClass": "0 1 2 3 4 5 6 7 8",
    "GuestOffload": "1 7 8 9 10 46 47 54 55",
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_each_enum(name: str) -> None:
    enum: type[IntEnum] = getattr(numbers, name)
    assert [int(member) for member in enum] == [int(value) for value in VALUES[name].split()]


PLACES = [
    (Feature.F_ADMIN_VQ, 41),
    (Feature.NET_F_OUT_NET_HEADER, 69),
    (Feature.NET_F_IPSEC, 70),
    (numbers.Opcode.RESOURCE_OBJ_QUERY, 0x0B),
    (numbers.Opcode.RESOURCE_OBJ_MODIFY, 0x0C),
    (numbers.ResourceType.NET_IPSEC_OUTB_SA, 0x203),
    (numbers.CapId.NET_IPSEC_SA_CAP, 0x804),
    (numbers.AdminStatus.EEXIST, 17),
    (numbers.MacAlgo.GMAC_AES, 41),
    (numbers.IpsecMode.AH_TUNNEL, 3),
]


@pytest.mark.parametrize(("member", "value"), PLACES, ids=[member.name for member, _ in PLACES])
def test_names_at_the_places_that_matter_most(member: IntEnum, value: int) -> None:
    assert int(member) == value


def test_feature_words_are_wider_than_64_bits() -> None:
    word = mask(Feature.NET_F_IPSEC, Feature.NET_F_CSUM)
    assert word == 1 << 70 | 1
    assert has(word, Feature.NET_F_IPSEC)
    assert not has(word, Feature.NET_F_OUT_NET_HEADER)
    assert mask() == 0
