"""DPDK's own back-end (testpmd with net_vhost) at the other end of our front-end: frames go out and come back."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import Options
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.numbers import Feature, has, mask

pytestmark = [pytest.mark.interop("dpdk-testpmd"), pytest.mark.guests]

MAC, OTHER = bytes.fromhex("5254000000aa"), bytes.fromhex("5254000000bb")
PATIENCE = 20.0
RINGS = {
    "split": mask(Feature.F_RING_PACKED, Feature.F_IN_ORDER, Feature.NET_F_MRG_RXBUF),
    "split-mergeable": mask(Feature.F_RING_PACKED, Feature.F_IN_ORDER),
    "packed": mask(Feature.F_IN_ORDER, Feature.NET_F_MRG_RXBUF),
    "packed-mergeable": mask(Feature.F_IN_ORDER),
    "in-order": mask(Feature.F_RING_PACKED),
    "packed-in-order": 0,
}


@contextmanager
def running_testpmd(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """testpmd whose one port is a vhost-user server at ``path`` and sends back what it receives."""
    Path(path).unlink(missing_ok=True)
    command = [
        *("dpdk-testpmd", "--lcores", "0@0,1@0", "--no-huge", "-m", "128", "--no-pci", "--no-telemetry"),
        *("--no-shconf", "--vdev", f"net_vhost0,iface={path},queues=1", "--"),
        *(
            "--forward-mode=io",
            "--port-topology=loop",
            "--auto-start",
            "--total-num-mbufs=4096",
            "--no-mlockall",
        ),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/s"


def echo(link: VhostUserLink, driver: Driver, frames: list[bytes]) -> list[bytes]:
    """What comes back of these frames."""
    back: list[bytes] = []
    limit = time.monotonic() + PATIENCE
    for frame in frames:
        driver.send(frame)
    while len(back) < len(frames) and time.monotonic() < limit:
        link.poll(0.05)
        back += [packet.frame for packet in driver.receive()]
    return back


def frames(count: int) -> list[bytes]:
    head = OTHER + MAC + b"\x88\xb5"
    return [head + number.to_bytes(2) + os.urandom(46 + number * 7 % 1400) for number in range(count)]


@pytest.mark.parametrize("name", RINGS)
def test_frames_come_back_as_they_were(name: str, path: str) -> None:
    options = Options(memory=16 << 20, config=NetConfig(mac=MAC))
    with running_testpmd(path):
        link = VhostUserLink.at(path, options, timeout=PATIENCE)
        driver = Driver(link, config=DriverConfig(wanted=SUPPORTED & ~RINGS[name]))
        driver.start()
        assert has(link.driver_features(), Feature.F_RING_PACKED) == ("packed" in name)
        for _ in range(3):
            sent = frames(100)
            assert echo(link, driver, sent) == sent
        driver.start()
        sent = frames(20)
        assert echo(link, driver, sent) == sent
        link.close()


def test_the_front_end_goes_on_with_a_back_end_that_was_killed_and_started_again(path: str) -> None:
    options = Options(memory=16 << 20, config=NetConfig(mac=MAC))
    with running_testpmd(path) as process:
        link = VhostUserLink.at(path, options, timeout=PATIENCE)
        driver = Driver(link, config=DriverConfig(wanted=SUPPORTED & ~RINGS["split"]))
        driver.start()
        sent = frames(50)
        assert echo(link, driver, sent) == sent
        process.kill()
        process.wait()
        with pytest.raises(PeerClosed):
            link.poll(PATIENCE)
        with pytest.raises(TransportError):
            VhostUserLink.at(path, options, timeout=0)
    with running_testpmd(path):
        link.reconnect()
        sent = frames(50)
        assert echo(link, driver, sent) == sent
        link.close()
