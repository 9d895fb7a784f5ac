"""What a client finds in the configuration space, and what it can change there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from functions import Host
from hypothesis import given, settings
from hypothesis import strategies as st
from test_function import frame

from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.config_space import ConfigSpace
from virtio_ipsec.transport.virtio_pci.tables import (
    CapabilityId,
    Command,
    CommonCfg,
    ExpressCap,
    Header,
    MsixCap,
    Region,
    Structure,
    VirtioCap,
)

#: What the window of the PCI_CFG capability lies behind.
DATA = tables.CFG_DATA


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def point(host: Host, bar: int, offset: int, width: int) -> None:
    host.set_config(VirtioCap.bar, bar, host.pci_cfg)
    host.set_config(VirtioCap.offset_, offset, host.pci_cfg)
    host.set_config(VirtioCap.length, width, host.pci_cfg)


def window(host: Host) -> bytes:
    return host.function.read(Region.CONFIG, host.pci_cfg + DATA, 4)


def test_identification(host: Host) -> None:
    assert host.function.read(Region.CONFIG, 0, 16) == bytes.fromhex(
        "f41a 4110 0000 1000 01 000002 00 00 00 00"
    )
    assert host.config(Header.SUBSYSTEM_VENDOR_ID) == 0x1AF4
    assert host.config(Header.SUBSYSTEM_ID) >= tables.FIRST_SUBSYSTEM_ID
    assert host.config(Header.REVISION_ID) >= tables.FIRST_REVISION_ID
    assert host.config(Header.INTERRUPT_PIN) == 1


def test_capabilities_are_those_that_a_function_needs(host: Host) -> None:
    caps = host.capabilities()
    assert {ident: len(places) for ident, places in caps.items()} == {
        CapabilityId.VENDOR: 5,
        CapabilityId.MSIX: 1,
        CapabilityId.EXPRESS: 1,
    }
    places = sorted(place for each in caps.values() for place in each)
    assert places[0] == tables.HEADER_SIZE
    assert host.extended() == {}


def test_structures_lie_in_their_bars_and_apart(host: Host) -> None:
    """Alignments and lengths of 4.1.4.3.1, 4.1.4.4.1 and 4.1.4.6.1."""
    ends = 0
    for kind in (Structure.COMMON_CFG, Structure.ISR_CFG, Structure.DEVICE_CFG, Structure.NOTIFY_CFG):
        cap = host.structures[kind]
        assert cap.offset % 4 == 0
        assert ends <= cap.offset
        ends = cap.offset + cap.length
        assert ends <= host.function.region_size(cap.bar)
    assert host.structures[Structure.COMMON_CFG].length >= tables.COMMON_CFG_SIZE
    notify = host.structures[Structure.NOTIFY_CFG]
    multiplier = int.from_bytes(notify.extra, "little")
    assert multiplier % 4 == 0
    assert multiplier & (multiplier - 1) == 0
    host.start(1 << 41)
    for index in range(host.port.queue_count):
        off = host.of_queue(index, CommonCfg.queue_notify_off)
        assert notify.length >= off * multiplier + 4


@pytest.mark.parametrize("pairs", [1, 8, 300, 2000])
def test_many_queues_have_room(pairs: int) -> None:
    host = Host(pairs=pairs, queue_size=2) if pairs < 100 else None
    if host is None:
        from virtio_ipsec.transport.virtio_pci.header import NOTIFY, Layout

        queues, vectors = 2 * pairs + 2, min(2 * pairs + 3, tables.MAX_VECTORS)
        layout = Layout.of(queues, vectors)
        assert layout.structures_size >= NOTIFY + 4 * queues
        assert layout.pba >= 16 * vectors
        assert layout.msix_size >= layout.pba + -(-vectors // 8)
        return
    try:
        assert host.function.msix_vectors == 2 * pairs + 3
        assert host.config(MsixCap.CONTROL, host.msix) == 2 * pairs + 2
    finally:
        host.close()


def test_bars_tell_their_size_and_keep_their_address(host: Host) -> None:
    for bar in range(tables.BARS):
        register = Header[f"BASE_ADDRESS_{bar}"]
        host.set_config(register, 0xFFFFFFFF)
        size = host.function.region_size(bar)
        assert host.config(register) == (0x100000000 - size if size else 0)
        host.set_config(register, 0xFE004567)
        assert host.config(register) == (0xFE004567 & -size if size else 0)
    host.set_config(Header.ROM_ADDRESS, 0xFFFFFFFF)
    assert host.config(Header.ROM_ADDRESS) == 0


def test_what_is_not_writable_stays() -> None:
    host = Host()
    try:
        before = host.function.read(Region.CONFIG, 0, 4096)
        fixed = (Header.VENDOR_ID, Header.DEVICE_ID, Header.STATUS, Header.CLASS_CODE, Header.CAPABILITY_LIST)
        for register in fixed:
            host.set_config(register, (1 << 8 * register.width) - 1)
        host.function.write(Region.CONFIG, tables.EXTENDED_CAPABILITIES, b"\xff" * 256)
        for at in (host.msix, host.express, *host.places.values()):
            host.function.write(Region.CONFIG, at, b"\xff\xff")
        assert host.function.read(Region.CONFIG, 0, 4096) == before
        host.set_config(Header.COMMAND, 0xFFFF)
        assert host.config(Header.COMMAND) == Command.MEMORY | Command.MASTER | Command.INTX_DISABLE
        host.set_config(MsixCap.CONTROL, 0xFFFF, host.msix)
        assert host.config(MsixCap.CONTROL, host.msix) == 0xC000 | host.function.msix_vectors - 1
    finally:
        host.close()


def test_registers_through_the_configuration_space(host: Host) -> None:
    """The PCI_CFG capability (4.1.4.9)."""
    point(host, 0, CommonCfg.device_feature_select.offset, 4)
    host.function.write(Region.CONFIG, host.pci_cfg + DATA, (2).to_bytes(4, "little"))
    assert host.get(CommonCfg.device_feature_select) == 2
    point(host, 0, CommonCfg.device_feature.offset, 4)
    assert int.from_bytes(window(host), "little") == host.get(CommonCfg.device_feature)
    point(host, 0, CommonCfg.num_queues.offset, 2)
    assert window(host)[:2] == b"\3\0"
    point(host, 0, CommonCfg.device_status.offset, 1)
    host.function.write(Region.CONFIG, host.pci_cfg + DATA, b"\1")
    assert host.status() == 1
    whole = bytes([0, 0, 0, 0, *(20).to_bytes(4, "little"), *(1).to_bytes(4, "little"), 3])
    host.function.write(Region.CONFIG, host.pci_cfg + VirtioCap.bar.offset, whole)
    assert host.status() == 3


@pytest.mark.parametrize(
    ("bar", "offset", "width"),
    [
        (0, 20, 0),
        (0, 20, 3),
        (0, 18, 4),
        (0, 20, 8),
        (1, 0, 4),
        (2, 0, 4),
        (7, 0, 4),
        (0, 0x4000, 4),
        (0, 0xFFFFFFFC, 4),
    ],
)
def test_a_window_that_points_nowhere_does_nothing(host: Host, bar: int, offset: int, width: int) -> None:
    point(host, bar, offset, width)
    before = host.function.read(0, 0, 64), host.function.read(1, 0, 64)
    host.function.write(Region.CONFIG, host.pci_cfg + DATA, b"\1\0\0\0")
    assert window(host) == b"\1\0\0\0"
    assert (host.function.read(0, 0, 64), host.function.read(1, 0, 64)) == before


def test_function_level_reset_by_its_register(host: Host) -> None:
    host.start()
    host.set_config(Header.BASE_ADDRESS_0, 0xFE000000)
    control = host.config(ExpressCap.DEVICE_CONTROL, host.express)
    assert host.config(ExpressCap.DEVICE_CAP, host.express) & tables.EXPRESS_FLR
    host.set_config(ExpressCap.DEVICE_CONTROL, control | tables.EXPRESS_START_FLR, host.express)
    assert host.config(ExpressCap.DEVICE_CONTROL, host.express) == 0
    assert host.status() == 0
    assert host.config(Header.COMMAND) == 0
    assert host.config(Header.BASE_ADDRESS_0) == 0
    assert not host.port.started(0)
    host.start()
    host.send(frame(1))
    assert host.bench.captured(1) == [frame(1)]


def test_a_configuration_space_has_its_limits() -> None:
    config = ConfigSpace()
    with pytest.raises(ValueError, match="BAR 6"):
        config.add_bar(Header.BASE_ADDRESS_0, 6, 4096)
    with pytest.raises(ValueError, match="of 0x1001"):
        config.add_bar(Header.BASE_ADDRESS_0, 0, 4097)
    config.add_capability(bytes(tables.EXTENDED_CAPABILITIES - tables.HEADER_SIZE))
    with pytest.raises(ValueError, match="no room"):
        config.add_capability(b"\t\0")
    config.reset()


_ACCESS = st.tuples(
    st.sampled_from([0, 1, 7]),
    st.integers(0, 0x3FFF),
    st.integers(0, 64),
    st.one_of(st.none(), st.binary(max_size=64)),
)


def test_no_access_does_harm() -> None:
    """Any reads and writes in any order: answered with as many bytes, or refused; afterwards the function works."""
    host = Host()

    @settings(max_examples=15)
    @given(st.lists(_ACCESS, max_size=20))
    def search(accesses: list[tuple[int, int, int, bytes | None]]) -> None:
        for region, offset, length, data in accesses:
            offset %= host.function.region_size(region)
            room = host.function.region_size(region) - offset
            if data is None:
                length = min(length, room)
                assert len(host.function.read(region, offset, length)) == length
            else:
                host.function.write(region, offset, data[:room])
        host.port.loop.turn(0)

    try:
        search()
        host.function.reset()
        host.start()
        host.send(frame(1))
        assert host.bench.captured(1) == [frame(1)]
        assert not host.port.device.context.outbound
    finally:
        host.close()
