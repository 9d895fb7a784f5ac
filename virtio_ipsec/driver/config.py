"""Settings of a driver instance."""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.driver.features import SUPPORTED


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """Fixed for the life of a driver.

    ``mtu`` is the path MTU in bytes of IP packet where neither the device (MTU feature) nor an SA says less.
    ``receive_buffers`` per queue; ``receive_buffer_size`` is used with MRG_RXBUF only, where any size that
    holds the header will do. A request is given ``polls`` times ``poll_timeout`` seconds before the device
    counts as dead; EAGAIN is answered with up to ``retries`` repetitions.
    """

    wanted: int = SUPPORTED
    required: int = 0
    queue_pairs: int = 1
    queue_size: int = 256
    receive_buffers: int = 128
    receive_buffer_size: int = 2048
    mtu: int = 1500
    inbound_sas: int = 1 << 16
    outbound_sas: int = 1 << 16
    retries: int = 16
    polls: int = 50
    poll_timeout: float = 0.1
