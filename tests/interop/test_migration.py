"""A virtual machine moves between two of our back-ends under load, and its SAs move with ``ctl handover``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest
from lab.backend import Backend
from lab.cases import (
    CASES,
    GUEST_MAC,
    PEER_MAC,
    PLAIN,
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
from lab.xfrm import kernel_errors, ping

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]

#: One for the stream of datagrams, one for the transfer.
STREAM, BULK = (next(case for case in CASES if case.number == number) for number in (6, 3))
MOVED = (STREAM, BULK)


def migration(guest: Guest) -> str:
    return str(cast("dict[str, object]", guest.qmp("query-migrate")).get("status", "none"))


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_live_migration_with_handover(tmp_path: Path, ring: str) -> None:
    card = "vectors=0,packed=on" if ring == "packed" else "vectors=0"
    config = configuration(MOVED)
    moved = f"unix:{tmp_path / 'migration'}"
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(tmp_path / "wire.pcapng", "first", "second", "peer"))
        source = stack.enter_context(
            Backend(tmp_path, config, wire.ports["first"].uplink, name="source", state=tmp_path / "s1")
        )
        target = stack.enter_context(
            Backend(
                tmp_path, config, wire.ports["second"].uplink, name="target", state=tmp_path / "s2",
                options=("--await-handover",),
            )
        )  # fmt: skip
        before = stack.enter_context(
            Guest("before", tmp_path, vhost_user_card(source.socket, GUEST_MAC, card))
        )
        after = stack.enter_context(
            Guest("after", tmp_path, vhost_user_card(target.socket, GUEST_MAC, card), incoming=moved)
        )
        peer = stack.enter_context(Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)))
        before.wait().run(guest_script(MOVED))
        peer.wait().run(peer_script(MOVED))
        for case in MOVED:
            assert not ping(before, case.addresses[1])

        # The bulk comes in, so that a page the target has not got would show in it.
        before.send(
            f"traffic stream {STREAM.addresses[1]} {SERVER_PORT} 4000 512 2000 >/tmp/stream.log 2>&1 &\n"
            f"timeout 200 traffic fetch {BULK.addresses[1]} {SERVER_PORT} 20000000; wait; cat /tmp/stream.log"
        )
        until("the load runs", lambda: wire.counts["first"] > 500, 180)
        capability = {"capability": "pause-before-switchover", "state": True}
        before.qmp("migrate-set-capabilities", capabilities=[capability])
        before.qmp("migrate", uri=moved)
        until("memory is there", lambda: migration(before) in ("pre-switchover", "failed", "completed"), 120)
        assert migration(before) == "pre-switchover", before.qmp("query-migrate")
        left = wire.counts["first"]
        source.ctl("handover", "--to", str(target.control))
        before.qmp("migrate-continue", state="pre-switchover")
        until("the machine has moved", lambda: migration(before) in ("completed", "failed"), 60)
        assert migration(before) == "completed", before.qmp("query-migrate")
        status, output = after.answer(240.0)
        assert status == 0, output
        assert "ok 20000000" in output, output
        assert "sent 4000" in output, output
        _, report = after.attempt(f"timeout 60 traffic report {STREAM.addresses[1]} {SERVER_PORT}", 70)
        found = re.search(r"got (\d+) missing (\d+) again (\d+) late (\d+) bad (\d+)", report)
        assert found, report
        got, missing, again, late, bad = map(int, found.groups())
        assert (again, late, bad) == (0, 0, 0), report
        assert got + missing == 4000, report
        assert missing < 400, report
        assert kernel_errors(peer) == "", "the peer's kernel has refused packets"
        assert wire.counts["first"] <= left + 8, "the source went on sending"
        assert wire.counts["second"] > 500
        for case in MOVED:
            assert not ping(after, case.addresses[1])
            assert not ping(peer, case.addresses[0])
        print(f"{ring}: {wire.counts}, {report.strip()}")
        assert source.ctl("sa", "list").stdout.strip() == "" or "handed" in source.log_tail()
    result = check(tmp_path / "wire.pcapng", sas_of(MOVED), PROTECTED)
    result.require_clean()
    assert {case.outbound_spi for case in MOVED} <= result.sas.keys()


def test_without_handover_the_target_sends_nothing_protected(tmp_path: Path) -> None:
    """The machine moves all the same; what needs an SA waits for it."""
    config = configuration((STREAM,))
    moved = f"unix:{tmp_path / 'migration'}"
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(tmp_path / "wire.pcapng", "first", "second", "peer"))
        source = stack.enter_context(Backend(tmp_path, config, wire.ports["first"].uplink, name="source"))
        target = stack.enter_context(
            Backend(
                tmp_path, config, wire.ports["second"].uplink, name="target", options=("--await-handover",)
            )
        )
        before = stack.enter_context(Guest("before", tmp_path, vhost_user_card(source.socket, GUEST_MAC)))
        after = stack.enter_context(
            Guest("after", tmp_path, vhost_user_card(target.socket, GUEST_MAC), incoming=moved)
        )
        peer = stack.enter_context(Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)))
        before.wait().run(guest_script((STREAM,)))
        peer.wait().run(peer_script((STREAM,)))
        assert not ping(before, STREAM.addresses[1])
        before.qmp("migrate", uri=moved)
        until("the machine has moved", lambda: migration(before) in ("completed", "failed"), 120)
        assert migration(before) == "completed"
        assert ping(after, STREAM.addresses[1])
        source.ctl("handover", "--to", str(target.control))
        assert not ping(after, STREAM.addresses[1])
    check(tmp_path / "wire.pcapng", sas_of((STREAM,)), PROTECTED).require_clean()


@pytest.mark.parametrize("newer", [False, True], ids=["QEMU 7.2", "QEMU 11.1"])
def test_a_guests_port_migrates_with_a_front_end_that_can_have_no_sas(tmp_path: Path, newer: bool) -> None:
    """QEMU does not acknowledge the IPsec binding, so its guest has no SAs and moves as any other. What a driver makes
    through the binding stays: tests/transport/vhost_user/test_both_ends.py has that. ``ctl handover`` refuses for
    the whole port, and the guest goes on."""
    config = '[port]\ncontrol = "guest"\n'
    moved = f"unix:{tmp_path / 'migration'}"
    card = "" if newer else "vectors=0"
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(tmp_path / "wire.pcapng", "first", "second", "peer"))
        source = stack.enter_context(Backend(tmp_path, config, wire.ports["first"].uplink, name="source"))
        target = stack.enter_context(Backend(tmp_path, config, wire.ports["second"].uplink, name="target"))
        before = stack.enter_context(
            Guest("before", tmp_path, vhost_user_card(source.socket, GUEST_MAC, card), newer=newer)
        )
        after = stack.enter_context(
            Guest(
                "after",
                tmp_path,
                vhost_user_card(target.socket, GUEST_MAC, card),
                newer=newer,
                incoming=moved,
            )
        )
        peer = stack.enter_context(Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)))
        before.wait().run(guest_script(()))
        peer.wait().run(peer_script(()))
        assert not ping(before, PLAIN[1])
        refused = source.ctl("handover", "--to", str(target.control), check=False)
        assert refused.returncode == 2
        assert (
            "SAs that the driver owns cannot move; nobody may read back what they have used up"
            in refused.stderr
        )
        assert not ping(before, PLAIN[1])
        before.qmp("migrate", uri=moved)
        until("the machine has moved", lambda: migration(before) in ("completed", "failed"), 120)
        assert migration(before) == "completed", before.qmp("query-migrate")
        assert not ping(after, PLAIN[1])
        assert "refused" not in source.log_tail(1 << 16) + target.log_tail(1 << 16)
