"""Receive filter, packet hash and queue choice of csrc/, configured as ``device.state`` has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native

_LOW_WORDS = 2**64 - 1


class FlowMemory:
    """What ``device.steering.FlowMemory`` is, in memory that worker threads learn into as well."""

    __slots__ = ("_handle",)

    def __init__(self, seed: int) -> None:
        ffi, lib = native.extension()
        handle = lib.vipsec_flow_memory_new(seed)
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vipsec_flow_memory_free)

    @property
    def handle(self) -> Any:
        """``struct vipsec_flow_memory *``, valid as long as this object."""
        return self._handle

    def __len__(self) -> int:
        _, lib = native.extension()
        return lib.vipsec_flow_memory_count(self._handle)

    def sent(self, frame: bytes, queue: int) -> None:
        """A frame of the driver left on transmit queue ``queue``."""
        _, lib = native.extension()
        lib.vipsec_flow_memory_sent(self._handle, frame, len(frame), queue)


class SteeringBlock:
    """One unchanging configuration. ConfigError when it cannot be: no queue pair, a table of a wrong length.

    ``rx`` and ``steering`` are RxFilter and Steering of ``device.state``. ``features``: the negotiated ones.
    ``seed``: 64 random bits. ``flows`` is kept alive as long as this object.
    """

    __slots__ = ("_flows", "_handle")

    def __init__(
        self,
        rx: Any,
        steering: Any,
        features: int,
        flows: FlowMemory | None,
        seed: int,
    ) -> None:
        ffi, lib = native.extension()
        config: Any = ffi.new("struct vipsec_steering_config *")
        config.features, config.hash_seed = features & _LOW_WORDS, seed
        config.flows = ffi.NULL if flows is None else flows.handle
        unicast, multicast = b"".join(rx.unicast), b"".join(rx.multicast)
        arrays: list[Any] = [
            ffi.new("uint8_t[]", unicast or b"\0"),
            ffi.new("uint8_t[]", multicast or b"\0"),
            ffi.new("uint16_t[]", list(rx.vlans)),
            ffi.new("uint8_t[]", steering.key or b"\0"),
            ffi.new("uint16_t[]", steering.table),
        ]
        config.unicast, config.multicast, config.vlans, config.key, config.table = arrays
        config.unicast_count, config.multicast_count = len(rx.unicast), len(rx.multicast)
        config.vlan_count, config.key_len, config.table_len = (
            len(rx.vlans),
            len(steering.key),
            len(steering.table),
        )
        config.hash_types, config.queue_pairs = steering.hash_types, steering.queue_pairs
        config.unclassified_queue, config.rss = steering.unclassified_queue, steering.rss
        config.rx_mode = (
            rx.promisc * lib.VIPSEC_RX_PROMISC
            | rx.allmulti * lib.VIPSEC_RX_ALLMULTI
            | rx.alluni * lib.VIPSEC_RX_ALLUNI
            | rx.nomulti * lib.VIPSEC_RX_NOMULTI
            | rx.nouni * lib.VIPSEC_RX_NOUNI
            | rx.nobcast * lib.VIPSEC_RX_NOBCAST
        )
        config.mac = rx.mac
        handle = lib.vipsec_steering_new(config)
        if handle == ffi.NULL:
            raise ConfigError(
                f"{steering.queue_pairs} queue pairs and a table of {len(steering.table)} queues"
            )
        self._handle = ffi.gc(handle, lib.vipsec_steering_free)
        self._flows = flows

    @property
    def handle(self) -> Any:
        """``struct vipsec_steering *``, valid as long as this object."""
        return self._handle

    def admits(self, frame: bytes) -> bool:
        """``device.steering.admits``; ``frame`` has 14 bytes or more."""
        _, lib = native.extension()
        return bool(lib.vipsec_steering_admits(self._handle, frame, len(frame)))

    def choose(self, frame: bytes, live: Collection[int] | None = None) -> tuple[int | None, tuple[int, int]]:
        """The receive queue of ``frame``, and its hash value and report."""
        ffi, lib = native.extension()
        value: Any = ffi.new("uint32_t *")
        report: Any = ffi.new("uint32_t *")
        words = ffi.NULL if live is None else ffi.new("uint64_t[]", bits(live))
        count = 0 if live is None else len(bits(live))
        queue = lib.vipsec_steering_choose(self._handle, words, count, frame, len(frame), value, report)
        return None if queue < 0 else queue, (value[0], report[0])


def bits(queues: Iterable[int]) -> list[int]:
    """Queue numbers as 64-bit words, lowest number in the lowest bit."""
    queues = set(queues)
    number = sum(1 << queue for queue in queues)
    return [number >> 64 * word & _LOW_WORDS for word in range(max(queues, default=0) // 64 + 1)]


def toeplitz(key: bytes, data: bytes, *, portable: bool = False) -> int:
    """The hash of RSS over 0..36 bytes, a multiple of four."""
    _, lib = native.extension()
    return lib.vipsec_toeplitz(key, len(key), data, len(data) // 4, portable)
