"""Keyed AEADs of the registry, over `cryptography`: nonce = salt || IV, 16-octet tag after the ciphertext."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from virtio_ipsec.errors import IntegrityError
from virtio_ipsec.wire.numbers import AeadAlgo

TAG_LEN = 16


class _Engine(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


_ENGINES: Mapping[int, Callable[[bytes], _Engine]] = MappingProxyType(
    {
        AeadAlgo.GCM: AESGCM,
        AeadAlgo.CCM: lambda key: AESCCM(key, tag_length=TAG_LEN),
        AeadAlgo.CHACHA20_POLY1305: ChaCha20Poly1305,
    }
)


class NonceAead:
    """One keyed AEAD whose nonce is salt || IV (RFC 4106 4, RFC 4309 4, RFC 4543 3.2, RFC 7634 2).

    ``salt`` holds the octets that enter the nonce: 4, for CCM 3. Lengths are the registry's business.
    """

    __slots__ = ("_engine", "_salt")

    def __init__(self, aead_algo: int, key: bytes, salt: bytes) -> None:
        self._engine = _ENGINES[aead_algo](key)
        self._salt = bytearray(salt)

    def encrypt(self, iv: bytes, data: bytes, aad: bytes) -> bytes:
        """Ciphertext || tag."""
        return self._engine.encrypt(bytes(self._salt) + iv, data, aad)

    def decrypt(self, iv: bytes, data: bytes, aad: bytes) -> bytes:
        """The plaintext of ``data`` = ciphertext || tag. Raises ``IntegrityError``."""
        try:
            return self._engine.decrypt(bytes(self._salt) + iv, data, aad)
        except InvalidTag:
            raise IntegrityError from None

    def wipe(self) -> None:
        """Drop the key material; the object is unusable afterwards."""
        del self._engine
        self._salt[:] = bytes(len(self._salt))
