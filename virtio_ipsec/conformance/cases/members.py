"""The SR-IOV group of a device that has members."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.parts import use_group
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.numbers import GroupType, Opcode

LISTS = {Opcode.LIST_QUERY, Opcode.LIST_USE}


@case("group-member-ids", "ADM-DEV-18", needs=("admin", "members"))
def member_ids(bench: Bench) -> None:
    """A command for a member that does not exist ends with EINVAL and Q_INVALID_MEMBER.

    Every command of the group that uses the member id, with the ids 0, NumVFs + 1, 0xffff and 2 to the power of 63;
    with one virtual function less enabled than there are, also with the id of that one. Ids of members are never
    refused for that reason.
    """
    bench.start()
    total = bench.owner.total_vfs
    commands = sorted(use_group(bench) - LISTS)
    if not commands:
        raise Unsupported("the group has no command that uses a member id")
    for enabled in (total, total - 1):
        if enabled != total:
            bench.owner.enable_vfs(None)
            bench.owner.enable_vfs(enabled)
        for number in commands:
            for member in (0, enabled + 1, total + 1, 0xFFFF, 1 << 63):
                reply = bench.admin.command(number, bytes(64), group=GroupType.SRIOV, member=member)
                bench.check(
                    "ADM-DEV-18",
                    reply.outcome == (AdminStatus.EINVAL, AdminQualifier.INVALID_MEMBER),
                    f"NumVFs {enabled}: EINVAL/Q_INVALID_MEMBER for opcode {number:#x}, member id {member}",
                    reply,
                )
            for member in {1, enabled}:
                reply = bench.admin.command(number, bytes(64), group=GroupType.SRIOV, member=member)
                bench.check(
                    "ADM-DEV-18",
                    reply.qualifier != AdminQualifier.INVALID_MEMBER,
                    f"NumVFs {enabled}: member {member} is one",
                    reply,
                )
