"""Where mapped memory lies in this process."""

from __future__ import annotations

import ctypes
import mmap


def address_of(mapping: mmap.mmap) -> int:
    """Its first byte's virtual address, valid while it is mapped."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
