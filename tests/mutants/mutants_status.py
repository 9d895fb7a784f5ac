"""Devices whose status field, feature bits or configuration are wrong."""

from __future__ import annotations

from typing import Any

from registry import mutant

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.features import IMPLEMENTED, acceptable
from virtio_ipsec.wire.numbers import Feature, Status, has, mask

NO_OUT_NET_HEADER = IMPLEMENTED & ~mask(Feature.NET_F_OUT_NET_HEADER)
VERSION_1 = mask(Feature.F_VERSION_1)


@mutant("BAS-RESET-01")
class StatusSurvivesReset(Device):
    """The status reads ACKNOWLEDGE after a reset."""

    @property
    def status(self) -> int:
        return self._status or Status.ACKNOWLEDGE

    @status.setter
    def status(self, value: int) -> None:
        Device.status.fset(self, value)  # type: ignore[attr-defined]


@mutant("BAS-STATUS-07")
class NeedsResetInSilence(Device):
    """DEVICE_NEEDS_RESET is set and nobody told."""

    def take_config_change(self) -> bool:
        return super().take_config_change() and not self.status & Status.DEVICE_NEEDS_RESET


@mutant("BAS-RESET-01")
class FailedSurvivesReset(Device):
    """FAILED stays set over a reset."""

    def reset(self) -> None:
        failed = getattr(self, "_status", 0) & Status.FAILED
        super().reset()
        self._status = failed


@mutant("BAS-RSVD-07", "BAS-FEAT-08")
class NoVersion1(Device):
    """VERSION_1 is not offered."""

    @property
    def offered_features(self) -> int:
        return super().offered_features & ~VERSION_1


@mutant("NET-FEAT-01", features=NO_OUT_NET_HEADER)
class NoOutNetHeader(Device):
    """IPSEC without OUT_NET_HEADER."""


@mutant("RFC-04", "BAS-FEAT-08")
class LaterFeatureInTheOlderDialect(Device):
    """Bit 69 is offered where it does not exist."""

    @property
    def offered_features(self) -> int:
        return super().offered_features | mask(Feature.NET_F_OUT_NET_HEADER)

    def accepts(self, word: int) -> bool:
        return not has(word, Feature.NET_F_OUT_NET_HEADER) and super().accepts(word)


@mutant("BAS-FEAT-07")
class EcnWithoutSegmentation(Device):
    """HOST_ECN is offered without HOST_TSO4 and HOST_TSO6."""

    @property
    def offered_features(self) -> int:
        lost = mask(
            Feature.NET_F_HOST_TSO4,
            Feature.NET_F_HOST_TSO6,
            Feature.NET_F_HOST_UDP_TUNNEL_GSO,
            Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
        )
        return super().offered_features & ~lost


@mutant("BAS-FEAT-09")
class UndefinedBit(Device):
    """Bit 127 is offered, and accepted."""

    @property
    def offered_features(self) -> int:
        return super().offered_features | 1 << 127


@mutant("BAS-FEAT-09")
class ForeignTransportBit(Device):
    """NOTIFICATION_DATA is offered on a transport that has none."""

    @property
    def offered_features(self) -> int:
        return super().offered_features | mask(Feature.F_NOTIFICATION_DATA)


@mutant("BAS-FEAT-08")
class IpsecNeedsOutNetHeader(Device):
    """FEATURES_OK stays clear for IPSEC without OUT_NET_HEADER."""

    def accepts(self, word: int) -> bool:
        alone = has(word, Feature.NET_F_IPSEC) and not has(word, Feature.NET_F_OUT_NET_HEADER)
        return not alone and super().accepts(word)


@mutant("BAS-FEAT-08")
class AcceptsAnything(Device):
    """FEATURES_OK stays set for features that were not offered."""

    def accepts(self, word: int) -> bool:
        return acceptable(word & self.offered_features, self.offered_features)


@mutant("BAS-FEAT-10")
class NoWayBack(Device):
    """After VERSION_1 alone, the full set that was accepted before is refused."""

    def __init__(self, *arguments: Any) -> None:
        self._history: list[int] = []
        super().__init__(*arguments)

    def accepts(self, word: int) -> bool:
        back = self._history[-1:] == [VERSION_1] and self._history[-2:-1] == [word] and word != VERSION_1
        if back or not super().accepts(word):
            return False
        self._history.append(word)
        return True


@mutant("BAS-INIT-04")
class ConfigurationComesLate(Device):
    """The configuration reads as zeros before FEATURES_OK."""

    def read_config(self, offset: int, length: int) -> bytes:
        data = super().read_config(offset, length)
        return data if self._status & Status.FEATURES_OK else bytes(len(data))


@mutant("BAS-STATUS-05")
class StartsWithFeaturesOk(Device):
    """Buffers are used from FEATURES_OK on."""

    @property
    def is_operating(self) -> bool:
        return bool(self._status & Status.FEATURES_OK) and not self._status & Status.FAILED


@mutant("INF-60")
class StatusHidden(Device):
    """The first two steps do not show."""

    @property
    def status(self) -> int:
        return self._status if self._status & Status.FEATURES_OK else 0

    @status.setter
    def status(self, value: int) -> None:
        Device.status.__set__(self, value)  # type: ignore[attr-defined]


@mutant("INF-60")
class StatusStartsAnew(Device):
    """Writing the status again ends all objects."""

    @property
    def status(self) -> int:
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        if value == self._status and value & Status.DRIVER_OK:
            self.objects.destroy_all()
        Device.status.__set__(self, value)  # type: ignore[attr-defined]
