"""What can be wrong with a virtqueue: every ring error carries its kind."""

from __future__ import annotations

from enum import StrEnum

from virtio_ipsec.errors import RingError


class Fault(StrEnum):
    """The kinds of ring errors: names for counters and verdicts."""

    # layout handed over at set-up
    SIZE = "size"
    ALIGNMENT = "alignment"
    PLACEMENT = "placement"
    # what a driver made available
    AVAILABLE_JUMP = "available_jump"
    INDEX = "index"
    LOOP = "loop"
    DUPLICATE = "duplicate"
    OVERCOMMIT = "overcommit"
    PARTIAL_LIST = "partial_list"
    EMPTY = "empty"
    ZERO_LENGTH = "zero_length"
    TOO_LONG = "too_long"
    ADDRESS = "address"
    ORDER = "order"
    INDIRECT_NOT_NEGOTIATED = "indirect_not_negotiated"
    INDIRECT_NESTED = "indirect_nested"
    INDIRECT_CHAINED = "indirect_chained"
    INDIRECT_LENGTH = "indirect_length"
    # what a device marked used
    USED_JUMP = "used_jump"
    USED_ID = "used_id"
    USED_LENGTH = "used_length"
    USED_ORDER = "used_order"
    # use of the queue
    FULL = "full"
    BROKEN = "broken"
    # the memory underneath (C rings only: its owner took the backing of a mapping away)
    MEMORY = "memory"


class KindedRingError(RingError):
    """A ring error with its ``kind``."""

    def __init__(self, kind: Fault, message: str) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind


class LayoutError(KindedRingError):
    """Size, alignment or place of a ring part is not allowed; no queue was set up."""


class ChainError(KindedRingError):
    """A buffer that breaks the rules for descriptor chains, or an available ring that makes no sense.

    Raised by ``DeviceQueue.pop`` it has broken the queue; raised by ``DriverQueue.add`` it refused the
    buffer and nothing was written.
    """


class UsedError(KindedRingError):
    """A used entry that no correct device writes.

    Raised by ``DriverQueue.poll`` it has broken the queue; raised by ``DeviceQueue.push`` the caller asked
    for such an entry and nothing was written.
    """


class QueueFull(KindedRingError):
    """Too few free descriptors for this buffer now; the queue is sound."""


class QueueBroken(KindedRingError):
    """The queue was broken by an earlier error (its ``__cause__``) and waits for a reset."""
