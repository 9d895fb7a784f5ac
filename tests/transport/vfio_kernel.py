"""VFIO as the kernel has it, out of files: a tree of ``sys`` and ``dev``, a device in a memory file, and ioctls by
hand after ``<linux/vfio.h>``."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handmade_function import BAR_SIZE, NOTIFY

ADDRESS = "0000:00:04.0"
#: Where regions lie in the device's file: the kernel has them 2 ** 40 apart.
SHIFT = 40
SIZES = {0: BAR_SIZE, 4: 0x4000, 7: 4096}


@dataclass
class Kernel:
    """``has_iommu``: its group is a real one. ``calls`` are the ioctls, ``fail`` has errnos for some."""

    root: Path
    has_iommu: bool = True
    driver: str | None = "vfio-pci"
    has_group: bool = True
    viable: bool = True
    version: int = 0
    calls: list[int] = field(default_factory=list)
    fail: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.root / "sys/bus/pci/devices" / ADDRESS
        device.mkdir(parents=True)
        for name, target in (("driver", self.driver), ("iommu_group", "7" if self.has_group else None)):
            if target:
                (device / name).symlink_to(f"../somewhere/{target}")
        dev = self.root / "dev/vfio"
        dev.mkdir(parents=True)
        for name in ("vfio", "7" if self.has_iommu else "noiommu-7"):
            (dev / name).touch()
        self.device = os.memfd_create("device")
        os.ftruncate(self.device, 8 << SHIFT)
        self.mapped: dict[int, tuple[bytes, int]] = {}
        self.irqs: list[tuple[int, int, int, int, tuple[int, ...]]] = []
        self.mode = 0

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        number = request - 0x3B64
        self.calls.append(number)
        if number in self.fail:
            raise OSError(self.fail[number], "as told")
        handler = {
            0: self.api, 2: self.set_iommu, 3: self.status, 4: self.container, 6: self.get_device, 7: self.info,
            8: self.region, 9: self.irq, 10: self.set_irqs, 11: self.reset, 13: self.map_dma, 14: self.unmap_dma,
        }.get(number)  # fmt: skip
        if handler is None:
            raise OSError(errno.ENOTTY, "as told")
        return handler(argument)

    def api(self, _: int) -> int:
        return self.version

    def set_iommu(self, kind: int) -> int:
        self.mode = kind
        return 0

    def status(self, data: bytearray) -> int:
        assert struct.unpack("=II", data) == (8, 0)
        struct.pack_into("=II", data, 0, 8, 1 if self.viable else 0)
        return 0

    def container(self, data: bytearray) -> int:
        (fd,) = struct.unpack("=i", data)
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("/vfio")
        return 0

    def get_device(self, name: bytearray) -> int:
        assert name == ADDRESS.encode() + b"\0"
        return os.dup(self.device)

    def info(self, data: bytearray) -> int:
        struct.pack_into("=IIII", data, 0, 16, 3, 9, 5)
        return 0

    def region(self, data: bytearray) -> int:
        argsz, _, index = struct.unpack_from("=III", data)
        assert argsz == len(data)
        size, needed = SIZES.get(index, 0), 64 if index == 0 else 32
        flags = 7 if index in (0, 4) else 3
        struct.pack_into("=IIIIQQ", data, 0, needed, flags, index, 0, size, index << SHIFT)
        if index == 0 and argsz >= needed:
            struct.pack_into("=II4xI", data, 0, needed, flags | 8, 32)
            struct.pack_into("=HHIIIQQ", data, 32, 1, 1, 0, 1, 0, NOTIFY, 0x1000)
        return 0

    def irq(self, data: bytearray) -> int:
        argsz, _, index = struct.unpack_from("=III", data)
        struct.pack_into("=IIII", data, 0, argsz, 1, index, {0: 1, 2: 5}.get(index, 0))
        return 0

    def set_irqs(self, data: bytearray) -> int:
        argsz, flags, index, start, count = struct.unpack_from("=IIIII", data)
        assert argsz == len(data)
        self.irqs.append((flags, index, start, count, struct.unpack(f"={(argsz - 20) // 4}i", data[20:])))
        return 0

    def reset(self, _: int) -> int:
        return 0

    def map_dma(self, data: bytearray) -> int:
        argsz, flags, address, iova, size = struct.unpack("=IIQQQ", data)
        assert (argsz, flags) == (32, 3)
        self.mapped[iova] = ctypes.string_at(address, 4), size
        return 0

    def unmap_dma(self, data: bytearray) -> int:
        argsz, flags, iova, size = struct.unpack("=IIQQ", data)
        assert (argsz, flags) == (24, 0)
        assert self.mapped.pop(iova)[1] == size
        return 0
