"""Device configuration space of the network device (virtio v1.4 5.1.4), 28 bytes."""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.wire.codec import Record
from virtio_ipsec.wire.fields import flagged, le16, le32, octets, u8
from virtio_ipsec.wire.numbers import HashType, NetStatus


@dataclass(frozen=True, slots=True)
class NetConfig:
    """``virtio_net_config``. ``mac`` is 6 bytes, ``mtu`` bytes, ``speed`` Mbit/s (0xffffffff: unknown)."""

    mac: bytes = bytes(6)
    status: int = 0
    max_virtqueue_pairs: int = 1
    mtu: int = 0
    speed: int = 0xFFFFFFFF
    duplex: int = 0xFF
    rss_max_key_size: int = 0
    rss_max_indirection_table_length: int = 0
    supported_hash_types: int = 0
    supported_tunnel_types: int = 0


def mac_text(raw: bytes) -> str:
    """Colon-separated text of an Ethernet address."""
    return raw.hex(":")


NET_CONFIG = Record(
    "virtio_net_config",
    (
        octets("mac", 6, mac_text),
        le16("status", flagged(NetStatus)),
        le16("max_virtqueue_pairs"),
        le16("mtu"),
        le32("speed"),
        u8("duplex"),
        u8("rss_max_key_size"),
        le16("rss_max_indirection_table_length"),
        le32("supported_hash_types", flagged(HashType)),
        le32("supported_tunnel_types", hex),
    ),
    NetConfig,
)
