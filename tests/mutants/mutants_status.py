"""Devices whose status field or feature bits are wrong."""

from __future__ import annotations

from registry import mutant

from virtio_ipsec.device.device import Device
from virtio_ipsec.wire.numbers import Feature, Status, mask


@mutant("BAS-RESET-01")
class StatusSurvivesReset(Device):
    """The status keeps a bit over a reset."""

    @property
    def status(self) -> int:
        return self._status | (Status.ACKNOWLEDGE if self._status == 0 else 0)

    @status.setter
    def status(self, value: int) -> None:
        Device.status.fset(self, value)  # type: ignore[attr-defined]


@mutant("BAS-RSVD-07")
class NoVersion1(Device):
    """VERSION_1 is not offered."""

    @property
    def offered_features(self) -> int:
        return super().offered_features & ~mask(Feature.F_VERSION_1)
