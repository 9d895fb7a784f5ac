"""How a driver reaches a PCI function, whatever lies between: regions, memory for DMA, interrupts.

The shapes are those of VFIO (linux/vfio.h), which vfio-user shares: regions and interrupts have the same numbers.
Over vfio-user, over ``/dev/vfio``, and within one process the same link drives a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.memory import Allocator, GuestMemory


class AccessRefused(TransportError):
    """The function, or what stands in front of it, declines; the message says what was asked."""


class IrqIndex(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """``size`` in bytes, 0 for a region that is not there; ``mappable``: (offset, length) of the pieces that
    :meth:`FunctionAccess.map_region` can give."""

    size: int
    readable: bool = False
    writable: bool = False
    mappable: tuple[tuple[int, int], ...] = ()


class DmaMemory(Protocol):
    """Memory that the function reaches; addresses are those that the function uses."""

    @property
    def memory(self) -> GuestMemory:
        """Its bytes, by the function's addresses."""

    @property
    def allocator(self) -> Allocator:
        """Hands out pieces of it, each in one piece for the function too."""

    def close(self) -> None:
        """The function reaches it no longer."""


class FunctionAccess(Protocol):
    """One PCI function. TransportError when it is gone, :class:`AccessRefused` when it declines."""

    @property
    def name(self) -> str:
        """Where it is: ``vfio-user:/tmp/s``, ``vfio:0000:01:00.0``."""

    def region_info(self, region: int) -> RegionInfo:
        """What a region is; ``region`` as in ``tables.Region``."""

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes. A length of 1, 2 or 4 at a multiple of itself is one access."""

    def write(self, region: int, offset: int, data: bytes) -> None:
        """All of ``data``; 1, 2 or 4 bytes at a multiple of their number are one access. It may be under way still, and
        never be heard of when it fails; a read that follows comes behind it."""

    def map_region(self, region: int, offset: int, length: int) -> memoryview | None:
        """The bytes of a region themselves, to be written to; None when they cannot be had."""

    def doorbell(self, region: int, offset: int, length: int, value: int | None = None) -> int | None:
        """An eventfd that stands for a write of ``length`` bytes (``value``, where it matters) at ``offset``; None when
        there is none. It is closed with the access."""

    def new_memory(self, size: int) -> DmaMemory:
        """``size`` zeroed bytes that the function can reach."""

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None:
        """Let the function reach ``size`` bytes of a file from ``offset`` at its address ``iova``. AccessRefused where
        addresses cannot be chosen."""

    def unmap_dma(self, iova: int, size: int) -> None:
        """It must not reach them any more."""

    def irq_count(self, index: int) -> int:
        """How many vectors an interrupt of :class:`IrqIndex` has, 0 when there is no such interrupt."""

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Have vectors ``start``... ring these; None: nobody. Without any: the interrupt is off."""

    def unmask_irq(self, index: int) -> None:
        """INTx masks itself when it has rung; let it ring again."""

    def reset(self) -> None:
        """Function level reset. Memory stays reachable; interrupts are to be set anew."""

    def reconnect(self) -> None:
        """Begin anew after the function has gone. Memory stays as it was; interrupts are to be set anew."""

    def filenos(self) -> tuple[int, ...]:
        """What becomes readable when the function wants to say something besides interrupts."""

    def serve(self) -> None:
        """Listen to that. TransportError when the function has gone."""

    def close(self) -> None:
        """Let the function go."""
