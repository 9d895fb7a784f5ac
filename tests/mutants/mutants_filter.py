"""Devices that deliver other frames than the driver asked for: receive modes, addresses, VLANs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from registry import mutant

from virtio_ipsec.device.control import ControlQueue, ControlRefused
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import RxFilter
from virtio_ipsec.device.steering import admits
from virtio_ipsec.wire.numbers import CtrlClass, CtrlRx, Feature


class OtherModes(Receiver):
    """Goes by other modes than those that are set."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {}

    def admitted(self, frame: bytes) -> bool:
        rx = self.ctx.rx_filter
        return admits(frame, replace(rx, **self.seen(rx)), self.ctx.features)


@mutant("NET-CTL-DEV-02", "NET-CTL-DEV-03")
class PromiscuousUnicast(OtherModes):
    """Promiscuous mode is for unicast alone."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"promisc": False, "alluni": True} if rx.promisc else {}


@mutant("NET-CTL-DEV-03")
class SuppressedInPromiscuous(OtherModes):
    """A mode that suppresses counts more than promiscuous mode."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        if not rx.promisc or not (rx.nomulti or rx.nouni or rx.nobcast):
            return {}
        return {"promisc": False, "alluni": True, "allmulti": True}


@mutant("NET-CTL-DEV-04")
class NoAllMulticast(OtherModes):
    """ALLMULTI has no effect."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"allmulti": False}


@mutant("NET-CTL-DEV-06")
class NoAllUnicast(OtherModes):
    """ALLUNI has no effect."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"alluni": False}


@mutant("NET-CTL-DEV-07", "NET-CTL-DEV-08")
class MulticastNotSuppressed(OtherModes):
    """NOMULTI has no effect."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nomulti": False}


@mutant("NET-CTL-DEV-08")
class AllMulticastFirst(OtherModes):
    """ALLMULTI counts more than NOMULTI."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nomulti": rx.nomulti and not rx.allmulti}


@mutant("NET-CTL-DEV-09")
class BroadcastIsMulticast(OtherModes):
    """NOMULTI suppresses broadcast as well."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nobcast": rx.nobcast or rx.nomulti}


@mutant("NET-CTL-DEV-10", "NET-CTL-DEV-11")
class UnicastNotSuppressed(OtherModes):
    """NOUNI has no effect."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nouni": False}


@mutant("NET-CTL-DEV-11")
class AllUnicastFirst(OtherModes):
    """ALLUNI counts more than NOUNI."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nouni": rx.nouni and not rx.alluni}


@mutant("NET-CTL-DEV-12", "NET-CTL-DEV-13")
class BroadcastNotSuppressed(OtherModes):
    """NOBCAST has no effect."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nobcast": False}


@mutant("NET-CTL-DEV-13")
class AllMulticastBroadcast(OtherModes):
    """ALLMULTI counts more than NOBCAST."""

    def seen(self, rx: RxFilter) -> dict[str, Any]:
        return {"nobcast": rx.nobcast and not rx.allmulti}


class CommandsForgotten(ControlQueue):
    """Does not know one command that switches a mode."""

    forgotten = CtrlRx.ALLMULTI

    def execute(self, readable: bytes) -> None:
        if readable[:3] == bytes((CtrlClass.RX, self.forgotten, 1)):
            raise ControlRefused("not known here")
        super().execute(readable)


@mutant("NET-CTL-DEV-01")
class AllMulticastUnknown(CommandsForgotten):
    """ALLMULTI cannot be switched on."""


@mutant("NET-CTL-DEV-05")
class NoBroadcastUnknown(CommandsForgotten):
    """NOBCAST cannot be switched on."""

    forgotten = CtrlRx.NOBCAST


@mutant("NET-CTL-DEV-14")
class TableSurvivesReset(Device):
    """The MAC table is as it was after a reset."""

    def reset(self) -> None:
        old = self.context.rx_filter
        super().reset()
        self.context.rx_filter = replace(self.context.rx_filter, unicast=old.unicast, multicast=old.multicast)


@mutant("NET-CTL-DEV-15")
class TableGrows(ControlQueue):
    """MAC_TABLE_SET adds to the table."""

    def mac_table_set(self, data: bytes) -> None:
        old = self.context.rx_filter
        super().mac_table_set(data)
        now = self.context.rx_filter
        self._filter(unicast=old.unicast | now.unicast, multicast=old.multicast | now.multicast)


@mutant("NET-CTL-DEV-16")
class AddressNotShown(ControlQueue):
    """MAC_ADDR_SET is in force, but does not show in the configuration."""

    def mac_addr_set(self, data: bytes) -> None:
        self._filter(mac=data[:6])


@mutant("NET-CTL-DEV-17", "NET-CTL-DEV-15")
class AddressesByTheirEnd(Receiver):
    """Unicast addresses are compared by their first octet and last three."""

    def admitted(self, frame: bytes) -> bool:
        rx = self.ctx.rx_filter
        alike = any((frame[0], frame[3:6]) == (known[0], known[3:]) for known in rx.unicast)
        return super().admitted(frame) or (
            alike and bool(self.ctx.has(Feature.NET_F_CTRL_RX)) and not rx.nouni
        )


@mutant("NET-CTL-DEV-18")
class LargestVlanLost(Receiver):
    """VLAN 4094 is dropped, filter or none."""

    def admitted(self, frame: bytes) -> bool:
        largest = frame[12:14] == b"\x81\0" and int.from_bytes(frame[14:16]) & 0xFFF == 4094
        filtering = self.ctx.has(Feature.NET_F_CTRL_VLAN)
        return super().admitted(frame) and not (largest and not filtering)


@mutant("NET-CTL-DEV-19")
class VlansStay(ControlQueue):
    """VLAN_DEL does nothing."""

    def vlan_del(self, data: bytes) -> None:
        pass


@mutant("NET-CTL-DEV-19")
class VlansByLowOctet(ControlQueue):
    """A VLAN id is one octet."""

    def vlan_add(self, data: bytes) -> None:
        super().vlan_add(data[:1] + b"\0")
