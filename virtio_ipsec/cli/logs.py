"""What a verb that keeps running writes to standard error: a line for each event, plain or as JSON.

Fields go into a record by ``extra={"fields": {...}}``; JSON has them as they are, a plain line at its end.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_ROOT = "virtio_ipsec"


def escaped(text: str) -> str:
    """``text`` on one line, whatever a file name or a peer has put into it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


class PlainFormatter(logging.Formatter):
    """``2026-11-21T12:00:00.000Z warning message name=value``; a defect of ours has its traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, apart from tracebacks."""
        parts = [_time(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{name}={value}" for name, value in _fields(record).items()]
        text = escaped(" ".join(parts))
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``source``, ``message`` and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "source": record.name.removeprefix(f"{_ROOT}."),
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(*, as_json: bool, level: int = logging.INFO) -> None:
    """From now on our log goes to standard error; what was set up before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    root = logging.getLogger(_ROOT)
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level)
    # A log that cannot be written (the terminal has gone) must not end what it tells about.
    logging.raiseExceptions = False
