"""A served port that an operator controls: its guest knows nothing, its peer on the wire is another operator's port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from operator_ports import GUEST, HOST, SECOND, datagram, from_guest, port, rng, text
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from served import PLAIN, Bench

from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.transport.operator_sas import PortSas
from virtio_ipsec.wire.numbers import Feature, mask

OFFER = IMPLEMENTED & ~mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)


class Peer:
    """Side b: a policy of its own at the other end of the wire."""

    def __init__(self, bench: Bench, config: str) -> None:
        self.port = port(config)
        self.bench = bench
        self.now = 5 * SECOND
        self.guest: list[bytes] = []
        self.wire: list[bytes] = []
        self.port.from_guest(from_guest("b", IP(src=HOST["b"], dst="255.255.255.255") / UDP()), self.now)

    def turn(self) -> None:
        """What has left the bench arrives here; answers go back."""
        self.bench.port.loop.turn(0)
        for frame in self.bench.uplink.take():
            self.wire.append(frame)
            out = self.port.from_wire(frame, self.now)
            self.guest += out.to_guest
            self.bench.uplink.inject(*out.to_wire)

    def answered(self, count: int) -> list[bytes]:
        """What the bench's guest has got, ARP apart."""
        found: list[bytes] = []

        def enough() -> bool:
            self.turn()
            found.extend(frame for frame in self.bench.guest.taken() if frame[12:14] == b"\x08\x00")
            return len(found) >= count

        self.bench.until(enough)
        return found

    def send(self, frame: bytes) -> None:
        self.bench.uplink.inject(*self.port.from_guest(frame, self.now).to_wire)


@pytest.fixture(params=["c", "python"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = operated(request.param, text("a"))
    yield made
    made.close()


def operated(engine: str, config: str, features: int = PLAIN) -> Bench:
    made = Bench(features, engine=engine, start=False, offer=OFFER)
    fast = made.port.device.fast
    made.attach(OperatorPort(parse(config), PortSas(fast, rng()), rng()))
    made.negotiate()
    for index in (0, 1):
        made.start(index)
    made.guest.post()
    return made


def test_a_tunnel_works_both_ways_and_nothing_leaves_in_clear(bench: Bench) -> None:
    peer = Peer(bench, text("b"))
    sent = [datagram("a", b"question %d" % n) for n in range(40)]

    def arrived(count: int) -> bool:
        peer.turn()
        return len(peer.guest) >= count

    bench.guest.send(sent[0])
    bench.until(lambda: arrived(1))
    bench.guest.send(*sent[1:])
    bench.until(lambda: arrived(40))
    assert [frame[14:] for frame in peer.guest] == [frame[14:] for frame in sent]
    assert not any(b"question" in frame for frame in peer.wire)
    assert [Ether(frame)[IP].proto for frame in peer.wire if IP in Ether(frame)] == [50] * 40

    answers = [datagram("b", b"answer %d" % n) for n in range(40)]
    for each in answers:
        peer.send(each)
    found = peer.answered(40)
    assert [frame[14:] for frame in found] == [frame[14:] for frame in answers]
    assert {Ether(frame).dst for frame in found} == {GUEST["a"]}


def test_what_the_policy_does_not_let_pass_is_dropped_and_counted(bench: Bench) -> None:
    peer = Peer(bench, text("b"))
    stray = from_guest("a", IP(src=HOST["a"], dst="203.0.113.9") / UDP(sport=1, dport=2) / b"stray")
    bench.guest.send(stray, datagram("a"))
    bench.uplink.inject(from_guest("b", IP(src=HOST["b"], dst=HOST["a"]) / UDP(sport=1, dport=2) / b"clear"))

    def arrived() -> bool:
        peer.turn()
        return bool(peer.guest)

    bench.until(arrived)
    assert not any(b"stray" in frame for frame in peer.wire)
    peer.send(datagram("b"))
    (answer,) = peer.answered(1)
    assert b"clear" not in answer
    assert (
        sum(n for name, n in bench.port.counters().items() if "drop" in name or "refused_policy" in name) >= 2
    )


def test_the_ports_address_is_answered_for_while_no_guest_is_there() -> None:
    made = operated("python", text("a"))
    try:
        made.port.disconnect()
        peer = Peer(made, text("b"))
        peer.send(datagram("b"))

        def asked_and_answered() -> bool:
            peer.turn()
            return bool(peer.wire)

        made.until(asked_and_answered)
        assert peer.wire[0][12:14] == b"\x08\x06"
    finally:
        made.close()


def test_what_time_brings_about_happens_in_the_control_thread(bench: Bench) -> None:
    now = [5 * SECOND]
    bench.port._exchange._clock = lambda: now[0]
    bench.guest.send(datagram("a"))
    (asked,) = bench.captured(1)  # who has the peer's address?
    assert asked[12:14] == b"\x08\x06"
    for _ in range(10):
        now[0] += SECOND
        bench.port._upkeep._tick()
    again = bench.uplink.take()
    assert asked in again
    assert any(Ether(frame)[IP].proto == 1 for frame in bench.guest.taken() if frame[12:14] == b"\x08\x00")
    assert bench.port.counters()["tx_drop_no_next_hop"] == 1
