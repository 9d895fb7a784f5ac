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
#: What waits for one hop, and for all of them. A question is answered within milliseconds or not at all; for a back-end
#: that was started anew under load a burst of full frames has to find room meanwhile.
MAX_WAITING_PER_HOP, MAX_OCTETS_PER_HOP = 512, 1 << 20
MAX_WAITING, MAX_OCTETS = 4096, 8 << 20
MAX_HOPS = 4096

T = TypeVar("T")


@dataclass(slots=True)
class _Hop(Generic[T]):
    due: int  # when to ask next, or to give up
    mac: bytes | None = None
    asked: int = 0  # questions since the last answer
    waiting: deque[tuple[T, int]] = field(default_factory=deque)
    octets: int = 0


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
        self._waiting = self._octets = 0
        self._soonest: int | None = None  # nothing is due before

    def mac(self, address: Address) -> bytes | None:
        """The Ethernet address, if known."""
        hop = self._hops.get(address)
        return hop.mac if hop else None

    def known(self) -> dict[Address, bytes]:
        """All that are known."""
        return {address: hop.mac for address, hop in self._hops.items() if hop.mac is not None}

    def wait(self, address: Address, item: T, octets: int, now: int) -> list[T]:
        """Let ``item`` of so many octets wait for the address; the question becomes due. Returns what found no room:
        the oldest of the same hop give way, for the newest says best what is wanted."""
        hop = self._hops.get(address)
        if hop is None:
            if len(self._hops) >= MAX_HOPS:
                return [item]
            hop = self._hops[address] = _Hop(now)
            self._soonest = now if self._soonest is None else min(self._soonest, now)
        hop.waiting.append((item, octets))
        hop.octets += octets
        self._waiting += 1
        self._octets += octets
        late: list[T] = []
        while hop.waiting and (
            len(hop.waiting) > MAX_WAITING_PER_HOP
            or hop.octets > MAX_OCTETS_PER_HOP
            or self._waiting > MAX_WAITING
            or self._octets > MAX_OCTETS
        ):
            oldest, size = hop.waiting.popleft()
            hop.octets -= size
            self._waiting -= 1
            self._octets -= size
            late.append(oldest)
        return late

    def _free(self, hop: _Hop[T]) -> list[T]:
        """All that waits for a hop, which waits no more."""
        self._waiting -= len(hop.waiting)
        self._octets -= hop.octets
        freed = [item for item, _ in hop.waiting]
        hop.waiting.clear()
        hop.octets = 0
        return freed

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
        return self._free(hop), changed

    def keep(self, addresses: Collection[Address]) -> list[T]:
        """Forget all hops but these; returns what waited for the others."""
        dropped: list[T] = []
        for address in [each for each in self._hops if each not in addresses]:
            dropped += self._free(self._hops.pop(address))
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
            due.given_up += self._free(self._hops.pop(address))
        self._reckon()
        return due

    def deadline(self) -> int | None:
        """When :meth:`tick` has something to do next."""
        return self._soonest

    def _reckon(self) -> None:
        self._soonest = min((hop.due for hop in self._hops.values()), default=None)
