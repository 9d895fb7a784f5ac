"""An unmodified Linux in an unmodified QEMU on `serve --vfio-user`: it takes the function for a network card.

At the far end of the device's uplink, a tap, stands the Linux of this machine in a network namespace (needs root).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from lab.backend import Backend
from lab.guest import FUNCTION, Guest, vfio_user_card
from lab.inside import PYTHON, SET_UP, disks
from lab.namespace import ip, own_namespace
from lab.processes import until
from lab.xfrm import ping

from virtio_ipsec.wire.numbers import Feature

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64"), pytest.mark.interop("ip")]

HERE, THERE = "10.77.0.1", "10.77.0.2"
PORT = 8077
UP = f"ip link set eth0 up && ip addr add {THERE}/24 dev eth0"
CONFIG = '[port]\ncontrol = "guest"\nguest_mac = "02:00:00:00:77:02"\n'
ROUNDS = 20
#: More than the queues hold, and no zero octets, of which busybox posts nothing behind the first.
PAGE = hashlib.shake_128(b"page").hexdigest(1_500_001).encode()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Backend]:
    with own_namespace():
        ip("tuntap", "add", "tap0", "mode", "tap")
        ip("link", "set", "tap0", "up")
        ip("addr", "add", f"{HERE}/24", "dev", "tap0")
        with Backend(tmp_path, CONFIG, "tap:tap0", protocol="--vfio-user") as backend:
            yield backend


def boot(served: Backend, *, iommu: bool = False, **options: object) -> Guest:
    card = vfio_user_card(served.socket, iommu=iommu)
    return Guest("guest", served.folder, card, newer=True, **options)  # type: ignore[arg-type]


def descriptors(served: Backend) -> int:
    return len(os.listdir(f"/proc/{served.pid}/fd"))


def features(guest: Guest) -> set[int]:
    """What Linux has negotiated."""
    text = guest.run("cat /sys/class/net/eth0/device/features").strip()
    return {number for number, bit in enumerate(text) if bit == "1"}


class Page(BaseHTTPRequestHandler):
    """Gives PAGE; says whether what is posted is PAGE."""

    def do_GET(self) -> None:
        self._answer(PAGE)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"same" if data == PAGE else b"other")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silent."""


def move_pages(guest: Guest) -> None:
    """PAGE into the guest, and out of it."""
    server = HTTPServer((HERE, PORT), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://{HERE}:{PORT}/"
        output = guest.run(
            f"wget -qO /tmp/page {url} && sha256sum </tmp/page && wget -qO - --post-file /tmp/page {url}",
            180.0,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert output.split() == [hashlib.sha256(PAGE).hexdigest(), "-", "same"]


def test_linux_sees_bit_70_and_works_without_it(served: Backend) -> None:
    with boot(served, disks=disks(served.folder)) as guest:
        guest.wait().run(SET_UP + UP)
        assert guest.run("basename $(readlink /sys/class/net/eth0/device/driver)").strip() == "virtio_net"

        lines = dict(
            line.split(maxsplit=1)
            for line in guest.run(f"{PYTHON} /ours/guest/offered.py {FUNCTION}", 120.0).splitlines()
        )
        offered = {int(word) for word in lines["offered"].split()}
        assert {Feature.F_ADMIN_VQ, Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC} <= offered
        taken = features(guest)
        assert {Feature.F_VERSION_1, Feature.F_ADMIN_VQ} <= taken <= offered
        assert not {Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC} & taken

        assert not ping(guest, HERE)
        assert not ping(guest, HERE, "-s 1400")
        subprocess.run(["ping", "-qc2", "-i0.2", "-W5", THERE], check=True, stdout=subprocess.DEVNULL)
        move_pages(guest)

        interrupts = guest.run(f"grep {FUNCTION} /proc/interrupts")
        counts = {
            line.split()[-1].partition("-")[2]: int(line.split()[1]) for line in interrupts.splitlines()
        }
        assert "MSIX" in interrupts
        # Linux gives each queue a vector, the administration queue among them, and waits for what it asked there.
        used = f"avq.{lines['admin'].split()[0]}"
        assert counts.keys() == {"config", "input.0", "output.0", used}
        assert all(counts[name] for name in ("input.0", "output.0", used)), counts


def test_linux_behind_an_iommu_that_translates(served: Backend) -> None:
    """QEMU says of each page when it is mapped and when no longer: rings lie over several, from anywhere in memory."""
    with boot(served, iommu=True, kernel_words="intel_iommu=on") as guest:
        guest.wait().run(UP)
        group = f"/sys/bus/pci/devices/{FUNCTION}/iommu_group"
        assert guest.run(f"cat {group}/type").strip() == "DMA"
        assert Feature.F_ACCESS_PLATFORM in features(guest)
        assert not ping(guest, HERE)
        move_pages(guest)
        for _ in range(3):  # other pages each time
            guest.run(
                f"for word in unbind bind; do echo {FUNCTION} >/sys/bus/pci/drivers/virtio-pci/$word; done"
            )
            guest.run(f"until [ -d /sys/class/net/eth0 ]; do sleep 0.1; done; {UP}")
            assert not ping(guest, HERE)
        counts = served.counters()
    wrong = {"refused_messages", "rx_refused_queue_disabled", "tx_refused_queue_disabled", "internal_errors"}
    assert not {name: counts[name] for name in wrong if counts.get(name)}


def test_driver_unbound_and_bound_again_and_again(served: Backend) -> None:
    """By turns from the PCI function and from the virtio device that Linux makes of it."""
    with boot(served) as guest:
        guest.wait().run(UP)
        assert not ping(guest, HERE)
        before = descriptors(served)
        for number in range(ROUNDS):
            if number % 2:
                name, folder = (
                    "$(basename $(readlink /sys/class/net/eth0/device))",
                    "virtio/drivers/virtio_net",
                )
            else:
                name, folder = FUNCTION, "pci/drivers/virtio-pci"
            guest.run(f"name={name}; for word in unbind bind; do echo $name >/sys/bus/{folder}/$word; done")
            guest.run(f"until [ -d /sys/class/net/eth0 ]; do sleep 0.1; done; {UP}")
            assert not ping(guest, HERE), number
        assert descriptors(served) == before


def test_reboots(served: Backend) -> None:
    counts = []
    with boot(served, reboots=True) as guest:
        for number in range(ROUNDS + 1):
            guest.wait().run(UP)
            assert not ping(guest, HERE), number
            counts.append(descriptors(served))
            guest.send("reboot -f")
    assert len(set(counts)) == 1, counts


def test_qemu_killed_and_the_next_one_served(served: Backend) -> None:
    before = descriptors(served)
    for _ in range(3):
        with boot(served) as guest:
            guest.wait().run(UP)
            # It is in the middle of something.
            guest.send(f"ping -A -c 10000 {HERE} >/dev/null")
            guest.process.kill()
            guest.process.wait()
        for path in served.folder.glob("guest.*"):
            path.unlink()
        until("the server has let the client go", lambda: descriptors(served) == before)
