"""Whatever a driver writes into its rings: who looks on finds an end, raises nothing, and the device is the same."""

from __future__ import annotations

from random import Random

import pytest

from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.ring.queue import allocate_layout
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.monitor.events import Broken, Exposed, Recorder
from virtio_ipsec.transport.monitor.faces import FACES, Questions, make_device
from virtio_ipsec.transport.monitor.loopback import WatchedLoopback
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, Status, mask

FEATURES = {
    "packed": mask(
        Feature.F_VERSION_1,
        Feature.F_RING_PACKED,
        Feature.F_ADMIN_VQ,
        Feature.F_INDIRECT_DESC,
        Feature.NET_F_IPSEC,
    ),
    "split": mask(Feature.F_VERSION_1, Feature.F_ADMIN_VQ, Feature.F_INDIRECT_DESC, Feature.NET_F_IPSEC),
}


def tortured(link: Loopback, features: int, seed: int) -> tuple[int, dict[str, int], bytes]:
    """A driver of random octets; what the device then is, has counted, and has left in memory."""
    random = Random(seed)
    link.write_status(0)
    link.write_status(Status.ACKNOWLEDGE)
    link.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
    link.write_driver_features(features)
    link.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    size = 8
    layouts = []
    for index in (0, 1, 5):
        layout = allocate_layout(link.allocator, size, features)
        link.enable_queue(index, layout)
        layouts.append((index, layout))
    link.write_status(link.device.status | Status.DRIVER_OK)
    base = link.allocator.alloc(4096)
    for _ in range(12):
        index, layout = random.choice(layouts)
        for at in range(size):
            entry = (
                (base + random.randrange(4096)).to_bytes(8, "little")
                if random.random() < 0.8
                else random.randbytes(8)
            )
            entry += random.choice((16, 32, 48, 64, 2048, 0, 1 << 31)).to_bytes(4, "little")
            entry += random.choice((random.randrange(8), random.getrandbits(16))).to_bytes(2, "little")
            entry += random.choice((random.randrange(size), random.getrandbits(16))).to_bytes(2, "little")
            if random.random() < 0.7:
                link.memory.write(layout.desc + 16 * at, entry)
        link.memory.write(base, random.randbytes(4096))
        link.memory.write(layout.driver, random.randbytes(2) + bytes((random.randrange(size), 0)))
        link.memory.write(layout.driver + 4, bytes(random.randrange(size) for _ in range(2)).ljust(2, b"\0"))
        link.kick(index)
        link.inject(random.randbytes(random.randrange(1500)))
    return int(link.device.status), dict(link.device.counters()), link.memory.read(0x1000, 1 << 20)


@pytest.mark.parametrize("ring", FEATURES)
def test_a_hostile_ring_is_looked_at_without_harm(ring: str) -> None:
    exposed = broken = 0
    for seed in range(14):
        recorder = Recorder(V14)
        face = FACES["full"]
        watched = WatchedLoopback(face, recorder, Random(1).randbytes)
        plain = Loopback(
            make_device(face, V14, Questions(face, rough=True), Random(1).randbytes), memory_size=8 << 20
        )
        assert tortured(watched, FEATURES[ring], seed) == tortured(plain, FEATURES[ring], seed)
        watched.close()
        report = judge_trace(recorder, "hostile")
        assert [case.reason for case in report.cases if case.verdict is Verdict.ERROR] == []
        exposed += sum(isinstance(event, Exposed) for event in recorder.events)
        broken += sum(isinstance(event, Broken) for event in recorder.events)
    assert exposed > 10
    assert broken > 2
