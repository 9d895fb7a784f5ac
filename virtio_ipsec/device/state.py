"""What the control plane decides and the data plane reads: one mutable record per device.

The control plane (admin commands, control virtqueue, status) writes; ``transmit``, ``receive``, ``steering``,
``offloads`` and ``flow_filter`` only read it, except for ``counters``, ``flows``, the
compiled filter, and the runtime SAs, which count for themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.counters import Counters
from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule
from virtio_ipsec.wire.net_header import NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, has

if TYPE_CHECKING:
    from virtio_ipsec.device.fast import FastPath
    from virtio_ipsec.device.flow_filter import FlowFilter
    from virtio_ipsec.device.steering import FlowMemory


@dataclass(frozen=True, slots=True)
class Received:
    """One frame for the driver: receive queue number (0-based pair index) and header + frame bytes.

    ``num_buffers`` in the header is 1; the ring side rewrites it when it spreads the bytes over several.
    """

    queue: int
    buffer: bytes


@dataclass(frozen=True, slots=True)
class RxFilter:
    """Receive mode, MAC table and VLAN table (virtio v1.4 5.1.6.5.1 - 5.1.6.5.3)."""

    mac: bytes
    promisc: bool = False
    allmulti: bool = False
    alluni: bool = False
    nomulti: bool = False
    nouni: bool = False
    nobcast: bool = False
    unicast: frozenset[bytes] = frozenset()
    multicast: frozenset[bytes] = frozenset()
    vlans: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Steering:
    """Queue pairs in use and the hash set-up of MQ_RSS_CONFIG or MQ_HASH_CONFIG (virtio v1.4 5.1.6.5.5-6).

    ``hash_types`` 0 means no hash is calculated. ``rss`` False: automatic steering. ``table`` holds receive
    queue numbers (0-based pair index), its length is a power of two.
    """

    queue_pairs: int = 1
    rss: bool = False
    hash_types: int = 0
    key: bytes = b""
    table: tuple[int, ...] = (0,)
    unclassified_queue: int = 0


@dataclass(slots=True)
class FilterObjects:
    """Live flow-filter objects by id. ``generation`` changes with each change, for compiled copies."""

    groups: dict[int, FfGroup] = field(default_factory=dict)
    classifiers: dict[int, FfClassifier] = field(default_factory=dict)
    rules: dict[int, FfRule] = field(default_factory=dict)
    generation: int = 0
    #: The rules compiled for look-up, and which generation they are: the receive path's own.
    compiled: FlowFilter | None = None


@dataclass(slots=True)
class DataPlaneContext:
    """Everything that the packet path may look at."""

    config: DeviceConfig
    rng: Callable[[int], bytes]
    dialect: Dialect
    #: Negotiated features, fixed at FEATURES_OK; 0 before.
    features: int
    #: Header codec for ``features``.
    header: NetHdrCodec
    rx_filter: RxFilter
    #: Outbound SAs by object id.
    outbound: dict[int, AnyOutboundSa] = field(default_factory=dict)
    #: Inbound SAs by object id, and (id, SA) by (IP protocol 50/51, SPI): ledger E57.
    inbound: dict[int, AnyInboundSa] = field(default_factory=dict)
    inbound_by_spi: dict[tuple[int, int], tuple[int, AnyInboundSa]] = field(default_factory=dict)
    filters: FilterObjects = field(default_factory=FilterObjects)
    steering: Steering = field(default_factory=Steering)
    #: GUEST_* bits of CTRL_GUEST_OFFLOADS_SET, starting from the negotiated ones.
    guest_offloads: int = 0
    #: Receive queue numbers (0-based pair index) that are enabled: written by ``rings``. None: all.
    live_rx_queues: set[int] | None = None
    #: Flows that automatic steering has learned from what was sent; forgotten at reset.
    flows: FlowMemory | None = None
    counters: Counters = field(default_factory=Counters)
    #: Inbound SAs whose engine is Python's.
    python_inbound: int = 0
    #: The C tables, when the device has a fast path.
    fast: FastPath | None = None
    #: The device's memory is being copied to go on elsewhere: no SA is made, for none could go along (ledger E80).
    is_leaving: bool = False

    def has(self, feature: Feature) -> bool:
        """Whether the feature was negotiated."""
        return has(self.features, feature)
