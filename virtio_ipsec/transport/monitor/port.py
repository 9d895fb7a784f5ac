"""A served port whose queues are looked on at, and the two edges at which foreign drivers reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import DeviceStateError, RingError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import QueueOptions
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.monitor.events import (
    Began,
    ConfigRead,
    ConfigWritten,
    Ended,
    FeaturesRead,
    FeaturesWritten,
    GenerationRead,
    Kicked,
    MembersChanged,
    QueueEnabled,
    QueueReset,
    Recorder,
    Register,
    StatusRead,
    StatusWritten,
)
from virtio_ipsec.transport.monitor.queues import Watch, Watched, WatchedFast, watched
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.transport.uplink import Uplink
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.connection import Connection, Message
from virtio_ipsec.transport.vhost_user.messages import FRONTEND, MAX_CONFIG, U64, Config, Request
from virtio_ipsec.transport.vhost_user.session import Session
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.header import COMMON, DEVICE, DEVICE_SIZE, NOTIFY, STRUCTURES_BAR
from virtio_ipsec.transport.virtio_pci.tables import CommonCfg
from virtio_ipsec.wire.numbers import Status

_WORD = 0xFFFFFFFF


class WatchedPort(ServedPort):
    """Notes what its driver does to queues; what it does to registers, the edge notes."""

    def __init__(self, device: Device, uplink: Uplink, recorder: Recorder, *, name: str = "driver") -> None:
        self.recorder = recorder
        self._watches: dict[int, Watch] = {}
        self._kick_fds: dict[int, int] = {}
        #: What the counters of those showed when the device was reset last.
        self._counts: dict[int, int] = {}
        super().__init__(device, uplink, name=name)

    def look(self) -> None:
        """See what has been done to all rings."""
        for watch in list(self._watches.values()):
            watch.look()

    def new_queue(self, index: int, place: QueuePlace, memory: GuestMemory) -> DeviceQueue:
        """A queue with its watch."""
        features = self.negotiated
        queue: Watched
        if native.available():
            slot = self._slots[index]
            options = QueueOptions(slot.call.fd, slot.err.fd, place.state, place.inflight)
            queue = WatchedFast(memory, place.layout, features, options)
            queue.set_log(place.log)
        else:
            queue = watched(memory, place.layout, features)
            if place.state is not None:
                queue.restore(place.state)
        queue.watch = Watch(
            self.recorder,
            index,
            memory,
            queue,
            features=features,
            is_admin=index == self.device.admin_queue_index,
            look_around=self.look,
        )
        self._watches[index] = queue.watch
        return queue

    def extend_memory(self, memory: GuestMemory) -> bool:
        self.look()
        return super().extend_memory(memory)

    def start_queue(self, index: int, place: QueuePlace) -> None:
        try:
            super().start_queue(index, place)
        except (RingError, DeviceStateError) as error:
            self.recorder.note(QueueEnabled(index, place.layout, str(error)))
            raise
        self.recorder.note(QueueEnabled(index, place.layout))

    def stop_queue(self, index: int) -> int:
        self.look()
        self._watches.pop(index, None)
        return super().stop_queue(index)

    def set_kick(self, index: int, fd: int | None) -> None:
        self._kick_fds.pop(index, None)
        super().set_kick(index, fd)
        if fd is not None:
            self._kick_fds[index] = fd
            self._counts[index] = 0

    def reset(self, *, is_lost: bool = False) -> None:
        self.look()
        self._watches.clear()
        super().reset(is_lost=is_lost)
        self._counts = {index: _count(fd) for index, fd in self._kick_fds.items()}

    def disconnect(self) -> None:
        self.look()
        self._watches.clear()
        self._kick_fds.clear()
        super().disconnect()
        self.recorder.note(Ended())

    def note_kicks(self) -> None:
        """Note the queues whose eventfd was rung since the last reset: nobody reads those, they can only be asked."""
        for index, fd in self._kick_fds.items():
            if _count(fd) != self._counts.get(index, 0):
                self.recorder.note(Kicked(index))


def _count(fd: int) -> int:
    """The counter of an eventfd, which stays as it is."""
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("eventfd-count:")), 0)


class WatchedSession(Session):
    """vhost-user: with the IPsec binding each register access of the driver is a message; without it the messages are
    those of a hypervisor, and only the features that its guest has accepted are the driver's own."""

    def __init__(self, port: WatchedPort, connection: Connection, began: Began) -> None:
        super().__init__(port, connection)
        self._watched = port
        self._began = began

    def obey(self, message: Message) -> None:
        port, request = self._watched, message.request
        if request in (Request.SET_STATUS, Request.RESET_DEVICE, Request.SET_FEATURES):
            port.look()
        before = int(port.device.status)
        ready = (
            request == Request.SET_STATUS and message.payload[:1] and message.payload[0] & Status.DRIVER_OK
        )
        if self._binds and ready and not before & Status.DRIVER_OK:
            port.note_kicks()
        was_bound = self._binds
        super().obey(message)
        if self._binds and not was_bound:
            shows = frozenset({"registers", "notifications"})
            port.recorder.note(replace(self._began, shows=shows, offered=port.device.offered_features))
        if self._binds:
            self._note(message)
        else:
            self._note_hidden(request, before)

    def _note(self, message: Message) -> None:
        note, device = self._watched.recorder.note, self._watched.device
        match message.request:
            case Request.SET_STATUS:
                note(StatusWritten(U64.parse(message.payload), int(device.status)))
            case Request.RESET_DEVICE:
                note(StatusWritten(0, int(device.status)))
            case Request.GET_STATUS:
                note(StatusRead(int(device.status)))
            case binding.GET_DEVICE:
                note(FeaturesRead(device.offered_features))
                note(GenerationRead(device.config_generation))
            case binding.SET_DRIVER_FEATURES:
                note(FeaturesWritten(binding.FEATURE_WORDS.parse(message.payload)))
            case Request.GET_CONFIG:
                asked = _config(message)
                if 0 < asked.size <= MAX_CONFIG - asked.offset:
                    note(ConfigRead(asked.offset, device.read_config(asked.offset, asked.size)))
            case Request.SET_CONFIG:
                asked = _config(message)
                note(ConfigWritten(asked.offset, asked.data))
            case Request.GET_VRING_BASE:
                note(QueueReset(int.from_bytes(message.payload[:4], "little")))

    def _note_hidden(self, request: int, before: int) -> None:
        note, device = self._watched.recorder.note, self._watched.device
        now = int(device.status)
        if request == Request.SET_FEATURES and not before & Status.FEATURES_OK and now & Status.FEATURES_OK:
            note(StatusWritten(0, 0))
            note(FeaturesWritten(self._watched.negotiated))
        if now != before:
            note(StatusWritten(now, now))


def _config(message: Message) -> Config:
    return cast(Config, FRONTEND[message.request].payload.parse(message.payload))


class WatchedFunction(PciFunction):
    """virtio-pci: every access to the structures in the BAR, and what becomes of the virtual functions."""

    def __init__(
        self, port: WatchedPort, *, members: SriovGroup | None = None, notifications: bool = True
    ) -> None:
        self._watched = port
        self._members = members
        self._queue = 0
        self._select = 0
        self._word = 0
        super().__init__(port, members=members, notifications=notifications)

    def read(self, region: int, offset: int, length: int) -> bytes:
        data = super().read(region, offset, length)
        if region == STRUCTURES_BAR:
            self._note_read(offset, data)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        if region != STRUCTURES_BAR:
            with self._noting_members():
                super().write(region, offset, data)
            return
        written = [
            (register, int.from_bytes(data[begin : begin + register.width], "little"))
            for register, begin in _registers(offset, len(data))
        ]
        device = self._watched.device
        before = int(device.status)
        for register, value in written:
            if register is CommonCfg.device_status:
                self._watched.look()
                if value & Status.DRIVER_OK & ~before:
                    self._watched.note_kicks()
        super().write(region, offset, data)
        for register, value in written:
            self._note_write(register, value, before)
        note = self._watched.recorder.note
        if DEVICE <= offset < DEVICE + DEVICE_SIZE:
            note(ConfigWritten(offset - DEVICE, data))
        elif offset >= NOTIFY:
            note(Kicked((offset - NOTIFY) // self._stride))

    def reset(self) -> None:
        with self._noting_members():
            super().reset()

    def disconnect(self) -> None:
        """What becomes of the virtual functions then is noted behind the driver's end: it is not its doing."""
        with self._noting_members():
            super().disconnect()

    @contextmanager
    def _noting_members(self) -> Iterator[None]:
        """Note what happens inside to the virtual functions."""
        members, self._members = self._members, None
        if members is None:
            yield
            return
        before = members.num_vfs
        self._watched.look()
        try:
            yield
        finally:
            self._members = members
            if members.num_vfs != before:
                self._watched.recorder.note(MembersChanged(members.num_vfs))

    @property
    def offered(self) -> int:
        """All features that a driver finds: the device's and the function's."""
        return self._common.features

    @property
    def _stride(self) -> int:
        bells = self.doorbells()
        return bells[1].offset - bells[0].offset

    def _note_read(self, offset: int, data: bytes) -> None:
        note = self._watched.recorder.note
        if DEVICE <= offset < DEVICE + DEVICE_SIZE:
            note(ConfigRead(offset - DEVICE, data))
        for register, begin in _registers(offset, len(data)):
            value = int.from_bytes(data[begin : begin + register.width], "little")
            note(Register(_name(register), False, value, register.width, self._queue))
            if register is CommonCfg.device_status:
                note(StatusRead(value))
            elif register is CommonCfg.config_generation:
                note(GenerationRead(value))
            elif register is CommonCfg.device_feature:
                note(FeaturesRead(value))

    def _note_write(self, register: CommonCfg, value: int, before: int) -> None:
        note = self._watched.recorder.note
        if register is CommonCfg.queue_select:
            self._queue = value
        elif register is CommonCfg.driver_feature_select:
            self._select = value
        elif register is CommonCfg.driver_feature and self._select < 4:
            shift = 32 * self._select
            self._word = self._word & ~(_WORD << shift) | value << shift
            if before & Status.FEATURES_OK:
                note(FeaturesWritten(self._word))
        note(Register(_name(register), True, value, register.width, self._queue))
        if register is CommonCfg.device_status:
            if value & Status.FEATURES_OK & ~before:
                note(FeaturesWritten(self._word))
            if not value:
                self._word = self._select = self._queue = 0
            note(StatusWritten(value, int(self._watched.device.status)))
        elif register is CommonCfg.queue_reset and value == 1:
            note(QueueReset(self._queue))


def _registers(offset: int, length: int) -> list[tuple[CommonCfg, int]]:
    """The registers of the common configuration that an access covers whole, and where in it they begin."""
    end = offset + length
    return [
        (register, COMMON + register.offset - offset)
        for register in CommonCfg
        if offset <= COMMON + register.offset and COMMON + register.end <= end
    ]


def _name(register: CommonCfg) -> str:
    """The field's name; the halves of an address are one."""
    return register.name.removesuffix("_lo").removesuffix("_hi")
