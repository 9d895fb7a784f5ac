"""Device configuration space of the network device, as the driver reads it (virtio v1.4 5.1.4)."""

from __future__ import annotations

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.wire.net_config import NET_CONFIG, NetConfig
from virtio_ipsec.wire.numbers import Feature, NetStatus, has

#: ``duplex`` of a full duplex link (E109).
FULL_DUPLEX = 1


class ConfigSpace:
    """The readable fields and their generation. All fields are read-only for the driver."""

    def __init__(self, config: DeviceConfig) -> None:
        self.config = config
        #: Changes whenever a field does (virtio v1.4 2.5).
        self.generation = 0
        #: Whether the driver has yet to be told of a change.
        self.changed = False
        self._mac = config.mac
        self._status = int(NetStatus.S_LINK_UP)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; zeros behind the structure."""
        whole = NET_CONFIG.build(self.fields())
        return whole[offset : offset + length].ljust(length, b"\0")

    def fields(self) -> NetConfig:
        """A field is there when its feature is offered, so also before FEATURES_OK (BAS-INIT-04)."""
        offered = self.config.offered_features
        config = self.config

        def when(value: int, *features: Feature) -> int:
            return value if any(has(offered, f) for f in features) else 0

        return NetConfig(
            mac=self._mac if has(offered, Feature.NET_F_MAC) else bytes(6),
            status=when(self._status, Feature.NET_F_STATUS),
            max_virtqueue_pairs=when(config.max_queue_pairs, Feature.NET_F_MQ, Feature.NET_F_RSS),
            mtu=when(config.mtu, Feature.NET_F_MTU),
            speed=when(config.speed, Feature.NET_F_SPEED_DUPLEX),
            duplex=when(FULL_DUPLEX, Feature.NET_F_SPEED_DUPLEX),
            rss_max_key_size=when(config.rss_max_key_size, Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
            rss_max_indirection_table_length=when(config.rss_max_indirection_table_length, Feature.NET_F_RSS),
            supported_hash_types=when(
                config.supported_hash_types, Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT
            ),
        )

    def set_mac(self, mac: bytes) -> None:
        """MAC_ADDR_SET by the driver, which needs no notification of its own change."""
        if mac != self._mac:
            self._mac = mac
            self.generation += 1

    def set_link(self, up: bool) -> None:
        """The link went up or down."""
        self._set_status(self._status & ~NetStatus.S_LINK_UP | (NetStatus.S_LINK_UP if up else 0))

    def announce(self) -> None:
        """Ask the driver to send gratuitous packets (virtio v1.4 5.1.6.5.4)."""
        self._set_status(self._status | NetStatus.S_ANNOUNCE)

    def announced(self) -> None:
        """ANNOUNCE_ACK: the driver has seen it."""
        if self._status & NetStatus.S_ANNOUNCE:
            self._status &= ~NetStatus.S_ANNOUNCE
            self.generation += 1

    def reset(self) -> None:
        """Device reset: the driver's address is forgotten, and nobody is left to announce anything."""
        self.set_mac(self.config.mac)
        self.announced()
        self.changed = False

    def _set_status(self, status: int) -> None:
        if status != self._status:
            self._status = status
            self.generation += 1
            self.changed = True
