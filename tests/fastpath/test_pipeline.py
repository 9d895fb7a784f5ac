"""The packet path of csrc/ as a whole: operators' ports, owners that raise, broken rings, counters."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from ipaddress import IPv4Address, ip_network

import plane
import pytest
from ports import BUFFER, FEATURES, IPSEC, QUEUE_SIZE, Bench, port_config
from random_frames import PORTS, V4, V6, laid, spoilt

from virtio_ipsec.device.frame import IPV4, IPV6, network_offset
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.esp import FastSaTable
from virtio_ipsec.fastpath.pipeline import Port, PortConfig, RxState, Worker
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.selectors import InboundSa, Outcome, Policy, Rule, Selector
from virtio_ipsec.ring.faults import Fault
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import Feature, IpsecMode, mask

ANY = Selector()
EVERYTHING = {0: InboundSa((ANY,)), 1: InboundSa((ANY,))}
BYPASS = Policy((), Action.BYPASS)
SECURITY = 0x10
SPIS = (plane.SPI, plane.SPI + 1)


def ether(packet: bytes, tag: bytes = b"") -> bytes:
    return plane.MAC + plane.PEER + tag + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0") + packet


def udp(source: int = 1, target: int = 2, data: bytes = b"payload!", dport: int = 53) -> bytes:
    """A UDP packet from 10.0.0.source to 10.0.0.target, without UDP checksum."""
    body = (1000).to_bytes(2) + dport.to_bytes(2) + (8 + len(data)).to_bytes(2) + b"\0\0" + data
    return ipv4(bytes((10, 0, 0, source)), bytes((10, 0, 0, target)), 17, body)


def ipv4(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    head = bytearray(b"\x45\0" + (20 + len(body)).to_bytes(2) + b"\0\1\0\0\x40" + bytes((protocol, 0, 0)))
    head += source + target
    total = sum(int.from_bytes(head[at : at + 2]) for at in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (0xFFFF - total).to_bytes(2)
    return bytes(head) + body


def sealed(inner: bytes, sequence: int = 1, spi: int = plane.SPI, source: str = "198.51.100.2") -> bytes:
    """A frame from the peer: ``inner`` in ESP in IPv4."""
    esp = plane.seal(inner, 4 if inner[0] >> 4 == 4 else 41, sequence, spi)
    return ether(ipv4(IPv4Address(source).packed, IPv4Address("192.0.2.1").packed, 50, esp))


def opened(frame: bytes) -> tuple[int, bytes]:
    """(SPI, inner packet) of what left in a tunnel over IPv4."""
    at, _ = network_offset(frame)
    assert (frame[at] >> 4, frame[at + 9]) == (4, 50)
    spi, _, inner, _ = plane.unseal(frame[at + 20 :])
    return spi, inner


def tcp(data: bytes) -> bytes:
    """A TCP packet with a pseudo header sum where its checksum belongs."""
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    length = 20 + len(data)
    words = [int.from_bytes(addresses[at : at + 2]) for at in range(0, 8, 2)]
    seed = sum([*words, 6, length])
    head = b"\x03\xe8\0\x50" + bytes(8) + b"\x50\x18\xff\xff" + (seed % 0xFFFF).to_bytes(2) + b"\0\0"
    return ipv4(addresses[:4], addresses[4:], 6, head + data)


# ---- what leaves an operator's port


def random_policy(rnd: random.Random) -> Policy:
    def selector() -> Selector:
        version, protocol = rnd.choice((4, 6)), rnd.choice((None, 6, 17, 17))
        pool = V4 if version == 4 else V6
        ports = (rnd.choice(PORTS),) * 2 if protocol and rnd.random() < 0.4 else None
        return Selector(
            ip_network((rnd.choice(pool), 24 if version == 4 else 120), strict=False) if rnd.random() < 0.5 else None,
            None, protocol, None, ports,
        )  # fmt: skip

    rules = []
    for _ in range(rnd.choice((0, 2, 6))):
        action = rnd.choice(list(Action))
        rules.append(
            Rule(selector(), action, rnd.randrange(2) if action is Action.PROTECT else None, rnd.randrange(3))
        )
    return Policy(tuple(rules), rnd.choice((Action.BYPASS, Action.DROP)))


@pytest.mark.parametrize("seed", range(4))
def test_what_leaves_is_what_the_policy_says(seed: int) -> None:
    rnd = random.Random(seed)
    bench = Bench()
    for ident in range(2):
        bench.outbound(ident, spi=SPIS[ident])
    seen: dict[str, int] = {}
    for _ in range(15):
        policy = random_policy(rnd)
        bench.policy(policy)
        for _ in range(40):
            frame = spoilt(rnd, laid(rnd, (0, 1, 8, 300)).data)
            before, punts = bench.worker.counts(), len(bench.punted_out)
            sent = bench.send(frame)
            after = bench.worker.counts()
            refused = {
                k: n - before.get(k, 0) for k, n in after.items() if "_drop_" in k and n != before.get(k, 0)
            }
            l3, ethertype = network_offset(frame)
            version = {IPV4: 4, IPV6: 6}.get(ethertype, 0) if len(frame) >= 14 else 0
            if not version or l3 >= len(frame) or l3 > 64 or frame[l3] >> 4 != version:
                what = "punt"
                assert (sent, refused, len(bench.punted_out)) == ([], {}, punts + 1)
                assert bench.punted_out[-1][bench.header.size :] == frame
            else:
                decision = policy.outbound(frame[l3:])
                what = decision.outcome.value
                assert len(bench.punted_out) == punts
                if decision.outcome is Outcome.PROTECT:
                    if sent:
                        spi, inner = opened(sent[0])
                        assert spi == SPIS[decision.sa or 0]
                        assert frame[l3:].startswith(inner)
                        assert sent[0][: l3 - 2] == frame[: l3 - 2]
                    assert (len(sent), sum(refused.values())) in ((1, 0), (0, 1))
                elif decision.outcome is Outcome.BYPASS:
                    assert (sent, refused) == ([frame], {})
                else:
                    assert (sent, refused) == ([], {f"tx_drop_{decision.outcome.value}": 1})
            seen[what] = seen.get(what, 0) + 1
    assert {"punt", "protect", "bypass", "drop_rule", "drop_default"} <= set(seen)


@pytest.mark.parametrize("action", list(Action))
def test_a_segmented_buffer_has_one_fate(action: Action) -> None:
    bench = Bench()
    bench.outbound(0)
    bench.policy(Policy((Rule(ANY, action, 0 if action is Action.PROTECT else None),), Action.DROP))
    data = bytes(range(250)) * 180  # more segments than go through one stage
    sent = bench.send(ether(tcp(data)), flags=1, gso_type=1, gso_size=500, csum_start=34, csum_offset=16)
    counts = bench.worker.counts()
    if action is Action.DROP:
        assert (sent, counts) == ([], {"tx_frames": 90, "tx_bytes": 90 * 54 + len(data), "tx_drop_drop_rule": 90})
        return
    assert len(sent) == counts["tx_frames"] == 90
    assert counts["tx_bytes"] == 90 * 54 + len(data)
    packets = [opened(f)[1] for f in sent] if action is Action.PROTECT else [f[14:] for f in sent]
    assert b"".join(packet[40:] for packet in packets) == data
    assert counts.get("tx_protected", 0) == (90 if action is Action.PROTECT else 0)


@pytest.mark.parametrize("by_operator", [True, False])
def test_a_limit_in_the_middle_of_a_segmented_buffer(by_operator: bool) -> None:
    """An operator drops frame by frame; a driver hears of one buffer that was refused."""
    bench = Bench(FEATURES if by_operator else IPSEC)
    sa = bench.outbound(0, options=64, life=Lifetime(packets_hard_limit=70))
    bench.policy(Policy((Rule(ANY, Action.PROTECT, 0),), Action.DROP))
    hdr = {"flags": 1, "gso_type": 1, "gso_size": 100, "csum_start": 34, "csum_offset": 16}
    if not by_operator:
        hdr |= {"flags": 1 | SECURITY, "resource_type": 0x203}
    sent = bench.send(ether(tcp(bytes(20000))), **hdr)  # 200 segments, four stages
    assert len(sent) == sa.packets == 70
    name = "tx_drop_hard_lifetime" if by_operator else "tx_refused_hard_lifetime"
    assert bench.worker.counts()[name] == (130 if by_operator else 1)
    assert bench.send(ether(tcp(bytes(20000))), **hdr) == []
    assert bench.worker.counts()[name] == (330 if by_operator else 2)


def test_without_a_policy_nothing_passes() -> None:
    bench = Bench()
    bench.inbound(0)
    assert bench.send(ether(udp())) == []
    assert bench.arrive(ether(udp()), sealed(udp())) == []
    assert bench.worker.counts() == {
        "tx_frames": 1, "tx_bytes": len(ether(udp())), "tx_drop_drop_default": 1, "rx_opened": 1,
        "rx_drop_drop_default": 2,
    }  # fmt: skip


def test_the_guest_of_an_operator_cannot_ask_for_protection() -> None:
    bench = Bench()
    bench.outbound(0)
    bench.policy(BYPASS)
    assert bench.send(ether(udp()), flags=SECURITY) == [ether(udp())]


# ---- what arrives at one


@pytest.mark.parametrize("seed", range(4))
def test_what_arrives_is_checked_as_the_policy_says(seed: int) -> None:
    rnd = random.Random(seed)
    bench = Bench()
    for ident in range(2):
        bench.inbound(ident, spi=SPIS[ident], replay_win_sz=0)
    seen: dict[str, int] = {}
    for number in range(1, 400):
        if number % 20 == 1:
            policy = random_policy(rnd)
            selectors = tuple(rule.selector for rule in random_policy(rnd).rules) or (ANY,)
            peer = rnd.choice((None, IPv4Address("198.51.100.2")))
            policy = Policy(
                policy.rules, policy.default, {0: InboundSa(selectors, peer), 1: InboundSa((ANY,), peer)}
            )
            bench.policy(policy)
        made = laid(rnd, (0, 1, 8, 300))
        packet = (made.data[made.l3 :] if made.l3 else b"") or udp()
        ident = rnd.choice((None, 0, 1))
        if ident is None:
            frame = made.data
        else:
            source = rnd.choice(("198.51.100.2", "198.51.100.3"))
            frame = sealed(packet, number, SPIS[ident], source)
        before, punts = bench.worker.counts(), len(bench.punted_in)
        found = bench.arrive(frame)
        after = bench.worker.counts()
        gained = {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)}
        if ident is None and len(bench.punted_in) > punts:
            what = "punt"
            assert bench.punted_in[-1] == (frame, RxState(False, 0, False, 0))
            assert found == []
        elif gained.get("rx_opened"):
            decision = policy.inbound_opened(ident or 0, packet, IPv4Address(source))
            what = decision.outcome.value
            assert bool(found) == (decision.outcome is Outcome.BYPASS), decision
            if found:
                assert packet.startswith(found[0][1][14:])
                assert found[0][0].flags & ~2 == 0
        elif ident is None:
            decision = policy.inbound_clear(frame[made.l3 :])
            what = "clear " + decision.outcome.value
            assert [data for _, data in found] == ([frame] if decision.outcome is Outcome.BYPASS else [])
        else:
            what = "not opened"  # what the SA refused
            assert found == []
        dropped = sum(n for k, n in gained.items() if "_drop_" in k or "refused" in k)
        assert (len(found), dropped, len(bench.punted_in) - punts) in ((1, 0, 0), (0, 1, 0), (0, 0, 1)), what
        seen[what] = seen.get(what, 0) + 1
    assert {"bypass", "drop_selector", "drop_peer", "clear bypass", "clear drop_default"} <= set(seen), seen


def test_cleartext_that_ought_to_be_protected_stays_outside() -> None:
    bench = Bench()
    bench.policy(Policy((Rule(Selector(protocol=17), Action.PROTECT, 0),), Action.BYPASS, EVERYTHING))
    assert bench.arrive(ether(udp())) == []
    assert bench.worker.counts()["rx_drop_drop_cleartext"] == 1
    assert [f for _, f in bench.arrive(ether(tcp(b"x")))] == [ether(tcp(b"x"))]


def test_transport_mode_comes_from_no_tunnel_peer() -> None:
    bench = Bench()
    bench.inbound(0, IpsecMode.ESP_TRANSPORT)
    inner = udp()
    esp = plane.seal(inner[20:], 17)
    frame = ether(ipv4(inner[12:16], inner[16:20], 50, esp))
    bench.policy(Policy((), Action.DROP, {0: InboundSa((ANY,), IPv4Address("10.0.0.1"))}))
    assert bench.arrive(frame) == []
    esp = plane.seal(inner[20:], 17, 2)
    bench.policy(Policy((), Action.DROP, {0: InboundSa((ANY,))}))
    ((_, got),) = bench.arrive(ether(ipv4(inner[12:16], inner[16:20], 50, esp)))
    assert got[34:] == inner[20:]


def test_frames_that_are_not_ip_are_the_owners_both_ways() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    arp = plane.MAC + plane.PEER + b"\x08\x06" + bytes(28)
    assert bench.send(arp) == []
    assert bench.arrive(arp) == []
    assert bench.punted_out == [bytes(bench.header.size) + arp]
    assert bench.punted_in == [(arp, RxState(False, 0, False, 0))]
    counts = bench.worker.counts()
    assert (counts["tx_punted"], counts["rx_punted"]) == (1, 1)


def test_what_python_makes_of_a_frame_stands_in_its_place() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    arp = plane.MAC + plane.PEER + b"\x08\x06" + bytes(28)
    bench.punt_transmit = lambda pair, buffer: [b"instead of ARP"]  # type: ignore[method-assign]
    for frame in (ether(udp(1)), arp, ether(udp(2))):
        bench.queue(frame)
    assert bench.kick() == [ether(udp(1)), b"instead of ARP", ether(udp(2))]
    bench.punt_receive = lambda frame, state: [(0, bytes(bench.header.size) + b"reply")]  # type: ignore[method-assign]
    assert [f for _, f in bench.arrive(ether(udp(1)), arp, ether(udp(2)))] == [
        ether(udp(1)), b"reply", ether(udp(2)),
    ]  # fmt: skip


@pytest.mark.parametrize("pair", [0, 1, 2, 40000])
@pytest.mark.parametrize("size", [0, 11])
def test_what_python_delivers_is_checked_too(pair: int, size: int) -> None:
    bench = Bench()
    bench.policy(BYPASS)
    bench.punt_receive = lambda frame, state: [(pair, bytes(size)), (pair, bytes(64))]  # type: ignore[method-assign]
    bench.arrive(plane.MAC + plane.PEER + b"\x08\x06" + bytes(28))
    counts = bench.worker.counts()
    assert counts["rx_refused_bad_header"] == 1
    assert counts.get("rx_refused_queue_disabled", 0) == (pair > 1)
    assert counts.get("rx_refused_no_buffer", 0) == (pair == 1)


# ---- integrity


def test_nothing_of_what_is_not_authentic_gets_into_guest_memory_in_clear() -> None:
    bench = Bench(IPSEC)
    bench.inbound(0, replay_win_sz=0)
    secret = b"this must not be seen" * 20
    good = sealed(udp(data=secret), 1)
    frames = []
    for at in (40, 60, 300, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        frames.append(bytes(bad))
    found = bench.arrive(*frames)
    assert [data for _, data in found] == frames
    assert all(hdr.flags & 0x30 == 0x30 for hdr, _ in found)  # SECURITY, SECURITY_ERR
    assert secret[:21] not in b"".join(view.tobytes() for _, view in bench.memory.views)
    assert bench.worker.counts()["rx_refused_bad_icv"] == 4
    ((hdr, data),) = bench.arrive(good)
    assert (hdr.flags & 0x30, data[14:]) == (0x10, udp(data=secret))


# ---- owners


class OwnFault(Exception):
    pass


def boom(*_: object) -> None:
    raise OwnFault


@pytest.mark.parametrize("call", ["uplink", "interrupt", "punt_transmit"])
def test_an_error_of_the_owner_comes_out_of_transmit(call: str) -> None:
    bench = Bench()
    bench.policy(BYPASS)
    healthy = getattr(bench, call)
    setattr(bench, call, boom)
    with pytest.raises(OwnFault):
        bench.send(plane.MAC + plane.PEER + b"\x08\x06" if call == "punt_transmit" else ether(udp()))
    setattr(bench, call, healthy)
    assert bench.send(ether(udp()))[-1] == ether(udp())


@pytest.mark.parametrize("call", ["interrupt", "punt_receive"])
def test_an_error_of_the_owner_comes_out_of_receive(call: str) -> None:
    bench = Bench()
    bench.policy(BYPASS)
    bench.post()
    healthy = getattr(bench, call)
    setattr(bench, call, boom)
    with pytest.raises(OwnFault):
        bench.worker.receive([plane.MAC + plane.PEER + b"\x08\x06", ether(udp())])
    setattr(bench, call, healthy)
    bench.worker.receive([ether(udp())])
    assert len(bench.taken()) == 2


def test_an_error_comes_out_of_the_call_that_it_happened_in() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    inside, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def uplink(frames: list[bytes]) -> None:
        if threading.current_thread() is other:
            inside.set()
            assert go_on.wait(30)
            raise OwnFault

    def work() -> None:
        try:
            bench.queue(ether(udp()), 1)
            bench.kick(1, Worker(bench.port))
        except OwnFault as error:
            errors.append(error)

    bench.uplink = uplink  # type: ignore[method-assign]
    other = threading.Thread(target=work)
    other.start()
    assert inside.wait(30)
    go_on.set()
    for _ in range(200):
        bench.send(ether(udp()))
    other.join(30)
    assert len(errors) == 1


def test_a_port_that_is_part_of_a_cycle_can_be_collected() -> None:
    for _ in range(20):
        bench = Bench()
        bench.policy(BYPASS)
        bench.send(ether(udp()))
        alive = weakref.ref(bench)
        del bench  # port and owner know each other
        gc.collect()
        assert alive() is None


@pytest.mark.parametrize(
    ("features", "changes"),
    [
        (IPSEC, {"pairs": 0}),
        (IPSEC, {"pairs": 32769}),
        (IPSEC, {"header_size": 11}),
        (IPSEC, {"header_size": 65}),
        (IPSEC, {"hash_at": 60}),
        (IPSEC, {"outer_nh_at": 63}),
        (IPSEC, {"resource_id_at": 61}),
        (IPSEC, {"resource_type_at": 60}),
        # A driver that names SAs has to have where to.
        (IPSEC, {"resource_id_at": None}),
        (IPSEC, {"resource_type_at": None}),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(features: int, changes: dict[str, int | None]) -> None:
    table = FastSaTable(plane.random_bytes)
    config: PortConfig = port_config(features, **changes)
    with pytest.raises(ConfigError):
        Port(table, config, Bench())


def test_more_workers_than_there_are_readers_are_refused() -> None:
    bench = Bench()
    workers: list[Worker] = []
    with pytest.raises(ConfigError):
        workers.extend(Worker(bench.port) for _ in range(200))
    assert len(workers) < 128
    workers.clear()
    Worker(bench.port)


# ---- rings


def test_a_broken_ring_is_the_trouble_of_that_queue_alone() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    bench.post(1)
    bench.queue(ether(udp()))
    bench.break_ring(1, 0)
    assert bench.kick() == []
    assert fault_of(bench, 1) is Fault.ADDRESS
    bench.queue(ether(udp()), 1)
    assert bench.kick(1) == [ether(udp())]
    assert [index for index in bench.queues if bench.queues[index].faulty] == [1]
    bench.post(0, 1)
    bench.break_ring(0, 0)
    bench.worker.receive([ether(udp())])
    assert sorted(index for index in bench.queues if bench.queues[index].faulty) == [0, 1]
    bench.queue(ether(udp()), 1)
    assert bench.kick(1) == [ether(udp())]


def fault_of(bench: Bench, index: int) -> Fault:
    _, lib = native.extension()
    return list(Fault)[lib.vipsec_queue_fault(bench.queues[index].handle) - 1]


def test_buffers_taken_before_a_fault_leave() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    bench.queue(ether(udp(1)))
    bench.queue(ether(udp(2)))
    bench.queue(ether(udp(3)))
    bench.drivers[1].publish()
    bench.break_ring(1, 2)
    bench.worker.transmit(0, QUEUE_SIZE)
    assert bench.wire == [ether(udp(1)), ether(udp(2))]


@pytest.mark.parametrize("size", [BUFFER, 40])
def test_frames_received_before_a_fault_reach_the_guest(size: int) -> None:
    """Be it that they were taken for one buffer each, or for two."""
    bench = Bench()
    bench.policy(BYPASS)
    frame = ether(udp())
    each = -(-(bench.header.size + len(frame)) // size)
    bench.post(0, 2 * each + 1, size)
    bench.break_ring(0, 2 * each)
    bench.worker.receive([frame, frame, frame])
    assert fault_of(bench, 0) is Fault.ADDRESS
    assert [received for _, received in bench.taken()] == [frame, frame]


def test_a_budget_is_kept_and_what_is_left_comes_next() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    for number in range(1, 11):
        bench.queue(ether(udp(number)))
    bench.drivers[1].publish()
    assert bench.worker.transmit(0, 3) == 3
    assert bench.worker.transmit(0, 100) == 7
    assert bench.worker.transmit(0, 100) == 0
    assert bench.worker.transmit(7, 100) == 0
    assert bench.wire == [ether(udp(number)) for number in range(1, 11)]


def test_a_buffer_longer_than_any_is_completed_and_counted() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    assert bench.send(bytes(1 << 17)) == []
    assert bench.worker.counts() == {"tx_refused_too_big": 1}


def test_a_queue_reset_inside_a_punt_ends_the_call() -> None:
    bench = Bench()
    bench.policy(BYPASS)

    def reset(pair: int, buffer: bytes) -> list[bytes]:
        bench.queues.pop(1)
        bench.show(0)
        return []

    bench.punt_transmit = reset  # type: ignore[method-assign]
    bench.queue(plane.MAC + plane.PEER + b"\x08\x06")
    for _ in range(QUEUE_SIZE - 1):
        bench.queue(ether(udp()))
    assert len(bench.kick()) == QUEUE_SIZE - 1
    gc.collect()
    assert bench.worker.transmit(0, 10) == 0


def test_receive_queues_may_be_exchanged_while_frames_arrive() -> None:
    bench = Bench(size=16 << 20)
    bench.policy(BYPASS)
    stop = threading.Event()

    def arrive() -> None:
        worker = Worker(bench.port)
        while not stop.is_set():
            worker.receive([ether(udp())] * 64)

    threads = [threading.Thread(target=arrive) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(150):
            bench.queues.pop(0)
            bench.show(0)
            gc.collect(0)
            bench.enable(0)
            bench.post(size=128)
            if number % 8 == 7:
                bench.drivers[0].poll()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_every_frame_is_counted_once() -> None:
    bench = Bench(IPSEC | mask(Feature.NET_F_HASH_REPORT))
    bench.inbound(0, replay_win_sz=64)
    bench.post(count=3, size=BUFFER)
    frames = [
        ether(udp(), b"\x81\0\0\5"), sealed(udp(), 1), sealed(udp(), 1), sealed(udp(), 2, 99), b"short", ether(udp()),
    ]  # fmt: skip
    bench.worker.receive(frames)
    assert bench.worker.counts() == {
        "rx_frames": 5, "rx_bytes": sum(len(frames[n]) for n in (0, 2, 3, 5)) + 14 + len(udp()),
        "rx_opened": 1, "rx_not_ipsec": 2, "rx_refused_replay": 1, "rx_refused_malformed": 1, "rx_refused_no_buffer": 2,
    }  # fmt: skip
    assert len(bench.taken()) == 3


def test_interrupts_are_asked_for_once_for_each_batch() -> None:
    bench = Bench()
    bench.policy(BYPASS)
    bench.arrive(*[ether(udp())] * 10)
    assert bench.interrupts == [0]
    bench.queue(ether(udp()))
    bench.queue(ether(udp()))
    bench.kick()
    assert bench.interrupts == [0, 1]
