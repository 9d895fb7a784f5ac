"""What a vhost-user back-end offers for a port, and how a driver's choice reaches the device."""

from __future__ import annotations

from virtio_ipsec.device.features import unmet
from virtio_ipsec.fastpath import native
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.messages import F_LOG_ALL, F_PROTOCOL_FEATURES, ProtocolFeature, bits
from virtio_ipsec.wire.numbers import Feature, has, mask

#: What only the control queue governs. Front-ends keep that queue to themselves (QEMU, DPDK virtio-user), so the
#: device would never hear what the driver asks for; the binding carries them all.
_GOVERNED = mask(
    Feature.NET_F_CTRL_GUEST_OFFLOADS,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_RSS,
    Feature.NET_F_HASH_REPORT,
)
_LOW = (1 << 64) - 1

_ALWAYS = bits(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.NET_MTU,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
)
#: What csrc/ does and Python's rings do not.
_WITH_C = bits(ProtocolFeature.LOG_SHMFD, ProtocolFeature.INFLIGHT_SHMFD)
#: Pairs whose queues' indices, the administration queue's among them, have eight bits.
_MOST_PAIRS = 127


def device_features(port: ServedPort) -> int:
    """The device features of GET_FEATURES."""
    return port.device.offered_features & _LOW & ~binding.HIDDEN & ~_GOVERNED & ~binding.TRANSPORT


def offered(port: ServedPort) -> int:
    """The answer to GET_FEATURES."""
    return device_features(port) | 1 << F_PROTOCOL_FEATURES | (1 << F_LOG_ALL if native.available() else 0)


def offered_protocol(port: ServedPort) -> int:
    """The answer to GET_PROTOCOL_FEATURES."""
    features = _ALWAYS | (_WITH_C if native.available() else 0)
    device = port.device
    binds = has(device.offered_features, Feature.F_ADMIN_VQ) and port.operator is None
    if binds and device.config.max_queue_pairs <= _MOST_PAIRS:
        features |= 1 << binding.PROTOCOL_FEATURE
    return features


def completed(word: int, offer: int) -> int:
    """The driver's choice, with CTRL_VQ where something needs it: a front-end that keeps the control queue to itself
    accepts MQ and others without it (QEMU and DPDK do)."""
    control = mask(Feature.NET_F_CTRL_VQ)
    return word | control if unmet(word) and offer & control else word
