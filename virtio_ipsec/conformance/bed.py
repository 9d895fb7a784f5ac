"""The target file: which device is tested, what its test bed can do, and which deviations its vendor declares.

::

    device = "vhost-user:/tmp/vu.sock"
    wire = "tap:tap0"
    inject = true         # frames can be put on the device's wire
    capture = true        # frames that leave can be seen
    reset = true          # a device that hangs comes back when it is opened anew
    patience = 2.0        # seconds to wait for an answer
    long_run = 20000      # packets of one SA in the run that looks for an IV twice

    [details]
    vendor = "Example"
    model = "NIC 1"
    firmware = "1.2.3"

    [[deviation]]
    names = "NET-IPSEC-DEV-04"        # a clause or a case
    reason = "SAs with ESN: firmware 1.3"

A declared deviation explains a verdict and never changes it: a broken MUST stays a failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from virtio_ipsec.conformance.case import load_cases
from virtio_ipsec.conformance.result import Deviation
from virtio_ipsec.conformance.target import Target, open_target
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.tables import FILE, Table, document
from virtio_ipsec.wire.dialect import Dialect

_LONGEST_PATIENCE = 3600.0
_FIELDS = frozenset(
    {"device", "wire", "inject", "capture", "reset", "patience", "long_run", "details", "deviation"}
)
_LONGEST_RUN = 10_000_000


@dataclass(frozen=True, slots=True)
class Bed:
    """What a target file says."""

    device: str = "loopback"
    wire: str = ""
    inject: bool = True
    capture: bool = True
    reset: bool = True
    patience: float | None = None
    long_run: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    deviations: tuple[Deviation, ...] = ()


def read(path: Path) -> Bed:
    """The target file at ``path``. ConfigError says what is wrong with it, and where."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: str) -> Bed:
    """The target file whose text this is."""
    top = Table(document(text), FILE, _FIELDS)
    details = top.table("details", None)
    if details and not all(map(str.isprintable, details.values)):
        top.refuse("details", "must have printable names")
    return Bed(
        device=top.text("device", "loopback"),
        wire=top.text("wire", ""),
        inject=top.boolean("inject", True),
        capture=top.boolean("capture", True),
        reset=top.boolean("reset", True),
        patience=top.number("patience", _LONGEST_PATIENCE),
        long_run=top.integer("long_run", 1, _LONGEST_RUN) if "long_run" in top.values else None,
        details={name: details.text(name) for name in details.values} if details else {},
        deviations=tuple(
            _deviation(entry) for entry in top.tables("deviation", frozenset({"names", "reason"}))
        ),
    )


def _deviation(entry: Table) -> Deviation:
    names, reason = entry.text("names").strip(), entry.text("reason").strip()
    known = {case.id for case in load_cases()} | {clause.id for clause in load_clauses()}
    if names not in known:
        entry.refuse("names", f"{names[:60]!r} is neither a clause nor a case")
    if not reason:
        entry.refuse("reason", "is empty")
    return Deviation(names, reason)


@contextmanager
def open_bed(bed: Bed, dialect: Dialect) -> Iterator[Target]:
    """The target, as the bed limits and describes it. ConfigError and TransportError as :func:`open_target`."""
    with open_target(bed.device, dialect, bed.wire or None) as target:
        yield cast(Target, _Limited(target, bed))


class _Limited:
    """A target as its bed describes it: everything it does not say is the target's own."""

    def __init__(self, target: Target, bed: Bed) -> None:
        self._target = target
        self.has_wire = target.has_wire and bed.inject and bed.capture
        self.patience = target.patience if bed.patience is None else bed.patience
        self.details = {**target.details, **bed.details}
        if bed.long_run is not None:
            self.long_run = bed.long_run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)
