"""ESP with AES-GCM in C: SAs that do what those of :mod:`virtio_ipsec.ipsec` do, with the same verdicts.

A :class:`FastSaTable` belongs to one port. The C pipeline takes SAs from it by number or SPI; the objects here are
the same SAs seen from Python: packets that come this way draw from the same sequence numbers, windows and lifetimes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from struct import Struct
from typing import Any

from virtio_ipsec.crypto.algorithms import Kind, Protocol
from virtio_ipsec.errors import AlreadyExists, ConfigError, IntegrityError, NoSpace, PacketError, Reason
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.gcm import Engine
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.outer import addresses
from virtio_ipsec.ipsec.params import BadSaParameters, SaParams
from virtio_ipsec.ipsec.process import Inbound
from virtio_ipsec.ipsec.state import SaState, destroyed, goes_back
from virtio_ipsec.wire.numbers import AeadAlgo, Direction
from virtio_ipsec.wire.tunnel import TunnelIPv4

MAX_SAS = 1 << 20
"""SAs of one direction; their numbers are below this."""

ICV_LENS = (8, 12, 16)
_UINTS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_REASONS: tuple[Reason | None, ...] = (None, *Reason)


def accepts(params: SaParams) -> bool:
    """Whether the fast path can do this SA: ESP with AES-GCM. All its modes and options."""
    suite = params.suite
    is_gcm = suite.protocol is Protocol.ESP and suite.kind is Kind.AEAD and suite.cipher_algo == AeadAlgo.GCM
    return is_gcm and suite.icv_len in ICV_LENS


@dataclass(frozen=True, slots=True)
class Processed:
    """A packet of a batch. ``packet`` is the result, or what was given if there is a ``reason``.

    ``sa_id``: the SA that counted it; None: none was found. The other members are 0 for a refused packet, and
    ``next_header`` for an outbound one.
    """

    packet: bytes = field(repr=False)
    reason: Reason | None
    sa_id: int | None
    sequence: int
    next_header: int
    soft_expired: bool


class FastSaTable:
    """The SAs of a port. ``rng`` makes the seed that keeps chosen SPIs from colliding."""

    def __init__(self, rng: Callable[[int], bytes], engine: Engine | None = None) -> None:
        ffi, lib = native.extension()
        self.engine = engine or Engine()
        handle = lib.vipsec_sa_table_new(self.engine.handle, int.from_bytes(rng(8)))
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vipsec_sa_table_free)
        self._readers: deque[int] = deque()

    @property
    def handle(self) -> Any:
        """``struct vipsec_sa_table *``, valid as long as this object."""
        return self._handle

    @contextmanager
    def reader(self) -> Iterator[int]:
        """The number of a reader that nobody else uses meanwhile. ConfigError when too many threads are at it."""
        _, lib = native.extension()
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = lib.vipsec_reader_register(self._handle)
        if reader < 0:
            raise ConfigError(f"more than {lib.VIPSEC_MAX_READERS} threads process packets of one port")
        try:
            yield reader
        finally:
            self._readers.append(reader)

    def protect(self, packets: Sequence[tuple[int, bytes, int | None]]) -> list[Processed]:
        """Protect a batch of (SA number, IP packet, MTU or None), in this order."""
        _, lib = native.extension()
        return self._run(lib.vipsec_esp_outbound, packets)

    def unprotect(self, packets: Sequence[bytes]) -> list[Processed]:
        """Check and open a batch of IP packets, in this order. The SA of each one is found by its SPI."""
        _, lib = native.extension()
        return self._run(lib.vipsec_esp_inbound, [(0, packet, None) for packet in packets])

    def _run(
        self, function: Callable[..., None], packets: Sequence[tuple[int, bytes, int | None]]
    ) -> list[Processed]:
        ffi, lib = native.extension()
        room = lib.VIPSEC_HEADROOM + lib.VIPSEC_TAILROOM
        memory = ffi.new("uint8_t[]", sum(len(data) + room for _, data, _ in packets) + 1)
        batch: Any = ffi.new("struct vipsec_packet[]", len(packets))
        at = memory
        for each, (sa_id, data, mtu) in zip(batch, packets, strict=True):
            each.data = at + lib.VIPSEC_HEADROOM
            ffi.memmove(each.data, data, len(data))
            each.len, each.sa_id, each.mtu = len(data), sa_id, mtu or 0
            each.headroom, each.tailroom = lib.VIPSEC_HEADROOM, lib.VIPSEC_TAILROOM
            at += len(data) + room
        with self.reader() as reader:
            function(self._handle, reader, batch, len(packets))
        return [_processed(each, data) for each, (_, data, _) in zip(batch, packets, strict=True)]


def _processed(packet: Any, given: bytes) -> Processed:
    ffi, _ = native.extension()
    sa_id = packet.sa_id if packet.known else None
    reason = _REASONS[packet.reason]
    if reason is not None:
        return Processed(given, reason, sa_id, 0, 0, False)
    data = bytes(ffi.buffer(packet.data, packet.len))
    return Processed(data, None, sa_id, packet.sequence, packet.next_header, bool(packet.soft_expired))


class _FastSa:
    """What both directions share; the interface of :class:`virtio_ipsec.ipsec.sa.OutboundSa` and ``InboundSa``."""

    def __init__(self, table: FastSaTable, ident: int, params: SaParams, iv_base: int, frozen: bool) -> None:
        """Adds the SA to the table. BadSaParameters unless :func:`accepts`; AlreadyExists, NoSpace."""
        if not accepts(params):
            raise BadSaParameters("cipher_algo", "the fast path does ESP with AES-GCM only")
        _, lib = native.extension()
        self.table, self.ident = table, ident
        self.params = params
        self._final: Any = None
        self._elsewhere: Counter[Reason] | None = None
        config = _config(params, iv_base, frozen)
        try:
            result = lib.vipsec_sa_add(table.handle, ident, config)
        finally:
            _wipe(config)
        if result == lib.VIPSEC_SA_EXISTS:
            raise AlreadyExists(f"SA {ident} exists, or one with SPI 0x{params.spi:08x}")
        if result == lib.VIPSEC_SA_NO_MEMORY:
            raise NoSpace("no memory for another SA")
        if result != lib.VIPSEC_SA_OK:
            raise BadSaParameters("resource_id", f"the fast path refuses SA {ident}")

    @property
    def packets(self) -> int:
        """Packets that passed every check."""
        return int(self._counts().packets)

    @property
    def bytes(self) -> int:
        """Octets of those packets that went through the algorithm."""
        return int(self._counts().bytes)

    @property
    def soft_expired(self) -> bool:
        """Whether a soft limit is reached; stays so unless MODIFY raises the limit."""
        return bool(self._counts().soft_expired)

    @property
    def stats(self) -> Counter[Reason]:
        """Refused packets by reason, at this moment."""
        counts = _refused(self._counts())
        return counts + self._elsewhere if self._elsewhere else counts

    def update(self, params: SaParams) -> None:
        """MODIFY: take over ``params``; BadSaParameters, and no change, if they touch what is fixed (E40)."""
        _, lib = native.extension()
        fixed = self.params.changes_forbidden(params)
        if fixed:
            raise BadSaParameters(fixed, "cannot be changed while the SA lives")
        config = _config(params)
        try:
            result = lib.vipsec_sa_modify(self.table.handle, params.direction, self.ident, config)
        finally:
            _wipe(config)
        if result == lib.VIPSEC_SA_NO_MEMORY:
            raise NoSpace("no memory for a wider window")
        if result != lib.VIPSEC_SA_OK:
            raise BadSaParameters("resource_id", f"the fast path refuses this change of SA {self.ident}")
        self.params = params

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called and :meth:`restore` not since."""
        return self._final is None and bool(self._progress().frozen)

    def freeze(self) -> None:
        """From now on every packet is HELD, until :meth:`restore`: what :meth:`state` then tells is final."""
        _, lib = native.extension()
        if self._final is None:
            lib.vipsec_sa_freeze(self.table.handle, self.params.direction, self.ident)

    def state(self) -> SaState:
        """What the SA has used up. BadSaParameters after :meth:`wipe`."""
        ffi, _ = native.extension()
        if self._final is not None:
            raise destroyed()
        found = self._progress()
        return SaState(
            sequence=found.sequence,
            packets=found.packets,
            bytes=found.bytes,
            iv_base=found.iv_base,
            window=found.window,
            seen=int.from_bytes(bytes(ffi.buffer(found.seen)), "little") & (1 << found.window) - 1,
            refused=+(_refused(found) + (self._elsewhere or Counter())),
        )

    def restore(self, state: SaState) -> None:
        """:meth:`virtio_ipsec.ipsec.sa.OutboundSa.restore`."""
        ffi, lib = native.extension()
        if self._final is not None:
            raise destroyed()
        given: Any = ffi.new("struct vipsec_sa_progress *")
        given.sequence, given.packets, given.bytes = state.sequence, state.packets, state.bytes
        given.iv_base, given.window = state.iv_base, state.window
        for number, reason in enumerate(_REASONS):
            if reason is not None:
                given.refused[number] = state.refused.get(reason, 0)
        seen = state.seen & (1 << state.window) - 1
        ffi.memmove(given.seen, seen.to_bytes(ffi.sizeof(given.seen), "little"), ffi.sizeof(given.seen))
        if (
            lib.vipsec_sa_restore(self.table.handle, self.params.direction, self.ident, given)
            != lib.VIPSEC_SA_OK
        ):
            raise goes_back()

    def _progress(self) -> Any:
        ffi, lib = native.extension()
        found: Any = ffi.new("struct vipsec_sa_progress *")
        lib.vipsec_sa_read_progress(self.table.handle, self.params.direction, self.ident, found)
        return found

    def wipe(self) -> None:
        """Take the SA out of the table and wipe its keys; no packet is processed with it when this returns."""
        _, lib = native.extension()
        if self._final is None:
            self._final = self._counts()
            lib.vipsec_sa_remove(self.table.handle, self.params.direction, self.ident)
            self.params = self.params.without_keys()

    def _counts(self) -> Any:
        ffi, lib = native.extension()
        if self._final is not None:
            return self._final
        state: Any = ffi.new("struct vipsec_sa_state *")
        lib.vipsec_sa_read(self.table.handle, self.params.direction, self.ident, state)
        return state

    def _refuse_elsewhere(self, reason: Reason) -> PacketError:
        """Counts a packet that the table did not find this SA for."""
        if self._elsewhere is None:
            self._elsewhere = Counter()
        self._elsewhere[reason] += 1
        return _error(reason)


class FastOutboundSa(_FastSa):
    """``rng``: once, for the base of the IVs; what is promised of those, ``ipsec.sa.OutboundSa`` says. ``frozen``: it
    waits for :meth:`restore`."""

    def __init__(
        self,
        table: FastSaTable,
        ident: int,
        params: SaParams,
        rng: Callable[[int], bytes],
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__(table, ident, params, int.from_bytes(rng(8)), frozen)

    @property
    def sequence(self) -> int:
        """The number used last."""
        return int(self._counts().sequence)

    def set_ceiling(self, ceiling: int) -> None:
        """:meth:`virtio_ipsec.ipsec.sa.OutboundSa.set_ceiling`."""
        _, lib = native.extension()
        if self._final is None:
            lib.vipsec_sa_set_ceiling(self.table.handle, self.ident, ceiling)

    def protect(self, packet: bytes, mtu: int | None = None) -> bytes:
        """Protect one IP packet: :func:`virtio_ipsec.ipsec.process.outbound`."""
        if self._final is not None:
            raise self._refuse_elsewhere(Reason.UNKNOWN_SA)
        (result,) = self.table.protect([(self.ident, packet, mtu)])
        if result.reason is not None:
            raise _error(result.reason)
        return result.packet


class FastInboundSa(_FastSa):
    """An inbound SA: found by its SPI. ``frozen``: it waits for :meth:`restore`."""

    def __init__(self, table: FastSaTable, ident: int, params: SaParams, *, frozen: bool = False) -> None:
        super().__init__(table, ident, params, 0, frozen)

    @property
    def top(self) -> int:
        """The highest sequence number that was authenticated."""
        return int(self._counts().sequence)

    def unprotect(self, packet: bytes) -> Inbound:
        """Check and open one packet: :func:`virtio_ipsec.ipsec.process.inbound`."""
        ffi, lib = native.extension()
        found: Any = ffi.new("struct vipsec_esp_found *")
        reason = _REASONS[lib.vipsec_esp_find(packet, len(packet), found)]
        if reason is None and (found.protocol, found.spi) != (ip.ESP, self.params.spi):
            reason = Reason.UNKNOWN_SA
        if reason is not None:
            raise self._refuse_elsewhere(reason)
        if self._final is not None:
            raise self._refuse_elsewhere(Reason.UNKNOWN_SA)
        (result,) = self.table.unprotect([packet])
        if result.reason is not None:
            raise _error(result.reason)
        return Inbound(result.packet, result.soft_expired, result.sequence, result.next_header)


def _refused(state: Any) -> Counter[Reason]:
    refused = list(state.refused)
    return Counter({reason: refused[n] for n, reason in enumerate(_REASONS) if reason and refused[n]})


def _error(reason: Reason) -> PacketError:
    return IntegrityError() if reason is Reason.BAD_ICV else PacketError(reason)


def _wipe(config: Any) -> None:
    ffi, lib = native.extension()
    lib.vipsec_wipe(config, ffi.sizeof("struct vipsec_sa_config"))


def _config(params: SaParams, iv_base: int = 0, frozen: bool = False) -> Any:
    """``struct vipsec_sa_config``; the caller wipes it."""
    ffi, _ = native.extension()
    life, tunnel = params.lifetime, params.tunnel
    family = dscp = df = ttl = flow_label = 0
    source = destination = b""
    if tunnel is not None and params.direction is Direction.OUTBOUND:
        src, dst = addresses(tunnel)
        family, source, destination, dscp = src.version, src.packed, dst.packed, tunnel.dscp
        if isinstance(tunnel, TunnelIPv4):
            df, ttl = tunnel.df, tunnel.ttl
        else:
            flow_label, ttl = tunnel.flabel, tunnel.hlimit
    config: Any = ffi.new("struct vipsec_sa_config *")
    # All fields at one go, in the order of the structure: one by one they cost more than everything else here.
    _config_layout().pack_into(
        ffi.buffer(config), 0,
        params.direction, params.is_tunnel, family, dscp, df, ttl, len(params.cipher_key), params.suite.icv_len,
        params.spi, params.options, flow_label, params.replay_window, params.udp_sport, params.udp_dport,
        params.salt, source, destination, params.cipher_key,
        life.packets_soft_limit, life.bytes_soft_limit, life.packets_hard_limit, life.bytes_hard_limit,
        params.first_sequence, iv_base, frozen, 0,
    )  # fmt: skip
    return config


@cache
def _config_layout() -> Struct:
    """``struct vipsec_sa_config`` as the compiler laid it out; shorter octets are filled up with zeros."""
    ffi, _ = native.extension()
    kind = ffi.typeof("struct vipsec_sa_config")
    codes, at = ["="], 0
    for _, member in kind.fields:
        octets = member.type.kind == "array"
        size = ffi.sizeof(member.type)
        codes.append(f"{member.offset - at}x" + (f"{size}s" if octets else _UINTS[size]))
        at = member.offset + size
    return Struct("".join(codes) + f"{ffi.sizeof(kind) - at}x")
