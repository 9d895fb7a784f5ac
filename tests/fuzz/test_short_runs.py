"""Fuzz entries, for so long as a test may take: the same inputs each time."""

from __future__ import annotations

import fuzz_control
import pytest
from harness import fuzz


def test_the_control_socket() -> None:
    try:
        assert fuzz(fuzz_control.TARGETS, ["--count", "120"]) == 0
    finally:
        fuzz_control.stage().close()
        fuzz_control.stage.cache_clear()


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
