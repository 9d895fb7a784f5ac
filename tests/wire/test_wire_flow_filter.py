"""Flow-filter capabilities and objects, byte by byte."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.flow_filter import (
    FF_ACTION_CAP,
    FF_CLASSIFIER,
    FF_GROUP,
    FF_RESOURCE_CAP,
    FF_RULE,
    FF_SELECTOR_CAP,
    SELECTOR,
    FfActionCap,
    FfClassifier,
    FfGroup,
    FfResourceCap,
    FfRule,
    FfSelectorCap,
    Selector,
)
from virtio_ipsec.wire.numbers import FfAction, SelectorFlag, SelectorType

ETH = Selector(SelectorType.ETH, mask=bytes(12) + b"\xff\xff")
ESP = Selector(SelectorType.ESP, SelectorFlag.PARTIAL_MASK, b"\xff\xff\xff\xff\0\0\0\0")
ETH_BYTES = "01 00 0000 0e 000000" + "00" * 12 + "ffff"
ESP_BYTES = "06 01 0000 08 000000 ffffffff 00000000"


def test_selectors_follow_one_another_without_padding() -> None:
    wire = bytes.fromhex(f"02 {'00' * 7} {ETH_BYTES} {ESP_BYTES}")
    assert FF_CLASSIFIER.build(FfClassifier((ETH, ESP))) == wire
    assert FF_CLASSIFIER.parse(wire, exact=True) == FfClassifier((ETH, ESP))
    assert FF_SELECTOR_CAP.parse(wire) == FfSelectorCap((ETH, ESP))


def test_a_selector_that_is_cut_is_filled_with_zeros_unless_it_must_be_complete() -> None:
    wire = SELECTOR.build(ESP)
    assert SELECTOR.parse(wire[:12]) == ESP
    assert SELECTOR.parse(wire[:9]).mask == b"\xff" + bytes(7)
    with pytest.raises(WireError):
        SELECTOR.parse(wire[:12], complete=True)
    assert FF_CLASSIFIER.parse(b"\3") == FfClassifier((Selector(0),) * 3)


def test_a_rule_in_bytes() -> None:
    value = FfRule(1, 2, rule_priority=3, action=FfAction.DIRECT_RX_VQ, vq_index=4, keys=b"\xab" * 42)
    wire = bytes.fromhex("01000000 02000000 03 2a 02 00 0400 0000" + "ab" * 42)
    assert FF_RULE.build(value) == wire
    assert FF_RULE.parse(wire + bytes(6)) == value
    assert FF_RULE.parse(wire[:-2]).keys == b"\xab" * 40 + bytes(2)
    with pytest.raises(WireError, match="one-byte length"):
        FF_RULE.build(FfRule(1, 2, 3, 1, keys=bytes(256)))


def test_resource_capability_in_bytes() -> None:
    value = FfResourceCap(1, 2, 3, 4, 5, 6)
    wire = bytes.fromhex("01000000 02000000 03000000 04000000 05 06 0000")
    assert FF_RESOURCE_CAP.build(value) == wire
    assert FF_RESOURCE_CAP.parse(wire[:18], complete=False) == value


def test_actions_in_bytes() -> None:
    value = FfActionCap((FfAction.DROP, FfAction.IPSEC))
    wire = bytes.fromhex("02 00000000000000 01 03")
    assert FF_ACTION_CAP.build(value) == wire
    assert FF_ACTION_CAP.parse(wire + bytes(6)) == value
    assert FF_ACTION_CAP.parse(b"") == FfActionCap()


@pytest.mark.parametrize("length", [1, 8, 9])
def test_actions_that_are_announced_but_absent_are_refused(length: int) -> None:
    with pytest.raises(WireError, match="announced"):
        FF_ACTION_CAP.parse(bytes.fromhex("02 00000000000000 01 03")[:length])


@pytest.mark.parametrize("actions", [(256,), (-1,), (1,) * 256])
def test_actions_that_do_not_fit_are_refused(actions: tuple[int, ...]) -> None:
    with pytest.raises(WireError):
        FF_ACTION_CAP.build(FfActionCap(actions))


def test_a_group_in_bytes() -> None:
    assert FF_GROUP.build(FfGroup(0x1234)) == b"\x34\x12"
    assert FF_GROUP.parse(b"\x34") == FfGroup(0x34)
