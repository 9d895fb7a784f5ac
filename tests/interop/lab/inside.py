"""Python and our package inside a guest: two read-only disks, made from what runs the tests."""

from __future__ import annotations

import compileall
import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import cffi
import construct
import cryptography
from lab.guest import images

ROOT = Path(__file__).parents[3]
_MAKE = ROOT / "tests" / "interop" / "guest" / "make-python-image"
#: What a guest gets of the tree, and the names it has there.
_OURS = {
    "virtio_ipsec": "virtio_ipsec", "spec": "spec", "tests/interop/lab": "lab", "tests/interop/guest": "guest",
}  # fmt: skip

#: Start a program with it: ``{PYTHON} -m virtio_ipsec …``.
PYTHON = (
    "env PYTHONHOME=/python PYTHONPATH=/ours:/python/packages PYTHONDONTWRITEBYTECODE=1 "
    "LD_LIBRARY_PATH=/python/lib /python/bin/python3"
)
#: For a guest whose disks are :func:`disks`.
SET_UP = """
modprobe virtio_blk
until [ -b /dev/vdb ]; do sleep 0.1; done
mkdir -p /python /ours
mount -t ext4 -o ro /dev/vda /python
tar -x -C /ours -f /dev/vdb
"""

#: Of 2 MiB, for our driver: without an IOMMU it has no other memory, with one they are fewer entries.
HUGE_PAGES = "echo 48 >/proc/sys/vm/nr_hugepages"


def disks(folder: Path) -> tuple[Path, Path]:
    """The disks, in the order that :data:`SET_UP` wants."""
    return _python_disk(), _our_disk(folder / "ours.tar")


def _python_disk() -> Path:
    versions = (sys.version, *(each.__version__ for each in (cffi, construct, cryptography)))
    name = hashlib.sha256("\n".join((*versions, _MAKE.read_text())).encode()).hexdigest()[:16]
    disk = images() / f"python-{name}.img"
    if not disk.exists():
        for old in images().glob("python-*.img"):
            old.unlink()
        subprocess.run([_MAKE, sys.executable, disk], check=True)
    return disk


def _our_disk(path: Path) -> Path:
    # A guest without hardware help compiles slowly.
    compileall.compile_dir(ROOT / "virtio_ipsec", quiet=2)
    with tarfile.open(path, "w") as archive:
        for source, name in _OURS.items():
            archive.add(ROOT / source, name)
    return path


def bind_to_vfio(address: str, *, iommu: bool) -> str:
    """Script: the function at that address to vfio-pci. Without an IOMMU by the module that ``setup --vfio`` builds."""
    module = "true" if iommu else "insmod /noiommu/vfio.ko enable_unsafe_noiommu_mode=1"
    return f"""
[ -d /sys/module/vfio ] || {module}
modprobe -a vfio vfio_iommu_type1 vfio-pci
device=/sys/bus/pci/devices/{address}
echo vfio-pci >$device/driver_override
[ ! -e $device/driver ] || echo {address} >$device/driver/unbind
echo {address} >/sys/bus/pci/drivers_probe
[ "$(basename "$(readlink $device/driver)")" = vfio-pci ]
"""
