"""The IPsec binding of vhost-user: what carries feature bits 41 and 64 to 127 and the administration virtqueue.

Specified in ``spec/vhost-user-binding.md``. Not a standard: its numbers are of a private range that nobody assigned.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from virtio_ipsec.errors import WireError
from virtio_ipsec.transport.payload import Layout
from virtio_ipsec.transport.vhost_user.messages import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND,
    Kind,
    ProtocolFeature,
)
from virtio_ipsec.wire.numbers import Feature, mask

#: Bit number of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES that announces and acknowledges the binding.
PROTOCOL_FEATURE: Final = 56
#: Requests of a front-end that has acknowledged it.
GET_DEVICE: Final = 0x49500001
SET_DRIVER_FEATURES: Final = 0x49500002
#: Value of ``version`` in what GET_DEVICE answers.
VERSION: Final = 1
#: Protocol features without which a back-end does not announce the binding, nor a front-end acknowledge it.
NEEDED: Final = (
    1 << ProtocolFeature.MQ
    | 1 << ProtocolFeature.REPLY_ACK
    | 1 << ProtocolFeature.CONFIG
    | 1 << ProtocolFeature.STATUS
)
#: Device features that GET_FEATURES and SET_FEATURES never carry, with or without the binding.
HIDDEN: Final = mask(Feature.F_ADMIN_VQ)
#: Bits of GET_FEATURES and SET_FEATURES that are no device features.
TRANSPORT: Final = 1 << F_LOG_ALL | 1 << F_PROTOCOL_FEATURES
_WORDS = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What GET_DEVICE answers. Feature words are numbers of 128 bits; queues are counted without the
    administration virtqueues, whose first has ``admin_queue_index``."""

    config_generation: int
    num_queues: int
    admin_queue_index: int
    admin_queue_num: int
    queue_size: int
    device_features: int
    driver_features: int


_DEVICE = struct.Struct("=IIHHHH4I4I")
_FEATURES = struct.Struct("=4I")


def _words(features: int) -> tuple[int, ...]:
    if features & ~_WORDS:
        raise WireError(f"{features:#x} has more than 128 feature bits")
    return tuple(features >> 32 * index & 0xFFFFFFFF for index in range(4))


def _number(words: tuple[int, ...]) -> int:
    return sum(word << 32 * index for index, word in enumerate(words))


def _build_device(info: DeviceInfo) -> bytes:
    return _DEVICE.pack(
        VERSION,
        info.config_generation & 0xFFFFFFFF,
        info.num_queues,
        info.admin_queue_index,
        info.admin_queue_num,
        info.queue_size,
        *_words(info.device_features),
        *_words(info.driver_features),
    )


def _parse_device(payload: bytes) -> DeviceInfo:
    version, generation, queues, index, count, size, *words = _DEVICE.unpack(payload)
    if version != VERSION:
        raise WireError(f"version {version} of the IPsec binding, not {VERSION}")
    return DeviceInfo(
        generation, queues, index, count, size, _number(tuple(words[:4])), _number(tuple(words[4:]))
    )


DEVICE_INFO: Final[Layout[DeviceInfo]] = Layout(
    "IPsec device", _DEVICE.size, _DEVICE.size, _build_device, _parse_device
)
FEATURE_WORDS: Final[Layout[int]] = Layout(
    "feature words",
    _FEATURES.size,
    _FEATURES.size,
    lambda features: _FEATURES.pack(*_words(features)),
    lambda payload: _number(_FEATURES.unpack(payload)),
)

#: The front-end's requests where the binding is acknowledged: those of the protocol and these two.
WITH_BINDING: Final[Mapping[int, Kind]] = MappingProxyType(
    {
        **FRONTEND,
        GET_DEVICE: Kind(answer=DEVICE_INFO),
        SET_DRIVER_FEATURES: Kind(FEATURE_WORDS),
    }
)
