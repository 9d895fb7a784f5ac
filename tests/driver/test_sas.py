"""SAs: the object's bytes, the checks before them, ids, rekeying."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from virtio_ipsec.crypto.algorithms import UnsupportedAlgorithm
from virtio_ipsec.driver import DriverError, LimitReached, NotNegotiated
from virtio_ipsec.errors import CommandFailed, ConfigError, TransportError
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelRaw

EINVAL = bytes.fromhex("1600 0300 00000000")
KEY = bytes(range(16)) + bytes(16)
#: UDP over IPv4, as much of it as the driver looks at.
FRAME = bytes(12) + b"\x08\x00" + b"\x45" + bytes(7) + b"\x40\x11" + bytes(10) + bytes(20)


def created(fake: Any) -> bytes:
    return fake.commands[-1]


def test_NET_IPSEC_DRV_04_every_byte_of_an_outbound_sa(fake: Any, start: Any, gcm: IpsecSa) -> None:
    start(fake).sas.create_outbound(replace(gcm, options=0x43, life=Lifetime(1, 2, 3, 4)))
    frame = created(fake)
    assert len(frame) == 240
    assert frame[:24] == struct.pack("<HH12xQ", 0xA, 0, 0)
    assert frame[24:40] == struct.pack("<H2xIQ", 0x203, 0, 0)
    sa = frame[40:236]
    assert sa[:24] == struct.pack("<BB2xII", 1, 1, 0, 0x11223344) + b"\xa0\xa1\xa2\xa3" + struct.pack(
        "<Q", 0x43
    )
    outer = struct.pack("<B3xIIBBB", 1, 0xC0000201, 0xC6336402, 0, 0, 64)
    assert sa[24:68] == outer + bytes(44 - len(outer))
    assert sa[68:76] == struct.pack("<HHI", 4500, 4500, 64)
    assert sa[76:120] == struct.pack("<QH2x", 1, 16) + KEY
    assert sa[120:164] == struct.pack("<QH2x", 0, 0) + bytes(32)
    assert sa[164:] == struct.pack("<4Q", 1, 2, 3, 4)
    assert frame[236:] == bytes(4)


def test_NET_IPSEC_DRV_05_an_inbound_sa_has_no_tunnel_parameters(fake: Any, start: Any, gcm: IpsecSa) -> None:
    start(fake).sas.create_inbound(gcm)
    frame = created(fake)
    assert frame[24:32] == struct.pack("<H2xI", 0x204, 0)
    assert frame[40:42] == b"\x01\x02"
    assert frame[64:108] == bytes(44)


def test_a_transport_sa_has_no_tunnel_parameters_either(fake: Any, start: Any, gcm: IpsecSa) -> None:
    start(fake).sas.create_outbound(replace(gcm, mode=2))
    assert created(fake)[64:108] == bytes(44)


def test_an_ipv6_tunnel_gets_a_hop_limit(fake: Any, start: Any, gcm: IpsecSa) -> None:
    param = TunnelIPv6(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), flabel=5)
    start(fake).sas.create_outbound(replace(gcm, param=param))
    param_bytes = created(fake)[64:108]
    assert param_bytes == b"\x02\0\0\0" + param.src_addr.packed + param.dst_addr.packed + struct.pack(
        "<IBB2x", 5, 64, 0
    )


def test_E37_obj_id_is_the_id(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    for number in range(3):
        assert sas.create_outbound(gcm).id == number
        assert created(fake)[28:32] == created(fake)[44:48] == struct.pack("<I", number)


def test_the_rfc_s_object_has_the_first_sequence_number(fake: Any, start: Any, gcm: IpsecSa) -> None:
    entry = struct.pack("<B3xIIQQIII", 1, 64, 0x1F, 8, 0x10, 2, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    sas = start(fake, dialect=RFC_2025_01).sas
    handle = sas.create_outbound(replace(gcm, esn=0x1_0000_0007))
    sa = created(fake)[40:]
    assert len(sa) == 166 + 2
    assert sa[66:74] == struct.pack("<Q", 0x1_0000_0007)
    assert sa[82:92] == struct.pack("<QH", 1, 16)
    with pytest.raises(ConfigError, match="no lifetimes"):
        sas.create_outbound(replace(gcm, life=Lifetime(1)))
    for attempt in (lambda: sas.query(handle), lambda: sas.modify(handle, udp_sport=1)):
        with pytest.raises(NotNegotiated, match="this dialect"):
            attempt()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": 0}, "mode 0"),
        ({"mode": 3, "cipher_algo": 0, "cipher_key": b"", "auth_algo": 4, "auth_key": bytes(32)}, "mode 3"),
        ({"options": 0x80}, "options 0x80"),
        ({"mode": 2, "options": 4}, "options 0x4"),
        ({"spi": 0}, "SPI 0x0"),
        ({"spi": 1 << 32}, "SPI"),
        ({"salt": b"abc"}, "salt of 3"),
        ({"param": TunnelRaw()}, "needs the addresses"),
        ({"param": TunnelIPv4(IPv4Address(0), IPv4Address(1))}, "needs the addresses"),
        ({"param": TunnelIPv6(IPv6Address(1), IPv6Address(0))}, "needs the addresses"),
        ({"cipher_algo": 3, "auth_algo": 26, "auth_key": bytes(16)}, "not in the capability"),
        (
            {"cipher_algo": 0, "cipher_key": b"", "auth_algo": 53, "auth_key": bytes(16)},
            "not in the capability",
        ),
        ({"esn": 1}, "initial sequence"),
    ],
)
def test_what_the_capability_does_not_cover_is_refused_before_a_byte_is_sent(
    fake: Any, start: Any, gcm: IpsecSa, change: dict[str, Any], message: str
) -> None:
    sas = start(fake).sas
    with pytest.raises(ConfigError, match=message):
        sas.create_outbound(replace(gcm, **change))
    assert not fake.commands
    assert sas.create_outbound(gcm).id == 0


def test_keys_and_algorithms_that_form_no_suite_are_refused(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    for change in ({"cipher_key": bytes(20)}, {"cipher_algo": 9}, {"auth_algo": 4, "auth_key": bytes(32)}):
        with pytest.raises(UnsupportedAlgorithm):
            sas.create_inbound(replace(gcm, **change))
    assert not fake.commands


def test_keys_longer_than_the_capability_are_refused(fake: Any, start: Any, gcm: IpsecSa) -> None:
    entry = struct.pack("<B3xIIIQQIII", 1, 64, 0, 0, 8, 0x10, 2, 16, 16)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    sas = start(fake).sas
    with pytest.raises(ConfigError, match="key is longer"):
        sas.create_outbound(replace(gcm, cipher_key=bytes(32)))
    with pytest.raises(ConfigError, match="key is longer"):
        sas.create_outbound(replace(gcm, cipher_algo=3, auth_algo=4, auth_key=bytes(32)))


@pytest.mark.parametrize("cipher", [(4, 41), (4, 49)])
def test_the_split_names_of_aeads_need_their_bits(fake: Any, start: Any, gcm: IpsecSa, cipher: Any) -> None:
    """Ledger E28 (c): an alias, checked like a cipher with a MAC."""
    split = replace(gcm, cipher_algo=cipher[0], auth_algo=cipher[1])
    with pytest.raises(ConfigError):
        start(fake).sas.create_outbound(split)
    entry = struct.pack("<B3xIIIQQIII", 1, 64, 0, 0, 1 << cipher[0], 1 << cipher[1], 0, 32, 32)
    fake.caps[0x804] = struct.pack("<B7x", 1) + entry
    start(fake).sas.create_outbound(split)


def test_ah_needs_no_cipher_bit(fake: Any, start: Any, gcm: IpsecSa) -> None:
    ah = replace(gcm, mode=4, cipher_algo=0, cipher_key=b"", auth_algo=4, auth_key=bytes(32))
    start(fake).sas.create_outbound(ah)
    with pytest.raises(ConfigError):
        start(fake).sas.create_outbound(replace(ah, auth_algo=53, auth_key=bytes(16)))


def test_a_replay_window_matters_inbound_only(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    with pytest.raises(ConfigError, match="replay window of 2000"):
        sas.create_inbound(replace(gcm, replay_win_sz=2000))
    sas.create_outbound(replace(gcm, replay_win_sz=2000))


def test_NET_IPSEC_DRV_06_inbound_spis_are_unique_while_they_live(
    fake: Any, start: Any, gcm: IpsecSa
) -> None:
    sas = start(fake).sas
    handle = sas.create_inbound(gcm)
    ah = replace(gcm, mode=4, cipher_algo=0, cipher_key=b"", auth_algo=4, auth_key=bytes(32))
    fake.commands.clear()
    for again in (gcm, ah):
        with pytest.raises(DriverError, match="SPI 0x11223344"):
            sas.create_inbound(again)
    assert not fake.commands
    sas.destroy(handle)
    sas.create_inbound(gcm)


def test_outbound_spis_may_repeat(fake: Any, start: Any, gcm: IpsecSa) -> None:
    """Two peers may choose the same SPI (ledger E43)."""
    sas = start(fake).sas
    sas.create_outbound(gcm)
    sas.create_outbound(gcm)


def test_RO_DRV_02_ids_run_out_at_the_limit_of_their_type(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    inbound = [sas.create_inbound(replace(gcm, spi=0x100 + number)) for number in range(4)]
    with pytest.raises(LimitReached):
        sas.create_inbound(replace(gcm, spi=0x200))
    assert [sas.create_outbound(gcm).id for _ in range(5)] == list(range(5))
    with pytest.raises(LimitReached):
        sas.create_outbound(gcm)
    assert len(sas.all()) == 9
    sas.destroy(inbound[2])
    assert sas.create_inbound(replace(gcm, spi=0x200)).id == 2


def test_a_released_id_waits_behind_the_others(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    ids = []
    for _ in range(12):
        handle = sas.create_outbound(gcm)
        ids.append(handle.id)
        sas.destroy(handle)
    assert ids == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_a_refused_create_gives_its_id_back(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    fake.replies[0xA] = [EINVAL] * 20
    for _ in range(20):
        with pytest.raises(CommandFailed):
            sas.create_inbound(gcm)
    assert [sas.create_inbound(replace(gcm, spi=number)).id for number in (1, 2, 3, 4)]


def test_RO_DRV_03_a_destroyed_sa_is_not_touched_again(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    handle = sas.create_outbound(gcm)
    sas.destroy(handle)
    assert not handle.alive
    fake.commands.clear()
    for attempt in (
        lambda: sas.destroy(handle),
        lambda: sas.query(handle),
        lambda: sas.modify(handle, udp_sport=1),
        lambda: sas.for_transmit(handle),
    ):
        with pytest.raises(DriverError, match="has been destroyed"):
            attempt()
    assert not fake.commands


def test_query_parses_what_the_device_returns(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    handle = sas.create_outbound(gcm)
    fake.replies[0xB] = [bytes(8) + created(fake)[40:240]]
    assert sas.query(handle) == handle.params


def test_E40_modify_replaces_the_whole_object(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    handle = sas.create_outbound(gcm)
    before = created(fake)
    sas.modify(handle, options=0x42, udp_dport=5000, life=Lifetime(packets_hard_limit=9))
    after = created(fake)
    assert after[:2] == b"\x0c\0"
    assert after[24:56] == before[24:56]
    assert after[56:64] == struct.pack("<Q", 0x42)
    assert after[108:112] == struct.pack("<HH", 4500, 5000)
    assert after[116:204] == before[116:204]
    assert after[204:236] == struct.pack("<4Q", 0, 0, 9, 0)
    assert handle.params.udp_dport == 5000


@pytest.mark.parametrize(
    "change", [{"spi": 5}, {"cipher_key": bytes(32)}, {"salt": bytes(4)}, {"mode": 2}, {"options": 1}]
)
def test_E40_what_would_restart_counters_cannot_be_modified(
    fake: Any, start: Any, gcm: IpsecSa, change: dict[str, Any]
) -> None:
    sas = start(fake).sas
    handle = sas.create_inbound(gcm)
    fake.commands.clear()
    with pytest.raises(ConfigError, match="rekey"):
        sas.modify(handle, **change)
    assert not fake.commands


def test_a_refused_modify_leaves_the_handle_as_it_was(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    handle = sas.create_inbound(gcm)
    fake.replies[0xC] = [EINVAL]
    with pytest.raises(CommandFailed):
        sas.modify(handle, replay_win_sz=128)
    assert handle.params.replay_win_sz == 64


def test_keys_are_in_no_repr_and_no_message(fake: Any, start: Any, gcm: IpsecSa) -> None:
    sas = start(fake).sas
    handle = sas.create_outbound(gcm)
    fake.replies[0xA] = [EINVAL]
    with pytest.raises(CommandFailed) as caught:
        sas.create_outbound(gcm)
    shown = repr(handle) + repr(sas) + str(caught.value)
    for secret in (gcm.cipher_key, gcm.salt):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_rekeying_an_outbound_sa_makes_before_it_breaks(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    frame = FRAME
    old = driver.sas.create_outbound(gcm, path_mtu=1400)
    fake.hold = True
    driver.send(frame, old)
    new = driver.rekey_outbound(old, replace(gcm, spi=0x999))
    assert (new.id, new.path_mtu, old.successor) == (1, 1400, new)
    assert fake.opcodes_seen() == [0xA, 0xA]
    # A packet of the old SA is still queued: it stays. New packets go to the new one.
    driver.send(frame, old)
    assert [each[26:30] for each in fake.sent] == [struct.pack("<I", 0), struct.pack("<I", 1)]
    assert old.alive
    with pytest.raises(DriverError, match="wait to be sent"):
        driver.sas.destroy(old)
    fake.let_go()
    driver.reap()
    assert not old.alive
    assert new.alive
    assert fake.opcodes_seen() == [0xA, 0xA, 0xD]
    assert fake.commands[-1][24:32] == struct.pack("<H2xI", 0x203, 0)


def test_rekeying_twice_follows_the_chain(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    first = driver.sas.create_outbound(gcm)
    driver.rekey_outbound(first, replace(gcm, spi=2))
    third = driver.rekey_outbound(first, replace(gcm, spi=3))
    assert driver.sas.for_transmit(first) is third
    assert [handle.params.spi for handle in driver.sas.all()] == [3]


def test_a_packet_is_sent_although_the_replaced_sa_cannot_be_destroyed(
    fake: Any, start: Any, gcm: IpsecSa
) -> None:
    driver = start(fake)
    old = driver.sas.create_outbound(gcm)
    fake.replies[0xD] = [struct.pack("<HH4x", 16, 3)]
    new = driver.rekey_outbound(old, replace(gcm, spi=2))
    driver.send(FRAME, old)
    assert len(fake.sent) == 1
    assert driver.counters["sa_not_destroyed"] == 1
    assert set(driver.sas.all()) == {old, new}
    driver.sas.destroy(old)
    assert driver.sas.all() == (new,)


def test_keys_do_not_stay_in_guest_memory(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    driver.sas.create_outbound(gcm)
    assert gcm.cipher_key not in fake.memory.read(0x10000, 16 << 20)
    fake.replies[0xA] = [None]
    with pytest.raises(TransportError):
        driver.sas.create_outbound(gcm)
    assert gcm.cipher_key in fake.memory.read(0x10000, 16 << 20)
    driver.stop()
    assert gcm.cipher_key not in fake.memory.read(0x10000, 16 << 20)


def test_a_rekey_that_the_device_refuses_keeps_the_old_sa(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    old = driver.sas.create_outbound(gcm)
    fake.replies[0xA] = [EINVAL]
    with pytest.raises(CommandFailed):
        driver.rekey_outbound(old, replace(gcm, spi=2))
    assert driver.sas.for_transmit(old) is old


def test_rekeying_an_inbound_sa_keeps_both_until_asked(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    old = driver.sas.create_inbound(gcm)
    driver.flows.protect(old)
    new = driver.rekey_inbound(old, replace(gcm, spi=0x55))
    assert old.alive
    assert len(new.rules) == 2
    fake.commands.clear()
    driver.destroy_inbound(old)
    objects = [struct.unpack("<HHHxxI", each[:4] + each[24:32]) for each in fake.commands]
    # RO-DRV-04: the rules first, the latest of them first.
    assert objects == [(0xD, 0, 0x202, 1), (0xD, 0, 0x202, 0), (0xD, 0, 0x204, 0)]
    assert new.alive
    with pytest.raises(DriverError):
        driver.destroy_inbound(old)


def test_an_inbound_rekey_whose_rules_fail_leaves_nothing_behind(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    old = driver.sas.create_inbound(gcm)
    driver.flows.protect(old, versions=(4,))
    fake.replies[0xA] = [bytes(8), EINVAL]
    with pytest.raises(CommandFailed):
        driver.rekey_inbound(old, replace(gcm, spi=0x55), versions=(4,))
    assert [handle.id for handle in driver.sas.all()] == [0]
    assert len(driver.flows.rules()) == 1


def test_an_inbound_sa_without_rules_is_rekeyed_without_rules(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    new = driver.rekey_inbound(driver.sas.create_inbound(gcm), replace(gcm, spi=0x55))
    assert new.rules == ()


def test_E55_the_driver_counts_outbound_lifetimes_itself(fake: Any, start: Any, gcm: IpsecSa) -> None:
    driver = start(fake)
    frame = bytes(12) + b"\x08\x00" + b"\x45" + bytes(7) + b"\x40\x11" + bytes(10) + bytes(80)
    packets = driver.sas.create_outbound(replace(gcm, options=64, life=Lifetime(packets_soft_limit=2)))
    octets = driver.sas.create_outbound(replace(gcm, options=64, life=Lifetime(bytes_soft_limit=200)))
    inactive = driver.sas.create_outbound(replace(gcm, life=Lifetime(packets_soft_limit=1)))
    for number, expected in enumerate([(False, False, False), (True, True, False)]):
        for handle in (packets, octets, inactive):
            driver.send(frame, handle)
        assert (packets.soft_expired, octets.soft_expired, inactive.soft_expired) == expected, number
