"""``null``: a wire that nobody is at. For benchmarks of what leaves."""

from __future__ import annotations

from virtio_ipsec.fastpath import pipeline
from virtio_ipsec.transport.uplinks.counts import Counts


class Null:
    """Counts what leaves; nothing arrives."""

    native = pipeline.Uplink.NULL

    def __init__(self, argument: str = "") -> None:
        self.name = "null"
        self._counts = Counts()

    def fileno(self) -> None:
        """Nothing ever arrives."""

    def receive(self, most: int) -> list[bytes]:
        """Nothing."""
        return []

    def send(self, frames: list[bytes]) -> None:
        """Count."""
        self._counts.add("tx", frames)

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        return self._counts.read()

    def close(self) -> None:
        """Nothing to release."""
