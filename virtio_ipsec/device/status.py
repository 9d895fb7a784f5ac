"""The device status field as a table (virtio v1.4 2.1, 3.1.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtio_ipsec.wire.numbers import Status

#: Bits a driver can set, in the order of initialisation: (bit, bits that must be set before, that bar it).
#: What the table does not allow is ignored: the bit stays clear and the driver sees that when it reads back.
STEPS: Final[tuple[tuple[Status, Status, Status], ...]] = (
    (Status.ACKNOWLEDGE, Status(0), Status.FAILED),
    (Status.DRIVER, Status.ACKNOWLEDGE, Status.FAILED),
    (Status.FEATURES_OK, Status.ACKNOWLEDGE | Status.DRIVER, Status.FAILED),
    (Status.DRIVER_OK, Status.FEATURES_OK, Status.FAILED),
    (Status.FAILED, Status(0), Status(0)),
)

# Plain ints: arithmetic on enum members costs a microsecond each, and every command asks.
_DRIVER_OK: Final = int(Status.DRIVER_OK)
_TROUBLE_OR_OK: Final = int(Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET | Status.FAILED)


def after_write(current: int, written: int, features_acceptable: Callable[[], bool]) -> int:
    """Status after the driver writes ``written`` (not 0: that is a reset).

    Bits are only ever added: a driver must not clear one (BAS-STATUS-02), so leaving one out changes nothing.
    ``features_acceptable`` is asked once, when FEATURES_OK would be set (BAS-FEAT-08).
    """
    status = current
    for bit, needs, barred in STEPS:
        wanted = bool(written & bit) and not status & bit
        if not wanted or status & needs != needs or status & barred:
            continue
        if bit is Status.FEATURES_OK and not features_acceptable():
            continue
        status |= int(bit)
    return status


def operating(status: int) -> bool:
    """Whether buffers may be consumed: from DRIVER_OK on, until NEEDS_RESET or FAILED (BAS-STATUS-05)."""
    return status & _TROUBLE_OR_OK == _DRIVER_OK
