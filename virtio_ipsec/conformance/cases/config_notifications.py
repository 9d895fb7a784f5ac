"""Configuration change notifications, brought about by what a driver has in its hands: a ring that cannot be obeyed.

A device from which only a reset helps should set DEVICE_NEEDS_RESET, and the driver has to be told of that as of a
changed configuration (virtio v1.4 2.1.2, 2.3). No driver can change the configuration itself.
"""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.device_life import settle
from virtio_ipsec.conformance.cases.pci_function import vectors
from virtio_ipsec.conformance.verdict import Unsupported, Wedged
from virtio_ipsec.transport.virtio_pci.tables import NO_VECTOR, CommonCfg, Isr
from virtio_ipsec.wire.numbers import Status

_QUEUE = 1
#: Of a split ring's driver area: where the index and the first entry are.
_INDEX, _RING = 2, 4


def changes(bench: Bench) -> int:
    """How often the device has told of its configuration. Unsupported where the test bed does not hear of that."""
    count: int | None = getattr(bench.target, "config_changes", None)
    if count is None:
        raise Unsupported("the test bed does not show configuration change notifications")
    return count


def fail(bench: Bench) -> None:
    """Make the device set DEVICE_NEEDS_RESET: the transmit ring, a split one, names a descriptor behind its table.
    Unsupported when it does not."""
    layout, memory = bench.queues.state(_QUEUE).layout, bench.target.memory
    memory.put_u16(layout.driver + _RING, layout.size)
    memory.put_u16(layout.driver + _INDEX, 1)
    bench.queues.kick(_QUEUE)
    try:
        bench.wait(lambda: bool(bench.target.status() & Status.DEVICE_NEEDS_RESET), "DEVICE_NEEDS_RESET")
    except Wedged:
        raise Unsupported(
            "the device does not set DEVICE_NEEDS_RESET for a ring that names no descriptor, and a driver has no other"
            " means to have it tell of its configuration"
        ) from None


def is_told(bench: Bench, before: int) -> bool:
    """Whether a notification comes after ``before`` of them."""
    try:
        bench.wait(lambda: changes(bench) > before, "a configuration change notification")
    except Wedged:
        return False
    return True


@case("status-needs-reset-is-told", "BAS-STATUS-07", needs=("status",))
def needs_reset_is_told(bench: Bench) -> None:
    """The driver is told of DEVICE_NEEDS_RESET by a configuration change notification.

    The transmit ring names a descriptor behind its table. If the device sets DEVICE_NEEDS_RESET then, a notification
    has to follow.
    """
    bench.start()
    before = changes(bench)
    fail(bench)
    told = is_told(bench, before)
    bench.check("BAS-STATUS-07", told, "a notification follows DEVICE_NEEDS_RESET", "none")


@case("pci-isr-config", "PCI-ISR-DEV-02", needs=("pci",))
def isr_of_configuration(bench: Bench) -> None:
    """When a configuration change notification has come, the ISR status shows it.

    By MSI-X, so that nobody has read the ISR status in between. The transmit ring names a descriptor behind its table,
    of which a device tells by DEVICE_NEEDS_RESET.
    """
    pci = bench.pci
    vectors(pci)
    bench.start()
    pci.take_isr()
    before = changes(bench)
    fail(bench)
    if not is_told(bench, before):
        raise Unsupported("the device does not tell of DEVICE_NEEDS_RESET")
    seen = pci.take_isr()
    bench.check(
        "PCI-ISR-DEV-02",
        bool(seen & Isr.CONFIG),
        "the configuration bit of the ISR status is set",
        f"{seen:#x}",
    )


@case("pci-config-no-vector", "PCI-CHG-DEV-01", needs=("pci",))
def configuration_without_vector(bench: Bench) -> None:
    """With config_msix_vector NO_VECTOR, a configuration change notification interrupts nobody.

    The transmit ring names a descriptor behind its table, of which a device tells by DEVICE_NEEDS_RESET: once with the
    vector of the test bed, which has to ring, and after a reset once without.
    """
    pci = bench.pci
    vectors(pci)
    bench.start()
    before = changes(bench)
    fail(bench)
    if not is_told(bench, before):
        raise Unsupported("the device does not tell of DEVICE_NEEDS_RESET")
    bench.start()
    pci.put(CommonCfg.config_msix_vector, NO_VECTOR)
    if pci.get(CommonCfg.config_msix_vector) != NO_VECTOR:
        raise Unsupported("config_msix_vector does not take NO_VECTOR")
    bench.target.interrupts()
    before = changes(bench)
    fail(bench)
    settle(bench)
    rung = bench.target.interrupts()
    count = changes(bench) - before
    bench.check(
        "PCI-CHG-DEV-01",
        not count and not rung,
        "nothing rings",
        f"{count} configuration changes, used buffers of queues {sorted(rung)}",
    )
