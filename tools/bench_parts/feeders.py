"""Our own driver before any device: it keeps one transmit virtqueue full, in C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tools.bench_parts.native import Native
from tools.bench_parts.rings import plain_packet
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.sas import SaHandle
from virtio_ipsec.errors import VirtioIpsecError
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
ESP, IPV4 = 50, b"\x04"
_MEMORY = 16 << 20
#: The loop knows split rings whose doorbell is told nothing but the queue's index.
_LEFT_OUT = mask(
    Feature.F_RING_PACKED,
    Feature.F_EVENT_IDX,
    Feature.F_IN_ORDER,
    Feature.F_NOTIFICATION_DATA,
    Feature.F_NOTIF_CONFIG_DATA,
)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(size: int, number: int = 0, source: bytes = mac(GUEST)) -> bytes:
    """At 64 a whole frame, as testpmd counts and sends them; else an IP packet of ``size`` bytes behind its 14."""
    length = size - 14 if size == 64 else size
    return mac(OURS) + source + b"\x08\x00" + plain_packet(length, number)


def tunnel(key: bytes = KEY) -> IpsecSa:
    """The SA that everything goes through."""
    return IpsecSa(
        mode=IpsecMode.ESP_TUNNEL, direction=0, spi=0x1001, salt=SALT, cipher_algo=AeadAlgo.GCM, cipher_key=key,
        param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64),
    )  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """What is in a frame with an ESP packet over IPv4."""

    spi: int
    sequence: int
    iv: bytes
    plain: bytes


def opened(data: bytes, key: bytes = KEY) -> Opened:
    """Open what an SA of :func:`tunnel` has made, with `cryptography`. SystemExit for anything else."""
    esp = data[34:]
    try:
        inner = AESGCM(key).decrypt(SALT + esp[8:16], esp[16:], esp[:8])
    except (InvalidTag, ValueError):
        inner = b""
    if data[12:15] != b"\x08\x00\x45" or data[23] != ESP or inner[-1:] != IPV4:
        raise SystemExit(f"error: {len(data)} octets on the wire are no ESP packet that can be opened")
    plain = inner[: -2 - inner[-2]]
    return Opened(int.from_bytes(esp[:4]), int.from_bytes(esp[4:8]), esp[8:16], plain)


class Closable(Link, Protocol):
    """A link that ends."""

    def close(self) -> None: ...


def over_vhost_user(socket: str) -> Closable:
    return VhostUserLink.at(socket, Options(memory=_MEMORY, queue_size=RING), timeout=PATIENCE)


def over_vfio_user(socket: str) -> Closable:
    return PciLink(VfioUserFunction.at(socket, timeout=PATIENCE), PciOptions(memory=_MEMORY))


def started(link: Link, wanted: int = SUPPORTED) -> Driver:
    """A driver whose transmit queue a feeder can take over."""
    config = DriverConfig(wanted=wanted & ~_LEFT_OUT, queue_size=RING, receive_buffers=16)
    driver = Driver(link, config=config)
    driver.start()
    return driver


class Feeder:
    """The first transmit virtqueue of ``driver``, which has sent nothing and sends nothing itself from here on.

    ``sa``: what the device is to protect the frames with. ``rung``: called after each notification by a call.
    """

    def __init__(
        self,
        native: Native,
        driver: Driver,
        size: int,
        sa: SaHandle | None = None,
        *,
        source: bytes = mac(GUEST),
        rung: Callable[[], object] = lambda: None,
    ) -> None:
        self.ffi, self.lib = native.ffi, native.lib
        self.driver = driver
        memory, allocator = driver.link.memory, driver.link.allocator
        asked = NetHdr()
        if sa is not None:
            asked = NetHdr(flags=V14.flag_security, resource_id=sa.id, resource_type=ResourceType.NET_IPSEC_OUTB_SA)
        header = V14.net_hdr(driver.features).build(asked)
        layout = driver.session.data_rings[1].layout
        self.size = layout.size
        for index in range(layout.size):
            data = header + frame(size, index, source)
            address = allocator.alloc(len(data))
            memory.write(address, data)
            entry = address.to_bytes(8, "little") + len(data).to_bytes(4, "little") + bytes(4)
            memory.write(layout.desc + 16 * index, entry)
        self.areas = [
            self.ffi.from_buffer(memory.contiguous(area, length))
            for area, length in ((layout.driver, 6 + 2 * layout.size), (layout.device, 6 + 8 * layout.size))
        ]
        self.word: Any = None
        self.bell = self._bell(driver.link, rung)
        self.state = self.ffi.new("uint8_t[]", self.lib.bench_feed_size())
        self.feed = self.ffi.cast("struct bench_feed *", self.state)
        self.lib.bench_feed_init(self.feed, *self.areas, layout.size, self.bell)
        self.sent = 0
        self.error: VirtioIpsecError | None = None

    def _bell(self, link: Any, rung: Callable[[], object]) -> Any:
        """How the device is notified, in the best way that there is."""
        bell = self.ffi.new("struct bench_bell *", {"fd": -1, "value": 1})
        fd = link.kick_fd(1) if hasattr(link, "kick_fd") else None
        word = link.kick_word(1) if hasattr(link, "kick_word") else None
        if fd is not None:
            bell.fd = fd
        elif word is not None:
            self.word = bell.word = self.ffi.from_buffer(word)
        else:

            def call() -> None:
                try:
                    link.kick(1)
                    rung()
                except VirtioIpsecError as error:  # nothing can be raised through the loop
                    self.error = error

            self.call = bell.call = self.ffi.callback("void(void)", call)
        return bell

    def run(self, seconds: float, most: int = 0) -> float:
        """Send for so long, or so many; packets per second. SystemExit when a buffer is lost, and whatever the link has
        raised."""
        rate = self.ffi.new("double *")
        self.sent += self.lib.bench_feed_run(self.feed, seconds, most, rate)
        if self.error is not None:
            raise self.error
        if self.lib.bench_feed_bad(self.feed):
            raise SystemExit("error: buffers came back wrong, or not at all")
        return float(rate[0])

    def close(self) -> None:
        """Let go of the memory; driver and link stay."""
        self.areas, self.bell, self.word = [], None, None
