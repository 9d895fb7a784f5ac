"""The command list of a group: what is legal when, per group type (virtio v1.4 2.12)."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.parts import PARTS, RESOURCES
from virtio_ipsec.conformance.sas import enable
from virtio_ipsec.conformance.target import Owner
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.admin import id_bitmap_build, id_bitmap_parse
from virtio_ipsec.wire.numbers import CapId, GroupType, Opcode

EINVAL = AdminStatus.EINVAL
LISTS = frozenset({int(Opcode.LIST_QUERY), int(Opcode.LIST_USE)})


def few(supported: frozenset[int]) -> list[int]:
    """The opcodes besides the list commands; not all of them should LIST_QUERY report nonsense."""
    return sorted(supported - LISTS)[:32]


def is_invalid_opcode(reply: Reply) -> bool:
    """EINVAL with Q_INVALID_OPCODE."""
    return reply.outcome == (EINVAL, AdminQualifier.INVALID_OPCODE)


@case("admin-groups-apart", "ADM-DEV-10", needs=("admin",))
def groups_apart(bench: Bench) -> None:
    """Command lists of different group types do not touch each other.

    LIST_USE of everything for the self group makes nothing legal for the SR-IOV group, and LIST_USE for the
    SR-IOV group, whatever its answer, leaves the self group's list alone.
    """
    bench.start()
    bench.admin.use_everything()
    for opcode in (Opcode.CAP_ID_LIST_QUERY, Opcode.DEV_MODE_SET):
        reply = bench.admin.command(opcode, group=GroupType.SRIOV, member=1)
        bench.check(
            "ADM-DEV-10",
            not reply.ok,
            f"{opcode.name} is not legal for group type 1 without its LIST_USE",
            reply,
        )
    bench.admin.list_use(LISTS, group=GroupType.SRIOV)
    reply = bench.admin.command(Opcode.CAP_ID_LIST_QUERY)
    bench.check("ADM-DEV-10", reply.ok, "the self group's list stays after LIST_USE for group type 1", reply)


@case("admin-legal-after-reset", "ADM-DEV-11", needs=("admin",))
def after_reset(bench: Bench) -> None:
    """After a reset only LIST_QUERY and LIST_USE are legal.

    Tries every supported opcode right after a reset, then once more after a LIST_USE of everything and another
    reset, which must forget the list.
    """
    for _ in range(2):
        bench.start()
        query = bench.admin.list_query()
        bench.check("ADM-DEV-11", query.ok, "LIST_QUERY is legal after reset", query)
        supported = id_bitmap_parse(query.result)
        for number in few(supported):
            reply = bench.admin.command(number)
            bench.check(
                "ADM-DEV-11", is_invalid_opcode(reply), f"opcode {number:#x} is not legal after reset", reply
            )
        use = bench.admin.list_use(supported)
        bench.check("ADM-DEV-11", use.ok, "LIST_USE is legal after reset", use)


def probe(bench: Bench, number: int, limits: bytes) -> Reply:
    """A harmless command of this opcode; SA capabilities must be enabled and no SA must exist. ``limits`` is
    the resource capability to set."""
    if number == Opcode.LIST_USE:
        raise ValueError("LIST_USE changes what is probed")
    if number == Opcode.DRIVER_CAP_SET:
        return bench.admin.cap_set(CapId.NET_IPSEC_RESOURCE_CAP, limits)
    data = bytes((4, 2)) + bytes(14)
    if number == Opcode.DEVICE_CAP_GET:
        data = int(CapId.NET_IPSEC_RESOURCE_CAP).to_bytes(8, "little")
    return bench.admin.command(number, data)


@case("admin-list-use", "ADM-DEV-12", "ADM-DEV-13", needs=("admin", "ipsec"))
def list_use(bench: Bench) -> None:
    """LIST_USE makes exactly the listed opcodes legal, and replaces the list before it.

    With the IPsec capabilities set, LIST_USE names one supported opcode after the other besides the list
    commands: each is legal while listed, and all others get EINVAL and Q_INVALID_OPCODE. A device that refuses
    such a list for reasons of its own (ADM-DEV-09) is asked with everything but that opcode instead.
    """
    bench.start()
    enable(bench)
    supported = few(bench.admin.supported())
    limits = demand(bench.admin.cap_get(CapId.NET_IPSEC_RESOURCE_CAP)).result
    for chosen in supported:
        for wanted in ({chosen}, set(supported) - {chosen}):
            if not bench.admin.list_use(LISTS | wanted).ok:
                continue
            for number in supported:
                reply = probe(bench, number, limits)
                if number in wanted:
                    bench.check(
                        "ADM-DEV-12",
                        not is_invalid_opcode(reply),
                        f"opcode {number:#x} is listed: legal",
                        reply,
                    )
                else:
                    bench.check(
                        "ADM-DEV-13",
                        is_invalid_opcode(reply),
                        f"opcode {number:#x} is not listed: EINVAL/Q_INVALID_OPCODE",
                        reply,
                    )


@case("admin-list-commands-blocked", "ADM-DEV-12", "ADM-DEV-13", needs=("admin",))
def list_blocked(bench: Bench) -> None:
    """Even LIST_QUERY and LIST_USE can be left out of the list; a reset brings them back.

    LIST_USE without bit 0, then without bits 0 and 1; a driver may do that (ADM-DRV-07).
    """
    bench.start()
    everything = bench.admin.supported()
    if not bench.admin.list_use(everything - {0}).ok:
        raise Unsupported("the device does not accept a list without LIST_QUERY")
    reply = bench.admin.list_query()
    bench.check("ADM-DEV-13", is_invalid_opcode(reply), "LIST_QUERY is blocked", reply)
    reply = bench.admin.list_use(everything - LISTS)
    bench.check("ADM-DEV-12", reply.ok, "LIST_USE is still listed", reply)
    for what, reply in (
        ("LIST_QUERY", bench.admin.list_query()),
        ("LIST_USE", bench.admin.list_use(everything)),
    ):
        bench.check("ADM-DEV-13", is_invalid_opcode(reply), f"{what} is blocked", reply)
    bench.start()
    reply = bench.admin.list_query()
    bench.check("ADM-DEV-12", reply.ok, "LIST_QUERY after reset", reply)


@case("admin-list-use-unsupported", "ADM-DEV-07", "ADM-DEV-13", needs=("admin",))
def list_use_unsupported(bench: Bench) -> None:
    """Listing an opcode that is not supported does not make it legal, and a refused list changes nothing.

    LIST_USE with an unsupported bit of the first word and of words beyond it (E108). Refused with EINVAL, the
    list before it stays in force, both for what it holds and for what it lacks.
    """
    bench.start()
    supported = bench.admin.supported()
    demand(bench.admin.list_use(LISTS | {int(Opcode.CAP_ID_LIST_QUERY)}))
    for extra in (0x12, 0x3F, 0x40, 0x200, 0x7FFF):
        reply = bench.admin.list_use(supported | {extra})
        if extra > max(63, *supported):
            bench.reading("E108", "surplus words ignored" if reply.ok else "surplus words refused")
        after = bench.admin.command(extra)
        bench.check("ADM-DEV-13", is_invalid_opcode(after), f"opcode {extra:#x} stays illegal", after)
        if reply.status == EINVAL:
            kept = bench.admin.command(Opcode.CAP_ID_LIST_QUERY)
            bench.check("ADM-DEV-07", kept.ok, "the list before a refused LIST_USE holds", kept)
            absent = bench.admin.cap_get(min(bench.admin.cap_ids(), default=0))
            bench.check("ADM-DEV-07", not absent.ok, "a refused LIST_USE adds nothing", absent)
        demand(bench.admin.list_use(LISTS | {int(Opcode.CAP_ID_LIST_QUERY)}))


@case("admin-list-query", "INF-43", "ADM-DEV-14", needs=("admin",))
def list_query(bench: Bench) -> None:
    """LIST_QUERY reports opcodes 0 and 1, and never less than before.

    Asks after a reset, after LIST_USE of all and of nothing but the list commands, and after another reset.
    """
    bench.start()
    seen = id_bitmap_parse(demand(bench.admin.list_query()).result)
    bench.check("INF-43", seen >= LISTS, "bits 0 and 1 are set", sorted(seen))

    def again(when: str) -> None:
        nonlocal seen
        now = bench.admin.supported()
        bench.check("ADM-DEV-14", now >= seen, f"{when}: at least {sorted(seen)}", sorted(now))
        seen |= now

    for chosen in (seen, LISTS | {max(seen)}):
        if bench.admin.list_use(chosen).ok:
            again(f"after LIST_USE of {len(chosen)} opcodes")
    for _ in range(2):
        bench.start()
        again("after a reset")


@case("admin-list-use-again", "ADM-DEV-15", "ADM-DEV-16", needs=("admin",))
def list_use_again(bench: Bench) -> None:
    """A command list that was accepted once is accepted again after a reset.

    Everything, and every single opcode besides the list commands. A refusal is a warning: whether the list is
    its only reason cannot be seen.
    """
    bench.start()
    supported = bench.admin.supported()
    lists = [supported, *(LISTS | {number} for number in few(supported))]
    accepted = [wanted for wanted in lists if bench.admin.list_use(wanted).ok]
    if not accepted:
        raise Unsupported("the device accepts no list in the first place")
    for wanted in accepted:
        bench.start()
        reply = bench.admin.list_use(wanted)
        bench.check("ADM-DEV-15", reply.ok, f"{sorted(wanted)} accepted again", reply)
        bench.check(
            "ADM-DEV-16", reply.ok, f"no refusal of {sorted(wanted)} after a reset", reply, advisory=True
        )


@case("admin-sriov-group", "ADM-DEV-17", needs=("admin",))
def sriov_group(bench: Bench) -> None:
    """Without virtual functions every command of the SR-IOV group gets EINVAL and Q_INVALID_GROUP.

    LIST_QUERY may also answer OK with an empty list (E87). Sent before and after LIST_USE for the self group,
    with the member ids 0, 1 and 65535. Where the test bed can, VF Enable is cleared before.
    """
    bench.start()
    if isinstance(bench.target, Owner):
        bench.target.enable_vfs(None)
    query = bench.admin.list_query(group=GroupType.SRIOV)
    if query.ok and id_bitmap_parse(query.result):
        raise Unsupported("the device has an SR-IOV group")
    bench.reading("E87", "LIST_QUERY: OK, empty" if query.ok else "LIST_QUERY: error")
    first = Opcode.LIST_USE if query.ok else Opcode.LIST_QUERY
    for used in (False, True):
        if used:
            bench.admin.use_everything()
        for number in range(first, Opcode.DEV_MODE_SET + 1):
            for member in (0, 1, 0xFFFF):
                reply = bench.admin.command(
                    number, id_bitmap_build(LISTS) + bytes(8), group=GroupType.SRIOV, member=member
                )
                bench.check(
                    "ADM-DEV-17",
                    reply.outcome == (EINVAL, AdminQualifier.INVALID_GROUP),
                    f"EINVAL/Q_INVALID_GROUP for opcode {number:#x}, member id {member}",
                    reply,
                )


@case("admin-device-parts-together", "DP-DEV-01", needs=("admin",))
def device_parts_together(bench: Bench) -> None:
    """Of the commands of device parts a group lists all or none.

    LIST_QUERY of the self group and of the SR-IOV group, where it exists. With the commands of device parts go the
    four resource commands.
    """
    bench.start()
    for group in (GroupType.SELF, GroupType.SRIOV):
        reply = bench.admin.list_query(group)
        listed = id_bitmap_parse(reply.result) if reply.ok else frozenset()
        some = sorted(Opcode(opcode).name for opcode in PARTS & listed)
        whole = not some or (listed >= PARTS and listed >= RESOURCES)
        bench.check("DP-DEV-01", whole, f"group {group.name}: all commands of device parts, or none", some)
