"""A virtual machine with a stock driver behind our device; its peer protects in the Linux kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import xfrm
from lab.backend import Backend
from lab.cases import (
    CASES,
    GUEST_MAC,
    PEER_MAC,
    PROTECTED,
    SERVER_PORT,
    configuration,
    guest_script,
    peer_script,
)
from lab.checker import check
from lab.guest import Guest, plain_card, vhost_user_card
from lab.processes import until
from lab.station import sas_of
from lab.wire import Wire

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]


def test_every_protection_against_the_linux_kernel(tmp_path: Path) -> None:
    table = xfrm.run(tmp_path, show=print)
    assert not table.failed, "\n".join(map(str, table.rows))


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_two_queue_pairs_in_a_guest_with_two_processors(tmp_path: Path, ring: str) -> None:
    """Four connections at once, then one pinned to each processor, whose transmit queue it uses."""
    cases = [case for case in CASES if case.name in ("transport GCM-128", "tunnel GCM-128")]
    config = configuration(cases, head="queue_pairs = 2")
    card = "vectors=0,packed=on" if ring == "packed" else "vectors=0"
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(tmp_path, config, wire.ports["device"].uplink) as backend,
        Guest("guest", tmp_path, vhost_user_card(backend.socket, GUEST_MAC, card, queues=2)) as guest,
        Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)) as peer,
    ):
        guest.wait().run(guest_script(cases))
        peer.wait().run(peer_script(cases))
        assert guest.run("ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
        transport, tunnel = (case.addresses[1] for case in cases)
        output = guest.run(
            f"for each in 1 2 3 4; do timeout 100 traffic fetch {transport} {SERVER_PORT} 1000000 & done; wait\n"
            f"taskset 1 timeout 100 traffic send {tunnel} {SERVER_PORT} 1000000\n"
            f"taskset 2 timeout 100 traffic send {tunnel} {SERVER_PORT} 1000000",
            300.0,
        )
        assert output.count("ok 1000000") == 6, output
        assert xfrm.kernel_errors(peer) == ""
    report = check(tmp_path / "wire.pcapng", sas_of(tuple(cases)), PROTECTED)
    report.require_clean()
    assert len(report.sas) == 4


@pytest.mark.parametrize("newer", [False, True], ids=["QEMU 7.2", "QEMU 11.1"])
def test_a_guest_whose_back_end_comes_to_it(tmp_path: Path, newer: bool) -> None:
    """``serve --client``: QEMU listens. A back-end that was killed comes again, and the guest goes on."""
    cases = [case for case in CASES if case.name == "tunnel GCM-128"]
    card = "" if newer else "vectors=0"
    with (
        Wire(tmp_path / "wire.pcapng", "device", "peer") as wire,
        Backend(
            tmp_path, configuration(cases), wire.ports["device"].uplink, state=tmp_path / "state",
            options=("--client",),
        ) as backend,
        Guest(
            "guest", tmp_path, vhost_user_card(backend.socket, GUEST_MAC, card, listens=True), newer=newer
        ) as guest,
        Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)) as peer,
    ):  # fmt: skip
        guest.wait().run(guest_script(cases))
        peer.wait().run(peer_script(cases))
        (case,) = cases
        assert not xfrm.ping(guest, case.addresses[1])
        for life in (2, 3):
            backend.kill()
            backend.start()
            until(
                "it has come again",
                lambda life=life: backend.log_tail(1 << 20).count("a front-end is connected") == life,  # type: ignore[misc]
                30,
            )
            assert not xfrm.ping(guest, case.addresses[1])
        assert xfrm.kernel_errors(peer) == ""
    check(tmp_path / "wire.pcapng", sas_of(tuple(cases)), PROTECTED).require_clean()
