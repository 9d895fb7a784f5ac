"""The esp_sa table that Wireshark reads."""

from __future__ import annotations

import csv
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.keyfile import Peers, esp_sa_line, esp_sa_text, write_key_file
from virtio_ipsec.wire.ipsec import IpsecSa

GCM = IpsecSa(
    mode=1,
    direction=1,
    spi=0x1A2B,
    salt=bytes.fromhex("a0a1a2a3"),
    cipher_algo=1,
    cipher_key=bytes(range(16)),
)
CBC = replace(GCM, cipher_algo=3, auth_algo=4, auth_key=b"\xbb" * 32)


def test_the_line_that_wireshark_4_0_was_seen_to_accept() -> None:
    peers = Peers(GCM, 4, IPv4Address("10.99.1.1"), IPv4Address("10.99.1.2"))
    assert esp_sa_line(peers) == (
        '"IPv4","10.99.1.1","10.99.1.2","0x00001a2b","AES-GCM with 16 octet ICV [RFC4106]",'
        '"0x000102030405060708090a0b0c0d0e0fa0a1a2a3","NULL",""'
    )


@pytest.mark.parametrize(
    ("change", "encryption", "key", "authentication", "auth_key"),
    [
        (
            {},
            "AES-CBC [RFC3602]",
            "0x" + bytes(range(16)).hex(),
            "HMAC-SHA-256-128 [RFC4868]",
            "0x" + "bb" * 32,
        ),
        (
            {"cipher_algo": 4, "auth_algo": 2, "auth_key": b"\xcc" * 20},
            "AES-CTR [RFC3686]",
            "0x" + bytes(range(16)).hex() + "a0a1a2a3",
            "HMAC-SHA-1-96 [RFC2404]",
            "0x" + "cc" * 20,
        ),
        (
            {"cipher_algo": 0, "cipher_key": b"", "auth_algo": 26, "auth_key": bytes(16)},
            "NULL",
            "",
            "ANY 96 bit authentication [no checking]",
            "",
        ),
    ],
)
def test_ciphers_with_macs(
    change: Any, encryption: str, key: str, authentication: str, auth_key: str
) -> None:
    (fields,) = csv.reader([esp_sa_line(Peers(replace(CBC, **change), 6))])
    assert fields == ["IPv6", "*", "*", "0x00001a2b", encryption, key, authentication, auth_key]


def test_newer_versions_know_sequence_number_lengths_and_chacha() -> None:
    (fields,) = csv.reader([esp_sa_line(Peers(replace(GCM, options=1)), modern=True)])
    assert fields[8:] == ["64-bit", "0"]
    chacha = Peers(replace(GCM, cipher_algo=3, cipher_key=bytes(32)))
    (fields,) = csv.reader([esp_sa_line(chacha, modern=True)])
    assert fields[4:10] == [
        "ChaCha20 with Poly1305 [RFC7634]",
        "0x" + "00" * 32 + "a0a1a2a3",
        "NULL",
        "",
        "32-bit",
        "0",
    ]
    assert esp_sa_line(chacha).startswith("# SPI 0x00001a2b: Wireshark does not know chacha20")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cipher_algo": 2}, "aes-ccm-16"),
        ({"cipher_algo": 0, "cipher_key": b"", "auth_algo": 41, "auth_key": bytes(16)}, "aes-gmac"),
        ({"mode": 4, "cipher_algo": 0, "cipher_key": b"", "auth_algo": 4, "auth_key": bytes(32)}, "AH"),
        ({"cipher_algo": 9}, "no ESP suite"),
    ],
)
def test_what_wireshark_does_not_know_is_a_comment_without_keys(change: Any, reason: str) -> None:
    sa = replace(GCM, **change)
    text = esp_sa_text([Peers(sa), Peers(GCM)])
    _, comment, line = text.splitlines()
    assert comment.startswith("# SPI 0x00001a2b: ")
    assert reason in comment
    assert "000102" not in comment
    assert line == esp_sa_line(Peers(GCM))


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "esp_sa"
    write_key_file(path, [Peers(GCM)])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == esp_sa_text([Peers(GCM)])
    assert "keys" in path.read_text().splitlines()[0]


def test_nothing_is_overwritten_unless_told_to(tmp_path: Path) -> None:
    path = tmp_path / "esp_sa"
    path.write_text("mine")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="esp_sa: File exists"):
        write_key_file(path, [Peers(GCM)])
    assert path.read_text() == "mine"
    write_key_file(path, [Peers(GCM)], replace=True)
    assert path.read_text() == esp_sa_text([Peers(GCM)])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["esp_sa"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        write_key_file(tmp_path / "no" / "esp_sa", [])
