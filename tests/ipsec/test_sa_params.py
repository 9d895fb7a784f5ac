"""What CREATE and MODIFY refuse whatever the capabilities are (E21, E25-E28, E38-E45, E67)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ipsec_samples import (
    AH_SHA256,
    CBC_SHA256,
    SPI,
    TUNNEL4,
    TUNNEL6,
    counting_rng,
    in_sa,
    ipv4,
    out_sa,
    pair,
    params,
    udp,
    wire_sa,
)

from virtio_ipsec.crypto.algorithms import UnsupportedAlgorithm
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.process import inbound, outbound
from virtio_ipsec.ipsec.sa import BadSaParameters, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import CipherAlgo, Direction, IpsecMode, IpsecOption, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelRaw

TUNNEL, TRANSPORT = IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT
AH_TUNNEL, AH_TRANSPORT = IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT
OUT, IN = Direction.OUTBOUND, Direction.INBOUND
LIFE = IpsecOption.SA_LIFETIME
PACKET = ipv4(udp(b"data"))

REFUSED: list[tuple[str, int, int, dict[str, Any]]] = [
    ("mode", 0, OUT, {}),
    ("mode", 5, IN, {}),
    ("direction", TUNNEL, 0, {}),
    ("direction", TUNNEL, 3, {}),
    ("spi", TUNNEL, OUT, {"spi": 0}),
    ("spi", TUNNEL, IN, {"spi": 2**32}),
    ("salt", TUNNEL, IN, {"salt": b"abc"}),
    ("options", TUNNEL, OUT, {"options": 0x80}),
    ("options", TUNNEL, OUT, {"options": 1 << 32}),
    ("options", TUNNEL, IN, {"options": 1 << 63}),
    *[
        ("options", mode, way, {"options": option})
        for mode in (TRANSPORT, AH_TRANSPORT)
        for way in (OUT, IN)
        for option in (IpsecOption.COPY_DSCP, IpsecOption.DEC_TTL, IpsecOption.COPY_DF, IpsecOption.ECN)
    ],
    ("options", AH_TUNNEL, OUT, {"options": IpsecOption.UDP_ENCAP}),
    ("options", AH_TRANSPORT, IN, {"options": IpsecOption.UDP_ENCAP}),
    ("param.type", TUNNEL, OUT, {"param": TunnelRaw(0)}),
    ("param.type", AH_TUNNEL, OUT, {"param": TunnelRaw(4, b"x")}),
    ("param.ipv4.dscp", TUNNEL, OUT, {"param": replace(TUNNEL4, dscp=64)}),
    ("param.ipv4.df", TUNNEL, OUT, {"param": replace(TUNNEL4, df=2)}),
    ("param.ipv6.dscp", TUNNEL, OUT, {"param": replace(TUNNEL6, dscp=64)}),
    ("param.ipv6.flabel", TUNNEL, OUT, {"param": replace(TUNNEL6, flabel=1 << 20)}),
    ("replay_win_sz", TUNNEL, IN, {"replay_win_sz": 4097}),
    ("replay_win_sz", TUNNEL, IN, {"replay_win_sz": 0, "options": IpsecOption.ESN}),
    ("cipher_key.length", TUNNEL, OUT, {"cipher_key_len": 33}),
    ("cipher_key.length", TUNNEL, OUT, {"cipher_key_len": 15}),
    ("cipher_key.length", TUNNEL, OUT, {"cipher_key": bytes(33)}),
    ("auth_key.length", AH_TUNNEL, IN, {"auth_key_len": 48}),
    ("auth_key.length", AH_TUNNEL, IN, {"auth_key": bytes(64)}),
    ("cipher_algo", TUNNEL, OUT, {"cipher_key": bytes(20)}),  # key and salt in one (E31)
    ("cipher_algo", TUNNEL, OUT, {"cipher_algo": CipherAlgo.DES_CBC, "cipher_key": bytes(8)}),
    ("cipher_algo", TUNNEL, OUT, {"cipher_algo": CipherAlgo.AES_CBC}),
    (
        "cipher_algo",
        TUNNEL,
        OUT,
        CBC_SHA256 | {"cipher_algo": 1 << 3},
    ),  # a mask in place of a value (E29)
    ("auth_algo", AH_TUNNEL, OUT, {"cipher_algo": CipherAlgo.AES_CBC, "cipher_key": bytes(16)}),
    ("auth_algo", AH_TUNNEL, IN, {"auth_algo": MacAlgo.NO_MAC, "auth_key": b""}),
    (
        "auth_key",
        TUNNEL,
        OUT,
        {"cipher_algo": CipherAlgo.AES_CTR, "auth_algo": MacAlgo.GMAC_AES, "auth_key": bytes(16)},
    ),
    ("life.packets_soft_limit", TUNNEL, OUT, {"options": LIFE, "life": Lifetime(2, 0, 1, 0)}),
    ("life.bytes_soft_limit", TUNNEL, IN, {"options": LIFE, "life": Lifetime(0, 2, 0, 1)}),
    ("esn", TUNNEL, OUT, {"esn": 2**32}),
]


@pytest.mark.parametrize(("field", "mode", "direction", "fields"), REFUSED)
def test_parameters_that_cannot_be_are_refused_by_field(
    field: str, mode: int, direction: int, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadSaParameters) as refused:
        params(mode, direction, **fields)
    assert refused.value.field == field


ACCEPTED: list[tuple[int, int, dict[str, Any]]] = [
    (TUNNEL, OUT, {"param": replace(TUNNEL4, df=1, dscp=63, ttl=255)}),
    (TUNNEL, OUT, {"spi": 1}),
    (TUNNEL, OUT, {"options": 0x7F}),
    (TUNNEL, OUT, {"param": replace(TUNNEL6, dscp=63, flabel=0xFFFFF, hlimit=255)}),
    (TUNNEL, IN, {"replay_win_sz": 4096, "options": IpsecOption.ESN}),
    (TUNNEL, IN, {"replay_win_sz": 1}),
    (TUNNEL, IN, {"replay_win_sz": 0}),
    (TUNNEL, OUT, {"options": LIFE, "life": Lifetime(5, 5, 5, 5)}),
    (TUNNEL, OUT, {"options": LIFE, "life": Lifetime(5, 5, 0, 0)}),
    (TUNNEL, OUT, {"life": Lifetime(5, 5, 1, 1)}),  # without the option bit nobody reads them
    (TUNNEL, OUT, {"esn": 2**32 - 1}),
    (TUNNEL, OUT, {"esn": 2**64 - 1, "options": IpsecOption.ESN}),
]


@pytest.mark.parametrize(("mode", "direction", "fields"), ACCEPTED)
def test_parameters_at_the_edge_are_accepted(mode: int, direction: int, fields: dict[str, Any]) -> None:
    made = params(mode, direction, **fields)
    assert (made.mode, made.direction) == (mode, direction)


def test_inbound_tunnel_parameters_and_the_outbound_window_are_ignored() -> None:
    for param in (TunnelRaw(0), TunnelRaw(9, b"x"), replace(TUNNEL4, dscp=255), replace(TUNNEL6, dscp=255)):
        assert params(TUNNEL, IN, param=param).tunnel is None
        assert params(TRANSPORT, OUT, param=param).tunnel is None
    outbound_params = params(TUNNEL, OUT, replay_win_sz=2**32 - 1, options=IpsecOption.ESN)
    assert outbound_params.replay_window == 0


def test_the_resource_type_and_the_direction_must_agree() -> None:
    sa = wire_sa(TUNNEL, OUT)
    assert SaParams.from_wire(sa, V14, OUT).direction is OUT
    with pytest.raises(BadSaParameters) as refused:
        SaParams.from_wire(sa, V14, IN)
    assert refused.value.field == "direction"


def test_the_dialect_decides_which_options_and_fields_exist() -> None:
    for option in (IpsecOption.ECN, LIFE):
        with pytest.raises(BadSaParameters):
            SaParams.from_wire(wire_sa(TUNNEL, OUT, options=option), RFC_2025_01)
    assert SaParams.from_wire(wire_sa(TUNNEL, OUT, esn=77), V14).first_sequence == 1
    assert SaParams.from_wire(wire_sa(TUNNEL, OUT, esn=77), RFC_2025_01).first_sequence == 77
    assert SaParams.from_wire(wire_sa(TUNNEL, OUT, esn=0), RFC_2025_01).first_sequence == 1


def test_udp_ports_default_to_4500() -> None:
    made = params(TUNNEL, OUT, udp_sport=0, udp_dport=1234)
    assert (made.udp_sport, made.udp_dport) == (4500, 1234)


def test_keys_and_salt_are_never_shown() -> None:
    made = params(TUNNEL, OUT, **CBC_SHA256, salt=b"\xaa\xbb\xcc\xdd")
    for text in (repr(made), str(made), repr(OutboundSa(made, counting_rng()))):
        for secret in (made.cipher_key, made.auth_key, made.salt):
            assert repr(secret) not in text
            assert secret.hex() not in text
    for error_of in ({"cipher_key": b"\xde\xad" * 10}, {"auth_key": b"\xde\xad" * 8}):
        with pytest.raises(BadSaParameters) as refused:
            params(TUNNEL, OUT, **error_of)
        assert "dead" not in str(refused.value)
        assert repr(b"\xde\xad")[2:-1] not in str(refused.value)


FORBIDDEN: list[tuple[str, int, dict[str, Any]]] = [
    ("spi", TUNNEL, {"spi": 7}),
    ("salt", TUNNEL, {"salt": b"tlas"}),
    ("options", TUNNEL, {"options": IpsecOption.ESN}),
    ("cipher_key", TUNNEL, {"cipher_key": bytes(16)}),
    ("cipher_algo", TUNNEL, {"cipher_algo": 2}),
    ("cipher_algo", TUNNEL, CBC_SHA256),
    ("auth_key", AH_TUNNEL, {"auth_key": bytes(32)}),
    ("auth_algo", AH_TUNNEL, {"auth_algo": MacAlgo.HMAC_SHA1, "auth_key": bytes(20)}),
    ("esn", TUNNEL, {"esn": 2}),
]


@pytest.mark.parametrize(("field", "mode", "fields"), FORBIDDEN)
@pytest.mark.parametrize("direction", list(Direction))
def test_modify_refuses_what_would_change_identity_or_keys(
    field: str, mode: int, fields: dict[str, Any], direction: Direction
) -> None:
    sa = out_sa(mode) if direction is OUT else in_sa(mode)
    before = sa.params
    with pytest.raises(BadSaParameters) as refused:
        sa.update(params(mode, direction, **fields))
    assert refused.value.field == field
    assert sa.params is before


def test_modify_refuses_another_mode_or_direction() -> None:
    for field, other in (("mode", params(TRANSPORT, OUT)), ("direction", params(TUNNEL, IN))):
        assert params(TUNNEL, OUT).changes_forbidden(other) == field


def test_modify_changes_the_tunnel_and_never_sets_a_counter_back() -> None:
    sender, receiver = pair(TUNNEL)
    first = outbound(sender, PACKET)
    inbound(receiver, first)
    sender.update(params(TUNNEL, OUT, param=TUNNEL6, options=IpsecOption.UDP_ENCAP | LIFE))
    receiver.update(params(TUNNEL, IN, options=IpsecOption.UDP_ENCAP, replay_win_sz=128))
    second = outbound(sender, PACKET)
    assert second[0] >> 4 == 6
    assert second[40:44] == (4500).to_bytes(2) * 2
    opened = inbound(receiver, second)
    assert (opened.packet, opened.sequence) == (PACKET, 2)
    assert (sender.sequence, sender.packets, receiver.packets) == (2, 2, 2)
    # The IV goes on, too: it is base + sequence number.
    ivs = [int.from_bytes(octets) for octets in (first[28:36], second[56:64])]
    assert ivs[1] == ivs[0] + 1
    with pytest.raises(PacketError) as refused:
        inbound(receiver, first)
    assert refused.value.reason is Reason.REPLAY


def test_a_wiped_sa_has_no_keys_and_processes_nothing() -> None:
    for mode in IpsecMode:
        sender, receiver = pair(mode)
        protected = outbound(sender, PACKET)
        for sa in (sender, receiver):
            sa.wipe()
            sa.wipe()
            assert (sa.params.cipher_key, sa.params.auth_key, sa.params.salt) == (b"", b"", b"")
        for refused_by in (lambda: outbound(sender, PACKET), lambda: inbound(receiver, protected)):  # noqa: B023
            with pytest.raises(PacketError) as refused:
                refused_by()
            assert refused.value.reason is Reason.UNKNOWN_SA
        assert sender.sequence == 1
        with pytest.raises(BadSaParameters):
            sender.update(params(mode, OUT))


def test_an_sa_wiped_before_its_first_packet_never_gets_a_keyed_transform() -> None:
    for mode in IpsecMode:
        protected = outbound(pair(mode)[0], PACKET)
        sender, receiver = pair(mode)
        for sa in (sender, receiver):
            sa.wipe()
            for take in (lambda: sa.esp, lambda: sa.ah):  # noqa: B023
                with pytest.raises(UnsupportedAlgorithm):
                    take()
        for refused_by in (lambda: outbound(sender, PACKET), lambda: inbound(receiver, protected)):  # noqa: B023
            with pytest.raises(PacketError) as refused:
                refused_by()
            assert refused.value.reason is Reason.UNKNOWN_SA


def test_the_split_form_of_gcm_makes_the_same_packets() -> None:
    key = bytes(range(16))
    plain = out_sa(TUNNEL, cipher_key=key)
    for auth_key in (b"", key):
        split = out_sa(
            TUNNEL,
            cipher_algo=CipherAlgo.AES_CTR,
            auth_algo=MacAlgo.GMAC_AES,
            cipher_key=key,
            auth_key=auth_key,
        )
        assert outbound(split, PACKET) == outbound(out_sa(TUNNEL, cipher_key=key), PACKET)
    assert plain.params.spi == SPI
    assert plain.params.suite.name == "aes-gcm-16"


def test_ah_takes_no_cipher_key() -> None:
    with pytest.raises(BadSaParameters):
        params(AH_TUNNEL, OUT, **AH_SHA256, cipher_key=bytes(16))
