"""Our driver in front of our own function, in one process: the link, the access by calls, and the target."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.loopback_pci import EmbeddedFunction, PciLoopback, PciLoopbackOwner
from virtio_ipsec.transport.virtio_pci.access import IrqIndex
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.tables import Region
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, has

FRAME = bytes.fromhex("ffffffffffff020000000002") + b"\x88\xb5" + bytes(46)


class WithoutVectors(PciFunction):
    """Only INTx."""

    @property
    def msix_vectors(self) -> int:
        return 0


def made(function: type[PciFunction] = PciFunction, engine: str = "auto") -> PciLoopback:
    device = Device(DeviceConfig(max_queue_pairs=2), os.urandom, fast_path(engine, os.urandom))
    return PciLoopback(EmbeddedFunction(device, function))


@pytest.fixture(params=[PciFunction, WithoutVectors])
def link(request: pytest.FixtureRequest) -> Iterator[PciLoopback]:
    link = made(request.param)
    yield link
    link.close()


def until(what: Callable[[], object], link: PciLoopback) -> None:
    limit = time.monotonic() + 5
    while not what():
        assert time.monotonic() < limit
        link.poll(0.01)


def both_ways(link: PciLoopback) -> None:
    driver = Driver(link, config=DriverConfig(receive_buffers=4))
    driver.start()
    assert has(driver.features, Feature.NET_F_IPSEC)
    driver.send(FRAME)
    left: list[bytes] = []
    until(lambda: left.extend(link.captured()) or left, link)
    assert left == [FRAME]
    link.inject(FRAME)
    found: list[bytes] = []
    until(lambda: found.extend(packet.frame for packet in driver.receive()) or found, link)
    assert found == [FRAME]
    assert driver.caps.ipsec_sas is not None


def test_a_driver_works_with_vectors_and_without(link: PciLoopback) -> None:
    both_ways(link)
    link.function_reset()
    both_ways(link)
    link.restart()
    both_ways(link)


def test_what_the_access_says_of_the_function() -> None:
    link = made()
    access = link.access
    assert access.region_info(Region.CONFIG).size == 4096
    assert not access.region_info(Region.ROM).readable
    assert access.map_region(Region.BAR0, 0, 4096) is None
    assert access.doorbell(Region.BAR0, 0x3000, 2) is not None
    assert access.doorbell(Region.BAR0, 0x3000, 8) is None
    assert access.doorbell(Region.BAR0, 0x3001, 2) is None
    assert [access.irq_count(index) for index in IrqIndex] == [1, 0, 7, 0, 0]
    access.set_irqs(IrqIndex.MSIX, 0, ())
    access.set_irqs(IrqIndex.INTX, 0, ())
    access.unmask_irq(IrqIndex.MSIX)
    link.close()


def test_the_target_by_its_name() -> None:
    with open_target("loopback-pci:python", V14) as target:
        report = run(target, select(V14.name, ["pci-*", "queue-reset*"]), thin=True)
    assert report.passed
    assert {case.verdict for case in report.cases} == {Verdict.PASS}
    assert report.identity.target == "loopback-pci"
    with pytest.raises(ConfigError), open_target("loopback-pci:fast", V14):
        pass


def test_an_owner_by_its_name() -> None:
    with open_target("loopback-pci:python,members=2", V14) as target:
        assert isinstance(target, PciLoopbackOwner)
        assert target.total_vfs == 2
        with pytest.raises(TransportError, match=r"virtual function 1 of loopback-pci is not there"):
            target.member(1)
        for _ in range(2):
            target.reset()
            for number in (1, 2):
                both_ways(target.member(number))
                assert target.member(number) is target.member(number)
        assert target.member(1).read_config(0, 6) != target.member(2).read_config(0, 6)
        target.enable_vfs(None)
        target.enable_vfs(1)
        both_ways(target.member(1))
        with pytest.raises(TransportError):
            target.member(2)
        report = run(target, select(V14.name, ["pci-sriov-feature", "PCI-CC-DEV-13"]), thin=True)
        assert report.passed


def test_a_function_without_the_capability_owns_nothing() -> None:
    owner = PciLoopbackOwner(Device(DeviceConfig(), os.urandom), ())
    assert owner.total_vfs == 0
    owner.virtual_functions = None
    with pytest.raises(TransportError, match="has no virtual functions"):
        owner.enable_vfs(1)
    owner.close()


def test_a_function_that_no_driver_finds_is_let_go() -> None:
    class NoDevice(PciFunction):
        def read(self, region: int, offset: int, length: int) -> bytes:
            return bytes(length)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match="no virtio network device"):
        made(NoDevice)
    assert len(os.listdir("/proc/self/fd")) <= before
