"""Print the feature words that a virtio function offers, and what it says of its administration virtqueues.

  offered.py ADDRESS

Read through its PCI configuration space alone, as sysfs shows it (virtio v1.4 4.1.4.9): the driver that is bound does
not notice. Uses nothing of ours: it is the second witness.
"""

import os
import sys

CAP_POINTER, VENDOR = 0x34, 0x09
COMMON, PCI_CFG = 1, 5
FEATURE_SELECT, FEATURE, ADMIN_INDEX, ADMIN_NUM = 0, 4, 60, 62

space = os.open(f"/sys/bus/pci/devices/{sys.argv[1]}/config", os.O_RDWR)


def read(at: int, width: int) -> int:
    return int.from_bytes(os.pread(space, width, at), "little")


def write(at: int, width: int, value: int) -> None:
    assert os.pwrite(space, value.to_bytes(width, "little"), at) == width


places = {}
at = read(CAP_POINTER, 1)
while at:
    if read(at, 1) == VENDOR:
        places.setdefault(read(at + 3, 1), at)
    at = read(at + 1, 1)
window, common = places[PCI_CFG], places[COMMON]
bar, begin = read(common + 4, 1), read(common + 8, 4)


def point(offset: int, width: int) -> None:
    write(window + 4, 1, bar)
    write(window + 8, 4, begin + offset)
    write(window + 12, 4, width)


def read_common(offset: int, width: int) -> int:
    point(offset, width)
    return read(window + 16, width)


def write_common(offset: int, width: int, value: int) -> None:
    point(offset, width)
    write(window + 16, width, value)


offered = 0
for word in range(4):
    write_common(FEATURE_SELECT, 4, word)
    offered |= read_common(FEATURE, 4) << 32 * word
print("offered", *(bit for bit in range(128) if offered >> bit & 1))
print("admin", read_common(ADMIN_INDEX, 2), read_common(ADMIN_NUM, 2))
