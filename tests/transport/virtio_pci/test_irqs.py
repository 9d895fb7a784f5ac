"""MSI-X vectors, masks and pending bits; INTx and the ISR status byte; in both engines' rings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from functions import PLAIN, Ear, Host
from served import until
from test_function import frame

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.tables import (
    NO_VECTOR,
    Command,
    CommonCfg,
    DeviceState,
    Header,
    MsixCap,
    MsixEntry,
)
from virtio_ipsec.wire.numbers import Feature, mask

PATIENCE = 5.0
#: A driver that looks by itself is told of every buffer nevertheless.
ALWAYS = PLAIN & ~mask(Feature.F_EVENT_IDX)


@pytest.fixture(params=["c", "python"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(engine=request.param)
    made.negotiate(ALWAYS)
    yield made
    made.close()


def ears(host: Host, *vectors: int) -> list[Ear]:
    return [Ear(lambda fd, n=vector: host.function.set_msix(n, fd)) for vector in vectors]  # type: ignore[misc]


def work(host: Host, receive: int | None = None, transmit: int | None = None) -> None:
    host.enable(0, vector=receive)
    host.enable(1, vector=transmit)
    host.ready()
    host.guest.post()


def receive(host: Host, number: int = 1) -> None:
    host.uplink.inject(frame(number))
    assert host.bench.received(1) == [frame(number)]


def entry(host: Host, vector: int, register: MsixEntry) -> int:
    place = vector * tables.MSIX_ENTRY_SIZE + register.offset
    return int.from_bytes(host.function.read(1, place, 4), "little")


def set_entry(host: Host, vector: int, register: MsixEntry, value: int) -> None:
    place = vector * tables.MSIX_ENTRY_SIZE + register.offset
    host.function.write(1, place, value.to_bytes(4, "little"))


def pending(host: Host) -> int:
    table = host.config(MsixCap.PBA, host.msix)
    assert table & tables.MSIX_BIR_MASK == 1
    return int.from_bytes(host.function.read(1, table & ~tables.MSIX_BIR_MASK, 8), "little")


def test_each_queue_has_its_vector_and_the_configuration_another(host: Host) -> None:
    host.msix_on()
    one, two, three = ears(host, 0, 1, 2)
    host.put(CommonCfg.config_msix_vector, 2)
    assert host.get(CommonCfg.config_msix_vector) == 2
    work(host, 0, 1)
    assert [host.of_queue(i, CommonCfg.queue_msix_vector) for i in range(2)] == [0, 1]
    receive(host)
    assert one.heard(PATIENCE)
    host.send(frame(2))
    assert two.heard(PATIENCE)
    assert not three.heard()
    host.port.device.set_link(False)
    host.port.on_change()
    assert three.heard(PATIENCE)
    assert not one.heard()
    assert host.isr() == 2  # also with MSI-X on; and no INTx


def test_several_queues_share_a_vector(host: Host) -> None:
    host.msix_on()
    (ear,) = ears(host, 3)
    host.put(CommonCfg.config_msix_vector, 3)
    work(host, 3, 3)
    receive(host)
    assert ear.heard(PATIENCE)
    host.send(frame(2))
    assert ear.heard(PATIENCE)
    host.port.device.set_link(False)
    host.port.on_change()
    assert ear.heard(PATIENCE)


def test_without_a_vector_nobody_is_told(host: Host) -> None:
    host.msix_on()
    listening = ears(host, *range(host.function.msix_vectors))
    intx = Ear(host.function.set_intx)
    work(host)
    receive(host)
    host.port.device.set_link(False)
    host.port.on_change()
    assert not any(ear.heard() for ear in listening)
    assert not intx.heard(0.02)
    assert not host.config(Header.STATUS) & DeviceState.INTERRUPT


def test_vectors_that_the_table_lacks_are_none(host: Host) -> None:
    size = (host.config(MsixCap.CONTROL, host.msix) & tables.MSIX_SIZE_MASK) + 1
    assert size == host.function.msix_vectors == host.port.queue_count + 1
    for vector in (size, 0x7FF, 0x800, 0xFFFE):
        host.put_queue(0, CommonCfg.queue_msix_vector, 1)
        host.put(CommonCfg.queue_msix_vector, vector)
        assert host.get(CommonCfg.queue_msix_vector) == NO_VECTOR
        host.put(CommonCfg.config_msix_vector, vector)
        assert host.get(CommonCfg.config_msix_vector) == NO_VECTOR
    host.put(CommonCfg.queue_msix_vector, size - 1)
    assert host.get(CommonCfg.queue_msix_vector) == size - 1
    host.put(CommonCfg.queue_msix_vector, NO_VECTOR)
    assert host.get(CommonCfg.queue_msix_vector) == NO_VECTOR


def test_a_reset_of_the_device_unmaps_all_events(host: Host) -> None:
    host.put(CommonCfg.config_msix_vector, 1)
    host.put_queue(1, CommonCfg.queue_msix_vector, 1)
    host.put(CommonCfg.device_status, 0)
    assert host.get(CommonCfg.config_msix_vector) == NO_VECTOR
    assert host.of_queue(1, CommonCfg.queue_msix_vector) == NO_VECTOR


@pytest.mark.parametrize("how", ["table", "client", "all", "nobody"])
def test_what_happens_under_a_mask_is_pending(host: Host, how: str) -> None:
    host.msix_on(mask_all=how == "all")
    (ear,) = ears(host, 1)
    host.put(CommonCfg.config_msix_vector, 2)
    ears(host, 2)
    if how == "table":
        set_entry(host, 1, MsixEntry.CONTROL, 1)
    elif how == "client":
        host.function.mask_msix(1, True)
        assert entry(host, 1, MsixEntry.CONTROL) == 1
    elif how == "nobody":
        host.function.set_msix(1, None)
    work(host, 1)
    receive(host)
    host.until(lambda: pending(host) == 2)
    assert not ear.heard()
    if how == "table":
        set_entry(host, 1, MsixEntry.CONTROL, 0)
    elif how == "client":
        host.function.mask_msix(1, False)
    elif how == "all":
        host.msix_on()
    else:
        host.function.set_msix(1, os.dup(ear.fd))
    assert ear.heard(PATIENCE)
    assert pending(host) == 0
    receive(host, 3)
    assert ear.heard(PATIENCE)


def test_a_change_of_the_configuration_is_pending_too(host: Host) -> None:
    host.msix_on(mask_all=True)
    (ear,) = ears(host, 2)
    host.put(CommonCfg.config_msix_vector, 2)
    work(host)
    host.port.device.set_link(False)
    host.port.on_change()
    assert pending(host) == 4
    assert not ear.heard()
    host.msix_on()
    assert ear.heard(PATIENCE)


def test_the_table_is_memory_but_for_the_mask(host: Host) -> None:
    assert entry(host, 0, MsixEntry.CONTROL) == 1
    set_entry(host, 0, MsixEntry.ADDRESS_LO, 0xFEE00000)
    set_entry(host, 0, MsixEntry.ADDRESS_HI, 1)
    set_entry(host, 0, MsixEntry.DATA, 0x4021)
    set_entry(host, 0, MsixEntry.CONTROL, 0xFFFFFFFE)
    assert [entry(host, 0, one) for one in MsixEntry] == [0xFEE00000, 1, 0x4021, 0]
    before = host.function.read(1, 0, 0x1000)
    host.function.write(1, 0x800, b"\xff" * 8)
    host.function.write(1, 0xFF0, b"\xff" * 16)
    assert host.function.read(1, 0, 0x1000) == before
    last = host.function.msix_vectors * tables.MSIX_ENTRY_SIZE
    host.function.write(1, last - 4, b"\xff" * 8)
    assert host.function.read(1, last - 4, 8) == b"\1" + bytes(7)


def test_intx_tells_of_queues_until_the_isr_is_read(host: Host) -> None:
    ear = Ear(host.function.set_intx)
    work(host)
    receive(host)
    host.until(lambda: ear.heard())
    assert host.config(Header.STATUS) & DeviceState.INTERRUPT
    assert host.isr() == 1
    assert not host.config(Header.STATUS) & DeviceState.INTERRUPT
    assert host.isr() == 0
    host.function.mask_intx(False)
    assert not ear.heard()
    host.port.device.set_link(False)
    host.port.on_change()
    assert ear.heard()
    assert host.isr() == 2


def test_intx_masks_itself_and_rings_again_while_it_is_asserted(host: Host) -> None:
    ear = Ear(host.function.set_intx)
    work(host)
    host.port.device.set_link(False)
    host.port.on_change()
    assert ear.heard()
    host.port.device.set_link(True)
    host.port.on_change()
    assert not ear.heard()
    host.function.mask_intx(False)
    assert ear.heard()
    host.isr()
    host.function.mask_intx(False)
    assert not ear.heard()


def test_intx_can_be_switched_off(host: Host) -> None:
    ear = Ear(host.function.set_intx)
    host.set_config(Header.COMMAND, Command.MASTER | Command.INTX_DISABLE)
    work(host)
    host.port.device.set_link(False)
    host.port.on_change()
    assert not ear.heard()
    assert host.config(Header.STATUS) & DeviceState.INTERRUPT
    host.set_config(Header.COMMAND, Command.MASTER)
    assert ear.heard()


def test_the_isr_byte_knows_of_used_buffers_before_the_loop_does(host: Host) -> None:
    work(host)
    host.uplink.inject(frame(1))
    found = []

    def arrived() -> bool:
        found.extend(host.guest.taken(0))
        return bool(found)

    until(arrived)  # nobody turns the loop
    seen = 0

    def told() -> bool:
        nonlocal seen
        seen |= host.isr()
        return seen == 1

    until(told)


def test_intx_and_msix_take_turns(host: Host) -> None:
    intx = Ear(host.function.set_intx)
    host.msix_on()
    (ear,) = ears(host, 1)
    work(host, 1)
    host.set_config(MsixCap.CONTROL, 0, host.msix)
    receive(host)
    host.until(lambda: intx.heard())
    assert not ear.heard()
    host.msix_on()
    assert not host.config(Header.STATUS) & DeviceState.INTERRUPT
    receive(host, 2)
    assert ear.heard(PATIENCE)


def test_the_client_may_ring_for_itself(host: Host) -> None:
    (ear,) = ears(host, 0)
    intx = Ear(host.function.set_intx)
    host.function.ring_msix(0)
    host.function.ring_intx()
    assert ear.heard()
    assert intx.heard()


def test_what_is_no_eventfd_is_not_taken(host: Host) -> None:
    for attach in (lambda fd: host.function.set_msix(0, fd), host.function.set_intx):
        reader, writer = os.pipe()
        with pytest.raises(TransportError, match="no eventfd"):
            attach(writer)
        os.close(reader)
        with pytest.raises(OSError):
            os.fstat(writer)
    assert entry(host, 0, MsixEntry.CONTROL) == 1
    host.function.ring_msix(0)


def test_an_eventfd_that_is_full_holds_nobody(host: Host) -> None:
    host.msix_on()
    (ear,) = ears(host, 0)
    host.put(CommonCfg.config_msix_vector, 0)
    work(host, 0, 0)
    os.eventfd_write(ear.fd, (1 << 64) - 2)
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]
    host.port.device.set_link(False)
    host.port.on_change()
    assert ear.heard()


def test_function_level_reset_forgets_who_listened(host: Host) -> None:
    host.msix_on()
    (ear,) = ears(host, 0)
    intx = Ear(host.function.set_intx)
    host.function.reset()
    assert entry(host, 0, MsixEntry.CONTROL) == 1
    assert not host.config(MsixCap.CONTROL, host.msix) & tables.MSIX_ENABLE
    host.function.ring_msix(0)
    host.function.ring_intx()
    assert not ear.heard()
    assert not intx.heard()
