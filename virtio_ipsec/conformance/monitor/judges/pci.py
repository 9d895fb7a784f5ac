"""The common configuration of a PCI function (virtio v1.4 4.1.4.3), and what can be seen only there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Life, Run
from virtio_ipsec.transport.monitor.events import Register
from virtio_ipsec.wire.numbers import Feature, Status

_PCI = "pci"
#: Fields that are read-only for the driver.
_READ_ONLY = frozenset(
    {
        "device_feature",
        "num_queues",
        "config_generation",
        "queue_notify_off",
        "queue_notif_config_data",
        "admin_queue_index",
        "admin_queue_num",
    }
)
#: What describes a queue besides its switch.
_QUEUE_FIELDS = frozenset({"queue_size", "queue_msix_vector", "queue_desc", "queue_driver", "queue_device"})


def _accesses(run: Run) -> Iterator[tuple[Life, list[tuple[int, Register]]]]:
    for life in run.lives:
        if life.shows(_PCI):
            yield life, list(life.of(Register))


def _writes(run: Run, name: str) -> Iterator[tuple[Life, int, Register]]:
    for life, accesses in _accesses(run):
        for at, event in accesses:
            if event.is_write and event.name == name:
                yield life, at, event


@judge("PCI-CC-DRV-01", when="the common configuration was written", shown=_PCI)
def read_only_fields(run: Run) -> Iterator[Finding]:
    """The read-only fields of the common configuration are not written."""
    for _, accesses in _accesses(run):
        for at, event in accesses:
            if event.is_write:
                yield Finding(event.name not in _READ_ONLY, "a field that can be written", event.name, at)


@judge("PCI-CC-DRV-02", when="queue_size was written with VIRTIO_F_RING_PACKED", shown=_PCI)
def packed_size(run: Run) -> Iterator[Finding]:
    """With VIRTIO_F_RING_PACKED queue_size is never written as 0."""
    for life, at, event in _writes(run, "queue_size"):
        if life.has(Feature.F_RING_PACKED):
            yield Finding(event.value != 0, "a size", "0", at)


@judge("PCI-CC-DRV-03", when="queue_size was written without VIRTIO_F_RING_PACKED", shown=_PCI)
def split_size(run: Run) -> Iterator[Finding]:
    """Without VIRTIO_F_RING_PACKED queue_size is a power of two, or 0."""
    for life, at, event in _writes(run, "queue_size"):
        if not life.has(Feature.F_RING_PACKED):
            yield Finding(not event.value & (event.value - 1), "a power of two", f"{event.value}", at)


@judge("PCI-CC-DRV-04", when="a queue was enabled", shown=_PCI)
def enabled_last(run: Run) -> Iterator[Finding]:
    """A queue's fields are written before queue_enable, and its addresses are there."""
    for _, accesses in _accesses(run):
        enabled: set[int] = set()
        given: dict[int, set[str]] = {}
        for at, event in accesses:
            if event.name == "device_status" and event.is_write and not event.value:
                enabled.clear()
                given.clear()
            if not event.is_write:
                continue
            if event.name == "queue_reset":
                enabled.discard(event.queue)
                given.pop(event.queue, None)
            elif event.name in _QUEUE_FIELDS and event.queue in enabled:
                yield Finding(
                    event.name == "queue_msix_vector", "no field after queue_enable", event.name, at
                )
            elif event.name in _QUEUE_FIELDS:
                given.setdefault(event.queue, set()).add(event.name)
            elif event.name == "queue_enable" and event.value:
                missing = {"queue_desc", "queue_driver", "queue_device"} - given.get(event.queue, set())
                yield Finding(not missing, "its addresses written", f"not {', '.join(sorted(missing))}", at)
                enabled.add(event.queue)


@judge("PCI-CC-DRV-05", when="0 was written to device_status", shown=_PCI)
def waits_for_zero(run: Run) -> Iterator[Finding]:
    """After writing 0 to device_status the driver waits until it reads 0."""
    for _, accesses in _accesses(run):
        yield from _waits(accesses, "device_status", lambda event: event.value == 0)


def _waits(
    accesses: list[tuple[int, Register]], name: str, starts: Callable[[Register], bool]
) -> Iterator[Finding]:
    """After a write to ``name`` nothing else is written before it reads 0."""
    waiting: tuple[int, Register] | None = None
    for at, event in accesses:
        if event.name == name and event.is_write and starts(event):
            waiting = at, event
        elif waiting is not None and not event.is_write and event.name == name:
            if event.value == 0:
                yield Finding(True, f"{name} read as 0", "0", at)
                waiting = None
        elif waiting is not None and event.is_write and event.name != "queue_select":
            yield Finding(False, f"{name} read as 0 first", f"{event.name} written", at)
            waiting = None


@judge("PCI-CC-DRV-06", when="queue_enable was written", shown=_PCI)
def never_disabled(run: Run) -> Iterator[Finding]:
    """0 is never written to queue_enable."""
    for _, at, event in _writes(run, "queue_enable"):
        yield Finding(event.value != 0, "1", "0", at)


@judge("PCI-CC-DRV-07", "BAS-RESET-06", when="1 was written to queue_reset", shown=_PCI)
def queue_reset_verified(run: Run) -> Iterator[Finding]:
    """After writing 1 to queue_reset the driver reads it until it is 0, before it does anything else."""
    for _, accesses in _accesses(run):
        yield from _waits(accesses, "queue_reset", lambda event: event.value == 1)


@judge("PCI-CC-DRV-08", when="queues were set up with VIRTIO_F_ADMIN_VQ", shown=_PCI)
def admin_queues_in_range(run: Run) -> Iterator[Finding]:
    """Administration queues are set up only within the range that the device announces."""
    for life, at, event in _writes(run, "queue_enable"):
        if life.has(Feature.F_ADMIN_VQ) and event.queue >= life.began.num_queues:
            known = range(life.began.admin_index, life.began.admin_index + life.began.admin_num)
            expected = f"a queue from {known.start} to {known.stop - 1}"
            yield Finding(event.queue in known, expected, f"queue {event.queue}", at)


@judge(
    "BAS-INIT-03",
    when="features were agreed on, with a configuration space longer than the text's",
    shown=_PCI,
)
def longer_config(run: Run) -> Iterator[Finding]:
    """A configuration space that is longer than expected is accepted."""
    for life in run.lives:
        if life.shows("long config") and life.status_reached & Status.FEATURES_OK:
            at = life.begin + len(life.events) - 1
            yield Finding(life.is_operating, "DRIVER_OK", f"status {life.status_reached:#x}", at)
