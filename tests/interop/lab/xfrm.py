"""Guest A behind our device, guest B with the Linux kernel's IPsec: the table of what passed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lab.backend import Backend
from lab.cases import (
    CASES,
    GUEST_MAC,
    PEER_MAC,
    PLAIN,
    PROTECTED,
    SERVER_PORT,
    Case,
    configuration,
    guest_script,
    peer_script,
)
from lab.checker import Report, check
from lab.guest import Guest, plain_card, vhost_user_card
from lab.wire import Wire

from virtio_ipsec.policy.config import parse

#: Octets of the transfers: each way in every case, and in those that are measured.
SMALL, BULK = 1_000_000, 50_000_000
MEASURED = {("send", "transport GCM-128"), ("send", "tunnel GCM-256"), ("fetch", "tunnel GCM-256")}


@dataclass
class Row:
    """One line of the table; ``faults`` is empty when all of it passed."""

    name: str
    done: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        verdict = "FAIL" if self.faults else "pass"
        return f"{self.name:32} {verdict}  {self.seconds:6.1f} s  {'; '.join(self.faults or self.done)}"


@dataclass
class Table:
    """All rows, and the judgement of the wire."""

    rows: list[Row] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    capture: Path = Path()
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.faults]


class Lab:
    """Two guests, our device and the wire, up and configured."""

    def __init__(
        self, folder: Path, cases: Sequence[Case] = CASES, *, card: str = "vectors=0", newer: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.cases = cases
        self.config = configuration(cases)
        self._stack = ExitStack()
        try:
            self.wire = self._stack.enter_context(Wire(folder / "wire.pcapng", "device", "peer"))
            self.backend = self._stack.enter_context(
                Backend(folder, self.config, self.wire.ports["device"].uplink, state=folder / "state")
            )
            self.guest = self._stack.enter_context(
                Guest("guest", folder, vhost_user_card(self.backend.socket, GUEST_MAC, card), newer=newer)
            )
            self.peer = self._stack.enter_context(
                Guest("peer", folder, plain_card(self.wire.ports["peer"].netdev, PEER_MAC), newer=newer)
            )
            scripts = {self.guest: guest_script(cases), self.peer: peer_script(cases)}
            for machine, script in scripts.items():
                machine.wait().send(script)
            for machine in scripts:
                status, output = machine.answer(90.0)
                assert not status, f"{machine.name}: set-up failed: {output}"
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def ping(machine: Guest, target: str, words: str = "", count: int = 2) -> str:
    """What went wrong; empty when every echo came back."""
    status, output = machine.attempt(f"ping -c{count} -i 0.2 -W3 {words} {target}", 30.0)
    found = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
    if status == 0 and found and found[1] == found[2]:
        return ""
    return f"ping {words} {target}: {found[0] if found else output.strip()[-200:]}"


def transfer(machine: Guest, way: str, target: str, octets: int) -> tuple[str, float]:
    """(what went wrong, seconds) of one TCP transfer whose every octet is compared."""
    status, output = machine.attempt(f"timeout 200 traffic {way} {target} {SERVER_PORT} {octets}", 210.0)
    found = re.search(r"^ok \d+ in ([\d.]+) s", output, re.MULTILINE)
    if status == 0 and found:
        return "", float(found[1])
    return f"{way} {octets} octets: status {status} {output.strip()[-200:]}", 0.0


def datagrams(sender: Guest, receiver_address: str, count: int, size: int) -> str:
    """What went wrong when numbered datagrams were sent, slowly enough to lose none; empty if nothing."""
    sender.run(f"traffic stream {receiver_address} {SERVER_PORT} {count} {size} 2000")
    time.sleep(0.3)
    _, output = sender.attempt(f"timeout 20 traffic report {receiver_address} {SERVER_PORT}")
    if f"got {count} missing 0 again 0 late 0 bad 0" in output:
        return ""
    return f"{count} datagrams of {size}: {output.strip()[-200:]}"


def one_case(lab: Lab, case: Case) -> Row:
    """Pings of three sizes both ways, TCP both ways, fragments both ways."""
    row = Row(case.name)
    begin = time.monotonic()
    ours, theirs = case.addresses
    # Larger than any frame, and first: the guest has not been told of the smaller MTU yet. Transport mode protects
    # whole datagrams only (RFC 4303 3.3.4), and what leaves a guest larger than its MTU comes in fragments: there the
    # way in alone is tried.
    if case.tunnel:
        if case.inner == 6:
            # Nobody on the way fragments IPv6: the first of these is lost, and tells the guest of the MTU.
            lab.guest.attempt(f"ping -c2 -W1 -s 1440 {theirs}")
        row.faults += filter(
            None, [ping(lab.guest, theirs, "-s 4000"), datagrams(lab.guest, theirs, 20, 4000)]
        )
    row.faults += filter(None, [datagrams(lab.peer, ours, 20, 4000)])
    row.done.append("fragments" if case.tunnel else "fragments in")
    for machine, target, words in (
        (lab.guest, theirs, ""),
        (lab.peer, ours, ""),
        (lab.guest, theirs, "-s 1300"),
    ):
        row.faults += filter(None, [ping(machine, target, words)])
    row.done.append("ping")
    for way in ("send", "fetch"):
        octets = BULK if (way, case.name) in MEASURED and not row.faults else SMALL
        fault, seconds = transfer(lab.guest, way, theirs, octets)
        row.faults += filter(None, [fault])
        if octets == BULK and not fault:
            row.done.append(f"{way} {octets // 1_000_000} MB at {octets / seconds / 1e6:.1f} MB/s")
    row.done.append("TCP")
    row.seconds = time.monotonic() - begin
    return row


def kernel_errors(peer: Guest) -> str:
    """The kernel's IPsec counters that are not 0."""
    found = re.findall(r"^(Xfrm\w+)\s+([1-9]\d*)\s*$", peer.run("cat /proc/net/xfrm_stat"), re.MULTILINE)
    return ", ".join(f"{name} {count}" for name, count in found)


def judge(table: Table, lab: Lab) -> None:
    """Add the rows of the wire: every SA seen both ways, nothing twice, nothing in the clear."""
    lab.wire.flush()
    begin = time.monotonic()
    table.capture = lab.wire.capture
    table.report = report = check(lab.wire.capture, [spec.sa for spec in parse(lab.config).sas], PROTECTED)
    row = Row("wire")
    row.faults += report.problems
    wanted = {spi for case in lab.cases for spi in (case.outbound_spi, case.inbound_spi)}
    if missing := wanted - report.sas.keys():
        row.faults.append(f"not seen: SPIs {', '.join(map(hex, sorted(missing)))}")
    total = sum(counts.packets for counts in report.sas.values())
    row.done.append(
        f"{report.frames} frames, {total} IPsec packets opened, no number and no IV twice, none in clear"
    )
    row.seconds = time.monotonic() - begin
    table.rows.append(row)


def run(folder: Path, cases: Sequence[Case] = CASES, *, card: str = "vectors=0", newer: bool = False,
        show: Callable[[Row], None] = lambda row: None) -> Table:  # fmt: skip
    """Boot, try every case, judge the wire."""
    table = Table()

    def add(row: Row) -> None:
        table.rows.append(row)
        show(row)

    begin = time.monotonic()
    with Lab(folder, cases, card=card, newer=newer) as lab:
        features = lab.guest.run("cat /sys/class/net/eth0/device/features; uname -r").split()
        table.notes.append(f"guests up in {time.monotonic() - begin:.1f} s, Linux {features[-1]}")
        bits = ",".join(str(bit) for bit, char in enumerate(features[0]) if char == "1")
        table.notes.append(f"feature bits that guest A took: {bits}")
        up = time.monotonic()
        plain = Row("bypass rule, plain")
        plain.faults += filter(None, [ping(lab.guest, PLAIN[1]), ping(lab.peer, PLAIN[0])])
        plain.done.append("ping")
        plain.seconds = time.monotonic() - up
        add(plain)
        for case in cases:
            add(one_case(lab, case))
        kernel = Row("kernel's IPsec error counters")
        if errors := kernel_errors(lab.peer):
            kernel.faults.append(errors)
        kernel.done.append("all 0")
        add(kernel)
        judge(table, lab)
        show(table.rows[-1])
    table.notes.append(f"total {time.monotonic() - begin:.1f} s")
    return table
