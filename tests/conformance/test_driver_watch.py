"""Who looks on changes nothing, and keeps no secret."""

from __future__ import annotations

import sys
from random import Random
from subprocess import run

import pytest

from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import Script, perform
from virtio_ipsec.conformance.reports import master
from virtio_ipsec.conformance.reports.page import to_html
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.ring.queue import driver_queue
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.monitor.events import Exposed, Recorder, Returned, Taken
from virtio_ipsec.transport.monitor.faces import FACES, Questions, make_device
from virtio_ipsec.transport.monitor.loopback import WatchedLoopback
from virtio_ipsec.transport.monitor.queues import Watch, WatchedFast
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.numbers import Feature, mask

#: Index of the first administration queue behind two queue pairs.
ADMIN = 5


class Secrets:
    """Random octets, which are remembered."""

    def __init__(self) -> None:
        self._random = Random(7)
        self.drawn: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        self.drawn.append(self._random.randbytes(count))
        return self.drawn[-1]


@pytest.mark.parametrize("dialect", [V14, RFC_2025_01], ids=lambda d: d.name)
def test_no_key_and_no_salt_stands_in_trace_or_report(dialect: object) -> None:
    recorder = Recorder(dialect)  # type: ignore[arg-type]
    secrets = Secrets()

    perform(recorder, secrets)
    report = judge_trace(recorder, "script")
    keys = {drawn for drawn in secrets.drawn if len(drawn) >= 16}
    salts = {drawn for drawn in secrets.drawn if len(drawn) == 4}
    assert len(keys) > 5
    assert len(salts) > 5
    told = [e.data for e in recorder.events if isinstance(e, Taken | Returned) and e.index >= ADMIN]
    commands = b"".join(told)
    assert len(told) > 100
    everything = (
        repr(recorder.events).encode() + to_html(report).encode() + repr(master.to_json(report)).encode()
    )
    for secret in keys | salts:
        assert secret not in commands
        assert secret.hex().encode() not in everything
    for key in keys:
        assert repr(key).encode()[2:-1] not in everything


@pytest.mark.parametrize("face", ["full", "split", "plain"])
def test_a_device_that_is_watched_does_what_it_does_unwatched(face: str) -> None:
    def played(watched: bool) -> tuple[list[bytes], dict[str, int]]:
        recorder = Recorder(V14)
        random = Random(3).randbytes
        if watched:
            link: Loopback = WatchedLoopback(FACES[face], recorder, random)
        else:
            questions = Questions(FACES[face], rough=True)
            link = Loopback(make_device(FACES[face], V14, questions, random), memory_size=8 << 20)

        def ask(script: Script) -> None:
            for frame in (
                b"\xff" * 12 + b"\x08\x06" + bytes(46),
                bytes(5),
                b"\xff" * 12 + b"\x08\0" + bytes(1400),
            ):
                link.inject(frame)
                script.receive()

        script = Script(link, V14, Random(4).randbytes, ask)
        if not watched:  # one administration queue, whatever the face says
            script.order_two_queues = lambda: None  # type: ignore[method-assign]
        else:
            script.order_two_queues = script.before_driver_ok = lambda: None  # type: ignore[method-assign]
        script.play()
        return link.captured(), dict(link.device.counters())

    watched, unwatched = played(True), played(False)
    assert watched == unwatched
    assert len(watched[0]) > 5


@pytest.mark.parametrize("features", [0, mask(Feature.F_RING_PACKED)], ids=["split", "packed"])
def test_a_queue_that_goes_on_in_other_memory_is_looked_on_at_all_the_same(features: int) -> None:
    raw = memoryview(bytearray(0x4000))
    rings, first, second = (Region(at, 0x1000, raw[at:]) for at in (0, 0x1000, 0x3000))
    layout = QueueLayout(8, 0, 0x400, 0x800)
    driver = driver_queue(GuestMemory([rings, first, second]), layout, features)
    memory, recorder = GuestMemory([rings, first]), Recorder(V14)
    queue = WatchedFast(memory, layout, features)
    queue.watch = Watch(recorder, 0, memory, queue, features=features, is_admin=True)
    raw[0x1000:0x1003], raw[0x3000:0x3003] = b"one", b"two"
    driver.add([Segment(0x1000, 3)], [], 0)
    driver.publish()
    queue.watch.look()
    driver.add([Segment(0x3000, 3)], [], 1)
    driver.publish()
    assert not queue.move(GuestMemory([Region(0, 0x1000, bytearray(0x1000)), second]))
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    assert queue.move(GuestMemory([rings, second]))
    assert queue.pop() is not None
    assert [(e.place, e.data) for e in recorder.events if isinstance(e, Taken)] == [(0, b"one"), (1, b"two")]
    assert [e.place for e in recorder.events if isinstance(e, Exposed)] == [0, 1]


def test_nobody_looks_on_at_other_devices() -> None:
    """No room below asks for the monitor: it costs nothing where it is not used."""
    code = "import sys, virtio_ipsec, virtio_ipsec.cli.serve, virtio_ipsec.transport.targets; "
    code += "print([m for m in sys.modules if 'monitor' in m])"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
