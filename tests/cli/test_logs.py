"""The log of a verb that keeps running: one line for each event, whatever a peer has put into it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from virtio_ipsec.cli.logs import log_to_stderr

LOG = logging.getLogger("virtio_ipsec.transport.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("virtio_ipsec")
    before = root.handlers[:], root.propagate, root.level, logging.raiseExceptions
    yield
    root.handlers[:], root.propagate, root.level, logging.raiseExceptions = before


def test_a_plain_line_has_time_level_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=False)
    LOG.warning("port %s: front-end closed", "green", extra={"fields": {"reason": "bad\nsize", "number": 7}})
    LOG.debug("not shown")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    time, level, rest = line.rstrip("\n").split(" ", 2)
    assert time.endswith("Z")
    assert (len(time), level) == (24, "warning")
    assert rest == r"port green: front-end closed reason=bad\nsize number=7"


def test_a_json_line_has_the_fields_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=True)
    LOG.info("serving", extra={"fields": {"port": "grün\n", "features": 1 << 70}})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info", "source": "transport.test", "message": "serving", "port": "grün\n", "features": 1 << 70
    }  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
def test_a_defect_has_its_traceback(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=as_json)
    try:
        raise ZeroDivisionError("ours")
    except ZeroDivisionError:
        LOG.exception("an internal error")
    text = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in text
    assert (text.count("\n") == 1) == as_json


def test_setting_it_up_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=False)
    log_to_stderr(as_json=False)
    LOG.info("once")
    assert capsys.readouterr().err.count("once") == 1
