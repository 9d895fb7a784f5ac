"""Soft and hard lifetimes of an SA in packets and octets (RFC 4301 4.4.2.1; ledger E45).

Octets are those given to the cryptographic algorithm, padding included: the ESP plaintext with its trailer,
or everything that the AH integrity check covers.
"""

from __future__ import annotations

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.ipsec import Lifetime

UNLIMITED = Lifetime()


class LifetimeCounters:
    """Packets and octets against limits (0: none). ``limits`` may be replaced; counters never go back."""

    __slots__ = ("bytes", "limits", "packets")

    def __init__(self, limits: Lifetime) -> None:
        self.limits = limits
        self.packets = 0
        self.bytes = 0

    def check(self) -> None:
        """PacketError HARD_LIFETIME once a hard limit is reached: with a limit of N, N packets succeed."""
        limits = self.limits
        if _reached(self.packets, limits.packets_hard_limit) or _reached(self.bytes, limits.bytes_hard_limit):
            raise PacketError(Reason.HARD_LIFETIME, "a hard lifetime limit of the SA is reached")

    def count(self, octets: int) -> None:
        """Count one packet that passed every check."""
        self.packets += 1
        self.bytes += octets

    @property
    def soft_expired(self) -> bool:
        """True from the packet on that makes a counter reach its soft limit."""
        limits = self.limits
        return _reached(self.packets, limits.packets_soft_limit) or _reached(
            self.bytes, limits.bytes_soft_limit
        )


def _reached(counter: int, limit: int) -> bool:
    return 0 < limit <= counter
