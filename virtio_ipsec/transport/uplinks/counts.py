"""What an uplink has carried and dropped."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from threading import Lock

#: Why the kernel did not take a frame, as the counters call it.
_CAUSES = {
    errno.EAGAIN: "full",
    errno.ENOBUFS: "full",
    errno.ENOMEM: "full",
    errno.EMSGSIZE: "too_big",
    errno.EINVAL: "malformed",
}


class Counts:
    """Exact over all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts = Counter({"tx_frames": 0, "tx_bytes": 0, "rx_frames": 0, "rx_bytes": 0})

    def add(self, direction: str, frames: Sequence[bytes]) -> None:
        """Frames that went through, ``direction`` "tx" or "rx"."""
        with self._lock:
            self._counts[f"{direction}_frames"] += len(frames)
            self._counts[f"{direction}_bytes"] += sum(map(len, frames))

    def drop(self, direction: str, cause: str, number: int = 1) -> None:
        """Frames that did not."""
        with self._lock:
            self._counts[f"{direction}_dropped_{cause}"] += number

    def read(self) -> dict[str, int]:
        """A snapshot."""
        with self._lock:
            return dict(self._counts)


def cause(error: OSError) -> str:
    """The cause under which a frame that failed with ``error`` is counted; "down" for all that is the network's."""
    return _CAUSES.get(error.errno or 0, "down")
