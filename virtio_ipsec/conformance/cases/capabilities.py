"""Device and driver capabilities: what is listed, what can be set, what a reset forgets (virtio v1.4 2.12.1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.sas import TYPES, Caps, enable, install, make, read_caps
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.wire.admin import id_bitmap_parse
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import CapId, Direction, Feature, GroupType, Opcode, ResourceType, has

RESOURCES, MODES = CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP
COMMANDS = (Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET)
#: No SAs, or no modes.
NONE = bytes(8)
MASKS = ("options", "cipher_algo", "hmac_algo", "aead_algo")
WIDTHS = {"options": 32, "cipher_algo": 64, "hmac_algo": 64, "aead_algo": 32}


def begin(bench: Bench) -> Caps:
    """A started device, every command usable, no driver capability set."""
    bench.start()
    bench.admin.use_everything()
    return read_caps(bench)


def set_limits(bench: Bench, inbound: int, outbound: int) -> Reply:
    """DRIVER_CAP_SET of 0x0803."""
    return bench.admin.cap_set(
        RESOURCES, bench.dialect.resource_cap.build(IpsecResourceCap(inbound, outbound))
    )


def set_modes(bench: Bench, *modes: ModeCap) -> Reply:
    """DRIVER_CAP_SET of 0x0804."""
    return bench.admin.cap_set(MODES, bench.dialect.sa_cap.build(IpsecSaCap(modes)))


@case("capability-commands", "CAP-DEV-01", needs=("admin",))
def commands(bench: Bench) -> None:
    """The three capability commands are supported together.

    Reads bits 7, 8 and 9 of LIST_QUERY, and sends each after LIST_USE: none is an invalid opcode.
    """
    bench.start()
    supported = bench.admin.supported()
    there = sorted(supported & set(COMMANDS))
    if not there:
        raise Unsupported("the device supports no capabilities")
    bench.check("CAP-DEV-01", len(there) == 3, "bits 7, 8 and 9 of LIST_QUERY", there)
    bench.admin.use_everything()
    for number in COMMANDS:
        reply = bench.admin.command(number, int(RESOURCES).to_bytes(8, "little"))
        bench.check("CAP-DEV-01", reply.qualifier != 2, f"{number.name} is known", reply)


@case("capability-listed", "NET-IPSEC-DEV-01", "RFC-26", "INF-40", needs=("admin", "ipsec"))
def listed(bench: Bench) -> None:
    """Both IPsec capabilities are in the bitmap of CAP_ID_LIST_QUERY, which is long enough for them.

    Reads bits 3 and 4 of word 32, and DEVICE_CAP_GET of both. Whether they are listed without the feature
    negotiated is reported (E48).
    """
    bench.start()
    bench.admin.use_everything()
    reply = demand(bench.admin.command(Opcode.CAP_ID_LIST_QUERY))
    ids = id_bitmap_parse(reply.result)
    for id in (RESOURCES, MODES):
        for clause in ("NET-IPSEC-DEV-01", "RFC-26"):
            bench.check(clause, id in ids, f"capability {id:#x} is listed", sorted(map(hex, ids)))
        answer = bench.admin.cap_get(id)
        bench.check("RFC-26", answer.ok, f"DEVICE_CAP_GET of {id:#x}", answer)
    length = len(reply.result)
    bench.check(
        "INF-40",
        length % 8 == 0 and length >= (max(ids, default=0) // 64 + 1) * 8 and (not ids or length >= 264),
        "whole words up to the largest id, 264 bytes at least",
        f"{length} bytes",
    )
    bench.start(without=(Feature.NET_F_IPSEC,))
    bench.admin.use_everything()
    reply = bench.admin.command(Opcode.CAP_ID_LIST_QUERY)
    still = RESOURCES in id_bitmap_parse(reply.result)
    bench.reading("E48", "listed without the feature" if still else "not listed without the feature")


@case("capability-structures", "INF-02", "INF-13", "RFC-26", "RFC-27", "RFC-28", needs=("admin", "ipsec"))
def structures(bench: Bench) -> None:
    """The two IPsec capabilities have the layout and hold only defined values.

    0x0803 is 8 bytes. 0x0804 is 8 bytes and count entries of 44 (40 in the January-2025 dialect), rounded up
    to a multiple of 8: one entry for each mode, modes 1 to 4, reserved bytes zero, no undefined option or
    algorithm bit, key lengths that a key field can hold and that go with the masks.
    """
    bench.start()
    bench.admin.use_everything()
    limits = demand(bench.admin.cap_get(RESOURCES)).result
    stride = bench.dialect.mode_cap.size or 0
    for clause in ("INF-02", "RFC-26"):
        bench.check(clause, len(limits) == 8, "0x0803 is 8 bytes long", len(limits))
    data = demand(bench.admin.cap_get(MODES)).result
    count = data[0] if data else 0
    length = 8 + count * stride
    fits = len(data) == -(-length // 8) * 8
    for clause in ("INF-02", "RFC-27"):
        what = f"0x0804 is {length} bytes for {count} entries, rounded up to a multiple of 8"
        bench.check(clause, fits, what, len(data))
    if not fits:
        return
    entries = [data[8 + at * stride :][:stride] for at in range(count)]
    modes = [bench.dialect.mode_cap.parse(entry) for entry in entries]
    numbers = [entry.mode for entry in modes]
    for clause in ("INF-13", "RFC-28"):
        bench.check(clause, set(numbers) <= {1, 2, 3, 4}, "modes 1 to 4", numbers)
    bench.check("INF-13", bool(numbers), "at least one mode", numbers)
    bench.check("INF-13", len(set(numbers)) == count, "one entry per mode", numbers)
    bench.check("INF-13", data[1:8] == bytes(7), "reserved bytes behind count are zero", data[1:8].hex())
    for entry, mode in zip(entries, modes, strict=True):
        # Whatever the fields do not hold is reserved; the codec writes zeros there.
        bench.check(
            "INF-13",
            bench.dialect.mode_cap.build(mode) == entry,
            f"reserved bytes of mode {mode.mode} are zero",
            entry.hex(),
        )
        for name, problem in faults(bench, mode):
            bench.check("INF-13", not problem, f"mode {mode.mode}: {name}", problem)


#: Algorithm numbers that exist, by capability mask.
DEFINED = {
    "cipher_algo": (1 << 15) - 1,
    "hmac_algo": 0x7F | sum(1 << n for n in (25, 26, 27, 28, 41, 42, 49, 50, 53, 54)),
    "aead_algo": 0xF,
}


def faults(bench: Bench, mode: ModeCap) -> Iterator[tuple[str, str]]:
    """What each entry has to keep, and how it does not: "" when it does."""
    stray = mode.options & ~bench.dialect.ipsec_options
    yield "only defined option bits", f"{stray:#x}" if stray else ""
    for name, defined in DEFINED.items():
        stray = getattr(mode, name) & ~defined
        yield f"only defined bits in {name}", f"{stray:#x}" if stray else ""
    for name in ("max_cipher_key_len", "max_auth_key_len"):
        length = getattr(mode, name)
        yield f"{name} fits a key field of 32 bytes (E27)", f"{length}" if length > 32 else ""
    ciphers = mode.cipher_algo & ~1 or mode.aead_algo & ~1
    missing = (ciphers and not mode.max_cipher_key_len) or (mode.hmac_algo & ~1 and not mode.max_auth_key_len)
    yield "a key length for the algorithms it lists", "zero" if missing else ""
    nothing = not mode.hmac_algo & ~1 and not mode.aead_algo & ~1
    yield "an algorithm that protects integrity (E28)", "none" if nothing else ""


@case("capability-limits", "CAP-DEV-02", needs=("admin", "ipsec"))
def limits(bench: Bench) -> None:
    """Every limit up to the device's can be set, up and down, and then holds.

    Sets both limits to 0, 1, 2, the middle, the largest and one less, also with one of them zero, in an order
    that goes up and down; after each the largest allowed id of each direction can be created.
    """
    caps = begin(bench)
    demand(bench.admin.cap_set(MODES, demand(bench.admin.cap_get(MODES)).result))
    most_in, most_out = caps.resources.inb_sa_limit, caps.resources.outb_sa_limit

    def values(most: int) -> list[int]:
        return sorted({0, min(1, most), min(2, most), most // 2, max(most - 1, 0), most})

    pairs = [(i, most_out) for i in values(most_in)] + [(most_in, o) for o in values(most_out)]
    pairs += [(0, 0), (0, most_out), (most_in, 0), (most_in, most_out)]
    bench.rng.shuffle(pairs)
    for inbound, outbound in [*bench.sweep(pairs), (most_in, most_out)]:
        reply = set_limits(bench, inbound, outbound)
        bench.check("CAP-DEV-02", reply.ok, f"limits {inbound} inbound and {outbound} outbound", reply)
        for limit, direction, kind in (
            (inbound, Direction.INBOUND, ResourceType.NET_IPSEC_INB_SA),
            (outbound, Direction.OUTBOUND, ResourceType.NET_IPSEC_OUTB_SA),
        ):
            if limit and reply.ok:
                made = install(bench, limit - 1, make(bench, direction))
                bench.check("CAP-DEV-02", made.ok, f"{kind.name} {limit - 1} under limit {limit}", made)
                bench.admin.destroy(kind, limit - 1)


def subsets(mode: ModeCap) -> Iterator[tuple[str, ModeCap]]:
    """Entries with less than ``mode``: each bit alone, each bit missing, and smaller numbers."""
    for name in MASKS:
        whole = getattr(mode, name)
        bits = [1 << bit for bit in range(WIDTHS[name]) if whole >> bit & 1]
        for value in {0, *bits, *(whole & ~bit for bit in bits)}:
            yield f"{name} {value:#x}", replace(mode, **{name: value})
    for name in ("max_replay_win_sz", "max_cipher_key_len", "max_auth_key_len"):
        most = getattr(mode, name)
        for value in {0, 1, most // 2, max(most - 1, 0), most}:
            if value <= most:
                yield f"{name} {value}", replace(mode, **{name: value})


@case("capability-subsets", "CAP-DEV-03", needs=("admin", "ipsec"))
def flag_subsets(bench: Bench) -> None:
    """Every subset of the flag bits that the device reports can be set.

    For each mode: each option and algorithm bit alone, each left out, none at all, with all other modes
    present; smaller windows and key lengths; each set of modes (E47).
    """
    caps = begin(bench)
    modes = [caps.modes[number] for number in sorted(caps.modes)]
    for at, mode in enumerate(modes):
        for what, less in bench.sweep(subsets(mode)):
            reply = set_modes(bench, *modes[:at], less, *modes[at + 1 :])
            bench.check("CAP-DEV-03", reply.ok, f"mode {mode.mode} with {what}", reply)
    for chosen in range(1 << len(modes)):
        some = [mode for at, mode in enumerate(modes) if chosen >> at & 1]
        reply = set_modes(bench, *some)
        bench.check("CAP-DEV-03", reply.ok, f"only the modes {[mode.mode for mode in some]}", reply)


def supersets(caps: Caps) -> Iterator[tuple[str, ModeCap]]:
    """Entries with one thing more than the device's."""
    for mode in caps.modes.values():
        for name in MASKS:
            for bit in range(WIDTHS[name]):
                if not getattr(mode, name) >> bit & 1:
                    extra = replace(mode, **{name: getattr(mode, name) | 1 << bit})
                    yield f"mode {mode.mode} with bit {bit} in {name}", extra
        for name in ("max_replay_win_sz", "max_cipher_key_len", "max_auth_key_len"):
            for value in (getattr(mode, name) + 1, 0xFFFFFFFF):
                yield f"mode {mode.mode} with {name} {value}", replace(mode, **{name: value})


@case("capability-beyond", "CAP-DEV-04", needs=("admin", "ipsec"))
def beyond(bench: Bench) -> None:
    """Limits above the device's and bits that it did not report get EINVAL or OK, and have no effect.

    Sets each limit to one more and to 2^32 - 1, each bit that is missing from an option or algorithm mask,
    larger windows and keys, and modes that are not offered. After OK a CREATE beyond the device's own limit
    must still fail.
    """
    caps = begin(bench)
    demand(bench.admin.cap_set(MODES, demand(bench.admin.cap_get(MODES)).result))

    def judge(reply: Reply, what: str) -> None:
        bench.check(
            "CAP-DEV-04", reply.ok or reply.status == AdminStatus.EINVAL, f"OK or EINVAL for {what}", reply
        )

    most_in, most_out = caps.resources.inb_sa_limit, caps.resources.outb_sa_limit
    for more in (1, 0xFFFFFFFF):
        inbound, outbound = min(most_in + more, 0xFFFFFFFF), min(most_out + more, 0xFFFFFFFF)
        for pair in ((inbound, most_out), (most_in, outbound), (inbound, outbound)):
            reply = set_limits(bench, *pair)
            judge(reply, f"limits {pair}")
            if reply.ok:
                for limit, direction in ((most_in, Direction.INBOUND), (most_out, Direction.OUTBOUND)):
                    made = install(bench, limit, make(bench, direction))
                    bench.check(
                        "CAP-DEV-04", not made.ok, f"id {limit} is beyond the device's limit: refused", made
                    )
    for what, more_than in bench.sweep(supersets(caps)):
        judge(set_modes(bench, more_than), what)
    some = next(iter(caps.modes.values()))
    data = bench.dialect.sa_cap.build(IpsecSaCap((some,)))
    reply = bench.admin.cap_set(MODES, bytes((2,)) + data[1:])
    judge(reply, "a count of 2 with one entry")
    bench.reading("E84", "missing entries do not count" if reply.ok else "missing entries are refused")
    for number in {0, 5, 255, *range(1, 5)} - caps.modes.keys():
        judge(set_modes(bench, replace(some, mode=number)), f"mode {number}")


@case("capability-group", "CAP-DEV-05", "CAP-DEV-06", needs=("admin",))
def group(bench: Bench) -> None:
    """The capability commands are for the self group: for any other they get EINVAL.

    Sends all three with group type 1, after LIST_USE of what that group supports, if anything; the qualifier
    is open (E09).
    """
    bench.start()
    bench.admin.use_everything()
    query = bench.admin.list_query(group=GroupType.SRIOV)
    if query.ok:
        bench.admin.list_use(id_bitmap_parse(query.result), group=GroupType.SRIOV)
    for number in COMMANDS:
        for member in (0, 1):
            data = int(RESOURCES).to_bytes(8, "little") + NONE
            reply = bench.admin.command(number, data, group=GroupType.SRIOV, member=member)
            for clause in ("CAP-DEV-05", "CAP-DEV-06"):
                bench.check(
                    clause,
                    reply.status == AdminStatus.EINVAL,
                    f"EINVAL for {number.name} with group type 1, member id {member}",
                    reply,
                )


@case("capability-busy", "CAP-DEV-07", needs=("admin", "ipsec"))
def busy(bench: Bench) -> None:
    """A capability cannot be disabled while SAs exist: EBUSY.

    With a live SA, of each direction in turn, both limits are set to zero, and the list of modes to an empty
    one. After DESTROY both can be disabled.
    """
    bench.start()
    for direction in enable(bench).directions:
        kind = TYPES[direction]
        demand(install(bench, 0, make(bench, direction)))
        for id in (RESOURCES, MODES):
            reply = bench.admin.cap_set(id, NONE)
            bench.check(
                "CAP-DEV-07",
                reply.status == AdminStatus.EBUSY,
                f"EBUSY for disabling {id:#x} under a live {kind.name}",
                reply,
            )
        demand(bench.admin.destroy(kind, 0))
    for id in (RESOURCES, MODES):
        reply = bench.admin.cap_set(id, NONE)
        bench.check("CAP-DEV-07", reply.ok, f"{id:#x} can be disabled when no SA is left", reply)


@case("capability-unlisted", "CAP-DEV-08", needs=("admin",))
def unlisted(bench: Bench) -> None:
    """A capability that is not listed gets ENXIO from DEVICE_CAP_GET and DRIVER_CAP_SET.

    Ids next to the IPsec capabilities and at the ends of the defined ranges; in the reserved range from 0x1000
    EINVAL will do (E89). Without the IPsec feature also the IPsec capabilities, unless listed then.
    """
    bench.start()
    bench.admin.use_everything()
    ids = bench.admin.cap_ids()
    for id in sorted({0x0001, 0x003F, 0x07FF, 0x0805, 0x0840, 0x0FFF, 0x1000, 0x1804, 0xFFFF} - ids):
        attempts = {
            "DEVICE_CAP_GET": bench.admin.cap_get(id),
            "DRIVER_CAP_SET": bench.admin.cap_set(id, NONE),
        }
        for name, reply in attempts.items():
            fits = reply.status == AdminStatus.ENXIO
            if id >= 0x1000 and reply.status == AdminStatus.EINVAL:
                bench.reading("E89", "EINVAL in reserved ranges")
                fits = True
            bench.check("CAP-DEV-08", fits, f"ENXIO for {name} of {id:#06x}", reply)
    if has(bench.features, Feature.NET_F_IPSEC):
        bench.start(without=(Feature.NET_F_IPSEC,))
        bench.admin.use_everything()
        for id in sorted({int(RESOURCES), int(MODES)} - bench.admin.cap_ids()):
            reply = bench.admin.cap_get(id)
            bench.check(
                "CAP-DEV-08", reply.status == AdminStatus.ENXIO, f"ENXIO for {id:#x} without IPsec", reply
            )


@case("capability-reset", "CAP-DEV-09", "CAP-DEV-10", needs=("admin", "ipsec"))
def reset(bench: Bench) -> None:
    """Driver capabilities are gone after a reset, and count as zero before they are set.

    CREATE of both SA types with id 0 fails before any DRIVER_CAP_SET, with only one of the two capabilities
    set, and after a reset that follows a set-up in which it worked.
    """
    bench.start()
    bench.admin.use_everything()
    directions = read_caps(bench).directions
    values = {id: demand(bench.admin.cap_get(id)).result for id in (RESOURCES, MODES)}

    def none_created(clause: str, when: str) -> None:
        for direction in directions:
            reply = install(bench, 0, make(bench, direction))
            bench.check(clause, not reply.ok, f"no {direction.name} SA {when}", reply)
            bench.admin.destroy(TYPES[direction], 0)

    none_created("CAP-DEV-10", "before DRIVER_CAP_SET")
    demand(bench.admin.cap_set(MODES, values[MODES]))
    none_created("CAP-DEV-10", "without limits")
    demand(bench.admin.cap_set(RESOURCES, values[RESOURCES]))
    for direction in directions:
        demand(install(bench, 0, make(bench, direction)))
    bench.start()
    bench.admin.use_everything()
    none_created("CAP-DEV-09", "after a reset")
    for kept in (RESOURCES, MODES):
        bench.start()
        bench.admin.use_everything()
        demand(bench.admin.cap_set(kept, values[kept]))
        none_created("CAP-DEV-09", f"after a reset with only {kept:#x} set anew")
