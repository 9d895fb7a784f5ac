"""Our own driver before a served port, by vhost-user and by vfio-user: it keeps one transmit virtqueue full, in C."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from tools.bench_parts.native import Native
from tools.bench_parts.rings import plain_packet
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.ring.queue import allocate_layout
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import Options
from virtio_ipsec.transport.virtio_pci.link import Options as PciOptions
from virtio_ipsec.transport.virtio_pci.link import PciLink
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import AeadAlgo, Feature, IpsecMode, ResourceType, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4

RING = 1024
GUEST, OURS, NEXT = "02:00:00:00:0a:01", "02:00:00:00:0a:fe", "02:aa:00:00:00:01"
KEY, SALT = bytes(range(16)), b"salt"
PATIENCE = 30.0


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(size: int, number: int = 0) -> bytes:
    """At 64 a whole frame, as testpmd counts and sends them; else an IP packet of ``size`` bytes behind its 14."""
    length = size - 14 if size == 64 else size
    return mac(OURS) + mac(GUEST) + b"\x08\x00" + plain_packet(length, number)


class Feeder:
    """Our own driver, in this process: a transmit virtqueue and a loop in C."""

    def __init__(self, native: Native, socket: str, size: int, *, driver_control: bool = False) -> None:
        self.ffi, self.lib = native.ffi, native.lib
        self.link = self.reach(socket)
        header = self._ask_for_esp() if driver_control else self._plain()
        link = self.link
        layout = allocate_layout(link.allocator, RING, link.driver_features())
        buffers = [header + frame(size, number) for number in range(RING)]
        for index, data in enumerate(buffers):
            address = link.allocator.alloc(len(data))
            link.memory.write(address, data)
            entry = address.to_bytes(8, "little") + len(data).to_bytes(4, "little") + bytes(4)
            link.memory.write(layout.desc + 16 * index, entry)
        for area, length in ((layout.driver, 6 + 2 * RING), (layout.device, 6 + 8 * RING)):
            link.memory.write(area, bytes(length))
        link.enable_queue(1, layout)
        if not driver_control:
            link.write_status(15)
        base = link.memory.regions[0][0]
        self.state = self.ffi.new("uint8_t[]", self.lib.bench_feed_size())
        self.feed = self.ffi.cast("struct bench_feed *", self.state)
        self.memory = self.ffi.from_buffer(link.memory.views[0][1])
        kick = self.doorbell()
        self.lib.bench_feed_init(self.feed, self.memory, layout.driver - base, layout.device - base, RING, kick)
        self.sent = 0

    def reach(self, socket: str) -> Any:
        """The link to the back-end."""
        return VhostUserLink.at(socket, Options(memory=16 << 20, queue_size=RING), timeout=PATIENCE)

    def doorbell(self) -> int:
        """The eventfd of the transmit virtqueue."""
        return int(self.link.vrings.kick_fd(1))

    def _plain(self) -> bytes:
        """A driver that accepts next to nothing; the header of its packets."""
        link = self.link
        link.write_status(0)
        for status in (1, 3):
            link.write_status(status)
        link.write_driver_features(mask(Feature.F_VERSION_1))
        link.write_status(11)
        link.enable_queue(0, allocate_layout(link.allocator, RING, link.driver_features()))
        return V14.net_hdr(link.driver_features()).build(NetHdr())

    def _ask_for_esp(self) -> bytes:
        """A driver with an SA of its own; its transmit queue is set up anew by whoever called."""
        left_out = mask(Feature.F_RING_PACKED, Feature.F_EVENT_IDX, Feature.F_IN_ORDER)
        driver = Driver(self.link, config=DriverConfig(wanted=SUPPORTED & ~left_out))
        driver.start()
        handle = driver.sas.create_outbound(
            IpsecSa(
                mode=IpsecMode.ESP_TUNNEL, direction=0, spi=0x1001, salt=SALT, cipher_algo=AeadAlgo.GCM, cipher_key=KEY,
                param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64),
            )
        )  # fmt: skip
        self.link.reset_queue(1)
        return V14.net_hdr(driver.features).build(
            NetHdr(flags=V14.flag_security, resource_id=handle.id, resource_type=ResourceType.NET_IPSEC_OUTB_SA)
        )

    def run(self, seconds: float, most: int = 0) -> float:
        """Send for so long, or so many; packets per second. SystemExit when a buffer is lost."""
        rate = self.ffi.new("double *")
        self.sent += self.lib.bench_feed_run(self.feed, seconds, most, rate)
        if self.lib.bench_feed_bad(self.feed):
            raise SystemExit("vhost: buffers came back wrong, or not at all")
        return float(rate[0])

    def close(self) -> None:
        del self.memory
        self.link.close()


class PciFeeder(Feeder):
    """The same over vfio-user: the device is a PCI function."""

    def reach(self, socket: str) -> Any:
        return PciLink(VfioUserFunction.at(socket, timeout=PATIENCE), PciOptions(memory=16 << 20))

    def doorbell(self) -> int:
        fd = self.link.kick_fd(1)
        if fd is None:
            raise SystemExit("vhost: serve --vfio-user has no eventfd for the transmit queue")
        return int(fd)
