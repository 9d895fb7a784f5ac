"""The suite through a vhost-user socket: what the device does in its own thread and time is judged as on loopback."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import Target, open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vhost_user.backend import Backend
from virtio_ipsec.wire.dialect import V14

#: Of each engine; those of reset, queues and receiving depend most on who does what when.
SAMPLES = {
    "python": ("sanity-start", "queue-reset-stops", "queue-reset-transmit-anew", "net-header-size"),
    "auto": (
        "sanity-start",
        "queue-reset-*",
        "status-*-before-driver-ok",
        "net-header-size",
        "ipsec-in-corrupted",
    ),
}


@contextmanager
def served(engine: str) -> Iterator[Target]:
    """A device behind a socket, with a wire, in threads of this process."""
    with tempfile.TemporaryDirectory() as folder:
        device = Device(DeviceConfig(), os.urandom, fast_path(engine, os.urandom))
        port = ServedPort(device, open_uplink(f"unix:{folder}/wire"), name="conformance")
        backend = Backend(port, f"{folder}/device")
        control = threading.Thread(target=port.loop.run)
        control.start()
        try:
            with open_target(f"vhost-user:{folder}/device", V14, f"unix:{folder}/wire") as target:
                yield target
        finally:
            port.loop.ask(backend.close)
            port.loop.stop()
            control.join()
            port.close()


@pytest.mark.parametrize("engine", SAMPLES)
def test_a_sample_of_the_suite_passes_through_the_socket(engine: str) -> None:
    cases = select(V14.name, SAMPLES[engine])
    assert len(cases) >= 4
    with served(engine) as target:
        report = run(target, cases, seed=3, thin=True)
    assert report.identity.wire
    assert {case.id: case.verdict for case in report.cases} == dict.fromkeys(
        (case.id for case in cases), Verdict.PASS
    )


def test_a_back_end_without_the_binding_has_no_ipsec_to_judge() -> None:
    with served("auto") as target:
        path = target.name.partition(":")[2]
        target.close()
        with open_target(f"vhost-user:{path},plain", V14) as plain:
            report = run(plain, select(V14.name, ["sanity-start", "ipsec-in-corrupted"]), thin=True)
    assert [(case.id, case.verdict) for case in report.cases] == [
        ("ipsec-in-corrupted", Verdict.UNSUPPORTED),
        ("sanity-start", Verdict.PASS),
    ]
