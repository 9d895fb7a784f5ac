"""The TOML description of security associations and flows: one format for every verb.

::

    dialect = "virtio-1.4"

    [[sa]]
    id = 1
    direction = "outbound"
    mode = "esp-tunnel"
    spi = 0x1001
    algorithm = "aes-gcm-16"
    key = "000102030405060708090a0b0c0d0e0f"
    salt = "a0a1a2a3"
    options = ["esn", "copy-dscp"]
    tunnel = { src = "192.0.2.1", dst = "192.0.2.2" }
    lifetime = { packets_soft = 900000, packets_hard = 1000000 }

    [[flow]]
    match = { src = "10.0.0.0/24", dst = "10.1.0.0/24", protocol = "udp" }
    action = "protect"
    sa = 1

Everything that is not listed in the tables below is refused with the place it stands at. Keys are never part
of a message.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, NoReturn

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.ipsec.sa import BadSaParameters, SaParams
from virtio_ipsec.policy.flows import Action, Flow, Selector
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
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
IP_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132}
DEFAULT_UDP_PORT = 4500


@dataclass(frozen=True, slots=True)
class SaSpec:
    """A security association as the file gives it. ``id`` is the resource object id per direction."""

    id: int
    sa: IpsecSa = field(repr=False)
    suite: Suite

    @property
    def outbound(self) -> bool:
        """Whether this SA protects packets that leave."""
        return self.sa.direction == Direction.OUTBOUND


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file. ``flows`` are in file order: the first match decides."""

    dialect: Dialect
    sas: tuple[SaSpec, ...]
    flows: tuple[Flow, ...]

    def outbound(self, id: int) -> SaSpec:
        """The outbound SA with that id. Raises KeyError."""
        return next(spec for spec in self.sas if spec.outbound and spec.id == id)


def parse(text: str, read_key: Callable[[str], bytes] | None = None) -> Config:
    """Parse a TOML document. ``read_key`` reads the file that ``key_file`` names, or raises ConfigError with the
    rest of a sentence that does not quote the name, which may be a key; without it ``key_file`` is refused.

    Raises ConfigError with the place (``sa 2: spi``) and what would be right.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    except ValueError:
        raise ConfigError("a number has more digits than any field can hold") from None
    except RecursionError:
        raise ConfigError("tables or lists are nested deeper than any field needs") from None
    top = _Table(document, "file", {"dialect", "sa", "flow"})
    name = top.choice("dialect", DIALECTS, "virtio-1.4")
    dialect = DIALECTS[name]
    sas = tuple(_sa(entry, dialect, read_key) for entry in top.tables("sa", SA_FIELDS))
    _refuse_doubles(sas)
    outbound = {spec.id for spec in sas if spec.outbound}
    flows = tuple(_flow(entry, outbound) for entry in top.tables("flow", FLOW_FIELDS))
    return Config(dialect, sas, flows)


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
    }
)
TUNNEL_FIELDS = frozenset({"src", "dst", "dscp", "df", "ttl", "flow_label"})
UDP_FIELDS = frozenset({"sport", "dport"})
LIFETIME_FIELDS = frozenset({"packets_soft", "bytes_soft", "packets_hard", "bytes_hard"})
FLOW_FIELDS = frozenset({"match", "action", "sa"})
MATCH_FIELDS = frozenset({"src", "dst", "protocol", "sport", "dport"})


def _shown(name: str) -> str:
    """A name for a message: on one line, and cut, for it may be a key in the wrong place."""
    short = name if len(name) <= 20 else f"{name[:8]}..."
    return short if short.isidentifier() else repr(short)


class _Table:
    """One TOML table with the place it stands at; each getter checks type and range."""

    def __init__(self, values: Mapping[str, Any], place: str, known: frozenset[str] | set[str]) -> None:
        self.values = values
        self.place = place
        for name in values:
            if name not in known:
                self.refuse(_shown(name), f"is not known here; known: {', '.join(sorted(known))}")

    def refuse(self, name: str, message: str) -> NoReturn:
        raise ConfigError(f"{self.place}: {name} {message}")

    def has(self, name: str) -> bool:
        return name in self.values

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, f"must be a whole number from {low} to {high}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, str):
            self.refuse(name, "must be a string")
        return value

    def choice(self, name: str, known: Mapping[str, object], default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, f"is missing; one of {', '.join(known)}")
        if not isinstance(value, str) or value not in known:
            self.refuse(name, f"must be one of {', '.join(known)}")
        return value

    def octets(self, name: str) -> bytes:
        if not self.has(name):
            return b""
        try:
            return bytes.fromhex(self.text(name).removeprefix("0x"))
        except ValueError:
            self.refuse(name, "must be hexadecimal digits, two per octet")

    def tables(self, name: str, known: frozenset[str]) -> list[_Table]:
        entries = self.values.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.refuse(name, f"must be written as [[{name}]] tables")
        return [_Table(entry, f"{name} {number}", known) for number, entry in enumerate(entries, 1)]

    def table(self, name: str, known: frozenset[str]) -> _Table | None:
        if not self.has(name):
            return None
        entry = self.values[name]
        if not isinstance(entry, dict):
            self.refuse(name, "must be a table")
        return _Table(entry, f"{self.place}: {name}", known)


def _sa(table: _Table, dialect: Dialect, read_key: Callable[[str], bytes] | None) -> SaSpec:
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
        SaParams.from_wire(sa, dialect)
    except BadSaParameters as error:
        raise ConfigError(f"{table.place}: {error}") from None
    return SaSpec(id, sa, suite)


def _options(table: _Table) -> IpsecOption:
    names = table.values.get("options", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name in OPTIONS for name in names):
        table.refuse("options", f"must be a list of {', '.join(OPTIONS)}")
    result = IpsecOption(0)
    for name in names:
        result |= OPTIONS[name]
    return result


def _keys(table: _Table, suite: Suite, read_key: Callable[[str], bytes] | None) -> tuple[bytes, bytes]:
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


def _lifetime(table: _Table) -> Lifetime:
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


def _tunnel(table: _Table, mode: IpsecMode, direction: Direction) -> TunnelIPv4 | TunnelIPv6 | TunnelRaw:
    tunnel = table.table("tunnel", TUNNEL_FIELDS)
    wanted = mode in {IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL} and direction == Direction.OUTBOUND
    if tunnel is None:
        if wanted:
            table.refuse("tunnel", "is missing: an outbound tunnel needs { src, dst }")
        return TunnelRaw(0, b"")
    if not wanted:
        table.refuse("tunnel", "has a meaning only for outbound tunnel modes")
    src, dst = _address(tunnel, "src"), _address(tunnel, "dst")
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


def _address(table: _Table, name: str) -> IPv4Address | IPv6Address:
    """An address for an outer header: no zone, and not the unspecified one."""
    try:
        address = ip_address(table.text(name))
    except ValueError:
        table.refuse(name, "must be an IP address")
    if address.is_unspecified or getattr(address, "scope_id", None):
        table.refuse(name, "must be an IP address of one host, without a zone")
    return address


def _network(table: _Table, name: str) -> IPv4Network | IPv6Network | None:
    if not table.has(name):
        return None
    try:
        return ip_network(table.text(name))
    except ValueError:
        table.refuse(name, "must be an address or a network whose host bits are zero")


def _flow(table: _Table, outbound: set[int]) -> Flow:
    action = Action(table.choice("action", {action.value: action for action in Action}))
    match = table.table("match", MATCH_FIELDS) or _Table({}, f"{table.place}: match", MATCH_FIELDS)
    src, dst = _network(match, "src"), _network(match, "dst")
    if src is not None and dst is not None and src.version != dst.version:
        match.refuse("src", "and dst must be of one address family")
    protocol = _protocol(match)
    if (match.has("sport") or match.has("dport")) and protocol not in {6, 17, 132}:
        match.refuse("protocol", "must be tcp, udp or sctp when a port is given")
    selector = Selector(
        src=src,
        dst=dst,
        protocol=protocol,
        sport=match.integer("sport", 0, 65535) if match.has("sport") else None,
        dport=match.integer("dport", 0, 65535) if match.has("dport") else None,
    )
    if action is not Action.PROTECT:
        if table.has("sa"):
            table.refuse("sa", f"has no meaning with action {action.value}")
        return Flow(selector, action)
    sa = table.integer("sa", 0, 0xFFFF_FFFF)
    if sa not in outbound:
        table.refuse("sa", f"names no outbound SA with id {sa}")
    return Flow(selector, action, sa)


def _protocol(match: _Table) -> int | None:
    if not match.has("protocol"):
        return None
    if isinstance(match.values["protocol"], str):
        return IP_PROTOCOLS[match.choice("protocol", IP_PROTOCOLS)]
    return match.integer("protocol", 0, 255)


def _refuse_doubles(sas: tuple[SaSpec, ...]) -> None:
    """Ids are unique per direction, inbound SPIs per protocol, and a key with its salt belongs to one SA."""
    seen: dict[tuple[object, ...], SaSpec] = {}
    for spec in sas:
        sa = spec.sa
        keys: list[tuple[tuple[object, ...], str]] = [
            ((sa.direction, "id", spec.id), f"id {spec.id} is used twice")
        ]
        if not spec.outbound:
            keys.append((("spi", spec.suite.protocol, sa.spi), f"inbound spi {sa.spi:#x} is used twice"))
        keys.append(
            (
                (sa.direction, sa.cipher_key, sa.auth_key, sa.salt),
                "has the key and salt of another SA of that direction",
            )
        )
        for key, message in keys:
            if key in seen:
                raise ConfigError(f"sa id {spec.id}: {message}")
            seen[key] = spec
