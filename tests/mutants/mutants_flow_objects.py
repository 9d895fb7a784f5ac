"""Devices whose flow-filter capabilities or objects are wrong."""

from __future__ import annotations

from registry import mutant

from virtio_ipsec.device.capabilities import FlowFilterActions, FlowFilterSelectors
from virtio_ipsec.device.flow_objects import ClassifierKind, GroupKind, RuleKind, has_partial_field
from virtio_ipsec.device.objects import ObjectKey, Record
from virtio_ipsec.errors import InvalidField, NoSuchObject
from virtio_ipsec.wire.flow_filter import FfActionCap, FfGroup, FfRule, FfSelectorCap, Selector
from virtio_ipsec.wire.numbers import ResourceType, SelectorFlag


@mutant("NET-FF-DEV-01")
class SelectorsNotListed(FlowFilterSelectors):
    """The selector capability is missing from the list."""

    def available(self) -> bool:
        return False


@mutant("INF-30")
class SelectorsDescend(FlowFilterSelectors):
    """Selector types are listed from the highest to the lowest."""

    def offered(self) -> FfSelectorCap:
        return FfSelectorCap(super().offered().selectors[::-1])

    def check(self, wanted: FfSelectorCap, offered: FfSelectorCap) -> None:
        super().check(FfSelectorCap(wanted.selectors[::-1]), offered)


@mutant("RFC-39")
class EspSelectorTooEarly(FlowFilterSelectors):
    """The ESP selector is offered in a dialect that has none."""

    def offered(self) -> FfSelectorCap:
        return self.config.ff_selectors


@mutant("INF-33")
class ActionsTwice(FlowFilterActions):
    """The last action is listed twice."""

    def offered(self) -> FfActionCap:
        actions = super().offered().actions
        return FfActionCap((*actions, actions[-1]))

    def check(self, wanted: FfActionCap, offered: FfActionCap) -> None:
        super().check(FfActionCap(tuple(sorted(set(wanted.actions)))), offered)


@mutant("NET-FF-DEV-02")
class QueryOfClassifierEmpty(ClassifierKind):
    """QUERY of a classifier answers zeros."""

    def answer(self, record: Record) -> bytes:
        return bytes(len(record.data))


@mutant("NET-FF-DEV-03")
class DisabledGroupUnknown(GroupKind):
    """While a capability is disabled, group commands answer that there is no such object."""

    def check_enabled(self) -> None:
        if not self.capabilities.enabled(*self.needs):
            raise NoSuchObject("disabled")


@mutant("NET-FF-DEV-04")
class GroupsShareAPriority(GroupKind):
    """Two groups may have one priority."""

    def check_priority(self, object_id: int, value: FfGroup) -> None:
        pass


@mutant("NET-FF-DEV-05")
class OneGroupTooMany(GroupKind):
    """A group more than the limit is accepted."""

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().groups_limit + 1, "")


@mutant("NET-FF-DEV-06")
class OneClassifierTooMany(ClassifierKind):
    """A classifier more than the limit is accepted."""

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().classifiers_limit + 1, "")


@mutant("NET-FF-DEV-07", "RO-DEV-04")
class GroupGoesUnderRules(RuleKind):
    """A group can be destroyed although it has rules."""

    def depends_on(self, value: FfRule) -> tuple[ObjectKey, ...]:
        return ((int(ResourceType.NET_FF_CLASSIFIER), value.classifier_id),)


@mutant("NET-FF-DEV-08", "RO-DEV-04")
class ClassifierGoesUnderRules(RuleKind):
    """A classifier can be destroyed although rules use it."""

    def depends_on(self, value: FfRule) -> tuple[ObjectKey, ...]:
        return ((int(ResourceType.NET_FF_GROUP), value.group_id),)


@mutant("NET-FF-DEV-09")
class AnyQueue(RuleKind):
    """A rule may direct to something that is no receive queue."""

    def check_queue(self, value: FfRule) -> None:
        pass


@mutant("NET-FF-DEV-09")
class AnyPriority(RuleKind):
    """A rule may have a priority above the limit."""

    def check_priority(self, value: FfRule) -> None:
        pass


@mutant("NET-FF-DEV-09")
class AnyRuleId(RuleKind):
    """A rule's id may be the limit."""

    def check_id(self, object_id: int, live: int) -> None:
        self.check_limit(object_id, live, self.limits().rules_limit + 1, "")


@mutant("NET-FF-DEV-09", "INF-35")
class AnyKeyLength(RuleKind):
    """A rule's key may be shorter or longer than the masks."""

    def check_keys(self, value: FfRule) -> None:
        pass


@mutant("INF-35", "NET-FF-DEV-09")
class KeyOneLonger(RuleKind):
    """key_length has to be one more than the sum of the selectors' lengths when there are three of them."""

    def check_keys(self, value: FfRule) -> None:
        selectors = self.context.filters.classifiers[value.classifier_id].selectors
        wanted = sum(len(s.mask) for s in selectors) + (len(selectors) == 3)
        if len(value.keys) != wanted:
            raise InvalidField("key_length")


@mutant("NET-FF-DEV-09")
class AnyAction(RuleKind):
    """A rule may have an action that no capability lists."""

    def check_action(self, value: FfRule) -> None:
        pass


@mutant("NET-FF-DEV-18")
class FullMaskIsNotPartial(ClassifierKind):
    """A classifier that announces partial masks and has none is refused."""

    def check_selector(self, selector: Selector) -> None:
        super().check_selector(selector)
        if selector.flags & SelectorFlag.PARTIAL_MASK and not has_partial_field(selector):
            raise InvalidField("a full mask is not partial")
