"""The packet path of csrc/ between virtqueues and an uplink: what a worker of a port does for every packet.

The driver and the wire are not timed: they are other cores' work. Split ring of 256, 64 buffers a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import urandom
from typing import Any

from tools.bench_parts.cells import Cell, Quiet, Runner, find, in_turn
from tools.bench_parts.esp import PACKETS, SAMPLE_NS, check_sealed
from tools.bench_parts.native import Native, engine_numbers
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast_rings import port_config
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, ResourceType, mask

SAS = 64


def plain_packet(size: int, number: int) -> bytes:
    """An IPv4 packet of `size` bytes whose payload is different for each number."""
    head = bytearray(bytes.fromhex("45000000000000004011 0000 0a0000010a000002"))
    head[2:4] = size.to_bytes(2)
    total = sum(int.from_bytes(head[i : i + 2]) for i in range(0, 20, 2))
    head[10:12] = (~(total % 0xFFFF) & 0xFFFF).to_bytes(2)
    return bytes(head) + bytes((i * 31 + number * 7) & 0xFF for i in range(20, size))


def negotiated(native: Native) -> tuple[Any, bytes]:
    """``struct vipsec_port_config`` of a device with split rings, and the header that asks for ESP."""
    device = Device(DeviceConfig(), urandom)
    device.negotiate(device.offered_features & ~mask(Feature.F_RING_PACKED))
    context = device.context
    values = asdict(port_config(context))
    features = values.pop("features")
    made = native.ffi.new("struct vipsec_port_config *")
    made.features_low, made.features_high = features & (1 << 64) - 1, features >> 64
    for name, value in values.items():
        setattr(made, name, native.lib.VIPSEC_ABSENT if value is None else value)
    made.mtu = 0
    made.open_unasked = 1  # there is no flow filter here: the SA is found by its SPI
    header = NetHdr(flags=values["flag_security"], resource_type=ResourceType.NET_IPSEC_OUTB_SA)
    return made, context.header.build(header)


class Rings:
    """One size."""

    def __init__(self, native: Native, sas: Any, config: Any, header: bytes, size: int) -> None:
        self.ffi, self.lib, self.size = native.ffi, native.lib, size
        self.cells = tuple(Cell("rings", "C", work, size, SAS) for work in ("transmit", "receive"))
        self.plain = [plain_packet(size, number) for number in range(PACKETS)]
        made = self.lib.bench_rings_new(sas, config, header, b"".join(self.plain), size)
        if made == self.ffi.NULL:
            raise SystemExit("rings: the packet path refuses what the bench has set up")
        self.bench = self.ffi.gc(made, self.lib.bench_rings_free)
        self.took = self.ffi.new("double[2]")
        self.passes = 2
        self._run()
        self.passes = max(1, round(SAMPLE_NS / PACKETS / (self.took[0] + self.took[1])))

    def _run(self) -> None:
        self.lib.bench_rings_sample(self.bench, self.passes, self.took, self.took + 1)
        if self.lib.bench_rings_bad(self.bench):
            raise SystemExit(f"rings: packets of {self.size} B were lost, refused or changed")

    def sample(self) -> None:
        self._run()
        for cell, took in zip(self.cells, self.took, strict=True):
            cell.samples.append(took)
        for i, plain in enumerate(self.plain):
            length = self.lib.bench_rings_sealed_len(self.bench, i)
            packet = self.ffi.buffer(self.lib.bench_rings_sealed(self.bench, i), length)
            check_sealed(bytes(packet), plain)


def measure(
    native: Native, engine: str, sizes: Sequence[int], rounds: int, quiet: Quiet
) -> Iterator[list[Cell]]:
    """Transmit and receive, one list of cells per size."""
    sas = native.lib.bench_sas_new(engine_numbers((engine,))[engine], SAS)
    config, header = negotiated(native)
    try:
        for size in sizes:
            runners: list[Runner] = [Rings(native, sas, config, header, size)]
            yield in_turn(runners, rounds, quiet)
            runners.clear()
    finally:
        native.lib.bench_sas_free(sas)


def show(group: Sequence[Cell], whole: Sequence[Cell]) -> None:
    """The cells of one size; with `whole`, the same packets without rings, what the rings add."""
    for cell in group:
        bare = find(
            whole, engine="C", work={"transmit": "out", "receive": "in"}[cell.work], size=cell.size, sas=SAS
        )
        more = f"  {cell.best - bare.best:+.1f} ns over ESP alone" if bare else ""
        rate = f"{1e3 / cell.best:8.2f} Mpps {cell.gbits:7.1f} Gbit/s"
        print(f"{cell.size:7} {cell.work:10} {cell.best:8.1f} ns {rate}{more}")
