"""What vfio-user messages carry, as bytes: the layouts of `payloads.py`, in the host's byte order."""

from __future__ import annotations

import struct
from dataclasses import astuple
from typing import Final

from virtio_ipsec.transport.payload import Layout, MessageError
from virtio_ipsec.transport.vfio_user.payloads import (
    MAX_PARTS,
    MAX_TRANSFER,
    MAX_WRITES,
    MULTI_DATA,
    Area,
    DeviceFeature,
    DeviceInfo,
    DmaAccess,
    DmaMap,
    DmaUnmap,
    IoEventFd,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
)

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_MAP = struct.Struct("=IIQQQ")
_UNMAP = struct.Struct("=IIQQ")
_FOUR = struct.Struct("=IIII")
_REGION = struct.Struct("=IIIIQQ")
_CAPABILITY = struct.Struct("=HHI")
_SPARSE = struct.Struct("=HHIII")
_AREA = struct.Struct("=QQ")
_IO_FD = struct.Struct("=QQIII4xQ")
_IRQ_SET = struct.Struct("=IIIII")
_ACCESS = struct.Struct("=QII")
_DMA = struct.Struct("=QQ")
_WRITE = struct.Struct("=QII8s")
_FEATURE = struct.Struct("=II")
#: ``VFIO_REGION_INFO_CAP_SPARSE_MMAP``.
_CAP_SPARSE_MMAP = 1


def _parse_device_info(payload: bytes) -> DeviceInfo:
    argsz, flags, regions, irqs = _FOUR.unpack(payload)
    return DeviceInfo(flags, regions, irqs, argsz)


def _build_region(info: RegionInfo) -> bytes:
    if not info.areas:
        return _REGION.pack(info.argsz, info.flags, info.index, 0, info.size, info.offset)
    areas = b"".join(_AREA.pack(area.offset, area.size) for area in info.areas)
    argsz = _REGION.size + _SPARSE.size + len(areas)
    flags = info.flags | RegionFlag.CAPS
    head = _REGION.pack(argsz, flags, info.index, _REGION.size, info.size, info.offset)
    return head + _SPARSE.pack(_CAP_SPARSE_MMAP, 1, 0, len(info.areas), 0) + areas


def _parse_region(payload: bytes) -> RegionInfo:
    argsz, flags, index, at, size, offset = _REGION.unpack_from(payload)
    areas: tuple[Area, ...] = ()
    if flags & RegionFlag.CAPS and argsz <= len(payload):
        areas = _areas(payload, at)
    return RegionInfo(index, flags, size, offset, areas, argsz)


def _areas(payload: bytes, at: int) -> tuple[Area, ...]:
    """Those of the capability SPARSE_MMAP in the list that begins at ``at``, which only goes on."""
    before = 0
    while at:
        if not before < at <= len(payload) - _CAPABILITY.size or at < _REGION.size:
            raise MessageError(f"a region's capability at {at} of {len(payload)} bytes")
        number, _, following = _CAPABILITY.unpack_from(payload, at)
        if number == _CAP_SPARSE_MMAP:
            if at + _SPARSE.size > len(payload):
                raise MessageError(f"the areas of a region at {at} of {len(payload)} bytes")
            count = _SPARSE.unpack_from(payload, at)[3]
            begin = at + _SPARSE.size
            if count > MAX_PARTS or begin + count * _AREA.size > len(payload):
                raise MessageError(f"{count} areas of a region in {len(payload)} bytes")
            return tuple(
                Area(*each) for each in _AREA.iter_unpack(payload[begin : begin + count * _AREA.size])
            )
        before, at = at, following
    return ()


def _build_io_fds(fds: RegionIoFds) -> bytes:
    parts = b"".join(
        _IO_FD.pack(part.offset, part.size, part.fd_index, part.type, part.flags, part.datamatch)
        for part in fds.parts
    )
    argsz = _FOUR.size + len(parts) if parts else fds.argsz
    return _FOUR.pack(argsz, fds.flags, fds.index, len(fds.parts) or fds.count) + parts


def _parse_io_fds(payload: bytes) -> RegionIoFds:
    argsz, flags, index, count = _FOUR.unpack_from(payload)
    rest = payload[_FOUR.size :]
    parts: tuple[IoEventFd, ...] = ()
    if rest:
        # The size of a part is not to be relied on, says the text; its first fields are.
        stride = len(rest) // count if 0 < count <= MAX_PARTS else 0
        if stride < _IO_FD.size or stride * count != len(rest):
            raise MessageError(f"{count} parts of a region in {len(rest)} bytes")
        parts = tuple(IoEventFd(*_IO_FD.unpack_from(rest, number * stride)) for number in range(count))
    return RegionIoFds(index, count, parts, flags, argsz)


def _parse_irq_info(payload: bytes) -> IrqInfo:
    argsz, flags, index, count = _FOUR.unpack(payload)
    return IrqInfo(index, flags, count, argsz)


def _parse_irq_set(payload: bytes) -> IrqSet:
    _, flags, index, start, count = _IRQ_SET.unpack_from(payload)
    return IrqSet(flags, index, start, count, payload[_IRQ_SET.size :])


def _parse_write(payload: bytes) -> RegionAccess:
    offset, region, count = _ACCESS.unpack_from(payload)
    data = payload[_ACCESS.size :]
    if len(data) != count:
        raise MessageError(f"an access of {count} bytes carries {len(data)}")
    return RegionAccess(offset, region, count, data)


def _parse_dma(payload: bytes) -> DmaAccess:
    address, count = _DMA.unpack_from(payload)
    data = payload[_DMA.size :]
    if len(data) != count:
        raise MessageError(f"an access of {count} bytes carries {len(data)}")
    return DmaAccess(address, count, data)


def _parse_dma_written(payload: bytes) -> DmaAccess:
    (address,) = _U64.unpack_from(payload)
    return DmaAccess(address, _U32.unpack_from(payload, 8)[0])


def _build_writes(writes: tuple[RegionAccess, ...]) -> bytes:
    return _U64.pack(len(writes)) + b"".join(
        _WRITE.pack(each.offset, each.region, each.count, each.data) for each in writes
    )


def _parse_writes(payload: bytes) -> tuple[RegionAccess, ...]:
    (count,) = _U64.unpack_from(payload)
    if len(payload) != _U64.size + count * _WRITE.size:
        raise MessageError(f"{count} writes in {len(payload)} bytes")
    writes = []
    for offset, region, size, data in _WRITE.iter_unpack(payload[_U64.size :]):
        if size > MULTI_DATA:
            raise MessageError(f"a write of {size} bytes among several")
        writes.append(RegionAccess(offset, region, size, data[:size]))
    return tuple(writes)


def _parse_feature(payload: bytes) -> DeviceFeature:
    argsz, flags = _FEATURE.unpack_from(payload)
    return DeviceFeature(flags, payload[_FEATURE.size :], argsz)


def _parse_migration(payload: bytes) -> MigrationData:
    _, size = _FEATURE.unpack_from(payload)
    data = payload[_FEATURE.size :]
    if data and len(data) != size:
        raise MessageError(f"migration data of {size} bytes carries {len(data)}")
    return MigrationData(size, data)


def _pack_map(value: DmaMap) -> bytes:
    return _MAP.pack(_MAP.size, *astuple(value))


def _pack_unmap(value: DmaUnmap) -> bytes:
    return _UNMAP.pack(_UNMAP.size, *astuple(value))


DMA_MAP: Final[Layout[DmaMap]] = Layout(
    "DMA mapping", _MAP.size, _MAP.size, _pack_map, lambda payload: DmaMap(*_MAP.unpack(payload)[1:])
)
#: With GET_DIRTY_BITMAP more may come, which nobody here reads.
DMA_UNMAP: Final[Layout[DmaUnmap]] = Layout(
    "end of a DMA mapping",
    _UNMAP.size,
    _UNMAP.size + _AREA.size,
    _pack_unmap,
    lambda payload: DmaUnmap(*_UNMAP.unpack_from(payload)[1:]),
)
DEVICE_INFO: Final[Layout[DeviceInfo]] = Layout(
    "device info",
    _FOUR.size,
    _FOUR.size,
    lambda info: _FOUR.pack(info.argsz, info.flags, info.num_regions, info.num_irqs),
    _parse_device_info,
)
REGION_INFO: Final[Layout[RegionInfo]] = Layout(
    "region info", _REGION.size, _REGION.size + MAX_PARTS * _AREA.size, _build_region, _parse_region
)
REGION_IO_FDS: Final[Layout[RegionIoFds]] = Layout(
    "region I/O descriptors", _FOUR.size, _FOUR.size + MAX_PARTS * _IO_FD.size, _build_io_fds, _parse_io_fds
)
IRQ_INFO: Final[Layout[IrqInfo]] = Layout(
    "interrupt info",
    _FOUR.size,
    _FOUR.size,
    lambda info: _FOUR.pack(info.argsz, info.flags, info.index, info.count),
    _parse_irq_info,
)
IRQ_SET: Final[Layout[IrqSet]] = Layout(
    "interrupt setting",
    _IRQ_SET.size,
    _IRQ_SET.size + MAX_PARTS,
    lambda value: (
        _IRQ_SET.pack(_IRQ_SET.size + len(value.data), value.flags, value.index, value.start, value.count)
        + value.data
    ),
    _parse_irq_set,
)
REGION_RANGE: Final[Layout[RegionAccess]] = Layout(
    "region range",
    _ACCESS.size,
    _ACCESS.size,
    lambda value: _ACCESS.pack(value.offset, value.region, value.count),
    lambda payload: RegionAccess(*_ACCESS.unpack(payload)),
)
REGION_DATA: Final[Layout[RegionAccess]] = Layout(
    "region data",
    _ACCESS.size,
    _ACCESS.size + MAX_TRANSFER,
    lambda value: _ACCESS.pack(value.offset, value.region, value.count) + value.data,
    _parse_write,
)
DMA_RANGE: Final[Layout[DmaAccess]] = Layout(
    "DMA range",
    _DMA.size,
    _DMA.size,
    lambda value: _DMA.pack(value.address, value.count),
    lambda payload: DmaAccess(*_DMA.unpack(payload)),
)
DMA_DATA: Final[Layout[DmaAccess]] = Layout(
    "DMA data",
    _DMA.size,
    _DMA.size + MAX_TRANSFER,
    lambda value: _DMA.pack(value.address, value.count) + value.data,
    _parse_dma,
)
#: The text's table says four bytes of count, QEMU and libvfio-user send eight.
DMA_WRITTEN: Final[Layout[DmaAccess]] = Layout(
    "DMA written",
    _DMA.size - 4,
    _DMA.size,
    lambda value: _DMA.pack(value.address, value.count),
    _parse_dma_written,
)
REGION_WRITES: Final[Layout[tuple[RegionAccess, ...]]] = Layout(
    "region writes", _U64.size, _U64.size + MAX_WRITES * _WRITE.size, _build_writes, _parse_writes
)
WRITES_DONE: Final[Layout[int]] = Layout(
    "writes done", _U64.size, _U64.size, _U64.pack, lambda payload: int(_U64.unpack(payload)[0])
)
DEVICE_FEATURE: Final[Layout[DeviceFeature]] = Layout(
    "device feature",
    _FEATURE.size,
    _FEATURE.size + MAX_TRANSFER,
    lambda value: _FEATURE.pack(value.argsz, value.flags) + value.data,
    _parse_feature,
)
MIGRATION_DATA: Final[Layout[MigrationData]] = Layout(
    "migration data",
    _FEATURE.size,
    _FEATURE.size + MAX_TRANSFER,
    lambda value: _FEATURE.pack(_FEATURE.size + len(value.data), value.size) + value.data,
    _parse_migration,
)
