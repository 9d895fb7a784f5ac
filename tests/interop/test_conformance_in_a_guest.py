"""`virtio-ipsec conformance --device vfio:…` in a guest, against functions that QEMU shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab.backend import Backend
from lab.guest import FUNCTION, Guest, plain_card, vfio_user_card
from lab.inside import HUGE_PAGES, PYTHON, SET_UP, bind_to_vfio, disks
from lab.wire import Wire

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]

MACS = "52:54:00:00:10:01", "52:54:00:00:11:01"
WIRE_END = "0000:00:11.0"
#: What QEMU 11.1.3 does otherwise than the specification says; `spec/guide/verdicts.md` discusses it.
FINDINGS = {"feature-foreign-bits", "pci-config-generation", "rx-single-buffer"}


def verdicts(guest: Guest) -> dict[str, str]:
    """Of the whole suite, whose wire ends at a card that Linux has."""
    guest.wait().run(f"""
{HUGE_PAGES}
# Nobody else speaks on the wire.
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
{SET_UP}
{bind_to_vfio(FUNCTION, iommu=False)}
ip link set $(ls /sys/bus/pci/devices/{WIRE_END}/virtio*/net) name wire mtu 9000 promisc on up
""")
    suite = f"{PYTHON} -m virtio_ipsec conformance --device vfio:{FUNCTION} --wire afpacket:wire --limit 300"
    status, output = guest.attempt(f"{suite} --json /tmp/report.json", 1800.0)
    assert status in (0, 1), output
    return {case["id"]: case["verdict"] for case in json.loads(guest.run("cat /tmp/report.json"))["cases"]}


def test_the_card_of_qemu(tmp_path: Path) -> None:
    hub = ["-netdev", "hubport,hubid=0,id=h0", "-device", f"virtio-net-pci,netdev=h0,mac={MACS[0]},addr=10.0"]
    cards = [*hub, *plain_card("hubport,hubid=0", MACS[1], "addr=11.0")]
    with Guest("guest", tmp_path, cards, newer=True, memory=640, disks=disks(tmp_path)) as guest:
        found = verdicts(guest)
    assert {case for case, verdict in found.items() if verdict not in ("PASS", "UNSUPPORTED")} == FINDINGS
    assert sum(verdict == "PASS" for verdict in found.values()) > 30


def test_our_device_behind_qemu(tmp_path: Path) -> None:
    config = f'[port]\ncontrol = "guest"\nguest_mac = "{MACS[0]}"\nqueue_pairs = 2\n'
    with (
        Wire(tmp_path / "wire.pcapng", "device", "suite") as wire,
        Backend(tmp_path, config, wire.ports["device"].uplink, protocol="--vfio-user") as backend,
        Guest(
            "guest", tmp_path,
            [*vfio_user_card(backend.socket), *plain_card(wire.ports["suite"].netdev, MACS[1], "addr=11.0")],
            newer=True, memory=640, disks=disks(tmp_path),
        ) as guest,
    ):  # fmt: skip
        found = verdicts(guest)
    assert {case: verdict for case, verdict in found.items() if verdict not in ("PASS", "UNSUPPORTED")} == {}
    assert sum(verdict == "PASS" for verdict in found.values()) > 150
