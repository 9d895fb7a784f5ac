"""Parameters of an SA, checked (virtio v1.4 5.9.7 resource objects; ledger E21, E25-E31, E38-E45, E66, E67).

What a device's capabilities allow is the device's business; here is what must hold whatever they say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from hmac import compare_digest
from typing import TypeVar

from ..crypto.algorithms import Kind, Suite, UnsupportedAlgorithm, ah_suite, esp_suite
from ..crypto.reference import SALT_LEN
from ..errors import VirtioIpsecError
from ..wire.dialect import Dialect
from ..wire.ipsec import IpsecSa, Lifetime
from ..wire.numbers import Direction, IpsecMode, IpsecOption
from ..wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelParam
from . import ip, udp
from .lifetime import UNLIMITED

MAX_REPLAY_WINDOW = 4096
MAX_KEY_LEN = 32
MAX_DSCP = 63
MAX_FLOW_LABEL = 0xFFFFF

_TUNNEL_MODES = frozenset((IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL))
_AH_MODES = frozenset((IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT))
_TUNNEL_OPTIONS = IpsecOption.COPY_DSCP | IpsecOption.DEC_TTL | IpsecOption.COPY_DF | IpsecOption.ECN

_E = TypeVar("_E", bound=IntEnum)

# What MODIFY must leave alone (E40): (field of the wire structure, attribute here).
_FIXED = (
    ("mode", "mode"),
    ("direction", "direction"),
    ("spi", "spi"),
    ("salt", "salt"),
    ("options", "esn"),
    ("cipher_algo", "cipher_algo"),
    ("cipher_key", "cipher_key"),
    ("auth_algo", "auth_algo"),
    ("auth_key", "auth_key"),
    ("esn", "first_sequence"),
)


class BadSaParameters(VirtioIpsecError):
    """SA parameters that contradict themselves or the protocols. ``field`` is the specification's name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SaParams:
    """What an SA is made of. Build it with :meth:`from_wire`, which checks.

    ``salt``: 4 octets in nonce order. ``tunnel``: outbound tunnel modes only. UDP ports: 4500 where the wire
    says 0. ``replay_window``: packets, inbound only. ``lifetime``: all zero without option SA_LIFETIME.
    ``first_sequence``: 1, or what the January-2025 RFC's ``esn`` field says.
    """

    mode: IpsecMode
    direction: Direction
    spi: int
    salt: bytes = field(repr=False)
    options: IpsecOption
    tunnel: TunnelIPv4 | TunnelIPv6 | None
    udp_sport: int
    udp_dport: int
    replay_window: int
    cipher_algo: int
    cipher_key: bytes = field(repr=False)
    auth_algo: int
    auth_key: bytes = field(repr=False)
    suite: Suite
    lifetime: Lifetime
    first_sequence: int

    @property
    def is_tunnel(self) -> bool:
        return self.mode in _TUNNEL_MODES

    @property
    def protocol(self) -> int:
        """IP protocol number: 50 ESP, 51 AH."""
        return ip.AH if self.mode in _AH_MODES else ip.ESP

    @property
    def esn(self) -> bool:
        return bool(self.options & IpsecOption.ESN)

    @property
    def udp_encap(self) -> bool:
        return bool(self.options & IpsecOption.UDP_ENCAP)

    @classmethod
    def from_wire(cls, sa: IpsecSa, dialect: Dialect, direction: Direction | None = None) -> SaParams:
        """Check an SA object; ``direction`` is the one that its resource type stands for (E38).

        Raises :class:`BadSaParameters` with the first field that cannot be.
        """
        mode = _member(IpsecMode, "mode", sa.mode)
        way = _member(Direction, "direction", sa.direction)
        if direction is not None and way is not direction:
            raise BadSaParameters("direction", "contradicts the resource type")
        if not 0 < sa.spi <= 0xFFFFFFFF:
            raise BadSaParameters("spi", "0 is reserved for local use (RFC 4303 2.1)")
        if len(sa.salt) != SALT_LEN:
            raise BadSaParameters("salt", f"must be {SALT_LEN} octets")
        options = _options(sa, mode, dialect)
        inbound = way is Direction.INBOUND
        return cls(
            mode=mode,
            direction=way,
            spi=sa.spi,
            salt=sa.salt,
            options=options,
            tunnel=None if inbound or mode not in _TUNNEL_MODES else _tunnel(sa.param),
            udp_sport=sa.udp_sport or udp.PORT,
            udp_dport=sa.udp_dport or udp.PORT,
            replay_window=_replay_window(sa, options) if inbound else 0,
            cipher_algo=sa.cipher_algo,
            cipher_key=sa.cipher_key,
            auth_algo=sa.auth_algo,
            auth_key=sa.auth_key,
            suite=_suite(sa, mode),
            lifetime=_lifetime(sa.life) if options & IpsecOption.SA_LIFETIME else UNLIMITED,
            first_sequence=_first_sequence(sa, options) if dialect.has_initial_esn else 1,
        )

    def changes_forbidden(self, other: SaParams) -> str | None:
        """The first field in which ``other`` differs from this SA and that MODIFY must not change (E40)."""
        for name, attribute in _FIXED:
            if getattr(self, attribute) != getattr(other, attribute):
                return name
        return None


def _member(kind: type[_E], name: str, value: int) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise BadSaParameters(name, f"{value} is reserved") from None


def _options(sa: IpsecSa, mode: IpsecMode, dialect: Dialect) -> IpsecOption:
    if sa.options & ~dialect.ipsec_options:
        raise BadSaParameters("options", f"0x{sa.options:x} has bits that are not defined")
    options = IpsecOption(sa.options)
    if mode not in _TUNNEL_MODES and options & _TUNNEL_OPTIONS:
        raise BadSaParameters("options", "DSCP, TTL, DF and ECN options need a tunnel mode")
    if mode in _AH_MODES and options & IpsecOption.UDP_ENCAP:
        raise BadSaParameters("options", "UDP encapsulation is for ESP only")
    return options


def _tunnel(param: TunnelParam) -> TunnelIPv4 | TunnelIPv6:
    if isinstance(param, TunnelIPv4):
        if param.df > 1:
            raise BadSaParameters("param.ipv4.df", "must be 0 or 1")
        if param.dscp > MAX_DSCP:
            raise BadSaParameters("param.ipv4.dscp", "exceeds 6 bits")
        return param
    if isinstance(param, TunnelIPv6):
        if param.flabel > MAX_FLOW_LABEL:
            raise BadSaParameters("param.ipv6.flabel", "exceeds 20 bits")
        if param.dscp > MAX_DSCP:
            raise BadSaParameters("param.ipv6.dscp", "exceeds 6 bits")
        return param
    raise BadSaParameters("param.type", "an outbound tunnel needs type 1 (IPv4) or 2 (IPv6)")


def _replay_window(sa: IpsecSa, options: IpsecOption) -> int:
    if sa.replay_win_sz > MAX_REPLAY_WINDOW:
        raise BadSaParameters("replay_win_sz", f"exceeds {MAX_REPLAY_WINDOW}")
    if options & IpsecOption.ESN and not sa.replay_win_sz:
        raise BadSaParameters("replay_win_sz", "extended sequence numbers need a window")
    return sa.replay_win_sz


def _suite(sa: IpsecSa, mode: IpsecMode) -> Suite:
    cipher_len, auth_len = len(sa.cipher_key), len(sa.auth_key)
    if sa.cipher_key_length != cipher_len or cipher_len > MAX_KEY_LEN:
        raise BadSaParameters("cipher_key.length", f"must be 0 to {MAX_KEY_LEN}")
    if sa.auth_key_length != auth_len or auth_len > MAX_KEY_LEN:
        raise BadSaParameters("auth_key.length", f"must be 0 to {MAX_KEY_LEN}")
    is_ah = mode in _AH_MODES
    try:
        if is_ah:
            suite = ah_suite(sa.auth_algo, auth_len, sa.cipher_algo, cipher_len)
        else:
            suite = esp_suite(sa.cipher_algo, sa.auth_algo, cipher_len, auth_len)
    except UnsupportedAlgorithm as error:
        raise BadSaParameters("auth_algo" if is_ah else "cipher_algo", str(error)) from None
    if suite.kind is Kind.AEAD and sa.auth_key and not compare_digest(sa.auth_key, sa.cipher_key):
        raise BadSaParameters("auth_key", "must be empty or repeat cipher_key (E28)")
    return suite


def _lifetime(life: Lifetime) -> Lifetime:
    for unit in ("packets", "bytes"):
        soft, hard = getattr(life, f"{unit}_soft_limit"), getattr(life, f"{unit}_hard_limit")
        if hard and soft > hard:
            raise BadSaParameters(f"life.{unit}_soft_limit", "exceeds the hard limit")
    return life


def _first_sequence(sa: IpsecSa, options: IpsecOption) -> int:
    if sa.esn > 0xFFFFFFFF and not options & IpsecOption.ESN:
        raise BadSaParameters("esn", "exceeds 32 bits without extended sequence numbers")
    return sa.esn or 1
