"""Fuzz entries, for so long as a test may take: the same inputs each time."""

from __future__ import annotations

import fuzz_control
import fuzz_members
import fuzz_vfio_user
import pytest
from harness import fuzz


def test_the_control_socket() -> None:
    try:
        assert fuzz(fuzz_control.TARGETS, ["--count", "120"]) == 0
    finally:
        fuzz_control.stage().close()
        fuzz_control.stage.cache_clear()


def test_the_server_of_vfio_user() -> None:
    try:
        assert fuzz(fuzz_vfio_user.TARGETS, ["--count", "40"]) == 0
        reached = fuzz_vfio_user.stage().host.port.counters()
        for name in ("tx_frames", "rx_frames", "control_errors", "refused_messages", "protocol_errors"):
            assert reached[name]
    finally:
        fuzz_vfio_user.stage().close()
        fuzz_vfio_user.stage.cache_clear()


def test_what_the_entry_of_the_control_socket_would_find() -> None:
    for heard, said in (
        (b'{"id":0,"result":{"key":"%s"}}\n' % fuzz_control.KEY.encode(), b"sa.list\n"),
        (b'{"id":0,"result":{}}\n', b"two\nlines\n"),
        (b'{"id":0,"error":"two\\nlines"}\n', b"x\n"),
        (b'{"id":0,"error":"an internal error, which the log describes"}\n', b"x\n"),
    ):
        with pytest.raises(AssertionError):
            fuzz_control.judge(heard, said, changed=False)
    with pytest.raises(AssertionError, match="refused"):
        fuzz_control.judge(b'{"id":0,"error":"no"}\n', b"x\n", changed=True)


def test_owners_and_members() -> None:
    assert fuzz(fuzz_members.TARGETS, ["--count", "25"]) == 0
