"""Members that are stopped: their registers as device parts hold them, in the same function again or in another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from functions import BASE, PLAIN, Host
from served import shared
from test_function import frame
from test_sriov import Family

from virtio_ipsec.device.device_parts import changed, check_parts, parts_of
from virtio_ipsec.device.members import FunctionState
from virtio_ipsec.transport.virtio_pci.tables import Command, CommonCfg, Header
from virtio_ipsec.wire.numbers import Feature, Status, mask

EXTRA = mask(Feature.F_NOTIFICATION_DATA, Feature.F_RING_RESET)


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    made.switch(2)
    yield made
    made.close()


def moved(family: Family, state: FunctionState) -> FunctionState:
    """Through parts, as an owner hands them to the second function."""
    old, new = (vf.port.device for vf in family.vfs)
    parts = parts_of(old, state)
    return changed(
        new, family.members[1].state(), check_parts(parts_of(new, family.members[1].state()), parts)
    )


def at_work(family: Family, extra: int = EXTRA) -> Host:
    vf = family.vfs[0]
    vf.start(extra)
    vf.put(CommonCfg.config_msix_vector, 2)
    vf.put_queue(1, CommonCfg.queue_msix_vector, 1)
    vf.send(frame(1), frame(2))
    assert vf.bench.captured(2) == [frame(1), frame(2)]
    return vf


def test_a_stopped_member_goes_on_where_it_was(family: Family) -> None:
    vf, member = at_work(family), family.members[0]
    assert not member.stopped
    member.stop()
    assert member.stopped
    vf.send(frame(3))
    assert vf.of_queue(1, CommonCfg.queue_enable) == 1
    assert not vf.uplink.sent
    member.resume()
    assert vf.bench.captured(1) == [frame(3)]
    member.stop()
    vf.put(CommonCfg.device_status, 0)
    vf.function.reset()
    assert member.stopped
    family.switch(1)
    assert not member.stopped


def test_registers_are_those_of_the_common_configuration(family: Family) -> None:
    vf = at_work(family)
    state = family.members[0].state()
    assert state.device_features == vf.offered()
    assert state.driver_features == PLAIN | EXTRA
    assert state.status == 15
    assert set(state.common) == {0, 8, 16, 18, 22, 60, 62}
    assert state.common[CommonCfg.config_msix_vector.offset] == b"\2\0"
    assert state.common[CommonCfg.num_queues.offset] == b"\3\0"
    assert set(state.queues) == set(range(4))
    queue = state.queues[1]
    layout = vf.guest.layouts[1]
    assert (queue.size, queue.desc, queue.driver, queue.device) == (
        64,
        layout.desc,
        layout.driver,
        layout.device,
    )
    assert (queue.vector, queue.enabled, queue.notify_off) == (1, True, 1)
    assert not state.queues[2].enabled
    assert queue.notif_config_data != 1


def test_a_member_becomes_another(family: Family) -> None:
    vf, other = at_work(family), family.vfs[1]
    for member in family.members:
        member.stop()
    vf.send(frame(3))
    other.function.set_memory(shared(vf.guest.fd, vf.guest.size))
    other.set_config(Header.COMMAND, Command.MASTER)  # PCI's own registers are in no part
    state = moved(family, family.members[0].state())
    family.members[1].resume(state)
    assert other.bench.captured(1) == [frame(3)]
    assert other.status() == 15
    assert family.members[1].state() == replace(state, controls=())
    other.uplink.inject(frame(4))
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(vf.guest.taken())
        return bool(found)

    other.until(arrived)
    assert found == [frame(4)]


def test_a_member_set_to_itself_goes_on(family: Family) -> None:
    vf, member = at_work(family, mask(Feature.F_RING_PACKED)), family.members[0]
    member.stop()
    state = member.state()
    parts = parts_of(vf.port.device, state)
    member.resume(changed(vf.port.device, state, check_parts(parts, parts)))
    vf.send(frame(5))
    assert vf.bench.captured(1) == [frame(5)]


@pytest.mark.parametrize("why", ["packed", "no memory", "other memory"])
def test_rings_that_nobody_can_go_on_with_need_a_reset(family: Family, why: str) -> None:
    vf, other = at_work(family, mask(Feature.F_RING_PACKED) if why == "packed" else 0), family.vfs[1]
    for member in family.members:
        member.stop()
    if why == "packed":
        other.function.set_memory(shared(vf.guest.fd, vf.guest.size))
    elif why == "no memory":
        other.function.set_memory(None)
    else:
        other.function.set_memory(shared(vf.guest.fd, 4096, BASE - 4096))
    family.members[1].resume(moved(family, family.members[0].state()))
    assert other.status() & Status.DEVICE_NEEDS_RESET
    assert other.of_queue(1, CommonCfg.queue_enable) == 0
    other.function.set_memory(shared(other.guest.fd, other.guest.size))
    other.start()
    other.send(frame(6))
    assert other.bench.captured(1) == [frame(6)]
