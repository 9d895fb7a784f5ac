"""The judges of PCI registers: each fails a driver's link that is wrong in one access, over vfio-user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from driver_live import Connect, Patient, live_report, pci_link
from driver_registry import blamed

from virtio_ipsec.driver.errors import FeatureError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.virtio_pci.link import PciLink
from virtio_ipsec.transport.virtio_pci.tables import CommonCfg


class Brief(Patient):
    """Up and down, and a queue anew."""

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self.start
        yield self.reset_queues
        yield self.stop


class Up(Patient):
    """Up and down."""

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self.start
        yield self.stop


class Tampered(PciLink):
    def poke(self, register: CommonCfg, value: int) -> None:
        """A write that the link's own checks do not see."""
        place = self.found.common
        data = value.to_bytes(register.width, "little")
        self.access.write(place.region, place.offset + register.offset, data)


class WritesReadOnly(Tampered):
    """num_queues is written."""

    def write_driver_features(self, word: int) -> None:
        self.poke(CommonCfg.num_queues, 1)
        super().write_driver_features(word)


class SizeZero(Tampered):
    """queue_size is written as 0 first."""

    size = 0

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        self.poke(CommonCfg.queue_select, index)
        self.poke(CommonCfg.queue_size, self.size)
        super().enable_queue(index, layout)


class SizeThree(SizeZero):
    """queue_size is written as 3 first."""

    size = 3


class SizesLate(Tampered):
    """queue_size is written after queue_enable."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        super().enable_queue(index, layout)
        self.poke(CommonCfg.queue_size, layout.size)


class ResetUnawaited(Tampered):
    """After writing 0 the status is not read."""

    unread = False

    def write_status(self, value: int) -> None:
        self.unread = value == 0
        if self.unread:
            self.poke(CommonCfg.device_status, 0)
            self._forget()
        else:
            super().write_status(value)

    def status(self) -> int:
        if self.unread:
            return 0
        return super().status()

    def device_features(self) -> int:
        self.unread = False
        return super().device_features()


class Disables(Tampered):
    """0 is written to queue_enable."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        super().enable_queue(index, layout)
        self.poke(CommonCfg.queue_enable, 0)


class QueueResetUnawaited(Tampered):
    """queue_reset is not read."""

    def reset_queue(self, index: int) -> None:
        self._common.put(CommonCfg.queue_select, index)
        self._common.put(CommonCfg.queue_reset, 1)
        self._queues.pop(index).doorbell.close()


class BeyondTheQueues(Tampered):
    """A second administration queue is enabled where there is one."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        super().enable_queue(index, layout)
        if index == self.admin_queue_index():
            self.poke(CommonCfg.queue_select, index + 1)
            for half in ("desc_lo", "driver_lo", "device_lo"):
                self.poke(CommonCfg[f"queue_{half}"], 0x1000)
            self.poke(CommonCfg.queue_enable, 1)


class ExactLength(Tampered):
    """A configuration longer than the structure is refused."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        if self.found.device is not None and self.found.device.length > 28:
            raise FeatureError("the configuration is too long")
        super().enable_queue(index, layout)


MUTANTS: dict[str, tuple[type[PciLink], str, type[Patient], set[str]]] = {
    "PCI-CC-DRV-01": (WritesReadOnly, "plain", Up, set()),
    "PCI-CC-DRV-02": (SizeZero, "full", Up, set()),
    "PCI-CC-DRV-03": (SizeThree, "plain", Up, set()),
    "PCI-CC-DRV-04": (SizesLate, "plain", Up, set()),
    "PCI-CC-DRV-05": (ResetUnawaited, "plain", Up, {"BAS-RESET-03"}),
    "PCI-CC-DRV-06": (Disables, "plain", Up, set()),
    "PCI-CC-DRV-07": (QueueResetUnawaited, "full", Brief, {"BAS-RESET-06"}),
    "BAS-RESET-06": (QueueResetUnawaited, "full", Brief, {"PCI-CC-DRV-07"}),
    "PCI-CC-DRV-08": (BeyondTheQueues, "full", Up, set()),
    "BAS-INIT-03": (ExactLength, "plain", Up, set()),
}
#: What is blamed as well where the device is slow: one that is not yet reset sees its buffers taken away.
IN_TIME = {"PCI-CC-DRV-05": {"BAS-INIT-11"}}


@pytest.mark.parametrize("broken", MUTANTS)
def test_a_wrong_link_is_blamed_for_its_clause_and_nothing_else(broken: str) -> None:
    kind, face, script, dependants = MUTANTS[broken]

    def open_link(connect: Connect) -> Any:
        return pci_link(connect, kind)

    wrong = blamed(live_report("vfio-user", [face], open_link, script=script))
    assert wrong.keys() - IN_TIME.get(broken, set()) == {broken, *dependants}, wrong


class ReadsTheStopped(Patient):
    """The configuration of a stopped virtual function is read, over the socket that it has."""

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self.start
        yield self.own_members
        yield self.stop

    def while_stopped(self, function: PciLink) -> None:
        function.read_config(0, 6)


def test_accesses_to_virtual_functions_at_sockets_are_seen() -> None:
    wrong = blamed(live_report("vfio-user", ["full"], pci_link, script=ReadsTheStopped))
    assert wrong.keys() == {"DP-DRV-03"}, wrong
