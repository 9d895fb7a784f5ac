"""The whole conformance suite against a port that another process serves."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.dialect import DIALECTS, Dialect


@pytest.mark.guests
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda each: each.name)
def test_the_whole_suite_against_a_served_port_is_judged_as_on_loopback(dialect: Dialect) -> None:
    """Another process serves: ``virtio-ipsec serve`` as a user starts it."""
    cases = select(dialect.name)
    with open_target("loopback", dialect) as embedded:
        expected = {case.id: case.verdict for case in run(embedded, cases, thin=True).cases}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "virtio_ipsec", "serve", "--socket", f"{folder}/device"]
        pairs = DeviceConfig().max_queue_pairs
        Path(folder, "port.toml").write_text(
            f'dialect = "{dialect.name}"\n[port]\ncontrol = "guest"\nqueue_pairs = {pairs}\n'
        )
        process = subprocess.Popen(
            [*command, "--config", f"{folder}/port.toml", "--uplink", f"unix:{folder}/wire"]
        )
        try:
            with open_target(f"vhost-user:{folder}/device", dialect, f"unix:{folder}/wire") as target:
                found = {case.id: case.verdict for case in run(target, cases, thin=True).cases}
        finally:
            process.terminate()
            process.wait(10)
    assert found == expected
