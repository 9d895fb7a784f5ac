"""What the driver makes of received buffers, byte by byte."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from virtio_ipsec.driver import DriverError
from virtio_ipsec.driver.queues import ReceiveQueue
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa

GUEST_CSUM, TSO4, MRG, HASH = 1 << 1, 1 << 7, 1 << 15, 1 << 57 | 1 << 17
TUNNEL = 1 << 65 | 1 << 7 | 1 << 8 | 1 << 54 | 1 << 55 | GUEST_CSUM
FRAME = bytes(
    Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    / IP(src="192.0.2.1", dst="198.51.100.2")
    / UDP(sport=1, dport=2)
    / Raw(b"payload")
)


def header(**fields: int) -> bytes:
    """The 32 bytes of virtio_net_hdr, by their offsets."""
    form = {
        "flags": (0, 1), "gso_type": (1, 1), "hdr_len": (2, 2), "gso_size": (4, 2), "csum_start": (6, 2),
        "csum_offset": (8, 2), "num_buffers": (10, 2), "hash_value": (12, 4), "hash_report": (16, 2),
        "outer_th_offset": (20, 2), "inner_nh_offset": (22, 2), "outer_nh_offset": (24, 2),
        "resource_id": (26, 4), "resource_type": (30, 2),
    }  # fmt: skip
    out = bytearray(32)
    for name, value in {"num_buffers": 1, **fields}.items():
        at, size = form[name]
        out[at : at + size] = value.to_bytes(size, "little")
    return bytes(out)


def seeded() -> bytes:
    """FRAME as a device leaves it to the driver to finish: the pseudo-header sum in the checksum field."""
    length = len(FRAME) - 34
    total = sum(struct.unpack(">4H", FRAME[26:34])) + 17 + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return FRAME[:40] + struct.pack(">H", total) + FRAME[42:]


def receive(fake: Any, driver: Any, frame: bytes = FRAME, **fields: int) -> Any:
    fake.deliver(header(**fields) + frame)
    packets = driver.receive()
    assert len(packets) == 1
    return packets[0]


def state(packet: Any) -> set[str]:
    """The names of what is true of a packet."""
    names = ("protected", "error", "soft_expired", "stale", "checksum_valid")
    return {name for name in names if getattr(packet, name)}


def test_a_plain_packet(fake: Any, start: Any) -> None:
    packet = receive(fake, start(fake))
    assert packet.frame == FRAME
    assert state(packet) == set()
    assert packet.sa is None
    assert (packet.queue, packet.flags, packet.network_offset) == (0, 0, None)


def test_a_protected_packet_names_its_sa(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_inbound(replace(gcm, spi=1))
    second = driver.sas.create_inbound(gcm)
    packet = receive(fake, driver, flags=16, resource_id=1, resource_type=0x204)
    assert packet.sa is second
    assert state(packet) == {"protected"}


@pytest.mark.parametrize("flags", [48, 32, 112, 96])
def test_an_error_packet_is_never_protected(fake: Any, start: Any, gcm: IpsecSa, flags: int) -> None:
    driver = start(fake, GUEST_CSUM)
    handle = driver.sas.create_inbound(gcm)
    packet = receive(
        fake,
        driver,
        seeded(),
        flags=flags | 3,
        resource_id=0,
        resource_type=0x204,
        csum_start=34,
        csum_offset=6,
    )
    assert packet.error
    assert not packet.protected
    assert not packet.checksum_valid
    assert packet.sa is (handle if flags & 16 else None)
    assert packet.frame == seeded(), "what came from the wire stays as it came"


def test_E52_an_error_packet_without_sa(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_inbound(gcm)
    packet = receive(fake, driver, flags=48)
    assert packet.error
    assert packet.sa is None
    assert not packet.stale


def test_E51_a_resource_of_another_type_is_no_inbound_sa(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_inbound(gcm)
    packet = receive(fake, driver, flags=16, resource_id=0, resource_type=0x203)
    assert packet.sa is None
    assert not packet.protected


def test_a_resource_without_the_security_flag_means_nothing(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_inbound(gcm)
    packet = receive(fake, driver, flags=64, resource_id=0, resource_type=0x204)
    assert packet.sa is None
    assert state(packet) == set()


def test_the_soft_expiry_flag(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_inbound(gcm)
    packet = receive(fake, driver, flags=80, resource_id=0, resource_type=0x204)
    assert packet.protected
    assert packet.soft_expired


def test_NET_IPSEC_INT_01_a_packet_of_a_destroyed_sa_is_stale(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    handle = driver.sas.create_inbound(gcm)
    fake.deliver(header(flags=16, resource_id=0, resource_type=0x204) + FRAME)
    driver.destroy_inbound(handle)
    fake.deliver(header(flags=16, resource_id=0, resource_type=0x204) + FRAME)
    following = driver.sas.create_inbound(gcm)
    before, after = driver.receive()
    assert (before.protected, before.sa, before.stale) == (True, handle, False)
    assert (after.protected, after.sa, after.stale) == (False, None, True)
    assert following.id != handle.id, "the id rests, so late packets do not meet a new SA"


def test_ipsec_flags_mean_nothing_without_the_feature(fake: Any, start: Any) -> None:
    fake.offered &= ~(1 << 70)
    driver = start(fake)
    packet = receive(fake, driver, flags=112, resource_type=0x204)
    assert state(packet) == set()


def test_a_device_that_offers_ipsec_without_capabilities_knows_no_sa(fake: Any, start: Any) -> None:
    fake.cap_bits = 0
    assert state(receive(fake, start(fake), flags=16, resource_type=0x204)) == {"stale"}


def test_the_rfc_s_flags_are_8_and_16(fake: Any, start: Any, gcm: IpsecSa) -> None:
    entry = struct.pack("<B3xIIQQIII", 1, 64, 0x1F, 8, 0x10, 2, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    driver = start(fake, GUEST_CSUM, dialect=RFC_2025_01)
    handle = driver.sas.create_inbound(gcm)

    def take(flags: int) -> Any:
        head = header(flags=flags)[:20] + struct.pack("<IH", 0, 0x204)
        fake.deliver(head + FRAME)
        (packet,) = driver.receive()
        return packet

    good, bad, unknown = take(8), take(24), take(64)
    assert (good.protected, good.sa, good.frame) == (True, handle, FRAME)
    assert (bad.protected, bad.error) == (False, True)
    assert (unknown.protected, unknown.error, unknown.soft_expired) == (False, False, False)


def test_NET_RX_DRV_01_unknown_flags_are_ignored(fake: Any, start: Any) -> None:
    assert receive(fake, start(fake), flags=128).frame == FRAME


@pytest.mark.parametrize(("extra", "value", "expected"), [(0, 14, 14), (0, 0, None), (0, 5000, None)])
def test_NET_RX_DRV_02_the_network_offset(
    fake: Any, start: Any, extra: int, value: int, expected: Any
) -> None:
    assert receive(fake, start(fake, extra), outer_nh_offset=value).network_offset == expected


def test_NET_RX_DRV_02_the_network_offset_without_its_feature(fake: Any, start: Any) -> None:
    fake.offered &= ~(1 << 69)
    assert receive(fake, start(fake), outer_nh_offset=14).network_offset is None


@pytest.mark.parametrize("flags", [0, 2, 5])
def test_NET_RX_DRV_03_checksum_offsets_are_not_used(fake: Any, start: Any, flags: int) -> None:
    packet = receive(fake, start(fake, GUEST_CSUM), flags=flags, csum_start=0xFFFF, csum_offset=0xFFFF)
    assert packet.frame == FRAME


def test_NET_RX_DRV_03_with_needs_csum_the_driver_finishes_the_sum(fake: Any, start: Any) -> None:
    packet = receive(fake, start(fake, GUEST_CSUM), seeded(), flags=1, csum_start=34, csum_offset=6)
    assert packet.frame == FRAME
    assert packet.checksum_valid


def test_checksum_offsets_outside_the_frame_are_refused(fake: Any, start: Any) -> None:
    driver = start(fake, GUEST_CSUM)
    fake.deliver(header(flags=1, csum_start=len(FRAME) - 7, csum_offset=6) + FRAME)
    assert driver.receive() == []
    assert driver.counters == {"rx_bad_checksum_offsets": 1}


def test_NET_RX_DRV_04_hdr_len_is_not_relied_on(fake: Any, start: Any) -> None:
    assert receive(fake, start(fake), hdr_len=0xFFFF).frame == FRAME


@pytest.mark.parametrize(
    ("extra", "flags", "valid"), [(GUEST_CSUM, 0, False), (GUEST_CSUM, 2, True), (0, 2, False)]
)
def test_NET_RX_DRV_05_when_a_checksum_is_trusted(
    fake: Any, start: Any, extra: int, flags: int, valid: bool
) -> None:
    assert receive(fake, start(fake, extra), flags=flags).checksum_valid is valid


@pytest.mark.parametrize(
    ("flags", "gso_type"),
    [
        (1, 0x61),  # NET-RX-DRV-06: both tunnel bits
        (0, 0x21),  # NET-RX-DRV-08: no NEEDS_CSUM
        (3, 0x21),  # NET-RX-DRV-08: DATA_VALID
        (1, 0x20),  # NET-RX-DRV-08: no base type
        (1, 0xC0),  # the same, ECN being no base type
        (9, 0x01),  # NET-RX-DRV-09: UDP_TUNNEL_CSUM with NEEDS_CSUM, no tunnel bit
        (9, 0x00),
    ],
)
def test_NET_RX_DRV_06_08_09_inconsistent_tunnel_metadata_is_refused(
    fake: Any, start: Any, flags: int, gso_type: int
) -> None:
    driver = start(fake, TUNNEL)
    fake.deliver(header(flags=flags, gso_type=gso_type, gso_size=100, csum_start=34, csum_offset=6) + FRAME)
    assert driver.receive() == []
    assert driver.counters == {"rx_bad_tunnel": 1}


def test_tunnel_bits_without_the_feature_are_refused(fake: Any, start: Any) -> None:
    driver = start(fake, GUEST_CSUM | TSO4)
    fake.deliver(header(flags=1, gso_type=0x21, gso_size=100) + FRAME)
    assert driver.receive() == []
    assert driver.counters == {"rx_bad_tunnel": 1}


def test_NET_RX_DRV_07_tunnel_offsets_only_with_a_tunnel_bit(fake: Any, start: Any) -> None:
    driver = start(fake, TUNNEL)
    fields = {
        "gso_size": 100,
        "csum_start": 34,
        "csum_offset": 6,
        "outer_th_offset": 34,
        "inner_nh_offset": 50,
    }
    assert receive(fake, driver, flags=1, gso_type=0x21, **fields).tunnel_offsets == (34, 50)
    assert receive(fake, driver, flags=1, gso_type=1, **fields).tunnel_offsets is None
    assert receive(fake, driver, **{**fields, "gso_size": 0}).tunnel_offsets is None


@pytest.mark.parametrize(
    ("flags", "gso_type", "gso_size"),
    [(1, 4, 100), (1, 3, 100), (1, 5, 100), (1, 2, 100), (0, 1, 100), (1, 1, 0)],
)
def test_gso_that_was_not_agreed_or_lacks_its_fields_is_refused(
    fake: Any, start: Any, flags: int, gso_type: int, gso_size: int
) -> None:
    driver = start(fake, GUEST_CSUM | TSO4)
    fake.deliver(
        header(flags=flags, gso_type=gso_type, gso_size=gso_size, csum_start=34, csum_offset=6) + FRAME
    )
    assert driver.receive() == []
    assert driver.counters == {"rx_bad_gso": 1}


def test_a_large_gso_packet_fits_one_buffer(fake: Any, start: Any) -> None:
    driver = start(fake, GUEST_CSUM | TSO4)
    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / IP(src="192.0.2.1", dst="198.51.100.2", len=60040)
        / TCP(sport=1, dport=2)
        / Raw(bytes(60000))
    )
    packet = receive(
        fake, driver, frame, flags=1, gso_type=0x81, gso_size=1400, csum_start=34, csum_offset=16
    )
    assert (len(packet.frame), packet.gso_type, packet.gso_size) == (60054, 0x81, 1400)


def test_hash_fields_need_their_feature(fake: Any, start: Any) -> None:
    fields = {"hash_value": 0x12345678, "hash_report": 3}
    assert receive(fake, start(fake), **fields).hash_value == 0
    packet = receive(fake, start(fake, HASH), **fields)
    assert (packet.hash_value, packet.hash_report) == (0x12345678, 3)


# Buffers.


@pytest.mark.parametrize(
    ("extra", "drop", "size"),
    [
        (0, 0, 1514 + 32),
        (0, 1 << 69 | 1 << 70, 1514 + 12),
        (HASH, 1 << 69 | 1 << 70, 1514 + 20),
        (TUNNEL, 1 << 69 | 1 << 70, 65589 + 24),
        (GUEST_CSUM | TSO4, 0, 65589 + 32),
        (1 << 3, 0, 1518 + 32),
        (MRG, 0, 2048),
        (MRG | GUEST_CSUM | TSO4, 0, 8203),
    ],
)
def test_NET_RXB_DRV_01_to_04_sizes_of_receive_buffers(
    fake: Any, start: Any, extra: int, drop: int, size: int
) -> None:
    fake.offered &= ~drop
    driver = start(fake, extra)
    chain = fake.take(0)
    assert chain is not None
    assert chain[1] == b""
    assert [length for _, length in chain[2]] == [size] == [driver.receive_buffer_size]


def test_NET_RXB_DRV_03_a_mergeable_buffer_holds_the_header(fake: Any, start: Any) -> None:
    driver = start(fake, MRG, receive_buffer_size=1, receive_buffers=60)
    assert driver.receive_buffer_size == 32
    with pytest.raises(DriverError, match="31 bytes"):
        ReceiveQueue(
            fake,
            0,
            driver.session.data_rings[0],
            driver.dialect.net_hdr(1 << 70),
            31,
            mergeable=True,
            refused=print,
        )


def test_the_configured_mtu_of_the_device_fits(fake: Any, start: Any) -> None:
    fake.config = fake.config[:10] + struct.pack("<H", 9000) + fake.config[12:]
    assert start(fake, 1 << 3).receive_buffer_size == 9018 + 32


def test_merged_buffers_make_one_packet(fake: Any, start: Any) -> None:
    driver = start(fake, MRG)
    whole = header(num_buffers=3) + bytes(range(256)) * 8
    fake.deliver(whole[:1000], whole[1000:2000], whole[2000:], header(num_buffers=1) + FRAME)
    assert [packet.frame for packet in driver.receive()] == [whole[32:], FRAME]


def test_a_packet_whose_buffers_come_apart_waits_for_the_rest(fake: Any, start: Any) -> None:
    driver = start(fake, MRG)
    whole = header(num_buffers=2) + FRAME
    fake.deliver(whole[:50])
    assert driver.receive() == []
    fake.deliver(whole[50:])
    assert [packet.frame for packet in driver.receive()] == [FRAME]


@pytest.mark.parametrize("count", [0, 65, 0xFFFF])
def test_an_impossible_number_of_buffers_is_refused(fake: Any, start: Any, count: int) -> None:
    driver = start(fake, MRG)
    fake.deliver(header(num_buffers=count) + FRAME, header() + FRAME)
    assert [packet.frame for packet in driver.receive()] == [FRAME]
    assert driver.counters == {"rx_bad_num_buffers": 1}


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_buffer_shorter_than_the_header_is_refused(fake: Any, start: Any, length: int) -> None:
    driver = start(fake)
    fake.deliver(bytes(length), header() + FRAME)
    assert [packet.frame for packet in driver.receive()] == [FRAME]
    assert driver.counters == {"rx_short": 1}


def test_buffers_go_back_to_the_device(fake: Any, start: Any) -> None:
    driver = start(fake, receive_buffers=4)
    for number in range(50):
        fake.deliver(header() + FRAME + bytes((number,)))
        fake.deliver(bytes(3))
        (packet,) = driver.receive()
        assert packet.frame[-1] == number
    assert fake.memory.u16(fake.queues[0].driver + 2) - fake.seen[0] == 4


def test_packets_of_several_queues_carry_their_number(fake: Any, start: Any) -> None:
    driver = start(fake, 1 << 17 | 1 << 22, queue_pairs=2)
    fake.deliver(header() + FRAME, queue=1)
    fake.deliver(header() + FRAME[:20], queue=0)
    assert [(packet.queue, len(packet.frame)) for packet in driver.receive()] == [(0, 20), (1, len(FRAME))]


def test_receiving_before_start_is_refused(fake: Any) -> None:
    from virtio_ipsec.driver import Driver

    with pytest.raises(DriverError, match="not been started"):
        Driver(fake).receive()
