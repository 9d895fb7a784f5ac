"""Keyed MACs of the registry: HMAC and CMAC from `cryptography`, AES-XCBC-MAC (RFC 3566) written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from virtio_ipsec.wire.numbers import MacAlgo

_BLOCK = 16


class Mac(Protocol):
    """A keyed MAC. The suite says how many leading octets of :meth:`tag` go on the wire."""

    def tag(self, data: bytes) -> bytes:
        """The whole MAC of ``data``."""
        ...

    def wipe(self) -> None:
        """Drop the key material; the object is unusable afterwards."""
        ...


class _ContextMac:
    """A `cryptography` MAC: keyed once, copied for each message."""

    __slots__ = ("_context",)

    def __init__(self, context: HMAC | CMAC) -> None:
        self._context = context

    def tag(self, data: bytes) -> bytes:
        one = self._context.copy()
        one.update(data)
        return one.finalize()

    def wipe(self) -> None:
        self._context.finalize()  # a finalized context has let go of its keyed state


class XcbcMac:
    """AES-XCBC-MAC with a 16-octet key. RFC 3566 keeps 12 of its 16 octets."""

    __slots__ = ("_k1", "_k2", "_k3")

    def __init__(self, key: bytes | bytearray) -> None:
        derive = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # noqa: S305 - single blocks, RFC 3566 4.1
        self._k1, self._k2, self._k3 = (bytearray(derive.update(bytes([n]) * _BLOCK)) for n in (1, 2, 3))

    def tag(self, data: bytes) -> bytes:
        """All 16 octets of the MAC.

        CBC under K1 with a zero IV is the chaining that RFC 3566 spells out; before that the last block is
        masked with K2 when it is whole, else padded with 10..0 and masked with K3.
        """
        cut = max(0, (len(data) - 1) // _BLOCK * _BLOCK)
        head, last = data[:cut], data[cut:]
        mask = self._k2
        if len(last) < _BLOCK:
            last = (last + b"\x80").ljust(_BLOCK, b"\0")
            mask = self._k3
        masked = bytes(a ^ b for a, b in zip(last, mask, strict=True))
        chain = Cipher(algorithms.AES128(self._k1), modes.CBC(bytes(_BLOCK))).encryptor()
        return chain.update(head + masked)[-_BLOCK:]

    def wipe(self) -> None:
        for key in (self._k1, self._k2, self._k3):
            key[:] = bytes(_BLOCK)


MACS: Mapping[int, Callable[[bytes | bytearray], Mac]] = MappingProxyType(
    {
        # SHA-1 as HMAC only: RFC 8221 6 keeps HMAC-SHA1-96 at MUST-.
        MacAlgo.HMAC_SHA1: lambda key: _ContextMac(HMAC(key, SHA1())),  # noqa: S303
        MacAlgo.HMAC_SHA_256: lambda key: _ContextMac(HMAC(key, SHA256())),
        MacAlgo.CMAC_AES: lambda key: _ContextMac(CMAC(algorithms.AES128(key))),
        MacAlgo.XCBC_AES: XcbcMac,
    }
)
"""MAC id -> constructor from the key. Key lengths are the registry's business."""
