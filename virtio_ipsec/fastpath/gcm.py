"""AES-GCM engines of csrc/: which ones this machine has, which one is used, and batches for tests and tools.

Packets do not come this way: the C pipeline calls the same kernels without Python in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native

IV_LEN, MAX_AAD, MAX_LEN = 12, 12, 65536
KEY_LENS, TAG_LENS = (16, 24, 32), (8, 12, 16)


def engine_names() -> tuple[str, ...]:
    """Names of the engines that this machine can run, slowest first. Empty without the extension."""
    if not native.available():
        return ()
    ffi, lib = native.extension()
    usable = (isa for isa in range(lib.VIPSEC_ISA_COUNT) if lib.vipsec_gcm_engine(isa) != ffi.NULL)
    return tuple(_text(lib.vipsec_isa_name(isa)) for isa in usable)


def libcrypto_version() -> str:
    """The libcrypto behind the ``evp`` engine; empty when there is none."""
    ffi, lib = native.extension()
    version = lib.vipsec_libcrypto_version()
    return "" if version == ffi.NULL else _text(version)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of a batch: 12 bytes of IV, at most 12 of AAD, payload, length of the tag.

    For :meth:`Engine.seal` the payload is plaintext; for :meth:`Engine.open` ciphertext followed by the tag.
    """

    key: Key
    iv: bytes
    aad: bytes
    payload: bytes = field(repr=False)
    tag_len: int = 16


class Key:
    """A key made ready for one engine; wiped when the object goes. Never shows its bytes."""

    __slots__ = ("_handle", "engine")

    def __init__(self, engine: Engine, material: bytes) -> None:
        if len(material) not in KEY_LENS:
            raise ConfigError(f"an AES key has 16, 24 or 32 bytes, not {len(material)}")
        ffi, lib = native.extension()
        handle = lib.vipsec_gcm_key_new(engine.handle, material, len(material))
        if handle == ffi.NULL:
            raise MemoryError
        self.engine = engine
        self._handle = ffi.gc(handle, lib.vipsec_gcm_key_free)

    @property
    def handle(self) -> Any:
        """``struct vipsec_gcm_key *``, valid as long as this object."""
        return self._handle


class Engine:
    """One instruction set's AES-GCM kernels.

    Without a name: the one that ``VIRTIO_IPSEC_ISA`` forces, else the best of this machine. ConfigError when that
    name, or the one given, is unknown or cannot run here.
    """

    __slots__ = ("handle", "name")

    def __init__(self, name: str | None = None) -> None:
        ffi, lib = native.extension()
        if name is None:
            self.handle = lib.vipsec_gcm_default()
            wanted = "the engine that VIRTIO_IPSEC_ISA names"
        else:
            isas = {_text(lib.vipsec_isa_name(isa)): isa for isa in range(lib.VIPSEC_ISA_COUNT)}
            self.handle = lib.vipsec_gcm_engine(isas.get(name, -1))
            wanted = f"engine {name!r}"
        if self.handle == ffi.NULL:
            raise ConfigError(
                f"{wanted} cannot run here; this machine has {', '.join(engine_names()) or 'none'}"
            )
        self.name = _text(lib.vipsec_isa_name(lib.vipsec_gcm_isa(self.handle)))

    def __repr__(self) -> str:
        return f"Engine({self.name!r})"

    def key(self, material: bytes) -> Key:
        """Make an AES key of 16, 24 or 32 bytes ready."""
        return Key(self, material)

    def seal(self, packets: Sequence[Packet]) -> list[bytes]:
        """Encrypt a batch: ciphertext followed by the tag, for each packet."""
        return [body for body in self._run(packets, opening=False) if body is not None]

    def open(self, packets: Sequence[Packet]) -> list[bytes | None]:
        """Verify and decrypt a batch: the plaintext, or None for a packet that is not authentic."""
        return self._run(packets, opening=True)

    def _run(self, packets: Sequence[Packet], *, opening: bool) -> list[bytes | None]:
        ffi, lib = native.extension()
        lengths = [len(p.payload) - (p.tag_len if opening else 0) for p in packets]
        for packet, length in zip(packets, lengths, strict=True):
            _check(packet, length)
        # One buffer: payload and tag of each packet behind one another.
        buffer = ffi.new("uint8_t[]", sum(lengths) + sum(p.tag_len for p in packets) + 1)
        ops = ffi.new("struct vipsec_gcm_op[]", len(packets))
        at = 0
        for op, packet, length in zip(ops, packets, lengths, strict=True):
            ffi.memmove(buffer + at, packet.payload, len(packet.payload))
            op.key, op.out, op.tag = packet.key.handle, buffer + at, buffer + at + length
            setattr(op, "in", buffer + at)
            op.len, op.aad_len, op.tag_len = length, len(packet.aad), packet.tag_len
            op.iv, op.aad = packet.iv, packet.aad
            at += length + packet.tag_len
        (lib.vipsec_gcm_open if opening else lib.vipsec_gcm_seal)(self.handle, ops, len(packets))
        return [self._result(op, opening=opening) for op in ops]

    def _result(self, op: Any, *, opening: bool) -> bytes | None:
        ffi, lib = native.extension()
        if op.result == lib.VIPSEC_GCM_BAD_TAG:
            return None
        if op.result != lib.VIPSEC_GCM_OK:
            raise ConfigError(f"{self!r} refused a packet: its key belongs to another engine")
        return bytes(ffi.buffer(op.out, op.len + (0 if opening else op.tag_len)))


def _check(packet: Packet, length: int) -> None:
    if len(packet.iv) != IV_LEN or len(packet.aad) > MAX_AAD:
        raise ConfigError(
            f"IV of {len(packet.iv)} and AAD of {len(packet.aad)} bytes: {IV_LEN}, at most {MAX_AAD}"
        )
    if packet.tag_len not in TAG_LENS or not 0 <= length <= MAX_LEN:
        raise ConfigError(f"tag of {packet.tag_len} bytes on a payload of {length}")


def _text(value: Any) -> str:
    ffi, _ = native.extension()
    text = ffi.string(value)
    return text.decode() if isinstance(text, bytes) else text
