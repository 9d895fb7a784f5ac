"""A served port as a virtio PCI function: what a client that can read and write its regions finds there.

Everything is called in the control thread of the port. Nothing here knows who the client is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from virtio_ipsec.device.members import FunctionState, SriovGroup
from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.common import NOTIFICATIONS, CommonConfiguration
from virtio_ipsec.transport.virtio_pci.config_space import ConfigSpace
from virtio_ipsec.transport.virtio_pci.header import (
    COMMON,
    DEVICE,
    DEVICE_SIZE,
    ISR,
    ISR_SIZE,
    MSIX_BAR,
    MULTIPLIER,
    NOTIFY,
    STRUCTURES_BAR,
    Layout,
    add_ari,
    build,
)
from virtio_ipsec.transport.virtio_pci.irqs import Interrupts
from virtio_ipsec.transport.virtio_pci.sriov import Sriov
from virtio_ipsec.transport.virtio_pci.state import become, read_state
from virtio_ipsec.transport.virtio_pci.tables import (
    CFG_DATA,
    CFG_WIDTHS,
    COMMON_CFG_SIZE,
    CONFIG_SIZE,
    Command,
    DeviceState,
    ExpressCap,
    Header,
    MsixCap,
    Region,
    VirtioCap,
)
from virtio_ipsec.wire.numbers import Feature, mask

_ABSENT: Final = b"\xff"


class RegionError(TransportError):
    """An access that no region of the function has a place for."""


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A write of ``length`` bytes at ``offset`` of a region may be replaced by ringing the eventfd ``fd``, which stays
    the function's and is another one after :meth:`PciFunction.disconnect`."""

    region: int
    offset: int
    length: int
    fd: int


class _Part(Protocol):
    """A structure in a BAR."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A structure given by two calls."""

    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], None]


class PciFunction:
    """``port``'s device as a PCI function; the port stays the caller's, its ``on_change`` is the function's.

    ``members``: the group that its device owns (SR-IOV); None: there are no virtual functions. ``virtual``: it is one
    itself. Its configuration space is then as whoever assigns a virtual function shows it (SR-IOV 3.4.1: identification
    from the owner, BARs, no INTx). ``notifications``: offer F_NOTIFICATION_DATA and F_NOTIF_CONFIG_DATA.

    The BARs answer whether or not MEMORY is set in the command register. That bit lets addresses of a bus lead to them,
    and the bus is the client's: QEMU takes them off its own while it is clear. Who accesses a region names no address;
    there are drivers over vfio-user that never set the bit (SPDK's). MASTER is obeyed.
    """

    #: The parts; a variant of the function replaces some by subclasses.
    common_class: ClassVar[type[CommonConfiguration]] = CommonConfiguration
    interrupts_class: ClassVar[type[Interrupts]] = Interrupts

    def __init__(
        self,
        port: ServedPort,
        *,
        members: SriovGroup | None = None,
        virtual: bool = False,
        notifications: bool = True,
    ) -> None:
        self.port = port
        self.is_virtual = virtual
        self._memory: GuestMemory | None = None
        self._present = not virtual
        self._held = False
        self._kicks: list[int] = []
        vectors = min(port.queue_count + 1, tables.MAX_VECTORS)
        self._layout = Layout.of(port.queue_count, vectors)
        self._config = ConfigSpace()
        self._caps = build(self._config, self._layout, vectors, virtual=virtual)
        self._sriov = None if members is None else Sriov(self._config, members, self._layout)
        if members is not None:
            port.device.members = members
        if virtual or members is not None:
            add_ari(self._config)
        self._config.finish()
        self._sizes: dict[int, int] = {
            STRUCTURES_BAR: self._layout.structures_size,
            MSIX_BAR: self._layout.msix_size,
            Region.CONFIG: CONFIG_SIZE,
        }
        self._interrupts = self.interrupts_class(port, vectors, self._show_intx)
        # What the client maps is all that is reached, at the addresses that it says (virtio v1.4 6.2).
        offers = mask(Feature.F_ACCESS_PLATFORM, *([Feature.F_SR_IOV] if members else []))
        offers |= NOTIFICATIONS if notifications else 0
        self._common = self.common_class(port, self._interrupts, offers, self._may_work)
        self._parts = self._make_parts()
        self._watch_config()
        self._provide_kicks()
        port.on_change = self._tell_change
        port.pairs_by_enabling = False

    def close(self) -> None:
        """The function is no more; the port may be closed then."""
        self.disconnect()
        self.port.on_change = lambda: None
        self._close_kicks()
        self._interrupts.close()

    # Regions.

    def region_size(self, region: int) -> int:
        """Bytes of a region; 0: it does not exist."""
        return self._sizes.get(region, 0)

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; reserved places read 0. RegionError outside the region.

        A virtual function that is not there reads as nothing on a bus does: all ones.
        """
        self._check(region, offset, length)
        if not self._present:
            return _ABSENT * length
        if region == Region.CONFIG:
            return self._config.read(offset, length)
        data = bytearray(length)
        for part, begin, end, within in self._touched(region, offset, length):
            data[begin:end] = part.read(within, end - begin)
        return bytes(data)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Registers that can be written take it, others do not change. RegionError outside the region."""
        self._check(region, offset, len(data))
        if not self._present:
            return
        if region == Region.CONFIG:
            self._config.write(offset, data)
            return
        for part, begin, end, within in self._touched(region, offset, len(data)):
            part.write(within, data[begin:end])

    def doorbells(self) -> tuple[Doorbell, ...]:
        """One for the notification address of each queue."""
        return tuple(
            Doorbell(STRUCTURES_BAR, NOTIFY + MULTIPLIER * index, MULTIPLIER, fd)
            for index, fd in enumerate(self._kicks)
        )

    def _check(self, region: int, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.region_size(region):
            raise RegionError(f"{length} bytes at {offset:#x} of region {region}")

    def _touched(self, region: int, offset: int, length: int) -> Iterator[tuple[_Part, int, int, int]]:
        """Each structure that the access touches, which of its bytes, and where in the structure they begin."""
        for bar, begin, size, part in self._parts:
            first, end = max(begin, offset), min(begin + size, offset + length)
            if bar == region and first < end:
                yield part, first - offset, end - offset, first - begin

    def _make_parts(self) -> tuple[tuple[int, int, int, _Part], ...]:
        layout, interrupts = self._layout, self._interrupts
        device = _Bytes(self._common.read_device, self._write_device)
        return (
            (STRUCTURES_BAR, COMMON, COMMON_CFG_SIZE, self._common),
            (STRUCTURES_BAR, ISR, ISR_SIZE, _Bytes(self._read_isr, _ignore)),
            (STRUCTURES_BAR, DEVICE, DEVICE_SIZE, device),
            (STRUCTURES_BAR, NOTIFY, layout.notify_size, _Bytes(_zeros, self._notify)),
            (MSIX_BAR, 0, layout.table_size, _Bytes(interrupts.read_table, interrupts.write_table)),
            (MSIX_BAR, layout.pba, layout.pba_size, _Bytes(interrupts.read_pending, _ignore)),
        )

    def _read_isr(self, offset: int, length: int) -> bytes:
        return bytes([self._interrupts.take_isr()]).ljust(length, b"\0") if offset == 0 else bytes(length)

    def _write_device(self, offset: int, data: bytes) -> None:
        with self.port.lock:
            self.port.device.write_config(offset, data)

    def _notify(self, offset: int, data: bytes) -> None:
        """An available buffer notification (4.1.5.2): the address says which queue, whatever the value is."""
        index, within = divmod(offset, MULTIPLIER)
        if within or len(data) not in (2, 4):
            self.port.count("ignored_writes")
        elif not self._held:
            self.port.kick(index)

    # Interrupts, as the client wants to hear of them.

    @property
    def msix_vectors(self) -> int:
        """How many MSI-X vectors there are."""
        return self._interrupts.vectors

    @property
    def has_intx(self) -> bool:
        """Whether there is INTx."""
        return not self.is_virtual

    def set_msix(self, vector: int, fd: int | None) -> None:
        """A vector rings this eventfd, owned from here on; None: nobody. TransportError for no eventfd."""
        self._interrupts.attach(vector, fd)

    def mask_msix(self, vector: int, on: bool) -> None:
        """While a vector is masked, what it would ring for is pending."""
        self._interrupts.mask(vector, on)

    def ring_msix(self, vector: int) -> None:
        """Ring it now."""
        self._interrupts.ring(vector)

    def set_intx(self, fd: int | None) -> None:
        """INTx rings this eventfd, owned from here on; None: nobody. It masks itself each time."""
        self._interrupts.attach_intx(fd)

    def mask_intx(self, on: bool) -> None:
        """Mask INTx, or let it ring again; at once when it is still asserted."""
        self._interrupts.mask_intx(on)

    def ring_intx(self) -> None:
        """Ring it now."""
        self._interrupts.ring_intx()

    # Memory, reset, and the end of a client.

    def set_memory(self, memory: GuestMemory | None) -> None:
        """What the function can reach, None: nothing. Queues at work go on in it; one whose rings are not in it waits
        until they are."""
        seen = GuestMemory.anonymous(4096, (1 << 64) - 4096) if memory is None else memory
        with self.port.resting():
            if not self.port.extend_memory(seen):
                self._common.stop()
                self.port.set_memory(seen)
            self._memory = memory
            self._common.work()

    def reset(self) -> None:
        """Function level reset: the device, its registers, the configuration space, the interrupts, and of an owner its
        virtual functions. Memory stays reachable."""
        if self._sriov is not None:
            self._sriov.disable()
        self.port.reset()
        self._common.forget()
        self._interrupts.reset()
        self._config.reset()

    def disconnect(self) -> None:
        """The client is gone: reset, and nothing that it shared is kept."""
        self.reset()
        self.port.disconnect()
        self._memory = None
        self._interrupts.reset()
        self._close_kicks()
        self._provide_kicks()

    @property
    def is_present(self) -> bool:
        """Whether the function is there: always, but for a virtual one that its owner has not enabled."""
        return self._present

    def set_present(self, on: bool) -> None:
        """A virtual function appears, or vanishes as after a reset, with whatever its client shared."""
        if on != self._present:
            self.disconnect()
            self._present, self._held = on, False

    @property
    def is_held(self) -> bool:
        """Whether :meth:`hold` holds."""
        return self._held

    def hold(self) -> None:
        """Until :meth:`go_on` the function does nothing of itself: no queue is worked on, no notification goes out.
        Registers go on working, and no reset of the function ends it."""
        self._held = True
        self._common.work()

    def go_on(self, state: FunctionState | None = None) -> None:
        """End :meth:`hold`; with ``state`` as if the driver had set that up."""
        if state is not None:
            become(state, self.port, self._common, self._interrupts, self._memory)
        self._held = False
        self._common.work()
        self.port.wake()
        self._tell_change()

    def state(self) -> FunctionState:
        """The registers as device parts hold them."""
        return read_state(self._common, self._interrupts)

    # Inside.

    def _may_work(self) -> bool:
        is_master = self._config.value(Header.COMMAND) & Command.MASTER
        return bool(is_master) and self._memory is not None and not self._held

    def _provide_kicks(self) -> None:
        for index in range(self.port.queue_count):
            self._kicks.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.port.set_kick(index, os.dup(self._kicks[index]))

    def _close_kicks(self) -> None:
        for fd in self._kicks:
            with suppress(OSError):
                os.close(fd)
        self._kicks.clear()

    def _tell_change(self) -> None:
        if self._held:
            return
        with self.port.lock:
            due = self.port.device.take_config_change()
        if due:
            self._interrupts.config_changed()

    def _show_intx(self, asserted: bool) -> None:
        status = self._config.value(Header.STATUS) & ~DeviceState.INTERRUPT
        self._config.set(Header.STATUS, status | (DeviceState.INTERRUPT if asserted else 0))

    # The configuration space.

    def _watch_config(self) -> None:
        config, caps = self._config, self._caps
        watched = (
            (Header.COMMAND, 0, self._command),
            (MsixCap.CONTROL, caps.msix, self._msix_control),
            (ExpressCap.DEVICE_CONTROL, caps.express, self._device_control),
        )
        for register, base, call in watched:
            config.on_write(base + register.offset, register.width, call)
        window = caps.pci_cfg + CFG_DATA
        config.on_read(window, 4, self._read_window)
        config.on_write(window, 4, self._write_window)

    def _command(self) -> None:
        self._interrupts.set_intx_disabled(bool(self._config.value(Header.COMMAND) & Command.INTX_DISABLE))
        self._common.work()

    def _msix_control(self) -> None:
        control = self._config.value(MsixCap.CONTROL, self._caps.msix)
        self._interrupts.set_msix(
            enabled=bool(control & tables.MSIX_ENABLE), mask_all=bool(control & tables.MSIX_MASK_ALL)
        )

    def _device_control(self) -> None:
        control = self._config.value(ExpressCap.DEVICE_CONTROL, self._caps.express)
        if control & tables.EXPRESS_START_FLR:
            self.reset()

    def _window(self) -> tuple[int, int] | None:
        """Where in the structures' BAR the PCI_CFG capability points (4.1.4.9); None: nowhere that it may."""
        base = self._caps.pci_cfg
        bar, offset, width = (
            self._config.value(one, base) for one in (VirtioCap.bar, VirtioCap.offset_, VirtioCap.length)
        )
        inside = offset + width <= self._layout.structures_size
        if bar == STRUCTURES_BAR and width in CFG_WIDTHS and offset % width == 0 and inside:
            return offset, width
        return None

    def _read_window(self) -> None:
        place = self._window()
        if place is not None:
            data = self.read(STRUCTURES_BAR, *place)
            self._config.window(self._caps.pci_cfg + CFG_DATA, len(data))[:] = data

    def _write_window(self) -> None:
        place = self._window()
        if place is not None:
            offset, width = place
            self.write(
                STRUCTURES_BAR, offset, bytes(self._config.window(self._caps.pci_cfg + CFG_DATA, width))
            )


def _ignore(_offset: int, _data: bytes) -> None:
    """Read-only."""


def _zeros(_offset: int, length: int) -> bytes:
    return bytes(length)
