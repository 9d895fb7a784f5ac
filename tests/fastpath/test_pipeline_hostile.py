"""Guests that take their memory away, or rewrite it, while the packet path of csrc/ is at work on it."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from random import Random

import pytest
from ports import BASE, FEATURES, IPSEC, QUEUE_SIZE, Bench
from test_pipeline import BYPASS, SECURITY, ether, sealed, udp

from virtio_ipsec.fastpath.rings import fast_memory
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.selectors import InboundSa, Policy, Rule, Selector
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.wire.numbers import Feature, mask

SIZE = 4 << 20
PACKED = mask(Feature.F_RING_PACKED)


class File:
    """Guest memory over a file that its owner can truncate."""

    def __init__(self, margin: int = 0) -> None:
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, SIZE + 2 * margin)
        self.map = mmap.mmap(self.file, SIZE + 2 * margin)
        self.memory = GuestMemory([Region(BASE, SIZE, memoryview(self.map)[margin : margin + SIZE])])


def loop(bench: Bench, frame: bytes) -> Callable[[], int]:
    """One round of traffic both ways; how many frames came through."""

    def once() -> int:
        for _ in range(8):
            bench.queue(frame)
        sent = len(bench.kick())
        return sent + len(bench.arrive(*[frame] * 8))

    return once


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_guest_that_truncates_its_memory_stops_its_own_port_only(features: int) -> None:
    """The C side of one port loses its memory under load (its Python side holds the rings still, so that only csrc/
    touches what has gone); the other port loses nothing."""
    files = [File(), File()]
    benches = [Bench(memory=each.memory, size=SIZE, features=FEATURES | features) for each in files]
    for bench in benches:
        bench.policy(BYPASS)
    frame = ether(udp(data=bytes(1000)))
    stop, results, rounds = threading.Event(), [0, 0], [0, 0]
    problems: list[BaseException] = []

    def doomed() -> None:
        bench = benches[0]
        frames = [frame] * 64
        while not stop.is_set() and not any(queue.faulty for queue in bench.queues.values()):
            bench.worker.receive(frames)  # buffers run out; looking for them is enough
            bench.worker.transmit(0, QUEUE_SIZE)
            rounds[0] += 1

    def healthy() -> None:
        try:
            once = loop(benches[1], frame)
            while not stop.is_set():
                results[1] += once()
                rounds[1] += 1
        except BaseException as error:
            problems.append(error)

    benches[0].post()
    threads = [threading.Thread(target=doomed), threading.Thread(target=healthy)]
    for thread in threads:
        thread.start()
    wait(lambda: min(rounds) > 5)
    os.ftruncate(files[0].file, 0)
    threads[0].join(30)
    before = rounds[1]
    wait(lambda: rounds[1] > before + 5)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert problems == []
    assert results[1] == 16 * rounds[1]
    assert not any(queue.faulty for queue in benches[1].queues.values())
    assert fast_memory(files[0].memory).failed
    assert any(queue.faulty for queue in benches[0].queues.values())
    os.ftruncate(files[0].file, SIZE)  # for the interpreter


def wait(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(3000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("at", ["ring", "buffers"])
def test_memory_that_goes_between_two_calls(at: str) -> None:
    """No lock, read section or guard frame is left behind: everything can still be called, and SAs can be removed."""
    file = File()
    bench = Bench(IPSEC, memory=file.memory, size=SIZE)
    sa = bench.inbound(0)
    bench.post()
    bench.queue(ether(udp()))
    bench.drivers[1].publish()
    os.ftruncate(file.file, 0 if at == "ring" else 8192)
    bench.worker.receive([ether(udp())] * 3 + [sealed(udp())])
    bench.worker.transmit(0, 10)
    assert fast_memory(file.memory).failed
    bench.worker.receive([ether(udp())] * 3)
    bench.worker.transmit(0, 10)
    os.ftruncate(file.file, SIZE)
    sa.wipe()
    bench.policy(BYPASS)
    bench.enable(0)
    assert len(bench.arrive(ether(udp()))) == 1


@pytest.mark.parametrize("features", [0, PACKED, PACKED | mask(Feature.F_INDIRECT_DESC)])
@pytest.mark.parametrize("seed", [1, 2])
def test_memory_that_changes_under_the_workers_feet(features: int, seed: int) -> None:
    """Another thread writes into rings, headers and frames all the time. Nothing beside the region is touched, nothing
    leaves in clear of what is marked SECURITY throughout."""
    margin = 1 << 16
    file = File(margin)
    canary = bytes(range(1, 255)) * 300
    file.map[:margin] = file.map[-margin:] = canary[:margin]
    rnd = Random(seed)
    bench = Bench(IPSEC | features, memory=file.memory, size=SIZE)
    bench.outbound(0)
    bench.inbound(0, replay_win_sz=0)
    secret = b"this must not leave in clear "
    stop = threading.Event()
    targets: list[tuple[int, int]] = []

    def change() -> None:
        while not stop.is_set():
            start, size = rnd.choice(targets)
            address = start + rnd.randrange(size)
            file.map[margin + address - BASE] = rnd.randrange(256)

    leaks = 0
    for _ in range(6):  # a broken queue stays so: begin again
        bench.drivers.clear()
        for index in range(4):
            bench.queues.pop(index, None)
            bench.show(index >> 1)
            bench.enable(index)
        layout = bench.layouts[1]
        # Rings of both ways, and the frames behind the headers: the mark SECURITY itself stays.
        targets[:] = [(layout.desc + 8, 8), (bench.layouts[0].desc, 16 * QUEUE_SIZE)]
        for at in range(QUEUE_SIZE // 2):
            frame = ether(udp(data=secret * 20))
            bench.queue(frame, flags=SECURITY, resource_id=0, resource_type=0x203)
            targets.append((layout.desc + 16 * at + 8, 4))  # length
        bench.drivers[1].publish()
        bench.post()
        thread = threading.Thread(target=change)
        stop.clear()
        thread.start()
        for _ in range(40):
            bench.worker.receive([ether(udp()), sealed(udp(data=b"opened" * 30), 5)] * 16)
            bench.worker.transmit(0, 8)
        stop.set()
        thread.join(30)
        leaks += sum(secret in frame for frame in bench.wire)
        bench.wire.clear()
    assert leaks == 0
    assert file.map[:margin] == file.map[-margin:] == canary[:margin]


@pytest.mark.parametrize("features", [0, PACKED])
def test_headers_and_frames_that_change_are_judged_as_they_were_read(features: int) -> None:
    """The guest turns header and frame to and fro, whole words at a time; the policy sees what leaves."""
    file = File()
    bench = Bench(FEATURES | features, memory=file.memory, size=SIZE)
    bench.outbound(0)
    protected = Rule(Selector(protocol=17), Action.PROTECT, 0)
    bench.policy(Policy((protected,), Action.BYPASS, {0: InboundSa((Selector(),))}))
    stop = threading.Event()
    frame = ether(udp(data=b"clear text of UDP " * 30))
    places: list[int] = []

    def change() -> None:
        protocols = (17, 6)
        count = 0
        while not stop.is_set():
            for place in places[:]:
                count += 1
                file.map[place] = protocols[count & 1]

    thread = threading.Thread(target=change)
    thread.start()
    clear = sealed_count = 0
    try:
        for _ in range(60):
            places.clear()
            for _ in range(16):
                bench.queue(frame)
            _, view = bench.memory.views[0]
            whole = view.tobytes()
            at = whole.find(frame)
            while at >= 0:
                places.append(at + 14 + 9)
                at = whole.find(frame, at + 1)
            for sent in bench.kick():
                assert len(sent) >= len(frame)
                if sent[23] == 50:
                    sealed_count += 1
                else:
                    clear += 1
                    assert sent[23] == 6, "UDP that the policy protects left in clear"
    finally:
        stop.set()
        thread.join(30)
    assert sealed_count + clear > 0
