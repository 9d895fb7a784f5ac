"""Our driver over vfio-user to our own device, each in threads of its own, and the targets that lead there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from handmade_server import Server
from vfio_served import Served, served, served_group

from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import Owner, Target, open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver, Received
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.driver.link import Link
from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.ipsec.process import find_spi, outbound
from virtio_ipsec.ipsec.sa import OutboundSa, SaParams
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.target import PciOwner, PciTarget, vfio, vfio_user
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, Feature, IpsecMode, has, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4

MAC, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
CONFIG = DeviceConfig(mac=MAC, max_queue_pairs=2)
SA = IpsecSa(
    mode=IpsecMode.ESP_TUNNEL,
    direction=1,
    spi=0x1234,
    salt=b"salt",
    cipher_algo=AeadAlgo.GCM,
    cipher_key=bytes(range(16)),
    param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
)
IP = bytes.fromhex("4500002c0000000040110000 0a000001 0a000002 0001 0002 0018 0000") + bytes(16)


def until(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.001)


def started(link: Link, left_out: int = 0) -> Driver:
    driver = Driver(link, config=DriverConfig(wanted=SUPPORTED & ~left_out, receive_buffers=16))
    driver.start()
    return driver


def both_ways(driver: Driver, link: PciLink, near: Served) -> None:
    """A packet leaves sealed, and comes back opened."""
    out = driver.sas.create_outbound(SA)
    back = driver.sas.create_inbound(SA)
    driver.flows.protect(back, versions=(4,))
    wire = open_uplink(near.wire)
    try:
        frame = PEER + MAC + b"\x08\x00" + IP
        driver.send(frame, out)
        left: list[bytes] = []
        until(lambda: left.extend(wire.receive(8)) or left)
        header = find_spi(left[0][14:])
        assert header is not None
        assert header.spi == 0x1234
        assert IP[20:] not in left[0]
        until(lambda: not (driver.reap() or driver.unsent))
        wire.send([MAC + PEER + left[0][12:]])
        found = []
        until(lambda: link.poll(0.01) or found.extend(driver.receive()) or found)
        assert found[0].protected
        assert found[0].frame[14:] == IP
    finally:
        wire.close()


@pytest.mark.parametrize("engine", ["python", "auto"])
@pytest.mark.parametrize("left_out", [0, mask(Feature.F_RING_PACKED)], ids=["packed", "split"])
def test_esp_both_ways_over_vfio_user(engine: str, left_out: int) -> None:
    with served(engine, CONFIG) as near:
        link = PciLink(VfioUserFunction.at(near.path), Options(memory=8 << 20))
        driver = started(link, left_out)
        wanted = (Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER, Feature.F_ADMIN_VQ)
        assert all(has(driver.features, each) for each in wanted)
        assert link.kick_fd(0) is not None
        assert link.interrupt_kind == "msi-x, 7 vectors"
        both_ways(driver, link, near)
        driver.stop()
        both_ways(started(link, left_out), link, near)
        link.function_reset()
        both_ways(started(link, left_out), link, near)
        link.close()


def test_with_interrupts_by_intx() -> None:
    with served("python", CONFIG) as near:
        access = VfioUserFunction.at(near.path)
        counts = access.irq_count
        access.irq_count = lambda index: 0 if index == 2 else counts(index)  # type: ignore[method-assign]
        link = PciLink(access, Options(memory=8 << 20))
        assert link.interrupt_kind == "intx"
        both_ways(started(link), link, near)
        link.close()


def test_a_sample_of_the_suite_passes_over_vfio_user() -> None:
    cases = select(V14.name, ("sanity-start", "net-header-size", "ipsec-in-corrupted"))
    assert len(cases) == 3
    with served() as near, open_target(near.target, V14) as target:
        assert target.details == {"PCI": "1af4:1041", "interrupts": "msi-x, 19 vectors", "queues": "17"}
        report = run(target, cases, seed=3, thin=True)
        assert report.identity.wire
    assert {case.id: case.verdict for case in report.cases} == dict.fromkeys(
        (case.id for case in cases), Verdict.PASS
    )


# Virtual functions.


def sealed(key: bytes, number: int) -> bytes:
    """A frame as the other end of a tunnel makes it."""
    out = OutboundSa(SaParams.from_wire(replace(SA, cipher_key=key, esn=number), V14), os.urandom)
    return MAC + PEER + b"\x08\x00" + outbound(out, IP)


def test_virtual_functions_open_each_its_own() -> None:
    """The same SPI in two of them, with different keys; what is for one is an error in the other."""
    keys = {1: bytes(range(16)), 2: bytes(range(16, 32))}
    with (
        served_group(2, "auto", CONFIG) as functions,
        open_target(f"vfio-user:{functions[0].path}", V14) as target,
    ):
        assert isinstance(target, Owner)
        assert target.total_vfs == 2
        target.reset()
        owner = started(target)
        assert has(owner.features, Feature.F_SR_IOV)
        drivers = {}
        for number, key in keys.items():
            member = target.member(number)
            assert target.member(number) is member
            drivers[number] = (member, started(member))
            assert not has(drivers[number][1].features, Feature.F_SR_IOV)
            inbound = drivers[number][1].sas.create_inbound(replace(SA, cipher_key=key))
            drivers[number][1].flows.protect(inbound, versions=(4,))
        for number, (member, driver) in drivers.items():
            wire = open_uplink(functions[number].wire)
            wire.send([sealed(keys[1], 1), sealed(keys[2], 2)])
            found: list[Received] = []

            def arrived(link: Target = member, driver: Driver = driver, into: list[Received] = found) -> bool:
                link.poll(0.01)
                into.extend(driver.receive())
                return len(into) >= 2

            until(arrived)
            assert [packet.protected for packet in found] == [number == 1, number == 2]
            assert [packet.error for packet in found] == [number != 1, number != 2]
            wire.close()
        target.enable_vfs(None)
        with pytest.raises(TransportError, match=r"virtual function 1 of .* is not there"):
            target.member(1)
        target.enable_vfs(1)
        assert not started(target.member(1)).sas.all()
        with pytest.raises(TransportError, match="virtual function 2 of"):
            target.member(2)
        target.enable_vfs(None)
        with pytest.raises(TransportError, match="does not enable 3 virtual functions of 2"):
            target.enable_vfs(3)


def test_an_owner_that_does_not_do_it() -> None:
    """VF Enable reads back as it was."""
    with (
        served_group(1, "python", CONFIG) as functions,
        open_target(f"vfio-user:{functions[0].path}", V14) as target,
    ):
        assert isinstance(target, PciOwner)
        target.enable_vfs(1)
        target.access.write = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="keeps its virtual functions"):
            target.enable_vfs(None)
        target.virtual_functions = None
        with pytest.raises(TransportError, match="has no virtual functions"):
            target.total_vfs  # noqa: B018


def test_a_function_that_owns_none_is_no_owner() -> None:
    with served("python", CONFIG) as near, open_target(near.target, V14) as target:
        assert not isinstance(target, Owner)
        assert not has(target.transport_features(), Feature.F_SR_IOV)


# Targets.


def test_a_target_comes_back_after_its_device_was_lost() -> None:
    server = Server()
    target: Target = PciTarget(VfioUserFunction(server.connect, "vfio-user:test"), V14)
    assert not target.has_wire
    assert target.captured() == []
    with pytest.raises(TransportError, match="vfio-user:test has no wire: see --wire"):
        target.inject(b"")
    server.theirs.shutdown(socket.SHUT_RDWR)
    target.reset()
    assert target.status() == 0
    target.close()
    server.close()


@pytest.mark.parametrize("argument", ["", "?wire=null:", "socket?wire="])
def test_a_target_that_is_misspelt(argument: str) -> None:
    with pytest.raises(ConfigError, match="is written vfio-user:PATH"):
        vfio_user(argument, V14)
    with pytest.raises(ConfigError, match=r"is written vfio:0000:bb:dd\.f"):
        vfio(argument, V14)


def test_a_wire_that_is_not_there_lets_the_device_go(tmp_path: Path) -> None:
    with served("python", CONFIG) as near:
        with pytest.raises((ConfigError, TransportError)):
            vfio_user(f"{near.path}?wire=nonsense:{tmp_path}", V14)
        until(lambda: near.port.counters().get("connections", 1) >= 0)
        link = PciLink(VfioUserFunction.at(near.path), Options(memory=1 << 20))
        link.close()


def test_there_is_no_such_function() -> None:
    with (
        pytest.raises(TransportError, match=r"no PCI function ffff:ff:1f\.7"),
        open_target("vfio:ffff:ff:1f.7", V14),
    ):
        raise AssertionError
