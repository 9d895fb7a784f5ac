"""What the qualifier of a refusal blames: not the opcode, the group type or the member id when those are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.capabilities import set_modes, supersets
from virtio_ipsec.conformance.cases.sa_refusals import (
    wrong_algorithms,
    wrong_keys,
    wrong_mode,
    wrong_options,
    wrong_window,
)
from virtio_ipsec.conformance.flows import (
    CLASSIFIER,
    GROUP,
    RULE,
    Flows,
    Match,
    ethernet,
    protocol,
    read_limits,
    udp_port,
)
from virtio_ipsec.conformance.sas import TYPES, enable, install, make
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.admin import id_bitmap_build
from virtio_ipsec.wire.flow_filter import FfRule, FfSelectorCap
from virtio_ipsec.wire.numbers import CapId, Direction, FfAction, Opcode, SelectorType

#: They blame what every command of these cases has right.
WRONG = {AdminQualifier.INVALID_OPCODE, AdminQualifier.INVALID_GROUP, AdminQualifier.INVALID_MEMBER}


def _judge(bench: Bench, told: Iterable[tuple[str, Reply]]) -> None:
    """Each answer, if it is a refusal with EINVAL, blames the data or says nothing."""
    for what, reply in told:
        fair = reply.status != AdminStatus.EINVAL or reply.qualifier not in WRONG
        bench.check("INF-59", fair, f"{what}: opcode, group and member are not blamed", reply)


@case("admin-qualifier-of-sas", "INF-59", needs=("admin", "ipsec"))
def qualifier_of_sas(bench: Bench) -> None:
    """A refusal of an SA or of a capability does not blame opcode, group type or member id.

    SAs of wrong mode, options, algorithms, keys and windows, ids beyond the limit, a second SA of one SPI, objects and
    capabilities that there are not, capabilities beyond the device's, lists with opcodes that there are not. Whatever
    status they get, EINVAL comes with another qualifier than those three.
    """
    bench.start()
    caps = enable(bench)
    _judge(bench, _capabilities(bench))
    for direction in Direction:
        type = TYPES[direction]
        limit = (
            caps.resources.outb_sa_limit if direction is Direction.OUTBOUND else caps.resources.inb_sa_limit
        )
        if not limit:
            continue
        for wrong in (wrong_mode, wrong_options, wrong_algorithms, wrong_keys, wrong_window):
            if wrong is wrong_window and direction is Direction.OUTBOUND:
                continue
            for what, sa in bench.sweep(wrong(bench, caps, direction)):
                reply = bench.admin.create(type, 0, bench.dialect.sa.build(sa))
                _judge(bench, [(f"{direction.name} SA with {what}", reply)])
                if reply.ok:
                    bench.admin.destroy(type, 0)
        sa = make(bench, direction)
        limit = (
            caps.resources.outb_sa_limit if direction is Direction.OUTBOUND else caps.resources.inb_sa_limit
        )
        demand(install(bench, 0, sa))
        told = [
            (
                f"{direction.name} SA {id}",
                bench.admin.create(type, id, bench.dialect.sa.build(replace(sa, obj_id=id))),
            )
            for id in (limit, 0xFFFF_FFFF, 0)
        ]
        if limit > 1:
            told.append((f"{direction.name} SA of the same SPI", install(bench, 1, sa)))
        told.append((f"DESTROY of {direction.name} SA 9", bench.admin.destroy(type, min(9, limit))))
        if bench.dialect.supports_modify_query:
            for what, other in (("SPI", replace(sa, spi=sa.spi ^ 1)), ("salt", replace(sa, salt=bytes(4)))):
                reply = bench.admin.modify(type, 0, bench.dialect.sa.build(other))
                told.append((f"{direction.name} SA of another {what} by MODIFY", reply))
        opposite = TYPES[Direction.INBOUND if direction is Direction.OUTBOUND else Direction.OUTBOUND]
        told.append(
            (
                f"{direction.name} SA as {opposite.name}",
                bench.admin.create(opposite, 0, bench.dialect.sa.build(sa)),
            )
        )
        _judge(bench, told)


def _capabilities(bench: Bench) -> Iterator[tuple[str, Reply]]:
    """Capabilities that are refused, or may be."""
    caps = enable(bench)
    for what, mode in bench.sweep(supersets(caps)):
        yield what, set_modes(bench, mode)
    some = next(iter(caps.modes.values()))
    for number in (0, 5, 255):
        yield f"mode {number}", set_modes(bench, replace(some, mode=number))
    yield "one mode twice", set_modes(bench, some, some)
    yield "a capability that there is not", bench.admin.cap_get(0xFFF)
    yield "an object of a type that there is not", bench.admin.create(0x5FF, 0, bytes(64))
    yield "a list that holds every opcode", bench.admin.list_use(range(256))
    yield "no opcode known", bench.admin.command(Opcode.LIST_USE, id_bitmap_build([63]))
    bench.start()
    enable(bench)


@case("admin-qualifier-of-rules", "INF-59", needs=("admin", "flow_filter"))
def qualifier_of_rules(bench: Bench) -> None:
    """A refusal of a flow-filter object does not blame opcode, group type or member id.

    Groups of a priority that is taken, classifiers with selectors out of place, of other lengths and with parts of
    fields, rules with references, keys, queues, actions and priorities that cannot be, ids beyond the limits, objects
    in use. EINVAL comes with another qualifier than those three.
    """
    bench.start()
    bench.admin.use_everything()
    # There is a priority beyond.
    last = min(read_limits(bench).last_rule_priority, 0xFE)
    _judge(bench, _objects(bench, Flows(bench, last_rule_priority=last)))


def _left_out(bench: Bench, eth: Match, ip: Match) -> Iterator[tuple[str, Reply]]:
    """Classifiers beyond what a driver that has accepted no bit of one selector type has accepted."""
    bench.start()
    bench.admin.use_everything()
    flows = Flows(bench)
    codec = bench.dialect.capabilities[CapId.NET_FF_SELECTOR_CAP]
    some = [selector for selector in flows.selectors.selectors if selector.type == eth.type]
    none = FfSelectorCap(tuple(replace(one, mask=bytes(len(one.mask))) for one in some))
    if some and bench.admin.cap_set(CapId.NET_FF_SELECTOR_CAP, codec.build(none)).ok:
        yield "a mask that the driver left out", flows.put_classifier(0, eth)
        yield "a selector that the driver left out", flows.put_classifier(1, without_bits(eth), ip)


def without_bits(match: Match) -> Match:
    """The same selector, with no bit of it."""
    return Match(match.type, bytes(len(match.mask)), bytes(len(match.key)))


def _objects(bench: Bench, flows: Flows) -> Iterator[tuple[str, Reply]]:
    demand(flows.put_group(0, 5))
    yield "a priority that is taken", flows.put_group(1, 5)
    yield "a group beyond the limit", flows.put_group(flows.limits.groups_limit, 6)
    eth, ip, udp = udp_port(4, 4001)
    long = Match(eth.type, eth.mask + b"\xff", eth.key + b"\0")
    strange = Match(SelectorType(SelectorType.UDP), udp.mask[:4], udp.key[:4])
    for what, chain in {
        "no selector": (),
        "IP first": (ip,),
        "UDP second": (eth, udp),
        "Ethernet twice": (eth, eth),
        "a mask too long": (long,),
        "a mask too short": (eth, ip, strange),
        "four selectors": (eth, ip, udp, udp),
        "part of a field": (Match(eth.type, b"\xff" + bytes(13), bytes(14)),),
        "part of another": (eth, Match(ip.type, bytes(16) + b"\xff\xff\0\0", bytes(20))),
    }.items():
        reply = flows.put_classifier(0, *chain)
        yield what, reply
        if reply.ok:
            demand(flows.destroy(CLASSIFIER, 0))
    matches = protocol(4, 17) if flows.limits.selectors_per_classifier_limit > 1 else (ethernet(4),)
    made = flows.put_classifier(0, *matches)
    yield "a classifier beyond the limit", flows.put_classifier(flows.limits.classifiers_limit, *matches)
    if not made.ok:
        return
    keys = b"".join(one.key for one in matches)
    action = FfAction(flows.actions.actions[0])
    good = FfRule(0, 0, 0, action, 0, keys)
    for what, rule in {
        "no such group": replace(good, group_id=1),
        "no such classifier": replace(good, classifier_id=1),
        "a key too long": replace(good, keys=keys + b"\0"),
        "no key": replace(good, keys=b""),
        "action 0": replace(good, action=0),
        "action 255": replace(good, action=255),
        "queue 1": replace(good, action=FfAction.DIRECT_RX_VQ, vq_index=1),
        "queue 0xffff": replace(good, action=FfAction.DIRECT_RX_VQ, vq_index=0xFFFF),
    }.items():
        reply = flows.put_rule(0, rule)
        yield f"a rule with {what}", reply
        if reply.ok:
            demand(flows.destroy(RULE, 0))
    yield "a rule beyond the limit", flows.put_rule(flows.limits.rules_limit, good)
    beyond = replace(good, rule_priority=flows.limits.last_rule_priority + 1)
    yield "a rule priority beyond the limit", flows.put_rule(0, beyond)
    if flows.put_rule(0, good).ok:
        yield "a group in use", flows.destroy(GROUP, 0)
        yield "a classifier in use", flows.destroy(CLASSIFIER, 0)
        yield "the same rule", flows.put_rule(0, good)
    for id in (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP):
        yield f"{id.name} in use", bench.admin.cap_set(id, bytes(24))
    yield from _left_out(bench, eth, ip)
    bench.start()
    bench.admin.use_everything()
    for id in (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP):
        held = demand(bench.admin.cap_get(id)).result
        codec = bench.dialect.capabilities[id]
        plain = codec.build(codec.parse(held))
        for at in bench.sweep(range(len(plain))):
            for value in {0xFF, plain[at] ^ 1}:
                data = plain[:at] + bytes((value,)) + plain[at + 1 :]
                yield f"{id.name} with octet {at} {value:#x}", bench.admin.cap_set(id, data)
