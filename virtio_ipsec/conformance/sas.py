"""Security associations for cases, and the peer at the other end of the wire: the oracle in `ipsec/`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite, ah_masks, by_name, esp_masks
from virtio_ipsec.ipsec.process import Inbound, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSa, IpsecSaCap, Lifetime, ModeCap
from virtio_ipsec.wire.numbers import (
    AeadAlgo,
    CapId,
    Direction,
    IpsecMode,
    IpsecOption,
    MacAlgo,
    ResourceType,
)
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4, TunnelIPv6

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

TYPES = {
    Direction.OUTBOUND: ResourceType.NET_IPSEC_OUTB_SA,
    Direction.INBOUND: ResourceType.NET_IPSEC_INB_SA,
}
TUNNEL4 = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), ttl=64)
TUNNEL6 = TunnelIPv6(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), hlimit=64)
AH_MODES = frozenset({IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT})
TUNNEL_MODES = frozenset({IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL})
#: Options that both ends of an SA have to agree on; the others concern one end's own headers and limits.
_OF_BOTH_ENDS = IpsecOption.ESN | IpsecOption.UDP_ENCAP


@dataclass(slots=True)
class Caps:
    """The device's IPsec capabilities as read by a case."""

    resources: IpsecResourceCap
    modes: dict[int, ModeCap] = field(default_factory=dict)

    def limit(self, direction: Direction) -> int:
        """How many SAs of a direction there can be; ids are below it."""
        inbound_ = direction is Direction.INBOUND
        return self.resources.inb_sa_limit if inbound_ else self.resources.outb_sa_limit

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those that the device has SAs of."""
        return tuple(way for way in (Direction.OUTBOUND, Direction.INBOUND) if self.limit(way))

    def suites(self, mode: int) -> list[Suite]:
        """The suites of this package that the device offers in ``mode``."""
        cap = self.modes.get(mode)
        if cap is None or mode not in IpsecMode._value2member_map_:
            return []
        protocol = Protocol.AH if mode in AH_MODES else Protocol.ESP
        return [suite for suite in SUITES if suite.protocol is protocol and offers(cap, suite)]


def offers(cap: ModeCap, suite: Suite) -> bool:
    """Whether the masks and key lengths of a capability entry cover a suite."""
    if (
        max(suite.cipher_key_lens) > cap.max_cipher_key_len
        and min(suite.cipher_key_lens) > cap.max_cipher_key_len
    ):
        return False
    if min(suite.auth_key_lens) > cap.max_auth_key_len:
        return False
    if suite.aead_algo != AeadAlgo.NO_AEAD:
        return bool(cap.aead_algo >> suite.aead_algo & 1)
    cipher = suite.protocol is Protocol.AH or bool(cap.cipher_algo >> suite.cipher_algo & 1)
    return cipher and suite.auth_algo != MacAlgo.NO_MAC and bool(cap.hmac_algo >> suite.auth_algo & 1)


def _everything(mode: IpsecMode) -> ModeCap:
    masks = ah_masks() if mode in AH_MODES else esp_masks()
    return ModeCap(
        mode, 64, 0, masks.cipher, masks.hmac, masks.aead, masks.max_cipher_key, masks.max_auth_key
    )


#: What is assumed of a device whose capabilities were not read.
ANYTHING = Caps(IpsecResourceCap(1, 1), {mode: _everything(mode) for mode in IpsecMode})


def read_caps(bench: Bench) -> Caps:
    """GET both IPsec capabilities. Raises CommandFailed."""
    resources = bench.dialect.resource_cap.parse(
        demand(bench.admin.cap_get(CapId.NET_IPSEC_RESOURCE_CAP)).result
    )
    modes = bench.dialect.sa_cap.parse(demand(bench.admin.cap_get(CapId.NET_IPSEC_SA_CAP)).result)
    bench.sa_caps = Caps(resources, {entry.mode: entry for entry in modes.modes})
    return bench.sa_caps


def set_caps(bench: Bench, resources: IpsecResourceCap, modes: IpsecSaCap) -> None:
    """SET both IPsec capabilities. Raises CommandFailed."""
    demand(bench.admin.cap_set(CapId.NET_IPSEC_RESOURCE_CAP, bench.dialect.resource_cap.build(resources)))
    demand(bench.admin.cap_set(CapId.NET_IPSEC_SA_CAP, bench.dialect.sa_cap.build(modes)))


def enable(bench: Bench) -> Caps:
    """LIST_USE and both IPsec capabilities set to what the device offers. Raises CommandFailed."""
    bench.admin.use_everything()
    caps = read_caps(bench)
    bench.admin.accept_caps(CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP)
    return caps


def make(
    bench: Bench,
    direction: Direction = Direction.OUTBOUND,
    *,
    mode: IpsecMode | None = None,
    suite: str | None = None,
    key_octets: int | None = None,
    **fields: object,
) -> IpsecSa:
    """A valid SA with fresh random keys and SPI; ``fields`` replace any member of :class:`IpsecSa`.

    Mode and suite default to the first that the device offers, as far as its capabilities were read: ESP
    tunnel with AES-GCM, where it can be. Raises Unsupported when nothing that it offers is known here.
    """
    caps = bench.sa_caps or ANYTHING
    if mode is None:
        mode = next((IpsecMode(number) for number in sorted(caps.modes) if caps.suites(number)), None)
        if mode is None:
            raise Unsupported("the device offers no mode with an algorithm that this suite knows")
    if suite is None:
        known = caps.suites(mode) or ANYTHING.suites(mode)
        suite = known[0].name
    chosen = by_name(suite, Protocol.AH if mode in AH_MODES else Protocol.ESP)
    inbound_ = direction is Direction.INBOUND
    window = min(64, caps.modes[mode].max_replay_win_sz) if mode in caps.modes else 64
    outer = TUNNEL4 if mode in TUNNEL_MODES and not inbound_ else NO_TUNNEL
    sa = IpsecSa(
        mode=mode,
        direction=direction,
        spi=bench.rng.randrange(0x1000, 0xFFFF_0000),
        salt=_salt(bench),
        param=outer,
        replay_win_sz=window if inbound_ else 0,
        cipher_algo=chosen.cipher_algo,
        cipher_key=bench.octets(_length(chosen.cipher_key_lens, key_octets)),
        auth_algo=chosen.auth_algo,
        auth_key=bench.octets(_length(chosen.auth_key_lens, key_octets)),
    )
    return replace(sa, **fields)  # type: ignore[arg-type]


def _salt(bench: Bench) -> bytes:
    """A salt that reads the same in both byte orders, so that only the case about the order depends on it
    (ledger E24)."""
    half = bench.octets(2)
    return half + half[::-1]


def _length(lengths: frozenset[int], wanted: int | None) -> int:
    return wanted if wanted in lengths else min(lengths)


def install(bench: Bench, id: int, sa: IpsecSa) -> Reply:
    """CREATE the SA under ``id``, with ``obj_id`` equal to it (ledger E37)."""
    return bench.admin.create(
        TYPES[Direction(sa.direction)], id, bench.dialect.sa.build(replace(sa, obj_id=id))
    )


class Peer:
    """The other end of an SA: seals what an inbound SA of the device is to open, and opens what an outbound
    SA of the device has sealed. It is judged by foreign implementations in tests/differential.

    ``outer`` is the tunnel header of packets that this end seals. A number that the device uses twice is a
    replay to this end.
    """

    def __init__(self, bench: Bench, sa: IpsecSa, outer: TunnelIPv4 | TunnelIPv6 = TUNNEL4) -> None:
        seals = sa.direction == Direction.INBOUND
        mine = replace(
            sa,
            direction=Direction.OUTBOUND if seals else Direction.INBOUND,
            options=sa.options & _OF_BOTH_ENDS,
            param=outer if seals and sa.mode in TUNNEL_MODES else NO_TUNNEL,
            replay_win_sz=0 if seals else 4096,
            life=Lifetime(),
        )
        params = SaParams.from_wire(mine, bench.dialect)
        self._seal = OutboundSa(params, bench.octets) if seals else None
        self._open = None if seals else InboundSa(params)

    def seal(self, packet: bytes) -> bytes:
        """The protected IP packet of a plain one, with the next sequence number."""
        if self._seal is None:
            raise TypeError("this peer opens")
        return outbound(self._seal, packet)

    def at(self, sequence: int) -> Peer:
        """Let the next sealed packet carry this sequence number."""
        if self._seal is None:
            raise TypeError("this peer opens")
        self._seal.sequence = sequence - 1
        return self

    def open(self, packet: bytes) -> Inbound:
        """Check and open a protected IP packet. Raises PacketError."""
        if self._open is None:
            raise TypeError("this peer seals")
        return inbound(self._open, packet)
