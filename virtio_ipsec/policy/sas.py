"""The security associations of an operator's port (RFC 4301 4.4.2): by id, by SPI, and how they are replaced.

What does the cryptography stands behind :class:`SaFactory`: this room knows no fast path. :class:`ReferenceSas` is the
one in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from virtio_ipsec.errors import ConfigError, Reason
from virtio_ipsec.ipsec.process import Inbound, IpsecHeader, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.policy.sa_config import SaSpec, identities


class Engine(Protocol):
    """A live SA. It alone holds sequence numbers, window, lifetimes and counters."""

    @property
    def params(self) -> SaParams: ...
    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def soft_expired(self) -> bool: ...
    @property
    def stats(self) -> Mapping[Reason, int]: ...
    def wipe(self) -> None: ...


class SaFactory(Protocol):
    """Makes engines and runs packets through them. ``id`` is that of the file, unique per direction."""

    def outbound(self, id: int, params: SaParams) -> Engine:
        """A new SA for packets that leave; it has ``sequence``, the number used last. May raise VirtioIpsecError."""
        ...

    def inbound(self, id: int, params: SaParams) -> Engine:
        """A new SA for packets that arrive. May raise VirtioIpsecError."""
        ...

    def protect(self, sa: Any, packet: bytes, mtu: int) -> bytes:
        """:func:`virtio_ipsec.ipsec.process.outbound`, with the same refusals."""
        ...

    def unprotect(self, sa: Any, packet: bytes, found: IpsecHeader) -> Inbound:
        """:func:`virtio_ipsec.ipsec.process.inbound`, with the same refusals."""
        ...


class ReferenceSas:
    """SAs of :mod:`virtio_ipsec.ipsec`, every mode and algorithm."""

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._rng = rng

    def outbound(self, id: int, params: SaParams) -> OutboundSa:
        return OutboundSa(params, self._rng)

    def inbound(self, id: int, params: SaParams) -> InboundSa:
        return InboundSa(params)

    def protect(self, sa: OutboundSa, packet: bytes, mtu: int) -> bytes:
        return outbound(sa, packet, mtu)

    def unprotect(self, sa: InboundSa, packet: bytes, found: IpsecHeader) -> Inbound:
        return inbound(sa, packet, found)


@dataclass(frozen=True, slots=True)
class HeldSa:
    """A live SA with its description."""

    spec: SaSpec
    engine: Engine


class SaDatabase:
    """All SAs of one port. Nothing in here is found by a key or a name of a key."""

    def __init__(self, factory: SaFactory) -> None:
        self._factory = factory
        self._held: dict[tuple[bool, int], HeldSa] = {}
        self._by_spi: dict[tuple[int, int], HeldSa] = {}
        self._sent_by_spi: dict[tuple[int, int], dict[int, HeldSa]] = {}
        self._identities: set[tuple[object, ...]] = set()

    def __iter__(self) -> Iterator[HeldSa]:
        return iter(self._held.values())

    def add(self, spec: SaSpec) -> HeldSa:
        """Bring an SA to life. ConfigError when its id, SPI, or key with salt is taken."""
        taken = identities(spec)
        for identity, message in taken:
            if identity in self._identities:
                raise ConfigError(f"sa id {spec.id}: {message}")
        make = self._factory.outbound if spec.outbound else self._factory.inbound
        held = HeldSa(spec, make(spec.id, spec.params))
        self._identities.update(identity for identity, _ in taken)
        self._held[spec.outbound, spec.id] = held
        spi = spec.params.protocol, spec.params.spi
        if spec.outbound:
            self._sent_by_spi.setdefault(spi, {})[spec.id] = held
        else:
            self._by_spi[spi] = held
        return held

    def remove(self, *, outbound: bool, id: int) -> HeldSa:
        """Take an SA away and wipe its keys; what is meant for it is dropped from now on. KeyError."""
        held = self._held.pop((outbound, id))
        self._identities.difference_update(identity for identity, _ in identities(held.spec))
        spi = held.spec.params.protocol, held.spec.params.spi
        if outbound:
            same = self._sent_by_spi[spi]
            del same[id]
            if not same:
                del self._sent_by_spi[spi]
        else:
            del self._by_spi[spi]
        held.engine.wipe()
        return held

    def get(self, *, outbound: bool, id: int) -> HeldSa | None:
        """The SA with that id."""
        return self._held.get((outbound, id))

    def by_spi(self, protocol: int, spi: int) -> HeldSa | None:
        """The inbound SA that a packet names."""
        return self._by_spi.get((protocol, spi))

    def sent_with(self, protocol: int, spi: int) -> list[HeldSa]:
        """The outbound SAs that write this SPI: each peer chooses its own, so there may be several."""
        return list(self._sent_by_spi.get((protocol, spi), {}).values())

    def transport_in(self) -> Iterator[SaParams]:
        """Parameters of inbound transport mode SAs."""
        return (sa.spec.params for sa in self._by_spi.values() if not sa.spec.params.is_tunnel)

    def protect(self, held: HeldSa, packet: bytes, mtu: int) -> bytes:
        """PacketError as of the engine."""
        return self._factory.protect(held.engine, packet, mtu)

    def unprotect(self, held: HeldSa, packet: bytes, found: IpsecHeader) -> Inbound:
        """PacketError as of the engine."""
        return self._factory.unprotect(held.engine, packet, found)
