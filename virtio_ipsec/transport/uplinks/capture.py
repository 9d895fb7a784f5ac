"""``pcap:OUT`` and ``pcap:IN,OUT``: capture files for a wire. ``.pcapng`` names that format, all else is pcap."""

from __future__ import annotations

import os
import time
from io import BytesIO, FileIO
from itertools import islice
from pathlib import Path
from threading import Lock

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.capture import MAX_PACKET, CaptureError, Interface, LinkType, Packet
from virtio_ipsec.transport.pcap import create_capture, open_capture
from virtio_ipsec.transport.uplinks.counts import Counts


class CaptureFiles:
    """What leaves is written to OUT at once, so that it is there whatever becomes of the process. The frames of IN
    arrive once, in order and as fast as they are taken."""

    native = None

    def __init__(self, argument: str) -> None:
        self.name = f"pcap:{argument}"
        source, _, target = argument.rpartition(",")
        if not target:
            raise ConfigError(f"{self.name}: not OUT or IN,OUT")
        if source and Path(source).exists() and Path(target).exists() and Path(source).samefile(target):
            raise ConfigError(f"{self.name}: IN and OUT are the same file")
        self._counts = Counts()
        self._writing = Lock()
        try:
            self._frames = _frames(source) if source else []
            self._stream = FileIO(target, "wb")
        except CaptureError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        except OSError as error:
            raise TransportError(f"{error.filename}: {error.strerror}") from None
        self._batch = BytesIO()
        form = "pcapng" if target.endswith(".pcapng") else "pcap"
        self._writer = create_capture(self._batch, form, [Interface(name="uplink")])
        try:
            self._flush()
        except OSError as error:
            self._stream.close()
            raise TransportError(f"{target}: {error.strerror}") from None
        self._waiting = iter(self._frames)
        self._ready = os.eventfd(1 if self._frames else 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable until the last frame of IN was taken."""
        return self._ready

    def receive(self, most: int) -> list[bytes]:
        """The next frames of IN."""
        frames = list(islice(self._waiting, most))
        if frames:
            self._counts.add("rx", frames)
        elif self._frames:
            self._frames = []
            os.eventfd_read(self._ready)
        return frames

    def send(self, frames: list[bytes]) -> None:
        """Append to OUT."""
        now = time.time_ns()
        fitting = [frame for frame in frames if len(frame) <= MAX_PACKET]
        with self._writing:
            try:
                for frame in fitting:
                    self._writer.write(Packet(frame, now))
                self._flush()
            except (OSError, ValueError):  # no room on the disk; closed
                self._counts.drop("tx", "down", len(frames))
                return
        self._counts.add("tx", fitting)

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        return self._counts.read()

    def close(self) -> None:
        """Close OUT."""
        with self._writing:
            if self._stream.closed:
                return
            self._stream.close()
            os.close(self._ready)

    def _flush(self) -> None:
        """Write the batch, with one call of the system when it takes all."""
        batch = self._batch.getvalue()
        self._batch.seek(0)
        self._batch.truncate()
        while batch:
            batch = batch[self._stream.write(batch) :]


def _frames(name: str) -> list[bytes]:
    """All frames of a capture; ConfigError for one that is no Ethernet capture or was cut."""
    with Path(name).open("rb") as stream:
        reader = open_capture(stream)
        packets = list(reader)
    for packet in packets:
        if reader.interfaces[packet.interface].link_type != LinkType.ETHERNET:
            raise CaptureError("IN holds packets without Ethernet headers")
        if packet.wire_length != len(packet.data):
            raise CaptureError("IN holds packets cut by the capture: capture with a larger snap length")
    return [packet.data for packet in packets]
