"""Resource objects, shown on SAs: ids, existence, order, limits, reset (virtio v1.4 2.12.1.3)."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import ethernet, ip_of, packet
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.sas import TYPES, Caps, Peer, enable, install, make, set_caps
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminStatus, PacketError
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import CapId, Direction, ResourceType

OUTBOUND, INBOUND = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
BOTH = (Direction.OUTBOUND, Direction.INBOUND)
#: SAs per direction in cases that fill a table, if the device allows so many.
MANY = 24


def begin(bench: Bench, inbound: int = MANY, outbound: int = MANY, *, need: int = 1) -> Caps:
    """A started device; the driver's limits are these, or the device's where they are smaller.

    Raises Unsupported when the device has fewer than ``need`` SAs of one of the directions.
    """
    bench.start()
    caps = enable(bench)
    limits = IpsecResourceCap(
        min(inbound, caps.resources.inb_sa_limit), min(outbound, caps.resources.outb_sa_limit)
    )
    modes = tuple(caps.modes[number] for number in sorted(caps.modes))
    set_caps(bench, limits, IpsecSaCap(modes))
    if min(limits.inb_sa_limit, limits.outb_sa_limit) < need:
        raise Unsupported(f"the device has fewer than {need} SAs of one of the directions")
    return Caps(limits, caps.modes)


def seals(bench: Bench, id: int, peer: Peer) -> bool:
    """Whether a packet that names an outbound SA leaves sealed for this peer."""
    inner = packet()
    header = NetHdr(flags=bench.dialect.flag_security, resource_id=id, resource_type=OUTBOUND)
    frames = bench.packets.transmit(ethernet(inner, PEER_MAC, bench.packets.mac), header)
    try:
        return len(frames) == 1 and peer.open(ip_of(frames[0])).packet == inner
    except PacketError:
        return False


@case("object-exists", "NET-IPSEC-DEV-04", "RO-DEV-01", "INF-37", "RFC-36", needs=("admin", "ipsec"))
def exists(bench: Bench) -> None:
    """CREATE of an existing object is answered with EEXIST; the same id of the other type is free.

    Creates an SA of one type, again with the same and with other parameters, then one of the other type with
    its id. Any failure status but 17 is a warning, for the status table has no EEXIST (E02).
    """
    caps = begin(bench)
    id = 1 if min(caps.limit(way) for way in BOTH) > 1 else 0
    for direction in BOTH:
        first = make(bench, direction)
        reply = install(bench, id, first)
        bench.require("INF-37", reply.ok, f"id {id} is free for {TYPES[direction].name}", reply)
        for again in (first, make(bench, direction)):
            reply = install(bench, id, again)
            bench.check(
                "RFC-36", not reply.ok, f"a second CREATE of {TYPES[direction].name} {id} fails", reply
            )
            for clause in ("NET-IPSEC-DEV-04", "RO-DEV-01"):
                bench.check(
                    clause,
                    reply.status == AdminStatus.EEXIST,
                    f"EEXIST (17) for an existing {TYPES[direction].name}",
                    reply,
                    advisory=not reply.ok,
                )
    bench.reading("E02", "EEXIST is 17" if reply.status == AdminStatus.EEXIST else str(reply))


@case("object-unknown", "RO-DEV-02", needs=("admin", "ipsec"))
def unknown(bench: Bench) -> None:
    """MODIFY, QUERY and DESTROY of an object that does not exist get ENXIO.

    Ids that were never created, one that was destroyed, one beyond the limit, 2^32 - 1, and an id that only
    the other type has. In the January-2025 dialect DESTROY alone.
    """
    caps = begin(bench, need=3)
    for direction, other in (BOTH, BOTH[::-1]):
        kind = TYPES[direction]
        body = bench.dialect.sa.build(make(bench, direction))
        demand(install(bench, 1, make(bench, direction)))
        demand(bench.admin.destroy(kind, 1))
        demand(install(bench, 2, make(bench, other)))
        for id in (0, 1, 2, caps.limit(direction), 0xFFFFFFFF):
            attempts = {"DESTROY": bench.admin.destroy(kind, id)}
            if bench.dialect.supports_modify_query:
                attempts["QUERY"] = bench.admin.query(kind, id)
                attempts["MODIFY"] = bench.admin.modify(kind, id, body)
            for name, reply in attempts.items():
                bench.check(
                    "RO-DEV-02",
                    reply.status == AdminStatus.ENXIO,
                    f"ENXIO for {name} of {kind.name} {id}, which does not exist",
                    reply,
                )
        demand(bench.admin.destroy(TYPES[other], 2))


@case("object-recreate", "RO-DEV-05", "NET-IPSEC-DEV-10", "INF-37", "RFC-37", needs=("admin", "ipsec"))
def recreate(bench: Bench) -> None:
    """A destroyed object can be created again at once, any number of times.

    CREATE and DESTROY of one id ten times, for the lowest and the highest id of both types, with a new key, and
    once more with the SPI and key of the first SA. DESTROY with 8 and with 16 bytes of data.
    """
    caps = begin(bench)
    for direction in BOTH:
        kind = TYPES[direction]
        for id in {0, caps.limit(direction) - 1}:
            first = make(bench, direction)
            for turn, sa in enumerate([first, *(make(bench, direction) for _ in range(9)), first]):
                made = install(bench, id, sa)
                clause = "NET-IPSEC-DEV-10" if turn else "INF-37"
                bench.check(clause, made.ok, f"CREATE {turn} of {kind.name} {id}", made)
                if turn:
                    bench.check("RO-DEV-05", made.ok, f"CREATE {turn} of {kind.name} {id}", made)
                gone = destroy_long(bench, kind, id) if turn % 2 else bench.admin.destroy(kind, id)
                if not bench.check("RFC-37", gone.ok, f"DESTROY {turn} of {kind.name} {id}", gone):
                    bench.admin.destroy(kind, id)


def destroy_long(bench: Bench, kind: int, id: int) -> Reply:
    """DESTROY with the flags of the other object commands behind the header."""
    return bench.admin.command(0x0D, kind.to_bytes(4, "little") + id.to_bytes(12, "little"))


@case("object-recreate-new-key", "NET-IPSEC-DEV-10", "RFC-36", "RFC-37", needs=("admin", "ipsec", "wire"))
def recreate_new_key(bench: Bench) -> None:
    """An SA that was created again works with its new key, and with nothing of the old one.

    Outbound SA 0 is created, used, destroyed, named by a packet that must not leave, and created again with
    another SPI and key: packets leave sealed by these.
    """
    begin(bench)
    for turn in range(3):
        sa = make(bench)
        reply = install(bench, 0, sa)
        bench.require("NET-IPSEC-DEV-10", reply.ok, f"CREATE {turn} of SA 0", reply)
        peer = Peer(bench, sa)
        for clause in ("NET-IPSEC-DEV-10", "RFC-36"):
            bench.check(
                clause, seals(bench, 0, peer), f"after CREATE {turn} SA 0 seals with the key it was given"
            )
        demand(bench.admin.destroy(OUTBOUND, 0))
        header = NetHdr(flags=bench.dialect.flag_security, resource_id=0, resource_type=OUTBOUND)
        left = bench.packets.transmit(ethernet(packet(), PEER_MAC, bench.packets.mac), header)
        bench.check("RFC-37", not left, "nothing leaves for the destroyed SA", f"{len(left)} frames")


@case("object-usable-at-once", "INF-38", "RFC-36", needs=("admin", "ipsec", "wire"))
def usable_at_once(bench: Bench) -> None:
    """An SA works as soon as CREATE completes, and CREATE returns nothing of its own.

    Eight SAs, each used right after its CREATE.
    """
    caps = begin(bench)
    for id in range(min(8, caps.limit(Direction.OUTBOUND))):
        sa = make(bench)
        reply = install(bench, id, sa)
        bench.require("INF-38", reply.ok, f"CREATE of SA {id}", reply)
        bench.check("INF-38", reply.written == 8, "no result data", f"{reply.written} bytes")
        works = seals(bench, id, Peer(bench, sa))
        for clause in ("INF-38", "RFC-36"):
            bench.check(clause, works, f"SA {id} seals the packet queued right after its CREATE")


@case("object-any-id", "RO-DEV-06", needs=("admin", "ipsec"))
def any_id(bench: Bench) -> None:
    """Every free id is accepted, in any order.

    Ids in descending order, with gaps, and the gaps filled at random, below the driver's limit; then the
    highest and the lowest id under the device's own limit.
    """
    caps = begin(bench)
    for direction in BOTH:
        top = caps.limit(direction)
        ids = [
            *range(top - 1, -1, -2),
            *bench.rng.sample(range(top - 2, -1, -2), len(range(top - 2, -1, -2))),
        ]
        for id in ids:
            reply = install(bench, id, make(bench, direction))
            bench.check("RO-DEV-06", reply.ok, f"{TYPES[direction].name} {id} is accepted", reply)
    bench.start()
    caps = enable(bench)
    for direction in BOTH:
        for id in {caps.limit(direction) - 1, 0}:
            reply = install(bench, id, make(bench, direction))
            bench.check("RO-DEV-06", reply.ok, f"{TYPES[direction].name} {id} is accepted", reply)


@case("object-as-many-as-limit", "RO-DEV-08", "INF-12", "RO-DEV-07", needs=("admin", "ipsec"))
def as_many(bench: Bench) -> None:
    """As many SAs of each direction exist together as the driver's limits say, and no more.

    Fills both directions up to different limits, then asks for one more of each.
    """
    caps = begin(bench, MANY, MANY // 2)
    for direction in BOTH:
        for id in range(caps.limit(direction)):
            reply = install(bench, id, make(bench, direction))
            what = f"{TYPES[direction].name} {id} of {caps.limit(direction)}"
            bench.check("RO-DEV-08", reply.ok, what, reply)
            bench.check("RO-DEV-07", reply.ok, f"{what}: no internal limit below it", reply, advisory=True)
    for direction in BOTH:
        reply = install(bench, caps.limit(direction), make(bench, direction))
        bench.check(
            "INF-12", not reply.ok, f"no more than {caps.limit(direction)} {direction.name} SAs", reply
        )


@case("object-no-room", "RO-DEV-03", "ADM-DEV-08", needs=("admin", "ipsec"))
def no_room(bench: Bench) -> None:
    """A device without room for another object says ENOSPC, and keeps what it has.

    Creates up to 64 outbound SAs under limits that allow them. Devices with room for all are UNSUPPORTED here.
    """
    caps = begin(bench, 64, 64)
    made: list[int] = []
    for id in range(caps.limit(Direction.OUTBOUND)):
        reply = install(bench, id, make(bench))
        if reply.ok:
            made.append(id)
            continue
        retry = reply.status in (AdminStatus.EAGAIN, AdminStatus.ENOMEM)
        bench.check(
            "RO-DEV-03",
            reply.status == AdminStatus.ENOSPC or retry,
            f"ENOSPC when SA {id} does not fit",
            reply,
        )
        gone = bench.admin.destroy(OUTBOUND, id)
        bench.check("ADM-DEV-08", gone.status == AdminStatus.ENXIO, f"there is no SA {id}", gone)
        if made:
            demand(bench.admin.destroy(OUTBOUND, made[0]))
            reply = install(bench, id, make(bench))
            bench.check("ADM-DEV-08", reply.ok, f"SA {id} fits once another is destroyed", reply)
        return
    raise Unsupported("the device has room for all SAs that the case makes")


@case("object-reset", "RO-DEV-11", "NET-IPSEC-DEV-12", needs=("admin", "ipsec"))
def reset(bench: Bench) -> None:
    """A reset destroys every object.

    SAs of both types with low and high ids, then a reset and the same set-up: each is unknown to DESTROY (and
    QUERY), and its id and SPI can be used again.
    """
    caps = begin(bench)
    made = [
        (direction, id, make(bench, direction))
        for direction in BOTH
        for id in {0, caps.limit(direction) // 2, caps.limit(direction) - 1}
    ]
    for _, id, sa in made:
        demand(install(bench, id, sa))
    bench.start()
    bench.admin.use_everything()
    for cap in (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP):
        reply = bench.admin.cap_set(cap, demand(bench.admin.cap_get(cap)).result)
        for clause in ("RO-DEV-11", "NET-IPSEC-DEV-12"):
            free = reply.status != AdminStatus.EBUSY
            bench.check(clause, free, f"no object keeps {cap:#x} busy after a reset", reply)
        if reply.status == AdminStatus.EBUSY:
            return
        demand(reply)
    for direction, id, sa in made:
        kind = TYPES[direction]
        attempts = {}
        if bench.dialect.supports_modify_query:
            attempts["QUERY"] = bench.admin.query(kind, id)
        attempts["DESTROY"] = bench.admin.destroy(kind, id)
        for name, reply in attempts.items():
            for clause in ("RO-DEV-11", "NET-IPSEC-DEV-12"):
                bench.check(clause, not reply.ok, f"{name} finds no {kind.name} {id} after a reset", reply)
        reply = install(bench, id, sa)
        bench.check("RO-DEV-11", reply.ok, f"{kind.name} {id} can be created after a reset", reply)
        bench.check("NET-IPSEC-DEV-12", reply.ok, f"{kind.name} {id} can be created after a reset", reply)


@case("object-reset-packets", "NET-IPSEC-DEV-12", needs=("admin", "ipsec", "wire"))
def reset_packets(bench: Bench) -> None:
    """After a reset no packet is sealed by an SA from before it.

    Outbound SA 0 is made and used; after a reset a packet that names it must not leave, neither before nor
    after the capabilities are set anew.
    """
    begin(bench)
    sa = make(bench)
    demand(install(bench, 0, sa))
    peer = Peer(bench, sa)
    if not seals(bench, 0, peer):
        raise Unsupported("the SA does not seal in the first place")
    for again in (False, True):
        if again:
            begin(bench)
        else:
            bench.start()
        header = NetHdr(flags=bench.dialect.flag_security, resource_id=0, resource_type=OUTBOUND)
        left = bench.packets.transmit(ethernet(packet(), PEER_MAC, bench.packets.mac), header)
        bench.check("NET-IPSEC-DEV-12", not left, "nothing leaves for an SA from before the reset", len(left))
