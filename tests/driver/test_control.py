"""Control virtqueue commands as bytes, each with its feature."""

from __future__ import annotations

from typing import Any

import pytest

from virtio_ipsec.driver import NotNegotiated
from virtio_ipsec.driver.control import OFFLOAD_BITS, Control, ControlFailed
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.numbers import CtrlRx, Feature

VQ, RX, VLAN, EXTRA, MQ, MAC_ADDR = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 22, 1 << 23
RSS, HASH, OFFLOADS, GUEST_CSUM, TSO4 = 1 << 60, 1 << 57, 1 << 2, 1 << 1, 1 << 7
ALL = VQ | RX | VLAN | EXTRA | MQ | MAC_ADDR | RSS | HASH | OFFLOADS | GUEST_CSUM | TSO4
MAC = bytes.fromhex("020000000005")
MULTICAST = bytes.fromhex("01005e000001")


@pytest.fixture
def control(fake: Any, start: Any) -> Control:
    return start(fake, ALL, queue_pairs=4).control


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda c: c.receive_mode(CtrlRx.PROMISC, True), "00 00 01"),
        (lambda c: c.receive_mode(CtrlRx.ALLMULTI, False), "00 01 00"),
        (lambda c: c.receive_mode(CtrlRx.NOBCAST, True), "00 05 01"),
        (lambda c: c.set_mac(MAC), "01 01 020000000005"),
        (lambda c: c.set_mac_table([]), "01 00 00000000 00000000"),
        (
            lambda c: c.set_mac_table([MULTICAST, MAC]),
            "01 00 01000000 020000000005 01000000 01005e000001",
        ),
        (lambda c: c.vlan(0x123, True), "02 00 2301"),
        (lambda c: c.vlan(0x123, False), "02 01 2301"),
        (lambda c: c.set_queue_pairs(3), "04 00 0300"),
        (
            lambda c: c.set_rss(0x3F, [0, 1, 2, 3], b"\xaa" * 3, unclassified=2),
            "04 01 3f000000 0300 0200 0000 0100 0200 0300 0400 03 aaaaaa",
        ),
        (lambda c: c.set_hash(0x05, b"\xbb" * 2), "04 02 05000000 0000000000000000 02 bbbb"),
        (
            lambda c: c.set_guest_offloads([Feature.NET_F_GUEST_CSUM, Feature.NET_F_GUEST_TSO4]),
            "05 00 8200000000000000",
        ),
        (lambda c: c.set_guest_offloads([]), "05 00 0000000000000000"),
    ],
)
def test_the_bytes_of_each_command(fake: Any, control: Control, call: Any, expected: str) -> None:
    call(control)
    assert fake.controls == [bytes.fromhex(expected)]


@pytest.mark.parametrize(
    ("without", "call"),
    [
        (RX, lambda c: c.receive_mode(CtrlRx.PROMISC, True)),
        (EXTRA, lambda c: c.receive_mode(CtrlRx.ALLUNI, True)),
        (RX, lambda c: c.set_mac(MAC)),
        (MAC_ADDR, lambda c: c.set_mac(MAC)),
        (RX, lambda c: c.set_mac_table([])),
        (VLAN, lambda c: c.vlan(1, True)),
        (MQ, lambda c: c.set_queue_pairs(1)),
        (RSS, lambda c: c.set_rss(1, [0], b"")),
        (HASH, lambda c: c.set_hash(1, b"")),
        (OFFLOADS, lambda c: c.set_guest_offloads([])),
        (TSO4, lambda c: c.set_guest_offloads([Feature.NET_F_GUEST_TSO4])),
    ],
)
def test_no_command_without_its_feature(fake: Any, start: Any, without: int, call: Any) -> None:
    control = start(fake, ALL & ~without).control
    with pytest.raises(NotNegotiated):
        call(control)
    assert not fake.controls


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.set_mac(MULTICAST),
        lambda c: c.set_mac(MAC[:5]),
        lambda c: c.set_mac_table([MAC + b"\0"]),
        lambda c: c.vlan(4096, True),
        lambda c: c.vlan(-1, True),
        lambda c: c.set_queue_pairs(0),
        lambda c: c.set_queue_pairs(5),
        lambda c: c.set_rss(0x40, [0], b""),
        lambda c: c.set_rss(1, [], b""),
        lambda c: c.set_rss(1, [0, 0, 0], b""),
        lambda c: c.set_rss(1, [0] * 256, b""),
        lambda c: c.set_rss(1, [4], b""),
        lambda c: c.set_rss(1, [0], b"", unclassified=4),
        lambda c: c.set_rss(1, [0], b"", transmit=5),
        lambda c: c.set_rss(1, [0], bytes(41)),
        lambda c: c.set_hash(0x100, b""),
        lambda c: c.set_guest_offloads([Feature.NET_F_MQ]),
    ],
)
def test_values_that_a_driver_must_not_send_are_refused(fake: Any, control: Control, call: Any) -> None:
    with pytest.raises(ConfigError):
        call(control)
    assert not fake.controls


@pytest.mark.parametrize("answer", [b"\x01", b"\x7f", b""])
def test_anything_but_ok_is_a_failure(fake: Any, control: Control, answer: bytes) -> None:
    fake.control_ack = answer
    with pytest.raises(ControlFailed, match="RX 0"):
        control.receive_mode(CtrlRx.PROMISC, True)


def test_the_number_of_queue_pairs_is_known_only_after_the_device_agreed(fake: Any, start: Any) -> None:
    driver = start(fake, ALL, queue_pairs=4)
    control = driver.control
    frame = bytes(12) + b"\x88\xb5" + bytes(46)
    control.set_queue_pairs(4)
    driver.send(frame, queue=3)
    fake.control_ack = b"\x01"
    with pytest.raises(ControlFailed):
        control.set_queue_pairs(2)
    assert control.pairs_in_use == 4
    # The command was placed: no packet on queues above two any more, whatever came of it.
    with pytest.raises(Exception, match="2 in use"):
        driver.send(frame, queue=2)


def test_rss_sets_the_transmit_queues_too(fake: Any, start: Any) -> None:
    driver = start(fake, ALL, queue_pairs=4)
    driver.control.set_rss(1, [3], b"", transmit=2)
    assert driver.control.pairs_in_use == 2
    driver.send(bytes(12) + b"\x88\xb5" + bytes(46), queue=1)


def test_offload_bits_above_63_have_numbers_of_their_own() -> None:
    assert OFFLOAD_BITS[Feature.NET_F_GUEST_UDP_TUNNEL_GSO] == 46
    assert OFFLOAD_BITS[Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM] == 47
    assert all(bit == feature for feature, bit in OFFLOAD_BITS.items() if feature < 64)


def test_without_a_control_queue_there_are_no_commands(fake: Any, start: Any) -> None:
    with pytest.raises(NotNegotiated, match="control"):
        _ = start(fake).control
