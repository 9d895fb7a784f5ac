"""An owner and its virtual functions: registers, who is there when, and that each is a device of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from functions import PLAIN, Host, has
from served import shared, until
from test_function import frame

from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci import member as member_module
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.member import VirtualFunction
from virtio_ipsec.transport.virtio_pci.tables import (
    CommonCfg,
    ExtendedId,
    Header,
    Region,
    SriovCap,
    SriovControl,
)
from virtio_ipsec.wire.numbers import AdminQualifier, AdminStatus, Feature, mask


class Noting(SriovGroup):
    """Notes what the owner says: how many, or -1 for none."""

    def __init__(self, members: list[VirtualFunction]) -> None:
        super().__init__(members, stoppable=True)
        self.calls: list[int] = []

    def enable(self, num_vfs: int) -> None:
        self.calls.append(num_vfs)
        super().enable(num_vfs)

    def disable(self) -> None:
        self.calls.append(-1)
        super().disable()


class Family:
    """An owner of ``count`` virtual functions."""

    def __init__(self, count: int = 2) -> None:
        self.vfs = [Host(virtual=True, memory=False) for _ in range(count)]
        self.members = [VirtualFunction(vf.function) for vf in self.vfs]
        self.group = Noting(self.members)
        self.calls = self.group.calls
        self.owner = Host(members=self.group)
        self.base = self.owner.extended()[ExtendedId.SRIOV]

    def get(self, register: SriovCap) -> int:
        return self.owner.config(register, self.base)

    def put(self, register: SriovCap, value: int) -> None:
        self.owner.set_config(register, value, self.base)

    def switch(self, number: int) -> None:
        """VF Enable off, and on with so many."""
        self.put(SriovCap.CONTROL, 0)
        if number:
            self.put(SriovCap.NUM_VFS, number)
            self.put(SriovCap.CONTROL, SriovControl.VF_ENABLE | SriovControl.VF_MEMORY)
            for vf in self.vfs[:number]:
                vf.function.set_memory(shared(vf.guest.fd, vf.guest.size))
                vf.find()

    def close(self) -> None:
        self.owner.close()
        for vf in self.vfs:
            vf.close()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.close()


def test_the_capability_after_reset(family: Family) -> None:
    assert [family.get(one) for one in SriovCap][1:] == [
        *(0, 0, 0, 2, 2, 0, 0, 1, 1, 0x1041, tables.SRIOV_PAGE_SIZES, 1),
        *(0, 0, 0, 0, 0, 0, 0),
    ]
    assert set(family.owner.extended()) == {ExtendedId.SRIOV, ExtendedId.ARI}
    header = family.get(SriovCap.HEADER)
    assert (header & 0xFFFF, header >> 16 & 15) == (0x10, 1)
    assert has(family.owner.offered(), Feature.F_SR_IOV)
    family.owner.negotiate(PLAIN | mask(Feature.F_SR_IOV))


def test_a_virtual_function_is_there_while_it_is_enabled(family: Family) -> None:
    first, second = family.vfs
    assert first.function.read(Region.CONFIG, 0, 4) == b"\xff" * 4
    assert first.function.read(0, 0x12, 2) == b"\xff\xff"
    first.function.write(0, 0x14, b"\1")
    family.switch(1)
    assert family.calls == [1]
    assert first.function.is_present
    assert not second.function.is_present
    assert first.config(Header.VENDOR_ID) == tables.VENDOR_ID
    assert first.config(Header.INTERRUPT_PIN) == 0
    assert not first.function.has_intx
    assert family.owner.function.has_intx
    assert first.status() == 0
    assert set(first.extended()) == {ExtendedId.ARI}
    assert not has(first.offered(), Feature.F_SR_IOV)
    first.start()
    first.send(frame(1))
    assert first.bench.captured(1) == [frame(1)]
    family.put(SriovCap.CONTROL, 0)
    assert family.calls == [1, -1]
    assert not first.port.started(1)
    assert first.port.device.status == 0
    assert first.function.read(0, 0x14, 1) == b"\xff"


def test_the_number_is_fixed_while_they_are_enabled_and_never_too_large(family: Family) -> None:
    family.put(SriovCap.NUM_VFS, 3)
    assert family.get(SriovCap.NUM_VFS) == 0
    family.switch(2)
    family.put(SriovCap.NUM_VFS, 1)
    assert family.get(SriovCap.NUM_VFS) == 2
    family.put(SriovCap.CONTROL, SriovControl.VF_ENABLE)
    assert family.calls == [2]
    family.switch(1)
    assert family.calls == [2, -1, 1]
    assert family.get(SriovCap.NUM_VFS) == 1


@pytest.mark.parametrize("how", ["reset", "disconnect", "register"])
def test_virtual_functions_vanish_with_their_owners_reset(family: Family, how: str) -> None:
    family.switch(2)
    if how == "register":
        owner = family.owner
        owner.set_config(tables.ExpressCap.DEVICE_CONTROL, tables.EXPRESS_START_FLR, owner.express)
    else:
        getattr(family.owner.function, how)()
    assert family.calls == [2, -1]
    assert [vf.function.is_present for vf in family.vfs] == [False, False]
    assert family.get(SriovCap.NUM_VFS) == family.get(SriovCap.CONTROL) == 0


def test_a_reset_of_the_owners_device_leaves_them(family: Family) -> None:
    family.switch(2)
    family.owner.start()
    family.owner.put(CommonCfg.device_status, 0)
    assert family.calls == [2]
    family.vfs[1].start()
    family.vfs[1].send(frame(7))
    assert family.vfs[1].bench.captured(1) == [frame(7)]


def test_their_bars_come_in_whole_pages(family: Family) -> None:
    def sizes() -> list[int]:
        bars = [SriovCap[f"VF_BAR_{bar}"] for bar in range(6)]
        for bar in bars:
            family.put(bar, 0xFFFFFFFF)
        return [0x100000000 - family.get(bar) if family.get(bar) else 0 for bar in bars]

    assert sizes() == [0x4000, 0x1000, 0, 0, 0, 0]
    assert sizes()[:2] == [family.vfs[0].function.region_size(bar) for bar in range(2)]
    for pages in (0, 4, 3, 0x1000):
        family.put(SriovCap.SYSTEM_PAGE_SIZE, pages)
        assert family.get(SriovCap.SYSTEM_PAGE_SIZE) == 1
    family.put(SriovCap.SYSTEM_PAGE_SIZE, 0x10)
    assert sizes() == [0x10000, 0x10000, 0, 0, 0, 0]
    family.switch(1)
    family.put(SriovCap.SYSTEM_PAGE_SIZE, 1)
    assert family.get(SriovCap.SYSTEM_PAGE_SIZE) == 0x10
    family.owner.function.reset()
    assert sizes() == [0x4000, 0x1000, 0, 0, 0, 0]


def test_they_work_side_by_side(family: Family) -> None:
    family.switch(2)
    hosts = [family.owner, *family.vfs]
    for number, host in enumerate(hosts):
        host.start()
        host.send(frame(number))
    for number, host in enumerate(hosts):
        assert host.bench.captured(1) == [frame(number)]
    family.vfs[0].put(CommonCfg.device_status, 0)
    family.vfs[1].send(frame(8))
    assert family.vfs[1].bench.captured(1) == [frame(8)]
    assert [host.status() for host in hosts] == [15, 0, 15]


def test_commands_reach_a_virtual_function_while_it_is_there(family: Family) -> None:
    """LIST_QUERY through group type 1 of the owner's administration queue: EINVAL and INVALID_GROUP without VF
    Enable, and afterwards an answer of the group."""
    owner = family.owner
    owner.negotiate(PLAIN | mask(Feature.F_ADMIN_VQ))
    owner.enable(owner.get(CommonCfg.admin_queue_index))
    owner.ready()
    query = (0).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(20)

    def asked() -> tuple[int, int]:
        answer = owner.guest.command(3, query, 24)
        owner.notify(3)
        owner.until(lambda: bool(owner.guest.drivers[3].poll()))
        return owner.guest.memory.u16(answer.addr), owner.guest.memory.u16(answer.addr + 2)

    assert asked() == (AdminStatus.EINVAL, AdminQualifier.INVALID_GROUP)
    family.switch(1)
    assert asked() == (AdminStatus.OK, AdminQualifier.OK)
    family.switch(0)
    assert asked() == (AdminStatus.EINVAL, AdminQualifier.INVALID_GROUP)


def test_what_is_asked_of_a_virtual_function_happens_in_its_own_thread(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    vf = family.vfs[0]
    where: list[int] = []
    member = VirtualFunction(vf.function, lambda _: where.append(threading.get_ident()))
    member.appear()
    assert where == [threading.get_ident()]
    thread = threading.Thread(target=vf.port.loop.run)
    thread.start()
    until(lambda: vf.port.loop._thread is not None)
    try:
        member.vanish()
        assert where[1:] == [thread.ident]
        assert member.device is vf.port.device
        with member.exclusive():
            taken = []
            other = threading.Thread(target=lambda: taken.append(vf.port.lock.acquire(blocking=False)))
            other.start()
            other.join()
            assert taken == [False]

        def fail(_: bool) -> None:
            raise TransportError("stuck")

        with pytest.raises(TransportError, match="stuck"):
            VirtualFunction(vf.function, fail).vanish()
    finally:
        vf.port.loop.stop()
        thread.join()


@contextmanager
def hanging(*vfs: Host) -> Iterator[threading.Event]:
    """Their control threads run, and do nothing until the event is set."""
    let_go = threading.Event()
    threads = [threading.Thread(target=vf.port.loop.run) for vf in vfs]
    for vf, thread in zip(vfs, threads, strict=True):
        thread.start()
        until(lambda vf=vf: vf.port.loop._thread is not None)  # type: ignore[misc]
        vf.port.loop.call(lambda: let_go.wait(60) and None)
    try:
        yield let_go
    finally:
        let_go.set()
        for vf, thread in zip(vfs, threads, strict=True):
            vf.port.loop.stop()
            thread.join()
            vf.port.loop._thread = None


def test_one_that_hangs_is_waited_for_once_and_what_it_was_asked_is_not_done_later(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.switch(2)
    vf, member = family.vfs[0], family.members[0]
    with hanging(vf) as let_go:
        monkeypatch.setattr(member_module, "_PATIENCE", 0.01)
        with pytest.raises(TransportError, match="does not answer its owner"):
            member.stop()
        monkeypatch.setattr(member_module, "_PATIENCE", 30.0)
        for call in (member.stop, member.state, member.appear):
            with pytest.raises(TransportError, match="does not answer its owner"):
                call()
        let_go.set()
        until(lambda: not member._is_silent)
        assert not member.stopped
        member.stop()
        assert member.stopped


def test_those_that_hang_are_told_to_vanish_at_once_and_do_when_they_can(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.switch(2)
    monkeypatch.setattr(member_module, "_PATIENCE", 0.01)
    with hanging(*family.vfs) as let_go:
        family.put(SriovCap.CONTROL, 0)
        first = [member._leaving for member in family.members]
        monkeypatch.setattr(member_module, "_PATIENCE", 30.0)
        family.put(SriovCap.CONTROL, SriovControl.VF_ENABLE)
        assert not family.get(SriovCap.CONTROL) & SriovControl.VF_ENABLE
        assert [member._leaving for member in family.members] == first
        assert all(vf.function.is_present for vf in family.vfs)
        let_go.set()
        until(lambda: not any(member._is_silent for member in family.members))
        assert not any(vf.function.is_present for vf in family.vfs)
        family.put(SriovCap.CONTROL, SriovControl.VF_ENABLE)
        assert family.get(SriovCap.CONTROL) & SriovControl.VF_ENABLE
        assert all(vf.function.is_present for vf in family.vfs)


def test_a_lock_that_is_not_let_go_is_waited_for_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    member, lock = family.members[0], family.vfs[0].port.lock
    monkeypatch.setattr(member_module, "_PATIENCE", 0.01)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            let_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    for _ in range(2):
        with pytest.raises(TransportError, match="does not answer its owner"), member.exclusive():
            pass
        monkeypatch.setattr(member_module, "_PATIENCE", 30.0)
    let_go.set()
    other.join()
    with member.exclusive():
        pass


@pytest.mark.parametrize("how", ["register", "reset", "disconnect"])
def test_one_that_does_not_answer_is_not_felt_by_the_owners_client(
    family: Family, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = family.members[0]
    family.switch(2)
    family.owner.start()

    def fail() -> None:
        raise TransportError("port 1 does not answer its owner")

    stuck.leave, stuck.vanish = lambda: None, fail  # type: ignore[method-assign]
    if how == "register":
        family.put(SriovCap.CONTROL, 0)
    else:
        getattr(family.owner.function, how)()
        assert family.owner.port.device.status == 0
        assert not family.owner.port.started(1)
    assert [vf.function.is_present for vf in family.vfs] == [True, False]
    assert "does not answer" in caplog.text
    # It is asked again first, and as long as it does not answer there are none.
    family.put(SriovCap.NUM_VFS, 2)
    family.put(SriovCap.CONTROL, SriovControl.VF_ENABLE)
    assert not family.get(SriovCap.CONTROL) & SriovControl.VF_ENABLE
    assert not family.vfs[1].function.is_present
    del stuck.leave, stuck.vanish
    family.switch(2)
    assert family.get(SriovCap.CONTROL) & SriovControl.VF_ENABLE
    assert [vf.function.is_present for vf in family.vfs] == [True, True]


def test_with_one_that_does_not_appear_there_are_none(family: Family) -> None:
    def fail() -> None:
        raise TransportError("port 2 does not answer its owner")

    family.members[1].appear = fail  # type: ignore[method-assign]
    family.put(SriovCap.NUM_VFS, 2)
    family.put(SriovCap.CONTROL, SriovControl.VF_ENABLE)
    assert family.get(SriovCap.CONTROL) == 0
    assert [vf.function.is_present for vf in family.vfs] == [False, False]
