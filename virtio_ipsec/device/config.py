"""What a device instance offers and which readings of the specification it follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from virtio_ipsec.crypto.algorithms import ah_masks, esp_masks
from virtio_ipsec.device.features import IMPLEMENTED, acceptable, unmet
from virtio_ipsec.errors import ConfigError, WireError
from virtio_ipsec.ipsec.params import MAX_REPLAY_WINDOW
from virtio_ipsec.wire.device_parts import DEV_PARTS_CAP, DevPartsCap
from virtio_ipsec.wire.dialect import V14, Dialect
from virtio_ipsec.wire.flow_filter import (
    FF_RESOURCE_CAP,
    FfActionCap,
    FfResourceCap,
    FfSelectorCap,
    Selector,
)
from virtio_ipsec.wire.ipsec import RESOURCE_CAP, IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import FfAction, HashType, IpsecMode, IpsecOption, SelectorFlag, SelectorType

#: Bytes of the packet header that each selector type covers (virtio v1.4 5.1.6.7.2.2).
SELECTOR_SIZES: dict[int, int] = {
    SelectorType.ETH: 14,
    SelectorType.IPV4: 20,
    SelectorType.IPV6: 40,
    SelectorType.TCP: 20,
    SelectorType.UDP: 8,
    SelectorType.ESP: 8,
}
#: Ethernet, network and transport header.
MAX_SELECTORS = 3
#: ``speed`` in Mbit/s, and what says that it is not known (virtio v1.4 5.1.4).
_MOST_SPEED, _UNKNOWN_SPEED = 0x7FFF_FFFF, 0xFFFF_FFFF

_TUNNEL_ONLY = IpsecOption.COPY_DSCP | IpsecOption.DEC_TTL | IpsecOption.COPY_DF | IpsecOption.ECN
_ALL_OPTIONS = IpsecOption.ESN | IpsecOption.UDP_ENCAP | IpsecOption.SA_LIFETIME | _TUNNEL_ONLY
#: Option bits that mean something in each mode: UDP encapsulation is for ESP (INF-22), the header rules for
#: tunnels (E67).
MODE_OPTIONS = {
    IpsecMode.ESP_TUNNEL: _ALL_OPTIONS,
    IpsecMode.ESP_TRANSPORT: _ALL_OPTIONS & ~_TUNNEL_ONLY,
    IpsecMode.AH_TUNNEL: _ALL_OPTIONS & ~IpsecOption.UDP_ENCAP,
    IpsecMode.AH_TRANSPORT: _ALL_OPTIONS & ~_TUNNEL_ONLY & ~IpsecOption.UDP_ENCAP,
}
_ESP_MODES = (IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT)


def full_sa_cap(max_replay_win_sz: int = MAX_REPLAY_WINDOW) -> IpsecSaCap:
    """All four modes with every algorithm of the registry (AH is offered: E69)."""
    modes = []
    for mode in IpsecMode:
        masks = esp_masks() if mode in _ESP_MODES else ah_masks()
        modes.append(
            ModeCap(
                mode=mode,
                max_replay_win_sz=max_replay_win_sz,
                options=int(MODE_OPTIONS[mode]),
                cipher_algo=masks.cipher,
                hmac_algo=masks.hmac,
                aead_algo=masks.aead,
                max_cipher_key_len=masks.max_cipher_key,
                max_auth_key_len=masks.max_auth_key,
            )
        )
    return IpsecSaCap(tuple(modes))


def _is_within(mode: ModeCap, most: ModeCap) -> bool:
    masks = ("options", "cipher_algo", "hmac_algo", "aead_algo")
    limits = ("max_replay_win_sz", "max_cipher_key_len", "max_auth_key_len")
    return all(getattr(mode, name) & ~getattr(most, name) == 0 for name in masks) and all(
        getattr(mode, name) <= getattr(most, name) for name in limits
    )


def full_selector_cap() -> FfSelectorCap:
    """Every selector type, every header field, partial masks allowed."""
    return FfSelectorCap(
        tuple(Selector(t, SelectorFlag.PARTIAL_MASK, b"\xff" * SELECTOR_SIZES[t]) for t in SelectorType)
    )


_IPSEC_LIMITS = IpsecResourceCap(inb_sa_limit=65536, outb_sa_limit=65536)
_FF_LIMITS = FfResourceCap(
    groups_limit=64,
    classifiers_limit=256,
    rules_limit=4096,
    rules_per_group_limit=4096,
    last_rule_priority=255,
    selectors_per_classifier_limit=3,
)
_PARTS_LIMITS = DevPartsCap(64, 64)
_FF_ACTIONS = FfActionCap(tuple(FfAction))


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Settings fixed for the life of a device; ConfigError when they contradict the specification.

    The switches choose between readings of the ambiguity ledger; each names its entry.
    """

    dialect: Dialect = V14
    #: Feature bits offered (those that the dialect knows), up to bit 127; closed under the dependency table
    #: (BAS-FEAT-07).
    features: int = IMPLEMENTED

    mac: bytes = bytes.fromhex("020000000001")
    #: Bytes of an IP packet, 68..65535.
    mtu: int = 9000
    #: Mbit/s.
    speed: int = 100_000
    max_queue_pairs: int = 8
    #: Descriptors per queue; a power of two.
    queue_size: int = 256
    rss_max_key_size: int = 40
    rss_max_indirection_table_length: int = 128
    supported_hash_types: int = int(~HashType(0))

    ipsec_limits: IpsecResourceCap = _IPSEC_LIMITS
    sa_cap: IpsecSaCap = field(default_factory=full_sa_cap)
    ff_limits: FfResourceCap = _FF_LIMITS
    ff_selectors: FfSelectorCap = field(default_factory=full_selector_cap)
    ff_actions: FfActionCap = _FF_ACTIONS
    #: SAs of both directions that the device has room for; CREATE answers ENOSPC beyond (RO-DEV-07).
    #: None: the limits alone decide.
    sa_table_size: int | None = None

    #: E53: False delivers a packet that failed IPsec as it came, flags SECURITY|SECURITY_ERR; True drops it.
    drop_error_packets: bool = False
    #: Objects through which the state of members is read and set, where a device has any.
    dev_parts_limits: DevPartsCap = _PARTS_LIMITS
    #: E81: False keeps the SAs of members to themselves; True lets their owner reach them through group type 1.
    owner_managed: bool = False
    #: E41: False echoes keys and salt in QUERY as the text demands; True answers zeros in their place.
    zero_keys_in_query: bool = False

    def __post_init__(self) -> None:
        """Refuse what a conforming device must not offer."""
        if len(self.mac) != 6 or self.mac[0] & 1:
            raise ConfigError("mac: six bytes, unicast")
        if not 68 <= self.mtu <= 65535:
            raise ConfigError(f"mtu {self.mtu}: 68 to 65535")
        if not 1 <= self.max_queue_pairs <= 0x8000:
            raise ConfigError(f"max_queue_pairs {self.max_queue_pairs}: 1 to 32768")
        if not 1 <= self.queue_size <= 0x8000 or self.queue_size & (self.queue_size - 1):
            raise ConfigError(f"queue_size {self.queue_size}: a power of two up to 32768")
        if (
            not 40 <= self.rss_max_key_size <= 255
            or not 128 <= self.rss_max_indirection_table_length <= 0xFFFF
        ):
            raise ConfigError("rss_max_key_size: 40 to 255; rss_max_indirection_table_length: 128 to 65535")
        if not (0 <= self.speed <= _MOST_SPEED or self.speed == _UNKNOWN_SPEED):
            raise ConfigError(
                f"speed {self.speed}: 0 to {_MOST_SPEED} Mbit/s, or {_UNKNOWN_SPEED} for unknown"
            )
        if self.supported_hash_types & ~int(~HashType(0)):
            raise ConfigError(f"supported_hash_types {self.supported_hash_types:#x}: known types only")
        if self.sa_table_size is not None and self.sa_table_size < 0:
            raise ConfigError(f"sa_table_size {self.sa_table_size}: None or how many SAs there is room for")
        self._check_features()
        self._check_capabilities()

    def _check_features(self) -> None:
        if unknown := self.features & ~IMPLEMENTED:
            raise ConfigError(f"features {unknown:#x} are not implemented")
        if broken := unmet(self.offered_features):
            raise ConfigError("offered without what they need: " + ", ".join(f.name for f in broken))
        if not acceptable(self.offered_features, self.offered_features):
            raise ConfigError("VERSION_1 is not offered")

    def _check_capabilities(self) -> None:
        """What is advertised must work: nothing beyond the registry of algorithms and the known selectors."""
        try:
            RESOURCE_CAP.build(self.ipsec_limits)
            FF_RESOURCE_CAP.build(self.ff_limits)
            DEV_PARTS_CAP.build(self.dev_parts_limits)
        except WireError as error:
            raise ConfigError(f"a limit that no capability can show: {error}") from None
        known = {mode.mode: mode for mode in full_sa_cap().modes}
        for mode in self.sa_cap.modes:
            most = known.get(mode.mode)
            if most is None or not _is_within(mode, most):
                raise ConfigError(f"sa_cap: mode {mode.mode} goes beyond what is implemented")
        if [m.mode for m in self.sa_cap.modes] != sorted({m.mode for m in self.sa_cap.modes}):
            raise ConfigError("sa_cap: modes are unique and ascending")
        types = [s.type for s in self.ff_selectors.selectors]
        if types != sorted(set(types)) or any(
            len(s.mask) != SELECTOR_SIZES.get(s.type) or s.flags not in (0, SelectorFlag.PARTIAL_MASK)
            for s in self.ff_selectors.selectors
        ):
            raise ConfigError(
                "ff_selectors: types are unique and ascending, masks as long as their header, flags known"
            )
        actions = list(self.ff_actions.actions)
        if actions != sorted(set(actions) & set(FfAction)):
            raise ConfigError("ff_actions: known actions, unique and ascending")
        if self.ff_limits.selectors_per_classifier_limit > MAX_SELECTORS:
            raise ConfigError(f"ff_limits: at most {MAX_SELECTORS} selectors per classifier")

    @property
    def offered_features(self) -> int:
        """``features`` as far as the dialect defines them."""
        return self.features & self.dialect.known_features

    @property
    def offered_sa_cap(self) -> IpsecSaCap:
        """``sa_cap`` with the option bits that the dialect defines."""
        known = self.dialect.ipsec_options
        return IpsecSaCap(tuple(replace(mode, options=mode.options & known) for mode in self.sa_cap.modes))

    @property
    def offered_selectors(self) -> FfSelectorCap:
        """``ff_selectors`` of the types that the dialect defines."""
        known = self.dialect.selector_types
        return FfSelectorCap(tuple(s for s in self.ff_selectors.selectors if s.type in known))
