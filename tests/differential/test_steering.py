"""Receive filter, packet hash, RSS and automatic steering of csrc/ against the Python device.

``FRAMES=1000000 pytest tests/differential/test_steering.py`` makes a soak of it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from random_frames import MACS, frames, laid, rounds, spoilt
from rss_vectors import KEY, V4, V6

from virtio_ipsec.device import steering as slow
from virtio_ipsec.device.frame import view
from virtio_ipsec.device.state import RxFilter, Steering
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.steering import FlowMemory, SteeringBlock, toeplitz
from virtio_ipsec.wire.numbers import Feature, mask

FILTERS = (Feature.NET_F_CTRL_RX, Feature.NET_F_CTRL_VLAN, Feature.NET_F_MAC, Feature.NET_F_CTRL_MAC_ADDR)
HASH_REPORT = mask(Feature.NET_F_HASH_REPORT)
NO_FILTER = RxFilter(MACS[0])

each_way = pytest.mark.parametrize("portable", [False, True], ids=["default", "portable"])


@each_way
@pytest.mark.parametrize(("source", "sport", "target", "dport", "addresses", "with_ports"), V4 + V6)
def test_published_hashes(
    source: str, sport: int, target: str, dport: int, addresses: int, with_ports: int, portable: bool
) -> None:
    data = ip_address(source).packed + ip_address(target).packed
    assert toeplitz(KEY, data, portable=portable) == addresses
    assert toeplitz(KEY, data + sport.to_bytes(2) + dport.to_bytes(2), portable=portable) == with_ports


@each_way
def test_toeplitz_of_any_key_and_length(portable: bool) -> None:
    rnd = random.Random(1)
    for _ in range(rounds(1000)):
        key = rnd.randbytes(rnd.choice((0, 1, 4, 16, 39, 40, 41, 52)))
        data = rnd.randbytes(4 * rnd.randrange(10))
        assert toeplitz(key, data, portable=portable) == slow.Toeplitz(key).hash(data)


def random_filter(rnd: random.Random) -> RxFilter:
    flags = {
        name: rnd.random() < 0.25 for name in ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")
    }
    flags["promisc"] = rnd.random() < 0.05
    pool = [*MACS, *(rnd.randbytes(6) for _ in range(3))]
    return RxFilter(
        rnd.choice(pool), **flags,
        unicast=frozenset(rnd.sample(pool, rnd.randrange(4))),
        multicast=frozenset(rnd.sample(pool, rnd.randrange(4))),
        vlans=frozenset(rnd.sample((0, 1, 5, 63, 64, 4095, 5 + 4096), rnd.randrange(5))),
    )  # fmt: skip


def test_the_receive_filter_admits_the_same_frames() -> None:
    rnd = random.Random(2)
    admitted = seen = 0
    for _ in range(rounds(300)):
        rx = random_filter(rnd)
        features = sum(1 << f for f in FILTERS if rnd.random() < 0.7)
        block = SteeringBlock(rx, Steering(), features, None, rnd.getrandbits(64))
        for _ in range(20):
            frame = spoilt(rnd, laid(rnd, (0, 8)).data)
            if len(frame) < 14:
                continue
            expected = slow.admits(frame, rx, features)
            assert block.admits(frame) == expected, (rx, features, frame[:18].hex())
            admitted += expected
            seen += 1
    assert 0.2 < admitted / seen < 0.95


def test_a_large_mac_table() -> None:
    rnd = random.Random(3)
    unicast = frozenset(bytes((2, *rnd.randbytes(5))) for _ in range(2000))
    rx = RxFilter(MACS[0], unicast=unicast)
    block = SteeringBlock(rx, Steering(), mask(*FILTERS), None, 1)
    assert all(block.admits(mac + bytes(54)) for mac in unicast)
    assert not any(block.admits(bytes((2, 1, *rnd.randbytes(4))) + bytes(54)) for _ in range(2000))


def random_steering(rnd: random.Random) -> Steering:
    pairs = rnd.choice((1, 2, 3, 8, 70, 32768))
    size = 1 << rnd.randrange(8)
    return Steering(
        pairs, rnd.random() < 0.5, rnd.choice((0, 0x1FF, rnd.randrange(512))),
        rnd.randbytes(rnd.choice((0, 10, 40, 52))),
        tuple(rnd.randrange(pairs) for _ in range(size)), rnd.randrange(pairs),
    )  # fmt: skip


def test_hashes_and_queues_are_the_same() -> None:
    rnd = random.Random(4)
    reports, dropped, learned = set(), 0, 0
    for _ in range(rounds(150)):
        steering = random_steering(rnd)
        features = HASH_REPORT if rnd.random() < 0.5 else 0
        slow_flows, fast_flows = slow.FlowMemory(), FlowMemory(rnd.getrandbits(64))
        block = SteeringBlock(NO_FILTER, steering, features, fast_flows, rnd.getrandbits(64))
        for frame in frames(rnd.getrandbits(32), 40):
            headers = view(frame)
            if rnd.random() < 0.4:
                queue = rnd.randrange(2 * steering.queue_pairs)
                slow_flows.sent(frame, headers, queue)
                fast_flows.sent(frame, queue)
            wanted = steering.rss or features
            hashed = slow.packet_hash(frame, headers, steering.hash_types, steering.key) if wanted else (0, 0)
            live = None
            if rnd.random() < 0.5:
                pool = range(min(steering.queue_pairs + 2, 200))
                live = set(rnd.sample(pool, rnd.randrange(min(4, len(pool)))))
            expected = slow.choose_queue(steering, slow_flows, live, frame, headers, hashed)
            assert block.choose(frame, live) == (expected, hashed), (steering, live, frame.hex())
            reports.add(hashed[1])
            dropped += expected is None
            learned += slow_flows.queue_of(slow.flow_key(frame, headers, sent=False)) is not None
        assert len(slow_flows) == len(fast_flows)
    assert reports == set(range(10))
    assert dropped > 20
    assert learned > 20


def udp(source: int, sport: int) -> bytes:
    packet = bytes.fromhex("45000024000000004011") + bytes(2) + source.to_bytes(4) + bytes((10, 0, 0, 9))
    return bytes(12) + b"\x08\x00" + packet + sport.to_bytes(2) + bytes.fromhex("0035001000000000") + bytes(6)


def answer(frame: bytes) -> bytes:
    return frame[:26] + frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36] + frame[38:]


def test_the_flow_not_used_for_longest_is_forgotten_first() -> None:
    _, lib = native.extension()
    assert slow.MAX_FLOWS == lib.VIPSEC_MAX_FLOWS
    rnd = random.Random(5)
    slow_flows, fast_flows = slow.FlowMemory(), FlowMemory(99)
    steering = Steering(queue_pairs=1000)
    block = SteeringBlock(NO_FILTER, steering, 0, fast_flows, 0)
    for step in range(12000):
        frame = udp(rnd.randrange(20), rnd.randrange(400)) if step % 2 else udp(step, step & 0xFFFF)
        slow_flows.sent(frame, view(frame), step % 1000)
        fast_flows.sent(frame, step % 1000)
        if step % 8 == 0:
            back = answer(udp(rnd.randrange(20), rnd.randrange(400)))
            expected = slow.choose_queue(steering, slow_flows, None, back, view(back), (0, 0))
            assert block.choose(back)[0] == expected
    assert len(slow_flows) == len(fast_flows) == slow.MAX_FLOWS
    for number in range(12000):
        back = answer(udp(number, number & 0xFFFF))
        expected = slow.choose_queue(steering, slow_flows, None, back, view(back), (0, 0))
        assert block.choose(back)[0] == expected


def test_a_configuration_that_cannot_be_is_refused() -> None:
    rss = Steering(queue_pairs=2, rss=True, table=(0, 1, 0))
    for wrong in (rss, replace(rss, table=()), Steering(queue_pairs=0)):
        with pytest.raises(ConfigError):
            SteeringBlock(NO_FILTER, wrong, 0, None, 0)


def test_no_block_admits_everything_to_the_first_queue() -> None:
    ffi, lib = native.extension()
    frame = udp(1, 1)
    value, report = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    assert lib.vipsec_steering_admits(ffi.NULL, frame, len(frame)) == 1
    assert lib.vipsec_steering_choose(ffi.NULL, ffi.NULL, 0, frame, len(frame), value, report) == 0
    assert (value[0], report[0]) == (0, 0)
