"""Our front-end and our back-end, each in threads of its own: a driver's frames, a back-end that is lost, a log."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.errors import DriverError
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.framing import PeerClosed
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.uplinks.crossed import End, crossed
from virtio_ipsec.transport.vhost_user.backend import Backend
from virtio_ipsec.transport.vhost_user.binding import PROTOCOL_FEATURE
from virtio_ipsec.transport.vhost_user.channel import Refused
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import PROTOCOL, Options
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.numbers import AeadAlgo, Feature, IpsecMode, has, mask

PLAIN = PROTOCOL & ~(1 << PROTOCOL_FEATURE)
MAC, PEER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
FORMATS = {"split": mask(Feature.F_RING_PACKED), "packed": 0}
PATIENCE = 10.0


class Served:
    """A back-end that can be lost and started again at the same path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        near, self.wire = crossed("near", "far")
        config = DeviceConfig(mac=MAC, max_queue_pairs=1)
        device = Device(config, os.urandom, fast_path("auto", os.urandom))
        self.port = ServedPort(device, near, name="test")
        self.backend = Backend(self.port, self.path)
        self._thread = threading.Thread(target=self.port.loop.run)
        self._thread.start()

    def stop(self) -> None:
        self.port.loop.ask(self.backend.close)
        self.port.loop.stop()
        self._thread.join()
        self.port.close()
        self.wire.close()


@contextmanager
def pair(options: Options) -> Iterator[tuple[Served, VhostUserLink]]:
    with tempfile.TemporaryDirectory() as folder:
        served = Served(str(Path(folder, "s")))
        link = VhostUserLink.at(served.path, options)
        try:
            yield served, link
        finally:
            link.close()
            served.stop()


def driver_of(link: VhostUserLink, left_out: int = 0) -> Driver:
    driver = Driver(link, config=DriverConfig(wanted=SUPPORTED & ~left_out, receive_buffers=32))
    driver.start()
    return driver


def until(what: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.001)


def frame(number: int, to: bytes, source: bytes) -> bytes:
    return to + source + b"\x88\xb5" + number.to_bytes(2) + bytes(number % 50 + 44)


def both_ways(driver: Driver, wire: End, link: VhostUserLink, count: int = 20) -> None:
    """Frames leave and arrive whole and in order."""
    out = [frame(number, PEER, MAC) for number in range(count)]
    left: list[bytes] = []
    for each in out:
        driver.send(each)
    until(lambda: left.extend(wire.receive(64)) or len(left) >= count)
    assert left == out
    into = [frame(number, MAC, PEER) for number in range(count)]
    found: list[bytes] = []
    wire.send(into)

    def arrived() -> bool:
        link.poll(0.01)
        found.extend(packet.frame for packet in driver.receive())
        return len(found) >= count

    until(arrived)
    assert found == into


@pytest.mark.parametrize("ring", FORMATS)
@pytest.mark.parametrize("protocol", [PROTOCOL, PLAIN], ids=["binding", "plain"])
def test_a_driver_starts_sends_receives_and_starts_again(ring: str, protocol: int) -> None:
    with pair(Options(protocol=protocol, memory=4 << 20)) as (served, link):
        driver = driver_of(link, FORMATS[ring])
        assert has(driver.features, Feature.F_RING_PACKED) == (ring == "packed")
        assert has(driver.features, Feature.NET_F_IPSEC) == link.has_binding == (protocol == PROTOCOL)
        assert driver.net_config.mac == MAC
        both_ways(driver, served.wire, link)
        driver.reset_pair(0)
        both_ways(driver, served.wire, link)
        driver.stop()
        driver.start()
        both_ways(driver, served.wire, link)
        assert served.port.counters()["internal_errors"] == 0


def test_an_sa_over_the_binding_protects_what_is_sent() -> None:
    with pair(Options(memory=4 << 20)) as (served, link):
        driver = driver_of(link)
        sa = driver.sas.create_outbound(
            IpsecSa(
                IpsecMode.ESP_TRANSPORT, 0, 0x1234, b"salt", cipher_algo=AeadAlgo.GCM, cipher_key=bytes(16)
            )
        )
        packet = bytes.fromhex("4500001c00000000401100000a0000010a000002") + bytes.fromhex("0001000200080000")
        driver.send(PEER + MAC + b"\x08\x00" + packet, sa=sa)
        left: list[bytes] = []
        until(lambda: left.extend(served.wire.receive(8)) or left)
        assert left[0][23] == 50
        assert left[0][34:42] == bytes.fromhex("0000123400000001")


def test_a_thousand_sas_over_the_administration_queue() -> None:
    """Made, looked at, used at both ends of the list, and destroyed again."""
    packet = bytes.fromhex("4500001c00000000401100000a0000010a000002") + bytes.fromhex("0001000200080000")
    with pair(Options(memory=4 << 20)) as (served, link):
        driver = driver_of(link)
        create = driver.sas.create_outbound, driver.sas.create_inbound
        made = [
            create[way](
                IpsecSa(
                    IpsecMode.ESP_TRANSPORT, way, 0x1000 + number, number.to_bytes(4),
                    cipher_algo=AeadAlgo.GCM, cipher_key=number.to_bytes(16),
                )
            )
            for number in range(500) for way in (0, 1)
        ]  # fmt: skip
        context = served.port.device.context
        assert (len(context.outbound), len(context.inbound)) == (500, 500)
        left: list[bytes] = []
        for sa in (made[0], made[-2]):
            driver.send(PEER + MAC + b"\x08\x00" + packet, sa=sa)
        until(lambda: left.extend(served.wire.receive(8)) or len(left) == 2)
        assert [each[34:42].hex() for each in left] == ["0000100000000001", "000011f300000001"]
        assert driver.sas.query(made[-1]).spi == 0x11F3
        until(lambda: link.poll(0.01) or driver.reap() or not made[-2].in_flight)
        for sa in made:
            driver.sas.destroy(sa)
        assert not context.outbound
        assert not context.inbound


@pytest.mark.needs("extension")  # in-flight tracking is csrc/'s
@pytest.mark.parametrize("ring", FORMATS)
def test_a_back_end_that_was_lost_is_gone_on_with(ring: str) -> None:
    with pair(Options(protocol=PLAIN, memory=4 << 20)) as (served, link):
        driver = driver_of(link, FORMATS[ring])
        for _ in range(3):
            both_ways(driver, served.wire, link)
        served.stop()
        with pytest.raises(PeerClosed):
            link.poll(PATIENCE)
        waiting = [frame(number, PEER, MAC) for number in range(5)]
        for each in waiting:
            driver.send(each)
        served.start()
        link.reconnect()
        left: list[bytes] = []
        until(lambda: left.extend(served.wire.receive(64)) or len(left) >= 5)
        assert left == waiting
        both_ways(driver, served.wire, link)


def test_with_the_binding_the_driver_begins_anew() -> None:
    with pair(Options(memory=4 << 20)) as (served, link):
        driver = driver_of(link)
        both_ways(driver, served.wire, link)
        served.stop()
        served.start()
        with pytest.raises((TransportError, DriverError)):
            driver.stop()
        link.restart()
        fresh = driver_of(link)
        both_ways(fresh, served.wire, link)


@pytest.mark.needs("extension")  # logging is csrc/'s
@pytest.mark.parametrize("ring", FORMATS)
def test_a_log_names_the_pages_that_the_device_wrote(ring: str) -> None:
    with pair(Options(protocol=PLAIN, memory=4 << 20, config=NetConfig(mac=MAC))) as (served, link):
        driver = driver_of(link, FORMATS[ring])
        both_ways(driver, served.wire, link)
        link.start_logging()
        before = {
            page: link.memory.read(page << 12, 4096)
            for start, size in link.memory.regions
            for page in range(start >> 12, (start + size) >> 12)
        }
        both_ways(driver, served.wire, link)
        link.stop_queue(0)
        link.stop_queue(1)
        dirty = {*link.vrings.dirty_pages()}
        assert dirty
        assert dirty <= before.keys()
        changed = {page for page, was in before.items() if link.memory.read(page << 12, 4096) != was}
        written_by_us = changed - dirty
        # What changed and is not in the log is the driver's own: descriptors, available ring, what it sent.
        for page in written_by_us:
            assert not any(
                frame(number, MAC, PEER) in link.memory.read(page << 12, 4096) for number in range(20)
            )
        assert any(frame(5, MAC, PEER) in link.memory.read(page << 12, 4096) for page in dirty)


@pytest.mark.needs("extension")
def test_while_a_driver_has_sas_its_device_does_not_migrate(caplog: pytest.LogCaptureFixture) -> None:
    """Ledger E80: the front-end hears a refusal, the log says why, and everything goes on as it was."""
    with pair(Options(memory=4 << 20, config=NetConfig(mac=MAC))) as (served, link):
        driver = driver_of(link)
        sa = driver.sas.create_inbound(
            IpsecSa(
                IpsecMode.ESP_TRANSPORT, 1, 0x1234, b"salt", cipher_algo=AeadAlgo.GCM, cipher_key=bytes(16)
            )
        )
        with pytest.raises(Refused, match="SET_LOG_BASE"):
            link.start_logging()
        (said,) = [record.getMessage() for record in caplog.records if "migra" in record.getMessage()]
        assert said == (
            "test: no migration: SAs that the driver made cannot be migrated: no other device could go on with their "
            "numbers"
        )
        both_ways(driver, served.wire, link)
        assert driver.sas.query(sa).spi == 0x1234
        driver.sas.destroy(sa)
        link.start_logging()
        both_ways(driver, served.wire, link)
        assert link.vrings.dirty_pages()
