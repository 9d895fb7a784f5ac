"""Virtual functions in one process: each a device of its own, and what stopping one means for its driver."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest

from virtio_ipsec.conformance.target import Owner, open_target
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.driver import Driver, DriverConfig
from virtio_ipsec.errors import ConfigError, DeviceStateError
from virtio_ipsec.transport.loopback_members import LoopbackMember, LoopbackOwner
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.wire.device_parts import Part, parts_build, parts_parse
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Direction, Feature, IpsecMode, Status, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4

FRAME = bytes.fromhex(
    "ffffffffffff 020000000001 0800 4500001c00000000401166cf0a0000010a000002 0001000200080000"
)
SPI = 0x77
BASE = 0x1000
PLAIN = mask(Feature.F_VERSION_1, Feature.F_RING_RESET, Feature.NET_F_MAC)


def owner(count: int = 2, engine: str = "python", **settings: Any) -> LoopbackOwner:
    config = DeviceConfig(max_queue_pairs=1, **settings)
    found = loopback(f"{engine},members={count}", V14, config=config)
    assert isinstance(found, LoopbackOwner)
    return found


def sa(key: bytes, direction: Direction, spi: int = SPI) -> IpsecSa:
    param = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64)
    return IpsecSa(
        IpsecMode.ESP_TUNNEL,
        direction=direction,
        spi=spi,
        salt=key[:4],
        param=param,
        cipher_algo=1,
        cipher_key=key,
        replay_win_sz=64 if direction is Direction.INBOUND else 0,
    )


def working(link: LoopbackMember, key: bytes) -> tuple[Driver, Any]:
    """A driver with an SA of each direction under the key, which catches what comes in."""
    driver = Driver(link)
    driver.start()
    driver.flows.protect(driver.sas.create_inbound(sa(key, Direction.INBOUND)))
    return driver, driver.sas.create_outbound(sa(key, Direction.OUTBOUND))


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_two_members_with_one_spi_open_each_its_own(engine: str) -> None:
    target = owner(engine=engine)
    keys = (b"a" * 16, b"b" * 16)
    drivers = [working(target.member(number), key) for number, key in zip((1, 2), keys, strict=True)]
    sealed = []
    for number, (driver, out) in enumerate(drivers, 1):
        driver.send(FRAME, out)
        sealed += target.member(number).captured()
    assert len(sealed) == 2
    assert [frame[34:42] for frame in sealed] == [struct.pack(">II", SPI, 1)] * 2
    assert sealed[0][42:] != sealed[1][42:]
    for number, (driver, _) in enumerate(drivers, 1):
        target.member(number).inject(sealed[2 - number])  # of the other one
        target.member(number).inject(sealed[number - 1])
        wrong, right = driver.receive()
        assert right.frame[14:] == FRAME[14:]
        assert FRAME[14:] not in wrong.frame
    assert target.captured() == []


def test_a_member_that_vanishes_leaves_the_others_at_work() -> None:
    """Reset of one, on its own: the SAs of the other go on."""
    target = owner()
    one, two = (working(target.member(number), bytes((number,)) * 16) for number in (1, 2))
    target.member(1).write_status(0)
    assert not target.member(1).device.context.outbound
    two[0].send(FRAME, two[1])
    assert len(target.member(2).captured()) == 1
    assert len(two[0].sas.all()) == 2
    assert one[1].id == 0


def test_nothing_that_a_member_does_reaches_another_or_its_owner() -> None:
    """Random commands, registers and frames of one virtual function."""
    target = owner(3, owner_managed=True)
    drivers = [working(target.member(number), bytes((number,)) * 16) for number in (1, 3)]
    before = [snapshot(target.member(number).device) for number in (1, 3)] + [snapshot(target.device)]
    rng = Random(11)
    hostile = target.member(2)
    device = hostile.device
    device.negotiate(device.offered_features)
    template = struct.pack("<HxxIQ", 0x203, 0, 0) + V14.sa.build(sa(b"k" * 16, Direction.OUTBOUND))
    everything = struct.pack("<Q", 0x3F83)
    for turn in range(1500):
        opcode = (
            1
            if turn % 50 == 0
            else rng.choice((0, 1, 7, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0x10, 0x11, rng.randrange(1 << 16)))
        )
        data = everything if turn % 50 == 0 else rng.choice((template, rng.randbytes(rng.randrange(300))))
        head = struct.pack("<HH12xQ", opcode, rng.choice((0, 0, 1, 2)), rng.choice((0, 0, 1, 3, 1 << 63)))
        match rng.randrange(12):
            case 0:
                hostile.write_status(rng.randrange(256))
            case 1:
                hostile.write_driver_features(rng.getrandbits(128))
            case 2:
                device.negotiate(device.offered_features)
            case 3 if device.is_operating:
                device.transmit(rng.randbytes(rng.randrange(2000)))
            case _ if device.is_operating and device.context.has(Feature.F_ADMIN_VQ):
                device.admin(head + data, 4096)
    assert [snapshot(target.member(number).device) for number in (1, 3)] + [snapshot(target.device)] == before
    for number, (driver, out) in zip((1, 3), drivers, strict=True):
        driver.send(FRAME, out)
        target.member(number).inject(*target.member(number).captured())
        assert [each.frame[14:] for each in driver.receive()] == [FRAME[14:]]


def snapshot(device: Device) -> tuple[object, ...]:
    """Whatever of a device another function might reach."""
    context = device.context
    return (
        device.status,
        device.resets,
        device.driver_features,
        device.objects.ids(),
        [(key, each.packets, each.bytes) for key, each in context.outbound.items()],
        [(key, each.packets, each.bytes) for key, each in context.inbound.items()],
        device.capabilities.driver_values(),
        dict(device.commands.used),
        dict(device.counters()),
        context.rx_filter,
    )


def admin(target: LoopbackOwner, opcode: int, data: bytes, member: int = 0, group: int = 1) -> bytes:
    answer = target.device.admin(struct.pack("<HH12xQ", opcode, group, member) + data, 1 << 16)
    assert answer[:4] == bytes(4), answer[:4].hex()
    return answer[8:]


def managing(count: int = 2, engine: str = "python") -> LoopbackOwner:
    """An owner at work, with a GET object 0 for member 1 and a SET object for each member."""
    target = owner(count, engine)
    target.device.negotiate(target.device.offered_features)
    for group in (0, 1):
        admin(target, 1, admin(target, 0, b"", group=group), group=group)
    admin(target, 9, bytes(8) + b"\x08\x08", group=0)
    admin(target, 0xA, struct.pack("<HxxIQQ", 0, 0, 0, 0), 1)
    for number in range(1, count + 1):
        admin(target, 0xA, struct.pack("<HxxIQQ", 0, number, 0, 1), number)
    return target


def mode(target: LoopbackOwner, number: int, flags: int) -> None:
    admin(target, 0x11, bytes((flags,)), number)


def plain(link: LoopbackMember, *more: Feature) -> Driver:
    """A driver without IPsec and administration."""
    driver = Driver(link, config=DriverConfig(wanted=PLAIN | mask(*more)))
    driver.start()
    return driver


def echo(link: LoopbackMember, driver: Driver, times: int = 3) -> None:
    """Frames leave and arrive."""
    for _ in range(times):
        driver.send(FRAME)
        assert link.captured() == [FRAME]
        link.inject(FRAME)
        assert [each.frame for each in driver.receive()] == [FRAME]


def test_a_stopped_member_touches_neither_queues_nor_buffers() -> None:
    target = managing()
    link = target.member(1)
    driver = plain(link)
    echo(link, driver)
    link.interrupts()
    mode(target, 1, 1)
    before = link.memory.read(BASE, 1 << 20)
    link.inject(FRAME)
    assert link.memory.read(BASE, 1 << 20) == before
    driver.send(FRAME)
    assert link.captured() == []
    assert link.interrupts() == set()
    assert driver.receive() == []
    assert link.read_config(0, 6) == link.device.config.mac
    mode(target, 1, 0)
    assert link.captured() == [FRAME]  # what was announced meanwhile
    echo(link, driver)


def parts_of(target: LoopbackOwner) -> bytes:
    return parts_build(parts_parse(admin(target, 0xF, struct.pack("<HxxIB7x", 0, 0, 1), 1)))


def put(target: LoopbackOwner, parts: bytes, member: int = 1) -> None:
    admin(target, 0x10, struct.pack("<HxxI", 0, member) + parts, member)


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_a_split_ring_goes_on_in_another_function(engine: str) -> None:
    """The function is reset in between: nothing but its parts and the guest's memory tells where its rings were."""
    target = managing(engine=engine)
    link = target.member(1)
    driver = plain(link)
    echo(link, driver)
    mode(target, 1, 1)
    parts = parts_of(target)
    link.write_status(0)
    put(target, parts)
    driver.send(FRAME)
    mode(target, 1, 0)
    assert link.captured() == [FRAME]
    assert parts_of(target) == parts
    echo(link, driver)


def test_a_packed_ring_goes_on_where_it_lay_and_nowhere_else() -> None:
    target = managing()
    link = target.member(1)
    driver = plain(link, Feature.F_RING_PACKED)
    echo(link, driver)
    mode(target, 1, 1)
    parts = parts_of(target)
    put(target, parts)
    mode(target, 1, 0)
    assert link.device.resets == 2  # that of the driver, and one to be what the parts say
    echo(link, driver)
    mode(target, 1, 1)
    link.write_status(0)
    put(target, parts)
    mode(target, 1, 0)
    assert link.status() & Status.DEVICE_NEEDS_RESET


def test_a_ring_outside_the_memory_ends_in_needs_reset() -> None:
    target = managing()
    link = target.member(1)
    plain(link)
    mode(target, 1, 1)
    wrong = struct.pack("<HHH2xQQQ", 16, 0xFFFF, 1, 1 << 60, 1 << 61, (1 << 64) - 2)
    put(target, parts_build([Part(0x104, wrong)]))
    mode(target, 1, 0)
    assert link.status() & Status.DEVICE_NEEDS_RESET
    link.write_status(0)
    echo(link, plain(link))


def test_a_device_that_needs_a_reset_needs_it_elsewhere_too() -> None:
    target = managing()
    link = target.member(1)
    plain(link)
    mode(target, 1, 1)
    put(target, parts_build([Part(0x103, b"\x4f")]))
    mode(target, 1, 0)
    assert link.status() == 0x4F


def test_vectors_are_kept_and_gone_with_a_reset() -> None:
    target = managing()
    link = target.member(1)
    plain(link)
    mode(target, 1, 1)
    put(target, parts_build([Part(0x102, b"\x03\x00", 0, (16).to_bytes(8, "little"))]))
    mode(target, 1, 0)
    assert link.state().common[16] == b"\x03\x00"
    link.write_status(0)
    assert link.state().common[16] == b"\xff\xff"


def test_a_queue_that_was_reset_is_not_enabled_in_the_parts() -> None:
    target = managing()
    link = target.member(1)
    driver = plain(link)
    assert [queue.enabled for queue in link.state().queues.values()] == [True, True, False, False]
    driver.reset_pair(0)
    link.reset_queue(0)
    assert not link.state().queues[0].enabled
    assert link.state().queues[0].size == 256


def test_the_target_is_found_by_name() -> None:
    with open_target("loopback:python,members=3", V14) as target:
        assert isinstance(target, Owner)
        assert target.total_vfs == 3
        macs = {target.member(number).read_config(0, 6) for number in (1, 2, 3)} | {target.read_config(0, 6)}
        assert len(macs) == 4
        target.enable_vfs(None)
        with pytest.raises(DeviceStateError, match="not there"):
            target.member(1)
        target.enable_vfs(1)
        assert target.member(1).status() == 0
        with pytest.raises(DeviceStateError, match="not there"):
            target.member(2)
        target.reset()
        assert target.member(3).status() == 0
    with open_target("loopback", V14) as target:
        assert not isinstance(target, Owner)
    for wrong in ("members=65", "members=x", "members=", "limbs=2"):
        with pytest.raises(ConfigError, match="members=N"), open_target(f"loopback:{wrong}", V14):
            pass


@pytest.mark.parametrize("engine", ["python", "auto"])
def test_an_sa_that_the_owner_makes_is_in_force_in_its_member_alone(engine: str) -> None:
    target = owner(engine=engine, owner_managed=True)
    target.device.negotiate(target.device.offered_features)
    for group in (0, 1):
        admin(target, 1, admin(target, 0, b"", group=group), group=group)
    drivers = [working(target.member(number), bytes((number,)) * 16)[0] for number in (1, 2)]
    body = V14.sa.build(sa(b"o" * 16, Direction.OUTBOUND, 0x4321))
    admin(target, 0xA, struct.pack("<HxxIQ", 0x203, 7, 0) + body, 1)
    listed = [number for number in range(10) if exists(target, number, 1)]
    assert listed == [0, 7]  # the driver's own, and the owner's
    assert admin(target, 0xB, struct.pack("<HxxIQ", 0x203, 7, 0), 1)[: len(body)] == body
    sent = [through(target.member(number), drivers[number - 1], 7) for number in (1, 2)]
    assert [frame[34:42] for frame in sent[0]] == [struct.pack(">II", 0x4321, 1)]
    assert sent[1] == []
    admin(target, 0xD, struct.pack("<HxxI", 0x203, 7), 1)
    assert through(target.member(1), drivers[0], 7) == []
    assert [number for number in range(10) if exists(target, number, 1)] == [0]


def exists(target: LoopbackOwner, number: int, member: int) -> bool:
    """Whether the owner finds an outbound SA of a member."""
    command = struct.pack("<HH12xQHxxIQ", 0xB, 1, member, 0x203, number, 0)
    return target.device.admin(command, 4096)[:4] == bytes(4)


def through(link: LoopbackMember, driver: Driver, number: int) -> list[bytes]:
    """What leaves when a frame is sent with the SA of this number."""
    header = NetHdr(flags=V14.flag_security, resource_id=number, resource_type=0x203)
    return link.device.transmit(V14.net_hdr(driver.features).build(header) + FRAME)
