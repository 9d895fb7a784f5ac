"""The registry: what is offered, what is refused, and that masks and suites say the same."""

from __future__ import annotations

import itertools

import pytest

from virtio_ipsec.crypto.algorithms import (
    ALIASES,
    SUITES,
    Kind,
    Protocol,
    UnsupportedAlgorithm,
    ah_masks,
    ah_suite,
    by_name,
    esp_masks,
    esp_suite,
)
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, MacAlgo

ESP = [s for s in SUITES if s.protocol is Protocol.ESP]
AH = [s for s in SUITES if s.protocol is Protocol.AH]
IDS = range(64)
LENGTHS = range(66)


def accepted_esp(cipher: int, auth: int) -> bool:
    """Is there any pair of key lengths for which this pair of ids is a suite?"""
    for cipher_len, auth_len in itertools.product((0, 16, 20, 24, 32), repeat=2):
        try:
            esp_suite(cipher, auth, cipher_len, auth_len)
        except UnsupportedAlgorithm:
            continue
        return True
    return False


def accepted_ah(auth: int) -> bool:
    for auth_len in LENGTHS:
        try:
            ah_suite(auth, auth_len)
        except UnsupportedAlgorithm:
            continue
        return True
    return False


# name -> (cipher id, auth id, key lengths, auth key lengths, IV, ICV, salt, pad block, counter IV):
# written out from the RFCs, not from the registry.
ESP_EXPECTED = {
    "aes-gcm-16": (1, 0, {16, 24, 32}, {0}, 8, 16, 4, 1, True),
    "aes-ccm-16": (2, 0, {16, 24, 32}, {0}, 8, 16, 3, 1, True),
    "chacha20-poly1305": (3, 0, {32}, {0}, 8, 16, 4, 1, True),
    "aes-gmac": (0, 41, {0}, {16, 24, 32}, 8, 16, 4, 1, True),
    "aes-cbc+hmac-sha1-96": (3, 2, {16, 24, 32}, {20}, 16, 12, 0, 16, False),
    "aes-cbc+hmac-sha2-256-128": (3, 4, {16, 24, 32}, {32}, 16, 16, 0, 16, False),
    "aes-cbc+aes-cmac-96": (3, 26, {16, 24, 32}, {16}, 16, 12, 0, 16, False),
    "aes-cbc+aes-xcbc-96": (3, 53, {16, 24, 32}, {16}, 16, 12, 0, 16, False),
    "aes-ctr+hmac-sha1-96": (4, 2, {16, 24, 32}, {20}, 8, 12, 4, 1, True),
    "aes-ctr+hmac-sha2-256-128": (4, 4, {16, 24, 32}, {32}, 8, 16, 4, 1, True),
    "aes-ctr+aes-cmac-96": (4, 26, {16, 24, 32}, {16}, 8, 12, 4, 1, True),
    "aes-ctr+aes-xcbc-96": (4, 53, {16, 24, 32}, {16}, 8, 12, 4, 1, True),
    "null+hmac-sha1-96": (0, 2, {0}, {20}, 0, 12, 0, 1, False),
    "null+hmac-sha2-256-128": (0, 4, {0}, {32}, 0, 16, 0, 1, False),
    "null+aes-cmac-96": (0, 26, {0}, {16}, 0, 12, 0, 1, False),
    "null+aes-xcbc-96": (0, 53, {0}, {16}, 0, 12, 0, 1, False),
}
AH_EXPECTED = {  # name -> (auth id, key lengths, ICV field)
    "hmac-sha1-96": (2, {20}, 12),
    "hmac-sha2-256-128": (4, {32}, 16),
    "aes-cmac-96": (26, {16}, 12),
    "aes-xcbc-96": (53, {16}, 12),
    "aes-gmac": (41, {16, 24, 32}, 24),
}


def test_the_esp_suites_are_those_of_the_rfcs_with_their_sizes() -> None:
    assert {
        s.name: (
            int(s.cipher_algo), int(s.auth_algo), set(s.cipher_key_lens), set(s.auth_key_lens),
            s.iv_len, s.icv_len, s.salt_len, s.pad_block, s.counter_iv,
        )
        for s in ESP
    } == ESP_EXPECTED  # fmt: skip
    assert {s.alignment for s in ESP if s.pad_block == 1} == {4}
    assert {s.alignment for s in ESP if s.pad_block == 16} == {16}
    assert all(s.icv_field_len == s.icv_len for s in ESP)


def test_the_ah_suites_are_those_of_the_rfcs_with_their_sizes() -> None:
    assert {s.name: (int(s.auth_algo), set(s.auth_key_lens), s.icv_field_len) for s in AH} == AH_EXPECTED


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: f"{s.protocol}-{s.name}")
def test_a_suite_is_found_by_ids_and_by_name_for_exactly_its_key_lengths(suite) -> None:
    assert by_name(suite.name, suite.protocol) is suite
    for cipher_len, auth_len in itertools.product(LENGTHS, repeat=2):
        fits = cipher_len in suite.cipher_key_lens and auth_len in suite.auth_key_lens
        try:
            if suite.protocol is Protocol.ESP:
                found = esp_suite(suite.cipher_algo, suite.auth_algo, cipher_len, auth_len)
            else:
                found = ah_suite(suite.auth_algo, auth_len, suite.cipher_algo, cipher_len)
        except UnsupportedAlgorithm:
            assert not fits
        else:
            assert fits
            assert found is suite


def test_esp_masks_and_esp_suites_say_the_same_both_ways() -> None:
    masks = esp_masks()
    pairs = {(c, a) for c in IDS for a in IDS if accepted_esp(c, a)}
    # From suites to masks: every accepted pair is covered by the masks that E28 says to check.
    for cipher, auth in pairs:
        if auth == MacAlgo.NO_MAC:
            assert masks.aead >> cipher & 1
        else:
            assert masks.cipher >> cipher & 1
            assert masks.hmac >> auth & 1
    # From masks to suites: every advertised bit is usable in some accepted pair.
    for bit in IDS:
        assert (masks.aead >> bit & 1) == ((bit, 0) in pairs)
        assert (masks.cipher >> bit & 1) == any(c == bit and a for c, a in pairs)
        assert (masks.hmac >> bit & 1) == any(a == bit and a for _, a in pairs)
    assert masks.max_cipher_key == masks.max_auth_key == 32
    assert max(masks.cipher, masks.hmac) < 1 << 64
    assert masks.aead < 1 << 32


def test_ah_masks_and_ah_suites_say_the_same_both_ways() -> None:
    masks = ah_masks()
    assert masks.hmac == sum(1 << a for a in IDS if accepted_ah(a))
    assert (masks.cipher, masks.aead, masks.max_cipher_key, masks.max_auth_key) == (0, 0, 0, 32)


def test_the_masks_have_the_literal_values() -> None:
    assert esp_masks() == (
        1 << 0 | 1 << 3 | 1 << 4,
        1 << 2 | 1 << 4 | 1 << 26 | 1 << 41 | 1 << 49 | 1 << 53,
        1 << 1 | 1 << 2 | 1 << 3,
        32,
        32,
    )
    assert ah_masks().hmac == 1 << 2 | 1 << 4 | 1 << 26 | 1 << 41 | 1 << 53


@pytest.mark.parametrize(
    ("cipher", "auth"),
    [
        (CipherAlgo.NO_CIPHER, MacAlgo.NO_MAC),
        (CipherAlgo.AES_CTR, MacAlgo.NO_MAC),
        (CipherAlgo.ARC4, MacAlgo.HMAC_SHA_256),
        (CipherAlgo.AES_ECB, MacAlgo.HMAC_SHA_256),
        (CipherAlgo.DES_CBC, MacAlgo.HMAC_SHA_256),
        (CipherAlgo.DES3_CBC, MacAlgo.HMAC_SHA_256),
        (CipherAlgo.AES_XTS, MacAlgo.HMAC_SHA_256),
        (CipherAlgo.AES_CBC, MacAlgo.HMAC_MD5),
        (CipherAlgo.AES_CBC, MacAlgo.HMAC_SHA_224),
        (CipherAlgo.AES_CBC, MacAlgo.HMAC_SHA_384),
        (CipherAlgo.AES_CBC, MacAlgo.HMAC_SHA_512),
        (CipherAlgo.AES_CBC, MacAlgo.CMAC_3DES),
        (CipherAlgo.AES_CBC, MacAlgo.GMAC_AES),
        (CipherAlgo.AES_CBC, MacAlgo.CBCMAC_AES),
        (CipherAlgo.NO_CIPHER, MacAlgo.CBCMAC_AES),
        (CipherAlgo.NO_CIPHER, MacAlgo.HMAC_MD5),
        (AeadAlgo.GCM, MacAlgo.HMAC_SHA1),  # an AEAD with a MAC beside it (and ARC4 read as a cipher id)
        (1 << CipherAlgo.AES_CBC, MacAlgo.HMAC_SHA_256),  # E29: ids are values; 8 is 3DES_CBC
        (1 << 63, 1 << 63),
    ],
)
def test_what_rfc_8221_forbids_or_esp_does_not_define_is_refused(cipher: int, auth: int) -> None:
    assert not accepted_esp(cipher, auth)


def test_what_ah_does_not_define_is_refused() -> None:
    assert {a for a in IDS if accepted_ah(a)} == {int(s.auth_algo) for s in AH}
    with pytest.raises(UnsupportedAlgorithm, match="no AH suite"):
        ah_suite(MacAlgo.HMAC_SHA_256, 32, CipherAlgo.AES_CBC, 16)
    with pytest.raises(UnsupportedAlgorithm, match="cipher_key is 16"):
        ah_suite(MacAlgo.HMAC_SHA_256, 32, 0, 16)


@pytest.mark.parametrize("length", [20, 28, 36])
def test_key_and_salt_in_one_field_are_refused(length: int) -> None:
    """E31: the salt field is the only place of the salt."""
    with pytest.raises(UnsupportedAlgorithm, match=f"cipher_key is {length}"):
        esp_suite(AeadAlgo.GCM, 0, length, 0)


@pytest.mark.parametrize(("mac", "name"), [(41, "aes-gcm-16"), (49, "aes-ccm-16")])
def test_the_split_form_of_an_aead_is_the_same_suite(mac: int, name: str) -> None:
    """E28 (c): the key stands in cipher_key; auth_key is empty or repeats it."""
    suite = by_name(name)
    assert ALIASES[CipherAlgo.AES_CTR, mac] is suite
    assert suite.kind is Kind.AEAD
    for key in (16, 24, 32):
        assert esp_suite(CipherAlgo.AES_CTR, mac, key, 0) is suite
        assert esp_suite(CipherAlgo.AES_CTR, mac, key, key) is suite
        with pytest.raises(UnsupportedAlgorithm, match="repeat cipher_key"):
            esp_suite(CipherAlgo.AES_CTR, mac, key, 20)
    with pytest.raises(UnsupportedAlgorithm):
        esp_suite(CipherAlgo.AES_CTR, mac, 0, 0)
    with pytest.raises(UnsupportedAlgorithm):
        esp_suite(CipherAlgo.AES_CTR, mac, 20, 20)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedAlgorithm, match=r"'des'; known: aes-cbc\+aes-cmac-96, "):
        by_name("des")
    with pytest.raises(UnsupportedAlgorithm, match="no AH suite is called 'aes-gcm-16'"):
        by_name("aes-gcm-16", Protocol.AH)
