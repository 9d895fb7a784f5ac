"""Security associations as a configuration file gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.ipsec.sa import BadSaParameters, SaParams
from virtio_ipsec.policy.flow_config import SELECTOR_FIELDS, read_selector
from virtio_ipsec.policy.selectors import InboundSa
from virtio_ipsec.policy.tables import Table
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelRaw

MODES = {
    "esp-tunnel": IpsecMode.ESP_TUNNEL,
    "esp-transport": IpsecMode.ESP_TRANSPORT,
    "ah-tunnel": IpsecMode.AH_TUNNEL,
    "ah-transport": IpsecMode.AH_TRANSPORT,
}
DIRECTIONS = {"outbound": Direction.OUTBOUND, "inbound": Direction.INBOUND}
OPTIONS = {option.name.lower().replace("_", "-"): option for option in IpsecOption if option.name}
DEFAULT_UDP_PORT = 4500
#: What ``peer`` says when a tunnel's other end may have any address.
ANY_PEER = "any"

SA_FIELDS = frozenset(
    {
        "id",
        "direction",
        "mode",
        "spi",
        "algorithm",
        "key",
        "key_file",
        "auth_key",
        "auth_key_file",
        "salt",
        "options",
        "tunnel",
        "udp",
        "replay_window",
        "lifetime",
        "first_sequence",
        "peer",
        "selectors",
    }
)
TUNNEL_FIELDS = frozenset({"src", "dst", "dscp", "df", "ttl", "flow_label"})
UDP_FIELDS = frozenset({"sport", "dport"})
LIFETIME_FIELDS = frozenset({"packets_soft", "bytes_soft", "packets_hard", "bytes_hard"})


@dataclass(frozen=True, slots=True)
class SaSpec:
    """A security association as the file gives it. ``id`` is the resource object id per direction.

    ``params`` is ``sa``, checked. ``admitted``: what may come out of an inbound SA, where the file says so.
    """

    id: int
    sa: IpsecSa = field(repr=False)
    suite: Suite
    params: SaParams = field(repr=False)
    admitted: InboundSa | None = None

    @property
    def outbound(self) -> bool:
        """Whether this SA protects packets that leave."""
        return self.sa.direction == Direction.OUTBOUND


def read_sa(table: Table, dialect: Dialect, read_key: Callable[[str], bytes] | None) -> SaSpec:
    """An SA whose parameters agree with each other and with the dialect. Raises ConfigError."""
    direction = DIRECTIONS[table.choice("direction", DIRECTIONS)]
    mode = MODES[table.choice("mode", MODES)]
    protocol = Protocol.AH if mode in {IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT} else Protocol.ESP
    suites = {suite.name: suite for suite in SUITES if suite.protocol is protocol}
    suite = suites[table.choice("algorithm", suites)]
    options, udp = _options(table), table.table("udp", UDP_FIELDS)
    if udp is not None:
        options |= IpsecOption.UDP_ENCAP
    lifetime = _lifetime(table)
    if lifetime != Lifetime():
        options |= IpsecOption.SA_LIFETIME
    if not dialect.has_lifetime and options & IpsecOption.SA_LIFETIME:
        table.refuse("lifetime", f"does not exist in dialect {dialect.name}")
    if table.has("first_sequence") and not dialect.has_initial_esn:
        table.refuse("first_sequence", f"does not exist in dialect {dialect.name}")
    cipher_key, auth_key = _keys(table, suite, read_key)
    salt = table.octets("salt")
    if len(salt) not in ({4} if suite.salt_len else {0, 4}):
        table.refuse("salt", f"must be 4 octets for {suite.name}")
    sa = IpsecSa(
        mode=mode,
        direction=direction,
        spi=table.integer("spi", 1, 0xFFFF_FFFF),
        salt=salt.ljust(4, b"\0"),
        options=int(options),
        param=_tunnel(table, mode, direction),
        udp_sport=udp.integer("sport", 0, 65535, DEFAULT_UDP_PORT) if udp else 0,
        udp_dport=udp.integer("dport", 0, 65535, DEFAULT_UDP_PORT) if udp else 0,
        replay_win_sz=table.integer("replay_window", 0, 4096, 64 if direction == Direction.INBOUND else 0),
        cipher_algo=suite.cipher_algo,
        cipher_key=cipher_key,
        auth_algo=suite.auth_algo,
        auth_key=auth_key,
        life=lifetime,
        obj_id=(id := table.integer("id", 0, 0xFFFF_FFFF)),
        esn=table.integer("first_sequence", 0, 2**64 - 1, 0),
    )
    try:
        params = SaParams.from_wire(sa, dialect)
    except BadSaParameters as error:
        raise ConfigError(f"{table.place}: {error}") from None
    return SaSpec(id, sa, suite, params, _admitted(table, params))


def _options(table: Table) -> IpsecOption:
    names = table.values.get("options", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name in OPTIONS for name in names):
        table.refuse("options", f"must be a list of {', '.join(OPTIONS)}")
    result = IpsecOption(0)
    for name in names:
        result |= OPTIONS[name]
    return result


def _keys(table: Table, suite: Suite, read_key: Callable[[str], bytes] | None) -> tuple[bytes, bytes]:
    """(cipher key, authentication key), each given as hex or as a file, of a length the suite takes."""
    found = []
    for name, lengths in (("key", suite.cipher_key_lens), ("auth_key", suite.auth_key_lens)):
        key = table.octets(name)
        if table.has(f"{name}_file"):
            if table.has(name):
                table.refuse(name, f"and {name}_file exclude each other")
            if read_key is None:
                table.refuse(f"{name}_file", "cannot be read here; give the key as hex")
            try:
                key = read_key(table.text(f"{name}_file"))
            except ConfigError as error:
                table.refuse(f"{name}_file", str(error))
        if len(key) not in lengths:
            wanted = " or ".join(str(length) for length in sorted(lengths))
            table.refuse(name, f"must be {wanted} octets for {suite.name}, not {len(key)}")
        found.append(key)
    return found[0], found[1]


def _lifetime(table: Table) -> Lifetime:
    limits = table.table("lifetime", LIFETIME_FIELDS)
    if limits is None:
        return Lifetime()
    highest = 2**64 - 1
    return Lifetime(
        packets_soft_limit=limits.integer("packets_soft", 0, highest, 0),
        bytes_soft_limit=limits.integer("bytes_soft", 0, highest, 0),
        packets_hard_limit=limits.integer("packets_hard", 0, highest, 0),
        bytes_hard_limit=limits.integer("bytes_hard", 0, highest, 0),
    )


def _tunnel(table: Table, mode: IpsecMode, direction: Direction) -> TunnelIPv4 | TunnelIPv6 | TunnelRaw:
    tunnel = table.table("tunnel", TUNNEL_FIELDS)
    wanted = mode in {IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL} and direction == Direction.OUTBOUND
    if tunnel is None:
        if wanted:
            table.refuse("tunnel", "is missing: an outbound tunnel needs { src, dst }")
        return TunnelRaw(0, b"")
    if not wanted:
        table.refuse("tunnel", "has a meaning only for outbound tunnel modes")
    src, dst = tunnel.address("src"), tunnel.address("dst")
    dscp, ttl = tunnel.integer("dscp", 0, 63, 0), tunnel.integer("ttl", 0, 255, 0)
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        if tunnel.has("flow_label"):
            tunnel.refuse("flow_label", "belongs to IPv6")
        return TunnelIPv4(src, dst, dscp, int(tunnel.boolean("df")), ttl)
    if isinstance(src, IPv6Address) and isinstance(dst, IPv6Address):
        if tunnel.has("df"):
            tunnel.refuse("df", "belongs to IPv4")
        return TunnelIPv6(src, dst, tunnel.integer("flow_label", 0, 2**20 - 1, 0), ttl, dscp)
    return tunnel.refuse("src", "and dst must be of one address family")


def _admitted(table: Table, params: SaParams) -> InboundSa | None:
    """``selectors`` and ``peer`` of an inbound SA: what may come out of it."""
    for name in ("selectors", "peer"):
        if table.has(name) and params.direction is not Direction.INBOUND:
            table.refuse(name, "has a meaning only for inbound SAs; flows say what goes into an outbound one")
    peer = None
    if table.has("peer"):
        if not params.is_tunnel:
            table.refuse("peer", "is for tunnel modes; in transport mode the selectors name the other side")
        peer = None if table.text("peer") == ANY_PEER else table.address("peer")
    elif params.is_tunnel and table.has("selectors"):
        table.refuse("peer", f"is missing: the address of the tunnel's other end, or {ANY_PEER!r}")
    if not table.has("selectors"):
        return None
    return InboundSa(tuple(map(read_selector, table.tables("selectors", SELECTOR_FIELDS))), peer)


def identities(spec: SaSpec) -> list[tuple[tuple[object, ...], str]]:
    """What no other SA of a port may have, each with what to say if one does: the id per direction, the inbound SPI
    per protocol, the key with its salt per direction. To be compared, never shown."""
    sa = spec.sa
    found: list[tuple[tuple[object, ...], str]] = [
        ((sa.direction, "id", spec.id), f"id {spec.id} is used twice")
    ]
    if not spec.outbound:
        found.append((("spi", spec.suite.protocol, sa.spi), f"inbound spi {sa.spi:#x} is used twice"))
    found.append(
        (
            (sa.direction, sa.cipher_key, sa.auth_key, sa.salt),
            "has the key and salt of another SA of that direction",
        )
    )
    return found


def refuse_doubles(sas: Iterable[SaSpec]) -> None:
    """ConfigError when two SAs share what :func:`identities` names."""
    seen: set[tuple[object, ...]] = set()
    for spec in sas:
        for identity, message in identities(spec):
            if identity in seen:
                raise ConfigError(f"sa id {spec.id}: {message}")
            seen.add(identity)
