"""Drivers whose resource objects are wrong: SAs, groups, classifiers, rules."""

from __future__ import annotations

from dataclasses import replace

from driver_registry import HEADER, Wrong, driver_mutant

from virtio_ipsec.conformance.monitor.script import transport_keys, transport_selectors
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import FfAction, Opcode, ResourceType, SelectorType
from virtio_ipsec.wire.tunnel import NO_TUNNEL

OUT, IN = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
GROUP, CLASSIFIER, RULE = (
    ResourceType.NET_FF_GROUP,
    ResourceType.NET_FF_CLASSIFIER,
    ResourceType.NET_FF_RULE,
)
UDP_SELECTORS = transport_selectors(SelectorType.UDP)
UDP_KEYS = transport_keys(SelectorType.UDP, 17, 7777)
_SPECIFIC = HEADER + 16


class Objects(Wrong):
    """Makes objects past the driver's books."""

    only = ("objects",)

    def objects(self) -> None:
        raise NotImplementedError

    def group(self, number: int = 0) -> None:
        self.make(GROUP, number, FfGroup(number + 1))

    def classifier(self, *selectors: Selector, number: int = 0) -> None:
        self.make(CLASSIFIER, number, FfClassifier(selectors))

    def rule(self, number: int = 0, *, keys: bytes = UDP_KEYS, priority: int = 1) -> None:
        self.make(RULE, number, FfRule(0, 0, priority, FfAction.DROP, 0, keys))

    def one_rule(self) -> None:
        self.group()
        self.classifier(*UDP_SELECTORS)
        self.rule()

    def many_sas(self, kind: ResourceType, direction: int) -> None:
        """All that the driver has set a limit for, and one more."""
        for number in range(self.config.inbound_sas + 1):
            sa = replace(self.sa(), direction=direction, obj_id=number)
            for _ in range(4):  # the device refuses some
                if not any(self.make(kind, number, sa)[:2]):
                    break


@driver_mutant("RO-DRV-01")
class CreatesTwice(Objects):
    """A group is created a second time."""

    def objects(self) -> None:
        self.group()
        self.group()


@driver_mutant("RO-DRV-02")
class TooManyInbound(Objects):
    """More inbound SAs than it said."""

    def objects(self) -> None:
        self.many_sas(IN, 2)


@driver_mutant("INF-15", "RO-DRV-02")
class TooManyOutbound(Objects):
    """More outbound SAs than it said."""

    def objects(self) -> None:
        self.many_sas(OUT, 1)


@driver_mutant("RO-DRV-03")
class DestroysTwice(Objects):
    """A group is destroyed a second time."""

    def objects(self) -> None:
        self.group()
        self.destroy(GROUP, 0)
        self.destroy(GROUP, 0)


@driver_mutant("RO-DRV-04", "NET-FF-DRV-02")
class GroupBeforeItsRules(Objects):
    """A group is destroyed while it has a rule."""

    def objects(self) -> None:
        self.one_rule()
        self.destroy(GROUP, 0)


@driver_mutant("NET-FF-DRV-02", "RO-DRV-04")
class GroupBeforeItsRulesAgain(GroupBeforeItsRules):
    """The same, for the clause about groups."""


@driver_mutant("NET-FF-DRV-03", "RO-DRV-04")
class ClassifierBeforeItsRules(Objects):
    """A classifier is destroyed while a rule uses it."""

    def objects(self) -> None:
        self.one_rule()
        self.destroy(CLASSIFIER, 0)


@driver_mutant("NET-FF-DRV-04")
class SamePriority(Objects):
    """Two rules for the same packets with the same priority."""

    def objects(self) -> None:
        self.one_rule()
        self.rule(1)


class WrongOrder(Objects):
    """A classifier begins with IPv4."""

    def objects(self) -> None:
        self.classifier(UDP_SELECTORS[1], UDP_SELECTORS[0])


@driver_mutant("NET-FF-DRV-05", "INF-34")
class NetworkFirst(WrongOrder):
    """A classifier begins with IPv4."""


@driver_mutant("INF-34", "NET-FF-DRV-05")
class NetworkFirstAgain(WrongOrder):
    """The same, for the statement that says it again."""


@driver_mutant("NET-FF-DRV-06")
class EthertypeUnmasked(Objects):
    """IPv4 is compared, and the EtherType is not."""

    def objects(self) -> None:
        self.classifier(replace(UDP_SELECTORS[0], mask=bytes(14)), UDP_SELECTORS[1])


@driver_mutant("NET-FF-DRV-07")
class WrongEthertype(Objects):
    """The key of an IPv4 rule says IPv6."""

    def objects(self) -> None:
        self.group()
        self.classifier(*UDP_SELECTORS)
        self.rule(keys=UDP_KEYS[:12] + b"\x86\xdd" + UDP_KEYS[14:])


@driver_mutant("NET-FF-DRV-08")
class WrongProtocol(Objects):
    """The key of a UDP rule says TCP."""

    def objects(self) -> None:
        self.group()
        self.classifier(*UDP_SELECTORS)
        self.rule(keys=transport_keys(SelectorType.UDP, 6, 7777))


class PartialMask(Objects):
    """A part of an address is masked without the flag."""

    def objects(self) -> None:
        mask = bytearray(UDP_SELECTORS[1].mask)
        mask[12:15] = b"\xff" * 3
        self.classifier(UDP_SELECTORS[0], replace(UDP_SELECTORS[1], mask=bytes(mask)))


@driver_mutant("NET-FF-DRV-09", "INF-29")
class MasksInPart(PartialMask):
    """A part of an address is masked without the flag."""


@driver_mutant("INF-29", "NET-FF-DRV-09")
class MasksInPartAgain(PartialMask):
    """The same, for the statement that says it again."""


class OtherSa(Wrong):
    """SAs go to the device with other parameters."""

    only = ("create_sas",)
    kind = OUT

    def command(self, readable: bytes, room: int) -> tuple[bytes, int]:
        is_create = readable[:2] == Opcode.RESOURCE_OBJ_CREATE.to_bytes(2, "little")
        if is_create and readable[HEADER : HEADER + 2] == self.kind.to_bytes(2, "little"):
            codec = self.dialect.sa
            sa = self.changed(codec.parse(readable[_SPECIFIC:]))
            readable = (readable[:_SPECIFIC] + codec.build(sa)).ljust(len(readable), b"\0")
        return readable, room

    def changed(self, sa: IpsecSa) -> IpsecSa:
        raise NotImplementedError


@driver_mutant("NET-IPSEC-DRV-04")
class TunnelWithoutEnds(OtherSa):
    """An outbound SA in tunnel mode without addresses."""

    def changed(self, sa: IpsecSa) -> IpsecSa:
        return replace(sa, param=NO_TUNNEL)


@driver_mutant("NET-IPSEC-DRV-05")
class InboundWithoutSpi(OtherSa):
    """An inbound SA without an SPI."""

    kind = IN

    def changed(self, sa: IpsecSa) -> IpsecSa:
        return replace(sa, spi=0)


@driver_mutant("NET-IPSEC-DRV-06")
class SameSpi(OtherSa):
    """Inbound SAs with one SPI."""

    kind = IN

    def changed(self, sa: IpsecSa) -> IpsecSa:
        return replace(sa, spi=0x4711)
