"""Initialisation: status, features, configuration, queues, command lists, capabilities."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from virtio_ipsec.driver import Driver, DriverConfig, FeatureError, NotNegotiated
from virtio_ipsec.driver.features import REQUIRES, SUPPORTED, names, select
from virtio_ipsec.errors import CommandFailed, TransportError
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.numbers import Feature

VERSION_1, ADMIN_VQ, IPSEC, MAC, MTU = 1 << 32, 1 << 41, 1 << 70, 1 << 5, 1 << 3
ALL = (1 << 128) - 1


def positions(trace: list[tuple[str, Any]], kind: str) -> list[int]:
    return [number for number, (name, _) in enumerate(trace) if name == kind]


def test_BAS_INIT_05_the_eight_steps_come_in_order(fake: Any, start: Any) -> None:
    start(fake)
    trace = fake.trace
    status = [value for kind, value in trace if kind == "status"]
    assert status == [0, 1, 3, 11, 15]
    features = positions(trace, "features")
    assert trace[features[0] - 1] == ("status", 3)
    assert trace[features[0] + 1] == ("status", 11)
    enables, driver_ok = positions(trace, "enable"), trace.index(("status", 15))
    assert trace.index(("status", 11)) < min(enables)
    assert max(enables) < driver_ok


def test_BAS_INIT_09_no_kick_before_driver_ok(fake: Any, start: Any) -> None:
    start(fake)
    assert min(positions(fake.trace, "kick")) > fake.trace.index(("status", 15))


def test_BAS_STATUS_02_bits_are_only_added(fake: Any, start: Any) -> None:
    start(fake)
    status = [value for kind, value in fake.trace if kind == "status"][1:]
    assert all(before & ~after == 0 for before, after in pairwise(status))


def test_BAS_FEAT_01_04_06_only_offered_known_and_carried_bits_are_accepted(fake: Any, start: Any) -> None:
    fake.offered |= 1 << 71 | 1 << 127 | 1 << 44 | 1 << 37 | 1 << 62
    driver = start(fake)
    ((_, word),) = [each for each in fake.trace if each[0] == "features"]
    assert word == VERSION_1 | ADMIN_VQ | 1 << 69 | IPSEC | MAC == driver.features


def test_BAS_FEAT_04_a_transport_without_admin_queues_leaves_bit_41_and_with_it_ipsec(
    fake: Any, start: Any
) -> None:
    fake.carried = 0
    driver = start(fake)
    assert not driver.features & (ADMIN_VQ | IPSEC)
    with pytest.raises(NotNegotiated, match="no administration virtqueue"):
        _ = driver.sas


@pytest.mark.parametrize("feature", sorted(REQUIRES))
def test_BAS_FEAT_02_no_feature_without_what_it_requires(feature: Feature) -> None:
    offered = 1 << feature | VERSION_1
    assert select(offered, ALL, ALL, ALL) == VERSION_1


def test_BAS_FEAT_02_dependencies_are_followed_over_several_steps() -> None:
    # USO4 hangs on GUEST_CSUM, the tunnel on USO4, its checksum on the tunnel.
    offered = SUPPORTED & ~(1 << Feature.NET_F_GUEST_CSUM)
    word = select(offered, ALL, ALL, ALL)
    for gone in (1, 7, 8, 9, 54, 55, 65, 66):
        assert not word >> gone & 1
    assert word >> Feature.NET_F_HOST_UDP_TUNNEL_GSO & 1


def test_select_leaves_out_what_the_dialect_does_not_define() -> None:
    word = select(SUPPORTED, ALL, ALL, RFC_2025_01.known_features)
    assert word >> 70 & 1
    assert not word & 0x3F << 64 & ~(1 << 70)


def test_names_of_features_for_messages() -> None:
    assert names(1 << 70 | 1 << 99) == "NET_F_IPSEC, bit 99"
    assert names(0) == "none"


def test_BAS_FEAT_05_less_is_tried_when_the_device_refuses_the_selection(fake: Any, start: Any) -> None:
    fake.accepts = lambda word: not word & 1
    driver = start(fake, extra=1)
    words = [value for kind, value in fake.trace if kind == "features"]
    assert [word & 1 for word in words] == [1, 0]
    assert driver.features == words[1]
    assert [value for kind, value in fake.trace if kind == "status"] == [0, 1, 3, 11, 0, 1, 3, 11, 15]


def test_BAS_FEAT_05_failed_is_set_when_nothing_is_accepted(fake: Any, start: Any) -> None:
    fake.accepts = lambda _word: False
    with pytest.raises(FeatureError, match="accepts neither"):
        start(fake, extra=1)
    assert fake.trace[-1] == ("status", 0x83)
    assert not positions(fake.trace, "enable")


def test_BAS_FEAT_05_failed_is_set_when_a_required_feature_is_not_offered(fake: Any, start: Any) -> None:
    fake.offered &= ~IPSEC
    with pytest.raises(FeatureError, match="NET_F_IPSEC"):
        start(fake, required=IPSEC)
    assert fake.trace[-1] == ("status", 0x83)
    assert not positions(fake.trace, "features")


def test_a_device_without_version_1_is_left_alone(fake: Any, start: Any) -> None:
    fake.offered = MAC
    with pytest.raises(FeatureError, match="F_VERSION_1"):
        start(fake)


def test_BAS_RSVD_01_version_1_is_accepted_even_when_not_wanted(fake: Any, start: Any) -> None:
    assert start(fake, wanted=0).features == VERSION_1


def test_BAS_RESET_03_the_driver_waits_for_status_zero(fake: Any, start: Any) -> None:
    fake.reset_delay = 2
    start(fake)
    assert fake.polls == 2


def test_a_device_that_never_finishes_its_reset_is_given_up(fake: Any, start: Any) -> None:
    fake.reset_delay = 100
    with pytest.raises(TransportError, match="reset"):
        start(fake)


def test_BAS_STATUS_04_a_device_that_needs_a_reset_is_not_used(fake: Any, start: Any) -> None:
    plain = fake.status
    fake.status = lambda: plain() | (64 if plain() & 2 else 0)
    with pytest.raises(TransportError, match="needs a reset"):
        start(fake)


def test_BAS_INIT_08_the_first_error_stands_when_failed_cannot_be_set(fake: Any, start: Any) -> None:
    fake.accepts = lambda _word: False
    plain = fake.write_status

    def write(value: int) -> None:
        if value & 0x80:
            raise TransportError("gone")
        plain(value)

    fake.write_status = write
    with pytest.raises(FeatureError):
        start(fake)


def test_BAS_INIT_01_configuration_is_read_again_while_its_generation_changes(fake: Any, start: Any) -> None:
    fake.generations = [1, 2, 2, 3, 3, 3]
    start(fake)
    assert len(fake.config_reads) == 3


def test_a_configuration_that_never_settles_is_an_error(fake: Any, start: Any) -> None:
    fake.generations = list(range(500))
    with pytest.raises(TransportError, match="changes faster"):
        start(fake)


@pytest.mark.parametrize(
    ("extra", "drop", "reads"),
    [
        (0, 0, [(0, 6)]),
        (1 << 16, 0, [(0, 6), (6, 2)]),
        (MTU, 0, [(0, 6), (10, 2)]),
        (1 << 22 | 1 << 17, 0, [(0, 6), (8, 2)]),
        (1 << 57, 0, [(0, 6), (17, 1), (20, 4)]),
        (0, MAC, []),
    ],
)
def test_BAS_INIT_02_only_fields_that_exist_are_read(
    fake: Any, start: Any, extra: int, drop: int, reads: list[tuple[int, int]]
) -> None:
    fake.offered &= ~drop
    start(fake, extra)
    assert fake.config_reads == reads


def test_BAS_INIT_02_values_of_absent_fields_are_defaults(fake: Any, start: Any) -> None:
    net = start(fake, 1 << 57).net_config
    assert (net.rss_max_key_size, net.supported_hash_types) == (0x28, 0x3F)
    assert (net.mtu, net.status, net.max_virtqueue_pairs) == (0, 0, 1)


def test_the_configuration_can_be_read_again(fake: Any, start: Any) -> None:
    driver = start(fake, 1 << 16)
    assert driver.net_config.status == 1
    fake.config = fake.config[:6] + bytes(2) + fake.config[8:]
    assert driver.session.refresh_config().status == 0


def test_BAS_INIT_06_the_configuration_is_never_written(fake: Any, start: Any) -> None:
    start(fake)
    assert not positions(fake.trace, "config")


@pytest.mark.parametrize(
    ("extra", "pairs", "queues"),
    [
        (0, 1, [0, 1, 9]),
        (0, 3, [0, 1, 9]),
        (1 << 17, 1, [0, 1, 2, 9]),
        (1 << 17 | 1 << 22, 2, [0, 1, 2, 3, 8, 9]),
        (1 << 17 | 1 << 60, 9, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_queues_are_where_the_text_puts_them(
    fake: Any, start: Any, extra: int, pairs: int, queues: list[int]
) -> None:
    start(fake, extra, queue_pairs=pairs)
    assert [value for kind, value in fake.trace if kind == "enable"] == queues


def test_NET_RXB_DRV_05_every_pair_in_use_gets_buffers(fake: Any, start: Any) -> None:
    start(fake, 1 << 17 | 1 << 22, queue_pairs=3)
    assert [fake.memory.u16(fake.queues[each].driver + 2) for each in (0, 2, 4)] == [8, 8, 8]


def test_PCI_CC_DRV_03_split_rings_get_a_power_of_two(fake: Any, start: Any) -> None:
    fake.sizes = {0: 100, 9: 3}
    start(fake, queue_size=80)
    assert (fake.queues[0].size, fake.queues[1].size, fake.queues[9].size) == (64, 64, 2)


@pytest.mark.parametrize("size", [0, 1])
def test_a_queue_that_does_not_exist_is_an_error(fake: Any, start: Any, size: int) -> None:
    fake.sizes = {9: size}
    with pytest.raises(TransportError, match="queue 9"):
        start(fake)
    assert fake.trace[-1] == ("status", 0x8B)


# Command lists and capabilities.


def test_ADM_DRV_02_NET_IPSEC_DRV_01_to_03_discovery_comes_in_order(fake: Any, start: Any) -> None:
    start(fake)
    seen = [value for kind, value in fake.trace if kind == "admin"]
    assert seen == [0, 1, 7, *[8] * 5, *[9] * 5]


def test_ADM_DRV_04_05_list_use_is_the_known_part_of_the_reported_list(fake: Any, start: Any) -> None:
    fake.opcodes = 0x3F83 | 0x1C000 | 1 << 63
    fake.trace.clear()
    driver = Driver(fake, config=DriverConfig(polls=1))
    driver.start()
    use = fake.commands[1]
    assert use[:24] == bytes.fromhex("0100 0000") + bytes(20)
    assert use[24:] == (0x3F83).to_bytes(8, "little")
    assert driver.session.admin is not None
    assert driver.session.admin.opcodes == {0, 1, 7, 8, 9, 10, 11, 12, 13}


def test_CAP_DRV_02_only_what_the_device_reported_is_set(fake: Any, start: Any) -> None:
    fake.caps[0x802] = struct.pack("<B7x", 3) + bytes((1, 3, 9))
    fake.caps[0x801] = struct.pack("<B7x", 3) + b"".join(
        struct.pack("<BB2xB3x", kind, flags, length) + b"\xff" * length
        for kind, flags, length in ((1, 0xFF, 14), (2, 0, 21), (9, 0, 4))
    )
    unknown = struct.pack("<B3xIIIQQIII", 9, 1, 1, 0, 1, 1, 1, 1, 1)
    wide = struct.pack("<B3xIIIQQIII", 2, 64, 0xFFFFFFFF, 0, (1 << 64) - 1, (1 << 64) - 1, 0xFFFFFFFF, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 3) + unknown + wide + wide
    Driver(fake, config=DriverConfig(polls=1)).start()
    sets = {int.from_bytes(each[24:26], "little"): each[32:] for each in fake.commands if each[0] == 9}
    assert sets[0x803] == struct.pack("<II", 4, 5)
    assert sets[0x802][:10] == struct.pack("<B7x", 2) + bytes((1, 3))
    assert sets[0x801][:30] == struct.pack("<B7xBB2xB3x", 1, 1, 1, 14) + b"\xff" * 14
    macs = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 25, 26, 27, 28, 41, 42, 49, 50, 53, 54))
    expected = struct.pack("<B7xB3xIIIQQIII", 1, 2, 64, 0x7F, 0, 0x7FFF, macs, 0xF, 32, 32)
    assert sets[0x804] == expected + bytes(-len(expected) % 8)


def test_NET_IPSEC_DRV_03_configured_limits_narrow_the_capability(fake: Any, start: Any) -> None:
    Driver(fake, config=DriverConfig(polls=1, inbound_sas=2, outbound_sas=99)).start()
    (data,) = [each[32:] for each in fake.commands if each[0] == 9 and each[24:26] == b"\x03\x08"]
    assert data == struct.pack("<II", 2, 5)


def test_the_rfc_dialect_reads_forty_byte_entries_without_esp_selector(fake: Any) -> None:
    entry = struct.pack("<B3xIIQQIII", 2, 64, 0xFF, 8, 0x10, 2, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    driver = Driver(fake, RFC_2025_01, config=DriverConfig(polls=1))
    driver.start()
    assert driver.caps.ipsec_sas is not None
    (mode,) = driver.caps.ipsec_sas.modes
    assert (mode.options, mode.cipher_algo, mode.hmac_algo, mode.aead_algo) == (0x1F, 8, 0x10, 2)
    assert driver.caps.filter_selectors is not None
    assert [each.type for each in driver.caps.filter_selectors.selectors] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("bits", [0x07, 0x0F, 0x17])
def test_ipsec_needs_both_capabilities(fake: Any, start: Any, bits: int) -> None:
    fake.cap_bits = bits
    driver = start(fake)
    assert driver.caps.ipsec_sas is None
    with pytest.raises(NotNegotiated, match="missing"):
        _ = driver.sas
    assert driver.flows is not None


@pytest.mark.parametrize("bits", [0x18, 0x19, 0x1E])
def test_NET_FF_DRV_01_the_flow_filter_needs_all_three_capabilities(fake: Any, start: Any, bits: int) -> None:
    fake.cap_bits = bits
    driver = start(fake)
    with pytest.raises(NotNegotiated):
        _ = driver.flows
    assert driver.sas is not None


def test_without_the_ipsec_feature_its_capabilities_are_not_set(fake: Any, start: Any) -> None:
    fake.offered &= ~IPSEC
    Driver(fake, config=DriverConfig(polls=1)).start()
    assert [each[24:26] for each in fake.commands if each[0] == 9] == [b"\x00\x08", b"\x01\x08", b"\x02\x08"]


def test_a_device_without_object_commands_is_a_network_device(fake: Any, start: Any) -> None:
    fake.opcodes = 0x383
    driver = start(fake)
    with pytest.raises(NotNegotiated):
        _ = driver.sas
    assert 7 not in [value for kind, value in fake.trace if kind == "admin"]


def test_a_refused_command_list_leaves_a_network_device(fake: Any, start: Any) -> None:
    fake.replies[1] = [bytes.fromhex("1600 0300 00000000")]
    driver = start(fake)
    with pytest.raises(NotNegotiated, match="LIST_USE: status EINVAL"):
        _ = driver.sas
    driver.send(bytes(12) + b"\x88\xb5" + bytes(46))
    assert len(fake.sent) == 1


def test_a_refused_command_list_fails_where_ipsec_is_required(fake: Any, start: Any) -> None:
    fake.replies[1] = [bytes.fromhex("1600 0300 00000000")]
    with pytest.raises(CommandFailed):
        start(fake, required=IPSEC)
    assert fake.trace[-1] == ("status", 0x8F)


def test_AVQ_DRV_05_what_a_short_capability_lacks_is_zero(fake: Any, start: Any) -> None:
    fake.caps[0x802] = struct.pack("<B7x", 200)
    driver = start(fake)
    # 200 actions announced and none given: zeros stand for them, and 0 is no action.
    assert driver.caps.filter_actions is not None
    assert driver.caps.filter_actions.actions == ()


def test_a_second_start_gives_all_memory_back_first(fake: Any, start: Any) -> None:
    driver = start(fake)
    free = fake.allocator.available
    driver.send(bytes(12) + b"\x88\xb5" + bytes(46))
    for _ in range(3):
        driver.start()
        assert fake.allocator.available == free
    driver.stop()
    assert fake.allocator.available == 16 << 20
    driver.stop()


def test_a_failed_start_gives_its_memory_back_at_the_next(fake: Any, start: Any) -> None:
    fake.sizes = {9: 0}
    driver = Driver(fake, config=replace(DriverConfig(), polls=1))
    with pytest.raises(TransportError):
        driver.start()
    fake.sizes = {}
    driver.start()
    driver.stop()
    assert fake.allocator.available == 16 << 20


def test_dialects_do_not_share_the_header() -> None:
    assert V14.net_hdr(IPSEC).size == 32
    assert RFC_2025_01.net_hdr(IPSEC).size == 26


@pytest.mark.parametrize("pairs", [0, 0x8001, 0xFFFF])
def test_a_device_with_an_impossible_number_of_queue_pairs_is_given_up(
    fake: Any, start: Any, pairs: int
) -> None:
    fake.config = fake.config[:8] + struct.pack("<H", pairs) + fake.config[10:]
    with pytest.raises(TransportError, match="queue pairs"):
        start(fake, 1 << 17 | 1 << 22)
    assert not positions(fake.trace, "enable")
    assert fake.trace[-1] == ("status", 0x80 | 11)


def test_no_queue_is_enabled_twice(fake: Any, start: Any) -> None:
    fake.admin_queue_index = lambda: 1
    with pytest.raises(TransportError, match="queue 1"):
        start(fake)
    assert fake.trace.count(("enable", 1)) == 1


def test_selectors_and_actions_are_set_ascending_and_once(fake: Any, start: Any) -> None:
    """5.1.6.5.8.2: ordered, each only once; a device that gets it wrong is not copied."""
    one = struct.pack("<BB2xB3x", 1, 0, 14) + b"\xff" * 14
    two = struct.pack("<BB2xB3x", 2, 0, 20) + b"\xff" * 20
    fake.caps[0x801] = struct.pack("<B7x", 3) + two + one + two
    fake.caps[0x802] = struct.pack("<B7x", 4) + bytes((4, 1, 9, 1))
    driver = start(fake)
    assert [each.type for each in driver.caps.filter_selectors.selectors] == [1, 2]
    assert driver.caps.filter_actions.actions == (1, 4)
