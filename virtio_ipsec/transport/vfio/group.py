"""Taking a PCI function into VFIO's hands: what has to be there, and in one line what to do where it is not."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.vfio.kernel import API_VERSION, Descriptor, Ioctl, Iommu, Request
from virtio_ipsec.transport.virtio_pci.access import AccessRefused

_ADDRESS: Final = re.compile(r"(?:([0-9a-f]{4,}):)?([0-9a-f]{2}:[0-1][0-9a-f]\.[0-7])", re.IGNORECASE)
_DRIVER: Final = "vfio-pci"


def full_address(text: str) -> str:
    """``0000:03:00.0`` for that or ``03:00.0``; ConfigError for what is no address of a PCI function."""
    if (match := _ADDRESS.fullmatch(text)) is None:
        raise ConfigError(f"{text!r} is no PCI address like 0000:03:00.0")
    return f"{match[1] or '0000'}:{match[2]}".lower()


@dataclass(frozen=True, slots=True)
class Holding:
    """What is open for one function: close the device first, then the group, then the container."""

    container: Descriptor
    group: Descriptor
    device: Descriptor
    has_iommu: bool

    def close(self) -> None:
        """Give the function back."""
        for each in (self.device, self.group, self.container):
            each.close()


def take(address: str, root: Path = Path("/"), ioctl: Ioctl = fcntl.ioctl) -> Holding:
    """Open a function. TransportError that says what is missing; ``root`` is where ``sys`` and ``dev`` are."""
    node, has_iommu = _group_node(address, root)
    opened: list[Descriptor] = []
    try:
        container = _open(root / "dev/vfio/vfio", ioctl, opened)
        if container.call(Request.GET_API_VERSION) != API_VERSION:
            raise TransportError("this kernel's VFIO speaks another version of its interface")
        group = _open(node, ioctl, opened)
        if not group.is_viable():
            raise TransportError(
                f"{address} shares its IOMMU group with functions that have other drivers: "
                f"bind all of /sys/bus/pci/devices/{address}/iommu_group/devices to {_DRIVER}"
            )
        group.call(Request.GROUP_SET_CONTAINER, bytearray(container.fd.to_bytes(4, "little")))
        container.call(Request.SET_IOMMU, Iommu.TYPE1V2 if has_iommu else Iommu.NOIOMMU)
        device = Descriptor(
            group.call(Request.GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0")), ioctl
        )
    except BaseException:
        for each in reversed(opened):
            each.close()
        raise
    return Holding(container, group, device, has_iommu)


def _group_node(address: str, root: Path) -> tuple[Path, bool]:
    """The file of the function's group, and whether there is an IOMMU."""
    device = root / "sys/bus/pci/devices" / address
    if not device.exists():
        raise TransportError(f"there is no PCI function {address}: see lspci -D")
    driver = _target(device / "driver")
    if driver != _DRIVER:
        way = f"/sys/bus/pci/devices/{address}"
        unbind = f"echo {address} > {way}/driver/unbind; " if driver else ""
        raise TransportError(
            f"{address} is bound to {driver or 'no driver'}, not to {_DRIVER}; try: modprobe {_DRIVER}; "
            f"echo {_DRIVER} > {way}/driver_override; {unbind}echo {address} > /sys/bus/pci/drivers_probe"
        )
    group = _target(device / "iommu_group")
    if group is None:
        raise TransportError(
            f"{address} has no IOMMU group; to do without an IOMMU, try: "
            "echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, then bind it anew"
        )
    without = root / "dev/vfio" / f"noiommu-{group}"
    return (without, False) if without.exists() else (root / "dev/vfio" / group, True)


def _target(link: Path) -> str | None:
    with suppress(OSError):
        return Path(os.readlink(link)).name
    return None


def _open(path: Path, ioctl: Ioctl, opened: list[Descriptor]) -> Descriptor:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AccessRefused(f"{path}: {os.strerror(error.errno or 0)}") from None
    opened.append(Descriptor(fd, ioctl))
    return opened[-1]
