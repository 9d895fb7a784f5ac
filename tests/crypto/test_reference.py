"""The reference engine: what it refuses, what it never shows, and a second opinion on every octet."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from random import Random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from virtio_ipsec.crypto.algorithms import SUITES, Kind, Protocol, Suite, UnsupportedAlgorithm, by_name
from virtio_ipsec.crypto.reference import CryptoUsageError, ah_transform, esp_transform
from virtio_ipsec.errors import IntegrityError, PacketError, Reason

ESP = [s for s in SUITES if s.protocol is Protocol.ESP]
AH = [s for s in SUITES if s.protocol is Protocol.AH]
HEADER = bytes.fromhex("0a0b0c0d00000007")
HIGH = bytes.fromhex("00000003")
SALT = bytes.fromhex("5a17c0de")
KEYED_ESP = [
    pytest.param(s, c, a, id=f"{s.name}-{c}-{a}")
    for s in ESP
    for c in sorted(s.cipher_key_lens)
    for a in sorted(s.auth_key_lens)
]
KEYED_AH = [pytest.param(s, a, id=f"{s.name}-{a}") for s in AH for a in sorted(s.auth_key_lens)]


def material(suite: Suite, cipher_len: int, auth_len: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Cipher key, auth key, IV, padded plaintext: fixed, and different for every suite."""
    rng = Random(f"{suite.protocol} {suite.name} {cipher_len} {auth_len}")
    return rng.randbytes(cipher_len), rng.randbytes(auth_len), rng.randbytes(suite.iv_len), rng.randbytes(112)


# A second opinion, assembled here from single AES blocks, stdlib HMAC and one-shot AEADs.


def aes_block(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def cbc_mac(key: bytes, blocks: bytes) -> bytes:
    state = bytes(16)
    for i in range(0, len(blocks), 16):
        state = aes_block(key, xor(state, blocks[i : i + 16]))
    return state


def masked_message(data: bytes, whole: bytes, short: bytes) -> bytes:
    """CMAC and XCBC differ in the masks only: pad the last block unless whole, then mask it."""
    if data and len(data) % 16 == 0:
        return data[:-16] + xor(data[-16:], whole)
    cut = len(data) // 16 * 16
    return data[:cut] + xor((data[cut:] + b"\x80").ljust(16, b"\0"), short)


def xcbc(key: bytes, data: bytes) -> bytes:
    k1, k2, k3 = (aes_block(key, bytes([n]) * 16) for n in (1, 2, 3))
    return cbc_mac(k1, masked_message(data, k2, k3))


def cmac(key: bytes, data: bytes) -> bytes:
    def double(value: bytes) -> bytes:
        number = int.from_bytes(value, "big") << 1
        return ((number ^ 0x87) if number >> 128 else number).to_bytes(17, "big")[1:]

    k1 = double(aes_block(key, bytes(16)))
    return cbc_mac(key, masked_message(data, k1, double(k1)))


OTHER_MACS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "hmac-sha1-96": lambda key, data: hmac.new(key, data, hashlib.sha1).digest()[:12],
    "hmac-sha2-256-128": lambda key, data: hmac.new(key, data, hashlib.sha256).digest()[:16],
    "aes-cmac-96": lambda key, data: cmac(key, data)[:12],
    "aes-xcbc-96": lambda key, data: xcbc(key, data)[:12],
}


def other_cipher(name: str, key: bytes, iv: bytes, data: bytes) -> bytes:
    if name == "null":
        return data
    blocks = [data[i : i + 16] for i in range(0, len(data), 16)]
    out = b""
    if name == "aes-cbc":
        for block in blocks:
            iv = aes_block(key, xor(iv, block))
            out += iv
        return out
    for counter, block in enumerate(blocks, 1):
        out += xor(aes_block(key, SALT + iv + counter.to_bytes(4, "big"))[: len(block)], block)
    return out


def other_seal(suite: Suite, keys: tuple[bytes, bytes], high: bytes, iv: bytes, data: bytes) -> bytes:
    aad = HEADER[:4] + high + HEADER[4:]
    cipher_key, auth_key = keys
    match suite.name:
        case "aes-gcm-16":
            return AESGCM(cipher_key).encrypt(SALT + iv, data, aad)
        case "aes-ccm-16":
            return AESCCM(cipher_key, 16).encrypt(SALT[:3] + iv, data, aad)
        case "chacha20-poly1305":
            return ChaCha20Poly1305(cipher_key).encrypt(SALT + iv, data, aad)
        case "aes-gmac":
            return data + AESGCM(auth_key).encrypt(SALT + iv, b"", aad + iv + data)
    cipher, mac = suite.name.split("+")
    ciphertext = other_cipher(cipher, cipher_key, iv, data)
    return ciphertext + OTHER_MACS[mac](auth_key, HEADER + iv + ciphertext + high)


@pytest.mark.parametrize("high", [None, HIGH], ids=["short", "esn"])
@pytest.mark.parametrize(("suite", "cipher_len", "auth_len"), KEYED_ESP)
def test_sealed_octets_are_those_of_the_second_opinion(
    suite: Suite, cipher_len: int, auth_len: int, high: bytes | None
) -> None:
    cipher_key, auth_key, iv, plaintext = material(suite, cipher_len, auth_len)
    transform = esp_transform(suite, cipher_key, auth_key, SALT)
    sizes = [n for n in (0, 4, 16, 48, 100, 112) if n % suite.pad_block == 0]
    for size in sizes:
        body = transform.seal(HEADER, high, iv, plaintext[:size])
        assert body == other_seal(suite, (cipher_key, auth_key), high or b"", iv, plaintext[:size])
        assert transform.open(HEADER, high, iv, body) == plaintext[:size]


@pytest.mark.parametrize(("suite", "cipher_len", "auth_len"), KEYED_ESP)
def test_one_changed_bit_anywhere_opens_nothing(suite: Suite, cipher_len: int, auth_len: int) -> None:
    cipher_key, auth_key, iv, plaintext = material(suite, cipher_len, auth_len)
    transform = esp_transform(suite, cipher_key, auth_key, SALT)
    good = [HEADER, HIGH, iv, transform.seal(HEADER, HIGH, iv, plaintext)]
    for index, part in enumerate(good):
        for position in range(len(part)):
            changed = list(good)
            changed[index] = part[:position] + bytes([part[position] ^ 0x10]) + part[position + 1 :]
            with pytest.raises(IntegrityError) as caught:
                transform.open(*changed)
            assert caught.value.reason is Reason.BAD_ICV
    with pytest.raises(IntegrityError):
        transform.open(HEADER, None, iv, good[3])


@pytest.mark.parametrize(("suite", "cipher_len", "auth_len"), KEYED_ESP)
def test_a_body_of_impossible_length_is_malformed(suite: Suite, cipher_len: int, auth_len: int) -> None:
    cipher_key, auth_key, iv, plaintext = material(suite, cipher_len, auth_len)
    transform = esp_transform(suite, cipher_key, auth_key, SALT)
    body = transform.seal(HEADER, None, iv, plaintext)
    impossible = [body[:n] for n in range(suite.icv_len)]
    if suite.pad_block > 1:
        impossible += [body[:-1], body + b"\0"]
    for wrong in impossible:
        with pytest.raises(PacketError) as caught:
            transform.open(HEADER, None, iv, wrong)
        assert caught.value.reason is Reason.MALFORMED


def test_nothing_is_decrypted_before_the_icv_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = by_name("aes-cbc+hmac-sha2-256-128")
    transform = esp_transform(suite, bytes(16), bytes(32), SALT)
    body = transform.seal(HEADER, None, bytes(16), bytes(32))

    def decrypted(*_: object) -> None:
        raise AssertionError("decrypted")

    monkeypatch.setattr("virtio_ipsec.crypto.reference.Cipher", decrypted)
    with pytest.raises(IntegrityError):
        transform.open(HEADER, None, bytes(16), body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(AssertionError, match="decrypted"):
        transform.open(HEADER, None, bytes(16), body)


@pytest.mark.parametrize(("suite", "cipher_len", "auth_len"), KEYED_ESP)
def test_a_call_with_wrong_sizes_is_refused(suite: Suite, cipher_len: int, auth_len: int) -> None:
    cipher_key, auth_key, iv, plaintext = material(suite, cipher_len, auth_len)
    transform = esp_transform(suite, cipher_key, auth_key, SALT)
    body = transform.seal(HEADER, None, iv, plaintext)
    for arguments in (
        (HEADER[:7], None, iv),
        (HEADER + b"\0", None, iv),
        (HEADER, b"", iv),
        (HEADER, bytes(5), iv),
        (HEADER, None, iv + b"\0"),
    ):
        with pytest.raises(CryptoUsageError):
            transform.seal(*arguments, plaintext)
        with pytest.raises(CryptoUsageError):
            transform.open(*arguments, body)
    if suite.pad_block > 1:
        with pytest.raises(CryptoUsageError, match="not padded"):
            transform.seal(HEADER, None, iv, plaintext[:-1])


def test_keys_that_do_not_fit_are_refused_without_being_shown() -> None:
    secret = b"\xab" * 20
    for suite, arguments in (
        (by_name("aes-gcm-16"), (secret, b"", SALT)),
        (by_name("aes-gcm-16"), (bytes(16), secret[:16], SALT)),
        (by_name("aes-gcm-16"), (bytes(16), secret, SALT)),
        (by_name("aes-gcm-16"), (bytes(16), b"", SALT[:3])),
        (by_name("chacha20-poly1305"), (bytes(16), b"", SALT)),
        (by_name("null+hmac-sha1-96"), (secret, secret, SALT)),
        (by_name("aes-gmac"), (b"", secret, SALT)),
        (by_name("hmac-sha1-96", Protocol.AH), (b"", secret, SALT)),
    ):
        with pytest.raises(UnsupportedAlgorithm) as caught:
            esp_transform(suite, *arguments)
        assert "abab" not in str(caught.value)
    for name, key in (("hmac-sha1-96", secret[:19]), ("aes-gmac", secret)):
        with pytest.raises(UnsupportedAlgorithm):
            ah_transform(by_name(name, Protocol.AH), key, SALT)
    with pytest.raises(UnsupportedAlgorithm, match="is no ah suite"):
        ah_transform(by_name("null+hmac-sha1-96"), secret, SALT)


def test_an_auth_key_that_repeats_the_cipher_key_changes_nothing() -> None:
    """E28 (c): the split form may carry the key twice."""
    for name in ("aes-gcm-16", "aes-ccm-16"):
        suite = by_name(name)
        once = esp_transform(suite, b"k" * 16, b"", SALT).seal(HEADER, None, bytes(8), b"data")
        assert esp_transform(suite, b"k" * 16, b"k" * 16, SALT).seal(HEADER, None, bytes(8), b"data") == once


def test_salt_octets_that_a_suite_does_not_use_do_not_matter() -> None:
    for suite in ESP:
        cipher_key, auth_key, iv, plaintext = material(
            suite, max(suite.cipher_key_lens), max(suite.auth_key_lens)
        )
        bodies = []
        for octet in range(4):
            salt = bytes(SALT[i] ^ (i == octet) for i in range(4))
            bodies.append(esp_transform(suite, cipher_key, auth_key, salt).seal(HEADER, None, iv, plaintext))
        plain = esp_transform(suite, cipher_key, auth_key, SALT).seal(HEADER, None, iv, plaintext)
        assert [body != plain for body in bodies] == [octet < suite.salt_len for octet in range(4)]


@pytest.mark.parametrize(("suite", "auth_len"), KEYED_AH)
def test_ah_icv_is_that_of_the_second_opinion_and_nothing_else_verifies(suite: Suite, auth_len: int) -> None:
    _, key, iv, data = material(suite, 0, auth_len)
    transform = ah_transform(suite, key, SALT)
    field = transform.icv(data, iv)
    if suite.kind is Kind.GMAC:
        assert field == iv + AESGCM(key).encrypt(SALT + iv, b"", data)
    else:
        assert field == OTHER_MACS[suite.name](key, data)
    assert len(field) == suite.icv_field_len
    transform.verify(data, field)
    for position in range(len(field)):
        with pytest.raises(IntegrityError):
            transform.verify(data, field[:position] + bytes([field[position] ^ 1]) + field[position + 1 :])
    with pytest.raises(IntegrityError):
        transform.verify(data + b"\0", field)
    for wrong in (b"", field[:-1], field + b"\0"):
        with pytest.raises(PacketError) as caught:
            transform.verify(data, wrong)
        assert caught.value.reason is Reason.MALFORMED
    with pytest.raises(CryptoUsageError):
        transform.icv(data, iv + b"\0")


@pytest.mark.parametrize("mac", list(OTHER_MACS))
def test_macs_agree_for_every_length_around_the_blocks(mac: str) -> None:
    suite = by_name(mac, Protocol.AH)
    _, key, _, data = material(suite, 0, *suite.auth_key_lens)
    transform = ah_transform(suite, key, SALT)
    for size in range(70):
        assert transform.icv(data[:size]) == OTHER_MACS[mac](key, data[:size]), size


@pytest.mark.parametrize(("suite", "cipher_len", "auth_len"), KEYED_ESP)
def test_a_wiped_esp_transform_is_dead_and_shows_no_key(suite: Suite, cipher_len: int, auth_len: int) -> None:
    cipher_key, auth_key, iv, plaintext = material(suite, cipher_len, auth_len)
    transform = esp_transform(suite, cipher_key, auth_key, SALT)
    assert suite.name in repr(transform)
    assert SALT[: suite.salt_len] in held_octets(transform)
    transform.wipe()
    transform.wipe()
    assert repr(transform).endswith(" wiped>")
    assert transform.suite is suite
    assert all(not any(octets) for octets in held_octets(transform))
    with pytest.raises(CryptoUsageError, match="after wipe"):
        transform.seal(HEADER, None, iv, plaintext)
    with pytest.raises(CryptoUsageError, match="after wipe"):
        transform.open(HEADER, None, iv, plaintext)


@pytest.mark.parametrize(("suite", "auth_len"), KEYED_AH)
def test_a_wiped_ah_transform_is_dead(suite: Suite, auth_len: int) -> None:
    _, key, iv, data = material(suite, 0, auth_len)
    transform = ah_transform(suite, key, SALT)
    field = transform.icv(data, iv)
    transform.wipe()
    assert all(not any(octets) for octets in held_octets(transform))
    with pytest.raises(CryptoUsageError, match="after wipe"):
        transform.icv(data, iv)
    with pytest.raises(CryptoUsageError, match="after wipe"):
        transform.verify(data, field)


def held_octets(value: object) -> set[bytes]:
    """Every byte string that hangs on our own objects, through their slots."""
    found: set[bytes] = set()
    if isinstance(value, bytes | bytearray):
        found.add(bytes(value))
    elif type(value).__module__.startswith("virtio_ipsec.crypto.") and not isinstance(value, Suite):
        for owner in type(value).__mro__:
            for name in getattr(owner, "__slots__", ()):
                found |= held_octets(getattr(value, name, None))
    return found
