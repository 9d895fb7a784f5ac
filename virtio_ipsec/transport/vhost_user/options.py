"""What our front-end makes use of, and how a link behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.messages import ProtocolFeature, bits
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.numbers import Feature, mask

_F = ProtocolFeature
#: What this front-end makes use of when a back-end has it.
PROTOCOL: Final = bits(
    _F.MQ,
    _F.LOG_SHMFD,
    _F.REPLY_ACK,
    _F.BACKEND_REQ,
    _F.CONFIG,
    _F.INFLIGHT_SHMFD,
    _F.RESET_DEVICE,
    _F.CONFIGURE_MEM_SLOTS,
    _F.STATUS,
) | (1 << binding.PROTOCOL_FEATURE)
#: Features that need a control virtqueue or, without a configuration space, a field of it.
CONTROL: Final = mask(
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_CTRL_MAC_ADDR,
    Feature.NET_F_CTRL_GUEST_OFFLOADS,
    Feature.NET_F_GUEST_ANNOUNCE,
    Feature.NET_F_MQ,
    Feature.NET_F_RSS,
    Feature.NET_F_HASH_REPORT,
    Feature.NET_F_NOTF_COAL,
    Feature.NET_F_VQ_NOTF_COAL,
)
#: Bits of the legacy interface (GSO, NOTIFY_ON_EMPTY, ANY_LAYOUT). Back-ends offer them because they do not know which
#: interface the driver uses; hypervisors take them away from one that uses the other.
LEGACY: Final = 1 << 6 | 1 << 24 | 1 << 27
#: Those that are about a field of the configuration space.
CONFIGURED: Final = mask(
    Feature.NET_F_MAC, Feature.NET_F_STATUS, Feature.NET_F_MTU, Feature.NET_F_SPEED_DUPLEX
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a link behaves. ``protocol``: the protocol features it may acknowledge. ``memory`` in bytes, ``patience`` in
    seconds for each answer. ``config`` stands in for a configuration space that the back-end does not have; a MAC
    of zeros is none. ``queue_size`` is the largest queue where the back-end does not say."""

    protocol: int = PROTOCOL
    memory: int = 64 << 20
    patience: float = 5.0
    config: NetConfig = field(default_factory=NetConfig)
    queue_size: int = 256
