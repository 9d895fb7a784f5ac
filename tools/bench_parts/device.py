"""Any device, from its driver's seat: packets sent through one transmit queue, SAs made and destroyed.

The frames go through an ESP tunnel of the device's (AES-128-GCM) where it has VIRTIO_NET_F_IPSEC and an administration
virtqueue, else as they are. A packet counts when the device gives its buffer back; what it does with it shows on its
wire: where that can be reached, some packets of each size are taken from it first, and opened with `cryptography`.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.bench_parts.cells import Cell, Quiet
from tools.bench_parts.feeders import OURS, RING, Feeder, frame, mac, opened, started, tunnel
from tools.bench_parts.native import Native
from virtio_ipsec.conformance.target import Target, open_target
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.sas import Sas
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, has

SIZES = (64, 1420)
#: Bytes that a size may have: IPv4 and a payload, and what a ring's worth of fits the memory shared with the device.
LEAST, MOST = 64, 4096
WARM, TIMED = 0.1, 0.3  # seconds
CHECKED = 64  # packets of each size that are looked at
#: Seconds that those may take to the wire.
PATIENCE = 2.0
LOOPS = ("limits.c", "vhost.c")


@dataclass
class Measured:
    """What is known of a device."""

    name: str
    details: dict[str, str]
    features: str
    has_esp: bool
    #: Whether packets were taken from its wire.
    has_wire: bool
    #: Pairs of CREATE and DESTROY per second, one command at a time; None without ESP.
    sa_pairs: float | None = None
    cells: list[Cell] = field(default_factory=list, repr=False)

    @property
    def document(self) -> dict[str, Any]:
        """For JSON; the cells stand beside it."""
        return {name: value for name, value in asdict(self).items() if name != "cells"}


def measure(given: Namespace, folder: Path, cores: Collection[int], core: int) -> tuple[Measured, Quiet]:
    """Everything, printed as it comes. Our side runs on ``core``, threads of an embedded device on ``cores``.
    SystemExit, with one line, when the device cannot be reached or used."""
    os.sched_setaffinity(0, cores)
    try:
        with open_target(given.device, V14, given.wire) as target:
            os.sched_setaffinity(0, {core})
            native = Native(folder, LOOPS)
            quiet = Quiet(native.lib.bench_spin)
            return _measure(native, target, given, quiet), quiet
    except VirtioIpsecError as error:
        raise SystemExit(f"error: {given.device}: {error}") from None


def _measure(native: Native, target: Target, given: Namespace, quiet: Quiet) -> Measured:
    with _driving(target) as driver:
        sas = _sas(driver)
        found = Measured(
            target.name, dict(target.details), hex(driver.features), sas is not None, bool(target.has_wire)
        )
        _introduce(found)
        if sas is not None:
            found.sa_pairs = max(_pairs_per_second(sas, quiet) for _ in range(given.rounds))
            print(f"SAs created and destroyed: {found.sa_pairs:,.0f} per second ({1e6 / found.sa_pairs:.0f} us a pair)")
    for size in given.sizes:
        with _driving(target) as driver:
            found.cells.append(_one_size(native, target, driver, size, given.rounds, quiet))
        _show(found.cells[-1])
    return found


@contextmanager
def _driving(target: Target) -> Iterator[Driver]:
    """A driver of its own, and nothing on the wire from before."""
    driver = started(target)
    while target.captured():
        pass
    try:
        yield driver
    finally:
        driver.stop()


def _sas(driver: Driver) -> Sas | None:
    """The SAs of a device that does ESP."""
    able = has(driver.features, Feature.NET_F_IPSEC) and driver.caps.ipsec_sas is not None
    return driver.sas if able else None


def _introduce(found: Measured) -> None:
    about = ", ".join(f"{name} {value}" for name, value in found.details.items())
    print(f"\n{found.name}: {about}\nfeatures negotiated: {found.features}")
    if not found.has_esp:
        print("no IPsec (VIRTIO_NET_F_IPSEC and its capabilities on an administration virtqueue): packets go plain")
    print(f"{CHECKED} packets of each size are taken from the wire and looked at" if found.has_wire
          else "no wire (--wire): buffers given back are counted, no packet is looked at")  # fmt: skip


def _pairs_per_second(sas: Sas, quiet: Quiet) -> float:
    """Each with a key of its own, one command at a time."""
    quiet.look()
    sa, pairs = tunnel(), 0
    begin = now = time.perf_counter()
    while now < begin + TIMED:
        sas.destroy(sas.create_outbound(replace(sa, cipher_key=os.urandom(16))))
        pairs += 1
        now = time.perf_counter()
    return pairs / (now - begin)


def _one_size(native: Native, target: Target, driver: Driver, size: int, rounds: int, quiet: Quiet) -> Cell:
    key, sas = os.urandom(16), _sas(driver)
    source = driver.net_config.mac if has(driver.features, Feature.NET_F_MAC) else mac("02:00:00:00:0a:01")
    sa = None if sas is None else sas.create_outbound(tunnel(key))
    left: deque[bytes] = deque(maxlen=CHECKED)
    feeder = Feeder(native, driver, size, sa, source=source, rung=lambda: left.extend(target.captured()))
    try:
        if target.has_wire:
            feeder.run(PATIENCE, CHECKED)
            _check(_from_wire(target, left, source), size, source, None if sa is None else key)
        cell = Cell("device", target.name, "transmit" if sa is None else "transmit, ESP", size, int(sa is not None))
        feeder.run(WARM)
        for _ in range(rounds):
            quiet.look()
            cell.samples.append(_took(feeder))
    finally:
        feeder.close()
    return cell


def _took(feeder: Feeder) -> float:
    """Nanoseconds per packet. SystemExit when the device takes none."""
    if not (rate := feeder.run(TIMED)):
        raise SystemExit("error: the device takes no packets")
    return 1e9 / rate


def _from_wire(target: Target, left: deque[bytes], source: bytes) -> list[bytes]:
    """Our frames; they may still be on their way."""
    head, limit = mac(OURS) + source, time.monotonic() + PATIENCE
    while True:
        left.extend(target.captured())
        frames = [each for each in left if each[:12] == head]
        if len(frames) >= CHECKED or time.monotonic() > limit:
            return frames
        target.poll(0.01)


def _check(frames: list[bytes], size: int, source: bytes, key: bytes | None) -> None:
    """SystemExit unless they are what was sent: as it was, or each under a number and an IV of its own."""
    if len(frames) != CHECKED:
        raise SystemExit(f"error: {len(frames)} of {CHECKED} packets of {size} B are on the wire")
    sent = {frame(size, number, source)[14:] for number in range(RING)}
    if key is None:
        seen = {each[14:] for each in frames}
    else:
        found = [opened(each, key) for each in frames]
        for what in ("sequence", "iv"):
            if len({getattr(each, what) for each in found}) != CHECKED:
                raise SystemExit(f"error: ESP of {size} B: {what} used twice")
        seen = {each.plain for each in found}
    if len(seen) != CHECKED or not seen <= sent:  # they are taken from the ring in a row
        raise SystemExit(f"error: the packets of {size} B on the wire are not those that were sent")


def _show(cell: Cell) -> None:
    print(
        f"{cell.size:7} B {cell.work:14} {cell.best:8.1f} ns {1e3 / cell.best:8.2f} Mpps {cell.gbits:7.2f} Gbit/s",
        flush=True,
    )
