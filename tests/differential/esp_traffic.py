"""Random traffic for ESP in Python and in C side by side: SAs, packets, damage, changes, and the comparison.

A :class:`Rivalry` holds a set of SAs twice. Each of its steps gives both the same batch and compares every byte of
every result, every verdict, every counter, and that nothing outside a packet was written.
"""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from virtio_ipsec.crypto.algorithms import Suite, by_name
from virtio_ipsec.crypto.reference import EspTransform, esp_transform
from virtio_ipsec.errors import IntegrityError, PacketError, Reason
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.esp import FastInboundSa, FastOutboundSa, FastSaTable
from virtio_ipsec.fastpath.gcm import Engine
from virtio_ipsec.ipsec import ip, process
from virtio_ipsec.ipsec.params import BadSaParameters, SaParams
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

GCM = by_name("aes-gcm-16")
TRANSPORT_OPTIONS = IpsecOption.ESN | IpsecOption.UDP_ENCAP | IpsecOption.SA_LIFETIME
GUARD = 0xA5


class TruncatedGcm(EspTransform):
    """AES-GCM with the ICV of 8 or 12 octets that RFC 4106 allows and virtio has no id for."""

    def __init__(self, suite: Suite, key: bytes, salt: bytes) -> None:
        self._suite, self._key, self._salt = suite, key, salt

    @property
    def suite(self) -> Suite:
        return self._suite

    def seal(self, header: bytes, seq_hi: bytes | None, iv: bytes, plaintext: bytes) -> bytes:
        encryptor = Cipher(algorithms.AES(self._key), modes.GCM(self._salt + iv)).encryptor()
        encryptor.authenticate_additional_data(header[:4] + (seq_hi or b"") + header[4:])
        return encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag[: self._suite.icv_len]

    def open(self, header: bytes, seq_hi: bytes | None, iv: bytes, body: bytes) -> bytes:
        cut = len(body) - self._suite.icv_len
        mode = modes.GCM(self._salt + iv, body[cut:], min_tag_length=8)
        decryptor = Cipher(algorithms.AES(self._key), mode).decryptor()
        decryptor.authenticate_additional_data(header[:4] + (seq_hi or b"") + header[4:])
        try:
            return decryptor.update(body[:cut]) + decryptor.finalize()
        except InvalidTag:
            raise IntegrityError from None

    def wipe(self) -> None:
        self._key = b""


# ---- drawing packets ----------------------------------------------------------------------------


def length(draw: random.Random) -> int:
    """0 to 65,535 octets, short ones most often."""
    kind = draw.random()
    if kind < 0.75:
        return draw.randrange(140)
    return draw.randrange(1600) if kind < 0.995 else draw.randrange(65536)


def extension(draw: random.Random, kind: int, next_header: int) -> bytes:
    if kind == ip.FRAGMENT:
        word = 0 if draw.random() < 0.9 else draw.getrandbits(16)
        return struct.pack("!BBHI", next_header, draw.choice((0, 0, 255)), word, draw.getrandbits(32))
    units = draw.choice((0, 0, 1, 2, 4))
    if kind == ip.ROUTING and draw.random() < 0.7:
        units = 2 * draw.randrange(4)
        left = draw.randrange(units // 2 + 2)
        return bytes((next_header, units, draw.choice((0, 2, 2, 4)), left)) + draw.randbytes(4 + 8 * units)
    return bytes((next_header, units)) + draw.randbytes(6 + 8 * units)


def extensions(draw: random.Random, last: int, payload: bytes) -> tuple[int, bytes]:
    """(first next header, extension headers + payload)."""
    for _ in range(draw.choice((0, 0, 0, 1, 1, 2, 3))):
        kind = draw.choice((0, 43, 43, 44, 44, 60, 60))
        payload = extension(draw, kind, last) + payload
        last = kind
    return last, payload


def ipv4(draw: random.Random, protocol: int, payload: bytes) -> bytes:
    options = draw.choice((b"",) * 8 + (b"\x94\4\0\0", b"\x83\x0b\4" + bytes(8) + b"\1", draw.randbytes(40)))
    flags = draw.choice((0, 0, 0, 0x4000, 0x4000, 0x8000, 0x2000, draw.getrandbits(16)))
    total = min(20 + len(options) + len(payload), 0xFFFF)
    first, ident, ttl = 0x45 + len(options) // 4, draw.getrandbits(16), draw.choice((0, 1, 2, 64, 255))
    head = struct.pack("!BBHHHBBH", first, draw.randrange(256), total, ident, flags, ttl, protocol, 0)
    head += draw.randbytes(8) + options
    return (head[:10] + ip.checksum(head).to_bytes(2) + head[12:] + payload)[:total]


def ipv6(draw: random.Random, protocol: int, payload: bytes) -> bytes:
    first, content = extensions(draw, protocol, payload)
    content = content[:0xFFFF]
    word = 6 << 28 | draw.getrandbits(28)
    head = struct.pack("!IHBB", word, len(content), first, draw.choice((0, 1, 2, 64, 255)))
    return head + draw.randbytes(32) + content


def payload(draw: random.Random, depth: int = 0) -> tuple[int, bytes]:
    """(protocol, octets): UDP whose length is right, short or absurd, a packet in a packet, or anything."""
    kind = draw.random()
    data = draw.randbytes(length(draw))
    if kind < 0.35:
        stated = draw.choice((len(data) + 8,) * 3 + (8, 7, 0, draw.randrange(len(data) + 9), 0xFFFF))
        ports = draw.choice((53, 4500, 500)), draw.choice((53, 4500, 500))
        return 17, struct.pack("!HHHH", *ports, stated & 0xFFFF, 0) + draw.choice(
            (data, bytes(4) + data, b"\xff")
        )
    if kind < 0.45 and depth < 2:
        return draw.choice((4, 41)), packet(draw, depth + 1)
    return draw.choice((6, 6, 1, 58, 59, 0, 43, 44, 60, 50, 51, draw.randrange(256))), data


def packet(draw: random.Random, depth: int = 0) -> bytes:
    """One IP packet, mostly well-formed; sometimes Ethernet padding behind it, or cut, or not IP at all."""
    protocol, data = payload(draw, depth)
    made = (ipv4 if draw.random() < 0.5 else ipv6)(draw, protocol, data)
    odd = draw.random()
    if odd < 0.06:
        return made + draw.randbytes(draw.randrange(1, 30))
    if odd < 0.09:
        return made[: draw.randrange(len(made) + 1)]
    if odd < 0.11:
        return draw.randbytes(draw.randrange(80))
    return flipped(draw, made[:48]) + made[48:] if odd < 0.14 else made


def flipped(draw: random.Random, data: bytes) -> bytes:
    """One bit wrong."""
    changed = bytearray(data)
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def mended(data: bytes) -> bytes:
    """The IPv4 header checksum set right."""
    size = (data[0] & 15) * 4 if data and data[0] >> 4 == 4 else 0
    if not 20 <= size <= len(data):
        return data
    value = ip.checksum(data[:10] + b"\0\0" + data[12:size])
    return data[:10] + value.to_bytes(2) + data[12:]


def fragment_header(draw: random.Random, data: bytes) -> bytes:
    """The IPv6 packet with a Fragment header, mostly atomic, behind its fixed header."""
    if len(data) < 40 or data[0] >> 4 != 6 or len(data) > 65000:
        return data
    header = extension(draw, ip.FRAGMENT, data[6])
    return data[:4] + (len(data) - 32).to_bytes(2) + b"\x2c" + data[7:40] + header + data[40:]


def damaged(draw: random.Random, data: bytes) -> bytes:
    """What a path, an attacker or a faulty peer makes of a protected packet."""
    kind = draw.randrange(9)
    if kind == 0:
        return flipped(draw, data)
    if kind == 1:
        return mended(flipped(draw, data[:60]) + data[60:])
    if kind == 2:
        return data[: draw.randrange(len(data) + 1)]
    if kind == 3:
        return mended(data[:1] + draw.randbytes(1) + data[2:])  # traffic class
    if kind == 4:
        return fragment_header(draw, data)
    if kind == 5:
        return data + draw.randbytes(draw.randrange(1, 20))
    if kind == 6 and data and data[0] >> 4 == 4:  # shorter, and the header agrees
        cut = data[: draw.randrange(20, len(data) + 1)] if len(data) >= 20 else data
        return mended(cut[:2] + len(cut).to_bytes(2) + cut[4:])
    if kind == 7 and len(data) > 60:
        return data[:-20] + flipped(draw, data[-20:])
    return flipped(draw, data[:64]) + data[64:]


# ---- drawing SAs --------------------------------------------------------------------------------


def tunnel(draw: random.Random) -> TunnelIPv4 | TunnelIPv6:
    if draw.random() < 0.5:
        src, dst = (IPv4Address(draw.getrandbits(32)) for _ in range(2))
        return TunnelIPv4(src, dst, draw.randrange(64), draw.randrange(2), draw.choice((0, 1, 255)))
    a, b = (IPv6Address(draw.getrandbits(128)) for _ in range(2))
    return TunnelIPv6(a, b, draw.getrandbits(20), draw.choice((0, 1, 255)), draw.randrange(64))


def limits(draw: random.Random) -> Lifetime:
    def pair(most: int) -> tuple[int, int]:
        hard = draw.choice((0, draw.randrange(1, most)))
        return draw.choice((0, draw.randrange(1, hard + 1) if hard else draw.randrange(1, most))), hard

    (packets_soft, packets_hard), (bytes_soft, bytes_hard) = pair(400), pair(100_000)
    return Lifetime(packets_soft, bytes_soft, packets_hard, bytes_hard)


def first_sequence(draw: random.Random, esn: bool) -> int:
    """1 as a rule, else just before something wraps."""
    edges = (1, 1, 1, 2**32 - 100) + ((2**32 + 5, 5 * 2**32 - 60, 2**64 - 150) if esn else ())
    return draw.choice(edges)


def window(draw: random.Random, esn: bool) -> int:
    sizes = (1, 2, 31, 32, 63, 64, 64, 65, 127, 128, 129, 1000, 1024, 2049, 4095, 4096)
    return draw.choice(sizes if esn else (0, *sizes))


def changed(draw: random.Random, params: SaParams) -> SaParams:
    """What MODIFY may ask for."""
    esn = params.options & IpsecOption.ESN
    allowed = 0x7F if params.is_tunnel else int(TRANSPORT_OPTIONS)
    options = draw.getrandbits(7) & allowed & ~IpsecOption.ESN | esn
    return dataclasses.replace(
        params,
        options=options,
        tunnel=tunnel(draw) if params.tunnel else None,
        udp_sport=draw.randrange(1, 65536),
        udp_dport=draw.choice((4500, 7777)),
        replay_window=window(draw, bool(esn)) if params.direction is Direction.INBOUND else 0,
        lifetime=limits(draw) if options & IpsecOption.SA_LIFETIME and draw.random() < 0.6 else Lifetime(),
    )


def parameters(draw: random.Random, spi: int) -> tuple[SaParams, SaParams]:
    """What the two ends of an SA are made of."""
    mode = draw.choice((IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT))
    esn = draw.getrandbits(1)
    suite = dataclasses.replace(GCM, icv_len=draw.choice((16, 16, 16, 12, 8)))
    common: dict[str, Any] = {
        "mode": mode, "spi": spi, "salt": draw.randbytes(4), "options": esn, "udp_sport": 4500, "udp_dport": 4500,
        "cipher_algo": GCM.cipher_algo, "cipher_key": draw.randbytes(draw.choice((16, 24, 32))), "auth_algo": 0,
        "auth_key": b"", "suite": suite, "lifetime": Lifetime(),
        "first_sequence": first_sequence(draw, bool(esn)), "replay_window": 0,
    }  # fmt: skip
    is_tunnel = mode is IpsecMode.ESP_TUNNEL
    sender = SaParams(direction=Direction.OUTBOUND, tunnel=tunnel(draw) if is_tunnel else None, **common)
    receiver = SaParams(direction=Direction.INBOUND, tunnel=None, **common)
    return changed(draw, sender), changed(draw, receiver)


def transform(params: SaParams) -> EspTransform:
    if params.suite.icv_len == 16:
        return esp_transform(params.suite, params.cipher_key, b"", params.salt)
    return TruncatedGcm(params.suite, params.cipher_key, params.salt)


class Pair:
    """An SA of one direction, in Python and in C."""

    def __init__(self, table: FastSaTable, ident: int, params: SaParams, iv_base: bytes) -> None:
        self.ident, self.direction = ident, params.direction
        self.slow: OutboundSa | InboundSa
        self.fast: FastOutboundSa | FastInboundSa
        if params.direction is Direction.OUTBOUND:
            self.slow = OutboundSa(params, lambda n: iv_base)
            self.fast = FastOutboundSa(table, ident, params, lambda n: iv_base)
        else:
            self.slow = InboundSa(params)
            self.fast = FastInboundSa(table, ident, params)
        self.slow._esp = transform(params)

    def update(self, params: SaParams) -> None:
        self.slow.update(params)
        self.fast.update(params)

    def compare(self) -> None:
        slow, fast = self.slow, self.fast
        mine = slow.sequence if isinstance(slow, OutboundSa) else slow.window.top
        theirs = fast.sequence if isinstance(fast, FastOutboundSa) else fast.top
        assert theirs == mine
        assert (fast.packets, fast.bytes, fast.soft_expired) == (slow.packets, slow.bytes, slow.soft_expired)
        assert fast.stats == slow.stats, (fast.stats, slow.stats)
        assert fast.state() == slow.state(), (fast.state(), slow.state())
        assert fast.frozen is slow.frozen


class Outcome:
    """What became of a packet, either way."""

    def __init__(self, reason: Reason | None, data: bytes, *more: int) -> None:
        self.reason, self.data, self.more = reason, data, more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"<{self.reason} {self.data[:120].hex()} of {len(self.data)} {self.more}>"


class Rivalry:
    """``count`` pairs of SAs under one random seed; ``engine`` is the one that C uses.

    ``crowd``: SAs that no packet belongs to. With many, C fetches ahead what it will touch.
    """

    def __init__(self, seed: object, engine: Engine, count: int = 5, crowd: int = 0) -> None:
        self.draw = random.Random(str(seed))
        self.ffi, self.lib = native.extension()
        self.engine = engine
        self.table = FastSaTable(self.draw.randbytes, engine)
        self.senders: list[Pair] = []
        self.receivers: list[Pair] = []
        self.sent: list[bytes] = []
        self.packets = 0
        self.verdicts: Counter[tuple[str, Reason | None]] = Counter()
        for _ in range(count):
            self.add()
        _, bystander = parameters(self.draw, 1)
        spis = [self.draw.randrange(2**16, 2**32) for _ in range(crowd)]  # damage seldom makes one of these
        self.crowd = [
            FastInboundSa(self.table, 2**20 - 1 - n, dataclasses.replace(bystander, spi=spi))
            for n, spi in enumerate(spis)
        ]

    def add(self) -> None:
        spi, ident = self.draw.randrange(2**16, 2**32), self.unused(self.senders)
        sender, receiver = parameters(self.draw, spi)
        iv_base = self.draw.choice((bytes(8), b"\xff" * 8, self.draw.randbytes(8)))
        self.senders.append(Pair(self.table, ident, sender, iv_base))
        self.receivers.append(Pair(self.table, self.unused(self.receivers), receiver, b""))

    def unused(self, pairs: list[Pair]) -> int:
        """A number that no SA of this direction has."""
        taken = {pair.ident for pair in pairs}
        return next(n for n in iter(lambda: self.draw.randrange(2**19), None) if n not in taken)

    def replace(self) -> None:
        """Destroys a pair of SAs and makes another one."""
        at = self.draw.randrange(len(self.senders))
        for pair in (self.senders.pop(at), self.receivers.pop(at)):
            pair.compare()
            pair.fast.wipe()
            pair.slow.wipe()
        self.add()

    def modify(self) -> None:
        pair = self.draw.choice((*self.senders, *self.receivers))
        pair.update(changed(self.draw, pair.slow.params))
        pair.compare()

    def hold(self) -> None:
        """A ceiling some packets ahead, or behind; or away with it."""
        slow, fast = (pair := self.draw.choice(self.senders)).slow, pair.fast
        assert isinstance(slow, OutboundSa)
        assert isinstance(fast, FastOutboundSa)
        near = min(2**64 - 1, slow.sequence + self.draw.randrange(20))
        ceiling = self.draw.choice((2**64 - 1, 2**64 - 1, near, 0))
        slow.set_ceiling(ceiling)
        fast.set_ceiling(ceiling)

    def freeze(self) -> None:
        """One pair stops; or one goes on: from where it stopped, further ahead, or from where it must not."""
        pairs = (*self.senders, *self.receivers)
        pair = self.draw.choice([pair for pair in pairs if pair.slow.frozen] or pairs)
        if not pair.slow.frozen and self.draw.random() < 0.5:
            pair.slow.freeze()
            pair.fast.freeze()
        state = pair.slow.state()
        if self.draw.random() < 0.3:
            window = self.draw.randrange(0, 4097)
            state = dataclasses.replace(
                state,
                sequence=max(
                    0, min(2**64 - 1, state.sequence + self.draw.choice((-1, 0, 1, 70, 5000, 2**32)))
                ),
                packets=state.packets + self.draw.randrange(3),
                bytes=max(0, state.bytes + self.draw.randrange(-9, 9)),
                iv_base=state.iv_base ^ (self.draw.random() < 0.1),
                window=window,
                seen=self.draw.getrandbits(4096) & self.draw.getrandbits(4096) & (1 << window) - 1,
                refused={reason: self.draw.randrange(9) for reason in self.draw.sample([*Reason], 3)},
            )
        if self.draw.random() < 0.8:
            refusals = []
            for sa in (pair.slow, pair.fast):
                try:
                    sa.restore(state)
                except BadSaParameters as error:
                    refusals.append(str(error))
            assert len(refusals) != 1
        pair.compare()

    def step(self) -> None:
        """One batch outbound, one inbound; now and then something changes."""
        if self.draw.random() < 0.25:
            self.modify()
        if self.draw.random() < 0.2:
            self.hold()
        if self.draw.random() < 0.15:
            self.freeze()
        if self.draw.random() < 0.05:
            self.replace()
        count = self.draw.choice((1, 2, 7, 40, 64, 65, 130))
        self.outbound([self.outbound_case() for _ in range(count)])
        self.inbound([self.inbound_case() for _ in range(self.draw.choice((1, 2, 7, 40, 64, 65, 130)))])

    # ---- outbound

    def outbound_case(self) -> tuple[Pair | None, bytes, int]:
        pair = self.draw.choice(self.senders) if self.draw.random() < 0.98 else None
        return pair, packet(self.draw), self.draw.choice((0, 0, 0, 100, 576, 1500, 65535))

    def outbound(self, cases: list[tuple[Pair | None, bytes, int]]) -> None:
        unused = self.unused(self.senders)
        expected = []
        for pair, data, mtu in cases:
            if pair is None:
                expected.append(Outcome(Reason.UNKNOWN_SA, data))
                continue
            sa = pair.slow
            assert isinstance(sa, OutboundSa)
            try:
                made = process.outbound(sa, data, mtu or None)
            except PacketError as error:
                expected.append(Outcome(error.reason, data))
            else:
                expected.append(Outcome(None, made, sa.sequence, int(sa.soft_expired)))
                self.sent.append(made)
        given = [(data, mtu, pair.ident if pair else unused) for pair, data, mtu in cases]
        got = self.run(self.lib.vipsec_esp_outbound, given, ("sequence", "soft_expired"))
        self.check("outbound", given, expected, got)

    # ---- inbound

    def inbound_case(self) -> bytes:
        kind = self.draw.random()
        if kind < 0.05 or not self.sent:
            return packet(self.draw)
        if kind < 0.35:
            return self.authentic()
        recent = self.sent[-300:]
        data = self.draw.choice(recent if self.draw.random() < 0.9 else self.sent)
        return damaged(self.draw, data) if kind > 0.75 else data

    def authentic(self) -> bytes:
        """A packet with a right ICV from a peer that may be strange."""
        draw, pair = self.draw, self.draw.choice(self.receivers)
        params, sa = pair.slow.params, pair.slow
        assert isinstance(sa, InboundSa)
        size = sa.window.size
        last = 2**64 - 1 if params.esn else 2**32 - 1
        jump = draw.choice((1, 2, -1, -size, 1 - size, size, 70, draw.randrange(200), draw.randrange(2**31)))
        if draw.random() < 0.05:
            jump = draw.randrange(2**33)
        sequence = min(max(sa.window.top + jump, 0), last)
        protocol, content = self.plaintext(params)
        header = struct.pack("!II", params.spi, sequence & 0xFFFFFFFF)
        iv, high = draw.randbytes(8), (sequence >> 32).to_bytes(4) if params.esn else None
        esp = header + iv + transform(params).seal(header, high, iv, content)
        if draw.random() < (0.7 if params.udp_encap else 0.05):
            protocol, esp = 17, struct.pack("!HHHH", 4500, 4500, min(8 + len(esp), 0xFFFF), 0) + esp
        made = (ipv4 if draw.random() < 0.5 else ipv6)(draw, protocol, esp)
        return mended(damaged(draw, made)) if draw.random() < 0.1 else made

    def plaintext(self, params: SaParams) -> tuple[int, bytes]:
        draw = self.draw
        next_header, content = payload(draw)
        if params.is_tunnel and draw.random() < 0.9:
            content = packet(draw)
            next_header = 41 if content[:1] and content[0] >> 4 == 6 else 4
        if draw.random() < 0.3:
            content += draw.randbytes(draw.randrange(40))  # traffic flow confidentiality
        if draw.random() < 0.05:
            next_header = draw.choice((59, 4, 41, draw.randrange(256)))
        if not params.is_tunnel and draw.random() < 0.2:
            next_header, content = extensions(draw, next_header, content)
        padding = -(len(content) + 2) % 4 + 4 * draw.choice((0, 0, 0, 0, 1, 3, 50))
        filler = bytearray(range(1, padding + 1))
        if filler and draw.random() < 0.05:
            filler[draw.randrange(padding)] ^= 1 << draw.randrange(8)
        stated = padding if draw.random() < 0.97 else draw.randrange(256)
        plain = content + bytes(filler) + bytes((stated, next_header))
        return ip.ESP, plain[: draw.randrange(0, len(plain))] if draw.random() < 0.02 else plain

    def inbound(self, packets: list[bytes]) -> None:
        by_spi = {pair.slow.params.spi: pair for pair in self.receivers}
        expected = []
        for data in packets:
            try:
                found = process._locate(data)
            except PacketError as error:
                expected.append(Outcome(error.reason, data))
                continue
            pair = by_spi.get(found.spi) if found.protocol == ip.ESP else None
            if pair is None:
                expected.append(Outcome(Reason.UNKNOWN_SA, data))
                continue
            sa = pair.slow
            assert isinstance(sa, InboundSa)
            try:
                made = process.inbound(sa, data, found)
            except PacketError as error:
                expected.append(Outcome(error.reason, data))
            else:
                expected.append(
                    Outcome(None, made.packet, made.sequence, int(made.soft_expired), made.next_header)
                )
        given = [(data, 0, 0) for data in packets]
        members = ("sequence", "soft_expired", "next_header")
        got = self.run(self.lib.vipsec_esp_inbound, given, members)
        self.check("inbound", given, expected, got)

    # ---- both

    def run(
        self,
        function: Callable[..., None],
        given: list[tuple[bytes, int, int]],
        members: tuple[str, ...],
    ) -> list[Outcome]:
        """The batch through C, each packet at a place of its own with guard bytes around."""
        reasons = (None, *Reason)
        memories, batch = [], self.ffi.new("struct vipsec_packet[]", len(given))
        each: Any
        for each, (data, mtu, ident) in zip(batch, given, strict=True):
            shift, more = self.draw.randrange(16), self.draw.choice((0, 1, 40))
            headroom, tailroom = self.lib.VIPSEC_HEADROOM + more, self.lib.VIPSEC_TAILROOM
            begin = 16 + shift + headroom
            content = bytes([GUARD]) * begin + data + bytes([GUARD]) * (tailroom + 16)
            memory = self.ffi.new("uint8_t[]", content)
            each.data, each.len, each.mtu, each.sa_id = memory + begin, len(data), mtu, ident
            each.headroom, each.tailroom, each.reason = headroom, tailroom, 99
            each.user = (1, 2)
            memories.append((memory, content, begin - headroom, begin + len(data) + tailroom))
        with self.table.reader() as reader:
            function(self.table.handle, reader, batch, len(given))
        got = []
        for each, (data, _, _), (memory, content, low, high) in zip(batch, given, memories, strict=True):
            reason = reasons[each.reason]
            after = bytes(self.ffi.buffer(memory))[: len(content)]
            assert after[:low] + after[high:] == content[:low] + content[high:], "written outside"
            begin = int(each.data - self.ffi.cast("uint8_t *", memory))
            assert begin - each.headroom == low
            assert begin + each.len + each.tailroom == high
            assert list(each.user) == [1, 2]
            if reason is None:
                values = (int(getattr(each, name)) for name in members)
                got.append(Outcome(None, after[begin : begin + each.len], *values))
                continue
            assert after == content, f"{reason} changed the packet"
            assert each.len == len(data)
            got.append(Outcome(reason, data))
        return got

    def check(self, way: str, given: list[Any], expected: list[Outcome], got: list[Outcome]) -> None:
        for index, (want, have) in enumerate(zip(expected, got, strict=True)):
            assert have == want, (
                f"{way} packet {index} of {len(given)}: C {have}, Python {want}, {given[index]!r}"
            )
            self.verdicts[way, want.reason] += 1
        self.packets += len(given)
        for pair in (*self.senders, *self.receivers):
            pair.compare()
        del self.sent[:-3000]
