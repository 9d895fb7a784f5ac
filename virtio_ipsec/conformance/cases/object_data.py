"""What QUERY returns and what MODIFY does to an SA (virtio v1.4 2.12.1.3.3, 2.12.1.3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.resource_objects import BOTH, OUTBOUND, begin, seals
from virtio_ipsec.conformance.sas import TUNNEL4, TUNNEL6, TUNNEL_MODES, TYPES, Peer, install, make
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode

NEEDS = ("admin", "ipsec", "modify_query")


def without_keys(bench: Bench, sa: IpsecSa) -> bytes:
    """The SA with zeros for keys and salt: the second reading of E41."""
    return bench.dialect.sa.build(
        replace(
            sa,
            salt=bytes(4),
            cipher_key=bytes(len(sa.cipher_key)),
            auth_key=bytes(len(sa.auth_key)),
        )
    )


def echoes(bench: Bench, clause: str, direction: Direction, id: int, sa: IpsecSa, when: str) -> None:
    """QUERY returns the bytes of ``sa``, and behind them nothing but padding."""
    given = bench.dialect.sa.build(sa)
    reply = bench.admin.query(TYPES[direction], id)
    got = reply.result[: len(given)].ljust(len(given), b"\0")
    if got != given and got == without_keys(bench, sa):
        bench.reading("E41", "keys and salt as zeros (a deviation)")
        seen = "keys and salt as zeros"
    else:
        at = next((n for n, (a, b) in enumerate(zip(got, given, strict=False)) if a != b), len(got))
        seen = f"{reply}, {len(got)} bytes, different from byte {at}"
    whole = reply.ok and got == given and not any(reply.result[len(given) :])
    bench.check(clause, whole, f"QUERY returns the {len(given)} bytes of {when}", seen)


@case("object-query", "RO-DEV-10", needs=NEEDS)
def query(bench: Bench) -> None:
    """QUERY returns exactly what CREATE gave, keys included.

    One SA per mode and direction that the device offers, every field set to something of its own, among them
    an ``obj_id`` that is not the id (E37), read back twice, after other SAs were made in between.
    """
    caps = begin(bench)
    made = []
    numbers = [number for number in sorted(caps.modes) if caps.suites(number)]
    for id, number in enumerate(numbers[: min(map(caps.limit, BOTH))]):
        mode = IpsecMode(number)
        for direction in BOTH:
            sa = make(bench, direction, mode=mode, obj_id=0xA5000000 | id, udp_sport=4501, udp_dport=4502)
            if direction is Direction.INBOUND and mode in TUNNEL_MODES:
                sa = replace(sa, param=TUNNEL6)
            demand(bench.admin.create(TYPES[direction], id, bench.dialect.sa.build(sa)))
            made.append((direction, id, sa))
    for _ in range(2):
        for direction, id, sa in made:
            echoes(bench, "RO-DEV-10", direction, id, sa, "CREATE")


@case("object-modify", "INF-39", "RO-DEV-10", needs=NEEDS)
def modify(bench: Bench) -> None:
    """After MODIFY the object has the attributes that were supplied.

    Changes what a MODIFY of an SA may change (E40): tunnel addresses and their fields, UDP ports, the replay
    window, lifetimes, ``obj_id``. QUERY returns the new bytes.
    """
    begin(bench)
    id = 0
    for direction in BOTH:
        sa = make(bench, direction)
        demand(bench.admin.create(TYPES[direction], id, bench.dialect.sa.build(sa)))
        for what, new in harmless(sa):
            reply = bench.admin.modify(TYPES[direction], id, bench.dialect.sa.build(new))
            bench.check("INF-39", reply.ok, f"MODIFY of {what} of the {direction.name} SA", reply)
            if reply.ok:
                echoes(bench, "INF-39", direction, id, new, f"MODIFY of {what}")
                echoes(bench, "RO-DEV-10", direction, id, new, f"MODIFY of {what}")
                sa = new


def harmless(sa: IpsecSa) -> Iterator[tuple[str, IpsecSa]]:
    """Changes that every device should carry out."""
    yield "nothing", sa
    yield "obj_id", replace(sa, obj_id=0x1234)
    yield "UDP ports", replace(sa, udp_sport=1000, udp_dport=2000)
    if sa.param == TUNNEL4:
        yield "the tunnel's DSCP", replace(sa, param=replace(TUNNEL4, dscp=10, ttl=17))
        yield "the tunnel's family", replace(sa, param=TUNNEL6)
    if sa.replay_win_sz:
        yield "the replay window", replace(sa, replay_win_sz=sa.replay_win_sz // 2)
    yield "lifetimes", replace(sa, life=Lifetime(10, 1000, 20, 2000))


def risky(bench: Bench, sa: IpsecSa) -> Iterator[tuple[str, IpsecSa]]:
    """Changes that a device has good reason to refuse (E40), or must (mode 0, unknown algorithms)."""
    yield "mode 0", replace(sa, mode=0)
    yield "mode 255", replace(sa, mode=255)
    yield "an unknown algorithm", replace(sa, cipher_algo=63)
    yield "an unknown option", replace(sa, options=1 << 31)
    yield "a key too long", replace(sa, cipher_key_len=33)
    yield "the direction", replace(sa, direction=3 - sa.direction)
    yield "the SPI", replace(sa, spi=sa.spi ^ 1)
    yield (
        "the key",
        replace(sa, cipher_key=bench.octets(len(sa.cipher_key)), auth_key=bench.octets(len(sa.auth_key))),
    )


@case("object-modify-refused", "RO-DEV-09", needs=NEEDS)
def modify_refused(bench: Bench) -> None:
    """A MODIFY that fails has no effect on the object.

    Reserved modes, unknown algorithms and options, a key too long, another direction, SPI or key, and an SA of
    zeros: whenever the device refuses, QUERY returns the old bytes. Whether it lets keys change is reported.
    """
    begin(bench)
    refused = 0
    for direction in BOTH:
        sa = make(bench, direction)
        demand(bench.admin.create(TYPES[direction], 0, bench.dialect.sa.build(sa)))
        changes = [(what, bench.dialect.sa.build(new)) for what, new in risky(bench, sa)]
        for what, data in (*changes, ("everything, to zeros", bytes(196)), ("all, by no data", b"")):
            reply = bench.admin.modify(TYPES[direction], 0, data)
            if what == "the key":
                bench.reading("E40", "MODIFY changes keys" if reply.ok else "MODIFY refuses other keys")
            if reply.ok:
                demand(bench.admin.modify(TYPES[direction], 0, bench.dialect.sa.build(sa)))
                continue
            refused += 1
            echoes(bench, "RO-DEV-09", direction, 0, sa, f"CREATE after a refused MODIFY of {what}")
    if not refused:
        raise Unsupported("the device refuses no MODIFY")


@case("object-modify-refused-packets", "RO-DEV-09", needs=(*NEEDS, "wire"))
def modify_refused_packets(bench: Bench) -> None:
    """After a MODIFY that failed packets are sealed as before.

    The peer of an outbound SA opens a packet sent before, and one sent after each refused MODIFY; a sequence
    number that starts again would be a replay to it.
    """
    begin(bench)
    sa = make(bench)
    demand(install(bench, 0, sa))
    peer = Peer(bench, sa)
    if not seals(bench, 0, peer):
        raise Unsupported("the SA does not seal in the first place")
    refused = 0
    for what, new in risky(bench, sa):
        reply: Reply = bench.admin.modify(OUTBOUND, 0, bench.dialect.sa.build(new))
        if reply.ok:
            demand(bench.admin.destroy(OUTBOUND, 0))
            demand(install(bench, 0, sa))
            peer = Peer(bench, sa)
            continue
        refused += 1
        bench.check("RO-DEV-09", seals(bench, 0, peer), f"the SA seals as before a refused MODIFY of {what}")
    if not refused:
        raise Unsupported("the device refuses no MODIFY")
