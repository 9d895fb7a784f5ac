"""Drivers whose accesses to registers and rings are wrong."""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from driver_registry import Wrong, driver_mutant

from virtio_ipsec.conformance.monitor.script import Hands
from virtio_ipsec.driver.errors import FeatureError
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.driver.session import Session
from virtio_ipsec.transport.monitor.faces import UNKNOWN_BITS
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, Opcode, Status, mask

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE = 1, 2


class TwoBits(Hands):
    held = 0

    def write_status(self, value: int) -> None:
        if value == Status.ACKNOWLEDGE:
            self.held = value
        else:
            super().write_status(value and value | self.held)


@driver_mutant("BAS-STATUS-01")
class TwoStepsAtOnce(Wrong):
    """ACKNOWLEDGE and DRIVER in one write."""

    hands_class = TwoBits


class OneBit(Hands):
    def write_status(self, value: int) -> None:
        super().write_status(int(Status.DRIVER_OK) if value & Status.DRIVER_OK else value)


@driver_mutant("BAS-STATUS-02")
class ClearsBits(Wrong):
    """DRIVER_OK is written alone."""

    hands_class = OneBit


class NoSecondReset(Hands):
    failed = pretended = False

    def write_status(self, value: int) -> None:
        if value == 0 and self.failed:
            self.pretended = True
            return
        self.failed |= bool(value & Status.FAILED)
        super().write_status(value)

    def status(self) -> int:
        if self.pretended:
            self.pretended = False
            return 0
        return self._link.status() & ~Status.FAILED


@driver_mutant("BAS-STATUS-03", "BAS-STATUS-02", face="refusing")
class GoesOnAfterFailed(Wrong):
    """FAILED is followed by another attempt without a reset."""

    hands_class = NoSecondReset

    def stop(self) -> None:
        """Nothing: that would be a reset."""


class Deaf(Hands):
    def status(self) -> int:
        status = self._link.status()
        return status | Status.FEATURES_OK if status & Status.DRIVER else status


@driver_mutant("BAS-INIT-08", face="refusing")
class GoesOnWhenRefused(Wrong):
    """Features that the device does not accept are no reason to stop."""

    hands_class = Deaf


class Hasty(Hands):
    pretended = False

    def write_status(self, value: int) -> None:
        super().write_status(value)
        self.pretended = value == 0

    def status(self) -> int:
        if self.pretended:
            self.pretended = False
            return 0
        return self._link.status()


class HastyAtFirst(Hasty):
    def write_status(self, value: int) -> None:
        super().write_status(value)
        self.asked = False

    def status(self) -> int:
        if self.pretended:
            self.pretended, self.asked = False, True
            return 0
        if self.asked:
            self.asked = False
            return 0
        return self._link.status()


@driver_mutant("BAS-RESET-03")
class ResetUnawaited(Wrong):
    """The status is not looked at after a reset."""

    hands_class = HastyAtFirst


class OtherFeatures(Hands):
    def other(self, word: int) -> int:
        return word

    def write_driver_features(self, word: int) -> None:
        self._link.write_driver_features(self.other(word))


class OneMore(OtherFeatures):
    def other(self, word: int) -> int:
        return word | mask(Feature.NET_F_STANDBY)


@driver_mutant("BAS-FEAT-01")
class AcceptsWhatIsNotOffered(Wrong):
    """A feature that is not offered."""

    hands_class = OneMore


class NoControl(OtherFeatures):
    def other(self, word: int) -> int:
        return word & ~mask(Feature.NET_F_CTRL_VQ)


@driver_mutant("BAS-FEAT-02")
class AcceptsWithoutPrerequisite(Wrong):
    """MQ without CTRL_VQ."""

    hands_class = NoControl


class Blind(Hands):
    def device_features(self) -> int:
        return self._link.device.offered_features  # type: ignore[attr-defined, no-any-return]


@driver_mutant("BAS-FEAT-03")
class FeaturesUnread(Wrong):
    """The offered features are not read."""

    hands_class = Blind


class Greedy(OtherFeatures):
    def other(self, word: int) -> int:
        return word | UNKNOWN_BITS


@driver_mutant("BAS-FEAT-04")
class AcceptsUnknownBits(Wrong):
    """Bits that nobody knows."""

    hands_class = Greedy


class Picky(Hands):
    def device_features(self) -> int:
        word = self._link.device_features()
        if word & UNKNOWN_BITS:
            raise FeatureError("bits that nobody knows")
        return word


@driver_mutant("BAS-FEAT-06")
class FailsWithUnknownBits(Wrong):
    """Bits that it does not know are a reason to fail."""

    hands_class = Picky


class Silent(Hands):
    def write_status(self, value: int) -> None:
        super().write_status(value & ~Status.FAILED)


@driver_mutant("BAS-FEAT-05", face="plain")
class StopsWithoutFailed(Wrong):
    """Without IPsec it just stops."""

    hands_class = Silent
    config = replace(Wrong.config, required=mask(Feature.NET_F_IPSEC))


class Old(OtherFeatures):
    def other(self, word: int) -> int:
        return word & ~mask(Feature.F_VERSION_1)


@driver_mutant("BAS-RSVD-01")
class WithoutVersion1(Wrong):
    """VERSION_1 is not accepted."""

    hands_class = Old


def declining(*features: Feature) -> Any:
    return replace(Wrong.config, wanted=SUPPORTED & ~mask(*features))


@driver_mutant("BAS-RSVD-02", face="split")
class WithoutAccessPlatform(Wrong):
    """ACCESS_PLATFORM is not accepted."""

    config = declining(Feature.F_ACCESS_PLATFORM)


@driver_mutant("BAS-RSVD-03")
class WithoutPackedRings(Wrong):
    """RING_PACKED is not accepted."""

    config = declining(Feature.F_RING_PACKED)


@driver_mutant("BAS-RSVD-04", face="split")
class WithoutOrderPlatform(Wrong):
    """ORDER_PLATFORM is not accepted."""

    config = declining(Feature.F_ORDER_PLATFORM)


@driver_mutant("BAS-RSVD-06", face="split")
class WithoutNotificationData(Wrong):
    """NOTIF_CONFIG_DATA is not accepted."""

    config = declining(Feature.F_NOTIF_CONFIG_DATA)


Patches = tuple[AbstractContextManager[Any], ...]


@driver_mutant("BAS-INIT-01")
class ReadsOnce(Wrong):
    """That the generation changes is no reason to read again."""

    def patches(self) -> Patches:
        def read(session: Any, *pieces: tuple[int, int]) -> list[bytes]:
            session._link.config_generation()
            data = [session._link.read_config(*piece) for piece in pieces]
            session._link.config_generation()
            return data

        return (patch.object(Session, "read_config", read),)


@driver_mutant("BAS-INIT-02", face="plain")
class ReadsEverything(Wrong):
    """The configuration is read as one piece."""

    def patches(self) -> Patches:
        read = Session.read_config

        def whole(session: Any, *pieces: tuple[int, int]) -> list[bytes]:
            (data,) = read(session, (0, NET_CONFIG.fixed_size))
            return [data[offset : offset + length] for offset, length in pieces]

        return (patch.object(Session, "read_config", whole),)


class Trusting(Hands):
    trusts = False

    def write_status(self, value: int) -> None:
        super().write_status(value)
        self.trusts = bool(value & Status.FEATURES_OK) and not value & Status.DRIVER_OK

    def status(self) -> int:
        if self.trusts:
            self.trusts = False
            return int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        return self._link.status()


@driver_mutant("BAS-INIT-05")
class FeaturesOkUnseen(Wrong):
    """Whether FEATURES_OK stayed is not looked at."""

    hands_class = Trusting


class Writes(Hands):
    def write_driver_features(self, word: int) -> None:
        self._link.write_config(0, bytes(6))
        self._link.write_driver_features(word)


@driver_mutant("BAS-INIT-06")
class WritesConfiguration(Wrong):
    """The MAC address is written before FEATURES_OK."""

    hands_class = Writes


class Late(Hands):
    def write_status(self, value: int) -> None:
        super().write_status(value)
        if value & Status.FEATURES_OK and not value & Status.DRIVER_OK:
            self._link.write_driver_features(self._link.driver_features() & ~mask(Feature.NET_F_STATUS))


@driver_mutant("BAS-INIT-07")
class FeaturesTooLate(Wrong):
    """Features are written after FEATURES_OK."""

    hands_class = Late


@driver_mutant("BAS-INIT-09")
class KicksTooEarly(Wrong):
    """A queue is notified before DRIVER_OK."""

    def before_driver_ok(self) -> None:
        self.link.kick(0)
        super().before_driver_ok()


@driver_mutant("BAS-INIT-10", face="split")
class AltersBuffers(Wrong):
    """A receive buffer that is available gets shorter."""

    only = ("shorten",)

    def shorten(self) -> None:
        layout = self.driver.session.data_rings[0].layout
        self.link.memory.put_u32(layout.desc + 8, self.link.memory.u32(layout.desc + 8) - 16)
        self.link.kick(0)


@driver_mutant("BAS-INIT-11", face="split")
class TakesBuffersBack(Wrong):
    """The available index goes back."""

    only = ("take_back",)

    def take_back(self) -> None:
        layout = self.driver.session.data_rings[0].layout
        self.link.memory.put_u16(layout.driver + 2, self.link.memory.u16(layout.driver + 2) - 1)
        self.link.kick(0)


@driver_mutant("BAS-INIT-11")
class TakesPackedBuffersBack(Wrong):
    """In a packed ring a descriptor is no longer marked available."""

    only = ("take_back",)

    def take_back(self) -> None:
        layout = self.driver.session.data_rings[0].layout
        self.link.memory.put_u16(layout.desc + 14, 0)
        self.link.kick(0)


@driver_mutant("BAS-RESET-09")
class UsesQueueThatWasReset(Wrong):
    """A queue that was reset is notified without being set up."""

    only = ("reset_queues",)

    def reset_queues(self) -> None:
        self.link.reset_queue(0)
        self.link.kick(0)


@driver_mutant("FRM-02", face="split")
class WritableFirst(Wrong):
    """The writable part of a command comes first."""

    only = ("turned",)

    def turned(self) -> None:
        queue = self.requests
        desc = queue._ring.layout.desc
        head = queue._ring._free_list[0]
        self.post(queue, bytes((Opcode.CAP_ID_LIST_QUERY,)) + bytes(23), 512)
        memory = self.link.memory
        address, length, _, following = _DESCRIPTOR.unpack(memory.read(desc + 16 * head, 16))
        other, room, _, _ = _DESCRIPTOR.unpack(memory.read(desc + 16 * following, 16))
        memory.write(desc + 16 * head, _DESCRIPTOR.pack(other, room, _WRITE | _NEXT, following))
        memory.write(desc + 16 * following, _DESCRIPTOR.pack(address, length, 0, 0))
        self.link.kick(queue._index)
