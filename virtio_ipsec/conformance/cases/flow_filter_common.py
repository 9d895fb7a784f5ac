"""The general rules of capabilities and objects, shown on the flow filter."""

from __future__ import annotations

from dataclasses import fields, replace

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.flows import GROUP, Flows, read_limits, set_limits
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.wire.flow_filter import FF_GROUP, FfGroup
from virtio_ipsec.wire.numbers import CapId

NEEDS = ("admin", "flow_filter")


@case(
    "object-flow-filter",
    "RO-DEV-01",
    "RO-DEV-02",
    "RO-DEV-05",
    "RO-DEV-10",
    "RO-DEV-11",
    "INF-39",
    needs=NEEDS,
)
def flow_filter_objects(bench: Bench) -> None:
    """The rules of objects hold for flow-filter groups as they do for SAs.

    A group that exists (EEXIST), one that does not (ENXIO), one created again after DESTROY, read back and
    changed where the dialect has these commands, and one from before a reset.
    """
    bench.start()
    bench.admin.use_everything()
    flows = Flows(bench)
    top = flows.limits.groups_limit - 1
    for id in {0, top}:
        replies = {"DESTROY": flows.destroy(GROUP, id)}
        if bench.dialect.supports_modify_query:
            replies["QUERY"] = bench.admin.query(GROUP, id)
            replies["MODIFY"] = bench.admin.modify(GROUP, id, FF_GROUP.build(FfGroup(3)))
        for name, reply in replies.items():
            missing = reply.status == AdminStatus.ENXIO
            bench.check("RO-DEV-02", missing, f"ENXIO for {name} of group {id}, which does not exist", reply)
        for turn in range(3):
            reply = flows.put_group(id, 5)
            bench.check("RO-DEV-05", reply.ok, f"CREATE {turn} of group {id}", reply)
            again = flows.put_group(id, 6)
            bench.check(
                "RO-DEV-01",
                again.status == AdminStatus.EEXIST,
                f"EEXIST for group {id}, which exists",
                again,
            )
            if bench.dialect.supports_modify_query:
                held = bench.admin.query(GROUP, id)
                bench.check("RO-DEV-10", held.result[:2] == b"\5\0", "QUERY returns what CREATE gave", held)
                changed = bench.admin.modify(GROUP, id, FF_GROUP.build(FfGroup(7)))
                held = bench.admin.query(GROUP, id)
                now = b"\7\0" if changed.ok else b"\5\0"
                bench.check("INF-39", held.result[:2] == now, "QUERY returns what MODIFY gave", held)
            demand(flows.destroy(GROUP, id))
    demand(flows.put_group(top, 5))
    bench.start()
    bench.admin.use_everything()
    flows = Flows(bench)
    reply = flows.destroy(GROUP, top)
    bench.check("RO-DEV-11", not reply.ok, f"no group {top} after a reset", reply)


@case("capability-flow-filter", "CAP-DEV-02", "CAP-DEV-04", "CAP-DEV-07", needs=NEEDS)
def capability_flow_filter(bench: Bench) -> None:
    """The rules of limits hold for the flow-filter resource capability.

    Each limit is set to 0, 1, one less than the device's and the device's own, which must work, and to one
    more, which gets OK or EINVAL; with a live group all limits zero get EBUSY.
    """
    bench.start()
    bench.admin.use_everything()
    offered = read_limits(bench)
    codec = bench.dialect.capabilities[CapId.NET_FF_RESOURCE_CAP]

    def cap_set(**changed: int) -> Reply:
        return bench.admin.cap_set(CapId.NET_FF_RESOURCE_CAP, codec.build(replace(offered, **changed)))

    for field in fields(offered):
        most = getattr(offered, field.name)
        for value in sorted({0, min(1, most), max(most - 1, 0), most}):
            reply = cap_set(**{field.name: value})
            bench.check("CAP-DEV-02", reply.ok, f"{field.name} {value}", reply)
        widest = (
            0xFF if field.name in {"last_rule_priority", "selectors_per_classifier_limit"} else 0xFFFFFFFF
        )
        if most < widest:
            reply = cap_set(**{field.name: most + 1})
            bench.check(
                "CAP-DEV-04",
                reply.ok or reply.status == AdminStatus.EINVAL,
                f"OK or EINVAL for {field.name} {most + 1}",
                reply,
            )
    set_limits(bench, offered)
    flows = Flows(bench)
    flows.group(1)
    reply = bench.admin.cap_set(CapId.NET_FF_RESOURCE_CAP, bytes(24))
    bench.check(
        "CAP-DEV-07", reply.status == AdminStatus.EBUSY, "EBUSY for no limits with a live group", reply
    )
