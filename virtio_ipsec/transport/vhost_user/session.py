"""One front-end's connection: each message does what it says to the port, or is refused and changes nothing.

Front-ends send messages in their own orders (QEMU announces call descriptors and enables rings before features and
memory), so a message is stored first, and a ring starts as soon as everything that it needs has come.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from virtio_ipsec.errors import DeviceStateError, RingError, TransportError, WireError
from virtio_ipsec.fastpath.rings import inflight_size
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.transport.vhost_user import binding, features
from virtio_ipsec.transport.vhost_user.connection import Connection, Message, close_all, reply, request
from virtio_ipsec.transport.vhost_user.memory import MAX_REGIONS, MemoryTable, Unusable, map_shared
from virtio_ipsec.transport.vhost_user.messages import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND,
    MAX_CONFIG,
    U64,
    VRING_F_LOG,
    BackendRequest,
    Config,
    Inflight,
    Kind,
    Log,
    MemoryRegion,
    MessageError,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFile,
    VringState,
    name_of,
)
from virtio_ipsec.wire.numbers import Feature, Status, has

_log = logging.getLogger(__name__)

_DONE, _REFUSED = 0, 1
#: Refusals of one connection that are logged.
_LOGGED = 10
_STATUS_BYTE = 0xFF


class Refused(TransportError):
    """A message that is understood and cannot be obeyed. Nothing has changed."""


@dataclass(slots=True)
class Vring:
    """What has been said about one ring."""

    size: int = 0
    base: int = 0
    address: VringAddress | None = None
    #: SET_VRING_KICK has come since the ring was last stopped.
    has_kick: bool = False


@dataclass(slots=True)
class _Buffer:
    """The in-flight buffer: its bytes, and how many belong to each ring."""

    view: memoryview
    region: int
    rings: int
    entries: int


@dataclass(slots=True)
class _Answer:
    """What goes back."""

    value: Any
    fds: tuple[int, ...] = field(default=())


class Session:
    """From connection to its end. ``name`` is for the log. All of it in the control thread of the port."""

    def __init__(self, port: ServedPort, connection: Connection) -> None:
        self._port = port
        self._connection = connection
        self._rings = [Vring() for _ in range(port.queue_count)]
        self._table = MemoryTable()
        self._acknowledged = 0
        self._features: int | None = None
        self._log_all = False
        self._log_view: memoryview | None = None
        self._buffer: _Buffer | None = None
        self._status = 0
        self._channel: Connection | None = None
        self._refusals = 0
        #: Descriptors of the message at hand that nobody has taken.
        self._fds: list[int] = []
        port.on_change = self._tell_change
        port.pairs_by_enabling = False

    # The connection.

    def work(self, most: int = 16) -> bool:
        """Obey the messages that have come, ``most`` of them; False when there are none left.

        Raises TransportError when the connection is of no more use.
        """
        for _ in range(most):
            message = self._connection.poll()
            if message is None:
                return False
            self.obey(message)
        return True

    def obey(self, message: Message) -> None:
        """One message. TransportError when it ends the connection."""
        self._fds = list(message.fds)
        try:
            name, kind = self._known(message)
            kind.check(name, message.payload, len(message.fds))
            acknowledges = message.needs_reply and self._has(ProtocolFeature.REPLY_ACK)
            try:
                value = kind.payload.parse(message.payload)
                answer = _HANDLERS[message.request](self, value)
            except (Refused, Unusable, RingError, DeviceStateError, WireError) as error:
                if kind.answer is not None or not acknowledges:
                    raise TransportError(f"{name}: {error}") from error
                self._count_refusal(name, error)
                answer = _Answer(_REFUSED)
            if kind.answer is not None or acknowledges:
                layout = kind.answer or U64
                done = answer or _Answer(_DONE)
                try:
                    self._connection.send(reply(message, layout.build(done.value), done.fds))
                finally:
                    close_all(done.fds)
        finally:
            close_all(self._fds)
            self._fds = []

    def _count_refusal(self, name: str, error: Exception) -> None:
        self._port.count("refused_messages")
        self._refusals += 1
        if self._refusals <= _LOGGED:
            _log.warning("%s: %s refused: %s", self._port.name, name, str(error))

    def _known(self, message: Message) -> tuple[str, Kind]:
        name = name_of(message.request)
        table = binding.WITH_BINDING if self._binds else FRONTEND
        kind = table.get(message.request)
        offered = features.offered_protocol(self._port)
        if message.is_reply or kind is None or message.request not in _HANDLERS:
            raise MessageError(f"{name} is not expected")
        if kind.feature is not None and not offered >> kind.feature & 1:
            raise MessageError(f"{name} needs a protocol feature that is not offered")
        return name, kind

    def close(self) -> None:
        """The end: the device is reset, everything that was shared is let go."""
        self._port.on_change = _nothing
        try:
            self._port.disconnect()
        finally:
            self._table = MemoryTable()
            self._buffer = self._log_view = None
            self._connection.close()
            if self._channel is not None:
                self._channel.close()

    def _has(self, feature: int) -> bool:
        return bool(self._acknowledged >> feature & 1)

    @property
    def _binds(self) -> bool:
        return self._has(binding.PROTOCOL_FEATURE)

    def _take_fd(self) -> int:
        return self._fds.pop(0)

    def _tell_change(self) -> None:
        """The configuration may have changed by itself."""
        with self._port.lock:
            due = self._port.device.take_config_change()
        if due and self._channel is not None and self._has(ProtocolFeature.CONFIG):
            # A front-end that does not read its channel has to look for itself.
            with suppress(TransportError):
                self._channel.send(request(BackendRequest.CONFIG_CHANGE_MSG))

    # Features and status.

    def _get_features(self, _: None) -> _Answer:
        return _Answer(features.offered(self._port))

    def _set_features(self, word: int) -> None:
        offered = features.device_features(self._port)
        wanted = word & ~binding.TRANSPORT
        if wanted & ~offered and not self._binds:
            raise Refused(f"features {wanted & ~offered:#x} are not offered")
        log_all = bool(word >> F_LOG_ALL & 1)
        if log_all:
            self._check_migration()
        if not self._binds and wanted != self._features:
            if any(self._port.started(index) for index in range(len(self._rings))):
                raise Refused("the features change while rings are at work")
            self._features = wanted
            self._negotiate(wanted, offered)
        if log_all != self._log_all:
            self._log_all = log_all
            self._port.set_log(self._log_view if log_all else None)
        if not word >> F_PROTOCOL_FEATURES & 1:
            for index in range(len(self._rings)):
                self._port.set_enabled(index, True)
        self._start_rings()

    def _negotiate(self, wanted: int, offered: int) -> None:
        """The driver's choice, for a front-end without the binding: what its status says later is not all of it."""
        port = self._port
        port.reset()
        port.pairs_by_enabling = not has(wanted, Feature.NET_F_CTRL_VQ)
        with port.lock:
            device = port.device
            device.status = Status.ACKNOWLEDGE
            device.status |= Status.DRIVER
            device.write_driver_features(features.completed(wanted, offered))
            device.status |= Status.FEATURES_OK
            accepted = bool(device.status & Status.FEATURES_OK)
            if accepted and not self._has(ProtocolFeature.STATUS):
                device.status |= Status.DRIVER_OK
        if not accepted:
            _log.warning("%s: the driver's features %#x are not acceptable", port.name, wanted)

    def _get_protocol_features(self, _: None) -> _Answer:
        return _Answer(features.offered_protocol(self._port))

    def _set_protocol_features(self, word: int) -> None:
        if extra := word & ~features.offered_protocol(self._port):
            raise MessageError(f"protocol features {extra:#x} are not offered")
        if word >> binding.PROTOCOL_FEATURE & 1 and binding.NEEDED & ~word:
            raise MessageError(f"the IPsec binding without protocol features {binding.NEEDED & ~word:#x}")
        if self._features is not None and (word ^ self._acknowledged) >> binding.PROTOCOL_FEATURE & 1:
            raise MessageError("the IPsec binding is acknowledged after the features")
        self._acknowledged = word

    def _set_status(self, value: int) -> None:
        if value & ~_STATUS_BYTE:
            raise Refused(f"status {value:#x}")
        port = self._port
        if value == 0:
            self._reset()
            return
        with port.lock:
            device = port.device
            if self._binds:
                device.status = value
            else:
                # QEMU says FEATURES_OK before ACKNOWLEDGE and DRIVER; SET_FEATURES has done all three.
                accepted = device.status & Status.FEATURES_OK
                self._status = value & ~Status.FEATURES_OK | value & accepted
                if value & Status.DRIVER_OK and accepted:
                    device.status |= Status.DRIVER_OK
                if value & Status.FAILED:
                    device.status |= Status.FAILED
        self._start_rings()
        port.wake()

    def _get_status(self, _: None) -> _Answer:
        with self._port.lock:
            status = self._port.device.status
        if not self._binds:
            status = self._status | status & Status.DEVICE_NEEDS_RESET
        return _Answer(int(status))

    def _reset(self) -> None:
        """Device reset. Memory, descriptors and protocol features stay; rings have to be set up anew."""
        self._stop_rings()
        self._port.reset()
        self._features = None
        self._status = 0
        for ring in self._rings:
            ring.size, ring.address, ring.has_kick = 0, None, False

    def _reset_device(self, _: None) -> None:
        self._reset()
        for index in range(len(self._rings)):
            self._port.set_enabled(index, False)

    def _get_device(self, _: None) -> _Answer:
        port = self._port
        with port.lock:
            device = port.device
            info = binding.DeviceInfo(
                config_generation=device.config_generation,
                num_queues=device.queue_count,
                admin_queue_index=device.admin_queue_index,
                admin_queue_num=1,
                queue_size=device.config.queue_size,
                device_features=device.offered_features,
                driver_features=device.driver_features,
            )
        return _Answer(info)

    def _set_driver_features(self, word: int) -> None:
        with self._port.lock:
            device = self._port.device
            if device.status & Status.FEATURES_OK:
                raise Refused("the features are fixed since FEATURES_OK")
            device.write_driver_features(word)

    # Configuration.

    def _get_queue_num(self, _: None) -> _Answer:
        return _Answer(self._port.device.config.max_queue_pairs)

    def _set_mtu(self, mtu: int) -> None:
        if not 68 <= mtu <= self._port.device.config.mtu:
            raise Refused(f"MTU {mtu} of a port that carries 68 to {self._port.device.config.mtu}")

    def _get_config(self, wanted: Config) -> _Answer:
        if not wanted.size or wanted.offset + wanted.size > MAX_CONFIG:
            return _Answer(Config(wanted.offset, 0, wanted.flags))
        with self._port.lock:
            data = self._port.device.read_config(wanted.offset, wanted.size)
        return _Answer(Config(wanted.offset, wanted.size, wanted.flags, data))

    def _set_config(self, written: Config) -> None:
        if written.flags != Config.MIGRATION:
            raise Refused("nothing in the configuration is writable")

    def _set_channel(self, _: None) -> None:
        fd = self._take_fd()
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise Refused("the back-end channel is no socket")
            channel = Connection(socket.socket(fileno=fd), patience=0)
        except BaseException:
            os.close(fd)
            raise
        if self._channel is not None:
            self._channel.close()
        self._channel = channel

    # Memory.

    def _set_mem_table(self, regions: tuple[MemoryRegion, ...]) -> None:
        if len(regions) != len(self._fds):
            raise MessageError(f"{len(regions)} memory regions with {len(self._fds)} file descriptors")
        self._use(MemoryTable.of(regions, self._fds))

    def _add_region(self, region: MemoryRegion) -> None:
        self._use(self._table.with_region(region, self._fds[0]))

    def _remove_region(self, region: MemoryRegion) -> None:
        self._use(self._table.without_region(region))

    def _use(self, table: MemoryTable) -> None:
        """The guest's memory is this now. Rings at work go on in it, if they can."""
        places = {
            index: self._place(table, ring)
            for index, ring in enumerate(self._rings)
            if self._port.started(index)
        }
        self._port.set_memory(table.memory, places)
        self._table = table
        self._start_rings()

    def _get_slots(self, _: None) -> _Answer:
        return _Answer(MAX_REGIONS)

    # Rings.

    def _ring(self, index: int) -> Vring:
        if not 0 <= index < len(self._rings):
            raise Refused(f"there is no ring {index}")
        return self._rings[index]

    def _stopped(self, index: int) -> Vring:
        ring = self._ring(index)
        if self._port.started(index):
            raise Refused(f"ring {index} is at work")
        return ring

    def _set_num(self, state: VringState) -> None:
        ring = self._stopped(state.index)
        if not 0 < state.num <= self._port.device.config.queue_size:
            raise Refused(f"ring {state.index} of {state.num} entries")
        ring.size = state.num

    def _set_addr(self, address: VringAddress) -> None:
        ring = self._ring(address.index)
        if self._port.started(address.index):
            before = ring.address
            if before is None or _places(before) != _places(address):
                raise Refused(f"ring {address.index} is at work and cannot be moved")
            self._port.set_queue_log(address.index, _used_log(address))
        ring.address = address
        self._start_rings()

    def _set_base(self, state: VringState) -> None:
        self._stopped(state.index).base = state.num

    def _get_base(self, state: VringState) -> _Answer:
        ring = self._ring(state.index)
        self._stop_ring(state.index)
        self._port.set_kick(state.index, None)
        ring.has_kick = False
        return _Answer(VringState(state.index, ring.base))

    def _set_kick(self, file: VringFile) -> None:
        self._ring(file.index).has_kick = True
        self._port.set_kick(file.index, self._eventfd(file))
        self._start_rings()

    def _set_call(self, file: VringFile) -> None:
        self._ring(file.index)
        self._port.set_call(file.index, self._eventfd(file))

    def _set_err(self, file: VringFile) -> None:
        self._ring(file.index)
        self._port.set_err(file.index, self._eventfd(file))

    def _eventfd(self, file: VringFile) -> int | None:
        if file.has_fd != bool(self._fds):
            raise MessageError(
                f"ring {file.index}: the message says otherwise about a file descriptor than it does"
            )
        return self._take_fd() if file.has_fd else None

    def _set_enable(self, state: VringState) -> None:
        self._ring(state.index)
        if state.num > 1:
            raise Refused(f"ring {state.index} can be enabled with 1 or disabled with 0")
        self._port.set_enabled(state.index, bool(state.num))

    def _start_rings(self) -> None:
        """Whatever has all it needs begins."""
        port = self._port
        if not port.negotiated or not len(self._table):
            return
        for index, ring in enumerate(self._rings):
            if ring.size and ring.address is not None and ring.has_kick and not port.started(index):
                try:
                    port.start_queue(index, self._place(self._table, ring))
                except (RingError, DeviceStateError, Unusable) as error:
                    ring.has_kick = False  # not again before it is set up anew
                    raise Refused(f"ring {index}: {error}") from error

    def _place(self, table: MemoryTable, ring: Vring) -> QueuePlace:
        address = ring.address
        if address is None:
            raise Refused("a ring without addresses")
        layout = QueueLayout(
            ring.size,
            table.guest_address(address.descriptor),
            table.guest_address(address.available),
            table.guest_address(address.used),
        )
        index = address.index
        packed = has(self._port.negotiated, Feature.F_RING_PACKED)
        return QueuePlace(
            layout,
            position(ring.base, packed=packed),
            self._inflight_offset(index, ring.size),
            _used_log(address),
        )

    def _stop_ring(self, index: int) -> None:
        if self._port.started(index):
            self._rings[index].base = self._port.stop_queue(index)

    def _stop_rings(self) -> None:
        for index in range(len(self._rings)):
            self._stop_ring(index)

    # Migration and recovery.

    def _check_migration(self) -> None:
        context = self._port.device.context
        if self._port.operator is None and (context.outbound or context.inbound):
            raise Refused(
                "SAs that the driver made cannot be migrated: no other device could go on with their numbers"
            )

    def _set_log_base(self, log: Log | None) -> _Answer:
        if log is None:
            raise Refused("a dirty log without a file")
        if len(self._fds) != 1:
            raise MessageError("a dirty log without a file descriptor")
        try:
            self._check_migration()
        except Refused as error:
            _log.warning("%s: no migration: %s", self._port.name, str(error))
            return _Answer(_REFUSED)
        self._log_view = map_shared(self._fds[0], log.size, log.offset)
        if self._log_all:
            self._port.set_log(self._log_view)
        return _Answer(_DONE)

    def _set_log_fd(self, _: bytes) -> None:
        """Nobody needs to be told that pages were written."""

    def _get_inflight(self, wanted: Inflight) -> _Answer:
        region, rings = self._regions(wanted)
        size = region * rings
        fd = os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._use_buffer(_Buffer(map_shared(fd, size, 0), region, rings, wanted.queue_size))
        except BaseException:
            os.close(fd)
            raise
        return _Answer(Inflight(size, 0, rings, wanted.queue_size), (fd,))

    def _set_inflight(self, given: Inflight) -> None:
        region, rings = self._regions(given)
        if given.mmap_size < region * rings:
            raise Refused(f"an in-flight buffer of {given.mmap_size} bytes for {rings} rings")
        view = map_shared(self._fds[0], given.mmap_size, given.mmap_offset)
        self._use_buffer(_Buffer(view, region, rings, given.queue_size))

    def _regions(self, buffer: Inflight) -> tuple[int, int]:
        """Bytes for each ring, and how many rings."""
        if not 0 < buffer.num_queues <= len(self._rings):
            raise Refused(f"an in-flight buffer for {buffer.num_queues} rings")
        if not 0 < buffer.queue_size <= self._port.device.config.queue_size:
            raise Refused(f"an in-flight buffer for rings of {buffer.queue_size} entries")
        return inflight_size(buffer.queue_size, self._port.negotiated), buffer.num_queues

    def _use_buffer(self, buffer: _Buffer) -> None:
        self._port.set_inflight(buffer.view)
        self._buffer = buffer

    def _inflight_offset(self, index: int, entries: int) -> int | None:
        buffer = self._buffer
        if buffer is None or index >= buffer.rings:
            return None
        if entries > buffer.entries:
            raise Refused(f"ring {index} is larger than its part of the in-flight buffer")
        return index * buffer.region

    def _ignore(self, _: None) -> None:
        """Nothing to do."""


def position(base: int, *, packed: bool) -> int:
    """The ring position that SET_VRING_BASE means. DPDK leaves out the used half of a packed ring's; as nothing is in
    flight where a ring starts, it is the available half. QEMU sends both."""
    if not packed:
        return base & 0xFFFF
    return base | base << 16 if base < 1 << 16 else base


def _places(address: VringAddress) -> tuple[int, int, int]:
    return address.descriptor, address.available, address.used


def _used_log(address: VringAddress) -> int | None:
    return address.log if address.flags & VRING_F_LOG else None


def _nothing() -> None:
    """Nobody is there to be told."""


_Handler = Callable[[Session, Any], _Answer | None]
_S = Session
# The table of what is done; what each message may carry stands in `messages.py` and `binding.py`.
_HANDLERS: Final[Mapping[int, _Handler]] = MappingProxyType(
    {
        Request.GET_FEATURES: _S._get_features,
        Request.SET_FEATURES: _S._set_features,
        Request.SET_OWNER: _S._ignore,
        Request.RESET_OWNER: _S._ignore,
        Request.SET_MEM_TABLE: _S._set_mem_table,
        Request.SET_LOG_BASE: _S._set_log_base,
        Request.SET_LOG_FD: _S._set_log_fd,
        Request.SET_VRING_NUM: _S._set_num,
        Request.SET_VRING_ADDR: _S._set_addr,
        Request.SET_VRING_BASE: _S._set_base,
        Request.GET_VRING_BASE: _S._get_base,
        Request.SET_VRING_KICK: _S._set_kick,
        Request.SET_VRING_CALL: _S._set_call,
        Request.SET_VRING_ERR: _S._set_err,
        Request.GET_PROTOCOL_FEATURES: _S._get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _S._set_protocol_features,
        Request.GET_QUEUE_NUM: _S._get_queue_num,
        Request.SET_VRING_ENABLE: _S._set_enable,
        Request.NET_SET_MTU: _S._set_mtu,
        Request.SET_BACKEND_REQ_FD: _S._set_channel,
        Request.GET_CONFIG: _S._get_config,
        Request.SET_CONFIG: _S._set_config,
        Request.GET_INFLIGHT_FD: _S._get_inflight,
        Request.SET_INFLIGHT_FD: _S._set_inflight,
        Request.RESET_DEVICE: _S._reset_device,
        Request.GET_MAX_MEM_SLOTS: _S._get_slots,
        Request.ADD_MEM_REG: _S._add_region,
        Request.REM_MEM_REG: _S._remove_region,
        Request.SET_STATUS: _S._set_status,
        Request.GET_STATUS: _S._get_status,
        binding.GET_DEVICE: _S._get_device,
        binding.SET_DRIVER_FEATURES: _S._set_driver_features,
    }
)
