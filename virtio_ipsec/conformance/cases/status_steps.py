"""The status field as the driver writes it, step by step."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import WANTED, Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.sas import TYPES, enable, install, make
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.wire.numbers import Direction, Status


@case("status-steps", "INF-60", needs=("status",))
def status_steps(bench: Bench) -> None:
    """Each step that the driver writes shows in the status field, and stays until the reset.

    ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK one after the other, each read back; then a reset.
    """
    bench.reset()
    target = bench.target
    done = 0
    for step in (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK):
        if step is Status.FEATURES_OK:
            target.write_driver_features(target.device_features() & WANTED)
        done |= step
        target.write_status(done)
        bench.check("INF-60", target.status() == done, f"status is {done} after {step.name}", target.status())
    bench.start()
    wanted = done | Status.DRIVER_OK
    bench.check("INF-60", target.status() == wanted, f"status is {wanted} at work", target.status())
    bench.reset()
    bench.check("INF-60", target.status() == 0, "status is 0 after a reset", target.status())


@case("status-written-again", "INF-60", needs=("admin", "ipsec"))
def status_written_again(bench: Bench) -> None:
    """A status that is written once more changes nothing.

    An SA is made, the whole status written again: the SA is still there, and the command list in force.
    """
    bench.start()
    enable(bench)
    sa = make(bench)
    demand(install(bench, 0, sa))
    bench.target.write_status(bench.target.status())
    again = install(bench, 0, sa)
    bench.check("INF-60", again.status == AdminStatus.EEXIST, "the SA is still there", again)
    gone = bench.admin.destroy(TYPES[Direction.OUTBOUND], 0)
    bench.check("INF-60", gone.ok, "commands go on", gone)
