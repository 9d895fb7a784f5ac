"""What a case declares to need, a device or a test bed without it is not judged by: UNSUPPORTED, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from virtio_ipsec.conformance.case import NEEDS, load_cases
from virtio_ipsec.conformance.requirements import unmet
from virtio_ipsec.conformance.runner import run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.transport.loopback_target import LoopbackTarget
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.numbers import Feature, mask


class Wireless(LoopbackTarget):
    has_wire = False


class Forgetful(LoopbackTarget):
    """As a back-end without VHOST_USER_PROTOCOL_F_STATUS: its front-end makes the status up."""

    keeps_status = False


#: Need -> the feature that a device without it lacks, with those that want it.
FEATURES: Mapping[str, Feature] = {
    "admin": Feature.F_ADMIN_VQ,
    "flow_filter": Feature.F_ADMIN_VQ,
    "ipsec": Feature.NET_F_IPSEC,
    "ctrl_vq": Feature.NET_F_CTRL_VQ,
    "queue_reset": Feature.F_RING_RESET,
    "mq": Feature.NET_F_MQ,
}
TARGETS: Mapping[str, type[LoopbackTarget]] = {"wire": Wireless, "status": Forgetful}
#: A loopback has neither registers nor virtual functions.
NEVER = {"pci", "members"}


def without(need: str) -> LoopbackTarget:
    settings: dict[str, Any] = {"max_queue_pairs": 2}
    if need == "modify_query":
        settings["dialect"] = RFC_2025_01
    if need in FEATURES:
        features = IMPLEMENTED & ~mask(FEATURES[need])
        while broken := unmet(features):
            features &= ~mask(*broken)
        settings["features"] = features
    return TARGETS.get(need, LoopbackTarget)(Device(DeviceConfig(**settings), Random(1).randbytes))


@pytest.mark.parametrize("need", NEEDS)
def test_cases_that_need_what_is_not_there_are_unsupported(need: str) -> None:
    target = without(need)
    known: dict[str, bool] = {}
    results = [run_case(case, target, 0, known) for case in load_cases() if need in case.needs]
    assert results
    assert {result.verdict for result in results} == {Verdict.UNSUPPORTED}
    assert [result.id for result in results if NEEDS[need] not in result.reason] == []
    assert not any(result.checks for result in results)


@pytest.mark.parametrize("need", sorted(NEEDS.keys() - NEVER))
def test_they_run_where_it_is_there(need: str) -> None:
    target = LoopbackTarget(Device(DeviceConfig(max_queue_pairs=2), Random(1).randbytes))
    case = next(case for case in load_cases() if need in case.needs and not case.needs & NEVER)
    assert run_case(case, target, 0, thin=True).verdict is Verdict.PASS
