"""Device and driver capabilities (CAP-DEV, NET-IPSEC-DEV-01/03, NET-FF-DEV-01/03, E20, E33-E35, E46-E48, E77, E84)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.numbers import Feature, mask

LIMITS, SA_CAP, FF_LIMITS, FF_SELECTORS, FF_ACTIONS = 0x803, 0x804, 0x800, 0x801, 0x802
OUTB, INB, GROUP = 0x203, 0x204, 0x200
OK, ENXIO, EBUSY, INVALID_FIELD, INVALID_OPCODE = (0, 0), (6, 3), (16, 3), (22, 3), (22, 2)


def listed(guest: Any) -> set[int]:
    result = guest.send(7).result
    return {n for n in range(len(result) * 8) if result[n // 8] >> n % 8 & 1}


def mode_cap(mode: int, **changes: int) -> bytes:
    v = {"window": 0, "options": 0, "cipher": 0, "hmac": 0, "aead": 0, "ckey": 0, "akey": 0} | changes
    return struct.pack(
        "<B3xIIIQQIII",
        mode,
        v["window"],
        v["options"],
        0,
        v["cipher"],
        v["hmac"],
        v["aead"],
        v["ckey"],
        v["akey"],
    )


def sa_cap(*modes: bytes) -> bytes:
    return struct.pack("<B7x", len(modes)) + b"".join(modes)


def test_ids_are_listed_in_33_words(guest: Any) -> None:
    assert listed(guest) == {FF_LIMITS, FF_SELECTORS, FF_ACTIONS, LIMITS, SA_CAP}
    assert len(guest.send(7).result) == 33 * 8


def test_without_the_ipsec_feature_its_capabilities_do_not_exist(make: Callable[..., Any]) -> None:
    """E48, E77."""
    guest = make(features=mask(Feature.F_VERSION_1, Feature.F_ADMIN_VQ), ready=False)
    guest.use_everything()
    assert listed(guest) == {FF_LIMITS, FF_SELECTORS, FF_ACTIONS}
    assert guest.cap_get(LIMITS).code == ENXIO
    assert guest.cap_set(SA_CAP, bytes(8)).code == ENXIO
    assert guest.cap_get(FF_ACTIONS).result[:10] == b"\x02" + bytes(7) + b"\x01\x02"
    guest.enable(FF_LIMITS, FF_SELECTORS, FF_ACTIONS)
    assert guest.create(OUTB, 0) == INVALID_OPCODE


def test_the_structures_are_packed(guest: Any) -> None:
    assert guest.cap_get(LIMITS).result == struct.pack("<II", 65536, 65536)
    sa = guest.cap_get(SA_CAP).result
    assert sa[0] == 4
    assert [sa[8 + 44 * i] for i in range(4)] == [1, 2, 3, 4]
    assert len(sa) == 8 + 44 * 4
    assert guest.cap_get(FF_LIMITS).result == struct.pack("<IIIIBBxx", 64, 256, 4096, 4096, 255, 3) + bytes(4)
    actions = guest.cap_get(FF_ACTIONS).result
    assert actions == struct.pack("<B7x4B", 4, 1, 2, 3, 4) + bytes(4)
    selectors = guest.cap_get(FF_SELECTORS).result
    assert selectors[:1] == b"\x06"
    assert selectors[8:30] == struct.pack("<BB2xB3x", 1, 1, 14) + b"\xff" * 14


@pytest.mark.parametrize("cap", [0, 1, 0x7FF, 0x805, 0xFFF, 0x1000, 0xFFFF])
def test_an_unlisted_id_is_enxio(guest: Any, cap: int) -> None:
    assert guest.cap_get(cap).code == ENXIO
    assert guest.cap_set(cap, bytes(64)).code == ENXIO


@pytest.mark.parametrize("inbound", [0, 1, 65535, 65536])
@pytest.mark.parametrize("outbound", [0, 1, 65535, 65536])
def test_every_limit_up_to_the_device_limit_can_be_set(guest: Any, inbound: int, outbound: int) -> None:
    assert guest.cap_set(LIMITS, struct.pack("<II", inbound, outbound)).code == OK


@pytest.mark.parametrize("limits", [(65537, 0), (0, 65537), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_limit_above_the_device_limit_is_refused_and_the_old_one_stays(
    guest: Any, layouts: Any, limits: tuple[int, int]
) -> None:
    assert guest.cap_set(LIMITS, struct.pack("<II", 0, 1)).code == OK
    assert guest.cap_set(LIMITS, struct.pack("<II", *limits)).code == INVALID_FIELD
    assert guest.create(OUTB, 1, layouts.sa()) == INVALID_FIELD
    assert guest.create(OUTB, 0, layouts.sa()) == OK


@pytest.mark.parametrize("bit", range(7))
def test_any_subset_of_options_can_be_set(guest: Any, bit: int) -> None:
    assert guest.cap_set(SA_CAP, sa_cap(mode_cap(1, options=1 << bit))).code == OK


@pytest.mark.parametrize(
    "entry",
    [
        mode_cap(0),
        mode_cap(5),
        mode_cap(1, window=4097),
        mode_cap(1, options=128),
        mode_cap(2, options=4),
        mode_cap(4, options=2),
        mode_cap(1, cipher=1 << 7),
        mode_cap(3, cipher=1),
        mode_cap(1, hmac=1 << 1),
        mode_cap(1, aead=1),
        mode_cap(1, ckey=33),
        mode_cap(3, ckey=1),
        mode_cap(1, akey=33),
    ],
)
def test_an_entry_beyond_the_device_entry_is_refused(guest: Any, entry: bytes) -> None:
    assert guest.cap_set(SA_CAP, sa_cap(entry)).code == INVALID_FIELD


def test_modes_are_unique_and_ascending(guest: Any) -> None:
    assert guest.cap_set(SA_CAP, sa_cap(mode_cap(1), mode_cap(3))).code == OK
    assert guest.cap_set(SA_CAP, sa_cap(mode_cap(3), mode_cap(1))).code == INVALID_FIELD
    assert guest.cap_set(SA_CAP, sa_cap(mode_cap(1), mode_cap(1))).code == INVALID_FIELD


@pytest.mark.parametrize("cap", [SA_CAP, FF_SELECTORS, FF_ACTIONS])
def test_a_count_above_the_data_is_refused(guest: Any, cap: int) -> None:
    """E84: the missing entries are reserved values."""
    assert guest.cap_set(cap, b"\x02").code == INVALID_FIELD
    assert guest.cap_set(cap, b"\xff").code == INVALID_FIELD


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IIIIBB", 65, 1, 1, 1, 1, 1),
        struct.pack("<IIIIBB", 1, 257, 1, 1, 1, 1),
        struct.pack("<IIIIBB", 1, 1, 4097, 1, 1, 1),
        struct.pack("<IIIIBB", 1, 1, 1, 4097, 1, 1),
        struct.pack("<IIIIBB", 1, 1, 1, 1, 1, 4),
    ],
)
def test_flow_filter_limits_above_the_device_are_refused(guest: Any, data: bytes) -> None:
    assert guest.cap_set(FF_LIMITS, data).code == INVALID_FIELD


@pytest.mark.parametrize(
    ("actions", "code"),
    [
        ((), OK),
        ((4,), OK),
        ((1, 2, 3, 4), OK),
        ((2, 1), INVALID_FIELD),
        ((1, 1), INVALID_FIELD),
        ((0,), INVALID_FIELD),
        ((5,), INVALID_FIELD),
    ],
)
def test_actions_are_a_sorted_subset(guest: Any, actions: tuple[int, ...], code: tuple[int, int]) -> None:
    assert guest.cap_set(FF_ACTIONS, struct.pack("<B7x", len(actions)) + bytes(actions)).code == code


def test_selectors_are_a_sorted_subset_of_the_device(make: Callable[..., Any], layouts: Any) -> None:
    from virtio_ipsec.wire.flow_filter import FfSelectorCap, Selector

    offered = FfSelectorCap((Selector(1, 0, bytes(12) + b"\xff\xff"), Selector(2, 1, b"\xff" * 20)))
    guest = make(DeviceConfig(ff_selectors=offered), ready=False)
    guest.use_everything()

    def attempt(*selectors: bytes) -> tuple[int, int]:
        code: tuple[int, int] = guest.cap_set(FF_SELECTORS, layouts.classifier(*selectors)).code
        return code

    ethertype = bytes(12) + b"\xff\xff"
    assert attempt(layouts.selector(1, ethertype), layouts.selector(2, bytes(20), 1)) == OK
    assert attempt(layouts.selector(2, bytes(20)), layouts.selector(1, ethertype)) == INVALID_FIELD
    assert attempt(layouts.selector(1, ethertype), layouts.selector(1, ethertype)) == INVALID_FIELD
    assert attempt(layouts.selector(3, bytes(40))) == INVALID_FIELD
    assert attempt(layouts.selector(1, b"\x01" + bytes(13))) == INVALID_FIELD
    assert attempt(layouts.selector(1, ethertype, 1)) == INVALID_FIELD
    assert attempt(layouts.selector(1, bytes(13))) == INVALID_FIELD
    assert attempt(layouts.selector(2, b"\x80" * 20, 1)) == OK


@pytest.mark.parametrize("kind", [OUTB, INB])
@pytest.mark.parametrize("opcode", [0xA, 0xB, 0xC, 0xD])
@pytest.mark.parametrize(
    ("limits", "modes"),
    [
        (None, True),
        (struct.pack("<II", 0, 0), True),
        (struct.pack("<II", 9, 9), None),
        (struct.pack("<II", 9, 9), False),
    ],
    ids=["no limits set", "limits zero", "no modes set", "modes empty"],
)
def test_commands_of_a_disabled_ipsec_capability_are_invalid_opcodes(
    make: Callable[..., Any], layouts: Any, kind: int, opcode: int, limits: bytes | None, modes: bool | None
) -> None:
    """E34."""
    guest = make(ready=False)
    guest.use_everything()
    if limits is not None:
        assert guest.cap_set(LIMITS, limits).code == OK
    if modes is not None:
        assert guest.cap_set(SA_CAP, guest.cap_get(SA_CAP).result if modes else bytes(8)).code == OK
    assert guest.object(opcode, kind, 0, layouts.sa()).code == INVALID_OPCODE


@pytest.mark.parametrize("disabled", [FF_LIMITS, FF_SELECTORS, FF_ACTIONS])
@pytest.mark.parametrize("zero", [True, False])
def test_commands_of_a_disabled_flow_filter_are_invalid_opcodes(
    make: Callable[..., Any], disabled: int, zero: bool
) -> None:
    guest = make(ready=False)
    guest.use_everything()
    guest.enable(*({FF_LIMITS, FF_SELECTORS, FF_ACTIONS} - {disabled}))
    if zero:
        assert guest.cap_set(disabled, bytes(24)).code == OK
    for kind in (0x200, 0x201, 0x202):
        for opcode in (0xA, 0xB, 0xC, 0xD):
            assert guest.object(opcode, kind, 0, bytes(64)).code == INVALID_OPCODE


def test_one_direction_alone_may_be_zero(guest: Any, layouts: Any) -> None:
    """E35."""
    assert guest.cap_set(LIMITS, struct.pack("<II", 1, 0)).code == OK
    assert guest.create(OUTB, 0, layouts.sa()) == INVALID_FIELD
    assert guest.create(INB, 0, layouts.inbound()) == OK


@pytest.mark.parametrize("cap", [LIMITS, SA_CAP])
@pytest.mark.parametrize("kind", [OUTB, INB])
def test_no_ipsec_capability_changes_under_a_live_sa(guest: Any, layouts: Any, cap: int, kind: int) -> None:
    """E46, and values that are not even legal: EBUSY goes first (E86)."""
    same = guest.cap_get(cap).result
    assert guest.create(kind, 3, layouts.sa() if kind == OUTB else layouts.inbound()) == OK
    for data in (same, bytes(8), b"\xff" * 64):
        assert guest.cap_set(cap, data).code == EBUSY
    for other in (FF_LIMITS, FF_SELECTORS, FF_ACTIONS):
        assert guest.cap_set(other, guest.cap_get(other).result).code == OK
    assert guest.destroy(kind, 3) == OK
    assert guest.cap_set(cap, same).code == OK


@pytest.mark.parametrize("cap", [FF_LIMITS, FF_SELECTORS, FF_ACTIONS])
def test_no_flow_filter_capability_changes_under_a_live_group(guest: Any, cap: int) -> None:
    assert guest.create(GROUP, 0, b"\x01\x00") == OK
    assert guest.cap_set(cap, bytes(24)).code == EBUSY
    assert guest.cap_set(LIMITS, struct.pack("<II", 1, 1)).code == OK
    assert guest.destroy(GROUP, 0) == OK
    assert guest.cap_set(cap, bytes(24)).code == OK


def test_reset_clears_what_the_driver_set(guest: Any, layouts: Any) -> None:
    assert guest.device.capabilities.driver_values()
    guest.device.negotiate(guest.device.offered_features)
    guest.use_everything()
    assert guest.device.capabilities.driver_values() == {}
    assert guest.create(OUTB, 0, layouts.sa()) == INVALID_OPCODE
