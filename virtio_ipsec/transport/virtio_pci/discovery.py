"""What a virtio PCI function says of itself: the driver's walk through its configuration space (virtio v1.4 4.1.2 to
4.1.4). Nothing is followed that leads out of a region or in a circle.

Capabilities with a reserved ``cfg_type`` or ``bar`` are passed over, longer ones than expected accepted, and of each
structure the first one is used that lies in its region and is long enough; more of it than the region has is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess, IrqIndex
from virtio_ipsec.transport.virtio_pci.tables import (
    BARS,
    COMMON_CFG_LEAST,
    CONFIG_SIZE,
    DEVICE_ID_BASE,
    EXTENDED_CAPABILITIES,
    HEADER_SIZE,
    MSIX_CAP_SIZE,
    MSIX_SIZE_MASK,
    NETWORK_DEVICE,
    VENDOR_ID,
    CapabilityId,
    DeviceState,
    Header,
    MsixCap,
    Region,
    Register,
    Structure,
    StructureCap,
)

#: The network device of before virtio 1.0 that speaks the modern way too (virtio v1.4 4.1.2.1).
_TRANSITIONAL_NETWORK: Final = 0x1000
#: What the identifiers of a virtual function read (SR-IOV 3.4.1): those of its owner count.
_VIRTUAL: Final = 0xFFFF
#: Bytes of ``notify_off_multiplier``, which stands behind the capability.
_MULTIPLIER_SIZE: Final = 4
#: Bytes of each structure without which it is of no use. A notification is 16 bits wide or, with more to say, 32.
_LEAST: Final = {
    Structure.COMMON_CFG: COMMON_CFG_LEAST,
    Structure.NOTIFY_CFG: 2,
    Structure.ISR_CFG: 1,
    Structure.DEVICE_CFG: 1,
}


@dataclass(frozen=True, slots=True)
class Place:
    """``length`` bytes of a region from ``offset``."""

    region: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Found:
    """A virtio network function. ``multiplier`` is between the doorbells of two queues, in bytes; ``vectors`` of MSI-X
    may be used, whose capability lies at ``msix`` of the configuration space. None: it has no such thing."""

    vendor_id: int
    device_id: int
    common: Place
    notify: Place
    multiplier: int
    isr: Place | None
    device: Place | None
    msix: int | None
    vectors: int


def discover(access: FunctionAccess) -> Found:
    """The structures of the function. TransportError when it is no virtio network function of version 1."""
    size = access.region_info(Region.CONFIG).size
    if size < EXTENDED_CAPABILITIES:
        raise TransportError(f"{access.name} has {size} bytes of configuration space")
    config = access.read(Region.CONFIG, 0, EXTENDED_CAPABILITIES)
    vendor, device = field(config, Header.VENDOR_ID), field(config, Header.DEVICE_ID)
    known = (DEVICE_ID_BASE + NETWORK_DEVICE, _TRANSITIONAL_NETWORK)
    if (vendor, device) != (_VIRTUAL, _VIRTUAL) and (vendor != VENDOR_ID or device not in known):
        raise TransportError(f"{access.name} is {vendor:04x}:{device:04x}, no virtio network device")
    capabilities = tuple(walk(config))
    places = _structures(access, config, capabilities)
    for needed in (Structure.COMMON_CFG, Structure.NOTIFY_CFG):
        if needed not in places:
            raise TransportError(f"{access.name} has no {needed.name} of virtio 1")
    msix = next((at for kind, at in capabilities if kind == CapabilityId.MSIX), None)
    if msix is not None and msix + MSIX_CAP_SIZE > len(config):
        msix = None
    vectors = 0
    if msix is not None:
        table = (field(config, MsixCap.CONTROL, msix) & MSIX_SIZE_MASK) + 1
        vectors = min(table, access.irq_count(IrqIndex.MSIX))
    isr, own = places.get(Structure.ISR_CFG), places.get(Structure.DEVICE_CFG)
    notify, extra = places[Structure.NOTIFY_CFG]
    return Found(
        vendor_id=vendor,
        device_id=device,
        common=places[Structure.COMMON_CFG][0],
        notify=notify,
        multiplier=int.from_bytes(extra[:4], "little"),
        isr=isr and isr[0],
        device=own and own[0],
        msix=msix,
        vectors=vectors,
    )


def field(data: bytes, register: Register, base: int = 0) -> int:
    """A register's value in bytes that begin ``base`` before its structure."""
    return int.from_bytes(data[base + register.offset : base + register.end], "little")


def walk(config: bytes) -> Iterator[tuple[int, int]]:
    """(id, offset) of each capability in the first 256 bytes of configuration space, each once."""
    if not field(config, Header.STATUS) & DeviceState.CAP_LIST:
        return
    at, seen = field(config, Header.CAPABILITY_LIST) & ~3, set[int]()
    while HEADER_SIZE <= at < len(config) and at not in seen:
        seen.add(at)
        yield config[at], at
        at = config[at + 1] & ~3


def walk_extended(access: FunctionAccess) -> Iterator[tuple[int, int]]:
    """(id, offset) of each extended capability, each once; none where there is no room for them."""
    if access.region_info(Region.CONFIG).size < CONFIG_SIZE:
        return
    at, seen = EXTENDED_CAPABILITIES, set[int]()
    while EXTENDED_CAPABILITIES <= at <= CONFIG_SIZE - 4 and at not in seen:
        seen.add(at)
        head = int.from_bytes(access.read(Region.CONFIG, at, 4), "little")
        if head in (0, 0xFFFFFFFF):
            return
        yield head & 0xFFFF, at
        at = head >> 20 & ~3


def _structures(
    access: FunctionAccess, config: bytes, capabilities: tuple[tuple[int, int], ...]
) -> dict[Structure, tuple[Place, bytes]]:
    """Structure -> where it is, and what its capability says besides."""
    found: dict[Structure, tuple[Place, bytes]] = {}
    for kind, at in capabilities:
        cap = StructureCap.parse(config[at:]) if kind == CapabilityId.VENDOR else None
        if cap is None or cap.kind not in _LEAST or cap.bar >= BARS or Structure(cap.kind) in found:
            continue
        structure = Structure(cap.kind)
        if structure == Structure.NOTIFY_CFG and len(cap.extra) < _MULTIPLIER_SIZE:
            continue
        room = access.region_info(cap.bar).size - cap.offset
        length = min(cap.length, room)
        if length >= _LEAST[structure]:
            found[structure] = Place(cap.bar, cap.offset, length), cap.extra
    return found
