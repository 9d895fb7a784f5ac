"""Functions whose registers are wrong. Each replaces the common configuration of a function, or the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.specification import clause
from virtio_ipsec.transport.loopback_pci import EmbeddedFunction, PciLoopback
from virtio_ipsec.transport.virtio_pci.common import CommonConfiguration
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.irqs import Interrupts
from virtio_ipsec.transport.virtio_pci.tables import (
    NO_VECTOR,
    CapabilityId,
    CommonCfg,
    Header,
    Isr,
    MsixCap,
    Region,
    Structure,
    VirtioCap,
)
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, mask

Part = TypeVar("Part", bound=type)


@dataclass(frozen=True)
class PciMutant:
    """A case that cites ``clause`` must have a failing check on it; on other clauses only those of ``dependants``."""

    name: str
    clause: str
    function: type[PciFunction]
    dependants: frozenset[str]

    def target(self) -> PciLoopback:
        """A fresh one."""
        return target(self.function)

    def __str__(self) -> str:
        return self.name


def target(function: type[PciFunction] = PciFunction) -> PciLoopback:
    """A device of two pairs as this kind of function, packets in Python."""
    device = Device(DeviceConfig(dialect=V14, max_queue_pairs=2), Random(1).randbytes)
    made = PciLoopback(EmbeddedFunction(device, function))
    made.patience = 0.3
    return made


MUTANTS: list[PciMutant] = []


def pci_mutant(broken: str, *dependants: str) -> Callable[[Part], Part]:
    """Register the decorated class as a mutant that breaks the clause ``broken``."""
    clause(broken)

    def register(part: Part) -> Part:
        function: Any = part
        if issubclass(part, CommonConfiguration):
            function = type(part.__name__, (PciFunction,), {"common_class": part})
        elif issubclass(part, Interrupts):
            function = type(part.__name__, (PciFunction,), {"interrupts_class": part})
        assert part.__doc__
        MUTANTS.append(PciMutant(part.__name__, broken, function, frozenset(dependants)))
        return part

    return register


class Listed(PciFunction):
    """Shows another configuration space than it has, once a driver has found its way."""

    _found = False

    def read(self, region: int, offset: int, length: int) -> bytes:
        data = super().read(region, offset, length)
        if region != Region.CONFIG:
            return data
        if not self._found or offset + length > 256:
            self._found |= (offset, length) == (0, 256)
            return data
        return self.listed(bytearray(super().read(region, 0, 256)))[offset : offset + length]

    def listed(self, config: bytearray) -> bytes:
        raise NotImplementedError

    @staticmethod
    def find(config: bytearray, kind: Structure) -> int:
        at = config[Header.CAPABILITY_LIST.offset]
        while config[at] != CapabilityId.VENDOR or config[at + VirtioCap.cfg_type.offset] != kind:
            at = config[at + 1]
        return at


@pci_mutant("PCI-CC-DEV-01", "PCI-CFG-DEV-01")
class SecondStructureIsMisaligned(Listed):
    """In place of the window another common configuration structure is listed, at offset 2."""

    def listed(self, config: bytearray) -> bytes:
        at = self.find(config, Structure.PCI_CFG)
        config[at + VirtioCap.cfg_type.offset] = Structure.COMMON_CFG
        config[at + VirtioCap.offset_.offset] = 2
        return bytes(config)


@pci_mutant("PCI-CC-DEV-02")
class NoCommonConfiguration(Listed):
    """The capability of the common configuration is of another type."""

    def listed(self, config: bytearray) -> bytes:
        config[self.find(config, Structure.COMMON_CFG) + VirtioCap.cfg_type.offset] = 6
        return bytes(config)


@pci_mutant("PCI-CC-DEV-03")
class SelectorsRepeat(CommonConfiguration):
    """device_feature_select counts modulo 4."""

    def get(self, register: CommonCfg) -> int:
        if register is CommonCfg.device_feature:
            return self.features >> 32 * (super().get(CommonCfg.device_feature_select) % 4) & 0xFFFFFFFF
        return super().get(register)


@pci_mutant("PCI-CC-DEV-03")
class TwoWords(CommonConfiguration):
    """Only the lowest bit of device_feature_select counts."""

    def get(self, register: CommonCfg) -> int:
        if register is CommonCfg.device_feature:
            return self.features >> 32 * (super().get(CommonCfg.device_feature_select) % 2) & 0xFFFFFFFF
        return super().get(register)


@pci_mutant("PCI-CC-DEV-03")
class LastWordSticks(CommonConfiguration):
    """A selector beyond the last word shows the one before."""

    _latest = 0

    def get(self, register: CommonCfg) -> int:
        if register is CommonCfg.device_feature:
            if super().get(CommonCfg.device_feature_select) < 4:
                self._latest = super().get(register)
            return self._latest
        return super().get(register)


@pci_mutant("PCI-CC-DEV-04")
class UpperWordsAreNotShown(CommonConfiguration):
    """driver_feature shows 64 bits."""

    def get(self, register: CommonCfg) -> int:
        if register is CommonCfg.driver_feature and super().get(CommonCfg.driver_feature_select) > 1:
            return 0
        return super().get(register)


@pci_mutant("PCI-CC-DEV-04")
class WordsAddUp(CommonConfiguration):
    """A bit of driver_feature that was written stays."""

    def put(self, register: CommonCfg, value: int) -> None:
        if register is CommonCfg.driver_feature:
            value |= self.get(CommonCfg.driver_feature)
        super().put(register, value)


@pci_mutant("PCI-CC-DEV-05")
class GenerationStandsStill(CommonConfiguration):
    """config_generation is a constant."""

    def generation(self) -> int:
        return 7

    def get(self, register: CommonCfg) -> int:
        return 7 if register is CommonCfg.config_generation else super().get(register)


@pci_mutant("PCI-CC-DEV-05")
class GenerationChangesOnce(CommonConfiguration):
    """config_generation says whether there was a change ever."""

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        return min(value, 1) if register is CommonCfg.config_generation else value


@pci_mutant("PCI-CC-DEV-06")
class StatusComesBack(CommonConfiguration):
    """After a reset the status is 0 twice, and then ACKNOWLEDGE."""

    _reads = 0

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.device_status and not value:
            self._reads += 1
            return int(self._reads > 2)
        return value

    def put(self, register: CommonCfg, value: int) -> None:
        super().put(register, value)
        if register is CommonCfg.device_status:
            self._reads = 0


class Remembers(CommonConfiguration):
    """Knows which queues were enabled and which reset, since the last two resets of the device."""

    def __init__(self, *arguments: Any) -> None:
        self.enabled: set[int] = set()
        self.enabled_before: set[int] = set()
        self.were_reset: set[int] = set()
        super().__init__(*arguments)

    def put(self, register: CommonCfg, value: int) -> None:
        super().put(register, value)
        index = super().get(CommonCfg.queue_select)
        if register is CommonCfg.device_status and not value:
            self.enabled_before = self.enabled or self.enabled_before
            self.enabled, self.were_reset = set(), set()
        elif register is CommonCfg.queue_enable:
            self.enabled.add(index)
            self.were_reset.discard(index)
        elif register is CommonCfg.queue_reset:
            self.were_reset.add(index)

    @property
    def selected(self) -> int:
        return super().get(CommonCfg.queue_select)


@pci_mutant("PCI-CC-DEV-07")
class AdminQueueStaysEnabled(Remembers):
    """After a device reset the administration queue shows that it is enabled."""

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.queue_enable and not self.enabled and self.selected in self.enabled_before:
            return int(self.selected >= super().get(CommonCfg.num_queues)) or value
        return value


@pci_mutant("PCI-CC-DEV-08")
class QueueResetAfterReset(Remembers):
    """queue_reset reads 1 until the queue has been enabled."""

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.queue_reset and self.selected not in self.enabled:
            return 1
        return value


@pci_mutant("PCI-CC-DEV-09")
class QueueResetAfterEnable(Remembers):
    """queue_reset reads 1 while a queue is enabled anew."""

    _again = False

    def put(self, register: CommonCfg, value: int) -> None:
        if register is CommonCfg.queue_enable:
            self._again = self.selected in self.were_reset
        elif register in (CommonCfg.queue_reset, CommonCfg.device_status):
            self._again = False
        super().put(register, value)

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.queue_reset and self._again and self.selected == 1:
            return 1
        return value


@pci_mutant("PCI-CC-DEV-10")
class StaysEnabled(Remembers):
    """queue_enable reads 1 after a queue reset."""

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        return 1 if register is CommonCfg.queue_enable and self.selected in self.were_reset else value


@pci_mutant("PCI-CC-DEV-10")
class ResetsItsNeighbourToo(Remembers):
    """A queue reset resets the queue behind it as well."""

    def put(self, register: CommonCfg, value: int) -> None:
        super().put(register, value)
        if register is CommonCfg.queue_reset:
            index = self.selected
            super().put(CommonCfg.queue_select, index + 1)
            super().put(register, value)
            super().put(CommonCfg.queue_select, index)


@pci_mutant("PCI-CC-DEV-10")
class AnswersWithTwo(Remembers):
    """queue_reset reads 2 once a queue has been reset."""

    _first = False

    def put(self, register: CommonCfg, value: int) -> None:
        super().put(register, value)
        if register is CommonCfg.queue_reset:
            self._first = True

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.queue_reset and self._first:
            self._first = False
            return 2
        return value


@pci_mutant("PCI-CC-DEV-11")
class EveryQueueExists(CommonConfiguration):
    """queue_size is never 0."""

    def get(self, register: CommonCfg) -> int:
        return super().get(register) or (256 if register is CommonCfg.queue_size else 0)


@pci_mutant("PCI-CC-DEV-12")
class OddSize(CommonConfiguration):
    """The control queue has room for 255 entries."""

    def get(self, register: CommonCfg) -> int:
        value = super().get(register)
        if register is CommonCfg.queue_size and super().get(CommonCfg.queue_select) == 4:
            return min(value, 255)
        return value


@pci_mutant("PCI-CC-DEV-13")
class AdminQueueAmongTheOthers(CommonConfiguration):
    """admin_queue_index is that of the last of the other queues."""

    def get(self, register: CommonCfg) -> int:
        return super().get(register) - (register is CommonCfg.admin_queue_index)


@pci_mutant("PCI-CC-DEV-14")
class TooManyAdminQueues(CommonConfiguration):
    """admin_queue_num is the largest number there is."""

    def get(self, register: CommonCfg) -> int:
        return NO_VECTOR if register is CommonCfg.admin_queue_num else super().get(register)


@pci_mutant("BAS-RSVD-12")
class VirtualFunctionsWithoutTheCapability(CommonConfiguration):
    """SR_IOV is offered by a function that has no such capability."""

    @property
    def features(self) -> int:
        return super().features | mask(Feature.F_SR_IOV)


def shown(broken: str, where: Structure | CapabilityId | None, place: int, value: int, name: str) -> None:
    """A mutant whose configuration space shows ``value`` in the byte ``place`` of a structure's capability, or of the
    header."""

    def listed(self: Listed, config: bytearray) -> bytes:
        base = self.find(config, where) if isinstance(where, Structure) else 0
        config[base + place] = value
        return bytes(config)

    text = f"{broken}: byte {place} is {value}."
    pci_mutant(broken)(type(name, (Listed,), {"listed": listed, "__doc__": text}))


_TYPE, _OFFSET, _LENGTH = (one.offset for one in (VirtioCap.cfg_type, VirtioCap.offset_, VirtioCap.length))
shown("PCI-DISC-DEV-01", None, Header.VENDOR_ID.offset, 0xF5, "AnotherVendor")
shown("PCI-DISC-DEV-02", None, Header.DEVICE_ID.offset, 0x42, "ABlockDevice")
shown("PCI-DISC-DEV-04", None, Header.REVISION_ID.offset, 0, "RevisionZero")
shown("PCI-DISC-DEV-05", None, Header.SUBSYSTEM_ID.offset + 1, 0, "SubsystemZero")
shown("PCI-NTF-DEV-01", Structure.NOTIFY_CFG, _TYPE, 6, "NoNotifications")
shown("PCI-NTF-DEV-02", Structure.NOTIFY_CFG, _OFFSET, 2, "NotificationsMisaligned")
shown("PCI-NTF-DEV-03", Structure.NOTIFY_CFG, 16, 2, "NotificationsTooClose")
shown("PCI-NTF-DEV-04", Structure.NOTIFY_CFG, _LENGTH, 23, "NoRoomForTheLastQueue")
shown("PCI-ISR-DEV-01", Structure.ISR_CFG, _TYPE, 6, "NoIsrStatus")
shown("PCI-OWN-DEV-01", Structure.DEVICE_CFG, _OFFSET, 2, "ConfigurationMisaligned")
shown("PCI-CFG-DEV-01", Structure.PCI_CFG, _TYPE, 6, "NoWindow")


@pci_mutant("PCI-LAY-DEV-01")
class LowHalfClearsTheHigh(CommonConfiguration):
    """Writing the low half of an address clears the high one."""

    def put(self, register: CommonCfg, value: int) -> None:
        super().put(register, value)
        if register.name.endswith("_lo"):
            super().put(CommonCfg[register.name[:-2] + "hi"], 0)


@pci_mutant("PCI-LAY-DEV-01")
class HighHalfNeedsTheLow(CommonConfiguration):
    """The high half of an address is taken when the low one was written just before."""

    _before: CommonCfg | None = None

    def put(self, register: CommonCfg, value: int) -> None:
        before, self._before = self._before, register
        if not register.name.endswith("_hi") or (before and before.name == register.name[:-2] + "lo"):
            super().put(register, value)


@pci_mutant("PCI-CFG-DEV-02")
class WindowCannotWrite(PciFunction):
    """Nothing happens when pci_cfg_data is written."""

    def _write_window(self) -> None:
        pass


@pci_mutant("PCI-CFG-DEV-03")
class WindowCannotRead(PciFunction):
    """pci_cfg_data reads as it was written."""

    def _read_window(self) -> None:
        pass


@pci_mutant("PCI-ISR-DEV-03")
class QueuesSayConfiguration(Interrupts):
    """A used buffer sets the configuration bit."""

    def take_isr(self) -> int:
        return Isr.CONFIG if super().take_isr() else 0


@pci_mutant("PCI-ISR-DEV-04")
class NoInterruptStatus(PciFunction):
    """The Interrupt Status bit of PCI is never set."""

    def _show_intx(self, asserted: bool) -> None:
        super()._show_intx(False)


@pci_mutant("PCI-ISR-DEV-04")
class InterruptStatusSticks(PciFunction):
    """The Interrupt Status bit of PCI is never cleared."""

    def _show_intx(self, asserted: bool) -> None:
        if asserted:
            super()._show_intx(True)


@pci_mutant("PCI-ISR-DEV-05")
class IsrStays(Interrupts):
    """The ISR status keeps what it has shown."""

    _kept = 0

    def take_isr(self) -> int:
        self._kept |= super().take_isr()
        return self._kept

    def unmap(self) -> None:
        super().unmap()
        self._kept = 0


@pci_mutant("PCI-ISR-DEV-02")
class IsrKnowsNoConfiguration(Interrupts):
    """The driver is told of its configuration, and the ISR status is not set."""

    def config_changed(self) -> None:
        super().config_changed()
        self._isr &= ~Isr.CONFIG


@pci_mutant("PCI-CHG-DEV-01")
class TellsWithoutVector(Interrupts):
    """Changes of the configuration ring vector 0 where they have none."""

    def config_changed(self) -> None:
        super().config_changed()
        if self._config_vector == NO_VECTOR:
            self.ring(0)


@pci_mutant("PCI-MSI-DEV-01", "PCI-MSI-DEV-02")
class OneVector(Listed):
    """The table has one vector, it says."""

    def listed(self, config: bytearray) -> bytes:
        config[self._caps.msix + MsixCap.CONTROL.offset] = 0
        return bytes(config)


@pci_mutant("PCI-MSI-DEV-02")
class OneVectorMoreThanItSays(Listed):
    """The table is larger than the capability says."""

    def listed(self, config: bytearray) -> bytes:
        config[self._caps.msix + MsixCap.CONTROL.offset] -= 1
        return bytes(config)


class ConfigVector(Interrupts):
    """Does something else with the vector of configuration changes."""

    @property
    def config_vector(self) -> int:
        return self._config_vector

    @config_vector.setter
    def config_vector(self, vector: int) -> None:
        self._config_vector = self.taken(vector)

    def taken(self, vector: int) -> int:
        raise NotImplementedError


@pci_mutant("PCI-MSI-DEV-04", "PCI-MSI-DEV-08")
class ThirdVectorIsForQueues(ConfigVector):
    """Changes of the configuration cannot be mapped to vector 3."""

    def taken(self, vector: int) -> int:
        return NO_VECTOR if vector == 3 else self._valid(vector)


@pci_mutant("PCI-MSI-DEV-08", "PCI-MSI-DEV-04")
class FirstVectorOnly(ConfigVector):
    """Changes of the configuration can be mapped to vector 0 alone."""

    def taken(self, vector: int) -> int:
        return NO_VECTOR if vector else 0


@pci_mutant("PCI-MSI-DEV-05")
class CannotBeUnmapped(ConfigVector):
    """NO_VECTOR is ignored once there is a vector."""

    def taken(self, vector: int) -> int:
        return self._config_vector if vector == NO_VECTOR else self._valid(vector)


@pci_mutant("PCI-MSI-DEV-06")
class ShowsAnother(ConfigVector):
    """Vector 3 shows as 2."""

    def taken(self, vector: int) -> int:
        return 2 if vector == 3 else self._valid(vector)


@pci_mutant("PCI-MSI-DEV-07")
class ResetKeepsTheVector(Interrupts):
    """The vector of configuration changes survives a reset."""

    def unmap(self) -> None:
        kept = getattr(self, "_config_vector", NO_VECTOR)
        super().unmap()
        self._config_vector = kept


@pci_mutant("PCI-MSI-DEV-09")
class UnknownVectorIsTheFirst(Interrupts):
    """What the table does not have becomes vector 0."""

    def _valid(self, vector: int) -> int:
        return vector if vector == NO_VECTOR or vector < len(self._vectors) else 0


@pci_mutant("PCI-USED-DEV-01")
class RingsTheVectorItHad(Interrupts):
    """A queue that was unmapped goes on with its last vector, and shows NO_VECTOR."""

    def _route(self, index: int) -> None:
        last = self.__dict__.setdefault("last", {})
        number = self._queue_vectors[index]
        if number == NO_VECTOR and self._msix and index in last:
            self._queue_vectors[index] = last[index]
            super()._route(index)
            self._queue_vectors[index] = number
            return
        last[index] = number
        super()._route(index)
