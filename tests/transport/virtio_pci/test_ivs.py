"""One key, whatever becomes of the function in between: no IV leaves it twice.

The same SA is made anew in each life of a function, and in two functions at once; all that they send is taken from the
wire and opened with `cryptography`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from vfio_served import Served, served_group

from virtio_ipsec.conformance.target import Owner, open_target
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.uplink import Uplink, open_uplink
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.discovery import walk
from virtio_ipsec.transport.virtio_pci.target import PciTarget
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, IpsecMode
from virtio_ipsec.wire.tunnel import TunnelIPv4

KEY, SALT = bytes(range(16)), b"salt"
SA = IpsecSa(
    mode=IpsecMode.ESP_TUNNEL,
    direction=0,
    spi=0x1234,
    salt=SALT,
    cipher_algo=AeadAlgo.GCM,
    cipher_key=KEY,
    param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
)
CONFIG = DeviceConfig(mac=bytes.fromhex("020000000001"), max_queue_pairs=1)
ETHERNET = bytes.fromhex("020000000002 020000000001 0800")
PACKETS = 20


def ip(number: int) -> bytes:
    """A packet of its own for each number."""
    head = bytes.fromhex("45000024") + number.to_bytes(2) + bytes.fromhex("000040110000 0a000001 0a000002")
    return head + bytes.fromhex("0001000200100000") + number.to_bytes(8)


@dataclass
class Capture:
    """What has left the functions under the key: each packet opened, numbers and IVs counted."""

    ivs: Counter[bytes] = field(default_factory=Counter)
    lives: list[str] = field(default_factory=list)

    def add(self, life: str, frames: list[bytes]) -> None:
        """One life of a function: all of its packets, under the numbers from 1."""
        numbers, seen = [], []
        for frame in frames:
            esp = frame[34:]
            inner = AESGCM(KEY).decrypt(SALT + esp[8:16], esp[16:], esp[:8])
            assert esp[:4] == SA.spi.to_bytes(4), life
            numbers.append(int.from_bytes(esp[4:8]))
            seen.append(inner[: -2 - inner[-2]])
            self.ivs[esp[8:16]] += 1
        assert numbers == list(range(1, PACKETS + 1)), life
        assert seen == [ip(number) for number in range(PACKETS)], life
        self.lives.append(life)

    def repeated(self) -> int:
        """IVs that were used more than once."""
        return sum(count > 1 for count in self.ivs.values())


def send(capture: Capture, life: str, link: PciTarget, wire: Uplink) -> None:
    """A driver from the beginning, with the SA and its key once more; the last of it is left as it is."""
    driver = Driver(link, config=DriverConfig(receive_buffers=4))
    driver.start()
    sa = driver.sas.create_outbound(SA)
    for number in range(PACKETS):
        driver.send(ETHERNET + ip(number), sa)
    frames: list[bytes] = []
    limit = time.monotonic() + 10
    while len(frames) < PACKETS:
        assert time.monotonic() < limit, life
        link.poll(0.001)
        frames += wire.receive(64)
    capture.add(life, frames)


def flr_by_register(link: PciTarget) -> None:
    """As a guest begins it, without help of whoever holds the function."""

    def start() -> None:
        config = link.access.read(tables.Region.CONFIG, 0, tables.EXTENDED_CAPABILITIES)
        base = next(at for kind, at in walk(config) if kind == tables.CapabilityId.EXPRESS)
        start = tables.EXPRESS_START_FLR.to_bytes(2, "little")
        link.access.write(tables.Region.CONFIG, base + tables.ExpressCap.DEVICE_CONTROL.offset, start)

    reset, link.access.reset = link.access.reset, start  # type: ignore[method-assign]
    link.function_reset()
    link.access.reset = reset  # type: ignore[method-assign]


ENDS: dict[str, Callable[[PciTarget], None]] = {
    "device reset": lambda link: link.write_status(0),
    "FLR by the device's register": flr_by_register,
    "DEVICE_RESET": lambda link: link.function_reset(),
    "disconnect": lambda link: link.restart(),
}


def lives(capture: Capture, name: str, link: PciTarget, wire: Uplink) -> None:
    """One life after the other, each ended in its own way."""
    send(capture, f"{name}, first", link, wire)
    for end, bring_about in ENDS.items():
        bring_about(link)
        send(capture, f"{name} after {end}", link, wire)


@pytest.fixture(params=["python", "auto"])
def group(request: pytest.FixtureRequest) -> Iterator[list[Served]]:
    with served_group(1, request.param, CONFIG) as functions:
        yield functions


def test_no_iv_comes_twice_under_a_key_that_does(group: list[Served]) -> None:
    capture = Capture()
    wires = [open_uplink(each.wire) for each in group]
    with open_target(f"vfio-user:{group[0].path}", V14) as owner:
        assert isinstance(owner, Owner)
        assert isinstance(owner, PciTarget)
        lives(capture, "owner", owner, wires[0])
        owner.enable_vfs(None)
        owner.enable_vfs(1)
        lives(capture, "VF", owner.member(1), wires[1])
        owner.enable_vfs(None)
        owner.enable_vfs(1)
        send(capture, "VF after VF Enable", owner.member(1), wires[1])
    for wire in wires:
        wire.close()
    assert len(capture.lives) == 2 * (1 + len(ENDS)) + 1
    assert capture.ivs.total() == len(capture.lives) * PACKETS
    assert not capture.repeated()


def test_bases_that_are_not_random_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device whose source of random octets always says the same."""
    monkeypatch.setattr(os, "urandom", bytes)
    capture = Capture()
    with (
        served_group(0, "python", CONFIG) as (only,),
        open_target(f"vfio-user:{only.path}", V14) as link,
    ):
        assert isinstance(link, PciTarget)
        wire = open_uplink(only.wire)
        for life in ("first", "second"):
            link.write_status(0)
            send(capture, life, link, wire)
        wire.close()
    assert capture.repeated() == PACKETS
