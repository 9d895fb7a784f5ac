"""Capture files: any bytes are read or refused, and what was read survives being written and read again."""

from __future__ import annotations

import io
import random
import sys

from harness import Target, fuzz

from virtio_ipsec.transport.pcap import (
    CaptureError,
    Interface,
    Packet,
    PcapngWriter,
    PcapWriter,
    create_capture,
    open_capture,
)


def packets(rng: random.Random, count: int) -> list[Packet]:
    return [
        Packet(
            rng.randbytes(rng.choice((0, 1, 4, 60))),
            rng.randrange(1 << 62),
            rng.randrange(count),
            comments=("comment",) * rng.randrange(3),
        )
        for _ in range(rng.randrange(4))
    ]


def classic(rng: random.Random) -> bytes:
    stream = io.BytesIO()
    writer = PcapWriter(stream, nanoseconds=rng.random() < 0.5, order=rng.choice(("little", "big")))
    for packet in packets(rng, 1):
        writer.write(Packet(packet.data, (packet.timestamp or 0) % (1 << 61)))
    return stream.getvalue()


def nextgen(rng: random.Random) -> bytes:
    stream = io.BytesIO()
    for _ in range(rng.choice((1, 1, 2))):
        interfaces = [Interface(rng.choice((1, 101, 228)), rng.choice((0, 100)), "name")] * rng.choice((1, 2))
        writer = PcapngWriter(stream, interfaces, order=rng.choice(("little", "big")), comments=["hello"])
        for packet in packets(rng, len(interfaces)):
            writer.write(packet)
        writer.write(Packet(b"simple", None))
    return stream.getvalue()


def read(data: bytes) -> None:
    stream = io.BytesIO(data)
    reader = open_capture(stream)
    found: list[Packet] = []
    offset: int | None = 0
    try:
        found.extend(reader)
    except CaptureError as error:
        offset = error.offset
    assert offset is not None
    assert 0 <= offset <= len(data)
    for packet in found:
        assert len(packet.data) <= packet.wire_length
        assert len(packet.data) <= len(data)
        again = io.BytesIO()
        interface = reader.interfaces[packet.interface]
        same = Packet(packet.data, packet.timestamp, 0, packet.original_length, packet.comments)
        plain = Interface(interface.link_type, 0 if packet.timestamp is not None else interface.snaplen)
        try:
            create_capture(again, "pcapng", [plain]).write(same)
        except CaptureError:
            # The only thing that a file can say and our nanoseconds cannot.
            assert packet.timestamp is not None
            assert not 0 <= packet.timestamp < 1 << 64
            continue
        again.seek(0)
        assert list(open_capture(again)) == [same]


TARGETS = (Target("pcap", classic, read), Target("pcapng", nextgen, read))

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
