"""Control virtqueue commands of the network device (virtio v1.4 5.1.6.6).

The rule that missing bytes count as zero is the administration queue's; here a short command is a WireError.
Commands that carry a bare number (VLAN id, number of queue pairs, offload mask) have no codec.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Codec, Headed, Lengthed
from virtio_ipsec.wire.fields import (
    FieldLayout,
    FieldView,
    Members,
    field_layout,
    field_views,
    flagged,
    hexadecimal,
    le16,
    le32,
    named,
    octets,
    reserved,
    u8,
)
from virtio_ipsec.wire.net_config import mac_text
from virtio_ipsec.wire.numbers import CtrlClass, HashType

_RQ_ID_LIMIT = 0x8000
"""A receive queue id has 15 bits; the sixteenth is reserved."""


@dataclass(frozen=True, slots=True)
class CtrlCommand:
    """Readable part of ``virtio_net_ctrl``; the device answers one ``ack`` byte (``CtrlAck``)."""

    ctrl_class: int
    command: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class MacTables:
    """Data of MAC_TABLE_SET: two ``virtio_net_ctrl_mac``, addresses of 6 bytes each."""

    unicast: tuple[bytes, ...] = ()
    multicast: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class RssConfig:
    """``virtio_net_rss_config``: receive queue ids (half a virtqueue index), the table of 1 to 65536."""

    hash_types: int
    unclassified_queue: int
    indirection_table: tuple[int, ...]
    max_tx_vq: int
    hash_key: bytes = b""


@dataclass(frozen=True, slots=True)
class HashConfig:
    """``virtio_net_hash_config``: how to compute ``hash_value`` without RSS steering."""

    hash_types: int
    hash_key: bytes = b""


class _CtrlCommandCodec(Headed[CtrlCommand]):
    zero_extends = False


CTRL_COMMAND = _CtrlCommandCodec(
    "virtio_net_ctrl",
    (u8("class", named(CtrlClass), to="ctrl_class"), u8("command")),
    CtrlCommand,
    tail="command-specific-data",
    to="data",
)


class _MacTablesCodec(Codec[MacTables]):
    name = "virtio_net_ctrl_mac"
    fixed_size = 8
    size = None
    zero_extends = False

    def build(self, value: MacTables) -> bytes:
        out = b""
        for table in (value.unicast, value.multicast):
            if any(len(mac) != 6 for mac in table):
                raise WireError(f"{self.name}: an address is 6 bytes")
            out += len(table).to_bytes(4, "little") + b"".join(table)
        return out

    def read(self, data: bytes, at: int) -> tuple[MacTables, int]:
        tables: list[tuple[bytes, ...]] = []
        for _ in range(2):
            entries = int.from_bytes(data[at : at + 4], "little")
            first, at = at + 4, at + 4 + 6 * entries
            if at > len(data):
                raise WireError(f"{self.name}: {entries} addresses need {at} bytes, {len(data)} are present")
            tables.append(tuple(data[each : each + 6] for each in range(first, at, 6)))
        return MacTables(*tables), at

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout((le32("entries"),)), FieldLayout("macs", 4, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        views: list[FieldView] = []
        for kind in ("unicast", "multicast"):
            entries = int.from_bytes(data[at : at + 4], "little")
            present = min(entries, -(-max(len(data) - at - 4, 0) // 6))
            macs = (octets(f"{kind}.macs[{index}]", 6, mac_text) for index in range(present))
            found, at = field_views((le32(f"{kind}.entries"), *macs), data, at, prefix)
            views += found
        return views, at


MAC_TABLES: Codec[MacTables] = _MacTablesCodec()


class _RssConfigCodec(Codec[RssConfig]):
    name = "virtio_net_rss_config"
    fixed_size = 8
    size = None
    zero_extends = False
    _head = Members(
        name,
        (
            le32("hash_types", flagged(HashType)),
            le16("indirection_table_mask", hexadecimal),
            le16("unclassified_queue"),
        ),
    )

    def build(self, value: RssConfig) -> bytes:
        table = value.indirection_table
        if not 1 <= len(table) <= 0x10000:
            raise WireError(f"{self.name}: {len(table)} entries where 1 to 65536 are possible")
        if not all(0 <= each < _RQ_ID_LIMIT for each in (value.unclassified_queue, *table)):
            raise WireError(f"{self.name}: a receive queue id has 15 bits")
        if not 0 <= value.max_tx_vq < 0x10000:
            raise WireError(f"{self.name}: max_tx_vq = {value.max_tx_vq} does not fit 2 bytes")
        head = self._head.pack(
            {
                "hash_types": value.hash_types,
                "indirection_table_mask": len(table) - 1,
                "unclassified_queue": value.unclassified_queue,
            }
        )
        if len(value.hash_key) > 255:
            raise WireError(
                f"{self.name}: a hash key of {len(value.hash_key)} bytes does not fit a one-byte length"
            )
        body = struct.pack(f"<{len(table)}HHB", *table, value.max_tx_vq, len(value.hash_key))
        return head + body + value.hash_key

    def read(self, data: bytes, at: int) -> tuple[RssConfig, int]:
        members = self._head.unpack(data, at)
        at += self.fixed_size
        entries = members["indirection_table_mask"] + 1
        key_at = at + 2 * entries + 3
        if len(data) < key_at:
            raise WireError(f"{self.name}: the indirection table of {entries} entries is cut")
        *table, max_tx_vq, key_length = struct.unpack_from(f"<{entries}HHB", data, at)
        ids = tuple(each % _RQ_ID_LIMIT for each in table)
        unclassified = members["unclassified_queue"] % _RQ_ID_LIMIT
        end = key_at + key_length
        return RssConfig(members["hash_types"], unclassified, ids, max_tx_vq, data[key_at:end]), end

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self._head.fields), FieldLayout("indirection_table", 8, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        entries = self._head.unpack(data, at)["indirection_table_mask"] + 1
        length_at = at + self.fixed_size + 2 * entries + 2
        length = data[length_at] if length_at < len(data) else 0
        fields = (
            *self._head.fields,
            octets("indirection_table", 2 * entries),
            le16("max_tx_vq"),
            u8("hash_key_length"),
            octets("hash_key_data", length),
        )
        return field_views(fields, data, at, prefix)


RSS_CONFIG: Codec[RssConfig] = _RssConfigCodec()


HASH_CONFIG = Lengthed(
    "virtio_net_hash_config",
    (le32("hash_types", flagged(HashType)), reserved("reserved", 8), u8("hash_key_length")),
    HashConfig,
    length="hash_key_length",
    tail="hash_key_data",
    to="hash_key",
    zero_extends=False,
)
