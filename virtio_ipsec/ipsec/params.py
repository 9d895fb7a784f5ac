"""Parameters of an SA, checked (virtio v1.4 5.9.7 resource objects; ledger E21, E25-E31, E38-E45, E66, E67).

What a device's capabilities allow is the device's business; here is what must hold whatever they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hmac import compare_digest
from typing import TypeVar

from virtio_ipsec.crypto.algorithms import Kind, Suite, UnsupportedAlgorithm, ah_suite, esp_suite
from virtio_ipsec.crypto.reference import SALT_LEN
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.ipsec import ip, udp
from virtio_ipsec.ipsec.lifetime import UNLIMITED
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.quick import quick_init
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelParam

MAX_REPLAY_WINDOW = 4096
MAX_KEY_LEN = 32
MAX_DSCP = 63
MAX_FLOW_LABEL = 0xFFFFF

_MODES = {int(mode): mode for mode in IpsecMode}
_DIRECTIONS = {int(direction): direction for direction in Direction}
_TUNNEL_MODES = frozenset((IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL))
_AH_MODES = frozenset((IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT))
# Plain ints: arithmetic on flags costs most of a microsecond each time.
_ESN = int(IpsecOption.ESN)
_UDP_ENCAP = int(IpsecOption.UDP_ENCAP)
_SA_LIFETIME = int(IpsecOption.SA_LIFETIME)
_TUNNEL_OPTIONS = int(IpsecOption.COPY_DSCP | IpsecOption.DEC_TTL | IpsecOption.COPY_DF | IpsecOption.ECN)

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


@quick_init
@dataclass(frozen=True, slots=True)
class SaParams:
    """What an SA is made of. Build it with :meth:`from_wire`, which checks.

    ``salt``: 4 octets in nonce order. ``options``: mask of :class:`IpsecOption`. ``tunnel``: outbound tunnel
    modes only. UDP ports: 4500 where the wire says 0. ``replay_window``: packets, inbound only. ``lifetime``:
    all zero without option SA_LIFETIME. ``first_sequence``: 1, or what the January-2025 RFC's ``esn`` field
    says.
    """

    mode: IpsecMode
    direction: Direction
    spi: int
    salt: bytes = field(repr=False)
    options: int
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
        return bool(self.options & _ESN)

    @property
    def udp_encap(self) -> bool:
        return bool(self.options & _UDP_ENCAP)

    @classmethod
    def from_wire(cls, sa: IpsecSa, dialect: Dialect, direction: Direction | None = None) -> SaParams:
        """Check an SA object; ``direction`` is the one that its resource type stands for (E38).

        Raises :class:`BadSaParameters` with the first field that cannot be.
        """
        mode = _member(_MODES, "mode", sa.mode)
        way = _member(_DIRECTIONS, "direction", sa.direction)
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
            lifetime=_lifetime(sa.life) if options & _SA_LIFETIME else UNLIMITED,
            first_sequence=_first_sequence(sa, options) if dialect.has_initial_esn else 1,
        )

    def without_keys(self) -> SaParams:
        """What may be remembered of a destroyed SA."""
        return SaParams(
            self.mode, self.direction, self.spi, b"", self.options, self.tunnel, self.udp_sport, self.udp_dport,
            self.replay_window, self.cipher_algo, b"", self.auth_algo, b"", self.suite, self.lifetime,
            self.first_sequence,
        )  # fmt: skip

    def changes_forbidden(self, other: SaParams) -> str | None:
        """The first field in which ``other`` differs from this SA and that MODIFY must not change (E40).

        Keys and salt in constant time: where QUERY hides them (E41), MODIFY must not let them be guessed.
        """
        for name, attribute in _FIXED:
            mine, yours = getattr(self, attribute), getattr(other, attribute)
            same = compare_digest(mine, yours) if isinstance(mine, bytes) else mine == yours
            if not same:
                return name
        return None


def _member(known: Mapping[int, _E], name: str, value: int) -> _E:
    member = known.get(value)
    if member is None:
        raise BadSaParameters(name, f"{value} is reserved")
    return member


def _options(sa: IpsecSa, mode: IpsecMode, dialect: Dialect) -> int:
    options = int(sa.options)
    if options & ~dialect.ipsec_options:
        raise BadSaParameters("options", f"0x{options:x} has bits that are not defined")
    if mode not in _TUNNEL_MODES and options & _TUNNEL_OPTIONS:
        raise BadSaParameters("options", "DSCP, TTL, DF and ECN options need a tunnel mode")
    if mode in _AH_MODES and options & _UDP_ENCAP:
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


def _replay_window(sa: IpsecSa, options: int) -> int:
    if sa.replay_win_sz > MAX_REPLAY_WINDOW:
        raise BadSaParameters("replay_win_sz", f"exceeds {MAX_REPLAY_WINDOW}")
    if options & _ESN and not sa.replay_win_sz:
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
    for unit, soft, hard in (
        ("packets", life.packets_soft_limit, life.packets_hard_limit),
        ("bytes", life.bytes_soft_limit, life.bytes_hard_limit),
    ):
        if hard and soft > hard:
            raise BadSaParameters(f"life.{unit}_soft_limit", "exceeds the hard limit")
    return life


def _first_sequence(sa: IpsecSa, options: int) -> int:
    if sa.esn > 0xFFFFFFFF and not options & _ESN:
        raise BadSaParameters("esn", "exceeds 32 bits without extended sequence numbers")
    return sa.esn or 1
