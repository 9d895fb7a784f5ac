"""Driver and device through rings: what each must see of the other."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.driver import Driver, DriverConfig, Offload, PathMtuExceeded
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.driver.transmit import worst_overhead
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.pair import Pair, Where
from virtio_ipsec.wire.dialect import RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import CtrlRx, Feature, has, mask
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

LEFT, RIGHT = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
BOTH = pytest.mark.parametrize("dialect", [V14, RFC_2025_01], ids=lambda each: each.name)
IPV4_TUNNEL = TunnelIPv4(IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2"))
IPV6_TUNNEL = TunnelIPv6(IPv6Address("2001:db8:f::1"), IPv6Address("2001:db8:f::2"))
GCM = IpsecSa(
    mode=1, direction=0, spi=0x1000, salt=b"salt", replay_win_sz=64,
    cipher_algo=1, cipher_key=bytes(range(16)), param=IPV4_TUNNEL,
)  # fmt: skip
CBC = replace(GCM, cipher_algo=3, auth_algo=4, auth_key=bytes(32))
AH = replace(GCM, mode=4, cipher_algo=0, cipher_key=b"", auth_algo=4, auth_key=bytes(32))
ROUND = ("transport", "tunnel", "ipv6 tunnel", "cbc", "udp", "ah", "ah tunnel", "esn")


def variant(name: str) -> IpsecSa:
    return {
        "transport": replace(GCM, mode=2),
        "tunnel": GCM,
        "ipv6 tunnel": replace(GCM, param=IPV6_TUNNEL),
        "cbc": CBC,
        "udp": replace(GCM, mode=2, options=2),
        "ah": AH,
        "ah tunnel": replace(AH, mode=3),
        "esn": replace(GCM, options=1),
    }[name]


def rng() -> Any:
    return random.Random(1).randbytes


def pair(dialect: Dialect = V14, **settings: Any) -> Pair:
    config = DeviceConfig(dialect=dialect, mac=LEFT)
    both = Pair(
        Device(config, rng()),
        Device(replace(config, mac=RIGHT), rng()),
        dialect=dialect,
        config=DriverConfig(**settings),
        now=iter(range(1, 1 << 30)).__next__,
    )
    both.start()
    return both


def udp(size: int, version: int = 4) -> bytes:
    network = (
        IP(src="192.0.2.1", dst="192.0.2.2") if version == 4 else IPv6(src="2001:db8::1", dst="2001:db8::2")
    )
    head = Ether(src=LEFT.hex(":"), dst=RIGHT.hex(":"))
    return bytes(
        head / network / UDP(sport=7, dport=9) / Raw(bytes(range(256)) * (size // 256) + bytes(size % 256))
    )


def sas(both: Pair, sa: IpsecSa) -> Any:
    outbound = both.left.driver.sas.create_outbound(sa)
    inbound = both.right.driver.sas.create_inbound(sa)
    both.right.driver.flows.protect(inbound)
    return outbound, inbound


@BOTH
@pytest.mark.parametrize("name", ROUND)
@pytest.mark.parametrize("version", [4, 6])
def test_packets_cross_protected(dialect: Dialect, name: str, version: int) -> None:
    both = pair(dialect)
    outbound, inbound = sas(both, variant(name))
    frame = udp(100, version)
    both.left.send(frame, outbound)
    (packet,) = both.right.receive()
    assert packet.protected
    assert packet.sa is inbound
    assert packet.frame == frame
    (wire,) = [seen.frame for seen in both.seen if seen.where is Where.WIRE]
    assert name.startswith("ah") or frame[42:] not in wire


def test_without_a_rule_esp_is_delivered_as_it_came() -> None:
    """Ledger E56; the RFC opens it by its SPI alone, which the test above shows."""
    both = pair()
    outbound = both.left.driver.sas.create_outbound(GCM)
    both.right.driver.sas.create_inbound(GCM)
    both.left.send(udp(10), outbound)
    (packet,) = both.right.receive()
    assert not packet.protected
    assert packet.frame[23] == 50


@pytest.mark.parametrize("name", ROUND)
@pytest.mark.parametrize("version", [4, 6])
def test_NET_IPSEC_DRV_07_no_packet_grows_by_more_than_the_worst_case(name: str, version: int) -> None:
    """The driver's formula against what the device really sends, for every padding."""
    both = pair()
    outbound, _ = sas(both, variant(name))
    grown = []
    for size in range(40):
        frame = udp(size, version)
        both.left.send(frame, outbound)
        (wire,) = [seen.frame for seen in both.seen if seen.where is Where.WIRE]
        grown.append(len(wire) - len(frame))
        both.seen.clear()
    worst = worst_overhead(outbound.params)
    assert max(grown) <= worst
    # Tight, but for AH, where IPv4 aligns to 4 and IPv6 to 8.
    assert max(grown) >= worst - (4 if name.startswith("ah") else 0)


@BOTH
def test_gso_is_cut_and_each_segment_protected(dialect: Dialect) -> None:
    both = pair(dialect)
    outbound, _ = sas(both, GCM)
    payload = bytes(range(250)) * 250
    frame = bytes(
        Ether(src=LEFT.hex(":"), dst=RIGHT.hex(":"))
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / TCP(sport=1, dport=2, flags="A", seq=1000)
        / Raw(payload)
    )
    both.left.send(frame, outbound, offload=Offload(gso_size=1400))
    packets = both.right.receive()
    assert len(packets) == 45
    assert all(packet.protected for packet in packets)
    assert b"".join(packet.frame[54:] for packet in packets) == payload
    with pytest.raises(PathMtuExceeded):
        both.left.send(frame, outbound, offload=Offload(gso_size=1440))


@BOTH
def test_what_was_changed_on_the_wire_is_an_error_and_never_plaintext(dialect: Dialect) -> None:
    both = pair(dialect)
    outbound, inbound = sas(both, GCM)
    arrived = []

    def damage(frame: bytes) -> list[bytes]:
        arrived.append(frame[:-1] + bytes((frame[-1] ^ 1,)))
        return arrived[-1:]

    both.on_wire = damage
    both.left.send(udp(60), outbound)
    (packet,) = both.right.receive()
    assert (packet.protected, packet.error) == (False, True)
    assert packet.frame == arrived[0]
    assert packet.sa is inbound
    both.on_wire = lambda frame: [frame, frame]
    both.left.send(udp(60), outbound)
    assert [(each.protected, each.error) for each in both.right.receive()] == [(True, False), (False, True)]


def test_soft_expiry_is_reported() -> None:
    both = pair()
    sa = replace(GCM, options=64, life=Lifetime(packets_soft_limit=2))
    outbound, _ = sas(both, sa)
    told = []
    for _ in range(3):
        both.left.send(udp(10), outbound)
        told += [(packet.soft_expired, outbound.soft_expired) for packet in both.right.receive()]
    assert told == [(False, False), (True, True), (True, True)]


@BOTH
def test_rekeying_loses_no_packet(dialect: Dialect) -> None:
    both = pair(dialect)
    outbound, inbound = sas(both, GCM)
    received = []
    for number in range(12):
        if number % 4 == 3:
            sa = replace(GCM, spi=0x2000 + number, cipher_key=bytes((number,)) * 16)
            following = both.right.driver.rekey_inbound(inbound, sa)
            both.left.driver.rekey_outbound(outbound, sa)
            both.left.send(udp(number), outbound)
            received += both.right.receive()
            both.right.driver.destroy_inbound(inbound)
            inbound = following
        else:
            both.left.send(udp(number), outbound)
            received += both.right.receive()
    assert [packet.frame for packet in received] == [udp(number) for number in range(12)]
    assert all(packet.protected for packet in received)
    assert len(both.left.driver.sas.all()) == len(both.right.driver.sas.all()) == 1


@BOTH
def test_query_returns_what_was_created(dialect: Dialect) -> None:
    both = pair(dialect)
    outbound, inbound = sas(both, GCM)
    if dialect.supports_modify_query:
        assert both.left.driver.sas.query(outbound) == outbound.params
        both.right.driver.sas.modify(inbound, replay_win_sz=128)
        assert both.right.driver.sas.query(inbound).replay_win_sz == 128


RINGS = [
    0,
    mask(Feature.F_RING_PACKED),
    mask(Feature.F_EVENT_IDX),
    mask(Feature.F_RING_PACKED, Feature.F_EVENT_IDX, Feature.F_IN_ORDER, Feature.F_INDIRECT_DESC),
    mask(Feature.F_IN_ORDER),
]
RING_BITS = mask(Feature.F_RING_PACKED, Feature.F_EVENT_IDX, Feature.F_IN_ORDER, Feature.F_INDIRECT_DESC)


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("mergeable", [True, False])
def test_every_kind_of_ring_carries_many_packets(rings: int, mergeable: bool) -> None:
    wanted = SUPPORTED & ~RING_BITS | rings
    if not mergeable:
        wanted &= ~mask(Feature.NET_F_MRG_RXBUF, Feature.NET_F_GUEST_TSO4, Feature.NET_F_GUEST_TSO6)
    both = pair(wanted=wanted, queue_size=8, receive_buffers=8, receive_buffer_size=300)
    assert both.left.driver.features & RING_BITS == rings
    outbound, _ = sas(both, GCM)
    for number in range(60):
        both.left.send(udp(20 * number), outbound)
        (packet,) = both.right.receive()
        assert packet.frame == udp(20 * number)
    assert not both.right.driver.counters


def test_packets_larger_than_a_buffer_are_merged() -> None:
    both = pair(mtu=9000, receive_buffer_size=64, receive_buffers=256)
    outbound, _ = sas(both, GCM)
    for size in (500, 2000, 8800):
        both.left.send(udp(size), outbound)
        (packet,) = both.right.receive()
        assert packet.frame == udp(size)


def test_receive_buffers_come_back_after_a_flood() -> None:
    both = pair(receive_buffers=4, queue_size=8)
    for _ in range(20):
        both.left.send(udp(10))
    assert len(both.right.receive()) == 4
    both.left.send(udp(10))
    assert len(both.right.receive()) == 1


def test_control_commands_are_understood() -> None:
    both = pair(queue_pairs=4)
    control = both.left.driver.control
    control.receive_mode(CtrlRx.PROMISC, True)
    control.receive_mode(CtrlRx.NOBCAST, True)
    control.set_mac(bytes.fromhex("020000000009"))
    control.set_mac_table([RIGHT, bytes.fromhex("01005e000001")])
    control.vlan(5, True)
    control.vlan(5, False)
    control.set_queue_pairs(4)
    control.set_rss(0x3F, [0, 1, 2, 3], bytes(40))
    control.set_hash(0x3F, bytes(40))
    control.set_guest_offloads([Feature.NET_F_GUEST_CSUM])
    assert both.left.driver.session.refresh_config().mac.hex() == "020000000009"


def test_rss_spreads_packets_over_queues() -> None:
    both = pair(queue_pairs=4)
    both.right.driver.control.set_rss(0x3F, [0, 1, 2, 3], bytes(range(40)))
    for port in range(64):
        frame = udp(10)
        both.left.driver.send(
            frame[:34] + port.to_bytes(2, "big") + frame[36:], offload=Offload(checksum=True)
        )
    both.settle()
    assert {packet.queue for packet in both.right.receive()} == {0, 1, 2, 3}


def test_a_queue_pair_is_reset_and_goes_on() -> None:
    both = pair(queue_pairs=2)
    outbound, _ = sas(both, GCM)
    both.left.send(udp(1))
    both.right.driver.reset_pair(0)
    both.left.driver.reset_pair(0)
    both.left.send(udp(2), outbound)
    assert [packet.frame for packet in both.right.receive()] == [udp(2)]


def test_stopping_and_starting_again_needs_no_more_memory() -> None:
    both = pair()
    driver, allocator = both.left.driver, both.left.link.allocator
    before = allocator.available
    for _ in range(3):
        driver.sas.create_outbound(GCM)
        driver.start()
        assert driver.sas.all() == ()
        assert allocator.available == before
    driver.stop()
    assert both.left.link.status() == 0


def test_a_device_without_ipsec_is_a_network_device() -> None:
    features = DeviceConfig().offered_features & ~mask(Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)
    link = Loopback(Device(DeviceConfig(mac=LEFT), rng()))
    driver = Driver(link, config=DriverConfig(wanted=features))
    driver.start()
    assert not has(driver.features, Feature.NET_F_IPSEC)
    driver.send(udp(5))
    assert link.captured() == [udp(5)]
    assert link.captured() == []


def test_loopback_shows_the_device_s_registers() -> None:
    device = Device(DeviceConfig(mac=LEFT), rng())
    link = Loopback(device)
    assert link.read_config(0, 6) == LEFT
    link.write_config(0, b"\xff")
    assert link.read_config(0, 6) == LEFT
    assert link.num_queues() == link.admin_queue_index() == 17
    assert link.admin_queue_num() == 1
    driver = Driver(link)
    driver.start()
    assert link.driver_features() == driver.features
    link.inject(udp(3).replace(RIGHT, LEFT, 1))
    assert 0 in link.interrupts()
    assert link.interrupts() == set()
    link.poll(1000)


def test_the_pair_records_both_guests_and_the_wire() -> None:
    both = pair()
    outbound, _ = sas(both, GCM)
    both.left.send(udp(5), outbound)
    both.left.send(udp(6))
    both.right.receive()
    interfaces, packets = both.capture()
    assert [each.name for each in interfaces] == ["left guest", "wire", "right guest"]
    assert [(packet.interface, packet.comments[0]) for packet in packets] == [
        (0, "from left guest"),
        (1, "from left guest"),
        (0, "from left guest"),
        (1, "from left guest"),
        (2, "from left guest: protected"),
        (2, "from left guest"),
    ]
    assert packets[0].data == packets[4].data == udp(5)
    assert [packet.timestamp for packet in packets] == sorted(seen.time for seen in both.seen)


def test_a_packet_that_the_driver_refuses_is_not_recorded() -> None:
    both = pair()
    with pytest.raises(PathMtuExceeded):
        both.left.send(udp(3000))
    assert both.seen == []


@given(st.lists(st.tuples(st.sampled_from("cdrms"), st.integers(0, 4)), max_size=25))
def test_any_order_of_sa_requests_keeps_driver_and_device_in_step(steps: list[tuple[str, int]]) -> None:
    """No request of the driver is refused by the device, whatever the user asks for."""
    link = Loopback(Device(DeviceConfig(mac=LEFT), rng()), memory_size=4 << 20)
    driver = Driver(link, config=DriverConfig(outbound_sas=3, receive_buffers=4, queue_size=8))
    driver.start()
    handles: list[Any] = []
    for step, number in steps:
        live = [handle for handle in handles if handle.alive and handle.successor is None]
        if step == "c" and len(live) < 3:
            handles.append(driver.sas.create_outbound(replace(GCM, spi=number + 1)))
        elif live and step == "d":
            driver.sas.destroy(live[number % len(live)])
        elif live and step == "r" and len(live) < 3:
            handles.append(driver.rekey_outbound(live[number % len(live)], replace(GCM, spi=number + 9)))
        elif live and step == "m":
            driver.sas.modify(live[number % len(live)], udp_sport=number)
        elif live and step == "s":
            driver.send(udp(number), live[number % len(live)])
            assert len(link.captured()) == 1
    for handle in driver.sas.all():
        assert driver.sas.query(handle) == handle.params
    assert set(link.device.context.outbound) == {handle.id for handle in driver.sas.all()}
