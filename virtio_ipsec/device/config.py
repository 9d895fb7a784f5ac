"""What a device instance offers and which readings of the specification it follows."""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.wire.dialect import V14, Dialect


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Settings fixed for the life of a device.

    The switches choose between readings of the ambiguity ledger; each names its entry.
    """

    dialect: Dialect = V14
    mac: bytes = bytes.fromhex("020000000001")
    mtu: int = 9000
    max_queue_pairs: int = 8
    queue_size: int = 256
    #: E53: False delivers a packet that failed IPsec as it came, flags SECURITY|SECURITY_ERR; True drops it.
    drop_error_packets: bool = False
    #: E41: False echoes keys and salt in QUERY as the text demands; True answers zeroed keys.
    zero_keys_in_query: bool = False
