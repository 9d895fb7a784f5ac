"""Ids of resource objects of one type."""

from __future__ import annotations

from collections import deque

from virtio_ipsec.driver.errors import LimitReached


class IdPool:
    """Hands out ids below ``limit``. A released id waits behind every other free one, so that a packet that
    still names the old object is unlikely to meet a new object under the same id (NET-IPSEC-INT-01)."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self.limit = limit
        self._fresh = 0
        self._released: deque[int] = deque()

    def take(self) -> int:
        """A free id; LimitReached when there is none."""
        if self._fresh < self.limit:
            self._fresh += 1
            return self._fresh - 1
        if self._released:
            return self._released.popleft()
        raise LimitReached(f"all {self.limit} ids of {self._what} are in use")

    def release(self, number: int) -> None:
        """Give an id back."""
        self._released.append(number)
