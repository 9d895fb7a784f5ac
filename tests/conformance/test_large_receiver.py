"""A device that merges what it receives, and does it rightly, passes every case that is about that."""

from __future__ import annotations

from random import Random

import pytest
from large_receiver import LargeDevice

from virtio_ipsec.conformance.case import load_cases
from virtio_ipsec.conformance.runner import run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.wire.dialect import V14

RECEIVE = [case for case in load_cases() if case.id.startswith("rx-") and case.clauses_in(V14.name)]


@pytest.mark.parametrize("case", RECEIVE, ids=lambda case: case.id)
def test_right_merging_passes(case: object) -> None:
    config = DeviceConfig(dialect=V14, max_queue_pairs=2)
    target = loopback("python", V14, LargeDevice, config, Random(1).randbytes)
    found = run_case(case, target, seed=1)  # type: ignore[arg-type]
    wrong = [(c.clause, c.expected, c.seen) for c in found.checks if c.verdict is not Verdict.PASS]
    assert (found.verdict, found.reason, wrong) == (Verdict.PASS, "", [])
