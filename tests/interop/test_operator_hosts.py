"""Two Linux stacks, each behind an operator's port: ARP, neighbour discovery, ICMP, fragments and TCP as hosts do them.

Each host sits in a network namespace at a tap (needs root, `ip` and `ping`); the wire between the ports is looked at.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.namespace import enter, ip, own_namespace

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
from operator_ports import OTHER, OUTER, OUTER6, SERVICES, Wire, joined, port_text, sas_text

from virtio_ipsec.transport.uplink import Uplink, open_uplink

pytestmark = [pytest.mark.interop("ip", "ping"), pytest.mark.needs("namespaces")]

SIDES = "ab"
GATEWAYS = {"a": ("10.0.1.1", "fd00:1::1"), "b": ("10.0.2.1", "fd00:2::1")}
ROUTED = {"a": ("10.0.1.5", "fd00:1::5"), "b": ("10.0.2.5", "fd00:2::5")}
ON_LINK = {"a": ("10.0.0.5", "fd00::5"), "b": ("10.0.0.6", "fd00::6")}
WORD = b"between us two. "


class Hosts:
    """The two of them, their ports, and what was on the wire: whether a secret was seen, and the largest frame."""

    def __init__(
        self,
        both: Wire,
        taps: dict[str, Uplink],
        spaces: dict[str, int],
        addresses: dict[str, tuple[str, str]],
    ) -> None:
        self.both, self.addresses = both, addresses
        self.leaks = self.largest = 0
        self._taps, self._spaces = taps, spaces
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def run(self, side: str, *words: str) -> str:
        """A program on one of the hosts."""
        self.be(side)
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def be(self, side: str) -> None:
        """This thread is on that host from now on."""
        enter(self._spaces[side])

    def _work(self) -> None:
        both = self.both
        while not self._stop.is_set():
            select.select([tap.fileno() for tap in self._taps.values()], [], [], 0.02)
            both.now = time.monotonic_ns()
            for side, tap in self._taps.items():
                both.send(side, *tap.receive(64))
            both.pass_time(0)
            for side, tap in self._taps.items():
                tap.send(both.guests[side])
                both.guests[side] = []
            for _, frame in both.seen:
                self.leaks += WORD in frame
                self.largest = max(self.largest, len(frame))
            both.seen.clear()


def config(side: str, mode: str, outer: dict[str, str], addresses: dict[str, tuple[str, str]]) -> str:
    pairs = list(zip(addresses[side], addresses[OTHER[side]], strict=True))
    selectors = ", ".join(f'{{ local = "{mine}", remote = "{yours}" }}' for mine, yours in pairs)
    gateways = f"guest_gateways = {list(GATEWAYS[side])}".replace("'", '"')
    flows = "".join(
        f'[[flow]]\nmatch = {{ src = "{mine}", dst = "{yours}" }}\naction = "protect"\nsa = 1\n'
        for mine, yours in pairs
    )
    return (
        port_text(side, underlay=gateways)
        + sas_text(side, mode, outer=outer, selectors=selectors)
        + flows
        + SERVICES
    )


@pytest.fixture(params=["esp-tunnel over IPv4", "esp-tunnel over IPv6", "esp-transport"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    mode, _, outside = request.param.partition(" over ")
    tunnel = mode == "esp-tunnel"
    addresses = ROUTED if tunnel else ON_LINK
    outer = OUTER6 if outside == "IPv6" else OUTER
    with ExitStack() as stack:
        spaces, taps = {}, {}
        for side in SIDES:
            spaces[side] = stack.enter_context(own_namespace())
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
            ip("tuntap", "add", "t0", "mode", "tap")
            taps[side] = open_uplink("tap:t0")
            stack.callback(taps[side].close)
            ip("link", "set", "t0", "up")
            for address, length, gateway in zip(addresses[side], ("24", "64"), GATEWAYS[side], strict=True):
                six = ["nodad"] if ":" in address else []
                ip("addr", "add", f"{address}/{length}", "dev", "t0", *six)
                if tunnel:
                    ip("route", "add", "default", "via", gateway)
        made = Hosts(
            joined({side: config(side, mode, outer, addresses) for side in SIDES}), taps, spaces, addresses
        )
        stack.callback(made.be, SIDES[-1])
        stack.callback(made.close)
        yield made


def test_two_linux_hosts_talk(hosts: Hosts) -> None:
    for mine, yours in zip(hosts.addresses["a"], hosts.addresses["b"], strict=True):
        first = (
            ("-M", "dont", "-s", "1472") if "." in yours else ()
        )  # as long as the link allows, and may be cut
        wait_until_answered(hosts, yours, *first)
        for size in ("56", "1400", "1452", "4000", "20000"):
            once, often = ("-c", "1", "-s", size), ("-c", "3", "-i", "0.2", "-s", size)
            ping(hosts, "a", yours, *once)  # each may be told that it was too large, and knows then
            ping(hosts, "b", mine, *once)
            said = ping(hosts, "a", yours, *often)
            assert " 0% packet loss" in said, said
        route = hosts.run("a", "ip", "route", "get", yours)
        assert "mtu 14" in route, route
        transfer(hosts, "a", yours)
        transfer(hosts, "b", mine)
    assert hosts.leaks == 0
    assert hosts.largest <= 1514
    all_counts = {side: hosts.both.ports[side].counters() for side in SIDES}
    assert all_counts["a"]["tx_fragmented"]
    assert all_counts["b"]["rx_fragments"]
    for counts in all_counts.values():
        assert counts["tx_errors_sent"]
        names = {name for name in counts if "_drop_" in name}
        # What comes before the guest has shown its address is lost: that is what was waited for.
        assert names <= {"tx_drop_drop_default", "tx_drop_too_big", "rx_drop_no_guest"}, counts


def ping(hosts: Hosts, side: str, address: str, *options: str) -> str:
    return hosts.run(side, "ping", "-W", "2", *options, address)


def wait_until_answered(hosts: Hosts, address: str, *options: str) -> None:
    deadline = time.monotonic() + 20
    while " 0% packet loss" not in ping(hosts, "a", address, "-c", "1", *options):
        assert time.monotonic() < deadline, "no answer in 20 s"


def transfer(hosts: Hosts, side: str, address: str) -> None:
    """One megabyte over TCP, compared at the end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    hosts.be(OTHER[side])
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(20)
        data = os.urandom(500_000) + WORD * 30_000
        received = hashlib.sha256()

        def listen() -> None:
            with server.accept()[0] as connection:
                connection.settimeout(20)
                while part := connection.recv(65536):
                    received.update(part)

        thread = threading.Thread(target=listen)
        thread.start()
        hosts.be(side)
        with socket.create_connection(server.getsockname()[:2], 20) as connection:
            connection.sendall(data)
        thread.join()
    assert received.digest() == hashlib.sha256(data).digest()
