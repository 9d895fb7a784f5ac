"""What else a PCI function of virtio has: identification, structures, vectors and the ISR status (virtio v1.4 4.1)."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.device_life import plain, settle
from virtio_ipsec.conformance.pci import Registers
from virtio_ipsec.conformance.verdict import Unsupported, Wedged
from virtio_ipsec.transport.virtio_pci.tables import (
    DEVICE_ID_BASE,
    FIRST_REVISION_ID,
    FIRST_SUBSYSTEM_ID,
    MAX_VECTORS,
    MSIX_SIZE_MASK,
    NETWORK_DEVICE,
    NO_VECTOR,
    VENDOR_ID,
    CommonCfg,
    DeviceState,
    Header,
    Isr,
    MsixCap,
    Structure,
)
from virtio_ipsec.wire.numbers import Feature, Status, has

#: PCI Device ID of a network device with the interface of before virtio 1.0.
_TRANSITIONAL = 0x1000
_HALVES = tuple(
    (CommonCfg[f"queue_{name}_lo"], CommonCfg[f"queue_{name}_hi"]) for name in ("desc", "driver", "device")
)


def vectors(pci: Registers) -> int:
    """How many the table has. Unsupported without MSI-X."""
    if pci.msix is None:
        raise Unsupported("the function has no MSI-X")
    return (pci.config(MsixCap.CONTROL, pci.msix) & MSIX_SIZE_MASK) + 1


def use_a_buffer(bench: Bench) -> None:
    """A frame to transmit, until the device has used its buffer."""
    buffer = bench.queues.submit(1, plain(bench))

    def done() -> bool:
        bench.queues.collect(1)
        return buffer.completed

    bench.wait(done, "a transmit buffer is used")


@case(
    "pci-identification",
    "PCI-DISC-DEV-01",
    "PCI-DISC-DEV-02",
    "PCI-DISC-DEV-04",
    "PCI-DISC-DEV-05",
    needs=("pci",),
)
def identification(bench: Bench) -> None:
    """The function says by its identifiers that it is a virtio network device.

    Revision and subsystem keep drivers away that know no virtio 1; a transitional device lets them in.
    """
    pci = bench.pci
    vendor, device = pci.config(Header.VENDOR_ID), pci.config(Header.DEVICE_ID)
    bench.check("PCI-DISC-DEV-01", vendor == VENDOR_ID, "Vendor ID 0x1af4", f"{vendor:#x}")
    wanted = (DEVICE_ID_BASE + NETWORK_DEVICE, _TRANSITIONAL)
    bench.check(
        "PCI-DISC-DEV-02", device in wanted, "Device ID 0x1041 or, transitional, 0x1000", f"{device:#x}"
    )
    if device == _TRANSITIONAL:
        return
    revision, subsystem = pci.config(Header.REVISION_ID), pci.config(Header.SUBSYSTEM_ID)
    bench.check("PCI-DISC-DEV-04", revision >= FIRST_REVISION_ID, "Revision ID 1 or more", revision)
    bench.check(
        "PCI-DISC-DEV-05", subsystem >= FIRST_SUBSYSTEM_ID, "Subsystem ID 0x40 or more", f"{subsystem:#x}"
    )


@case(
    "pci-structures",
    "PCI-NTF-DEV-01",
    "PCI-NTF-DEV-02",
    "PCI-NTF-DEV-03",
    "PCI-ISR-DEV-01",
    "PCI-OWN-DEV-01",
    "PCI-CFG-DEV-01",
    needs=("pci",),
)
def structures(bench: Bench) -> None:
    """Notifications, ISR status and access through the configuration space are there, aligned as they have to be.

    What is asked of notifications depends on whether NOTIFICATION_DATA is offered.
    """
    pci = bench.pci
    for cited, kind in (
        ("PCI-NTF-DEV-01", Structure.NOTIFY_CFG),
        ("PCI-ISR-DEV-01", Structure.ISR_CFG),
        ("PCI-CFG-DEV-01", Structure.PCI_CFG),
    ):
        bench.check(cited, bool(pci.structures(kind)), f"a capability of type {kind.name} is listed", "none")
    width = 4 if has(bench.target.device_features(), Feature.F_NOTIFICATION_DATA) else 2
    for cap in pci.structures(Structure.NOTIFY_CFG):
        where = f"{cap.offset:#x} of BAR {cap.bar}"
        bench.check("PCI-NTF-DEV-02", cap.offset % width == 0, f"its offset is a multiple of {width}", where)
        step = int.from_bytes(cap.extra[:4], "little")
        good = not step or (step & (step - 1) == 0 and step % width == 0)
        bench.check(
            "PCI-NTF-DEV-03", good, f"notify_off_multiplier is 0 or a power of two from {width} on", step
        )
    for cap in pci.structures(Structure.DEVICE_CFG):
        where = f"{cap.offset:#x} of BAR {cap.bar}"
        bench.check("PCI-OWN-DEV-01", cap.offset % 4 == 0, "the offset is a multiple of 4", where)


@case("pci-notification-room", "PCI-NTF-DEV-04", needs=("pci",))
def notification_room(bench: Bench) -> None:
    """The notification structure has room for every queue.

    The administration queue included, with all features that are offered and usual.
    """
    pci = bench.pci
    bench.start(driver_ok=False)
    width = 4 if has(bench.target.device_features(), Feature.F_NOTIFICATION_DATA) else 2
    cap = next(iter(pci.structures(Structure.NOTIFY_CFG)), None)
    if cap is None:
        raise Unsupported("the function lists no notification structure")
    step = int.from_bytes(cap.extra[:4], "little")
    for index in sorted(bench.queues.enabled):
        end = pci.of(index, CommonCfg.queue_notify_off) * step + width
        text = f"{end} of {cap.length} bytes"
        bench.check("PCI-NTF-DEV-04", end <= cap.length, f"room for a notification of queue {index}", text)


@case("pci-halves", "PCI-LAY-DEV-01", needs=("pci",))
def halves(bench: Bench) -> None:
    """Each half of a field of 64 bits is written and read without the other.

    The three addresses of a queue that is not enabled, each half once alone.
    """
    pci = bench.pci
    bench.negotiate(bench.target.device_features() & 1 << Feature.F_VERSION_1)
    pci.put(CommonCfg.queue_select, 0)
    for low, high in _HALVES:
        for values in ((0x11111000, 0x22222222), (None, 0x44444444), (0x33333000, None)):
            before = [pci.get(low), pci.get(high)]
            wanted = [old if new is None else new for old, new in zip(before, values, strict=True)]
            for register, value in zip((low, high), values, strict=True):
                if value is not None:
                    pci.put(register, value)
            seen = [pci.get(low), pci.get(high)]
            text = "the half that was written changes"
            bench.check(
                "PCI-LAY-DEV-01", seen == wanted, f"{low.name[:-3]}: {text}", [f"{one:08x}" for one in seen]
            )


@case("pci-isr-queue", "PCI-ISR-DEV-03", "PCI-ISR-DEV-04", "PCI-ISR-DEV-05", needs=("pci",))
def isr_of_queues(bench: Bench) -> None:
    """Without MSI-X a used buffer shows in the ISR status and in the PCI status, until the former is read.

    A frame is transmitted with MSI-X disabled.
    """
    pci = bench.pci
    bench.start()
    with pci.without_msix():
        pci.take_isr()
        use_a_buffer(bench)

        def asserted() -> bool:
            return bool(pci.config(Header.STATUS) & DeviceState.INTERRUPT)

        try:
            bench.wait(asserted, "Interrupt Status of PCI")
            told = True
        except Wedged:
            told = False
        seen = pci.take_isr()
        bench.check(
            "PCI-ISR-DEV-03", bool(seen & Isr.QUEUE), "the queue bit of the ISR status is set", f"{seen:#x}"
        )
        bench.check(
            "PCI-ISR-DEV-04",
            told == bool(seen),
            "Interrupt Status of PCI as the ISR status",
            f"{told}, {seen:#x}",
        )
        again = pci.take_isr()
        bench.check("PCI-ISR-DEV-05", again == 0, "the ISR status is 0 when it is read again", f"{again:#x}")
        bench.check(
            "PCI-ISR-DEV-04", bool(again) or not asserted(), "Interrupt Status of PCI is clear again", "set"
        )


@case("pci-window", "PCI-CFG-DEV-02", "PCI-CFG-DEV-03", needs=("pci",))
def window(bench: Bench) -> None:
    """Registers are read and written through the configuration space as directly.

    Registers of one, two and four bytes are read; device_feature_select is written.
    """
    pci = bench.pci
    bench.target.write_status(Status.ACKNOWLEDGE)
    pci.put(CommonCfg.device_feature_select, 1)
    for register in (CommonCfg.device_status, CommonCfg.num_queues, CommonCfg.device_feature):
        direct, through = pci.get(register), pci.read_window(register)
        name = register.name
        bench.check(
            "PCI-CFG-DEV-03",
            through == direct,
            f"{name} reads {direct:#x} through the window",
            f"{through:#x}",
        )
    for value in (0, 3, 2):
        pci.write_window(CommonCfg.device_feature_select, value)
        seen = pci.get(CommonCfg.device_feature_select)
        bench.check("PCI-CFG-DEV-02", seen == value, f"device_feature_select is {value} as written", seen)


@case(
    "pci-vectors",
    "PCI-MSI-DEV-01",
    "PCI-MSI-DEV-02",
    "PCI-MSI-DEV-04",
    "PCI-MSI-DEV-05",
    "PCI-MSI-DEV-06",
    "PCI-MSI-DEV-08",
    "PCI-MSI-DEV-09",
    needs=("pci",),
)
def mapping(bench: Bench) -> None:
    """Every event can be mapped to every vector of the table and to none, and shows it.

    The configuration and each queue, before the queues are enabled; a vector that the table does not have shows as
    NO_VECTOR.
    """
    pci = bench.pci
    count = vectors(pci)
    bench.check("PCI-MSI-DEV-01", 2 <= count <= MAX_VECTORS, "2 to 2048 vectors", count)
    bench.start(driver_ok=False)
    indices = sorted(bench.queues.enabled)
    bench.negotiate(bench.features)
    events = [(CommonCfg.config_msix_vector, 0)]
    events += [(CommonCfg.queue_msix_vector, index) for index in bench.sweep(indices)]
    for register, index in events:
        pci.put(CommonCfg.queue_select, index)
        what = f"{register.name} ({index})"
        failed, other = [], []
        for vector in bench.sweep(range(count)):
            pci.put(register, vector)
            seen = pci.get(register)
            if seen == NO_VECTOR:
                failed.append(vector)
            elif seen != vector:
                other.append((vector, seen))
        bench.check("PCI-MSI-DEV-04", not failed, f"{what}: every vector can be mapped", f"not {failed}")
        bench.check("PCI-MSI-DEV-08", not failed, f"{what}: no mapping fails", f"{failed}")
        bench.check("PCI-MSI-DEV-06", not other, f"{what}: shows the vector that was written", f"{other}")
        if count < MAX_VECTORS:
            pci.put(register, count)
            seen = pci.get(register)
            text = f"{what}: NO_VECTOR for vector {count} of {count}"
            bench.check("PCI-MSI-DEV-09", seen in (NO_VECTOR, count), text, f"{seen:#x}")
            bench.check("PCI-MSI-DEV-02", seen != count, f"{what}: no vector behind the table", f"{seen:#x}")
        pci.put(register, 0)
        pci.put(register, NO_VECTOR)
        seen = pci.get(register)
        bench.check("PCI-MSI-DEV-05", seen == NO_VECTOR, f"{what}: NO_VECTOR unmaps", f"{seen:#x}")


@case("pci-vectors-after-reset", "PCI-MSI-DEV-07", needs=("pci",))
def unmapped(bench: Bench) -> None:
    """A reset unmaps all events.

    The configuration and every queue are mapped to the first vector before.
    """
    pci = bench.pci
    vectors(pci)
    bench.start()
    indices = sorted(bench.queues.enabled)
    bench.negotiate(bench.features)
    for index in indices:
        pci.put(CommonCfg.queue_select, index)
        pci.put(CommonCfg.queue_msix_vector, 0)
    pci.put(CommonCfg.config_msix_vector, 0)
    pci.put(CommonCfg.device_status, 0)
    bench.wait(lambda: pci.get(CommonCfg.device_status) == 0, "device_status 0 after 0 was written")
    seen = pci.get(CommonCfg.config_msix_vector)
    bench.check(
        "PCI-MSI-DEV-07", seen == NO_VECTOR, "config_msix_vector is NO_VECTOR after a reset", f"{seen:#x}"
    )
    for index in indices:
        seen = pci.of(index, CommonCfg.queue_msix_vector)
        bench.check(
            "PCI-MSI-DEV-07", seen == NO_VECTOR, f"the vector of queue {index} is NO_VECTOR", f"{seen:#x}"
        )


@case("pci-no-vector", "PCI-USED-DEV-01", needs=("pci",))
def no_vector(bench: Bench) -> None:
    """A queue without vector interrupts nobody.

    The transmit queue is unmapped, a frame is sent; then it is mapped again as it was, and another frame tells.
    """
    pci = bench.pci
    vectors(pci)
    bench.start()
    before = pci.of(1, CommonCfg.queue_msix_vector)
    if before == NO_VECTOR:
        raise Unsupported("the test bed has no vector for the transmit queue")
    pci.put(CommonCfg.queue_msix_vector, NO_VECTOR)
    bench.target.interrupts()
    use_a_buffer(bench)
    settle(bench)
    rung = bench.target.interrupts()
    bench.check("PCI-USED-DEV-01", 1 not in rung, "no interrupt for the queue", sorted(rung))
    pci.put(CommonCfg.queue_select, 1)
    pci.put(CommonCfg.queue_msix_vector, before)
    use_a_buffer(bench)
    told: set[int] = set()

    def heard() -> bool:
        told.update(bench.target.interrupts())
        return 1 in told

    bench.wait(heard, "an interrupt for the queue once it has a vector")
