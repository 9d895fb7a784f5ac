"""Algorithm registry: which (cipher, MAC, AEAD) ids make an ESP or AH SA, and with what sizes.

One record per combination. Everything else that names algorithms (the capability masks, the checks of CREATE,
the names in TOML files) is derived from this table, so an algorithm cannot be advertised and then refused.

What is left out, and why:

* RFC 8221: DES and HMAC-MD5 are MUST NOT, 3DES is SHOULD NOT; a cipher without a MAC (NULL included) and an
  AEAD with a MAC beside it are MUST NOT. ARC4, ECB, XTS, F8 and telecom algorithms have no ESP definition.
* HMAC-SHA-384-192 and HMAC-SHA-512-256 need keys of 48 and 64 octets (RFC 4868 2.1.1); the SA object holds 32
  (E27).
* HMAC-SHA-224 and stand-alone CBC-MAC are defined for neither ESP nor AH.
* GCM and CCM with 8- or 12-octet ICVs cannot be expressed: the ICV length is no parameter of the SA (E30).

Ids are values, not masks (E29). An AEAD id travels in ``cipher_algo`` with ``auth_algo`` zero (E28 a); the
split forms AES_CTR + GMAC_AES and AES_CTR + CBCMAC_AES are accepted as other names of GCM and CCM (E28 c).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, MacAlgo


class UnsupportedAlgorithm(VirtioIpsecError):
    """Algorithm ids or keys that form no suite of this registry. The message names ids and lengths only."""


class Protocol(StrEnum):
    """The IPsec protocol that a suite is defined for."""

    ESP = "esp"
    AH = "ah"


class Kind(StrEnum):
    """How a suite turns octets into octets: the one thing an engine has to know."""

    AEAD = "aead"
    """One key, one pass: RFC 4106, 4309, 7634."""
    CIPHER_MAC = "cipher+mac"
    """Encrypt, then MAC: RFC 4303 3.3.2.1."""
    GMAC = "gmac"
    """Nothing is encrypted, everything is additional data of GCM: RFC 4543."""
    MAC = "mac"
    """AH with a plain MAC: RFC 4302 3.3.3."""


@dataclass(frozen=True, slots=True)
class Suite:
    """One usable combination. All lengths are octets.

    ``icv_len`` is the tag alone. In AH with GMAC the ICV field also holds the IV: see ``icv_field_len``.
    ``salt_len`` leading octets of the SA's 4-octet salt enter the nonce (E24, E31); the others are ignored.
    ``pad_block`` is what the cipher asks of the plaintext length; ESP itself asks for 4 (RFC 4303 2.4).
    ``counter_iv``: an IV must never repeat under one key, so it is a counter (E70); else unpredictable.
    """

    name: str
    protocol: Protocol
    kind: Kind
    rfc: str
    cipher_algo: int
    auth_algo: int
    cipher_key_lens: frozenset[int]
    auth_key_lens: frozenset[int]
    iv_len: int
    icv_len: int
    salt_len: int
    pad_block: int
    counter_iv: bool

    @property
    def icv_field_len(self) -> int:
        """Octets of the ICV field: the tag, and for AH with GMAC the IV before it (RFC 4543 4)."""
        return self.icv_len + (self.iv_len if self.protocol is Protocol.AH else 0)

    @property
    def alignment(self) -> int:
        """Octets that payload + padding + pad length + next header must be a multiple of (RFC 4303 2.4)."""
        return max(4, self.pad_block)

    @property
    def aead_algo(self) -> int:
        """The id as it stands in ``aead_algo`` masks; 0 (NO_AEAD) when this suite has no such id."""
        return self.cipher_algo if self.kind is Kind.AEAD else AeadAlgo.NO_AEAD


class AlgorithmMasks(NamedTuple):
    """The algorithm part of ``virtio_crypto_ipsec_mode_cap``; key lengths in octets."""

    cipher: int
    hmac: int
    aead: int
    max_cipher_key: int
    max_auth_key: int


class _Cipher(NamedTuple):
    name: str
    rfc: str
    algo: int
    key_lens: frozenset[int]
    iv_len: int
    salt_len: int
    pad_block: int
    counter_iv: bool


class _Mac(NamedTuple):
    name: str
    rfc: str
    algo: int
    key_len: int
    icv_len: int


_NO_KEY = frozenset({0})
_AES_KEYS = frozenset({16, 24, 32})

_AEADS = (
    # name, RFC, id, key lengths, salt length
    ("aes-gcm-16", "RFC 4106", AeadAlgo.GCM, _AES_KEYS, 4),
    ("aes-ccm-16", "RFC 4309", AeadAlgo.CCM, _AES_KEYS, 3),
    ("chacha20-poly1305", "RFC 7634", AeadAlgo.CHACHA20_POLY1305, frozenset({32}), 4),
)
_CIPHERS = (
    _Cipher("aes-cbc", "RFC 3602", CipherAlgo.AES_CBC, _AES_KEYS, 16, 0, 16, False),
    _Cipher("aes-ctr", "RFC 3686", CipherAlgo.AES_CTR, _AES_KEYS, 8, 4, 1, True),
    _Cipher("null", "RFC 2410", CipherAlgo.NO_CIPHER, _NO_KEY, 0, 0, 1, False),
)
_MACS = (
    _Mac("hmac-sha1-96", "RFC 2404", MacAlgo.HMAC_SHA1, 20, 12),
    _Mac("hmac-sha2-256-128", "RFC 4868", MacAlgo.HMAC_SHA_256, 32, 16),
    _Mac("aes-cmac-96", "RFC 4494", MacAlgo.CMAC_AES, 16, 12),
    _Mac("aes-xcbc-96", "RFC 3566", MacAlgo.XCBC_AES, 16, 12),
)


def _suites() -> Iterable[Suite]:
    for name, rfc, aead, key_lens, salt_len in _AEADS:
        yield Suite(
            name=name, protocol=Protocol.ESP, kind=Kind.AEAD, rfc=rfc,
            cipher_algo=aead, auth_algo=MacAlgo.NO_MAC, cipher_key_lens=key_lens, auth_key_lens=_NO_KEY,
            iv_len=8, icv_len=16, salt_len=salt_len, pad_block=1, counter_iv=True,
        )  # fmt: skip
    for protocol in Protocol:
        yield Suite(
            name="aes-gmac", protocol=protocol, kind=Kind.GMAC, rfc="RFC 4543",
            cipher_algo=CipherAlgo.NO_CIPHER, auth_algo=MacAlgo.GMAC_AES,
            cipher_key_lens=_NO_KEY, auth_key_lens=_AES_KEYS,
            iv_len=8, icv_len=16, salt_len=4, pad_block=1, counter_iv=True,
        )  # fmt: skip
    for mac in _MACS:
        for cipher in _CIPHERS:
            yield Suite(
                name=f"{cipher.name}+{mac.name}", protocol=Protocol.ESP, kind=Kind.CIPHER_MAC,
                rfc=f"{cipher.rfc}, {mac.rfc}", cipher_algo=cipher.algo, auth_algo=mac.algo,
                cipher_key_lens=cipher.key_lens, auth_key_lens=frozenset({mac.key_len}),
                iv_len=cipher.iv_len, icv_len=mac.icv_len, salt_len=cipher.salt_len,
                pad_block=cipher.pad_block, counter_iv=cipher.counter_iv,
            )  # fmt: skip
        yield Suite(
            name=mac.name, protocol=Protocol.AH, kind=Kind.MAC, rfc=mac.rfc,
            cipher_algo=CipherAlgo.NO_CIPHER, auth_algo=mac.algo,
            cipher_key_lens=_NO_KEY, auth_key_lens=frozenset({mac.key_len}),
            iv_len=0, icv_len=mac.icv_len, salt_len=0, pad_block=1, counter_iv=False,
        )  # fmt: skip


SUITES: tuple[Suite, ...] = tuple(_suites())

_BY_IDS = {(s.protocol, s.cipher_algo, s.auth_algo): s for s in SUITES}
_BY_NAME = {(s.protocol, s.name): s for s in SUITES}

ALIASES: dict[tuple[int, int], Suite] = {
    (CipherAlgo.AES_CTR, MacAlgo.GMAC_AES): _BY_NAME[Protocol.ESP, "aes-gcm-16"],
    (CipherAlgo.AES_CTR, MacAlgo.CBCMAC_AES): _BY_NAME[Protocol.ESP, "aes-ccm-16"],
}
"""E28 (c): (cipher_algo, auth_algo) of the split AEADs -> the suite they mean. The key is in ``cipher_key``;
``auth_key`` is empty or repeats it."""


@cache
def esp_suite(cipher_algo: int, auth_algo: int, cipher_key_len: int, auth_key_len: int) -> Suite:
    """The suite of an ESP SA; key lengths in octets. Else ``UnsupportedAlgorithm``."""
    alias = ALIASES.get((cipher_algo, auth_algo))
    if alias is not None:
        if auth_key_len not in (0, cipher_key_len):
            raise UnsupportedAlgorithm(
                f"{alias.name} written as cipher {cipher_algo} + auth {auth_algo}: "
                f"auth_key is {auth_key_len} octets, must be empty or repeat cipher_key"
            )
        return _checked(alias, cipher_key_len, 0)
    suite = _BY_IDS.get((Protocol.ESP, cipher_algo, auth_algo))
    if suite is None:
        raise UnsupportedAlgorithm(f"no ESP suite has cipher_algo {cipher_algo} with auth_algo {auth_algo}")
    return _checked(suite, cipher_key_len, auth_key_len)


def ah_suite(auth_algo: int, auth_key_len: int, cipher_algo: int = 0, cipher_key_len: int = 0) -> Suite:
    """The suite of an AH SA, which has no cipher. Else ``UnsupportedAlgorithm``."""
    suite = _BY_IDS.get((Protocol.AH, cipher_algo, auth_algo))
    if suite is None:
        raise UnsupportedAlgorithm(f"no AH suite has cipher_algo {cipher_algo} with auth_algo {auth_algo}")
    return _checked(suite, cipher_key_len, auth_key_len)


def by_name(name: str, protocol: Protocol = Protocol.ESP) -> Suite:
    """The suite with this name, e.g. ``"aes-cbc+hmac-sha2-256-128"``. Else ``UnsupportedAlgorithm``."""
    try:
        return _BY_NAME[protocol, name]
    except KeyError:
        known = ", ".join(sorted(s.name for s in SUITES if s.protocol is protocol))
        raise UnsupportedAlgorithm(
            f"no {protocol.upper()} suite is called {name!r}; known: {known}"
        ) from None


def esp_masks() -> AlgorithmMasks:
    """Capability masks of the ESP modes. Bit 0 of ``cipher`` is NO_CIPHER, NULL encryption (RFC 2410).

    The ids of the aliases are in the masks, since the SA is checked against them (E28).
    """
    suites = [s for s in SUITES if s.protocol is Protocol.ESP]
    split = {(s.cipher_algo, s.auth_algo) for s in suites if s.kind is not Kind.AEAD} | ALIASES.keys()
    return AlgorithmMasks(
        cipher=_mask(cipher for cipher, _ in split),
        hmac=_mask(auth for _, auth in split),
        aead=_mask(s.aead_algo for s in suites if s.kind is Kind.AEAD),
        max_cipher_key=max(max(s.cipher_key_lens) for s in suites),
        max_auth_key=max(max(s.auth_key_lens) for s in suites),
    )


def ah_masks() -> AlgorithmMasks:
    """Capability masks of the AH modes: MACs only."""
    suites = [s for s in SUITES if s.protocol is Protocol.AH]
    return AlgorithmMasks(
        cipher=0,
        hmac=_mask(s.auth_algo for s in suites),
        aead=0,
        max_cipher_key=0,
        max_auth_key=max(max(s.auth_key_lens) for s in suites),
    )


def _mask(ids: Iterable[int]) -> int:
    mask = 0
    for number in ids:
        mask |= 1 << number
    return mask


def _checked(suite: Suite, cipher_key_len: int, auth_key_len: int) -> Suite:
    if cipher_key_len not in suite.cipher_key_lens:
        what, length, allowed = "cipher_key", cipher_key_len, suite.cipher_key_lens
    elif auth_key_len not in suite.auth_key_lens:
        what, length, allowed = "auth_key", auth_key_len, suite.auth_key_lens
    else:
        return suite
    lengths = "/".join(map(str, sorted(allowed)))
    raise UnsupportedAlgorithm(f"{suite.name}: {what} is {length} octets, must be {lengths}")
