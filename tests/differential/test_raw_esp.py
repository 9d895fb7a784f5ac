"""ESP and AH packets taken apart with bare `cryptography` calls, for what scapy cannot judge.

Every suite with its real IV and salt rules, sequence numbers across 2**32, AES-XCBC-96 (written here from
RFC 3566), AES-GMAC in AH (RFC 4543 4). Nothing of the package is used to open.
"""

from __future__ import annotations

import hmac as hmac_
import struct
from ipaddress import IPv4Address
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.ipsec.process import outbound
from virtio_ipsec.ipsec.sa import OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4

SPI, SALT = 0xFEEDF00D, b"\x01\x02\x03\x04"
FIRST = 2**32 - 2
INNER = bytes.fromhex("4500002500070000401100000a0100010a02000207d0 07d1 0011 0000 616263646566676869")


def xcbc_96(key: bytes, data: bytes) -> bytes:
    """RFC 3566 4, step by step."""

    def block(under: bytes, value: bytes) -> bytes:
        return Cipher(algorithms.AES(under), modes.ECB()).encryptor().update(value)  # noqa: S305

    def xor(a: bytes, b: bytes) -> bytes:
        return bytes(x ^ y for x, y in zip(a, b, strict=True))

    k1, k2, k3 = (block(key, bytes((n,)) * 16) for n in (1, 2, 3))
    blocks = [data[at : at + 16] for at in range(0, len(data), 16)] or [b""]
    state = bytes(16)
    for each in blocks[:-1]:
        state = block(k1, xor(state, each))
    last = blocks[-1]
    final = xor(last, k2) if len(last) == 16 else xor((last + b"\x80").ljust(16, b"\0"), k3)
    return block(k1, xor(state, final))[:12]


def cmac_96(key: bytes, data: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(data)
    return mac.finalize()[:12]


MACS: dict[str, tuple[Any, int]] = {
    "hmac-sha1-96": (lambda key, data: hmac_.digest(key, data, "sha1")[:12], 12),
    "hmac-sha2-256-128": (lambda key, data: hmac_.digest(key, data, "sha256")[:16], 16),
    "aes-cmac-96": (cmac_96, 12),
    "aes-xcbc-96": (xcbc_96, 12),
}


def test_xcbc_as_written_here_gives_the_vectors_of_rfc_3566() -> None:
    key = bytes(range(16))
    assert xcbc_96(key, b"").hex() == "75f0251d528ac01c4573dfd5"
    assert xcbc_96(key, bytes(range(3))).hex() == "5b376580ae2f19afe7219cee"
    assert xcbc_96(key, bytes(range(16))).hex() == "d2a246fa349b68a79998a439"
    assert xcbc_96(key, bytes(range(20))).hex() == "47f51b4564966215b8985c63"


def opened(name: str, key: bytes, auth_key: bytes, esp: bytes, high: bytes) -> tuple[bytes, bytes]:
    """(plaintext with trailer, IV); raises or fails an assertion when the packet is not right."""
    header, body = esp[:8], esp[8:]
    aad = header[:4] + high + header[4:]
    if name in ("aes-gcm-16", "chacha20-poly1305"):
        engine = AESGCM(key) if name == "aes-gcm-16" else ChaCha20Poly1305(key)
        return engine.decrypt(SALT + body[:8], body[8:], aad), body[:8]
    if name == "aes-ccm-16":
        return AESCCM(key, 16).decrypt(SALT[:3] + body[:8], body[8:], aad), body[:8]
    if name == "aes-gmac":
        AESGCM(auth_key).decrypt(SALT + body[:8], body[-16:], aad + body[:-16])
        return body[8:-16], body[:8]
    cipher, mac = name.split("+")
    tag, length = MACS[mac]
    body, icv = body[:-length], body[-length:]
    assert tag(auth_key, header + body + high) == icv
    if cipher == "aes-cbc":
        return Cipher(algorithms.AES(key), modes.CBC(body[:16])).decryptor().update(body[16:]), body[:16]
    if cipher == "aes-ctr":
        nonce = SALT + body[:8] + b"\0\0\0\1"
        return Cipher(algorithms.AES(key), modes.CTR(nonce)).decryptor().update(body[8:]), body[:8]
    return body, b""


def suites(protocol: Protocol) -> list[Any]:
    return [
        pytest.param(suite, length, id=f"{suite.name}-{length}")
        for suite in SUITES
        if suite.protocol is protocol
        for length in sorted(suite.auth_key_lens if suite.cipher_key_lens == {0} else suite.cipher_key_lens)
    ]


def sender(suite: Suite, length: int, mode: IpsecMode, options: int) -> tuple[OutboundSa, bytes, bytes]:
    """(SA that begins just before 2**32, cipher key, authentication key)."""
    no_cipher = suite.cipher_key_lens == {0}
    key = b"" if no_cipher else bytes(range(7, 7 + length))
    auth_key = bytes(range(70, 70 + (length if no_cipher else max(suite.auth_key_lens))))
    sa = IpsecSa(
        mode=mode,
        direction=Direction.OUTBOUND,
        spi=SPI,
        salt=SALT,
        options=options,
        param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2")),
        cipher_algo=suite.cipher_algo,
        cipher_key=key,
        auth_algo=suite.auth_algo,
        auth_key=auth_key,
        esn=FIRST,
    )
    made = OutboundSa(SaParams.from_wire(sa, RFC_2025_01), lambda n: b"\xff" * n)
    return made, key, auth_key


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize(("suite", "length"), suites(Protocol.ESP))
def test_esp_is_what_the_rfcs_say(suite: Suite, length: int, esn: bool) -> None:
    sa, key, auth_key = sender(suite, length, IpsecMode.ESP_TUNNEL, IpsecOption.ESN if esn else 0)
    ivs = []
    for sequence in range(FIRST, FIRST + (4 if esn else 2)):
        packet = outbound(sa, INNER)
        assert packet[9] == 50
        assert struct.unpack_from("!II", packet, 20) == (SPI, sequence % 2**32)
        high = struct.pack("!I", sequence >> 32) if esn else b""
        plaintext, iv = opened(suite.name, key, auth_key, packet[20:], high)
        padding, next_header = plaintext[len(INNER) : -1], plaintext[-1]
        assert plaintext.startswith(INNER)
        assert next_header == 4
        assert padding == bytes(range(1, len(padding))) + bytes((len(padding) - 1,))
        assert len(plaintext) % (16 if suite.name.startswith("aes-cbc") else 4) == 0
        ivs.append(iv)
    if len(ivs[0]) == 8:
        numbers = [int.from_bytes(iv) for iv in ivs]
        assert numbers == [(numbers[0] + n) % 2**64 for n in range(len(numbers))]


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize(("suite", "length"), suites(Protocol.AH))
def test_ah_is_what_the_rfcs_say(suite: Suite, length: int, esn: bool) -> None:
    sa, _, key = sender(suite, length, IpsecMode.AH_TRANSPORT, IpsecOption.ESN if esn else 0)
    for sequence in range(FIRST, FIRST + (4 if esn else 2)):
        packet = outbound(sa, INNER)
        icv_len = 24 if suite.name == "aes-gmac" else MACS[suite.name][1]
        next_header, words, reserved, spi, low = struct.unpack_from("!BBHII", packet, 20)
        assert (next_header, reserved, spi, low) == (17, 0, SPI, sequence % 2**32)
        assert (words + 2) * 4 == 12 + icv_len
        covered = bytearray(packet + (struct.pack("!I", sequence >> 32) if esn else b""))
        covered[1] = covered[8] = 0
        covered[6:8] = covered[10:12] = b"\0\0"
        covered[32 : 32 + icv_len] = bytes(icv_len)
        icv = packet[32 : 32 + icv_len]
        if suite.name == "aes-gmac":
            AESGCM(key).decrypt(SALT + icv[:8], icv[8:], bytes(covered))
        else:
            assert MACS[suite.name][0](key, bytes(covered)) == icv
        assert packet[32 + icv_len :] == INNER[20:]
