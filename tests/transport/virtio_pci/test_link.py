"""The link to a virtio PCI function against one that is written out by hand: what it reads, writes, and refuses."""

from __future__ import annotations

import gc
import os
import struct
import threading
from collections.abc import Iterator

import fuzz_pci_link
import pytest
from handmade_function import BAR_SIZE, COMMON, DEVICE, NOTIFY, Function, Trace, capability
from harness import fuzz

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.transport.virtio_pci.access import AccessRefused, RegionInfo
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.owner import find_sriov
from virtio_ipsec.wire.numbers import Feature, Status, mask

FRAME = bytes.fromhex("ffffffffffff525400000070") + b"\x88\xb5" + bytes(46)
QUICK = Options(memory=4 << 20, patience=0.05)
SPLIT = mask(Feature.F_VERSION_1, Feature.F_RING_RESET)
PACKED = SPLIT | mask(Feature.F_RING_PACKED)


def started(function: Function) -> tuple[PciLink, Driver]:
    link = PciLink(function, QUICK)
    driver = Driver(link, config=DriverConfig(queue_pairs=2, receive_buffers=4))
    driver.start()
    return link, driver


def writes(function: Function, region: int = 4) -> Iterator[Trace]:
    return (each for each in function.trace if each.verb == "write" and each.region == region)


def agree(link: PciLink, features: int) -> None:
    """Up to the point where queues are enabled."""
    link.reset()
    link.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
    link.write_driver_features(features)
    link.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)


# The whole way.


def test_a_driver_has_caps_and_sends_and_receives_over_pci() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    assert link.device_features() == function.device.offered_features
    link.write_driver_features(1 << 70 | 1)
    assert (function.driver, link.driver_features()) == ([1, 0, 1 << 6, 0], 1 << 70 | 1)
    driver = Driver(link, config=DriverConfig(receive_buffers=4))
    driver.start()
    assert driver.caps.ipsec_sas is not None
    driver.send(FRAME)
    assert function.loop.captured() == [FRAME]
    function.loop.inject(FRAME)
    function.signal()
    assert link.interrupts() >= {0}
    assert [packet.frame for packet in driver.receive()] == [FRAME]
    driver.stop()
    link.close()
    assert function.is_closed
    assert function.memory.is_closed


def test_a_reset_waits_until_the_device_has_done_it() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    function.lies[0x14] = 0x0F
    with pytest.raises(TransportError, match="finish its reset"):
        link.reset()
    function.lies.clear()
    link.reset()


def test_the_driver_obeys_the_clauses_of_the_common_configuration() -> None:
    function = Function()
    _, driver = started(function)
    driver.stop()
    selected, configured, enabled, zeroed = 0, dict[int, set[int]](), set[int](), False
    for each in (each for each in function.trace if each.region == 4 and each.offset < 64):
        if each.verb == "read":
            if zeroed and each.offset == 0x14 and each.value == 0:
                zeroed = False
            continue
        assert each.offset not in (0x04, 0x12, 0x15, 0x1E, 0x38, 0x3C, 0x3E), "PCI-CC-DRV-01"
        width = {0x10: 2, 0x14: 1, 0x16: 2, 0x18: 2, 0x1A: 2, 0x1C: 2, 0x3A: 2}.get(each.offset, 4)
        assert len(each.data) == width
        assert not zeroed, "PCI-CC-DRV-05: written to before the reset was seen to be done"
        if each.offset == 0x14:
            zeroed = each.value == 0
            configured.clear()
            enabled.clear()
        elif each.offset == 0x16:
            selected = each.value
        elif each.offset == 0x18:
            assert each.value, "PCI-CC-DRV-02"
            assert each.value & each.value - 1 == 0, "PCI-CC-DRV-03"
        if 0x18 <= each.offset < 0x38 and each.offset != 0x1C:
            assert selected not in enabled, "PCI-CC-DRV-04"
            configured.setdefault(selected, set()).add(each.offset)
        elif each.offset == 0x1C:
            assert each.value == 1, "PCI-CC-DRV-06"
            assert configured[selected] == {0x18, 0x1A, *range(0x20, 0x38, 4)}, "PCI-CC-DRV-04"
            enabled.add(selected)


def test_administration_queues_lie_in_the_range_that_the_device_gives() -> None:
    function = Function()
    _, driver = started(function)
    first = function.loop.admin_queue_index()
    enabled = {queue for queue, state in function.queues.items() if state["enable"]}
    assert {index for index in enabled if index >= function.loop.num_queues()} == {
        first
    }  # PCI-CC-DRV-08, -09
    driver.stop()


def test_the_device_configuration_is_read_field_by_field() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    function.trace.clear()
    assert link.read_config(0, 28)[:6].hex() == "525400000070"
    widths = [(each.offset - DEVICE, len(each.data)) for each in function.trace]
    mac = [(at, 1) for at in range(6)]
    assert widths == [*mac, (6, 2), (8, 2), (10, 2), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4), (24, 4)]
    function.trace.clear()
    link.write_config(6, b"\1\0\2")
    assert [(each.offset - DEVICE, each.data) for each in function.trace] == [(6, b"\1\0"), (8, b"\2")]
    with pytest.raises(TransportError, match="none at 28"):
        link.read_config(28, 1)


# Notifications.


def test_a_doorbell_is_16_bits_with_the_index_of_the_queue() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    for index in (0, 1):
        link.enable_queue(index, allocate_layout(link.allocator, 8, SPLIT))
    assert link.kick_fd(1) is None
    function.trace.clear()
    link.kick(1)
    assert [(each.offset, each.data) for each in writes(function)] == [(NOTIFY + 4, b"\1\0")]
    link.kick(7)
    assert len(function.trace) == 1


def test_a_mapped_doorbell_is_stored_to_and_an_eventfd_rung() -> None:
    function = Function(mapped=True)
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    link.enable_queue(1, allocate_layout(link.allocator, 8, SPLIT))
    link.kick(1)
    assert function.notify_page[4:8] == b"\1\0\0\0"
    link.reset()
    function.bells = True
    agree(link, SPLIT)
    link.enable_queue(1, allocate_layout(link.allocator, 8, SPLIT))
    fd = link.kick_fd(1)
    assert fd is not None
    link.kick(1)
    assert os.eventfd_read(fd) == 1
    os.eventfd_write(fd, (1 << 64) - 2)
    link.kick(1)  # the counter is full: it has been said


@pytest.mark.parametrize("features", [SPLIT, PACKED])
def test_notification_data_says_where_the_ring_ends(features: int) -> None:
    function = Function(extra_features=mask(Feature.F_NOTIFICATION_DATA))
    link = PciLink(function, QUICK)
    agree(link, features | mask(Feature.F_NOTIFICATION_DATA))
    layout = allocate_layout(link.allocator, 4, features)
    ring = driver_queue(link.memory, layout, features)
    link.enable_queue(1, layout)
    link.write_status(15)
    buffer = link.allocator.alloc(64)
    seen = []
    for _ in range(6):
        ring.add([Segment(buffer, 14), Segment(buffer + 16, 46)], [], None)
        ring.publish()
        function.trace.clear()
        link.kick(1)
        (told,) = writes(function)
        seen.append((told.data[:2], struct.unpack("<H", told.data[2:])[0]))
        ring.poll()
    split = [1, 2, 3, 4, 5, 6]
    packed = [2 | 0x8000, 0, 2, 0x8000, 2 | 0x8000, 0]
    assert seen == [(b"\1\0", each) for each in (packed if features == PACKED else split)]


def test_the_device_may_say_what_tells_the_queues_apart() -> None:
    function = Function(extra_features=mask(Feature.F_NOTIF_CONFIG_DATA))
    link = PciLink(function, QUICK)
    agree(link, SPLIT | mask(Feature.F_NOTIF_CONFIG_DATA))
    link.enable_queue(1, allocate_layout(link.allocator, 8, SPLIT))
    function.trace.clear()
    link.kick(1)
    assert [each.data for each in writes(function)] == [b"\x01\x40"]


def test_a_doorbell_outside_the_structure_is_refused() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    function.lies[0x1E] = 0x400
    with pytest.raises(TransportError, match="doorbell of queue 0 lies at 4096 of 4096"):
        link.enable_queue(0, allocate_layout(link.allocator, 8, SPLIT))


# Interrupts.


@pytest.mark.parametrize(
    ("vectors", "kind", "taken"),
    [
        (64, "msi-x, 19 vectors", {0: 1, 1: 2, 2: 3, 3: 4}),
        (3, "msi-x, 3 vectors", {0: 1, 1: 2, 2: 1, 3: 2}),
        (1, "msi-x, 1 vectors", {0: 0, 1: 0, 2: 0, 3: 0}),
        (0, "intx", {0: 0xFFFF, 1: 0xFFFF, 2: 0xFFFF, 3: 0xFFFF}),
    ],
)
def test_vectors_are_dealt_out_to_the_queues(vectors: int, kind: str, taken: dict[int, int]) -> None:
    function = Function(vectors=vectors)
    link, driver = started(function)
    assert link.interrupt_kind == kind
    assert {index: function.queues[index]["vector"] for index in taken} == taken
    link.interrupts()
    function.loop.inject(FRAME)
    function.signal()
    link.poll(1.0)
    rung = link.interrupts()
    assert 0 in rung
    assert all(vectors <= 3 or index == 0 for index in rung)
    before = link.config_changes
    function.config_changed()
    link.poll(1.0)
    assert link.config_changes == before + 1
    assert bool(function.unmasked) == (vectors == 0)
    driver.stop()
    assert link.interrupts() == set()


def test_without_any_interrupt_rings_are_looked_at() -> None:
    function = Function(vectors=0)
    function.irq_count = lambda index: 0  # type: ignore[method-assign]
    link, driver = started(function)
    assert link.interrupt_kind == "none"
    assert driver.caps.ipsec_sas is not None


def test_descriptors_that_the_device_has_made_block_do_not() -> None:
    """They are shared with the device, flags included."""
    function = Function(bells=True)
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    link.enable_queue(1, allocate_layout(link.allocator, 8, SPLIT))
    bell = link.kick_fd(1)
    assert bell is not None
    os.eventfd_write(bell, 2**64 - 2)
    for fd in (bell, *function.irqs[2]):
        assert fd is not None
        os.set_blocking(fd, True)
    found: list[set[int]] = []

    def work() -> None:
        link.kick(1)
        found.append(link.interrupts())

    look = threading.Thread(target=work, daemon=True)
    look.start()
    look.join(5)
    assert found


def test_a_vector_that_the_device_does_not_take_is_an_error() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    function.lies[0x1A] = 0xFFFF
    with pytest.raises(TransportError, match="does not take vector 1 for queue_msix_vector: 0xffff"):
        link.enable_queue(0, allocate_layout(link.allocator, 8, SPLIT))


def test_memory_access_bus_mastering_and_msix_are_switched_on() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    command, control = (
        struct.unpack_from("<H", function.config, 4),
        struct.unpack_from("<H", function.config, 0x86),
    )
    assert command == (7,)
    assert control == (0x8000 | 63,)
    link.function_reset()
    assert function.resets == 1
    assert struct.unpack_from("<H", function.config, 4) == (7,)
    assert len(function.irqs[2]) == 19
    _, driver = started(function)
    driver.stop()


@pytest.mark.parametrize("what", ["set_irqs", "new_memory"])
def test_a_function_that_refuses_leaves_nothing_open(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AccessRefused("as told")

    function = Function()
    monkeypatch.setattr(function, what, refuse)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AccessRefused, match="as told"):
        PciLink(function, QUICK)
    assert len(os.listdir("/proc/self/fd")) == before
    assert function.is_closed


# Queues.


def test_a_queue_reset_is_over_when_the_device_says_so() -> None:
    function = Function()
    link = PciLink(function, QUICK)
    agree(link, SPLIT)
    layout = allocate_layout(link.allocator, 8, SPLIT)
    most = link.queue_max_size(0)
    link.enable_queue(0, layout)
    assert link.queue_max_size(0) == most
    with pytest.raises(TransportError, match="in use"):
        link.enable_queue(0, layout)
    function.queue_resets[0] = 3
    function.trace.clear()
    link.reset_queue(0)
    states = [each.value for each in function.trace if each.offset == 0x3A and each.verb == "read"]
    assert states == [1, 1, 1, 0]  # PCI-CC-DRV-07
    link.enable_queue(0, layout)
    function.queue_resets[0] = 1 << 30
    with pytest.raises(TransportError, match="finish the reset of queue 0"):
        link.reset_queue(0)


def test_queues_that_are_not_there() -> None:
    link = PciLink(Function(), QUICK)
    assert link.queue_max_size(999) == link.queue_max_size(-1) == link.queue_max_size(1 << 16) == 0
    with pytest.raises(TransportError, match="has no queue 999"):
        link.enable_queue(999, allocate_layout(link.allocator, 8, SPLIT))


def test_a_function_that_was_lost_is_reached_anew() -> None:
    function = Function()
    link, _ = started(function)
    changes = link.config_changes
    link.restart()
    assert link.config_changes == changes + 1
    again = Driver(link, config=DriverConfig(receive_buffers=4))
    again.start()
    again.send(FRAME)
    assert function.loop.captured() == [FRAME]


# Discovery.


def altered(**changes: bytes) -> Function:
    """A function with bytes of its configuration space put elsewise: at_40=b"..."."""
    function = Function()
    for where, data in changes.items():
        function.put(int(where.removeprefix("at_"), 16), data)
    return function


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"at_2": b"\x42\x10"}, "handmade is 1af4:1042, no virtio network device"),
        ({"at_0": b"\x86\x80"}, "handmade is 8086:1041"),
        ({"at_6": b"\0\0"}, "no COMMON_CFG"),
        ({"at_34": b"\x04"}, "no COMMON_CFG"),
        ({"at_40": capability(1, 0x40, 0x50, COMMON, 55)}, "no COMMON_CFG"),
        ({"at_40": capability(1, 0x40, 0x50, COMMON, 64, bar=6)}, "no COMMON_CFG"),
        ({"at_40": capability(1, 0x40, 0x50, COMMON, 64, bar=2)}, "no COMMON_CFG"),
        ({"at_40": capability(1, 0x40, 0x50, BAR_SIZE - 32, 64)}, "no COMMON_CFG"),
        ({"at_40": capability(1, 0x40, 0x50, 0xFFFFFFF0, 0xFFFFFFFF)}, "no COMMON_CFG"),
        ({"at_70": capability(2, 0x70, 0x84, NOTIFY, 0x1000)}, "no NOTIFY_CFG"),
        ({"at_70": capability(9, 0x70, 0x84, NOTIFY, 0x1000, bytes(4))}, "no NOTIFY_CFG"),
        ({"at_60": capability(4, 0x60, 0x40, DEVICE, 28)}, "no NOTIFY_CFG"),
        ({"at_72": b"\x0f"}, "no NOTIFY_CFG"),
    ],
)
def test_what_is_no_virtio_network_function_is_told(changes: dict[str, bytes], complaint: str) -> None:
    function = altered(**changes)
    with pytest.raises(TransportError, match=complaint):
        PciLink(function, QUICK)
    assert function.is_closed


def test_a_configuration_space_that_is_none() -> None:
    function = Function()
    function.region_info = lambda region: Function.region_info(function, 0)  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="0 bytes of configuration space"):
        PciLink(function, QUICK)


@pytest.mark.parametrize(
    "changes",
    [
        {"at_2": b"\x00\x10"},
        {"at_0": b"\xff\xff\xff\xff"},
        {"at_40": capability(1, 0x40, 0x50, COMMON, 0xFFFFFFFF)},
        {"at_70": capability(2, 0x70, 0x84, NOTIFY, 0x1000, struct.pack("<I", 4) + bytes(60))},
        {
            "at_70": capability(2, 0x70, 0xC0, NOTIFY, 0x1000, struct.pack("<I", 4)),
            "at_c0": b"\x09\xfc\x10\x02",
        },
        {"at_94": capability(1, 0x94, 0, 0x300, 64), "at_85": b"\x94"},
        {"at_94": capability(200, 0x94, 0, 0x300, 64), "at_85": b"\x94"},
        {"at_71": b"\xfd", "at_fc": b"\x11\0"},
        {"at_60": capability(4, 0x60, 0x70, DEVICE, 28, bar=0)},
    ],
    ids=[
        "transitional",
        "virtual function",
        "unexpectedly long structure",
        "capability longer than known",
        "a capability at the very end",
        "a second common configuration",
        "a reserved type",
        "msi-x at the very end",
        "no device configuration",
    ],
)
def test_what_a_driver_has_to_put_up_with(changes: dict[str, bytes]) -> None:
    function = altered(**changes)
    link = PciLink(function, QUICK)
    assert link.found.common.offset == COMMON
    assert link.found.multiplier == 4
    assert link.num_queues() == function.loop.num_queues()
    if "at_fc" in changes:
        assert link.found.msix is None
    if link.found.device is None:
        with pytest.raises(TransportError, match="no configuration of its own"):
            link.read_config(0, 6)


def test_a_short_common_configuration_has_no_administration_queue() -> None:
    link = PciLink(altered(at_40=capability(1, 0x40, 0x50, COMMON, 56)), QUICK)
    assert link.admin_queue_num() == 0
    assert link.admin_queue_index() == link.num_queues()
    with pytest.raises(TransportError, match="the common configuration has 56 bytes: none at 58"):
        link.reset_queue(0)


@pytest.mark.parametrize(
    ("extended", "base"),
    [
        ({}, None),
        ({0x100: 0x0001000E | 0x140 << 20, 0x140: 0x00010010}, 0x140),
        ({0x100: 0x0001000E | 0x140 << 20, 0x140: 0x0001000E | 0x100 << 20}, None),
        ({0x100: 0x0001000E | 0xFFC << 20, 0xFFC: 0x00010010}, None),
        ({0x100: 0x0001000E | 0x080 << 20, 0x080: 0x00010010}, None),
        ({0x100: 0xFFFFFFFF}, None),
    ],
    ids=["none", "SR-IOV", "a circle", "at the very end", "back into the header", "nobody there"],
)
def test_extended_capabilities(extended: dict[int, int], base: int | None) -> None:
    function = Function()
    function.config += bytes(4096 - 256)
    for at, head in extended.items():
        struct.pack_into("<I", function.config, at, head)
    assert find_sriov(function) is None
    sizes = function.region_info
    function.region_info = lambda region: RegionInfo(4096) if region == 7 else sizes(region)  # type: ignore[method-assign]
    assert find_sriov(function) == base


def test_hostile_functions_get_no_further_than_a_declared_error() -> None:
    """As `python tests/fuzz/fuzz_pci_link.py`, which goes on for longer."""
    assert fuzz(fuzz_pci_link.TARGETS, ["--count", "60"]) == 0
