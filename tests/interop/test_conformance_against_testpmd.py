"""The conformance suite against DPDK's back-end: what applies is judged, the rest is UNSUPPORTED."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab.namespace import ip, own_namespace

from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.wire.dialect import V14

pytestmark = [pytest.mark.interop("dpdk-testpmd"), pytest.mark.guests]

#: What DPDK 22.11 does otherwise than the specification says; `spec/guide/verdicts.md` discusses it.
FINDINGS = {"feature-requirements"}
ON_THE_WIRE = {"rx-single-buffer", "tx-fragments-ipv4", "tx-fragments-ipv6"}
#: Ends testpmd with SIGSEGV, and with it what comes after.
DEADLY = ("tx-fragments-contradictory",)


@contextmanager
def running(path: str, *wire: str) -> Iterator[None]:
    """testpmd whose vhost-user port is at ``path``; frames go between it and the port ``wire``."""
    command = [
        *("dpdk-testpmd", "--lcores", "0@0,1@0", "--no-huge", "-m", "256", "--no-pci", "--no-telemetry"),
        *("--no-shconf", "--vdev", f"net_vhost0,iface={path},queues=1", *wire, "--", "--forward-mode=io"),
        *("--auto-start", "--total-num-mbufs=8192", "--no-mlockall"),
        *(() if wire else ("--port-topology=loop",)),
    ]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def verdicts(path: str, wire: str | None = None) -> dict[str, str]:
    with open_target(f"vhost-user:{path}", V14, wire) as target:
        report = run(target, select(V14.name, exclude=DEADLY), thin=True)
    return {case.id: case.verdict.value for case in report.cases}


def judged(found: dict[str, str], findings: set[str], passed: int) -> None:
    failed = {case: verdict for case, verdict in found.items() if verdict not in ("PASS", "UNSUPPORTED")}
    assert failed == dict.fromkeys(findings, "FAIL")
    assert sum(verdict == "PASS" for verdict in found.values()) >= passed


def test_without_a_wire() -> None:
    with tempfile.TemporaryDirectory() as folder, running(f"{folder}/s"):
        judged(verdicts(f"{folder}/s"), FINDINGS, 8)


def test_with_a_wire() -> None:
    with tempfile.TemporaryDirectory() as folder, own_namespace():
        ip("link", "add", "device", "type", "veth", "peer", "name", "wire")
        for end in ("device", "wire"):
            ip("link", "set", end, "mtu", "9000", "promisc", "on", "up")
        with running(f"{folder}/s", "--vdev", "net_af_packet0,iface=device"):
            judged(verdicts(f"{folder}/s", "afpacket:wire"), FINDINGS | ON_THE_WIRE, 22)
