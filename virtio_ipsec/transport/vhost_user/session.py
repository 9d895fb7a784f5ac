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
from types import MappingProxyType
from typing import Any, Final

from virtio_ipsec.errors import DeviceStateError, RingError, TransportError, WireError
from virtio_ipsec.transport.framing import close_all
from virtio_ipsec.transport.mapping import Unusable, map_shared
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.serving import BURST
from virtio_ipsec.transport.vhost_user import binding, features
from virtio_ipsec.transport.vhost_user.connection import Connection, Message, reply, request
from virtio_ipsec.transport.vhost_user.messages import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND,
    MAX_CONFIG,
    U64,
    BackendRequest,
    Config,
    Kind,
    Log,
    ProtocolFeature,
    Request,
    name_of,
)
from virtio_ipsec.transport.vhost_user.ring_set import Answer, Refused, RingSet
from virtio_ipsec.wire.numbers import Feature, Status, has

_log = logging.getLogger(__name__)

_DONE, _REFUSED = 0, 1
#: Refusals of one connection that are logged.
_LOGGED = 10
_STATUS_BYTE = 0xFF


class Session:
    """From connection to its end. ``name`` is for the log. All of it in the control thread of the port."""

    def __init__(self, port: ServedPort, connection: Connection) -> None:
        self._port = port
        self._connection = connection
        #: Descriptors of the message at hand that nobody has taken.
        self._fds: list[int] = []
        self._rings = RingSet(port, self._fds)
        self._acknowledged = 0
        self._features: int | None = None
        self._log_all = False
        self._log_view: memoryview | None = None
        self._status = 0
        self._channel: Connection | None = None
        self._refusals = 0
        port.on_change = self._tell_change
        port.pairs_by_enabling = False

    # The connection.

    def work(self) -> None:
        """Obey messages that have come. TransportError when the connection is of no more use."""
        for message in self._connection.messages(BURST):
            self.obey(message)

    def obey(self, message: Message) -> None:
        """One message. TransportError when it ends the connection."""
        self._fds[:] = message.fds
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
                answer = Answer(_REFUSED)
            if kind.answer is not None or acknowledges:
                layout = kind.answer or U64
                done = answer or Answer(_DONE)
                try:
                    self._connection.send(reply(message, layout.build(done.value), done.fds))
                finally:
                    close_all(done.fds)
        finally:
            close_all(self._fds)
            self._fds.clear()

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
            self._rings.release()
            self._log_view = None
            self._connection.close()
            if self._channel is not None:
                self._channel.close()

    def _has(self, feature: int) -> bool:
        return bool(self._acknowledged >> feature & 1)

    @property
    def _binds(self) -> bool:
        return self._has(binding.PROTOCOL_FEATURE)

    def _tell_change(self) -> None:
        """The configuration may have changed by itself."""
        with self._port.lock:
            due = self._port.device.take_config_change()
        if due and self._channel is not None and self._has(ProtocolFeature.CONFIG):
            # A front-end that does not read its channel has to look for itself.
            with suppress(TransportError):
                self._channel.send(request(BackendRequest.CONFIG_CHANGE_MSG))

    # Features and status.

    def _get_features(self, _: None) -> Answer:
        return Answer(features.offered(self._port))

    def _set_features(self, word: int) -> None:
        offered = features.device_features(self._port)
        wanted = word & ~binding.TRANSPORT
        if wanted & ~offered and not self._binds:
            raise Refused(f"features {wanted & ~offered:#x} are not offered")
        log_all = bool(word >> F_LOG_ALL & 1)
        if log_all:
            self._check_migration()
        if not self._binds and wanted != self._features:
            if self._rings.any_started():
                raise Refused("the features change while rings are at work")
            self._features = wanted
            self._negotiate(wanted, offered)
        if log_all != self._log_all:
            self._log_all = log_all
            self._port.set_log(self._log_view if log_all else None)
        if not word >> F_PROTOCOL_FEATURES & 1:
            self._rings.enable_all(True)
        self._rings.start()

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

    def _get_protocol_features(self, _: None) -> Answer:
        return Answer(features.offered_protocol(self._port))

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
        self._rings.start()
        port.wake()

    def _get_status(self, _: None) -> Answer:
        with self._port.lock:
            status = self._port.device.status
        if not self._binds:
            status = self._status | status & Status.DEVICE_NEEDS_RESET
        return Answer(int(status))

    def _reset(self) -> None:
        """Device reset. Memory, descriptors and protocol features stay; rings have to be set up anew."""
        self._rings.stop_all()
        self._port.reset()
        self._features = None
        self._status = 0
        self._rings.forget()

    def _reset_device(self, _: None) -> None:
        self._reset()
        self._rings.enable_all(False)

    def _get_device(self, _: None) -> Answer:
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
        return Answer(info)

    def _set_driver_features(self, word: int) -> None:
        with self._port.lock:
            device = self._port.device
            if device.status & Status.FEATURES_OK:
                raise Refused("the features are fixed since FEATURES_OK")
            device.write_driver_features(word)

    # Configuration.

    def _get_queue_num(self, _: None) -> Answer:
        return Answer(self._port.device.config.max_queue_pairs)

    def _set_mtu(self, mtu: int) -> None:
        if not 68 <= mtu <= self._port.device.config.mtu:
            raise Refused(f"MTU {mtu} of a port that carries 68 to {self._port.device.config.mtu}")

    def _get_config(self, wanted: Config) -> Answer:
        if not wanted.size or wanted.offset + wanted.size > MAX_CONFIG:
            return Answer(Config(wanted.offset, 0, wanted.flags))
        with self._port.lock:
            data = self._port.device.read_config(wanted.offset, wanted.size)
        return Answer(Config(wanted.offset, wanted.size, wanted.flags, data))

    def _set_config(self, written: Config) -> None:
        if written.flags != Config.MIGRATION:
            raise Refused("nothing in the configuration is writable")

    def _set_channel(self, _: None) -> None:
        fd = self._fds.pop(0)
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

    # Migration and recovery.

    def _check_migration(self) -> None:
        context = self._port.device.context
        if self._port.operator is None and (context.outbound or context.inbound):
            raise Refused(
                "SAs that the driver made cannot be migrated: no other device could go on with their numbers"
            )

    def _set_log_base(self, log: Log | None) -> Answer:
        if log is None:
            raise Refused("a dirty log without a file")
        if len(self._fds) != 1:
            raise MessageError("a dirty log without a file descriptor")
        try:
            self._check_migration()
        except Refused as error:
            _log.warning("%s: no migration: %s", self._port.name, str(error))
            return Answer(_REFUSED)
        self._log_view = map_shared(self._fds[0], log.size, log.offset)
        if self._log_all:
            self._port.set_log(self._log_view)
        return Answer(_DONE)

    def _set_log_fd(self, _: bytes) -> None:
        """Nobody needs to be told that pages were written."""

    def _ignore(self, _: None) -> None:
        """Nothing to do."""


def _nothing() -> None:
    """Nobody is there to be told."""


_Handler = Callable[[Session, Any], Answer | None]
_S = Session


def _of_rings(handler: Callable[[RingSet, Any], Answer | None]) -> _Handler:
    return lambda session, value: handler(session._rings, value)


# The table of what is done; what each message may carry stands in `messages.py` and `binding.py`.
_HANDLERS: Final[Mapping[int, _Handler]] = MappingProxyType(
    {
        Request.GET_FEATURES: _S._get_features,
        Request.SET_FEATURES: _S._set_features,
        Request.SET_OWNER: _S._ignore,
        Request.RESET_OWNER: _S._ignore,
        Request.SET_MEM_TABLE: _of_rings(RingSet.set_mem_table),
        Request.SET_LOG_BASE: _S._set_log_base,
        Request.SET_LOG_FD: _S._set_log_fd,
        Request.SET_VRING_NUM: _of_rings(RingSet.set_num),
        Request.SET_VRING_ADDR: _of_rings(RingSet.set_addr),
        Request.SET_VRING_BASE: _of_rings(RingSet.set_base),
        Request.GET_VRING_BASE: _of_rings(RingSet.get_base),
        Request.SET_VRING_KICK: _of_rings(RingSet.set_kick),
        Request.SET_VRING_CALL: _of_rings(RingSet.set_call),
        Request.SET_VRING_ERR: _of_rings(RingSet.set_err),
        Request.GET_PROTOCOL_FEATURES: _S._get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _S._set_protocol_features,
        Request.GET_QUEUE_NUM: _S._get_queue_num,
        Request.SET_VRING_ENABLE: _of_rings(RingSet.set_enable),
        Request.NET_SET_MTU: _S._set_mtu,
        Request.SET_BACKEND_REQ_FD: _S._set_channel,
        Request.GET_CONFIG: _S._get_config,
        Request.SET_CONFIG: _S._set_config,
        Request.GET_INFLIGHT_FD: _of_rings(RingSet.get_inflight),
        Request.SET_INFLIGHT_FD: _of_rings(RingSet.set_inflight),
        Request.RESET_DEVICE: _S._reset_device,
        Request.GET_MAX_MEM_SLOTS: _of_rings(RingSet.get_slots),
        Request.ADD_MEM_REG: _of_rings(RingSet.add_region),
        Request.REM_MEM_REG: _of_rings(RingSet.remove_region),
        Request.SET_STATUS: _S._set_status,
        Request.GET_STATUS: _S._get_status,
        binding.GET_DEVICE: _S._get_device,
        binding.SET_DRIVER_FEATURES: _S._set_driver_features,
    }
)
