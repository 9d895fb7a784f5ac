"""Groups, classifiers and rules as objects: capabilities, limits, dependencies, refusals (NET-FF-DEV)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from virtio_ipsec.conformance.admin import Reply, demand, qualifier_name, status_name
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.flows import (
    CAPS,
    CLASSIFIER,
    GROUP,
    RULE,
    Flows,
    Match,
    match,
    protocol,
    set_limits,
    udp_port,
)
from virtio_ipsec.conformance.frames import UDP
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.flow_filter import FF_CLASSIFIER, FF_GROUP, FF_RULE, FfClassifier, FfGroup, FfRule
from virtio_ipsec.wire.numbers import CapId, Feature, FfAction, Opcode, SelectorFlag, SelectorType

TYPES = (GROUP, CLASSIFIER, RULE)
MATCH = udp_port(4, 4001)
KEYS = b"".join(m.key for m in MATCH)
#: The invalid-opcode code as ledger E03 reads it, and what E34 admits besides.
DISABLED = {
    (AdminStatus.EINVAL, AdminQualifier.INVALID_OPCODE),
    (AdminStatus.EINVAL, AdminQualifier.INVALID_FIELD),
}


def _flows(bench: Bench, **limits: int) -> Flows:
    bench.start()
    bench.admin.use_everything()
    return Flows(bench, **limits)


def _rule(group: int, classifier: int, **fields: int | bytes) -> FfRule:
    plain = FfRule(group, classifier, rule_priority=0, action=FfAction.DROP, keys=KEYS)
    return replace(plain, **fields)  # type: ignore[arg-type]


@case("ff-capabilities-listed", "NET-FF-DEV-01", "INF-30", "INF-33", "RFC-39", needs=("admin", "flow_filter"))
def capabilities_listed(bench: Bench) -> None:
    """The three flow-filter capabilities are listed and can be read; selectors and actions ascend.

    CAP_ID_LIST_QUERY has 0x0800 to 0x0802, DEVICE_CAP_GET of each succeeds, and selector types and actions
    each appear once, in ascending order.
    """
    bench.start()
    listed = bench.admin.use_everything().cap_ids()
    for id in CAPS:
        bench.require("NET-FF-DEV-01", id in listed, f"{id.name} is listed", f"{sorted(map(hex, listed))}")
    codecs = bench.dialect.capabilities
    selectors, listing = (
        codecs[id].parse(demand(bench.admin.cap_get(id)).result)
        for id in (CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)
    )
    types = [selector.type for selector in selectors.selectors]
    bench.check("INF-30", _ascending(types), "selector types once each, ascending", types)
    actions = list(listing.actions)
    bench.check("INF-33", _ascending(actions), "actions once each, ascending", actions)
    bench.check("RFC-39", SelectorType.ESP not in types, "no ESP selector", types)


def _ascending(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))


@case("ff-object-commands", "NET-FF-DEV-02", needs=("admin", "flow_filter", "modify_query"))
def object_commands(bench: Bench) -> None:
    """CREATE, MODIFY, QUERY and DESTROY work for groups, classifiers and rules.

    LIST_QUERY reports the four opcodes. Each object is created, queried, modified, queried again and
    destroyed; QUERY answers what was given last.
    """
    flows = _flows(bench)
    admin = bench.admin
    opcodes = {
        Opcode.RESOURCE_OBJ_CREATE,
        bench.dialect.modify_opcode,
        bench.dialect.query_opcode,
        Opcode.RESOURCE_OBJ_DESTROY,
    }
    supported = admin.supported()
    bench.require(
        "NET-FF-DEV-02",
        opcodes <= supported,
        "the four object commands are listed",
        sorted(map(hex, supported)),
    )
    flows.need(*MATCH)
    flows.need(*protocol(4, UDP))
    narrow = tuple(m.selector for m in protocol(4, UDP))
    versions = {
        GROUP: (FF_GROUP.build(FfGroup(3)), FF_GROUP.build(FfGroup(4))),
        CLASSIFIER: (
            FF_CLASSIFIER.build(FfClassifier(tuple(m.selector for m in MATCH))),
            FF_CLASSIFIER.build(FfClassifier(narrow)),
        ),
        RULE: (
            FF_RULE.build(_rule(0, 0, keys=KEYS[:34])),
            FF_RULE.build(_rule(0, 0, keys=KEYS[:34], rule_priority=1)),
        ),
    }

    def works(what: str, reply: Reply, data: bytes = b"") -> None:
        same = reply.result[: len(data)] == data
        bench.require("NET-FF-DEV-02", reply.ok and same, what, f"{reply} {reply.result.hex()}")

    for type in TYPES:
        first, second = versions[type]
        works(f"CREATE of a {type.name} succeeds", admin.create(type, 0, first))
        works(f"QUERY of the {type.name} answers what CREATE gave", admin.query(type, 0), first)
        works(f"MODIFY of the {type.name} succeeds", admin.modify(type, 0, second))
        works(f"QUERY of the {type.name} answers what MODIFY gave", admin.query(type, 0), second)
    for type in reversed(TYPES):
        works(f"DESTROY of the {type.name} succeeds", admin.destroy(type, 0))


@case("ff-disabled-capability", "NET-FF-DEV-03", needs=("admin", "flow_filter"))
def disabled_capability(bench: Bench) -> None:
    """While one of the three capabilities is not set, object commands answer with the invalid-opcode code.

    Three times all but one capability are set; then every object command is sent for every type. The code is
    status EINVAL with qualifier Q_INVALID_OPCODE (ledger E03); Q_INVALID_FIELD is admitted (E34).
    """
    for absent in CAPS:
        bench.start()
        admin = bench.admin.use_everything()
        admin.accept_caps(*(id for id in CAPS if id != absent))
        for type, data in zip(
            TYPES, (FF_GROUP.build(FfGroup(1)), b"", FF_RULE.build(_rule(0, 0))), strict=True
        ):
            commands = {"CREATE": admin.create(type, 0, data), "DESTROY": admin.destroy(type, 0)}
            if bench.dialect.supports_modify_query:
                commands["MODIFY"] = admin.modify(type, 0, data)
                commands["QUERY"] = admin.query(type, 0)
            for name, reply in commands.items():
                bench.check(
                    "NET-FF-DEV-03",
                    reply.outcome in DISABLED,
                    f"{name} of {type.name} without {absent.name} is an invalid opcode",
                    reply,
                )
                bench.reading("E34", f"{status_name(reply.status)}, {qualifier_name(reply.qualifier)}")
    # No groups, no classifiers, no rules: disabled as well (E34). Something of one kind is not.
    bench.start()
    bench.admin.use_everything()
    flows = Flows(bench)
    for counts in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        limits = dict(zip(("groups_limit", "classifiers_limit", "rules_limit"), counts, strict=True))
        set_limits(bench, replace(flows.offered, **limits))
        reply = flows.put_group(0, 1)
        none = reply.outcome in DISABLED if not any(counts) else reply.ok is bool(counts[0])
        text = f"CREATE of a group with limits {counts}"
        bench.check(
            "NET-FF-DEV-03", none, f"{text}: {'disabled' if not any(counts) else 'by its limit'}", reply
        )
        if reply.ok:
            demand(flows.destroy(GROUP, 0))


@case("ff-group-priority-taken", "NET-FF-DEV-04", needs=("admin", "flow_filter"))
def group_priority_taken(bench: Bench) -> None:
    """A second group of the same priority is refused with EINVAL; one of another priority is not.

    CREATE of two groups with priority 7, then of one with 8.
    """
    flows = _flows(bench, groups_limit=2)
    demand(flows.put_group(0, 7))
    reply = flows.put_group(1, 7)
    bench.check(
        "NET-FF-DEV-04",
        reply.status == AdminStatus.EINVAL,
        "EINVAL for a group_priority that is taken",
        reply,
    )
    if not reply.ok:
        reply = flows.put_group(1, 8)
        bench.check("NET-FF-DEV-04", reply.ok, "OK for a group_priority that is free", reply)


@case("ff-groups-limit", "NET-FF-DEV-05", needs=("admin", "flow_filter"))
def groups_limit(bench: Bench) -> None:
    """One group more than the driver's groups_limit is refused with ENOSPC.

    The driver sets groups_limit 2; two groups are created, then a third.
    """
    flows = _flows(bench, groups_limit=2, rules_per_group_limit=2)
    for id in range(2):
        reply = flows.put_group(id, id)
        bench.require("NET-FF-DEV-05", reply.ok, f"group {id + 1} of 2 can be created", reply)
    reply = flows.put_group(2, 2)
    bench.check("NET-FF-DEV-05", reply.status == AdminStatus.ENOSPC, "ENOSPC for group 3 of 2", reply)


@case("ff-classifiers-limit", "NET-FF-DEV-06", needs=("admin", "flow_filter"))
def classifiers_limit(bench: Bench) -> None:
    """One classifier more than the driver's classifiers_limit is refused with ENOSPC.

    The driver sets classifiers_limit 2; two classifiers are created, then a third.
    """
    flows = _flows(bench, classifiers_limit=2)
    flows.need(*MATCH)
    for id in range(2):
        reply = flows.put_classifier(id, *MATCH)
        bench.require("NET-FF-DEV-06", reply.ok, f"classifier {id + 1} of 2 can be created", reply)
    reply = flows.put_classifier(2, *MATCH)
    bench.check("NET-FF-DEV-06", reply.status == AdminStatus.ENOSPC, "ENOSPC for classifier 3 of 2", reply)


@case("ff-destroy-group-in-use", "NET-FF-DEV-07", needs=("admin", "flow_filter"))
def destroy_group_in_use(bench: Bench) -> None:
    """DESTROY of a group that still has a rule is EBUSY; without the rule it succeeds.

    One group, classifier and rule; DESTROY of the group before and after the rule is destroyed.
    """
    _destroy_in_use(bench, GROUP, "NET-FF-DEV-07")


@case("ff-destroy-classifier-in-use", "NET-FF-DEV-08", needs=("admin", "flow_filter"))
def destroy_classifier_in_use(bench: Bench) -> None:
    """DESTROY of a classifier that a rule still uses is EBUSY; without the rule it succeeds.

    One group, classifier and rule; DESTROY of the classifier before and after the rule is destroyed.
    """
    _destroy_in_use(bench, CLASSIFIER, "NET-FF-DEV-08")


def _destroy_in_use(bench: Bench, type: int, clause: str) -> None:
    flows = _flows(bench)
    flows.rule(flows.group(1), MATCH, FfAction.DROP)
    reply = bench.admin.destroy(type, 0)
    bench.require(clause, reply.status == AdminStatus.EBUSY, "EBUSY while a rule depends on it", reply)
    demand(flows.destroy(RULE, 0))
    reply = bench.admin.destroy(type, 0)
    bench.check(clause, reply.ok, "OK once the rule is gone", reply)


@case("ff-change-in-use", "RO-DEV-04", needs=("admin", "flow_filter"))
def change_in_use(bench: Bench) -> None:
    """MODIFY and DESTROY of a group and of a classifier that a rule depends on are EBUSY, and change nothing.

    The same MODIFY of the group succeeds once the rule is gone.
    """
    flows = _flows(bench)
    modifies = bench.dialect.modify_opcode in bench.admin.supported()
    rule = flows.rule(flows.group(1), MATCH, FfAction.DROP)
    other = FF_GROUP.build(FfGroup(2))
    for type, data in ((GROUP, other), (CLASSIFIER, FF_CLASSIFIER.build(FfClassifier((MATCH[0].selector,))))):
        if modifies:
            reply = bench.admin.modify(type, 0, data)
            bench.check(
                "RO-DEV-04", reply.status == AdminStatus.EBUSY, f"{type.name}: MODIFY is EBUSY", reply
            )
        reply = bench.admin.destroy(type, 0)
        bench.check("RO-DEV-04", reply.status == AdminStatus.EBUSY, f"{type.name}: DESTROY is EBUSY", reply)
    if not modifies:
        return
    before = bench.admin.query(GROUP, 0).result[:2]
    bench.check("RO-DEV-04", before == FF_GROUP.build(FfGroup(1)), "the group is as it was", before.hex())
    demand(flows.destroy(RULE, rule))
    reply = bench.admin.modify(GROUP, 0, other)
    bench.check("RO-DEV-04", reply.ok, "MODIFY succeeds once the rule is gone", reply)


def _refused(bench: Bench, reply: Reply, fault: str) -> None:
    if not reply.ok:
        bench.reading("E36", str(reply))
    bench.check("NET-FF-DEV-09", not reply.ok, f"a rule with {fault} is refused", reply)


def _rule_base(bench: Bench, **limits: int) -> Flows:
    """A group, a classifier, and proof that the plain rule is accepted."""
    flows = _flows(bench, **limits)
    flows.need_action(FfAction.DROP)
    flows.group(1)
    flows.classifier(*MATCH)
    demand(flows.put_rule(0, _rule(0, 0)))
    demand(flows.destroy(RULE, 0))
    return flows


@case("ff-rule-queue", "NET-FF-DEV-09", needs=("admin", "flow_filter"))
def rule_queue(bench: Bench) -> None:
    """A DIRECT_RX_VQ rule to something that is no receive queue is refused.

    vq_index 1 is a transmit queue, the index of the administration virtqueue and 0xffff are no receive
    queues either; vq_index 0 is one. Without multiqueue there is no other.
    """
    flows = _rule_base(bench)
    flows.need_action(FfAction.DIRECT_RX_VQ)
    direct = _rule(0, 0, action=FfAction.DIRECT_RX_VQ)
    for index in (1, bench.target.admin_queue_index(), 0xFFFF):
        _refused(bench, flows.put_rule(0, replace(direct, vq_index=index)), f"vq_index {index}")
    reply = flows.put_rule(0, direct)
    bench.check("NET-FF-DEV-09", reply.ok, "a rule with vq_index 0 is accepted", reply)
    bench.start(without=(Feature.NET_F_MQ, Feature.NET_F_RSS))
    bench.admin.use_everything()
    flows = Flows(bench)
    flows.group(1)
    flows.classifier(*MATCH)
    for index in (2, 4):
        reply = flows.put_rule(0, replace(direct, vq_index=index))
        _refused(bench, reply, f"vq_index {index} with a single queue pair")


@case("ff-rule-priority", "NET-FF-DEV-09", needs=("admin", "flow_filter"))
def rule_priority(bench: Bench) -> None:
    """Rule priorities go up to last_rule_priority, which itself may be refused (ledger E73).

    The driver sets last_rule_priority 4: priority 3 is accepted, 5 is refused, and what becomes of 4 is
    reported.
    """
    flows = _rule_base(bench, last_rule_priority=4)
    replies = {}
    for priority in (3, 5, 4):
        replies[priority] = flows.put_rule(0, _rule(0, 0, rule_priority=priority))
        if replies[priority].ok:
            demand(flows.destroy(RULE, 0))
    bench.check("NET-FF-DEV-09", replies[3].ok, "rule_priority 3 of 4 is accepted", replies[3])
    _refused(bench, replies[5], "rule_priority 5 of 4")
    bench.reading("E73", f"last_rule_priority {'can be used' if replies[4].ok else 'is excluded'}")


@case("ff-rule-id", "NET-FF-DEV-09", needs=("admin", "flow_filter"))
def rule_id(bench: Bench) -> None:
    """A rule id has to be below rules_limit and rules_per_group_limit.

    Both limits are 3: id 2 is accepted, id 3 is refused.
    """
    flows = _rule_base(bench, rules_limit=3, rules_per_group_limit=3)
    _refused(bench, flows.put_rule(3, _rule(0, 0)), "id 3 of 3")
    reply = flows.put_rule(2, _rule(0, 0))
    bench.check("NET-FF-DEV-09", reply.ok, "a rule with id 2 of 3 is accepted", reply)


@case("ff-rule-key-length", "NET-FF-DEV-09", "INF-35", needs=("admin", "flow_filter"))
def rule_key_length(bench: Bench) -> None:
    """key_length has to be the sum of the selectors' lengths.

    Rules with a key one octet too short, one too long and empty are refused; the exact one is accepted.
    """
    flows = _flows(bench)
    flows.need_action(FfAction.DROP)
    flows.group(1)
    flows.classifier(*MATCH)
    for keys in (KEYS[:-1], KEYS + b"\0", b""):
        reply = flows.put_rule(0, _rule(0, 0, keys=keys))
        fault = f"key_length {len(keys)} instead of {len(KEYS)}"
        _refused(bench, reply, fault)
        bench.check("INF-35", not reply.ok, f"a rule with {fault} is refused", reply)
    reply = flows.put_rule(0, _rule(0, 0))
    bench.check("INF-35", reply.ok, f"a rule with key_length {len(KEYS)} is accepted", reply)


@case("ff-rule-action", "NET-FF-DEV-09", needs=("admin", "flow_filter"))
def rule_action(bench: Bench) -> None:
    """A rule whose action is not in the action capability is refused.

    Actions 0 and 255, and an action of the device's list that the driver left out of its own.
    """
    flows = _rule_base(bench)
    for action in (0, 255):
        _refused(bench, flows.put_rule(0, _rule(0, 0, action=action)), f"action {action}")
    if FfAction.DIRECT_RX_VQ not in flows.actions.actions:
        return
    bench.start()
    bench.admin.use_everything()
    codec = bench.dialect.capabilities[CapId.NET_FF_ACTION_CAP]
    flows = Flows(bench)
    dropping = replace(flows.actions, actions=(FfAction.DROP,))
    demand(bench.admin.cap_set(CapId.NET_FF_ACTION_CAP, codec.build(dropping)))
    flows.group(1)
    flows.classifier(*MATCH)
    reply = flows.put_rule(0, _rule(0, 0, action=FfAction.DIRECT_RX_VQ))
    _refused(bench, reply, "an action that the driver's capability leaves out")


@case("ff-partial-mask-full", "NET-FF-DEV-18", needs=("admin", "flow_filter"))
def partial_mask_full(bench: Bench) -> None:
    """A classifier may announce partial masks although all bits of its masks are set (ledger E75).

    The flag is set in the selectors; the command's flags are zero, then the same bit.
    """
    flows = _flows(bench)
    selectors = {s.type: s for s in flows.selectors.selectors}
    partial = [type for type, s in selectors.items() if s.flags & SelectorFlag.PARTIAL_MASK]
    if SelectorType.ETH not in partial:
        raise Unsupported("the device has no partial masks in Ethernet selectors")
    full = Match(SelectorType.ETH, b"\xff" * 14, bytes(14), SelectorFlag.PARTIAL_MASK)
    flows.need(full)
    reply = flows.put_classifier(0, full)
    bench.check("NET-FF-DEV-18", reply.ok, "a full mask with PARTIAL_MASK in the selector is accepted", reply)
    if reply.ok:
        demand(flows.destroy(CLASSIFIER, 0))
    data = FF_CLASSIFIER.build(FfClassifier((match(SelectorType.ETH, {0: b"\xff" * 14}).selector,)))
    reply = bench.admin.create(CLASSIFIER, 0, data, flags=SelectorFlag.PARTIAL_MASK)
    bench.check("NET-FF-DEV-18", reply.ok, "a full mask with PARTIAL_MASK in the command is accepted", reply)
