"""A virtual machine with a stock driver behind our device; its peer protects in the Linux kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import xfrm

pytestmark = [pytest.mark.guests, pytest.mark.interop("qemu-system-x86_64")]


def test_every_protection_against_the_linux_kernel(tmp_path: Path) -> None:
    table = xfrm.run(tmp_path, show=print)
    assert not table.failed, "\n".join(map(str, table.rows))
