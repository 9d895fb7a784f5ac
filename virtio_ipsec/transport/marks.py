"""Sequence numbers of static keys, kept over the death of the process: `serve --state DIR`.

A key outlives the process where an operator wrote it into a file. What was sent under it must not be sent again: two
packets with one key and one IV give both away (RFC 4106 3), and the peer refuses numbers that it has seen. So each key
has a record of its own, whatever SA it is given to, and the record is always ahead of the packets: numbers are
reserved in strides, written down, and only then is the SA's ceiling raised to what was written. Whenever the process
dies, the next life goes on above the reserved numbers with the same base of IVs.

A stride is about a second of traffic. Reserved numbers count as packets of the lifetime; octets are those of the time
of writing. At the end of an orderly life the exact numbers are written.

Inbound records follow the packets, once a second while there are any: a packet that arrived in the second before a
crash may be accepted once more, none before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.transport.journal import Journal, StateError
from virtio_ipsec.wire.numbers import Direction

SECOND = 1_000_000_000
LEAST_STRIDE = 1 << 20
MOST_STRIDE = 1 << 26
#: An SA with a limit of N packets loses at most a 16th of them to a crash; at least this many are reserved.
LIMITED_STRIDE = 64
INBOUND_EVERY = SECOND
#: Between two looks at how far the SAs are. Half of the least stride lasts longer at 10 million packets a second. While
#: none moves a look is a waste of time, and what an SA begins with lasts longer at 2 million packets a second.
LOOK_EVERY = SECOND // 20
LOOK_IDLE = SECOND // 2
#: Keys that are remembered; each was once the key of an SA.
MAX_RECORDS = 1 << 20
_LAST = (1 << 64) - 1
_LAST_32 = (1 << 32) - 1


class Kept(Protocol):
    """What a live SA of either engine offers."""

    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class KeptOutbound(Kept, Protocol):
    """``sequence``: the number used last."""

    @property
    def sequence(self) -> int: ...
    def set_ceiling(self, ceiling: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Outbound:
    """No number above ``mark`` was used with this key. ``octets`` went through it when that was written."""

    iv_base: int
    mark: int
    octets: int = 0

    def line(self, key: str) -> str:
        return f"out {key} {self.iv_base:016x} {self.mark} {self.octets}"


@dataclass(frozen=True, slots=True)
class Inbound:
    """No number up to ``top`` is accepted any more."""

    top: int
    packets: int = 0
    octets: int = 0

    def line(self, key: str) -> str:
        return f"in {key} {self.top} {self.packets} {self.octets}"


@dataclass(slots=True)
class _Sender:
    """An outbound SA that lives. ``since``, ``raised``: where it was when its mark was set, and when that was."""

    sa: KeptOutbound
    key: str
    iv_base: int
    most: int
    mark: int
    since: int
    seen: int
    raised: int | None = None

    def reserve(self, now: int) -> Outbound:
        """The next stride: what is used in a second, going by the last one."""
        took = SECOND if self.raised is None else max(now - self.raised, SECOND // 1000)
        stride = min(max((self.seen - self.since) * SECOND // took, LEAST_STRIDE), self.most)
        return Outbound(self.iv_base, max(min(self.seen + stride, _LAST), self.mark), self.sa.bytes)

    def final(self) -> Outbound:
        """What is true when no packet can follow."""
        self.sa.set_ceiling(0)
        return Outbound(self.iv_base, self.sa.sequence, self.sa.bytes)


@dataclass(slots=True)
class _Receiver:
    """An inbound SA that lives; ``top`` tells the highest number that was authenticated."""

    sa: Kept
    key: str
    top: Callable[[], int]
    written: Inbound

    def record(self) -> Inbound:
        return Inbound(self.top(), self.sa.packets, self.sa.bytes)


class Marks:
    """The records of a state directory, and the SAs that live now.

    ``failure`` says why nothing can be written any more, or is empty; outbound SAs then stop at their marks. Times are
    nanoseconds of a clock that only goes forward. For one thread at a time.
    """

    def __init__(self, directory: Path, rng: Callable[[int], bytes], *, sync: bool = True) -> None:
        """StateError when the directory cannot be used. ``sync``: what is written survives a power cut, too."""
        self.failure = ""
        self.outbound: dict[str, Outbound] = {}
        self.inbound: dict[str, Inbound] = {}
        self.ports: dict[str, str] = {}
        self._senders: dict[str, _Sender] = {}
        self._receivers: dict[str, _Receiver] = {}
        self._waiting: list[str] = []
        self._look_at = self._inbound_at = 0
        self._journal = Journal(directory, rng, sync=sync)
        try:
            for number, line in enumerate(self._journal.lines, 2):
                self._load(number, line)
        except BaseException:
            self._journal.close()
            raise

    def key(self, params: SaParams) -> str:
        """The name of an SA's key: says nothing about it, and is another one in another directory."""
        digest = hashlib.sha256(self._journal.ident.encode())
        salt = params.salt[: params.suite.salt_len]
        for part in (params.suite.name.encode(), params.cipher_key, params.auth_key, salt):
            digest.update(len(part).to_bytes(4) + part)
        return digest.hexdigest()[:32]

    def known_outbound(self, params: SaParams) -> Outbound | None:
        """Where an SA with these keys has to go on; None: they are new. ConfigError when another SA has them, or their
        numbers are used up."""
        known = self.outbound.get(self._free(params, self._senders))
        if known is not None and known.mark >= (_LAST if params.esn else _LAST_32):
            raise ConfigError("the sequence numbers of its key are used up: give it a new one")
        return known

    def known_inbound(self, params: SaParams) -> Inbound | None:
        """:meth:`known_outbound` for an inbound SA."""
        return self.inbound.get(self._free(params, self._receivers))

    def keep_outbound(self, params: SaParams, sa: KeptOutbound, iv_base: int) -> None:
        """Keep an SA that nobody uses yet. It holds its packets back until the next :meth:`tick`."""
        sequence, hard = sa.sequence, params.lifetime.packets_hard_limit
        sa.set_ceiling(sequence)
        key = self.key(params)
        most = min(max(hard // 16, LIMITED_STRIDE), MOST_STRIDE) if hard else MOST_STRIDE
        self._senders[key] = _Sender(sa, key, iv_base, most, sequence, sequence, sequence)
        self._look_at = 0

    def keep_inbound(self, params: SaParams, sa: Kept, top: Callable[[], int]) -> None:
        """Keep an inbound SA; ``top`` tells the highest number that was authenticated."""
        key = self.key(params)
        self._receivers[key] = _Receiver(sa, key, top, self.inbound.get(key, Inbound(0)))

    def release(self, params: SaParams) -> None:
        """The SA with these parameters (keys and all) is not used any more: the next tick writes its exact numbers."""
        key = self.key(params)
        if params.direction is Direction.OUTBOUND and (sender := self._senders.pop(key, None)):
            self.outbound[key] = sender.final()
            self._waiting.append(self.outbound[key].line(key))
        if params.direction is Direction.INBOUND and (receiver := self._receivers.pop(key, None)):
            self.inbound[key] = receiver.record()
            self._waiting.append(self.inbound[key].line(key))
        self._look_at = 0

    def record(
        self, port: str, note: str, records: Iterable[tuple[SaParams, Outbound | Inbound]] = ()
    ) -> None:
        """Remember ``note`` of a port, and where SAs are, in one step; on the disk when this returns. StateError if it
        cannot be written: then nothing is remembered."""
        known = [(self.key(params), record) for params, record in records]
        lines = [record.line(key) for key, record in known]
        self._journal.append([*self._waiting, *lines, f"port {port} {note}"])
        self._waiting.clear()
        self.ports[port] = note
        for key, record in known:
            if isinstance(record, Outbound):
                self.outbound[key] = record
            else:
                self.inbound[key] = record

    @property
    def ident(self) -> str:
        """Of the state directory: no other one has it."""
        return self._journal.ident

    def tick(self, now: int) -> None:
        """Write what has to be written by now, and let SAs go on that were near their marks. Raises nothing."""
        if now < self._look_at:
            return
        moved = self._look()
        self._look_at = now + (LOOK_EVERY if moved else LOOK_IDLE)
        senders = [(each, each.reserve(now)) for each in self._senders.values() if _is_short(each)]
        receivers: list[tuple[_Receiver, Inbound]] = []
        if now >= self._inbound_at:
            self._inbound_at = now + INBOUND_EVERY
            moving = (each for each in self._receivers.values() if each.sa.packets != each.written.packets)
            receivers = [(each, each.record()) for each in moving]
        lines = [*self._waiting]
        lines += [record.line(each.key) for each, record in senders]
        lines += [record.line(each.key) for each, record in receivers]
        if not self._write(lines):
            return
        self._waiting.clear()
        for sender, reserved in senders:
            self.outbound[sender.key] = reserved
            sender.mark, sender.since, sender.raised = reserved.mark, sender.seen, now
            sender.sa.set_ceiling(reserved.mark)
        for receiver, found in receivers:
            self.inbound[receiver.key] = receiver.written = found

    def deadline(self) -> int | None:
        """When :meth:`tick` is due; None: while no SA is kept, and nothing waits, never."""
        return self._look_at if self._senders or self._receivers or self._waiting else None

    def close(self, *, exact: bool = True) -> None:
        """Let the directory go. ``exact``: no packet is on its way any more, so the exact numbers can be written."""
        if not exact:
            self._journal.close()
            return
        lines = [each.final().line(each.key) for each in self._senders.values()]
        lines += [each.record().line(each.key) for each in self._receivers.values()]
        self._write(self._waiting + lines)
        self._senders.clear()
        self._receivers.clear()
        self._waiting.clear()
        self._journal.close()

    def _look(self) -> bool:
        """How far the outbound SAs are; whether one has moved."""
        moved = False
        for each in self._senders.values():
            sequence = each.sa.sequence
            moved = moved or sequence != each.seen
            each.seen = sequence
        return moved

    def _write(self, lines: list[str]) -> bool:
        try:
            self._journal.append(lines)
            if self._journal.wants_compacting:
                self._journal.compact(self._all(lines))
        except StateError as error:
            self.failure = str(error)
            return False
        self.failure = ""
        return True

    def _all(self, latest: list[str]) -> Iterator[str]:
        """What the file says, ``latest`` included, in as many lines as it takes."""
        newest = {_subject(line): line for line in latest}
        for (kind, key), line in self._subjects():
            yield newest.pop((kind, key), line)
        yield from newest.values()

    def _subjects(self) -> Iterator[tuple[tuple[str, str], str]]:
        for key, outbound in self.outbound.items():
            yield ("out", key), outbound.line(key)
        for key, inbound in self.inbound.items():
            yield ("in", key), inbound.line(key)
        for name, note in self.ports.items():
            yield ("port", name), f"port {name} {note}"

    def _free(self, params: SaParams, living: dict[str, _Sender] | dict[str, _Receiver]) -> str:
        key = self.key(params)
        if key in living:
            raise ConfigError("has the key and salt of another SA of that direction")
        if len(self.outbound) + len(self.inbound) >= MAX_RECORDS:
            raise ConfigError(f"{self._journal.path} knows {MAX_RECORDS} keys: that is all it can")
        return key

    def _load(self, number: int, line: str) -> None:
        kind, _, rest = line.partition(" ")
        key, _, values = rest.partition(" ")
        words = values.split(" ")
        try:
            if kind == "out":
                self.outbound[key] = Outbound(int(words[0], 16), *map(int, words[1:]))
            elif kind == "in":
                self.inbound[key] = Inbound(*map(int, words))
            elif kind == "port":
                self.ports[key] = values
            else:
                raise ValueError
        except (ValueError, TypeError):
            raise StateError(
                f"{self._journal.path}: line {number} is of another version of virtio-ipsec"
            ) from None


def _subject(line: str) -> tuple[str, str]:
    kind, key, _ = line.split(" ", 2)
    return kind, key


def _is_short(sender: _Sender) -> bool:
    """Whether at most half of what was reserved is left."""
    return sender.mark - sender.seen <= (sender.mark - sender.since) // 2 and sender.mark < _LAST
