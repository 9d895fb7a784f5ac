"""The driver's side of vhost-user: a :class:`~virtio_ipsec.driver.link.Link` to any back-end.

With the IPsec binding (``binding.py``) the link carries all of the device. Without it the link is what a hypervisor
makes of a vhost-user-net back-end, minus the control virtqueue, which hypervisors answer themselves: 64 feature
bits, one queue pair in use, a configuration space of our own where the back-end has none.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, cast

from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.transport.framing import dial
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.binding import DeviceInfo
from virtio_ipsec.transport.vhost_user.channel import Channel, Refused
from virtio_ipsec.transport.vhost_user.connection import Connection
from virtio_ipsec.transport.vhost_user.messages import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    MAX_CONFIG,
    Config,
    ProtocolFeature,
    Request,
)
from virtio_ipsec.transport.vhost_user.options import CONFIGURED, CONTROL, LEGACY, Options
from virtio_ipsec.transport.vhost_user.shared import SharedMemory
from virtio_ipsec.transport.vhost_user.vrings import BEGIN, Vrings
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import Feature, Status, has, mask

#: Not 0 and not the user address either, so that a mistaken address is an error.
_BASE: Final = 0x1000_0000
_F = ProtocolFeature
_LOW: Final = (1 << 64) - 1
#: Bits that a driver never sees of a back-end without the binding.
_UNSEEN: Final = binding.TRANSPORT | binding.HIDDEN | CONTROL | LEGACY


class VhostUserLink:
    """A device behind a vhost-user socket. ``connect`` makes the connection, and makes it anew in :meth:`reconnect`.

    Raises TransportError and its kinds: Refused for what the back-end declines, PeerClosed when it is gone.
    """

    def __init__(self, connect: Callable[[], socket.socket], options: Options | None = None) -> None:
        self.options = options or Options()
        self.shared = SharedMemory(self.options.memory, _BASE)
        self._connect = connect
        #: The virtqueues: which of them have failed, and where a dirty log is kept.
        self.vrings = Vrings(self.shared)
        self._changes_before = 0
        self._driver_features = 0
        self._status = 0
        self._withheld = 0
        try:
            self._open()
        except BaseException:
            self.shared.close()
            raise

    @classmethod
    def at(cls, path: str, options: Options | None = None, *, timeout: float = 5.0) -> VhostUserLink:
        """A link to the back-end that listens at ``path``."""
        return cls(lambda: dial(path, timeout), options)

    # The connection.

    def _open(self) -> None:
        options = self.options
        connection = Connection(self._connect(), patience=options.patience)
        self._channel = Channel(connection, options.patience)
        try:
            self._agree()
            self.vrings.attach(
                self._channel,
                enables=has_bit(self._offered, F_PROTOCOL_FEATURES),
                count=self.admin_queue_index() + self.admin_queue_num(),
                size=self.queue_max_size(0),
            )
        except BaseException:
            self._channel.close()
            raise

    def _agree(self) -> None:
        """Protocol features, then what they tell of the device, in the order in which QEMU asks."""
        channel = self._channel
        self._offered = cast("int", channel.ask(Request.GET_FEATURES))
        self._pairs, self._info = 1, None
        if has_bit(self._offered, F_PROTOCOL_FEATURES):
            offered = cast("int", channel.ask(Request.GET_PROTOCOL_FEATURES))
            chosen = offered & self.options.protocol
            if chosen & binding.NEEDED != binding.NEEDED:
                chosen &= ~(1 << binding.PROTOCOL_FEATURE)
            channel.tell(Request.SET_PROTOCOL_FEATURES, chosen)
            channel.protocol = chosen
            if channel.has(_F.MQ):
                self._pairs = cast("int", channel.ask(Request.GET_QUEUE_NUM))
            if channel.has(_F.CONFIGURE_MEM_SLOTS) and not channel.ask(Request.GET_MAX_MEM_SLOTS):
                raise TransportError("the back-end has no memory slots")
            if channel.has(_F.BACKEND_REQ):
                channel.offer_backend_channel()
        channel.tell(Request.SET_OWNER)
        if self.has_binding:
            self._info = self._device()

    @property
    def has_binding(self) -> bool:
        """Whether the IPsec binding was acknowledged."""
        return has_bit(self._channel.protocol, binding.PROTOCOL_FEATURE)

    @property
    def protocol_features(self) -> int:
        """The protocol features acknowledged."""
        return self._channel.protocol

    def reconnect(self) -> None:
        """Connect anew after the back-end was lost, and go on where it stopped: status, features, memory, in-flight
        buffers, log, and every virtqueue.

        Without in-flight tracking a split virtqueue goes on behind the last buffer that was used, so that the device
        takes what it had taken once more; a packed one cannot (TransportError). With the IPsec binding the device
        has been reset, and virtqueues are forgotten: start the driver anew.
        """
        self._renew()
        if self.has_binding:
            self._forget()
            return
        if lost := self._driver_features & ~self.device_features():
            raise TransportError(f"the back-end has come back without features {lost:#x}")
        if self._driver_features:
            self._send_features()
        if self._channel.has(_F.STATUS):
            self._channel.tell(Request.SET_STATUS, self._status & ~Status.DRIVER_OK)
        if self.vrings.log is not None:
            self.vrings.send_log(self.vrings.log)
        self.vrings.restore(is_packed=self._is_packed, enable=True)
        if self._channel.has(_F.STATUS):
            self._channel.tell(Request.SET_STATUS, self._status)
        self.vrings.kick_all()

    def restart(self) -> None:
        """Connect anew and forget all virtqueues: for a driver that begins with a reset."""
        self._forget()
        self._renew()

    def _renew(self) -> None:
        self._channel.close()
        self._changes_before = self.config_changes + 1
        self._open()

    def close(self) -> None:
        """Close the connection and everything that was shared. The device loses its driver."""
        self._channel.close()
        self.vrings.close()
        self.shared.close()

    # Registers.

    def _device(self) -> DeviceInfo:
        return cast("DeviceInfo", self._channel.ask(binding.GET_DEVICE))

    @property
    def memory(self) -> GuestMemory:
        """The memory that the back-end maps."""
        return self.shared.memory

    @property
    def allocator(self) -> Allocator:
        """Hands out pieces of it."""
        return self.shared.allocator

    def transport_features(self) -> int:
        """Queue reset, where the device has it, and with the binding an administration virtqueue."""
        carried = mask(Feature.F_RING_RESET)
        return TRANSPORT_BITS & (carried | mask(Feature.F_ADMIN_VQ) if self.has_binding else carried)

    def device_features(self) -> int:
        """What the device offers through this link."""
        if self.has_binding:
            return self._device().device_features
        offered = self._offered & ~_UNSEEN
        if not self._channel.has(_F.CONFIG):
            offered &= ~CONFIGURED
            if any(self.options.config.mac):
                offered |= mask(Feature.NET_F_MAC)
        return offered

    def write_driver_features(self, word: int) -> None:
        """Accept features. Without the binding it may be here that the back-end refuses them, or that the link cannot
        tell it of them: FEATURES_OK then does not stay."""
        if self.has_binding:
            self._channel.tell(binding.SET_DRIVER_FEATURES, word)
        self._driver_features = word
        beyond = 0 if self.has_binding else word & (~_LOW | _UNSEEN)
        if not self.has_binding and not self._channel.has(_F.CONFIG):
            beyond |= word & CONFIGURED & ~self.device_features()  # what is offered here is refused here
        self._withheld = int(Status.FEATURES_OK) if beyond else 0
        try:
            self._send_features()
        except Refused:
            self._withheld = int(Status.FEATURES_OK)

    def _send_features(self) -> None:
        word = self._driver_features & _LOW & ~(binding.TRANSPORT | binding.HIDDEN)
        if not self._channel.has(_F.CONFIG):
            word &= self._offered | ~CONFIGURED  # those that we offered in the back-end's place
        word |= self._offered & 1 << F_PROTOCOL_FEATURES
        if self.vrings.log is not None:
            word |= 1 << F_LOG_ALL
        self._channel.tell(Request.SET_FEATURES, word)

    def driver_features(self) -> int:
        """The features accepted, as the device knows them where it can say so."""
        return self._device().driver_features if self.has_binding else self._driver_features

    def status(self) -> int:
        """Device status; kept here when the back-end has none."""
        if self._channel.has(_F.STATUS):
            return cast("int", self._channel.ask(Request.GET_STATUS)) & ~self._withheld
        return self._status

    def write_status(self, value: int) -> None:
        """Write the device status; 0 resets the device and forgets all virtqueues."""
        if value == 0:
            self._reset()
            return
        value &= ~self._withheld
        starts = bool(value & ~self._status & Status.DRIVER_OK)
        self._status = value
        if self._channel.has(_F.STATUS):
            self._channel.tell(Request.SET_STATUS, value)
        elif starts:
            self.vrings.enable_all()

    def _reset(self) -> None:
        """With the binding the status does it all. Other back-ends have their rings stopped first, as they expect."""
        channel = self._channel
        if not self.has_binding:
            self.vrings.stop_all()
            if channel.has(_F.RESET_DEVICE):
                channel.tell(Request.RESET_DEVICE)
        if channel.has(_F.STATUS):
            channel.tell(Request.SET_STATUS, 0)
        self._forget()

    def _forget(self) -> None:
        self.vrings.forget()
        self._status = self._driver_features = self._withheld = 0

    def config_generation(self) -> int:
        """Changes with the configuration."""
        return self._device().config_generation if self.has_binding else self.config_changes

    def read_config(self, offset: int, length: int) -> bytes:
        """Configuration bytes: the device's, or where it shows none, those of the options."""
        if not self._channel.has(_F.CONFIG):
            return NET_CONFIG.build(self.options.config)[offset : offset + length]
        pieces = []
        while length:
            piece = min(length, MAX_CONFIG)
            asked = Config(offset, piece, Config.WRITABLE, bytes(piece))
            answer = cast("Config", self._channel.ask(Request.GET_CONFIG, asked))
            if answer.size != piece:
                raise Refused(f"to show {piece} bytes of configuration at {offset}")
            pieces.append(answer.data)
            offset, length = offset + piece, length - piece
        return b"".join(pieces)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration bytes. A register has no way to refuse: that it does not change shows when it is read."""
        if self._channel.has(_F.CONFIG):
            with suppress(Refused):
                self._channel.tell(Request.SET_CONFIG, Config(offset, len(data), Config.WRITABLE, data))

    @property
    def config_changes(self) -> int:
        """How often the configuration may have changed: the back-end has said so, or it was another one."""
        return self._changes_before + self._channel.changes

    # Virtqueues.

    def num_queues(self) -> int:
        """Virtqueues without the administration virtqueues."""
        return self._info.num_queues if self._info else 2 * self._pairs

    def admin_queue_index(self) -> int:
        """Index of the first administration virtqueue."""
        return self._info.admin_queue_index if self._info else self.num_queues()

    def admin_queue_num(self) -> int:
        """Number of administration virtqueues."""
        return self._info.admin_queue_num if self._info else 0

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue."""
        if not 0 <= index < self.num_queues():
            first = self.admin_queue_index()
            if not first <= index < first + self.admin_queue_num():
                return 0
        return self._info.queue_size if self._info else self.options.queue_size

    @property
    def _is_packed(self) -> bool:
        return has(self._driver_features, Feature.F_RING_PACKED)

    def enable_queue(self, index: int, layout: QueueLayout, *, base: int | None = None) -> None:
        """Set a virtqueue up and enable it; ``base`` is what :meth:`stop_queue` answered, for one that goes on."""
        # Without STATUS a ring works as soon as it is enabled: not before DRIVER_OK.
        enable = self._channel.has(_F.STATUS) or bool(self._status & Status.DRIVER_OK)
        begin = BEGIN[self._is_packed] if base is None else base
        self.vrings.add(index, layout, begin, enable=enable)

    def stop_queue(self, index: int) -> int:
        """Stop a virtqueue and say where it stopped; it can go on from there."""
        return self.vrings.stop(index)

    def reset_queue(self, index: int) -> None:
        """Reset one virtqueue: the back-end has drained it when it answers."""
        self.vrings.stop(index)
        self.vrings.remove(index)

    def kick(self, index: int) -> None:
        """Available-buffer notification; nothing for a virtqueue that is not set up."""
        self.vrings.kick(index)

    def kick_fd(self, index: int) -> int:
        """The eventfd that notifies the device, for drivers that are not written in Python."""
        return self.vrings.kick_fd(index)

    def interrupts(self) -> set[int]:
        """Queue indices with a used-buffer notification since the last call."""
        return self.vrings.called()

    def poll(self, timeout: float) -> None:
        """Wait for the back-end to notify, speak, or go (PeerClosed); ``timeout`` in seconds."""
        self.wait(timeout, ())

    def wait(self, timeout: float, others: Iterable[int]) -> None:
        """As :meth:`poll`, and for any of these descriptors to become readable."""
        poller = select.poll()
        for fd in (*self.vrings.filenos(), *self._channel.filenos(), *others):
            poller.register(fd, select.POLLIN)
        if poller.poll(max(0.0, timeout) * 1000):
            self.vrings.gather()
            self._channel.serve_backend()
            self._channel.check_alive()

    # Dirty log.

    def start_logging(self) -> None:
        """Have the back-end note which pages it writes (``vrings.dirty_pages``). Refused where it must not migrate."""
        log = self.vrings.new_log()
        try:
            self.vrings.send_log(log)
        except BaseException:
            log.close()
            raise
        self.vrings.log = log
        self._send_features()
        self.vrings.send_addresses()

    def stop_logging(self) -> None:
        """Have it stop."""
        log, self.vrings.log = self.vrings.log, None
        if log is not None:
            log.close()
            self._send_features()
            self.vrings.send_addresses()


def has_bit(word: int, bit: int) -> bool:
    """Whether a bit of a feature word is set."""
    return bool(word >> bit & 1)
