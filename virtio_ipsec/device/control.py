"""The control virtqueue: one table of commands (virtio v1.4 5.1.6.5).

A command is parsed and checked before it changes anything; whatever is wrong with it is answered by ERR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ..errors import VirtioIpsecError
from ..wire.numbers import (
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
from .net_config import ConfigSpace
from .state import DataPlaneContext, Steering

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


class _Reader:
    """Takes fields off the front of a command's data; what is missing makes the command fail."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise ControlRefused(f"command data ends at byte {len(self.data)}")
        self.at += size
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


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
        except ControlRefused:
            self.context.counters.add("control_errors")
            ack = CtrlAck.ERR
        return bytes((ack,))[:writable_len]

    def execute(self, readable: bytes) -> None:
        """Find the command and carry it out; ControlRefused, and no change, when it is not legal."""
        entry = self.commands.get((readable[0], readable[1])) if len(readable) >= 2 else None
        if entry is None or not any(self.context.has(feature) for feature in entry[0]):
            raise ControlRefused(f"class and command {readable[:2].hex()}")
        entry[1](readable[2:])

    def _rx_switch(self, field: str) -> Command:
        def switch(data: bytes) -> None:
            value = _Reader(data).number(1)
            if value > 1:
                raise ControlRefused(f"{field} {value}: 0 or 1")
            self._filter(**{field: bool(value)})

        return switch

    def _filter(self, **changes: object) -> None:
        self.context.rx_filter = replace(self.context.rx_filter, **changes)  # type: ignore[arg-type]

    def mac_table_set(self, data: bytes) -> None:
        """MAC_TABLE_SET: unicast table, then multicast table."""
        reader = _Reader(data)
        tables = []
        for _ in range(2):
            flat = reader.take(reader.number(4) * _MAC)
            tables.append(frozenset(flat[at : at + _MAC] for at in range(0, len(flat), _MAC)))
        self._filter(unicast=tables[0], multicast=tables[1])

    def mac_addr_set(self, data: bytes) -> None:
        """MAC_ADDR_SET: the default address, shown in the configuration space at once."""
        mac = _Reader(data).take(_MAC)
        if mac[0] & 1:
            raise ControlRefused("a group address cannot be the device's own")
        self._filter(mac=mac)
        self.space.set_mac(mac)

    def _vlan(self, data: bytes) -> frozenset[int]:
        vlan = _Reader(data).number(2)
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

    def _key(self, reader: _Reader) -> bytes:
        length = reader.number(1)
        if length > self.context.config.rss_max_key_size:
            raise ControlRefused(f"hash key of {length} bytes")
        return reader.take(length)

    def vq_pairs_set(self, data: bytes) -> None:
        """VQ_PAIRS_SET: automatic steering over that many pairs; what RSS_CONFIG set up ends with it."""
        pairs = self._pairs(_Reader(data).number(2))
        old = self.context.steering
        base = Steering() if old.rss else old
        self.context.steering = replace(base, queue_pairs=pairs)

    def hash_config(self, data: bytes) -> None:
        """HASH_CONFIG: hash reporting under automatic steering."""
        reader = _Reader(data)
        hash_types = self._hash_types(reader.number(4))
        reader.take(8)
        key = self._key(reader)
        self.context.steering = Steering(
            queue_pairs=self.context.steering.queue_pairs, hash_types=hash_types, key=key
        )

    def rss_config(self, data: bytes) -> None:
        """RSS_CONFIG: steering by indirection table."""
        reader = _Reader(data)
        hash_types = self._hash_types(reader.number(4))
        entries = reader.number(2) + 1
        limit = self.context.config.rss_max_indirection_table_length
        if entries & (entries - 1) or entries > limit:
            raise ControlRefused(f"indirection table of {entries} entries")
        queues = [
            self._receive_queue(n) for n in struct.unpack(f"<{entries + 1}H", reader.take(2 * entries + 2))
        ]
        pairs = self._pairs(reader.number(2))
        key = self._key(reader)
        self.context.steering = Steering(
            queue_pairs=pairs,
            rss=True,
            hash_types=hash_types,
            key=key,
            table=tuple(queues[1:]),
            unclassified_queue=queues[0],
        )

    def _receive_queue(self, rq_id: int) -> int:
        """``rss_rq_id``: bits 1 to 16 of a virtqueue index, which for receive queues is the pair's number."""
        if rq_id >= self.context.config.max_queue_pairs:
            raise ControlRefused(f"receive queue {rq_id}")
        return rq_id

    def guest_offloads_set(self, data: bytes) -> None:
        """GUEST_OFFLOADS_SET: any part of the negotiated GUEST features."""
        offloads = _Reader(data).number(8)
        wanted = offloads & ~_MOVED_BITS
        for bit, feature in MOVED_OFFLOADS.items():
            if offloads >> bit & 1:
                wanted |= mask(feature)
        if wanted & ~(self.context.features & GUEST_OFFLOADS):
            raise ControlRefused(f"offloads {offloads:#x}")
        self.context.guest_offloads = wanted
