"""The far end of a device's wire, named by an uplink's URI and put beside a target that has none of its own."""

from __future__ import annotations

import select
from time import monotonic
from typing import Any, Protocol

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.uplink import Uplink

#: Frames taken at a time, and how often before a device that sends without end may go on.
_BATCH, _BATCHES = 256, 64
#: Seconds after which the wire is looked at again.
_SLICE = 0.002


class Unwired(Protocol):
    """What is done with a target besides handing everything on to it."""

    def reset(self) -> None: ...

    def poll(self, timeout: float) -> None: ...

    def close(self) -> None: ...


class Wired:
    """``target`` with ``uplink`` as the other end of its wire. All else is the target's."""

    has_wire = True

    def __init__(self, target: Unwired, uplink: Uplink) -> None:
        self._target = target
        self._uplink = uplink
        self._poll = select.poll()
        #: Somebody has been told that frames wait, and has not taken them.
        self._told = False
        if (fd := uplink.fileno()) is not None:
            self._poll.register(fd, select.POLLIN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def reset(self) -> None:
        """Reset the device, and forget what it has sent."""
        self._target.reset()
        self.captured()

    def poll(self, timeout: float) -> None:
        """Let the device work until something happens on its queues or its wire, or the time is over. Frames that
        nobody takes end one call only: who asks again waits for something else."""
        end = monotonic() + timeout
        while True:
            if not self._told and self._waits():
                self._told = True
                return
            begin = monotonic()
            share = max(0.0, min(_SLICE, end - begin))
            self._target.poll(share)
            now = monotonic()
            if now - begin < share or now >= end:
                return

    def _waits(self) -> bool:
        return bool(self._poll.poll(0))

    def inject(self, frame: bytes) -> None:
        """A frame for the device. TransportError when the wire does not take it."""
        before = self._uplink.counters()["tx_frames"]
        self._uplink.send([frame])
        if self._uplink.counters()["tx_frames"] == before:
            raise TransportError(f"{self._uplink.name}: the wire did not take a frame of {len(frame)} octets")

    def captured(self) -> list[bytes]:
        """What the device has sent since the last call."""
        self._told = False
        frames: list[bytes] = []
        for _ in range(_BATCHES):
            found = self._uplink.receive(_BATCH)
            if not found:
                break
            frames += found
        return frames

    def close(self) -> None:
        """Release both."""
        self._uplink.close()
        self._target.close()
