"""How large packets to each tunnel peer may be (RFC 1191, RFC 8201, RFC 4301 8.2).

What the net reports lowers the link's MTU for one destination; after ten minutes it is tried anew (RFC 1191 6.3).
"""

from __future__ import annotations

from virtio_ipsec.policy.rate import SECOND
from virtio_ipsec.policy.tables import Address

AGE = 600 * SECOND
#: No path is believed to be narrower: a forged report shall not make packets tiny. IPv6 links carry 1280 anyway; for
#: IPv4 this is what widely used stacks take.
FLOOR = {4: 552, 6: 1280}
#: RFC 1191 7: for routers that do not say how much they carry.
PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 552)
MAX_PATHS = 4096


class PathMtus:
    """What is known beyond the link's MTU, by destination. Times are in nanoseconds."""

    def __init__(self) -> None:
        self._paths: dict[Address, tuple[int, int]] = {}  # (MTU, when to forget it), oldest first

    def get(self, address: Address, link: int) -> int:
        """Octets that an IP packet to ``address`` may have, on a link that carries ``link``."""
        known = self._paths.get(address)
        return link if known is None else min(link, known[0])

    def known(self, link: int) -> dict[Address, int]:
        """The destinations whose way carries less than the link."""
        return {address: mtu for address, (mtu, _) in self._paths.items() if mtu < link}

    def lower(self, address: Address, reported: int, sent: int, now: int) -> bool:
        """A router carries ``reported`` octets (0: it does not say) of a packet of ``sent``; whether it is news."""
        if not reported:
            reported = next((each for each in PLATEAUS if each < sent), PLATEAUS[-1])
        mtu = max(reported, FLOOR[address.version])
        if mtu >= self.get(address, sent):
            return False
        self._paths.pop(address, None)
        if len(self._paths) >= MAX_PATHS:
            del self._paths[next(iter(self._paths))]
        self._paths[address] = mtu, now + AGE
        return True

    def tick(self, now: int) -> bool:
        """Forget what is old; whether there was any."""
        old = [address for address, (_, until) in self._paths.items() if until <= now]
        for address in old:
            del self._paths[address]
        return bool(old)

    def deadline(self) -> int | None:
        """When :meth:`tick` has something to do next."""
        return next((until for _, until in self._paths.values()), None)
