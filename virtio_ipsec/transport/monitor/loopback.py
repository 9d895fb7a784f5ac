"""A watched device in the same process: a loopback that notes every access of the driver."""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.rings import Rings
from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.errors import DeviceStateError, RingError
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.monitor.events import (
    Began,
    ConfigRead,
    ConfigWritten,
    Ended,
    FeaturesRead,
    FeaturesWritten,
    GenerationRead,
    Kicked,
    QueueEnabled,
    QueueReset,
    Recorder,
    StatusRead,
    StatusWritten,
)
from virtio_ipsec.transport.monitor.faces import Face, Questions, make_device
from virtio_ipsec.transport.monitor.queues import Watch, watched
from virtio_ipsec.wire.numbers import Feature, mask

#: Bytes of guest memory: receive buffers of 64 KiB on two queues, and more.
_MEMORY = 8 << 20
_CARRIED = TRANSPORT_BITS & mask(Feature.F_RING_RESET, Feature.F_ADMIN_VQ, Feature.F_NOTIF_CONFIG_DATA)
#: How often the status is read after a reset before it reads 0.
_SLOW_RESET = 2


class WatchedRings(Rings):
    """The device's rings, each queue with its watch."""

    def __init__(self, device: Device, memory: GuestMemory, recorder: Recorder, admin_queues: int) -> None:
        super().__init__(device, memory)
        self._recorder = recorder
        self._admin_queues = range(self.admin_queue_index, self.admin_queue_index + admin_queues)
        self._making = 0
        self.watches: dict[int, Watch] = {}

    def queue_max_size(self, index: int) -> int:
        if index in self._admin_queues:
            return self.device.config.queue_size
        return super().queue_max_size(index)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        self._making = index
        super().enable_queue(index, layout)

    def _new_queue(self, layout: QueueLayout) -> DeviceQueue:
        features, index = self.device.context.features, self._making
        queue = watched(self.memory, layout, features)
        is_admin = index in self._admin_queues
        queue.watch = Watch(self._recorder, index, self.memory, queue, features=features, is_admin=is_admin)
        self.watches[index] = queue.watch
        return queue

    def _work(self, index: int) -> Callable[[Chain, list[bytes]], int] | None:
        return super()._work(self.admin_queue_index if index in self._admin_queues else index)

    def look(self) -> None:
        """See what has been done to all rings."""
        for watch in self.watches.values():
            watch.look()

    def reset_queue(self, index: int) -> None:
        super().reset_queue(index)
        self.watches.pop(index, None)

    def reset(self) -> None:
        super().reset()
        self.watches.clear()


class WatchedLoopback(Loopback):
    """A link to a device with this face, which notes in ``recorder`` what is done with it."""

    def __init__(
        self, face: Face, recorder: Recorder, rng: Callable[[int], bytes], *, rough: bool = True
    ) -> None:
        self.questions = Questions(face, rough=rough)
        self.recorder = recorder
        device = make_device(face, recorder.dialect, self.questions, rng)
        super().__init__(device, memory_size=_MEMORY)
        self.watched = WatchedRings(device, self.memory, recorder, face.admin_queues)
        self.rings = self.watched
        self._resetting = 0
        self._before = 0
        #: Reads of the configuration in this life: after the first one it is another generation.
        self._reads = 0
        recorder.note(
            Began(
                face.name,
                device.offered_features,
                _CARRIED,
                frozenset({"registers", "notifications"}),
                self.rings.queue_count,
                device.config.max_queue_pairs,
                self.rings.admin_queue_index,
                face.admin_queues,
                device.config.mtu,
            )
        )

    def close(self) -> None:
        """The driver is gone."""
        self.watched.look()
        self.recorder.note(Ended())

    # Registers.

    def transport_features(self) -> int:
        """As on a bus: queue reset, an administration virtqueue, and notification data of the device's choice."""
        return _CARRIED

    def device_features(self) -> int:
        word = super().device_features()
        self.recorder.note(FeaturesRead(word))
        return word

    def write_driver_features(self, word: int) -> None:
        super().write_driver_features(word)
        self.recorder.note(FeaturesWritten(word))

    def status(self) -> int:
        """Device status; a reset takes a while to show."""
        if self._resetting:
            self._resetting -= 1
            value = self._before
        else:
            value = super().status()
        self.recorder.note(StatusRead(value))
        return value

    def write_status(self, value: int) -> None:
        if value == 0:
            self.watched.look()
            self._before, self._resetting = int(self.device.status), _SLOW_RESET
            self._reads = 0
        else:
            self._resetting = 0
        super().write_status(value)
        self.recorder.note(StatusWritten(value, int(self.device.status)))

    def config_generation(self) -> int:
        value = (super().config_generation() + (self._reads > 0)) & 0xFF
        self.recorder.note(GenerationRead(value))
        return value

    def read_config(self, offset: int, length: int) -> bytes:
        data = super().read_config(offset, length)
        self._reads += 1
        self.recorder.note(ConfigRead(offset, data))
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        super().write_config(offset, data)
        self.recorder.note(ConfigWritten(offset, data))

    # Queues.

    def admin_queue_num(self) -> int:
        """As many as the face has."""
        return self.questions.face.admin_queues

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        try:
            super().enable_queue(index, layout)
        except (DeviceStateError, RingError) as error:
            self.recorder.note(QueueEnabled(index, layout, str(error)))
            raise
        self.recorder.note(QueueEnabled(index, layout))

    def reset_queue(self, index: int) -> None:
        self.watched.look()
        super().reset_queue(index)
        self.recorder.note(QueueReset(index))

    def kick(self, index: int) -> None:
        self.recorder.note(Kicked(index))
        self.watched.look()
        super().kick(index)

    def inject(self, frame: bytes) -> None:
        self.watched.look()
        super().inject(frame)
