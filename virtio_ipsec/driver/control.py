"""Control virtqueue commands (virtio v1.4 5.1.6.5), each only with its feature.

Driver clauses of the section: receive modes need CTRL_RX or CTRL_RX_EXTRA, the MAC class CTRL_RX, VLAN
CTRL_VLAN; queue pairs between 1 and those configured; RSS tables a power of two of enabled receive queues,
within the device's limits and hash types; offloads only among negotiated ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from virtio_ipsec.driver.admin import RequestQueue
from virtio_ipsec.driver.errors import DriverError, NotNegotiated
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.net_control import (
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.numbers import (
    CtrlAck,
    CtrlClass,
    CtrlGuestOffloads,
    CtrlMac,
    CtrlMq,
    CtrlRx,
    CtrlVlan,
    Feature,
    has,
)

#: Offload feature -> its bit in GUEST_OFFLOADS_SET: not the feature's number for those above 63.
OFFLOAD_BITS = {
    Feature.NET_F_GUEST_CSUM: 1,
    Feature.NET_F_GUEST_TSO4: 7,
    Feature.NET_F_GUEST_TSO6: 8,
    Feature.NET_F_GUEST_ECN: 9,
    Feature.NET_F_GUEST_UFO: 10,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO: 46,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: 47,
    Feature.NET_F_GUEST_USO4: 54,
    Feature.NET_F_GUEST_USO6: 55,
}
_EXTRA_MODES = (CtrlRx.ALLUNI, CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST)


class ControlFailed(DriverError):
    """The device answered a control command with something else than OK."""


class Control:
    """Control commands of one session. ``pairs`` are the queue pairs that have been configured;
    ``on_pairs`` is told the number in use from now on (transmit: before the command is sent)."""

    def __init__(
        self,
        queue: RequestQueue,
        features: int,
        config: NetConfig,
        pairs: int,
        on_pairs: Callable[[int], None],
    ) -> None:
        self._queue = queue
        self._features = features
        self._config = config
        self._pairs = pairs
        self._on_pairs = on_pairs
        #: Queue pairs that the device may use now.
        self.pairs_in_use = 1

    def receive_mode(self, mode: CtrlRx, on: bool) -> None:
        """Switch one receive mode."""
        extra = mode in _EXTRA_MODES
        self._need(Feature.NET_F_CTRL_RX_EXTRA if extra else Feature.NET_F_CTRL_RX)
        self._send(CtrlClass.RX, mode, bytes((on,)))

    def set_mac(self, mac: bytes) -> None:
        """Set the default address."""
        self._need(Feature.NET_F_CTRL_RX)
        self._need(Feature.NET_F_CTRL_MAC_ADDR)
        if len(mac) != 6 or mac[0] & 1:
            raise ConfigError(f"{mac.hex(':')} is no unicast Ethernet address")
        self._send(CtrlClass.MAC, CtrlMac.ADDR_SET, mac)

    def set_mac_table(self, addresses: Iterable[bytes]) -> None:
        """Replace the address filter table."""
        self._need(Feature.NET_F_CTRL_RX)
        tables: tuple[list[bytes], list[bytes]] = ([], [])
        for address in addresses:
            if len(address) != 6:
                raise ConfigError(f"{address.hex(':')} is no Ethernet address")
            tables[address[0] & 1].append(address)
        unicast, multicast = map(tuple, tables)
        self._send(CtrlClass.MAC, CtrlMac.TABLE_SET, MAC_TABLES.build(MacTables(unicast, multicast)))

    def vlan(self, vlan_id: int, on: bool) -> None:
        """Add a VLAN to the filter table or remove it."""
        self._need(Feature.NET_F_CTRL_VLAN)
        if not 0 <= vlan_id < 4096:
            raise ConfigError(f"VLAN id {vlan_id}")
        self._send(CtrlClass.VLAN, CtrlVlan.ADD if on else CtrlVlan.DEL, struct.pack("<H", vlan_id))

    def set_queue_pairs(self, pairs: int) -> None:
        """Use ``pairs`` queue pairs with automatic receive steering."""
        self._need(Feature.NET_F_MQ)
        if not 1 <= pairs <= self._pairs:
            raise ConfigError(f"{pairs} queue pairs; {self._pairs} have been configured")
        before = self.pairs_in_use
        self._on_pairs(min(before, pairs))
        self._send(CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET, struct.pack("<H", pairs))
        self.pairs_in_use = pairs
        self._on_pairs(pairs)

    def set_rss(
        self, hash_types: int, table: Sequence[int], key: bytes, *, unclassified: int = 0, transmit: int = 0
    ) -> None:
        """Receive-side scaling. ``table`` and ``unclassified`` hold receive queue numbers from 0;
        ``transmit`` is the number of transmit queues to use, 0: all that were configured."""
        self._need(Feature.NET_F_RSS)
        self._check_hash(hash_types, key)
        size, transmit = len(table), transmit or self._pairs
        if not size or size & (size - 1) or size > self._config.rss_max_indirection_table_length:
            raise ConfigError(f"an indirection table of {size} entries")
        if not all(0 <= queue < self._pairs for queue in (*table, unclassified)):
            raise ConfigError("the indirection table names a receive queue that was not configured")
        if not 1 <= transmit <= self._pairs:
            raise ConfigError(f"{transmit} transmit queues; {self._pairs} have been configured")
        data = RSS_CONFIG.build(RssConfig(hash_types, unclassified, tuple(table), transmit, key))
        before = self.pairs_in_use
        self._on_pairs(min(before, transmit))
        self._send(CtrlClass.MQ, CtrlMq.RSS_CONFIG, data)
        self.pairs_in_use = transmit
        self._on_pairs(transmit)

    def set_hash(self, hash_types: int, key: bytes) -> None:
        """Hash calculation with automatic receive steering."""
        self._need(Feature.NET_F_HASH_REPORT)
        self._check_hash(hash_types, key)
        self._send(CtrlClass.MQ, CtrlMq.HASH_CONFIG, HASH_CONFIG.build(HashConfig(hash_types, key)))

    def set_guest_offloads(self, features: Iterable[Feature]) -> None:
        """Enable exactly these receive offloads."""
        self._need(Feature.NET_F_CTRL_GUEST_OFFLOADS)
        word = 0
        for feature in features:
            self._need(feature)
            if feature not in OFFLOAD_BITS:
                raise ConfigError(f"{feature.name} is no receive offload")
            word |= 1 << OFFLOAD_BITS[feature]
        self._send(CtrlClass.GUEST_OFFLOADS, CtrlGuestOffloads.SET, struct.pack("<Q", word))

    def _check_hash(self, hash_types: int, key: bytes) -> None:
        if hash_types & ~self._config.supported_hash_types:
            raise ConfigError(f"hash types {hash_types:#x} are not all supported by the device")
        if len(key) > self._config.rss_max_key_size:
            most = self._config.rss_max_key_size
            raise ConfigError(f"a hash key of {len(key)} bytes; the device takes {most}")

    def _need(self, feature: Feature) -> None:
        if not has(self._features, feature):
            raise NotNegotiated(f"this command needs {feature.name}, which was not negotiated")

    def _send(self, group: CtrlClass, command: int, data: bytes) -> None:
        # A device that writes nothing must not count as OK, so the missing byte reads as ERR.
        answer = self._queue.request(bytes((group, command)) + data, 1) or bytes((CtrlAck.ERR,))
        if answer[0] != CtrlAck.OK:
            raise ControlFailed(f"control command {group.name} {command}: the device answered {answer[0]}")
