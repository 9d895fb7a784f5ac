"""Counts of what the device did, by name and, for packets it refused, by reason.

The wire has no channel for most of these (ledger E53, E54): they are the out-of-band account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from virtio_ipsec.errors import Reason


class Counters:
    """Named event counts. Absent names read as zero; nothing ever counts down, not even a device reset.

    Control path names: ``admin_commands``, ``admin_errors``, ``control_errors``.
    Packet path names: ``tx_frames``/``tx_bytes`` and ``rx_frames``/``rx_bytes`` (frames that left or were
    delivered), ``tx_sealed``, ``rx_opened``, ``rx_not_ipsec``, ``rx_not_operating``, and
    ``tx_refused_<reason>``/``rx_refused_<reason>``. With the C path also ``tx_punted``/``rx_punted``: packets that it
    handed to Python.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` events of this name."""
        self._counts[name] += amount

    def refuse_tx(self, reason: Reason) -> None:
        """Count one frame from the driver that was not sent."""
        self._counts["tx_refused_" + reason.value] += 1

    def refuse_rx(self, reason: Reason) -> None:
        """Count one frame from the wire that was dropped or delivered with an error flag."""
        self._counts["rx_refused_" + reason.value] += 1

    def snapshot(self) -> Mapping[str, int]:
        """All counts that are not zero."""
        return dict(self._counts)
