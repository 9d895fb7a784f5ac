"""The front-end's virtqueues: their event descriptors, and what it shares about them with a back-end."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, cast

from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.framing import close_all
from virtio_ipsec.transport.vhost_user.channel import Channel, Refused
from virtio_ipsec.transport.vhost_user.messages import (
    LOG_PAGE,
    VRING_F_LOG,
    Inflight,
    Log,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFile,
    VringState,
)
from virtio_ipsec.transport.vhost_user.shared import SharedFile, SharedMemory

#: SET_VRING_BASE of a ring that begins: packed rings begin with both wrap counters set.
BEGIN: Final = {False: 0, True: 0x80008000}


class Vring:
    """Kick, call and error descriptors of one virtqueue, open until :meth:`close`."""

    def __init__(self, index: int, layout: QueueLayout) -> None:
        self.index = index
        self.layout = layout
        self.kick_fd, self.call_fd, self.err_fd = (
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)
        )

    def kick(self) -> None:
        """Tell the device. A counter that is full says it already."""
        with suppress(BlockingIOError):
            os.eventfd_write(self.kick_fd, 1)

    def close(self) -> None:
        """Close the descriptors."""
        close_all((self.kick_fd, self.call_fd, self.err_fd))


class Vrings:
    """All virtqueues of a link, over ``shared`` memory; in-flight buffers and dirty log belong to them."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._vrings: dict[int, Vring] = {}
        self._inflight: tuple[int, Inflight] | None = None
        self._called: set[int] = set()
        #: Virtqueues whose error descriptor was signalled.
        self.failed: set[int] = set()
        #: The dirty log while the back-end is to write it.
        self.log: SharedFile | None = None

    def attach(self, channel: Channel, *, enables: bool, count: int, size: int) -> None:
        """Speak over this connection from here on; it knows nothing of memory and virtqueues yet.

        ``enables``: the back-end wants to be told when a vring is enabled. It has ``count`` virtqueues, the largest of
        ``size`` entries.
        """
        self._channel = channel
        self._enables = enables
        self._count = count
        self._size = size
        self._is_shared = False

    # One virtqueue.

    def add(self, index: int, layout: QueueLayout, base: int, *, enable: bool) -> None:
        """Set a virtqueue up. Raises TransportError when it is in use, Refused when the back-end declines."""
        if index in self._vrings:
            raise TransportError(f"queue {index} is in use")
        vring = Vring(index, layout)
        try:
            self._set_up(vring, base, enable=enable)
        except BaseException:
            vring.close()
            raise
        self._vrings[index] = vring

    def _set_up(self, vring: Vring, base: int, *, enable: bool) -> None:
        self._share_memory(vring.layout.size)
        tell, index = self._channel.tell, vring.index
        tell(Request.SET_VRING_NUM, VringState(index, vring.layout.size))
        tell(Request.SET_VRING_BASE, VringState(index, base))
        self._send_address(vring)
        tell(Request.SET_VRING_KICK, VringFile(index), [vring.kick_fd])
        tell(Request.SET_VRING_CALL, VringFile(index), [vring.call_fd])
        tell(Request.SET_VRING_ERR, VringFile(index), [vring.err_fd])
        if enable:
            self._enable(vring)

    def _enable(self, vring: Vring) -> None:
        if self._enables:
            self._channel.tell(Request.SET_VRING_ENABLE, VringState(vring.index, 1))

    def _send_address(self, vring: Vring) -> None:
        layout, user = vring.layout, self._shared.user_address
        flags, log = (VRING_F_LOG, layout.device) if self.log is not None else (0, 0)
        self._channel.tell(
            Request.SET_VRING_ADDR,
            VringAddress(
                vring.index, flags, user(layout.desc), user(layout.device), user(layout.driver), log
            ),
        )

    def _share_memory(self, entries: int) -> None:
        """Once a connection, when the first virtqueue is set up."""
        if not self._is_shared:
            region, fds = self._shared.region, [self._shared.file.fd]
            if self._channel.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
                self._channel.tell(Request.ADD_MEM_REG, region, fds)
            else:
                self._channel.tell(Request.SET_MEM_TABLE, (region,), fds)
            self._is_shared = True
            if self._inflight is not None:
                self._send_inflight(*self._inflight)
        if self._inflight is None and self._channel.has(ProtocolFeature.INFLIGHT_SHMFD):
            self._get_inflight(max(entries, self._size))

    def stop(self, index: int) -> int:
        """Stop a virtqueue; where it stopped."""
        state = self._channel.ask(Request.GET_VRING_BASE, VringState(index, 0))
        return cast("VringState", state).num

    def remove(self, index: int) -> None:
        """Forget a virtqueue that was stopped."""
        self._called.discard(index)
        vring = self._vrings.pop(index, None)
        if vring is not None:
            vring.close()

    def kick(self, index: int) -> None:
        """Notify the device; nothing for a virtqueue that is not set up."""
        vring = self._vrings.get(index)
        if vring is not None:
            vring.kick()

    def kick_fd(self, index: int) -> int:
        """The descriptor that notifies the device, for drivers that are not written in Python."""
        return self._vrings[index].kick_fd

    # All of them.

    def enable_all(self) -> None:
        """Enable what was set up without."""
        for vring in self._vrings.values():
            self._enable(vring)

    def stop_all(self) -> None:
        """Stop every virtqueue."""
        for index in self._vrings:
            self.stop(index)

    def restore(self, *, is_packed: bool, enable: bool) -> None:
        """Set all up anew over a new connection, where the lost back-end stopped.

        Without in-flight tracking a split virtqueue goes on behind the last buffer that was marked used; nobody knows
        where a packed one stopped: TransportError.
        """
        for vring in self._vrings.values():
            if not is_packed:
                base = self._shared.memory.u16(vring.layout.device + 2)
            elif self._inflight is not None:
                base = BEGIN[True]  # the in-flight buffer knows better
            else:
                raise TransportError("without in-flight tracking nobody knows where a packed ring stopped")
            self._set_up(vring, base, enable=enable)

    def kick_all(self) -> None:
        """Notify the device of whatever was made available while nobody listened."""
        for vring in self._vrings.values():
            vring.kick()

    def forget(self) -> None:
        """After a device reset: no virtqueues, no in-flight buffers."""
        for index in [*self._vrings]:
            self.remove(index)
        self.failed.clear()
        if self._inflight is not None:
            os.close(self._inflight[0])
            self._inflight = None

    def close(self) -> None:
        """Release everything."""
        self.forget()
        if self.log is not None:
            self.log.close()
            self.log = None

    # Notifications.

    def filenos(self) -> list[int]:
        """What becomes readable when the device notifies."""
        return [fd for vring in self._vrings.values() for fd in (vring.call_fd, vring.err_fd)]

    def gather(self) -> None:
        """Take note of notifications, so that their descriptors are quiet again."""
        self._called |= {index for index, vring in self._vrings.items() if _take(vring.call_fd)}
        self.failed |= {index for index, vring in self._vrings.items() if _take(vring.err_fd)}

    def called(self) -> set[int]:
        """Virtqueues whose device has notified since the last call."""
        self.gather()
        called, self._called = self._called, set()
        return called

    # In-flight buffers.

    def _get_inflight(self, size: int) -> None:
        """A new buffer, for every virtqueue with up to ``size`` entries."""
        wanted = Inflight(0, 0, self._count, size)
        answer, fds = self._channel.ask_with_fds(Request.GET_INFLIGHT_FD, wanted)
        if len(fds) != 1 or not answer.mmap_size:
            close_all(fds)
            raise TransportError("the back-end makes no in-flight buffer")
        self._inflight = fds[0], cast("Inflight", answer)
        self._send_inflight(*self._inflight)

    def _send_inflight(self, fd: int, area: Inflight) -> None:
        self._channel.tell(Request.SET_INFLIGHT_FD, area, [fd])

    # Dirty log.

    def new_log(self) -> SharedFile:
        """A log for all of the memory."""
        pages = -(-(self._shared.address + self._shared.file.size) // LOG_PAGE)
        return SharedFile("virtio-ipsec log", -(-pages // (8 * LOG_PAGE)) * LOG_PAGE)

    def send_log(self, log: SharedFile) -> None:
        """Hand it over. Refused by a back-end that must not be migrated."""
        answer, fds = self._channel.ask_with_fds(Request.SET_LOG_BASE, Log(log.size, 0), [log.fd])
        close_all(fds)
        if answer:
            raise Refused("SET_LOG_BASE")

    def send_addresses(self) -> None:
        """Tell all addresses anew: whether the used ring is logged goes with them."""
        for vring in self._vrings.values():
            self._send_address(vring)

    def dirty_pages(self) -> list[int]:
        """Numbers of the pages that are marked, ascending."""
        if self.log is None:
            return []
        marks = enumerate(bytes(self.log.map))
        return [8 * at + bit for at, byte in marks if byte for bit in range(8) if byte >> bit & 1]


def _take(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False
