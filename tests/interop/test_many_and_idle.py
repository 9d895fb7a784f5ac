"""A thousand SAs over the control socket, and a port that nobody uses."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lab.backend import Backend
from lab.cases import CASES, GUEST_MAC, PROTECTED, UNDERLAY_MAC, Case, configuration, tables
from lab.checker import check
from lab.processes import processor_seconds
from lab.station import Station, sas_of
from lab.testpmd import TestPmd
from lab.wire import Wire
from test_testpmd import echo

pytestmark = [pytest.mark.guests, pytest.mark.interop("dpdk-testpmd")]

CASE = next(case for case in CASES if case.name == "tunnel GCM-128")
MANY = 1000


def numbered_case(number: int) -> Case:
    return replace(CASE, number=number, name=f"many {number}")


def test_a_thousand_sas_over_the_control_socket(tmp_path: Path) -> None:
    """500 pairs beside the first one; the last pair carries packets, and all of them go again."""
    cases = [numbered_case(1000 + at) for at in range(MANY // 2)]
    sas, flows = tmp_path / "sas.toml", tmp_path / "flows.toml"
    sas.write_text("\n".join(tables(cases, "sa")))
    sas.chmod(0o600)
    flows.write_text("\n".join(tables(cases, "flow")))
    last = cases[-1]
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(
            tmp_path, configuration([CASE]), wire.ports["device"].uplink, state=tmp_path / "state"
        ) as backend,
    ):
        begin = time.monotonic()
        assert json.loads(backend.ctl("--json", "sa", "add", str(sas)).stdout) == {
            "added": MANY,
            "refused": 0,
        }
        added = time.monotonic() - begin
        assert json.loads(backend.ctl("--json", "flow", "add", str(flows)).stdout)["added"] == MANY // 2
        listed = json.loads(backend.ctl("--json", "sa", "list").stdout)
        assert len(listed) == MANY + 2
        secret = last.secrets("outbound")[0].hex()
        assert secret not in backend.ctl("sa", "list").stdout
        assert secret in backend.ctl("sa", "list", "--show-keys").stdout
        assert secret not in backend.log_tail(1 << 20)
        with (
            Station(wire.ports["peer"], last) as station,
            TestPmd(tmp_path, backend.socket, GUEST_MAC, peer_mac=UNDERLAY_MAC),
        ):
            assert set(echo(station, 50).values()) == {1}
        refused = backend.ctl("sa", "add", str(sas), check=False)
        assert refused.returncode == 1
        for case in cases[:20]:
            for direction in ("outbound", "inbound"):
                backend.ctl("sa", "remove", direction, str(case.number))
        assert len(json.loads(backend.ctl("--json", "sa", "list").stdout)) == MANY + 2 - 40
    check(tmp_path / "wire.pcapng", sas_of((last,)), PROTECTED).require_clean()
    print(f"{MANY} SAs in {added:.2f} s, {MANY / added:.0f} per second with `ctl` starting once")


def test_an_idle_port_takes_less_than_a_hundredth_of_a_processor(tmp_path: Path) -> None:
    """A front-end is attached, its queues run, nothing happens. Once before any packet and once after some."""
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(
            tmp_path, configuration([CASE], head="queue_pairs = 2"), wire.ports["device"].uplink
        ) as backend,
        Station(wire.ports["peer"], CASE) as station,
        TestPmd(tmp_path, backend.socket, GUEST_MAC, queues=2, peer_mac=UNDERLAY_MAC),
    ):
        shares = []
        for packets in (0, 100):
            echo(station, packets)
            time.sleep(1.0)
            begin, used = time.monotonic(), processor_seconds(backend.pid)
            time.sleep(5.0)
            shares.append((processor_seconds(backend.pid) - used) / (time.monotonic() - begin))
        print(f"idle: {', '.join(f'{share:.2%}' for share in shares)} of a processor")
        assert max(shares) < 0.01
