"""The virtio-net driver of an unmodified Linux 7.2 in QEMU 11.1, judged by what it does to a watched PCI function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab.guest import Guest, vfio_user_card
from lab.processes import spawn, stop, until

from virtio_ipsec.conformance.reports import master
from virtio_ipsec.conformance.verdict import Verdict

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]

ROOT = Path(__file__).parents[2]
ADDRESS = "10.77.0.2"
UP = f"ip link set eth0 up && ip addr add {ADDRESS}/24 dev eth0"
LET_GO = "ip link set eth0 down; cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do echo $d > unbind; done"
#: It takes a packet with the tunnel-checksum flag and without a tunnel, though it has negotiated
#: GUEST_UDP_TUNNEL_GSO_CSUM: virtio v1.4 5.1.6.4 forbids that.
BROKEN = {"NET-RX-DRV-09"}
#: hdr_len is 0 in packets that are not segmented; NOTIF_CONFIG_DATA is not accepted.
ADVICE = {"NET-TX-DRV-24", "BAS-RSVD-06"}


@pytest.mark.parametrize("iommu", [False, True], ids=["plain", "behind-an-iommu"])
def test_linux_is_judged_by_its_registers_queues_and_answers(tmp_path: Path, iommu: bool) -> None:
    path, log, file = tmp_path / "device", tmp_path / "judge.log", tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "virtio_ipsec",
        "conformance",
        "--driver",
        "--listen",
        f"vfio-user:{path}",
    ]
    process = spawn([*command, "--probe", ADDRESS, "--json", str(file)], log, cwd=ROOT)
    try:
        until("the device is there", path.exists, 60)
        card, words = vfio_user_card(path, iommu=iommu), "intel_iommu=on" if iommu else ""
        with Guest("guest", tmp_path, card, newer=True, kernel_words=words) as guest:
            guest.wait()
            guest.run(UP)
            guest.run("sleep 15", 60)  # for the questions
            guest.attempt(LET_GO, 60)
        process.wait(60)
    finally:
        stop(process)
    report = master.read(file)
    found = {verdict: {c.clauses[0] for c in report.cases if c.verdict is verdict} for verdict in Verdict}
    assert (found[Verdict.FAIL], found[Verdict.WARN], found[Verdict.ERROR]) == (BROKEN, ADVICE, set())
    assert len(found[Verdict.PASS]) >= 40
    assert found[Verdict.PASS] >= {
        *("BAS-FEAT-04", "BAS-INIT-05", "BAS-INIT-09", "PCI-CC-DRV-04", "PCI-CC-DRV-05"),
        *("NET-RX-DRV-01", "NET-RX-DRV-05", "NET-RX-DRV-06", "NET-RX-DRV-08", "NET-TX-DRV-02"),
    }
