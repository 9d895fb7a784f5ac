"""A served port as a PCI function: registers, queues in both engines, notifications."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from functions import BASE, PLAIN, QUEUE, Ear, Host, has
from served import shared

from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.common import _READ, _WRITE
from virtio_ipsec.transport.virtio_pci.tables import Access, Command, CommonCfg, Header, Structure
from virtio_ipsec.wire.numbers import Feature, Status, mask

MAC = bytes.fromhex("020000000001")
RESET = mask(Feature.F_RING_RESET)


def frame(number: int, size: int = 60) -> bytes:
    return (MAC + bytes(6) + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b"\0")


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def test_every_register_is_read_and_those_that_drivers_write_are_written() -> None:
    assert set(_READ) == set(CommonCfg)
    assert set(_WRITE) == {register for register in CommonCfg if register.access is Access.WRITE}


@pytest.mark.parametrize("engine", ["c", "python"])
@pytest.mark.parametrize("packed", [0, mask(Feature.F_RING_PACKED)], ids=["split", "packed"])
def test_frames_go_both_ways(engine: str, packed: int) -> None:
    host = Host(PLAIN | packed, engine=engine)
    try:
        host.start(packed)
        sent = [frame(n) for n in range(30)]
        host.send(*sent)
        assert host.bench.captured(30) == sent
        host.uplink.inject(*sent)
        assert host.bench.received(30) == sent
    finally:
        host.close()


def test_a_doorbell_is_a_notification(host: Host) -> None:
    host.start(mask(Feature.F_ADMIN_VQ))
    bells = host.function.doorbells()
    cap = host.structures[Structure.NOTIFY_CFG]
    multiplier = int.from_bytes(cap.extra[:4], "little")
    for index, bell in enumerate(bells):
        place = host.of_queue(index, CommonCfg.queue_notify_off) * multiplier
        assert (bell.region, bell.offset, bell.length) == (cap.bar, cap.offset + place, multiplier)
        assert place + multiplier <= cap.length
    assert len(bells) == host.port.queue_count
    host.guest.send(frame(1))
    os.eventfd_write(bells[1].fd, 1)
    assert host.bench.captured(1) == [frame(1)]


def test_features_have_four_words_and_those_of_the_transport(host: Host) -> None:
    own = mask(Feature.F_ACCESS_PLATFORM, Feature.F_NOTIFICATION_DATA, Feature.F_NOTIF_CONFIG_DATA)
    assert host.offered() == host.port.device.offered_features | own
    assert has(host.offered(), Feature.NET_F_IPSEC)
    assert not has(host.offered(), Feature.F_SR_IOV)
    for select in (4, 5, 0xFFFFFFFF):
        host.put(CommonCfg.device_feature_select, select)
        assert host.get(CommonCfg.device_feature_select) == select
        assert host.get(CommonCfg.device_feature) == 0
        host.put(CommonCfg.driver_feature_select, select)
        host.put(CommonCfg.driver_feature, 0xFFFFFFFF)
        assert host.get(CommonCfg.driver_feature) == 0
    word = PLAIN | own | mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)
    host.negotiate(word)
    for select in range(4):
        host.put(CommonCfg.driver_feature_select, select)
        assert host.get(CommonCfg.driver_feature) == word >> 32 * select & 0xFFFFFFFF
    host.accept(0)
    host.put(CommonCfg.driver_feature_select, 2)
    assert host.get(CommonCfg.driver_feature) == word >> 64 & 0xFFFFFFFF
    assert host.port.negotiated == word & ~own


@pytest.mark.parametrize("feature", [Feature.F_SR_IOV, Feature.F_SUSPEND, Feature.NET_F_STANDBY])
def test_features_that_are_not_offered_are_refused(host: Host, feature: Feature) -> None:
    host.negotiate(PLAIN | mask(feature), ok=False)


def test_fields_of_features_are_there_when_these_are_negotiated(host: Host) -> None:
    optional = (CommonCfg.queue_notif_config_data, CommonCfg.admin_queue_index, CommonCfg.admin_queue_num)
    host.negotiate(PLAIN)
    assert [host.of_queue(1, field) for field in optional] == [0, 0, 0]
    assert host.of_queue(3, CommonCfg.queue_size) == 0
    host.negotiate(PLAIN | mask(Feature.F_NOTIF_CONFIG_DATA, Feature.F_ADMIN_VQ))
    shown = [host.of_queue(1, field) for field in optional]
    assert shown == [0x4001, 3, 1]
    assert host.get(CommonCfg.num_queues) == 3
    assert host.of_queue(3, CommonCfg.queue_size) == 256


def test_a_queue_that_does_not_exist(host: Host) -> None:
    for index in (4, 0x7FFF, 0xFFFF):
        assert host.of_queue(index, CommonCfg.queue_size) == 0
        assert host.get(CommonCfg.queue_msix_vector) == tables.NO_VECTOR
        for register in (CommonCfg.queue_enable, CommonCfg.queue_desc_lo, CommonCfg.queue_notify_off):
            assert host.get(register) == 0
        for register in (
            CommonCfg.queue_size,
            CommonCfg.queue_msix_vector,
            CommonCfg.queue_enable,
            CommonCfg.queue_desc_hi,
            CommonCfg.queue_reset,
        ):
            host.put(register, 1)
        assert host.get(CommonCfg.queue_desc_hi) == 0
        assert host.get(CommonCfg.queue_select) == index


def test_queue_sizes_that_no_ring_has_are_not_taken(host: Host) -> None:
    for size in (0, 3, 512, 0xFFFF):
        host.put_queue(0, CommonCfg.queue_size, size)
        assert host.get(CommonCfg.queue_size) == 256
    host.put_queue(0, CommonCfg.queue_size, 64)
    assert host.get(CommonCfg.queue_size) == 64
    assert host.of_queue(1, CommonCfg.queue_size) == 256
    host.negotiate(PLAIN | mask(Feature.F_RING_PACKED))
    assert host.of_queue(0, CommonCfg.queue_size) == 256
    host.put_queue(0, CommonCfg.queue_size, 100)
    assert host.get(CommonCfg.queue_size) == 100


def test_halves_of_an_address_are_independent(host: Host) -> None:
    for name in ("desc", "driver", "device"):
        low, high = CommonCfg[f"queue_{name}_lo"], CommonCfg[f"queue_{name}_hi"]
        host.put_queue(0, high, 0x11223344)
        host.put_queue(0, low, 0x55667788)
        assert (host.get(low), host.get(high)) == (0x55667788, 0x11223344)
        host.put_queue(0, high, 1)
        assert (host.get(low), host.get(high)) == (0x55667788, 1)
        assert host.of_queue(1, low) == 0


def test_status_writes_and_reset(host: Host) -> None:
    host.start()
    assert host.status() == 15
    assert [host.of_queue(i, CommonCfg.queue_enable) for i in range(3)] == [1, 1, 0]
    host.put(CommonCfg.device_status, 0)
    assert host.status() == 0
    assert [host.of_queue(i, CommonCfg.queue_enable) for i in range(3)] == [0, 0, 0]
    assert host.of_queue(0, CommonCfg.queue_desc_lo) == 0
    assert not host.port.started(0)
    assert host.port.negotiated == 0
    host.start()
    host.send(frame(5))
    assert host.bench.captured(1) == [frame(5)]


def test_a_queue_at_work_does_not_change(host: Host) -> None:
    host.start()
    before = {register: host.of_queue(0, register) for register in CommonCfg}
    for register in (
        CommonCfg.queue_size,
        CommonCfg.queue_desc_lo,
        CommonCfg.queue_driver_hi,
        CommonCfg.queue_device_lo,
    ):
        host.put(register, 16)
    for value in (0, 1, 2):
        host.put(CommonCfg.queue_enable, value)
    assert {register: host.of_queue(0, register) for register in CommonCfg} == before


def test_a_queue_is_reset_alone_and_set_up_anew(host: Host) -> None:
    host.start(RESET)
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.put_queue(1, CommonCfg.queue_reset, 0)
    assert host.get(CommonCfg.queue_enable) == 1
    host.put(CommonCfg.queue_reset, 1)
    assert host.get(CommonCfg.queue_reset) == 0
    assert host.get(CommonCfg.queue_enable) == 0
    assert host.get(CommonCfg.queue_size) == 256
    assert host.of_queue(0, CommonCfg.queue_enable) == 1
    host.enable(1, 32)
    host.send(frame(2))
    assert host.bench.captured(1) == [frame(2)]


def test_without_the_feature_a_queue_is_not_reset_alone(host: Host) -> None:
    host.start()
    host.put_queue(1, CommonCfg.queue_reset, 1)
    assert host.get(CommonCfg.queue_enable) == 1


def test_queues_are_not_enabled_before_features_are_agreed(host: Host) -> None:
    host.set_config(Header.COMMAND, Command.MASTER)
    host.put_queue(0, CommonCfg.queue_enable, 1)
    assert host.get(CommonCfg.queue_enable) == 0
    assert not host.status() & Status.DEVICE_NEEDS_RESET


@pytest.mark.parametrize(("name", "address"), [("desc", BASE + 8), ("driver", 0), ("device", 1 << 60)])
def test_a_queue_where_no_ring_can_be_needs_a_reset(host: Host, name: str, address: int) -> None:
    host.negotiate(PLAIN)
    layout = host.guest.queue(0)
    host.put(CommonCfg.queue_select, 0)
    host.put(CommonCfg.queue_size, QUEUE)
    for each in ("desc", "driver", "device"):
        value = address if each == name else getattr(layout, each)
        host.put(CommonCfg[f"queue_{each}_lo"], value & 0xFFFFFFFF)
        host.put(CommonCfg[f"queue_{each}_hi"], value >> 32)
    host.put(CommonCfg.queue_enable, 1)
    assert host.get(CommonCfg.queue_enable) == 0
    assert host.status() & Status.DEVICE_NEEDS_RESET
    host.start()
    host.send(frame(9))
    assert host.bench.captured(1) == [frame(9)]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 64, 4096])
def test_reads_of_any_width_give_the_same_bytes(host: Host, width: int) -> None:
    host.start()
    whole = host.function.read(0, 0, 64)
    for offset in range(64 - min(width, 64) + 1):
        found = host.function.read(0, offset, width)
        assert found[: 64 - offset] == whole[offset : offset + width]
        assert not any(found[64 - offset :])


@pytest.mark.parametrize(
    ("offset", "size"), [(0x14, 2), (0x12, 2), (0x16, 1), (0x18, 1), (0x20, 3), (0x0D, 3)]
)
def test_writes_act_on_whole_registers_only(host: Host, offset: int, size: int) -> None:
    host.start()
    before = host.function.read(0, 0, 64)
    host.function.write(0, offset, b"\xff" * size)
    after = host.function.read(0, 0, 64)
    whole = (offset, size) == (0x14, 2)  # the status, and a byte that is read-only
    assert (before != after) == whole
    assert host.port.counters()["ignored_writes"] == (not whole)


def test_places_outside_a_region_are_refused(host: Host) -> None:
    sizes = [host.function.region_size(region) for region in range(9)]
    assert sizes == [0x4000, 0x1000, 0, 0, 0, 0, 0, 0x1000, 0]
    for region, offset, length in (
        (0, 0x4000, 1),
        (0, 0x3FFF, 2),
        (1, -1, 1),
        (6, 0, 1),
        (7, 0xFFF, 2),
        (8, 0, 1),
    ):
        with pytest.raises(Exception, match=f"of region {region}"):
            host.function.read(region, offset, length)
        with pytest.raises(Exception, match=f"of region {region}"):
            host.function.write(region, offset, bytes(length))
    assert host.function.read(0, 0x800, 16) == bytes(16)
    host.function.write(0, 0x800, b"\xff" * 16)
    host.function.write(0, 0x1000, b"\xff")
    assert host.function.read(0, 0x800, 16) == bytes(16)


def test_notifications_that_name_no_queue_do_nothing(host: Host) -> None:
    host.start()
    cap = host.structures[Structure.NOTIFY_CFG]
    for place, data in ((1, b"\0\0"), (2, b"\1\0"), (4, b"\1"), (4, bytes(3)), (0, bytes(8))):
        host.function.write(cap.bar, cap.offset + place, data)
    assert host.port.counters()["ignored_writes"] == 5
    assert host.function.read(cap.bar, cap.offset, 8) == bytes(8)
    host.notify(2)  # exists and is not enabled
    host.guest.send(frame(3))
    host.notify(1, (1 | 5 << 16).to_bytes(4, "little"))
    assert host.bench.captured(1) == [frame(3)]


def test_the_administration_queue_answers(host: Host) -> None:
    host.negotiate(PLAIN | mask(Feature.F_ADMIN_VQ))
    host.enable(host.get(CommonCfg.admin_queue_index))
    host.ready()
    answer = host.guest.command(3, bytes(24), 24)
    host.notify(3)
    host.until(lambda: bool(host.guest.drivers[3].poll()))
    assert host.guest.memory.read(answer.addr, 2) == b"\0\0"
    assert any(host.guest.memory.read(answer.addr + 8, 8))


def test_without_the_bus_queues_rest_and_go_on(host: Host) -> None:
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.set_config(Header.COMMAND, Command.MEMORY)
    assert host.of_queue(1, CommonCfg.queue_enable) == 1
    assert not host.port.started(1)
    host.send(frame(2))
    assert not host.uplink.sent
    host.set_config(Header.COMMAND, Command.MEMORY | Command.MASTER)
    assert host.bench.captured(1) == [frame(2)]
    host.set_config(Header.COMMAND, Command.MASTER)  # who accesses regions needs no addresses
    assert host.of_queue(1, CommonCfg.queue_enable) == 1
    host.send(frame(3))
    assert host.bench.captured(1) == [frame(3)]


def test_queues_go_on_in_new_memory_and_wait_while_there_is_none(host: Host) -> None:
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.function.set_memory(None)
    host.send(frame(2))
    assert not host.port.started(1)
    assert not host.status() & Status.DEVICE_NEEDS_RESET
    host.function.set_memory(shared(host.guest.fd, 4096, BASE - 4096))
    assert not host.port.started(0)
    host.function.set_memory(shared(host.guest.fd, host.guest.size))
    assert host.bench.captured(1) == [frame(2)]
    assert host.of_queue(1, CommonCfg.queue_enable) == 1


def test_the_configuration_and_its_generation(host: Host) -> None:
    assert host.device_config(0, 6) == MAC
    assert host.device_config(0x80, 4) == bytes(4)
    before = host.get(CommonCfg.config_generation)
    assert host.get(CommonCfg.config_generation) == before
    for up in [False, True] * 128 + [False]:  # more often than a byte can count
        host.port.device.set_link(up)
    assert host.device_config(6, 2) == b"\0\0"
    assert host.get(CommonCfg.config_generation) != before
    again = host.get(CommonCfg.config_generation)
    cap = host.structures[Structure.DEVICE_CFG]
    host.function.write(cap.bar, cap.offset, bytes(6))
    assert host.device_config(0, 6) == MAC
    assert host.get(CommonCfg.config_generation) == again


def test_the_next_client_finds_a_fresh_function(host: Host) -> None:
    host.start()
    host.msix_on()
    ear = Ear(lambda fd: host.function.set_msix(0, fd))
    host.function.disconnect()
    assert host.status() == 0
    assert host.config(Header.COMMAND) == 0
    host.function.set_memory(shared(host.guest.fd, host.guest.size))
    host.start()
    host.send(frame(4))
    assert host.bench.captured(1) == [frame(4)]
    assert not ear.heard()
    ear.close()


def test_no_descriptor_is_left_behind(host: Host) -> None:
    counts = []
    for _ in range(4):
        host.start()
        ear = Ear(lambda fd: host.function.set_msix(0, fd))
        host.function.set_intx(os.eventfd(0))
        host.function.disconnect()
        ear.close()
        for kept in (host.guest.kicks, host.guest.calls):
            for fd in kept.values():
                os.close(fd)
            kept.clear()
        counts.append(len(os.listdir("/proc/self/fd")))
        host.function.set_memory(shared(host.guest.fd, host.guest.size))
    assert counts == counts[:1] * 4


def test_what_is_held_does_nothing_of_itself(host: Host) -> None:
    host.start()
    host.function.hold()
    host.send(frame(1))
    host.port.device.set_link(False)
    host.port.on_change()
    assert host.of_queue(1, CommonCfg.queue_enable) == 1
    assert not host.uplink.sent
    assert host.isr() == 0
    host.function.go_on()
    assert host.bench.captured(1) == [frame(1)]
    assert host.isr() & 2
