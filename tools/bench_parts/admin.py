"""How many SAs a second the administration path creates and destroys, layer by layer.

One pair is RESOURCE_OBJ_CREATE + RESOURCE_OBJ_DESTROY of an outbound AES-GCM tunnel SA with a key of its own:

    device   the bytes of the command given to the device (`Device.admin`): no queue
    rings    the same bytes through driver side, rings and device side of a loopback, one command at a time
    burst    as rings, 64 commands made available by each notification
    driver   `driver.sas.create_outbound` and `destroy`: commands built, checked and kept books of, one at a time

The row of the design's table is `burst`: all that rings, transport and device do with a command, from a driver that
does the least it can. Every answer is looked at. Processor time is measured: others share the machine.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from time import process_time
from types import FrameType
from typing import Any

from tools.bench_parts.cells import Quiet
from tools.bench_parts.targets import ADMIN, Target
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.driver import Driver, DriverConfig
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, Direction, Feature, IpsecMode, Opcode, ResourceType, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4

#: Pairs that `burst` has under way; two commands each, so that they fill half of a ring of 256.
BURST = 32
QUEUE_SIZE = 256
OK = bytes(8)

Commands = list[tuple[bytes, bytes]]
TraceFunction = Callable[[FrameType, str, object], Any]


def sa(number: int) -> IpsecSa:
    """An outbound SA; each number has its own SPI and key."""
    return IpsecSa(
        mode=IpsecMode.ESP_TUNNEL,
        direction=Direction.OUTBOUND,
        spi=0x1000 + number,
        salt=b"salt",
        param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64),
        cipher_algo=AeadAlgo.GCM,
        cipher_key=number.to_bytes(16, "little"),
        obj_id=number,
    )


def commands(count: int) -> Commands:
    """CREATE and DESTROY of objects 0 to ``count`` - 1 as the queue carries them."""
    made = []
    for number in range(count):
        head = struct.pack("<HxxI", ResourceType.NET_IPSEC_OUTB_SA, number)
        body = head + bytes(8) + V14.sa.build(sa(number))
        create = struct.pack("<HH20x", Opcode.RESOURCE_OBJ_CREATE, 0) + body
        destroy = struct.pack("<HH20x", Opcode.RESOURCE_OBJ_DESTROY, 0) + head
        made.append((create + bytes(-len(create) % 8), destroy))
    return made


def started(packed: bool) -> tuple[Loopback, Driver]:
    """A device that a driver has brought up, limits and capabilities set."""
    link = Loopback(Device(DeviceConfig(), os.urandom, fast_path("auto", os.urandom)))
    wanted = SUPPORTED if packed else SUPPORTED & ~mask(Feature.F_RING_PACKED)
    driver = Driver(link, config=DriverConfig(wanted=wanted))
    driver.start()
    return link, driver


def check(answer: bytes) -> None:
    """A pair that failed would be a fast one."""
    if answer != OK:
        raise SystemExit(f"the device answers {answer.hex()}")


def by_device(link: Loopback, pairs: Commands) -> None:
    """Layer ``device``."""
    admin = link.device.admin
    for create, destroy in pairs:
        check(admin(create, 8))
        check(admin(destroy, 8))


class RawDriver:
    """The least that a driver can do: buffers written beforehand, descriptors, a kick, the answer looked at."""

    def __init__(self, link: Loopback, features: int, pairs: Commands) -> None:
        self.link = link
        self.index = link.admin_queue_index()
        link.reset_queue(self.index)
        layout = allocate_layout(link.allocator, QUEUE_SIZE, features)
        self.ring = driver_queue(link.memory, layout, features)
        link.enable_queue(self.index, layout)
        self.buffers = [self._put(command) for pair in pairs for command in pair]

    def _put(self, command: bytes) -> tuple[list[Segment], list[Segment]]:
        alloc = self.link.allocator.alloc
        source, target = Segment(alloc(len(command), 16), len(command)), Segment(alloc(8, 16), 8)
        self.link.memory.write(source.addr, command)
        return [source], [target]

    def run(self, at_once: int) -> None:
        """All commands in their order, ``at_once`` of them per notification."""
        memory, ring = self.link.memory, self.ring
        for first in range(0, len(self.buffers), at_once):
            batch = self.buffers[first : first + at_once]
            for source, target in batch:
                memory.write(target[0].addr, b"\xff" * 8)
                ring.add(source, target, target[0].addr)
            ring.publish()
            if ring.should_kick():
                self.link.kick(self.index)
            used = ring.poll()
            if len(used) != len(batch):
                raise SystemExit(f"{len(used)} answers to {len(batch)} commands")
            for each, (_, target) in zip(used, batch, strict=True):
                check(memory.read(target[0].addr, each.written))


def by_driver(driver: Driver, values: list[IpsecSa]) -> None:
    """Layer ``driver``."""
    sas = driver.sas
    for value in values:
        sas.destroy(sas.create_outbound(value))


def layers(count: int, packed: bool) -> Mapping[str, Callable[[], None]]:
    """What to run for ``count`` pairs, by layer, each on a device of its own."""
    pairs, values = commands(count), [sa(number) for number in range(count)]
    device, _ = started(packed)
    link, driver = started(packed)
    raw = RawDriver(link, driver.features, pairs)
    _, whole = started(packed)
    return {
        "device": lambda: by_device(device, pairs),
        "rings": lambda: raw.run(1),
        "burst": lambda: raw.run(2 * BURST),
        "driver": lambda: by_driver(whole, values),
    }


PAIRS = 100  # per sample
SAMPLES = 10  # of each layer per round


def part(rounds: int, quiet: Quiet) -> dict[str, float]:
    """Pairs per second by layer, split rings; printed."""
    rates = measure(PAIRS, rounds * SAMPLES, packed=False, quiet=quiet)
    print("\nSAs created and destroyed through the administration path, pairs per second (us per pair)")
    for name, rate in rates.items():
        print(f"  {name:8} {rate:8,.0f} ({1e6 / rate:.1f})")
    return rates


def judge(rates: Mapping[str, float]) -> Target:
    """The design's row, with what limits it: the instructions that the interpreter carries out for a pair."""
    others = ", ".join(f"{name} {rates[name]:,.0f}/s" for name in rates if name != "burst")
    count = instructions()
    return ADMIN.measured(
        rates["burst"],
        f"layer burst, 64 commands per notification; {others}; a pair in burst is {count:,.0f} instructions of the "
        f"interpreter at {1e9 / rates['burst'] / count:.0f} ns",
    )


def instructions() -> float:
    """Bytecode instructions that layer burst takes for a pair."""
    run = layers(BURST, packed=False)["burst"]
    run()
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    run()
    sys.settrace(before)
    return count / BURST


def measure(count: int, rounds: int, packed: bool, quiet: Quiet) -> dict[str, float]:
    """Pairs per second by layer: the best of ``rounds`` turns of ``count`` pairs."""
    runs = layers(count, packed)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        quiet.look()
        for name, run in runs.items():
            gc.collect()
            begin = process_time()
            run()
            best[name] = min(best[name], process_time() - begin)
    return {name: count / seconds for name, seconds in best.items()}
