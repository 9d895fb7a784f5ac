"""Devices whose configuration space says what it must not, or that do not keep to the MTU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from registry import mutant

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, Status, has, mask


class OtherConfig(Device):
    """Shows other values of some fields."""

    def shown(self) -> dict[str, Any]:
        return {}

    def read_config(self, offset: int, length: int) -> bytes:
        whole = NET_CONFIG.build(replace(self._space.fields(), **self.shown()))
        return whole[offset : offset + length].ljust(length, b"\0")


class AtRest(OtherConfig):
    """Shows them until a driver comes."""

    values: ClassVar[dict[str, Any]] = {}

    def shown(self) -> dict[str, Any]:
        return {} if self.status else self.values


@mutant("NET-CFG-DEV-01")
class TooManyPairsShown(AtRest):
    """max_virtqueue_pairs is 0x8001."""

    values: ClassVar[dict[str, Any]] = {"max_virtqueue_pairs": 0x8001}


@mutant("NET-CFG-DEV-02", "NET-CFG-DEV-03", "NET-CFG-DEV-04")
class MtuBelowIpv4(AtRest):
    """mtu is 67."""

    values: ClassVar[dict[str, Any]] = {"mtu": 67}


@mutant("NET-CFG-DEV-03", "NET-CFG-DEV-04")
class MtuBelowIpv6(AtRest):
    """mtu is 1279."""

    values: ClassVar[dict[str, Any]] = {"mtu": 1279}


@mutant("NET-CFG-DEV-07")
class ShortKeys(AtRest):
    """rss_max_key_size is 39."""

    values: ClassVar[dict[str, Any]] = {"rss_max_key_size": 39}


@mutant("NET-CFG-DEV-08")
class ShortTables(AtRest):
    """rss_max_indirection_table_length is 127."""

    values: ClassVar[dict[str, Any]] = {"rss_max_indirection_table_length": 127}


class WithoutControlQueue(Device):
    """Offers a feature that goes with the control queue, and not that."""

    keeps: tuple[Feature, ...] = ()

    @property
    def offered_features(self) -> int:
        gone = mask(
            Feature.NET_F_CTRL_VQ,
            Feature.NET_F_CTRL_RX,
            Feature.NET_F_CTRL_RX_EXTRA,
            Feature.NET_F_CTRL_VLAN,
            Feature.NET_F_CTRL_MAC_ADDR,
            Feature.NET_F_CTRL_GUEST_OFFLOADS,
            Feature.NET_F_GUEST_ANNOUNCE,
            Feature.NET_F_MQ,
            Feature.NET_F_RSS,
            Feature.NET_F_HASH_REPORT,
        ) & ~mask(*self.keeps)
        return self.config.offered_features & ~gone


@mutant("NET-CFG-DEV-13")
class HashWithoutControl(WithoutControlQueue):
    """HASH_REPORT without a control queue."""

    keeps = (Feature.NET_F_HASH_REPORT,)


@mutant("NET-CFG-DEV-14")
class ModesWithoutControl(WithoutControlQueue):
    """CTRL_RX_EXTRA without a control queue."""

    keeps = (Feature.NET_F_CTRL_RX_EXTRA,)


@mutant("NET-CFG-DEV-10")
class ImpossibleSpeed(OtherConfig):
    """speed is 0x80000000."""

    def shown(self) -> dict[str, Any]:
        return {"speed": 0x8000_0000}


@mutant("NET-CFG-DEV-11")
class ImpossibleDuplex(OtherConfig):
    """duplex is 2."""

    def shown(self) -> dict[str, Any]:
        return {"duplex": 2}


@mutant("NET-CFG-DEV-04")
class MtuGrows(OtherConfig):
    """mtu is one more once the driver is at work."""

    def shown(self) -> dict[str, Any]:
        return {"mtu": self.config.mtu + 1} if self.status & Status.DRIVER_OK else {}


@mutant("NET-CFG-DEV-12")
class SpeedFalls(OtherConfig):
    """speed is another after the driver has come, with the link up all the time."""

    def shown(self) -> dict[str, Any]:
        return {"speed": 10_000} if self.status & Status.DRIVER_OK else {}


@mutant("NET-CFG-DEV-05")
class LongPacketsDelivered(Receiver):
    """What is longer than the MTU is delivered."""

    def check_size(self, packet: Packet) -> None:
        pass


@mutant("NET-CFG-DEV-05")
class LongestPacketsLost(Receiver):
    """A packet of just the MTU is too long."""

    def check_size(self, packet: Packet) -> None:
        if len(packet.frame) - packet.headers.l3 == self.ctx.config.mtu:
            raise PacketError(Reason.TOO_BIG)
        super().check_size(packet)


@mutant("NET-CFG-DEV-06")
class LongestPacketsKept(Transmitter):
    """A packet of just the MTU is not sent."""

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        mtu = self.ctx.config.mtu
        if has(self.ctx.features, Feature.NET_F_MTU) and len(buffer) - self.ctx.header.size - 14 == mtu:
            raise PacketError(Reason.TOO_BIG)
        return super().process(buffer, queue)
