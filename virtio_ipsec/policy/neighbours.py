"""Which Ethernet address the next hops of the tunnels have, asked for, remembered and asked again.

Entries exist only for hops that packets wanted: nobody on the wire can fill the table by talking. While an address is
being asked for, what waits for it stands in a bounded queue. A known address is confirmed every half minute with a
question to it alone (RFC 1122 2.3.2.1, RFC 4861 7.3.3) and is used meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from virtio_ipsec.policy.ethernet import is_group
from virtio_ipsec.policy.rate import SECOND
from virtio_ipsec.policy.tables import Address

RETRY = SECOND
TRIES = 3
REFRESH = 30 * SECOND
MAX_WAITING_PER_HOP = 64
MAX_WAITING = 512
MAX_HOPS = 4096

T = TypeVar("T")


@dataclass(slots=True)
class _Hop(Generic[T]):
    due: int  # when to ask next, or to give up
    mac: bytes | None = None
    asked: int = 0  # questions since the last answer
    waiting: deque[T] = field(default_factory=deque)


@dataclass(slots=True)
class Due(Generic[T]):
    """What time has brought: questions (the address, and where to ask if not everybody) and what waited in vain."""

    questions: list[tuple[Address, bytes | None]]
    given_up: list[T]
    lost: bool  # an address that was known is so no longer


class Neighbours(Generic[T]):
    """The table; ``T`` is what waits. Times are in nanoseconds."""

    def __init__(self) -> None:
        self._hops: dict[Address, _Hop[T]] = {}
        self._waiting = 0
        self._soonest: int | None = None  # nothing is due before

    def mac(self, address: Address) -> bytes | None:
        """The Ethernet address, if known."""
        hop = self._hops.get(address)
        return hop.mac if hop else None

    def known(self) -> dict[Address, bytes]:
        """All that are known."""
        return {address: hop.mac for address, hop in self._hops.items() if hop.mac is not None}

    def wait(self, address: Address, item: T, now: int) -> list[T]:
        """Let ``item`` wait for the address; the question becomes due. Returns what found no room: the oldest of the
        same hop gives way, for the newest says best what is wanted."""
        hop = self._hops.get(address)
        if hop is None:
            if len(self._hops) >= MAX_HOPS:
                return [item]
            hop = self._hops[address] = _Hop(now)
            self._soonest = now if self._soonest is None else min(self._soonest, now)
        hop.waiting.append(item)
        self._waiting += 1
        if len(hop.waiting) <= MAX_WAITING_PER_HOP and self._waiting <= MAX_WAITING:
            return []
        self._waiting -= 1
        return [hop.waiting.popleft()]

    def learn(self, address: Address, mac: bytes, now: int, *, override: bool = True) -> tuple[list[T], bool]:
        """An answer, or an announcement: what waited for it, and whether the table is different now.

        Without ``override`` (RFC 4861 7.2.5) an address that is known stays.
        """
        hop = self._hops.get(address)
        if hop is None or is_group(mac) or not any(mac) or (hop.mac not in (None, mac) and not override):
            return [], False
        changed = hop.mac != mac
        hop.mac, hop.asked, hop.due = mac, 0, now + REFRESH
        self._reckon()
        released = list(hop.waiting)
        hop.waiting.clear()
        self._waiting -= len(released)
        return released, changed

    def keep(self, addresses: Collection[Address]) -> list[T]:
        """Forget all hops but these; returns what waited for the others."""
        dropped: list[T] = []
        for address in [each for each in self._hops if each not in addresses]:
            dropped += self._hops.pop(address).waiting
        self._waiting -= len(dropped)
        self._reckon()
        return dropped

    def tick(self, now: int) -> Due[T]:
        """What is due by now. A hop that has fallen silent is forgotten; the next packet for it asks everybody anew."""
        due = Due[T]([], [], lost=False)
        if self._soonest is None or now < self._soonest:
            return due
        for address, hop in list(self._hops.items()):
            if hop.due > now:
                continue
            if hop.asked < TRIES:
                hop.asked += 1
                hop.due = now + RETRY
                due.questions.append((address, hop.mac))
                continue
            due.lost = due.lost or hop.mac is not None
            due.given_up.extend(hop.waiting)
            self._waiting -= len(hop.waiting)
            del self._hops[address]
        self._reckon()
        return due

    def deadline(self) -> int | None:
        """When :meth:`tick` has something to do next."""
        return self._soonest

    def _reckon(self) -> None:
        self._soonest = min((hop.due for hop in self._hops.values()), default=None)
