"""Ranges of the contract in vipsec.h, keys, secrets, threads."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import gcm, native

ENGINES = gcm.engine_names()
each_engine = pytest.mark.parametrize("engine", [gcm.Engine(name) for name in ENGINES], ids=list(ENGINES))


def prepared(engine: gcm.Engine, **changes: int) -> tuple[Any, list[Any]]:
    """Two operations; the first one has fields as `changes` says. Also what keeps their memory alive."""
    ffi, _ = native.extension()
    ops, key = ffi.new("struct vipsec_gcm_op[]", 2), engine.key(bytes(16))
    alive: list[Any] = [key]
    for op in ops:
        data, tag = ffi.new("uint8_t[]", b"\x11" * 40), ffi.new("uint8_t[]", b"\x22" * 32)
        alive += [data, tag]
        op.key, op.out, op.tag, op.len, op.aad_len, op.tag_len = key.handle, data, tag, 40, 8, 16
        setattr(op, "in", data)
    for name, value in changes.items():
        setattr(ops[0], name, value)
    return ops, alive


@each_engine
@pytest.mark.parametrize(
    "changes",
    [
        *({"tag_len": n} for n in range(256) if n not in gcm.TAG_LENS),
        *({"aad_len": n} for n in range(13, 256, 9)),
        {"len": gcm.MAX_LEN + 1},
        {"len": 0xFFFFFFFF},
    ],
    ids=str,
)
def test_fields_outside_their_range_are_refused_and_nothing_is_written(
    engine: gcm.Engine, changes: dict[str, int]
) -> None:
    ffi, lib = native.extension()
    for call in (lib.vipsec_gcm_seal, lib.vipsec_gcm_open):
        ops, alive = prepared(engine, **changes)
        before = [bytes(ffi.buffer(memory)) for memory in alive[1:3]]
        call(engine.handle, ops, 2)
        assert ops[0].result == lib.VIPSEC_GCM_REFUSED
        assert [bytes(ffi.buffer(memory)) for memory in alive[1:3]] == before
        assert ops[1].result == (lib.VIPSEC_GCM_OK if call == lib.vipsec_gcm_seal else lib.VIPSEC_GCM_BAD_TAG)


@pytest.mark.parametrize("mine", ENGINES)
@pytest.mark.parametrize("other", ENGINES)
def test_a_key_serves_only_the_engine_that_made_it(mine: str, other: str) -> None:
    engine, packet = gcm.Engine(mine), gcm.Packet(gcm.Engine(other).key(bytes(16)), bytes(12), b"", b"plain")
    if mine == other:
        assert engine.seal([packet]) == [AESGCM(bytes(16)).encrypt(bytes(12), b"plain", b"")]
    else:
        with pytest.raises(ConfigError, match="another engine"):
            engine.seal([packet])


@each_engine
@pytest.mark.parametrize("size", [0, 1, 15, 17, 23, 25, 31, 33, 64])
def test_other_key_sizes_are_refused(engine: gcm.Engine, size: int) -> None:
    ffi, lib = native.extension()
    assert lib.vipsec_gcm_key_new(engine.handle, bytes(size), size) == ffi.NULL
    with pytest.raises(ConfigError, match="16, 24 or 32"):
        engine.key(bytes(size))


def test_freeing_no_key_is_allowed() -> None:
    ffi, lib = native.extension()
    lib.vipsec_gcm_key_free(ffi.NULL)


@each_engine
@pytest.mark.parametrize(
    "packet",
    [
        {"iv": bytes(11)},
        {"iv": bytes(16)},
        {"aad": bytes(13)},
        {"tag_len": 4},
        {"payload": bytes(gcm.MAX_LEN + 1)},
    ],
    ids=lambda p: next(iter(p)),
)
def test_the_python_face_refuses_before_it_calls(engine: gcm.Engine, packet: dict[str, Any]) -> None:
    fields = {"iv": bytes(12), "aad": bytes(8), "payload": b"data", **packet}
    with pytest.raises(ConfigError):
        engine.seal([gcm.Packet(engine.key(bytes(16)), **fields)])


@each_engine
def test_a_body_shorter_than_its_tag_is_refused(engine: gcm.Engine) -> None:
    with pytest.raises(ConfigError):
        engine.open([gcm.Packet(engine.key(bytes(16)), bytes(12), b"", bytes(15))])


@each_engine
def test_nothing_shows_a_key(engine: gcm.Engine) -> None:
    material = bytes(range(16, 32))
    key = engine.key(material)
    packet = gcm.Packet(key, bytes(12), b"", b"secret payload")
    for text in (repr(key), repr(packet), repr(engine)):
        assert material.hex() not in text
        assert repr(material)[2:-1] not in text
        assert "secret payload" not in text


@each_engine
def test_a_key_is_used_by_several_threads_at_once(engine: gcm.Engine) -> None:
    material = bytes(range(32))
    key, aead = engine.key(material), AESGCM(material)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rnd = random.Random(seed)
        for _ in range(20):
            packets = [
                gcm.Packet(key, rnd.randbytes(12), rnd.randbytes(8), rnd.randbytes(rnd.randrange(1500)))
                for _ in range(32)
            ]
            made = engine.seal(packets)
            if made != [aead.encrypt(p.iv, p.payload, p.aad) for p in packets]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@each_engine
def test_keys_come_and_go(engine: gcm.Engine) -> None:
    for number in range(2000):
        engine.key(number.to_bytes(16, "big"))
    gc.collect()
    assert engine.seal([gcm.Packet(engine.key(bytes(16)), bytes(12), b"", b"")])


def test_wipe_leaves_zeros_and_touches_nothing_else() -> None:
    ffi, lib = native.extension()
    for size in (0, 1, 7, 64, 100):
        memory = ffi.new("uint8_t[]", b"\xff" * 128)
        lib.vipsec_wipe(memory + 8, size)
        assert bytes(ffi.buffer(memory, 128)) == (b"\xff" * 8 + bytes(size)).ljust(128, b"\xff")


def test_equal_sees_every_bit() -> None:
    _, lib = native.extension()
    for size in (0, 1, 8, 16, 33):
        a = bytes(range(1, size + 1))
        assert lib.vipsec_equal(a, a, size) == 1
        for bit in range(8 * size):
            b = bytearray(a)
            b[bit // 8] ^= 1 << bit % 8
            assert lib.vipsec_equal(a, bytes(b), size) == 0


def test_the_compiled_operation_has_the_layout_that_the_contract_states() -> None:
    ffi, _ = native.extension()
    assert ffi.sizeof("struct vipsec_gcm_op") == 64
    fields = ("key", "in", "out", "tag", "len", "aad_len", "tag_len", "result", "reserved", "iv", "aad")
    offsets = [ffi.offsetof("struct vipsec_gcm_op", name) for name in fields]
    assert offsets == [0, 8, 16, 24, 32, 36, 37, 38, 39, 40, 52]
