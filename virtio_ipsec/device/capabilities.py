"""Device and driver capabilities: what is listed, what the driver may set (virtio v1.4 2.12.1.2).

One :class:`Capability` per id holds the rules of that id; :class:`Capabilities` holds the driver's copies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Generic, TypeVar

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.errors import Busy, InvalidField, NoSuchObject
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.device_parts import DevPartsCap
from virtio_ipsec.wire.flow_filter import FfActionCap, FfResourceCap, FfSelectorCap, Selector
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import CapId, Feature, FfAction, ResourceType, SelectorFlag, has

T = TypeVar("T")

IPSEC_CAPS = (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP)
FF_CAPS = (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)
SA_TYPES = (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA)
FF_TYPES = (ResourceType.NET_FF_GROUP, ResourceType.NET_FF_CLASSIFIER, ResourceType.NET_FF_RULE)
#: Rule actions that need IPsec (ledger E77).
IPSEC_ACTIONS = frozenset({FfAction.IPSEC, FfAction.IPSEC_RECIRCULATE})


class Capability(ABC, Generic[T]):
    """The rules of one capability id. ``config`` is the device's, ``features`` the negotiated word."""

    id: CapId
    #: Object types that live under this capability: while one exists it cannot be set (E46).
    object_types: tuple[ResourceType, ...]

    def __init__(self, config: DeviceConfig, features: int) -> None:
        self.config = config
        self.features = features

    @property
    def codec(self) -> Codec[T]:
        """The structure on the wire."""
        return self.config.dialect.capabilities[self.id]

    @abstractmethod
    def offered(self) -> T:
        """The device's value."""

    @abstractmethod
    def check(self, wanted: T, offered: T) -> None:
        """InvalidField unless ``wanted`` is within ``offered`` (CAP-DEV-04)."""

    @abstractmethod
    def is_disabled(self, value: T) -> bool:
        """Whether a value leaves nothing usable (E34)."""

    def available(self) -> bool:
        """Whether the id is listed."""
        return True

    #: Listed only by an owner whose members' state can be read and set.
    is_for_owners: ClassVar[bool] = False


def _within(name: str, wanted: int, limit: int) -> None:
    if wanted > limit:
        raise InvalidField(f"{name} {wanted} is above {limit}", clause="CAP-DEV-04")


def _subset(name: str, wanted: int, mask: int) -> None:
    if wanted & ~mask:
        raise InvalidField(f"{name} has bits {wanted & ~mask:#x} beyond the device's", clause="CAP-DEV-04")


def _ascending(name: str, keys: list[int]) -> None:
    if any(a >= b for a, b in pairwise(keys)):
        raise InvalidField(f"{name} are not unique and ascending")


class DeviceParts(Capability[DevPartsCap]):
    """VIRTIO_DEV_PARTS_CAP."""

    id = CapId.DEV_PARTS_CAP
    object_types = (ResourceType.DEV_PARTS,)
    is_for_owners = True

    def offered(self) -> DevPartsCap:
        return self.config.dev_parts_limits

    def check(self, wanted: DevPartsCap, offered: DevPartsCap) -> None:
        for name in ("get_parts_resource_objects_limit", "set_parts_resource_objects_limit"):
            _within(name, getattr(wanted, name), getattr(offered, name))

    def is_disabled(self, value: DevPartsCap) -> bool:
        return not (value.get_parts_resource_objects_limit or value.set_parts_resource_objects_limit)


class _IpsecCapability(Capability[T]):
    object_types = SA_TYPES

    def available(self) -> bool:
        """Only with the feature negotiated (E48)."""
        return has(self.features, Feature.NET_F_IPSEC)


class IpsecResources(_IpsecCapability[IpsecResourceCap]):
    """VIRTIO_NET_IPSEC_RESOURCE_CAP."""

    id = CapId.NET_IPSEC_RESOURCE_CAP

    def offered(self) -> IpsecResourceCap:
        return self.config.ipsec_limits

    def check(self, wanted: IpsecResourceCap, offered: IpsecResourceCap) -> None:
        _within("inb_sa_limit", wanted.inb_sa_limit, offered.inb_sa_limit)
        _within("outb_sa_limit", wanted.outb_sa_limit, offered.outb_sa_limit)

    def is_disabled(self, value: IpsecResourceCap) -> bool:
        """One direction alone may be zero (E35)."""
        return value.inb_sa_limit == 0 and value.outb_sa_limit == 0


class IpsecSaModes(_IpsecCapability[IpsecSaCap]):
    """VIRTIO_NET_IPSEC_SA_CAP: per mode window, options, algorithm masks and key lengths."""

    id = CapId.NET_IPSEC_SA_CAP

    def offered(self) -> IpsecSaCap:
        return self.config.offered_sa_cap

    def check(self, wanted: IpsecSaCap, offered: IpsecSaCap) -> None:
        """Unique ascending modes, each within the device's entry (E47)."""
        _ascending("modes", [entry.mode for entry in wanted.modes])
        by_mode = {entry.mode: entry for entry in offered.modes}
        for entry in wanted.modes:
            limit = by_mode.get(entry.mode)
            if limit is None:
                raise InvalidField(f"mode {entry.mode} is not offered", clause="CAP-DEV-04")
            self.check_mode(entry, limit)

    def check_mode(self, wanted: ModeCap, limit: ModeCap) -> None:
        """One entry against the device's entry of that mode."""
        for name in ("max_replay_win_sz", "max_cipher_key_len", "max_auth_key_len"):
            _within(name, getattr(wanted, name), getattr(limit, name))
        for name in ("options", "cipher_algo", "hmac_algo", "aead_algo"):
            _subset(name, getattr(wanted, name), getattr(limit, name))

    def is_disabled(self, value: IpsecSaCap) -> bool:
        return not value.modes


class _FlowFilterCapability(Capability[T]):
    object_types = FF_TYPES


class FlowFilterResources(_FlowFilterCapability[FfResourceCap]):
    """VIRTIO_NET_FF_RESOURCE_CAP."""

    id = CapId.NET_FF_RESOURCE_CAP

    def offered(self) -> FfResourceCap:
        return self.config.ff_limits

    def check(self, wanted: FfResourceCap, offered: FfResourceCap) -> None:
        for name in (
            "groups_limit",
            "classifiers_limit",
            "rules_limit",
            "rules_per_group_limit",
            "last_rule_priority",
            "selectors_per_classifier_limit",
        ):
            _within(name, getattr(wanted, name), getattr(offered, name))

    def is_disabled(self, value: FfResourceCap) -> bool:
        return value.groups_limit == 0 and value.classifiers_limit == 0 and value.rules_limit == 0


class FlowFilterSelectors(_FlowFilterCapability[FfSelectorCap]):
    """VIRTIO_NET_FF_SELECTOR_CAP."""

    id = CapId.NET_FF_SELECTOR_CAP

    def offered(self) -> FfSelectorCap:
        return self.config.offered_selectors

    def check(self, wanted: FfSelectorCap, offered: FfSelectorCap) -> None:
        _ascending("selector types", [s.type for s in wanted.selectors])
        by_type = {s.type: s for s in offered.selectors}
        for selector in wanted.selectors:
            limit = by_type.get(selector.type)
            if limit is None:
                raise InvalidField(f"selector type {selector.type} is not offered", clause="CAP-DEV-04")
            self.check_selector(selector, limit)

    def check_selector(self, wanted: Selector, limit: Selector) -> None:
        """One entry against the device's entry of that type."""
        if len(wanted.mask) != len(limit.mask):
            raise InvalidField(f"selector type {wanted.type}: mask of {len(wanted.mask)} bytes")
        _subset("selector flags", wanted.flags & SelectorFlag.PARTIAL_MASK, limit.flags)
        _subset("selector mask", int.from_bytes(wanted.mask, "big"), int.from_bytes(limit.mask, "big"))

    def is_disabled(self, value: FfSelectorCap) -> bool:
        return not value.selectors


class FlowFilterActions(_FlowFilterCapability[FfActionCap]):
    """VIRTIO_NET_FF_ACTION_CAP."""

    id = CapId.NET_FF_ACTION_CAP

    def offered(self) -> FfActionCap:
        """The IPsec actions only where IPsec was negotiated (E77)."""
        ipsec = has(self.features, Feature.NET_F_IPSEC)
        return FfActionCap(
            tuple(a for a in self.config.ff_actions.actions if ipsec or a not in IPSEC_ACTIONS)
        )

    def check(self, wanted: FfActionCap, offered: FfActionCap) -> None:
        _ascending("actions", list(wanted.actions))
        if not set(wanted.actions) <= set(offered.actions):
            raise InvalidField("actions hold one that is not offered", clause="CAP-DEV-04")

    def is_disabled(self, value: FfActionCap) -> bool:
        return not value.actions


CAPABILITIES: tuple[type[Capability[Any]], ...] = (
    DeviceParts,
    FlowFilterResources,
    FlowFilterSelectors,
    FlowFilterActions,
    IpsecResources,
    IpsecSaModes,
)


class Capabilities:
    """Which capabilities exist and what the driver set. A new instance per reset clears all (CAP-DEV-09)."""

    #: The rules in force; a variant device replaces entries.
    kinds: tuple[type[Capability[Any]], ...] = CAPABILITIES

    def __init__(self, config: DeviceConfig, features: int, *, owns_parts: bool = False) -> None:
        made = [kind(config, features) for kind in self.kinds if owns_parts or not kind.is_for_owners]
        self._rules = {int(rule.id): rule for rule in made if rule.available()}
        self._driver: dict[int, Any] = {}
        self._enabled: set[int] = set()

    def listed(self) -> frozenset[int]:
        """Ids of CAP_ID_LIST_QUERY (NET-IPSEC-DEV-01, NET-FF-DEV-01)."""
        return frozenset(self._rules)

    def get(self, cap_id: int) -> bytes:
        """DEVICE_CAP_GET: the structure's bytes; NoSuchObject for an id that is not listed (CAP-DEV-08)."""
        rule = self._rule(cap_id)
        return rule.codec.build(rule.offered())

    def set(self, cap_id: int, data: bytes, in_use: Callable[[tuple[ResourceType, ...]], bool]) -> None:
        """DRIVER_CAP_SET. ``in_use`` tells whether objects of the given types are live."""
        rule = self._rule(cap_id)
        self.check_unused(rule, in_use)
        wanted = rule.codec.parse(data)
        rule.check(wanted, rule.offered())
        self._driver[cap_id] = wanted
        if rule.is_disabled(wanted):
            self._enabled.discard(cap_id)
        else:
            self._enabled.add(cap_id)

    def check_unused(self, rule: Capability[Any], in_use: Callable[[tuple[ResourceType, ...]], bool]) -> None:
        """No capability changes under live objects (CAP-DEV-07, E46)."""
        if in_use(rule.object_types):
            raise Busy(f"capability {rule.id:#x} has live objects", clause="CAP-DEV-07")

    def enabled(self, *cap_ids: int) -> bool:
        """Whether the driver has set all of these to something usable (E34, CAP-DEV-10)."""
        return self._enabled.issuperset(cap_ids)

    def driver(self, cap_id: int) -> Any:
        """The driver's value of a capability that is enabled."""
        return self._driver[cap_id]

    def driver_values(self) -> dict[int, Any]:
        """A copy of everything the driver set, by id."""
        return dict(self._driver)

    def _rule(self, cap_id: int) -> Capability[Any]:
        try:
            return self._rules[cap_id]
        except KeyError:
            raise NoSuchObject(f"capability {cap_id:#x} is not listed", clause="CAP-DEV-08") from None
