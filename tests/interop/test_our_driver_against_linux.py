"""Our driver owns the SAs; the far end of the wire is a guest whose Linux protects in its kernel.

The driver runs in this machine, or in a guest of its own on vfio-pci: with the IOMMU that QEMU emulates, and in
no-IOMMU mode, for which ``setup --vfio`` builds what no kernel of Debian's has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab.backend import ROOT, Backend
from lab.cases import CASES, GUEST_MAC, PEER_MAC, PROTECTED, peer_script
from lab.checker import check
from lab.guest import FUNCTION, Guest, plain_card, vfio_user_card
from lab.inside import HUGE_PAGES, PYTHON, SET_UP, bind_to_vfio, disks
from lab.station import sas_of
from lab.wire import Wire
from lab.xfrm import kernel_errors

from virtio_ipsec.wire.numbers import Feature

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]

CONFIG = f'[port]\ncontrol = "guest"\nguest_mac = "{GUEST_MAC}"\n'

#: Runs drive.py; its output.
Run = Callable[[], str]


@contextmanager
def here(protocol: str, backend: Backend) -> Iterator[Run]:
    def run() -> str:
        interop = Path(__file__).parent
        command = [sys.executable, interop / "guest" / "drive.py", f"{protocol}:{backend.socket}"]
        paths = os.environ | {"PYTHONPATH": f"{ROOT}:{interop}"}
        done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=120, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    yield run


@contextmanager
def in_a_guest(backend: Backend, *, iommu: bool) -> Iterator[Run]:
    folder = backend.folder
    with Guest(
        "guest", folder, vfio_user_card(backend.socket, iommu=iommu), newer=True, memory=640, disks=disks(folder),
        kernel_words="intel_iommu=on iommu=pt" if iommu else "",
    ) as guest:  # fmt: skip
        guest.wait().run(f"{HUGE_PAGES}\n{SET_UP}\n{bind_to_vfio(FUNCTION, iommu=iommu)}")
        yield lambda: guest.run(f"{PYTHON} /ours/guest/drive.py vfio:{FUNCTION}", 600.0)


#: Name -> (how the device is served, where the driver runs).
PLACES = {
    "vhost-user": ("--socket", lambda backend: here("vhost-user", backend)),
    "vfio-user": ("--vfio-user", lambda backend: here("vfio-user", backend)),
    "guest-without-iommu": ("--vfio-user", lambda backend: in_a_guest(backend, iommu=False)),
    "guest-with-iommu": ("--vfio-user", lambda backend: in_a_guest(backend, iommu=True)),
}


def neighbours() -> str:
    """Script for the peer: our driver answers neither ARP nor neighbour discovery."""
    ends = {case.ends[0] for case in CASES}
    return "\n".join(
        f"ip neigh replace {end} lladdr {GUEST_MAC} dev eth0 nud permanent" for end in sorted(ends)
    )


@pytest.mark.parametrize("place", PLACES)
def test_echoes_through_every_protection(tmp_path: Path, place: str) -> None:
    protocol, driver = PLACES[place]
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(tmp_path, CONFIG, wire.ports["device"].uplink, protocol=protocol) as backend,
        driver(backend) as run,
        Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)) as peer,
    ):
        peer.wait().run(f"{peer_script()}\n{neighbours()}")
        session, *cases = map(json.loads, run().splitlines())
        wanted = {Feature.F_ADMIN_VQ, Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC}
        assert wanted <= set(session["features"])
        assert [case["case"] for case in cases] == [case.name for case in CASES]
        assert kernel_errors(peer) == ""
    report = check(tmp_path / "wire.pcapng", sas_of(CASES), PROTECTED)
    report.require_clean()
    assert report.sas.keys() == {spi for case in CASES for spi in (case.outbound_spi, case.inbound_spi)}
