"""Published ESP packets, byte for byte, through the whole outbound and inbound path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ipsec_samples import TUNNEL4, ipv4

from virtio_ipsec.crypto.algorithms import by_name
from virtio_ipsec.ipsec import ip, padding
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "esp_packets.json").read_text())["tests"]
PROTECTED = [v for v in VECTORS if "NoIcv" not in v["flags"] and v["spi"] != "00000000"]
LEGACY = [v for v in VECTORS if "NoIcv" in v["flags"]]


def named(vector: dict[str, Any]) -> str:
    return f"{vector['tcId']}-{vector['suite']}"


def sa_params(vector: dict[str, Any], direction: Direction) -> SaParams:
    suite = by_name(vector["suite"])
    tunnel = vector["next_header"] in (4, 41)
    # The January-2025 RFC lets an SA begin at any sequence number, which is what a vector needs.
    return SaParams.from_wire(
        IpsecSa(
            mode=IpsecMode.ESP_TUNNEL if tunnel else IpsecMode.ESP_TRANSPORT,
            direction=direction,
            spi=int(vector["spi"], 16),
            salt=bytes.fromhex(vector["salt"]),
            options=IpsecOption.ESN if vector["seq_hi"] else 0,
            param=TUNNEL4,
            replay_win_sz=32,
            cipher_algo=suite.cipher_algo,
            cipher_key=bytes.fromhex(vector["cipher_key"]),
            auth_algo=suite.auth_algo,
            auth_key=bytes.fromhex(vector["auth_key"]),
            esn=int(vector["seq_hi"] + vector["seq"], 16),
        ),
        RFC_2025_01,
    )


def inner(vector: dict[str, Any]) -> bytes:
    payload = bytes.fromhex(vector["payload"])
    return payload if vector["next_header"] == 4 else ipv4(payload, vector["next_header"])


@pytest.mark.parametrize("vector", PROTECTED, ids=named)
def test_outbound_makes_the_published_packet(vector: dict[str, Any]) -> None:
    iv_base = int(vector["iv"], 16) - int(vector["seq_hi"] + vector["seq"], 16)
    sa = OutboundSa(sa_params(vector, Direction.OUTBOUND), lambda n: (iv_base % 2**64).to_bytes(n))
    assert outbound(sa, inner(vector))[20:].hex() == vector["packet"]


@pytest.mark.parametrize("vector", PROTECTED, ids=named)
def test_inbound_opens_the_published_packet(vector: dict[str, Any]) -> None:
    sa = InboundSa(sa_params(vector, Direction.INBOUND))
    opened = inbound(sa, ipv4(bytes.fromhex(vector["packet"]), 50))
    assert opened.packet == inner(vector)
    assert opened.sequence == int(vector["seq_hi"] + vector["seq"], 16)


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_trailers_are_the_published_ones(vector: dict[str, Any]) -> None:
    payload, plaintext = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["plaintext"])
    block = 16 if vector["suite"] == "aes-cbc" else 4
    assert payload + padding.trailer(len(payload), vector["next_header"], block) == plaintext
    assert padding.split(plaintext) == (payload, vector["next_header"])


def test_the_published_packet_with_spi_zero_belongs_to_no_sa() -> None:
    (vector,) = (v for v in VECTORS if v["spi"] == "00000000")
    assert find_spi(ipv4(bytes.fromhex(vector["packet"]), 50)) is None


def test_transport_mode_changes_the_ip_header_as_rfc_3602_prints_it() -> None:
    (vector,) = (v for v in LEGACY if "ip_before" in v and "ip_after" in v)
    before, after = bytes.fromhex(vector["ip_before"]), bytes.fromhex(vector["ip_after"])
    assert ip.header_for(before, 9, 50, len(vector["packet"]) // 2) == after
