"""A network namespace for the thread that asks for one, and for the programs that it starts."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def enter(fd: int) -> None:
    """Another thread joins."""
    assert _libc.setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def own_namespace() -> Iterator[int]:
    """A fresh one, without IPv6's chatter; a descriptor of it. Needs root."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        ip("link", "set", "lo", "up")
        yield here
    finally:
        enter(before)
        os.close(before)
        os.close(here)
