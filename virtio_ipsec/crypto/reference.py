"""Reference engine: the suites of the registry over the `cryptography` package.

A transform is one SA's keyed object. It knows octets, not packets: the caller brings SPI, sequence number, IV
and padded plaintext, and gets ciphertext and ICV. All lengths are octets, all numbers in network order.

The order on the way in is the same for every suite: check the form, check the ICV in constant time, and only
then produce plaintext.

**Wiping.** ``wipe`` zeroes the copies of keys and salt that this room holds and drops the keyed contexts. It
cannot reach the caller's ``bytes`` (immutable), nor the copies inside `cryptography` and OpenSSL, which free
theirs when the last reference goes. Python gives no stronger promise.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Protocol as Interface

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from virtio_ipsec.crypto.aeads import NonceAead
from virtio_ipsec.crypto.algorithms import Kind, Protocol, Suite, UnsupportedAlgorithm
from virtio_ipsec.crypto.macs import MACS
from virtio_ipsec.errors import IntegrityError, PacketError, Reason, VirtioIpsecError
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo

HEADER_LEN = 8
"""Octets of SPI || low half of the sequence number."""
SEQ_HI_LEN = 4
SALT_LEN = 4


class CryptoUsageError(VirtioIpsecError):
    """A transform called with sizes its suite does not have, or after ``wipe``: a mistake of the caller."""


class EspTransform(Interface):
    """Keyed ESP transform of one SA.

    ``header`` is SPI || low sequence number (8 octets); ``seq_hi`` the high half (4 octets) with ESN, else
    None; ``iv`` has ``suite.iv_len`` octets. A body is ciphertext || ICV; the IV is not part of it.
    """

    @property
    def suite(self) -> Suite:
        """What this transform was keyed for."""
        ...

    def seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> bytes:
        """Ciphertext || ICV of an already padded plaintext. Raises :class:`CryptoUsageError`."""
        ...

    def open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> bytes:
        """The padded plaintext.

        Raises ``IntegrityError`` when the ICV does not match, ``PacketError`` with ``Reason.MALFORMED`` when
        ``body`` is shorter than an ICV or not whole cipher blocks.
        """
        ...

    def wipe(self) -> None:
        """Drop the key material; every later ``seal`` and ``open`` raises :class:`CryptoUsageError`."""
        ...


class AhTransform(Interface):
    """Keyed AH transform of one SA, over octets whose mutable and ICV fields are zero (RFC 4302 3.3.3).

    With ESN the caller appends the high half of the sequence number to ``data`` (RFC 4302 3.3.3.2.2).
    """

    @property
    def suite(self) -> Suite:
        """What this transform was keyed for."""
        ...

    def icv(self, data: bytes, iv: bytes = b"") -> bytes:
        """Content of the ICV field, ``suite.icv_field_len`` octets: the tag, with GMAC IV || tag."""
        ...

    def verify(self, data: bytes, field: bytes) -> None:
        """Check a received ICV field, in constant time.

        Raises ``IntegrityError``, or ``PacketError`` with ``Reason.MALFORMED`` when the length is wrong.
        """
        ...

    def wipe(self) -> None:
        """Drop the key material; every later ``icv`` and ``verify`` raises :class:`CryptoUsageError`."""
        ...


def esp_transform(suite: Suite, cipher_key: bytes, auth_key: bytes, salt: bytes) -> EspTransform:
    """Key an ESP suite; ``salt`` is all 4 octets of the SA. Keys that do not fit: ``UnsupportedAlgorithm``.

    An AEAD accepts an ``auth_key`` equal to ``cipher_key``: the split form of E28 (c) may repeat the key.
    """
    if suite.kind is Kind.AEAD and auth_key:
        if not compare_digest(auth_key, cipher_key):
            raise UnsupportedAlgorithm(f"{suite.name}: auth_key must be empty or repeat cipher_key")
        auth_key = b""
    _check_keys(Protocol.ESP, suite, cipher_key, auth_key, salt)
    if suite.kind is Kind.AEAD:
        return _AeadTransform(suite, cipher_key, salt)
    if suite.kind is Kind.GMAC:
        return _GmacTransform(suite, auth_key, salt)
    return _CipherMacTransform(suite, cipher_key, auth_key, salt)


def ah_transform(suite: Suite, auth_key: bytes, salt: bytes) -> AhTransform:
    """Key an AH suite; ``salt`` is all 4 octets of the SA. Keys that do not fit: ``UnsupportedAlgorithm``."""
    _check_keys(Protocol.AH, suite, b"", auth_key, salt)
    if suite.kind is Kind.GMAC:
        return _AhGmacTransform(suite, auth_key, salt)
    return _AhMacTransform(suite, auth_key)


def _check_keys(protocol: Protocol, suite: Suite, cipher_key: bytes, auth_key: bytes, salt: bytes) -> None:
    if suite.protocol is not protocol:
        raise UnsupportedAlgorithm(f"{suite.name} ({suite.protocol}) is no {protocol} suite")
    lengths = len(cipher_key), len(auth_key), len(salt)
    if (
        lengths[0] not in suite.cipher_key_lens
        or lengths[1] not in suite.auth_key_lens
        or lengths[2] != SALT_LEN
    ):
        raise UnsupportedAlgorithm(
            "{} cannot be keyed with cipher_key {}, auth_key {}, salt {} octets".format(suite.name, *lengths)
        )


class _Keyed:
    """What every transform shares: the suite, the checks of a call, and the end of its life."""

    __slots__ = ("_alive", "_suite")

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._alive = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._suite.name}{'' if self._alive else ' wiped'}>"

    @property
    def suite(self) -> Suite:
        return self._suite

    def wipe(self) -> None:
        if self._alive:
            self._alive = False
            self._erase()

    def _erase(self) -> None:
        raise NotImplementedError

    def _check_iv(self, iv: bytes) -> None:
        if not self._alive:
            raise CryptoUsageError(f"{self._suite.name}: used after wipe")
        if len(iv) != self._suite.iv_len:
            raise CryptoUsageError(
                f"{self._suite.name}: IV is {len(iv)} octets, must be {self._suite.iv_len}"
            )


class _EspKeyed(_Keyed):
    __slots__ = ()

    def _check_seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> None:
        self._check_call(header, seq_hi, iv)
        if len(plaintext) % self._suite.pad_block:
            raise CryptoUsageError(f"{self._suite.name}: {len(plaintext)} octets of plaintext are not padded")

    def _check_open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> int:
        """Length of the ciphertext in ``body``."""
        self._check_call(header, seq_hi, iv)
        length = len(body) - self._suite.icv_len
        if length < 0 or length % self._suite.pad_block:
            raise PacketError(Reason.MALFORMED, f"{len(body)} octets are no body of {self._suite.name}")
        return length

    def _check_call(self, header: bytes, seq_hi: bytes | None, iv: bytes) -> None:
        self._check_iv(iv)
        if len(header) != HEADER_LEN or (seq_hi is not None and len(seq_hi) != SEQ_HI_LEN):
            raise CryptoUsageError("header must be 8 octets and seq_hi 4 (or None)")


def _aead_aad(header: bytes, seq_hi: bytes | None) -> bytes:
    """SPI || [high ||] low sequence number: RFC 4106 5, RFC 4309 5, RFC 7634 2.1."""
    return header if seq_hi is None else header[:4] + seq_hi + header[4:]


class _AeadTransform(_EspKeyed):
    """AES-GCM (RFC 4106), AES-CCM (RFC 4309), ChaCha20-Poly1305 (RFC 7634)."""

    __slots__ = ("_aead",)

    def __init__(self, suite: Suite, cipher_key: bytes, salt: bytes) -> None:
        super().__init__(suite)
        self._aead = NonceAead(suite.cipher_algo, cipher_key, salt[: suite.salt_len])

    def seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> bytes:
        self._check_seal(header, seq_hi, iv, plaintext)
        return self._aead.encrypt(iv, plaintext, _aead_aad(header, seq_hi))

    def open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> bytes:
        self._check_open(header, seq_hi, iv, body)
        return self._aead.decrypt(iv, body, _aead_aad(header, seq_hi))

    def _erase(self) -> None:
        self._aead.wipe()


class _GmacTransform(_EspKeyed):
    """ENCR_NULL_AUTH_AES_GMAC: nothing is encrypted, the AAD is SPI to next header (RFC 4543 3.3).

    The IV is part of it: RFC 4543 is unclear there, the example of draft-mcgrew-gcm-test-01 settles it.
    """

    __slots__ = ("_aead",)

    def __init__(self, suite: Suite, auth_key: bytes, salt: bytes) -> None:
        super().__init__(suite)
        self._aead = NonceAead(AeadAlgo.GCM, auth_key, salt)

    def seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> bytes:
        self._check_seal(header, seq_hi, iv, plaintext)
        return plaintext + self._aead.encrypt(iv, b"", _aead_aad(header, seq_hi) + iv + plaintext)

    def open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> bytes:
        length = self._check_open(header, seq_hi, iv, body)
        plaintext, icv = body[:length], body[length:]
        self._aead.decrypt(iv, icv, _aead_aad(header, seq_hi) + iv + plaintext)
        return plaintext

    def _erase(self) -> None:
        self._aead.wipe()


class _CipherMacTransform(_EspKeyed):
    """AES-CBC, AES-CTR or NULL with a MAC over header || IV || ciphertext [|| high] (RFC 4303 3.3.2.1)."""

    __slots__ = ("_key", "_mac", "_salt")

    def __init__(self, suite: Suite, cipher_key: bytes, auth_key: bytes, salt: bytes) -> None:
        super().__init__(suite)
        self._key = bytearray(cipher_key)
        self._salt = bytearray(salt[: suite.salt_len])
        self._mac = MACS[suite.auth_algo](auth_key)

    def seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> bytes:
        self._check_seal(header, seq_hi, iv, plaintext)
        cipher = self._cipher(iv)
        ciphertext = plaintext if cipher is None else cipher.encryptor().update(plaintext)
        return ciphertext + self._icv(header, seq_hi, iv, ciphertext)

    def open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> bytes:
        length = self._check_open(header, seq_hi, iv, body)
        ciphertext, icv = body[:length], body[length:]
        if not compare_digest(self._icv(header, seq_hi, iv, ciphertext), icv):
            raise IntegrityError
        cipher = self._cipher(iv)
        return ciphertext if cipher is None else cipher.decryptor().update(ciphertext)

    def _icv(self, header: bytes, seq_hi: bytes | None, iv: bytes, ciphertext: bytes) -> bytes:
        return self._mac.tag(header + iv + ciphertext + (seq_hi or b""))[: self._suite.icv_len]

    def _cipher(self, iv: bytes) -> Cipher[modes.CBC | modes.CTR] | None:
        if self._suite.cipher_algo == CipherAlgo.NO_CIPHER:
            return None
        if self._suite.cipher_algo == CipherAlgo.AES_CBC:
            return Cipher(algorithms.AES(self._key), modes.CBC(iv))
        # RFC 3686 4: nonce || IV || block counter that starts at one.
        return Cipher(algorithms.AES(self._key), modes.CTR(bytes(self._salt) + iv + b"\0\0\0\1"))

    def _erase(self) -> None:
        self._key[:] = bytes(len(self._key))
        self._salt[:] = bytes(len(self._salt))
        self._mac.wipe()


class _AhKeyed(_Keyed):
    __slots__ = ()

    def _check_verify(self, field: bytes) -> None:
        if len(field) != self._suite.icv_field_len:
            raise PacketError(
                Reason.MALFORMED,
                f"{self._suite.name}: ICV field is {len(field)} octets, must be {self._suite.icv_field_len}",
            )


class _AhMacTransform(_AhKeyed):
    __slots__ = ("_mac",)

    def __init__(self, suite: Suite, auth_key: bytes) -> None:
        super().__init__(suite)
        self._mac = MACS[suite.auth_algo](auth_key)

    def icv(self, data: bytes, iv: bytes = b"") -> bytes:
        self._check_iv(iv)
        return self._mac.tag(data)[: self._suite.icv_len]

    def verify(self, data: bytes, field: bytes) -> None:
        self._check_verify(field)
        if not compare_digest(self.icv(data), field):
            raise IntegrityError

    def _erase(self) -> None:
        self._mac.wipe()


class _AhGmacTransform(_AhKeyed):
    """AUTH_AES_GMAC: the ICV field is IV || tag, both zero in the octets authenticated (RFC 4543 4)."""

    __slots__ = ("_aead",)

    def __init__(self, suite: Suite, auth_key: bytes, salt: bytes) -> None:
        super().__init__(suite)
        self._aead = NonceAead(AeadAlgo.GCM, auth_key, salt)

    def icv(self, data: bytes, iv: bytes = b"") -> bytes:
        self._check_iv(iv)
        return iv + self._aead.encrypt(iv, b"", data)

    def verify(self, data: bytes, field: bytes) -> None:
        self._check_verify(field)
        iv, icv = field[: self._suite.iv_len], field[self._suite.iv_len :]
        self._check_iv(iv)
        self._aead.decrypt(iv, icv, data)

    def _erase(self) -> None:
        self._aead.wipe()
