"""IPsec security associations as resource objects: create, modify, query, destroy, rekey.

Where the driver clauses are obeyed:

======================  =======================================================================
NET-IPSEC-DRV-04, -05   :func:`complete`: every field filled; tunnel parameters only outbound
NET-IPSEC-DRV-06        a second inbound SA with a live SPI is refused
NET-IPSEC-INT-01        :meth:`Sas.find_inbound` knows live SAs only; ids rest before reuse
NET-TX-DRV-33, -34      :meth:`Sas.for_transmit` gives ids of live outbound SAs only
INF-11, INF-15          no limit before the capability is set; ids run below it
======================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.errors import DriverError, NotNegotiated
from virtio_ipsec.driver.objects import IdPool
from virtio_ipsec.driver.transmit import TUNNEL_MODES, suite_of, worst_overhead
from virtio_ipsec.errors import ConfigError, VirtioIpsecError
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.ipsec import IpsecSa, IpsecSaCap, Lifetime, ModeCap
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption, ResourceType
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4, TunnelIPv6

ESP_MODES = frozenset({IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT})

_TYPES = {
    Direction.OUTBOUND: ResourceType.NET_IPSEC_OUTB_SA,
    Direction.INBOUND: ResourceType.NET_IPSEC_INB_SA,
}
#: What MODIFY may change: the rest would restart a counter under an old key (E40).
_MODIFIABLE = frozenset({"options", "param", "udp_sport", "udp_dport", "replay_win_sz", "life"})
_FIXED_OPTIONS = int(IpsecOption.ESN)
_UDP_ENCAP = int(IpsecOption.UDP_ENCAP)
_NAT_T_PORT = 4500
_DEFAULT_TTL = 64


@dataclass(slots=True, eq=False)
class SaHandle:
    """One SA on the device. ``id`` is what headers carry; ``alive`` ends with DESTROY.

    ``path_mtu`` bounds the IP length of protected packets; None: the driver's MTU. ``successor`` is the SA
    that took over after a rekey; packets sent with this handle go to it.
    """

    id: int
    type: ResourceType
    params: IpsecSa
    path_mtu: int | None = None
    alive: bool = True
    successor: SaHandle | None = None
    #: Packets in transmit queues that name this SA.
    in_flight: int = 0
    #: Most bytes that protection adds to a packet.
    overhead: int = 0
    #: Flow-filter rules that feed this inbound SA.
    rules: tuple[Any, ...] = field(default=(), repr=False)
    #: Outbound: packets sent, and an upper bound of the octets that the device counts for them (E45).
    packets: int = 0
    octets: int = 0

    @property
    def inbound(self) -> bool:
        """True for an inbound SA."""
        return self.type == ResourceType.NET_IPSEC_INB_SA

    @property
    def soft_expired(self) -> bool:
        """Outbound: a soft limit is reached by this driver's own count, for the device cannot say (E55)."""
        life = self.params.life
        return bool(self.params.options & IpsecOption.SA_LIFETIME) and (
            0 < life.packets_soft_limit <= self.packets or 0 < life.bytes_soft_limit <= self.octets
        )

    def count(self, lengths: Sequence[int]) -> None:
        """Count packets of these IP lengths that were queued for this SA."""
        self.packets += len(lengths)
        self.octets += sum(lengths) + len(lengths) * (suite_of(self.params).alignment + 1)


class Sas:
    """All SAs of one session."""

    def __init__(self, admin: Admin, dialect: Dialect, cap: IpsecSaCap, inbound: int, outbound: int) -> None:
        self._admin = admin
        self._dialect = dialect
        self._modes: Mapping[int, ModeCap] = {mode.mode: mode for mode in cap.modes}
        self._ids = {
            ResourceType.NET_IPSEC_OUTB_SA: IdPool("outbound SAs", outbound),
            ResourceType.NET_IPSEC_INB_SA: IdPool("inbound SAs", inbound),
        }
        self._live: dict[ResourceType, dict[int, SaHandle]] = {kind: {} for kind in self._ids}
        self._by_spi: dict[int, SaHandle] = {}
        self._replaced: set[SaHandle] = set()

    def create_outbound(self, sa: IpsecSa, *, path_mtu: int | None = None) -> SaHandle:
        """Create an outbound SA; ``direction`` and ``obj_id`` are filled in here. Raises ConfigError for
        parameters outside the capability, LimitReached, CommandFailed."""
        handle = self._create(sa, Direction.OUTBOUND)
        handle.path_mtu = path_mtu
        handle.overhead = worst_overhead(handle.params)
        return handle

    def create_inbound(self, sa: IpsecSa) -> SaHandle:
        """Create an inbound SA; its tunnel parameters are left out. Raises as ``create_outbound``."""
        if sa.spi in self._by_spi:
            raise DriverError(f"an inbound SA with SPI {sa.spi:#x} exists")
        handle = self._create(sa, Direction.INBOUND)
        self._by_spi[sa.spi] = handle
        return handle

    def modify(self, handle: SaHandle, **changes: Any) -> None:
        """Change options, tunnel or UDP parameters, replay window or lifetimes of a live SA."""
        self._must_live(handle)
        if not self._dialect.supports_modify_query:
            raise NotNegotiated("this dialect has no MODIFY for SAs")
        if not changes.keys() <= _MODIFIABLE:
            fixed = ", ".join(sorted(changes.keys() - _MODIFIABLE))
            raise ConfigError(f"{fixed} cannot change while an SA lives: rekey instead")
        params = replace(handle.params, **changes)
        params = replace(params, **self._checked(params, Direction(params.direction)))
        if (params.options ^ handle.params.options) & _FIXED_OPTIONS:
            raise ConfigError("extended sequence numbers cannot be switched while an SA lives: rekey instead")
        self._admin.modify(handle.type, handle.id, self._dialect.sa.build(params))
        handle.params = params
        handle.overhead = 0 if handle.inbound else worst_overhead(params)

    def query(self, handle: SaHandle) -> IpsecSa:
        """The SA as the device has it (keys included, unless the device withholds them: E41)."""
        self._must_live(handle)
        if not self._dialect.supports_modify_query:
            raise NotNegotiated("this dialect has no QUERY for SAs")
        codec = self._dialect.sa
        return codec.parse(self._admin.query(handle.type, handle.id, codec.fixed_size))

    def destroy(self, handle: SaHandle) -> None:
        """Destroy a live SA. Packets that the device has already taken may still use it (E49); while a
        queued packet names it, DriverError: its id would be no longer valid (NET-TX-DRV-34)."""
        self._must_live(handle)
        if handle.in_flight:
            raise DriverError(f"SA {handle.id} is named by {handle.in_flight} packets that wait to be sent")
        self._admin.destroy(handle.type, handle.id)
        handle.alive = False
        del self._live[handle.type][handle.id]
        self._ids[handle.type].release(handle.id)
        if handle.inbound:
            del self._by_spi[handle.params.spi]
        self._replaced.discard(handle)

    def all(self) -> tuple[SaHandle, ...]:
        """Live SAs of both directions."""
        return tuple(handle for table in self._live.values() for handle in table.values())

    def find_inbound(self, number: int) -> SaHandle | None:
        """The live inbound SA with this id."""
        return self._live[ResourceType.NET_IPSEC_INB_SA].get(number)

    def for_transmit(self, handle: SaHandle) -> SaHandle:
        """The SA that packets given to ``handle`` use: itself or what rekeying put in its place."""
        while handle.successor is not None:
            handle = handle.successor
        if handle.inbound:
            raise DriverError("a packet to send needs an outbound SA")
        self._must_live(handle)
        return handle

    def rekey_outbound(self, old: SaHandle, sa: IpsecSa) -> SaHandle:
        """Make before break: create the new SA, then switch. ``take_drained`` says when the old one can go."""
        old = self.for_transmit(old)
        new = self.create_outbound(sa, path_mtu=old.path_mtu)
        old.successor = new
        self._replaced.add(old)
        return new

    def take_drained(self) -> tuple[SaHandle, ...]:
        """Replaced outbound SAs that no queued packet names any more; each is reported once."""
        drained = tuple(each for each in self._replaced if not each.in_flight)
        self._replaced.difference_update(drained)
        return drained

    def _create(self, sa: IpsecSa, direction: Direction) -> SaHandle:
        kind = _TYPES[direction]
        values = self._checked(sa, direction)
        number = self._ids[kind].take()
        params = replace(sa, direction=direction, obj_id=number, **values)  # E37
        try:
            self._admin.create(kind, number, self._dialect.sa.build(params))
        except VirtioIpsecError:
            self._ids[kind].release(number)
            raise
        handle = SaHandle(number, kind, params)
        self._live[kind][number] = handle
        return handle

    def _must_live(self, handle: SaHandle) -> None:
        if self._live[handle.type].get(handle.id) is not handle:
            raise DriverError(f"SA {handle.id} has been destroyed")

    def _checked(self, sa: IpsecSa, direction: Direction) -> dict[str, Any]:
        """Refuses what the device cannot do, then as :func:`complete`."""
        cap = self._modes.get(sa.mode)
        if cap is None:
            raise ConfigError(f"mode {sa.mode} is not in the device's capability")
        check_against(sa, direction, cap)
        if not self._dialect.has_lifetime and sa.life != Lifetime():
            raise ConfigError("this dialect has no lifetimes")
        if not self._dialect.has_initial_esn and sa.esn:
            raise ConfigError("this dialect has no initial sequence number")
        return complete(sa, direction)


def check_against(sa: IpsecSa, direction: Direction, cap: ModeCap) -> None:
    """Refuse an SA outside its mode's capability, or with algorithms that form no suite.

    Raises ConfigError, or UnsupportedAlgorithm of the algorithm registry.
    """
    suite_of(sa)
    esp = sa.mode in ESP_MODES
    if sa.options & ~cap.options:
        raise ConfigError(f"options {sa.options & ~cap.options:#x} are not in the device's capability")
    if direction is Direction.INBOUND and sa.replay_win_sz > cap.max_replay_win_sz:
        raise ConfigError(f"a replay window of {sa.replay_win_sz}; the device has {cap.max_replay_win_sz}")
    if esp and not sa.auth_algo:
        fits = cap.aead_algo >> sa.cipher_algo & 1  # E28
    else:
        fits = cap.hmac_algo >> sa.auth_algo & (cap.cipher_algo >> sa.cipher_algo if esp else 1) & 1
    if not fits:
        raise ConfigError(f"cipher {sa.cipher_algo} with MAC {sa.auth_algo} is not in the capability")
    if sa.cipher_key_length > cap.max_cipher_key_len or sa.auth_key_length > cap.max_auth_key_len:
        raise ConfigError("a key is longer than the device's capability allows")


def complete(sa: IpsecSa, direction: Direction) -> dict[str, Any]:
    """The fields to replace so that every one has the value it stands for; ConfigError where there is none."""
    if not 0 < sa.spi < 1 << 32:
        raise ConfigError(f"SPI {sa.spi:#x}: it has 32 bits and is not 0")
    if len(sa.salt) != 4:
        raise ConfigError(f"a salt of {len(sa.salt)} bytes where 4 belong")
    has_outer = direction is Direction.OUTBOUND and sa.mode in TUNNEL_MODES
    values: dict[str, Any] = {"param": _outer(sa.param) if has_outer else NO_TUNNEL}
    if sa.options & _UDP_ENCAP:
        values["udp_sport"] = sa.udp_sport or _NAT_T_PORT
        values["udp_dport"] = sa.udp_dport or _NAT_T_PORT
    return values


def _outer(param: object) -> TunnelIPv4 | TunnelIPv6:
    """Tunnel parameters of an outbound SA, time to live filled in (E26)."""
    if isinstance(param, TunnelIPv4) and int(param.src_ip) and int(param.dst_ip):
        return param if param.ttl else replace(param, ttl=_DEFAULT_TTL)
    if isinstance(param, TunnelIPv6) and int(param.src_addr) and int(param.dst_addr):
        return param if param.hlimit else replace(param, hlimit=_DEFAULT_TTL)
    raise ConfigError("an outbound SA in tunnel mode needs the addresses of the outer header")
