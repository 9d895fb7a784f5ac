"""DPDK's virtio-user on our device: every ring format, both ways, and tshark reads the wire."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest
from lab.backend import Backend
from lab.cases import CASES, GUEST_MAC, PROTECTED, UNDERLAY_MAC, Case, configuration
from lab.checker import check
from lab.station import Station, number_of, numbered, sas_of
from lab.testpmd import TestPmd
from lab.wire import Wire

from virtio_ipsec.policy.config import parse
from virtio_ipsec.transport.keyfile import Peers, esp_sa_line

pytestmark = [pytest.mark.guests, pytest.mark.interop("dpdk-testpmd", "tshark")]

CASE = next(case for case in CASES if case.name == "tunnel GCM-128")
FLOWS = 16

RINGS = {
    "split": "packed_vq=0,in_order=0,mrg_rxbuf=0",
    "split mergeable": "packed_vq=0,in_order=0,mrg_rxbuf=1",
    "split in_order": "packed_vq=0,in_order=1,mrg_rxbuf=0",
    "split in_order mergeable": "packed_vq=0,in_order=1,mrg_rxbuf=1",
    "packed": "packed_vq=1,in_order=0,mrg_rxbuf=0",
    "packed mergeable": "packed_vq=1,in_order=0,mrg_rxbuf=1",
    "packed in_order": "packed_vq=1,in_order=1,mrg_rxbuf=0",
    "packed in_order mergeable": "packed_vq=1,in_order=1,mrg_rxbuf=1",
}


def echo(station: Station, packets: int) -> Counter[int]:
    """Send numbered packets of many sizes in several flows; how often each number came back."""
    local, remote = station.case.addresses
    back: Counter[int] = Counter()

    def take(timeout: float) -> bool:
        packet = station.receive(timeout)
        if packet is None:
            return False
        number = number_of(packet)
        assert number is not None, f"damaged: {packet[:64].hex()}"
        back[number] += 1
        return True

    for number in range(packets):
        station.send(numbered(remote, local, 1000 + number % FLOWS, number, 64 + number * 37 % 1300))
        while number % 8 == 7 and take(0.02):
            pass
    while len(back) < packets and take(3.0):
        pass
    return back


def decrypted(capture: Path, case: Case) -> Counter[tuple[str, str, bool]]:
    """What tshark makes of the ESP packets: (ICV good, ICV bad, inner UDP seen)."""
    ends = [ip_address(end) for end in case.ends]
    command = ["tshark", "-n", "-r", str(capture), "-Y", "esp", "-T", "fields", "-o",
               "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]  # fmt: skip
    for spec in parse(configuration([case])).sas:
        source, target = ends if spec.outbound else reversed(ends)
        command += ["-o", f"uat:esp_sa:{esp_sa_line(Peers(spec.sa, case.outer, source, target))}"]
    for name in ("esp.icv_good", "esp.icv_bad", "udp.dstport"):
        command += ["-e", name]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split("\t") for line in lines]
    return Counter((good, bad, bool(port)) for good, bad, port in fields)


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("rings", RINGS)
def test_virtio_user_both_ways(tmp_path: Path, rings: str, queues: int) -> None:
    packets = 400
    config = configuration([CASE], head=f"queue_pairs = {queues}")
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(tmp_path, config, wire.ports["device"].uplink) as backend,
        Station(wire.ports["peer"], CASE) as station,
        TestPmd(
            tmp_path, backend.socket, GUEST_MAC, devargs=RINGS[rings], queues=queues, peer_mac=UNDERLAY_MAC
        ) as pmd,
    ):
        back = echo(station, packets)
        pmd.stop()
        wire.flush()
        missing = packets - len(back)
        assert not missing, (
            f"{missing} of {packets} did not come back\n{pmd.text()[-2500:]}\n{backend.log_tail()}"
        )
        assert set(back.values()) == {1}
        assert not station.refused
        per_queue = pmd.received_per_queue()
        assert len(per_queue) == queues
        assert all(per_queue.values()), f"a queue without traffic: {per_queue}"
    report = check(tmp_path / "wire.pcapng", sas_of((CASE,)), PROTECTED)
    report.require_clean()
    assert {spi: counts.packets for spi, counts in report.sas.items()} == {
        CASE.outbound_spi: packets,
        CASE.inbound_spi: packets,
    }
    assert decrypted(tmp_path / "wire.pcapng", CASE) == {("1", "0", True): 2 * packets}


def test_flood_out_of_two_queues(tmp_path: Path) -> None:
    """Faster than the wire takes: what gets out is all right, and the numbers have no doubles."""
    config = configuration([CASE], head="queue_pairs = 2")
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(tmp_path, config, wire.ports["device"].uplink) as backend,
        Station(wire.ports["peer"], CASE) as station,
        TestPmd(
            tmp_path, backend.socket, GUEST_MAC, devargs="packed_vq=1", queues=2, mode="txonly",
            addresses=CASE.addresses, size=200, peer_mac=UNDERLAY_MAC,
        ),
    ):  # fmt: skip
        limit = time.monotonic() + 1.0
        received = 0
        while time.monotonic() < limit:
            received += station.receive(0.05) is not None
        assert received > 100, backend.log_tail()
        assert not station.refused
    report = check(tmp_path / "wire.pcapng", sas_of((CASE,)), PROTECTED)
    report.require_clean()
    assert report.sas[CASE.outbound_spi].packets >= received
