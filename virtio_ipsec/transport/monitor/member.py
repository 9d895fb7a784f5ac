"""Virtual functions of a watched one: devices as others are, of whose drivers only one thing is noted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from virtio_ipsec.device.device import Device
from virtio_ipsec.transport.monitor.events import MemberAccessed, Recorder
from virtio_ipsec.transport.pci_port import PciPort
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.header import DEVICE, DEVICE_SIZE, STRUCTURES_BAR
from virtio_ipsec.transport.virtio_pci.member import VirtualFunction


class WatchedMember(PciFunction):
    """Virtual function ``number`` of a watched one: accesses to its device configuration."""

    def __init__(self, number: int, recorder: Recorder, port: ServedPort, **options: Any) -> None:
        self._number = number
        self._recorder = recorder
        super().__init__(port, **options)

    def read(self, region: int, offset: int, length: int) -> bytes:
        data = super().read(region, offset, length)
        if region == STRUCTURES_BAR:
            self._note(offset, data, is_write=False)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        if region == STRUCTURES_BAR:
            self._note(offset, data, is_write=True)
        super().write(region, offset, data)

    def _note(self, offset: int, data: bytes, *, is_write: bool) -> None:
        if offset < DEVICE + DEVICE_SIZE and offset + len(data) > DEVICE:
            self._recorder.note(MemberAccessed(self._number, is_write, offset - DEVICE, data))


def member_device(owner: Device, number: int, rng: Callable[[int], bytes]) -> Device:
    """What is behind virtual function ``number`` of a function with the device ``owner``."""
    mac = (int.from_bytes(owner.config.mac) ^ number).to_bytes(6)
    return Device(replace(owner.config, mac=mac), rng)


class ServedMember:
    """Virtual function ``number`` of the function around ``owner``: at ``path`` while it is enabled, in a thread of its
    own. TransportError when it cannot be served there."""

    def __init__(self, owner: Device, number: int, path: str, recorder: Recorder) -> None:
        self._port = ServedPort(
            member_device(owner, number, os.urandom), open_uplink("null"), name=f"vf{number}"
        )
        try:
            make = partial(WatchedMember, number, recorder)
            self._served = PciPort(self._port, path, virtual=True, make=make)
        except BaseException:
            self._port.close()
            raise
        #: The function as its owner reaches it.
        self.member: VirtualFunction = self._served.member
        self._thread = threading.Thread(target=self._port.loop.run, name=f"vf{number}-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let its client go, and release everything."""
        self._port.loop.call(self._served.close)
        self._port.loop.call(self._port.loop.stop)
        self._thread.join()
        self._port.close()
