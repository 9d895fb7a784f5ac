"""The common configuration structure as a device shows it (virtio v1.4 4.1.4.3): its registers, and those of queues.

A read of any width gives the bytes of the registers that it covers. A write acts on those that it covers whole and on
no others, which is what drivers are told to do (4.1.3.1). A queue is at work in the port while it is enabled, the
function is a bus master and its rings lie in memory that the client shares; otherwise its position waits here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from virtio_ipsec.errors import DeviceStateError, RingError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.transport.virtio_pci.irqs import Interrupts
from virtio_ipsec.transport.virtio_pci.tables import FEATURE_WORDS, FIELD_NEEDS, NO_VECTOR, CommonCfg
from virtio_ipsec.wire.numbers import Feature, Status, has, mask

_log = logging.getLogger(__name__)

_WORD: Final = 0xFFFFFFFF
#: Bytes with all fields of the device configuration.
_CONFIGURATION: Final = 64
#: What ``queue_notif_config_data`` shows of queue 0; others follow. Not the index: what a driver sends tells whether
#: it has read this.
NOTIF_CONFIG_DATA: Final = 0x4000


@dataclass(slots=True)
class QueueRegisters:
    """What the driver has written about one queue. ``state``: ring position of one that is enabled and not at work;
    ``waits``: for memory that its rings lie in."""

    size: int
    desc: int = 0
    driver: int = 0
    device: int = 0
    enabled: bool = False
    state: int | None = None
    waits: bool = False

    @property
    def layout(self) -> QueueLayout:
        """Where it lies."""
        return QueueLayout(self.size, self.desc, self.driver, self.device)


class CommonConfiguration:
    """The registers of ``port``'s device. ``offers``: features of the transport itself, beside the device's.

    ``may_work``: whether queues may be worked on now. Everything in the control thread of the port.
    """

    def __init__(
        self,
        port: ServedPort,
        interrupts: Interrupts,
        offers: int,
        may_work: Callable[[], bool],
    ) -> None:
        self._port = port
        self._interrupts = interrupts
        self._offers = offers
        self._may_work = may_work
        self._device_select = self._driver_select = self._queue_select = 0
        self._accepted = 0
        self._generation = 0
        self._seen = self._configuration()
        self._queues: list[QueueRegisters] = []
        self.forget()

    # What the function asks.

    @property
    def features(self) -> int:
        """All that is offered."""
        return self._port.device.offered_features | self._offers

    @property
    def negotiated(self) -> int:
        """The features in force, those of the transport too; 0 before FEATURES_OK."""
        word = self._port.negotiated
        return word | self._accepted if word else 0

    @property
    def queues(self) -> tuple[QueueRegisters, ...]:
        """By virtqueue index."""
        return tuple(self._queues)

    @property
    def driver_features(self) -> int:
        """What the driver has written, for the transport too."""
        return self._port.device.driver_features | self._accepted

    def accept_own(self, word: int) -> int:
        """As the driver's choice of the transport's features; what of it is the device's."""
        self._accepted = word & self._offers
        return word & ~self._offers

    def set_queue(self, index: int, layout: QueueLayout, state: int | None) -> None:
        """A queue of a function that was stopped lies here; ``state``: and is enabled, at this ring position."""
        self._queues[index] = QueueRegisters(
            layout.size, layout.desc, layout.driver, layout.device, enabled=state is not None, state=state
        )

    def forget(self) -> None:
        """After a reset of the device: registers are as at power-on."""
        port = self._port
        self._device_select = self._driver_select = self._queue_select = 0
        self._accepted = 0
        size = port.device.queue_max_size(0)
        self._queues = [QueueRegisters(size) for _ in range(port.queue_count)]
        self._interrupts.unmap()

    def stop(self) -> None:
        """No queue is at work until :meth:`work`; where they are is kept."""
        for index, queue in enumerate(self._queues):
            if self._port.started(index):
                queue.state = self._port.stop_queue(index)

    def work(self) -> None:
        """Queues that are enabled are at work, if they may be. One whose rings are not in memory waits for other
        memory."""
        if not self._may_work():
            self.stop()
            return
        for index, queue in enumerate(self._queues):
            if queue.enabled and not self._port.started(index):
                try:
                    self._start(index)
                except (RingError, DeviceStateError) as error:
                    if not queue.waits:
                        _log.warning("%s: queue %d waits: %s", self._port.name, index, str(error))
                    queue.waits = True

    def _start(self, index: int) -> None:
        queue = self._queues[index]
        self._port.set_enabled(index, True)
        self._port.start_queue(index, QueuePlace(queue.layout, queue.state))
        queue.waits = False

    # Access.

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the structure, 0 behind its end."""
        data = bytearray(length)
        for register in CommonCfg:
            begin, end = max(register.offset, offset), min(register.end, offset + length)
            if begin < end and self._is_there(register):
                value = self.get(register).to_bytes(register.width, "little")
                data[begin - offset : end - offset] = value[begin - register.offset : end - register.offset]
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """What the driver writes."""
        end, acted = offset + len(data), False
        for register in _WRITE:
            if offset <= register.offset and register.end <= end and self._is_there(register):
                begin = register.offset - offset
                self.put(register, int.from_bytes(data[begin : begin + register.width], "little"))
                acted = True
        if not acted:
            self._port.count("ignored_writes")

    def get(self, register: CommonCfg) -> int:
        """What a register shows."""
        return _READ[register](self)

    def put(self, register: CommonCfg, value: int) -> None:
        """What the driver writes into a register that is its to write."""
        _WRITE[register](self, value)

    def _is_there(self, register: CommonCfg) -> bool:
        """Fields of a feature: when it has been negotiated, and before that is known, when it is offered."""
        feature = FIELD_NEEDS.get(register)
        return feature is None or has(self.negotiated or self.features, feature)

    # Features and status.

    def _shown(self, word: int, select: int) -> int:
        return word >> 32 * select & _WORD if select < FEATURE_WORDS else 0

    def _device_feature(self) -> int:
        return self._shown(self.features, self._device_select)

    def _driver_feature(self) -> int:
        return self._shown(self.driver_features, self._driver_select)

    def _accept(self, value: int) -> None:
        if self._driver_select >= FEATURE_WORDS:
            return
        shift = 32 * self._driver_select
        with self._port.lock:
            device = self._port.device
            if device.status & Status.FEATURES_OK:
                return
            word = self.driver_features & ~(_WORD << shift) | value << shift
            device.write_driver_features(self.accept_own(word))

    def _status(self) -> int:
        return int(self._port.device.status)

    def _set_status(self, value: int) -> None:
        port = self._port
        if value == 0:
            port.reset()
            self.forget()
            return
        with port.lock:
            port.device.status = value
        port.wake()

    # Configuration.

    def read_device(self, offset: int, length: int) -> bytes:
        """Bytes of the device-specific configuration."""
        self.generation()
        with self._port.lock:
            return self._port.device.read_config(offset, length)

    def _configuration(self) -> bytes:
        return self._port.device.read_config(0, _CONFIGURATION)

    def generation(self) -> int:
        """Changes when the device configuration has, since it was last asked for or read. Counted by what is seen, so
        that no number of changes in between brings the same value back (4.1.4.3.1)."""
        with self._port.lock:
            now = self._configuration()
        if now != self._seen:
            self._seen = now
            self._generation = self._generation + 1 & 0xFF
        return self._generation

    # Queues.

    def _exists(self, index: int) -> bool:
        port = self._port
        if index == port.device.admin_queue_index:
            return has(self.negotiated or self.features, Feature.F_ADMIN_VQ)
        return index < port.queue_count

    def _queue(self) -> QueueRegisters | None:
        return self._queues[self._queue_select] if self._exists(self._queue_select) else None

    def _idle(self) -> QueueRegisters | None:
        """The selected queue, if it may be changed."""
        queue = self._queue()
        return None if queue is None or queue.enabled else queue

    def _set_size(self, value: int) -> None:
        queue = self._idle()
        packed = has(self.negotiated, Feature.F_RING_PACKED)
        if (
            queue is not None
            and 0 < value <= self._port.device.queue_max_size(self._queue_select)
            and (packed or not value & (value - 1))
        ):
            queue.size = value

    def _vector(self) -> int:
        if self._queue() is None:
            return NO_VECTOR
        return self._interrupts.queue_vector(self._queue_select)

    def _set_vector(self, value: int) -> None:
        if self._queue() is not None:
            self._interrupts.set_queue_vector(self._queue_select, value)

    def _set_config_vector(self, value: int) -> None:
        self._interrupts.config_vector = value

    def _enable(self, value: int) -> None:
        queue = self._idle()
        if value != 1 or queue is None or not self.negotiated:
            return
        queue.state = None
        queue.enabled = True
        if not self._may_work():
            return
        try:
            self._start(self._queue_select)
        except (RingError, DeviceStateError) as error:
            queue.enabled = False
            _log.warning(
                "%s: queue %d cannot be enabled: %s", self._port.name, self._queue_select, str(error)
            )
            with self._port.lock:
                self._port.device.needs_reset()
            self._port.look_soon()

    def _reset_queue(self, value: int) -> None:
        queue, index = self._queue(), self._queue_select
        if value != 1 or queue is None or not queue.enabled:
            return
        if self._port.started(index):
            self._port.stop_queue(index)
        self._queues[index] = QueueRegisters(self._port.device.queue_max_size(index))
        self._interrupts.set_queue_vector(index, NO_VECTOR)

    def _select(self, name: str, value: int) -> None:
        setattr(self, name, value)


_C = CommonConfiguration


def _of_queue(get: Callable[[QueueRegisters], int]) -> Callable[[_C], int]:
    """A register of the selected queue; 0 when there is none (4.1.4.3.1)."""

    def read(common: _C) -> int:
        queue = common._queue()
        return 0 if queue is None else get(queue)

    return read


def _half(name: str, *, high: bool) -> tuple[Callable[[_C], int], Callable[[_C, int], None]]:
    """One half of an address of the selected queue, alone (4.1.3.2)."""
    shift = 32 if high else 0

    def read(common: _C) -> int:
        queue = common._queue()
        return 0 if queue is None else int(getattr(queue, name)) >> shift & _WORD

    def write(common: _C, value: int) -> None:
        queue = common._idle()
        if queue is not None:
            setattr(queue, name, int(getattr(queue, name)) & ~(_WORD << shift) | value << shift)

    return read, write


def _selector(name: str) -> Callable[[_C, int], None]:
    return lambda common, value: common._select(name, value)


_HALVES: Final = {
    CommonCfg.queue_desc_lo: _half("desc", high=False),
    CommonCfg.queue_desc_hi: _half("desc", high=True),
    CommonCfg.queue_driver_lo: _half("driver", high=False),
    CommonCfg.queue_driver_hi: _half("driver", high=True),
    CommonCfg.queue_device_lo: _half("device", high=False),
    CommonCfg.queue_device_hi: _half("device", high=True),
}

_READ: Final[Mapping[CommonCfg, Callable[[_C], int]]] = MappingProxyType(
    {
        CommonCfg.device_feature_select: lambda c: c._device_select,
        CommonCfg.device_feature: _C._device_feature,
        CommonCfg.driver_feature_select: lambda c: c._driver_select,
        CommonCfg.driver_feature: _C._driver_feature,
        CommonCfg.config_msix_vector: lambda c: c._interrupts.config_vector,
        CommonCfg.num_queues: lambda c: c._port.device.queue_count,
        CommonCfg.device_status: _C._status,
        CommonCfg.config_generation: _C.generation,
        CommonCfg.queue_select: lambda c: c._queue_select,
        CommonCfg.queue_size: _of_queue(lambda queue: queue.size),
        CommonCfg.queue_msix_vector: _C._vector,
        CommonCfg.queue_enable: _of_queue(lambda queue: int(queue.enabled)),
        CommonCfg.queue_notify_off: lambda c: c._queue_select if c._queue() is not None else 0,
        **{register: read for register, (read, _) in _HALVES.items()},
        CommonCfg.queue_notif_config_data: lambda c: NOTIF_CONFIG_DATA + c._queue_select & 0xFFFF,
        # A queue reset has ended before anybody can ask.
        CommonCfg.queue_reset: lambda _: 0,
        CommonCfg.admin_queue_index: lambda c: c._port.device.admin_queue_index,
        CommonCfg.admin_queue_num: lambda _: 1,
    }
)
# The order is that of the structure: a write that covers several registers acts in it.
_WRITE: Final[Mapping[CommonCfg, Callable[[_C, int], None]]] = MappingProxyType(
    {
        CommonCfg.device_feature_select: _selector("_device_select"),
        CommonCfg.driver_feature_select: _selector("_driver_select"),
        CommonCfg.driver_feature: _C._accept,
        CommonCfg.config_msix_vector: _C._set_config_vector,
        CommonCfg.device_status: _C._set_status,
        CommonCfg.queue_select: _selector("_queue_select"),
        CommonCfg.queue_size: _C._set_size,
        CommonCfg.queue_msix_vector: _C._set_vector,
        CommonCfg.queue_enable: _C._enable,
        **{register: write for register, (_, write) in _HALVES.items()},
        CommonCfg.queue_reset: _C._reset_queue,
    }
)
#: Features of the transport that every function can have.
NOTIFICATIONS: Final = mask(Feature.F_NOTIFICATION_DATA, Feature.F_NOTIF_CONFIG_DATA)
