"""The case that frames a run: without it every other verdict would be meaningless."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.wire.numbers import Feature, Status, has


@case("sanity-start", "BAS-RSVD-07", "BAS-FEAT-08", "BAS-RESET-01")
def start(bench: Bench) -> None:
    """The device offers VERSION_1, accepts what it offered, starts, and its status reads 0 after a reset.

    Runs first and last: without it every other verdict would be meaningless. The status is read after each step.
    """
    offered = bench.target.device_features()
    bench.require("BAS-RSVD-07", has(offered, Feature.F_VERSION_1), "VERSION_1 is offered", f"{offered:#x}")
    bench.start()
    status = bench.target.status()
    bench.require(
        "BAS-FEAT-08", bool(status & Status.FEATURES_OK), "FEATURES_OK stays set for offered features", status
    )
    bench.reset()
    bench.check(
        "BAS-RESET-01", bench.target.status() == 0, "device status is 0 after reset", bench.target.status()
    )
