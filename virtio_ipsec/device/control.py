"""The control virtqueue: one table of commands (virtio v1.4 5.1.6.5).

A command is parsed and checked before it changes anything; whatever is wrong with it is answered by ERR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from virtio_ipsec.device.net_config import ConfigSpace
from virtio_ipsec.device.state import DataPlaneContext, Steering
from virtio_ipsec.errors import VirtioIpsecError, WireError
from virtio_ipsec.wire.net_control import HASH_CONFIG, MAC_TABLES, RSS_CONFIG
from virtio_ipsec.wire.numbers import (
    CtrlAck,
    CtrlAnnounce,
    CtrlClass,
    CtrlGuestOffloads,
    CtrlMac,
    CtrlMq,
    CtrlRx,
    CtrlVlan,
    Feature,
    mask,
)

#: Offload bits of GUEST_OFFLOADS_SET that are not their feature's bit number (virtio v1.4 5.1.6.5.8).
MOVED_OFFLOADS: Final = {
    46: Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    47: Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
}
_MOVED_BITS: Final = sum(1 << bit for bit in MOVED_OFFLOADS)
#: Features that GUEST_OFFLOADS_SET switches; all negotiated ones are on at the start.
GUEST_OFFLOADS: Final = mask(
    Feature.NET_F_GUEST_CSUM,
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_ECN,
    Feature.NET_F_GUEST_UFO,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
    *MOVED_OFFLOADS.values(),
)
_RX_FIELDS: Final = {
    CtrlRx.PROMISC: "promisc",
    CtrlRx.ALLMULTI: "allmulti",
    CtrlRx.ALLUNI: "alluni",
    CtrlRx.NOMULTI: "nomulti",
    CtrlRx.NOUNI: "nouni",
    CtrlRx.NOBCAST: "nobcast",
}
_MAC = 6
_VLAN_IDS = 4096

Command = Callable[[bytes], None]


class ControlRefused(VirtioIpsecError):
    """A control command that is answered with ERR; the message says why."""


def _number(data: bytes, size: int) -> int:
    """The little-endian number that a command's data starts with; unlike an admin command it must be whole."""
    if len(data) < size:
        raise ControlRefused(f"{len(data)} bytes of data where {size} are needed")
    return int.from_bytes(data[:size], "little")


class ControlQueue:
    """The control commands of one device between two resets."""

    def __init__(self, context: DataPlaneContext, space: ConfigSpace) -> None:
        self.context = context
        self.space = space
        #: (class, command) -> (features any one of which makes the command legal, what it does).
        self.commands: dict[tuple[int, int], tuple[tuple[Feature, ...], Command]] = {
            (CtrlClass.MAC, CtrlMac.TABLE_SET): ((Feature.NET_F_CTRL_RX,), self.mac_table_set),
            (CtrlClass.MAC, CtrlMac.ADDR_SET): (
                (Feature.NET_F_CTRL_MAC_ADDR, Feature.NET_F_CTRL_RX),
                self.mac_addr_set,
            ),
            (CtrlClass.VLAN, CtrlVlan.ADD): ((Feature.NET_F_CTRL_VLAN,), self.vlan_add),
            (CtrlClass.VLAN, CtrlVlan.DEL): ((Feature.NET_F_CTRL_VLAN,), self.vlan_del),
            (CtrlClass.ANNOUNCE, CtrlAnnounce.ACK): ((Feature.NET_F_GUEST_ANNOUNCE,), self.announce_ack),
            (CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET): ((Feature.NET_F_MQ,), self.vq_pairs_set),
            (CtrlClass.MQ, CtrlMq.RSS_CONFIG): ((Feature.NET_F_RSS,), self.rss_config),
            (CtrlClass.MQ, CtrlMq.HASH_CONFIG): ((Feature.NET_F_HASH_REPORT,), self.hash_config),
            (CtrlClass.GUEST_OFFLOADS, CtrlGuestOffloads.SET): (
                (Feature.NET_F_CTRL_GUEST_OFFLOADS,),
                self.guest_offloads_set,
            ),
        }
        for command, field in _RX_FIELDS.items():
            basic = command in (CtrlRx.PROMISC, CtrlRx.ALLMULTI)
            feature = Feature.NET_F_CTRL_RX if basic else Feature.NET_F_CTRL_RX_EXTRA
            self.commands[CtrlClass.RX, command] = ((feature,), self._rx_switch(field))

    def process(self, readable: bytes, writable_len: int) -> bytes:
        """One command; returns the bytes to write: the ``ack`` byte, or nothing where it has no room."""
        try:
            self.execute(readable)
            ack = CtrlAck.OK
        except (ControlRefused, WireError):
            self.context.counters.add("control_errors")
            ack = CtrlAck.ERR
        return bytes((ack,))[:writable_len]

    def execute(self, readable: bytes) -> None:
        """Find the command and carry it out; ControlRefused or WireError, and no change, when it is not legal."""
        entry = self.commands.get((readable[0], readable[1])) if len(readable) >= 2 else None
        if entry is None or not any(self.context.has(feature) for feature in entry[0]):
            raise ControlRefused(f"class and command {readable[:2].hex()}")
        entry[1](readable[2:])

    def _rx_switch(self, field: str) -> Command:
        def switch(data: bytes) -> None:
            value = _number(data, 1)
            if value > 1:
                raise ControlRefused(f"{field} {value}: 0 or 1")
            self._filter(**{field: bool(value)})

        return switch

    def _filter(self, **changes: object) -> None:
        self.context.rx_filter = replace(self.context.rx_filter, **changes)  # type: ignore[arg-type]

    def mac_table_set(self, data: bytes) -> None:
        """MAC_TABLE_SET: unicast table, then multicast table."""
        tables = MAC_TABLES.parse(data)
        self._filter(unicast=frozenset(tables.unicast), multicast=frozenset(tables.multicast))

    def mac_addr_set(self, data: bytes) -> None:
        """MAC_ADDR_SET: the default address, shown in the configuration space at once."""
        mac = data[:_MAC]
        if len(mac) < _MAC or mac[0] & 1:
            raise ControlRefused("the device's own address is six bytes and no group address")
        self._filter(mac=mac)
        self.space.set_mac(mac)

    def _vlan(self, data: bytes) -> frozenset[int]:
        vlan = _number(data, 2)
        if vlan >= _VLAN_IDS:
            raise ControlRefused(f"VLAN id {vlan}")
        return frozenset({vlan})

    def vlan_add(self, data: bytes) -> None:
        """VLAN_ADD."""
        self._filter(vlans=self.context.rx_filter.vlans | self._vlan(data))

    def vlan_del(self, data: bytes) -> None:
        """VLAN_DEL; a VLAN that is not in the table is gone already."""
        self._filter(vlans=self.context.rx_filter.vlans - self._vlan(data))

    def announce_ack(self, _data: bytes) -> None:
        """ANNOUNCE_ACK clears S_ANNOUNCE."""
        self.space.announced()

    def _pairs(self, count: int) -> int:
        if not 1 <= count <= self.context.config.max_queue_pairs:
            raise ControlRefused(f"{count} queue pairs")
        return count

    def _hash_types(self, hash_types: int) -> int:
        if hash_types & ~self.context.config.supported_hash_types:
            raise ControlRefused(f"hash types {hash_types:#x}")
        return hash_types

    def _key(self, key: bytes) -> bytes:
        if len(key) > self.context.config.rss_max_key_size:
            raise ControlRefused(f"hash key of {len(key)} bytes")
        return key

    def vq_pairs_set(self, data: bytes) -> None:
        """VQ_PAIRS_SET: automatic steering over that many pairs; what RSS_CONFIG set up ends with it."""
        pairs = self._pairs(_number(data, 2))
        old = self.context.steering
        base = Steering() if old.rss else old
        self.context.steering = replace(base, queue_pairs=pairs)

    def hash_config(self, data: bytes) -> None:
        """HASH_CONFIG: hash reporting under automatic steering."""
        wanted = HASH_CONFIG.parse(data)
        self.context.steering = Steering(
            queue_pairs=self.context.steering.queue_pairs,
            hash_types=self._hash_types(wanted.hash_types),
            key=self._key(wanted.hash_key),
        )

    def rss_config(self, data: bytes) -> None:
        """RSS_CONFIG: steering by indirection table."""
        wanted = RSS_CONFIG.parse(data)
        entries = len(wanted.indirection_table)
        if entries & (entries - 1) or entries > self.context.config.rss_max_indirection_table_length:
            raise ControlRefused(f"indirection table of {entries} entries")
        self.context.steering = Steering(
            queue_pairs=self._pairs(wanted.max_tx_vq),
            rss=True,
            hash_types=self._hash_types(wanted.hash_types),
            key=self._key(wanted.hash_key),
            table=tuple(self._receive_queue(n) for n in wanted.indirection_table),
            unclassified_queue=self._receive_queue(wanted.unclassified_queue),
        )

    def _receive_queue(self, rq_id: int) -> int:
        """``rss_rq_id``: bits 1 to 16 of a virtqueue index, which for receive queues is the pair's number."""
        if rq_id >= self.context.config.max_queue_pairs:
            raise ControlRefused(f"receive queue {rq_id}")
        return rq_id

    def guest_offloads_set(self, data: bytes) -> None:
        """GUEST_OFFLOADS_SET: any part of the negotiated GUEST features."""
        offloads = _number(data, 8)
        wanted = offloads & ~_MOVED_BITS
        for bit, feature in MOVED_OFFLOADS.items():
            if offloads >> bit & 1:
                wanted |= mask(feature)
        if wanted & ~(self.context.features & GUEST_OFFLOADS):
            raise ControlRefused(f"offloads {offloads:#x}")
        self.context.guest_offloads = wanted
