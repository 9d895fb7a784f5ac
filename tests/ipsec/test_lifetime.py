"""Lifetimes (E45): N packets succeed, octets are those of the cipher, soft expiry stays."""

from __future__ import annotations

import pytest
from ipsec_samples import AH_SHA256, CBC_SHA256, in_sa, ipv4, out_sa, pair, params, udp

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.process import inbound, outbound
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

LIFETIME = IpsecOption.SA_LIFETIME
TUNNEL = IpsecMode.ESP_TUNNEL
PACKET = ipv4(udp(bytes(72)))  # 100 octets
GCM_OCTETS = 104  # 100 + 2 octets of trailer, aligned to 4
CBC_OCTETS = 112  # aligned to 16


def limited(**limits: int) -> dict[str, object]:
    return {"options": LIFETIME, "life": Lifetime(**limits)}


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_exactly_n_packets_succeed_outbound_and_inbound(limit: int) -> None:
    sa = out_sa(TUNNEL, **limited(packets_hard_limit=limit))
    peer, receiver = pair(TUNNEL, **limited(packets_hard_limit=limit))
    peer.update(params(TUNNEL, Direction.OUTBOUND))
    for _ in range(limit):
        outbound(sa, PACKET)
        inbound(receiver, outbound(peer, PACKET))
    for _ in range(3):
        with pytest.raises(PacketError) as refused:
            outbound(sa, PACKET)
        assert refused.value.reason is Reason.HARD_LIFETIME
        with pytest.raises(PacketError) as refused:
            inbound(receiver, outbound(peer, PACKET))
        assert refused.value.reason is Reason.HARD_LIFETIME
    assert (sa.packets, sa.sequence, receiver.packets, receiver.window.top) == (limit,) * 4
    assert sa.stats == receiver.stats == {Reason.HARD_LIFETIME: 3}


@pytest.mark.parametrize(
    ("algorithms", "octets"), [({}, GCM_OCTETS), (CBC_SHA256, CBC_OCTETS)], ids=["gcm", "cbc"]
)
def test_octets_are_those_given_to_the_cipher_padding_included(
    algorithms: dict[str, object], octets: int
) -> None:
    sender, receiver = pair(TUNNEL, **algorithms)
    inbound(receiver, outbound(sender, PACKET))
    assert sender.bytes == receiver.bytes == octets


@pytest.mark.parametrize("esn", [False, True])
def test_ah_octets_are_all_that_the_integrity_check_covers(esn: bool) -> None:
    options = IpsecOption.ESN if esn else 0
    sender, receiver = pair(IpsecMode.AH_TRANSPORT, **AH_SHA256, options=options)
    protected = outbound(sender, PACKET)
    inbound(receiver, protected)
    assert sender.bytes == receiver.bytes == len(protected) + 4 * esn


def test_the_byte_limit_lets_the_packet_pass_that_reaches_it() -> None:
    for limit, passing in [(1, 1), (GCM_OCTETS, 1), (GCM_OCTETS + 1, 2), (3 * GCM_OCTETS, 3)]:
        sa = out_sa(TUNNEL, **limited(bytes_hard_limit=limit))
        for _ in range(passing):
            outbound(sa, PACKET)
        with pytest.raises(PacketError):
            outbound(sa, PACKET)
        assert sa.packets == passing


@pytest.mark.parametrize(
    "limits", [{"packets_soft_limit": 3}, {"bytes_soft_limit": 3 * GCM_OCTETS}, {"bytes_soft_limit": 209}]
)
def test_soft_expiry_begins_with_the_packet_that_reaches_the_limit_and_stays(limits: dict[str, int]) -> None:
    sender, receiver = pair(TUNNEL, **limited(**limits))
    seen = []
    for _ in range(6):
        protected = outbound(sender, PACKET)
        opened = inbound(receiver, protected)
        assert opened.soft_expired == receiver.soft_expired == sender.soft_expired
        seen.append(opened.soft_expired)
    assert seen == [False, False, True, True, True, True]


def test_limits_need_the_option_bit() -> None:
    sa = out_sa(TUNNEL, life=Lifetime(1, 1, 1, 1))
    for _ in range(3):
        outbound(sa, PACKET)
    assert not sa.soft_expired


def test_only_packets_that_pass_every_check_count() -> None:
    sender, receiver = pair(TUNNEL, **limited(packets_hard_limit=2))
    first, second = outbound(sender, PACKET), outbound(sender, PACKET)
    inbound(receiver, first)
    for bad in (first, second[:-1] + bytes((second[-1] ^ 1,)), second[:30], b""):
        with pytest.raises(PacketError):
            inbound(receiver, bad)
    assert (receiver.packets, receiver.bytes) == (1, GCM_OCTETS)
    assert inbound(receiver, second).packet == PACKET


def test_modify_moves_the_limits_and_keeps_the_counters() -> None:
    sa = in_sa(TUNNEL, **limited(packets_hard_limit=5, packets_soft_limit=1))
    sa.lifetime.count(10)
    assert sa.soft_expired
    sa.update(params(TUNNEL, Direction.INBOUND, **limited(packets_soft_limit=2, packets_hard_limit=2)))
    assert not sa.soft_expired
    assert (sa.packets, sa.bytes) == (1, 10)
    sa.lifetime.count(10)
    with pytest.raises(PacketError):
        sa.check_usable()
