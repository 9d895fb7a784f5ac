"""SA objects: what is created, what is refused, under which limits (virtio v1.4 5.1.6.8)."""

from __future__ import annotations

from virtio_ipsec.conformance.admin import Reply, demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.resource_objects import BOTH, begin
from virtio_ipsec.conformance.sas import TYPES, Caps, enable, install, make, read_caps, set_caps
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSa, IpsecSaCap
from virtio_ipsec.wire.numbers import CapId, Direction, IpsecMode, Opcode, ResourceType

OUTBOUND, INBOUND = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
RESOURCES, MODES = CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP
NONE = bytes(8)


@case("sa-object-commands", "NET-IPSEC-DEV-02", needs=("admin", "ipsec"))
def object_commands(bench: Bench) -> None:
    """CREATE, QUERY, MODIFY and DESTROY are supported and work for both SA types.

    Reads bits 0x0a to 0x0d of LIST_QUERY and sends each command to an SA of each type.
    """
    bench.start()
    supported = bench.admin.supported()
    for number in range(Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY + 1):
        bench.check(
            "NET-IPSEC-DEV-02",
            number in supported,
            f"bit {number:#x} of LIST_QUERY is set",
            sorted(supported),
        )
    for direction in enable(bench).directions:
        kind, sa = TYPES[direction], make(bench, direction)
        data = bench.dialect.sa.build(sa)
        replies = {
            "CREATE": bench.admin.create(kind, 0, data),
            "QUERY": bench.admin.query(kind, 0),
            "MODIFY": bench.admin.modify(kind, 0, data),
            "DESTROY": bench.admin.destroy(kind, 0),
        }
        for name, reply in replies.items():
            bench.check("NET-IPSEC-DEV-02", reply.ok, f"{name} of {kind.name}", reply)


@case("sa-object-structure", "INF-03", "RFC-28", "RFC-29", needs=("admin", "ipsec"))
def structure(bench: Bench) -> None:
    """Both SA types take the packed structure, in every mode and with every algorithm that is offered.

    One CREATE per direction, mode and algorithm of the capability (those that this suite knows), with the
    shortest and the longest key; then one whose fields lie where a C compiler would put them without packing,
    which must not be taken for an SA (E19).
    """
    caps = begin(bench)
    for direction in BOTH:
        kind = TYPES[direction]
        for number in sorted(caps.modes):
            cap = caps.modes[number]
            for suite in bench.sweep(caps.suites(number)):
                mode = IpsecMode(number)
                lengths = suite.cipher_key_lens if suite.cipher_key_lens != {0} else suite.auth_key_lens
                most = cap.max_cipher_key_len if suite.cipher_key_lens != {0} else cap.max_auth_key_len
                fitting = [length for length in lengths if length <= most]
                for length in {min(fitting), max(fitting)}:
                    sa = make(bench, direction, mode=mode, suite=suite.name, key_octets=length)
                    reply = install(bench, 0, sa)
                    what = f"{direction.name} SA, {mode.name}, {suite.name}, key of {length}"
                    for clause in ("INF-03", "RFC-28", "RFC-29"):
                        bench.check(clause, reply.ok, f"CREATE: {what}", reply)
                    bench.admin.destroy(kind, 0)
        reply = bench.admin.create(kind, 0, unpacked(bench, make(bench, direction)))
        for clause in ("INF-03", "RFC-29"):
            bench.check(clause, not reply.ok, f"no {direction.name} SA from an unpacked structure", reply)
        bench.admin.destroy(kind, 0)


def unpacked(bench: Bench, sa: IpsecSa) -> bytes:
    """The SA as a C compiler lays it out without packing: numbers at multiples of their size."""
    data = bench.dialect.sa.build(sa)
    laid_out = b""
    for field in bench.dialect.sa.layout():
        if ".ipv4." in field.name:
            continue  # the same bytes as the larger IPv6 arm
        size = field.size or 0
        laid_out += bytes(-len(laid_out) % size if size in {2, 4, 8} else 0) + data[field.offset :][:size]
    return laid_out + bytes(-len(laid_out) % 8)


@case("sa-object-disabled", "NET-IPSEC-DEV-03", needs=("admin", "ipsec"))
def disabled(bench: Bench) -> None:
    """While an IPsec capability is disabled the object commands are refused as invalid opcodes.

    Sends the four commands (two in the January-2025 dialect) for both types: before any DRIVER_CAP_SET, with
    one capability set and the other not, with both limits zero, and with an empty list of modes. EINVAL is
    demanded; Q_INVALID_FIELD is accepted in place of Q_INVALID_OPCODE (E34), as is status 2 (E03).
    """
    bench.start()
    bench.admin.use_everything()
    values = {id: demand(bench.admin.cap_get(id)).result for id in (RESOURCES, MODES)}
    read_caps(bench)

    def refuse(when: str) -> None:
        for direction in BOTH:
            kind, data = TYPES[direction], bench.dialect.sa.build(make(bench, direction))
            attempts = {"CREATE": bench.admin.create(kind, 0, data)}
            if bench.dialect.supports_modify_query:
                attempts["QUERY"] = bench.admin.query(kind, 0)
                attempts["MODIFY"] = bench.admin.modify(kind, 0, data)
            attempts["DESTROY"] = bench.admin.destroy(kind, 0)
            for name, reply in attempts.items():
                judge(bench, reply, f"{name} of {kind.name} {when}")

    states: tuple[tuple[str, tuple[tuple[CapId, bytes], ...]], ...] = (
        ("before any DRIVER_CAP_SET", ()),
        ("without modes", ((RESOURCES, values[RESOURCES]),)),
        ("with an empty list of modes", ((MODES, NONE),)),
        ("with both limits zero", ((MODES, values[MODES]), (RESOURCES, NONE))),
    )
    for when, settings in states:
        for id, value in settings:
            demand(bench.admin.cap_set(id, value))
        refuse(when)
    bench.start()
    bench.admin.use_everything()
    demand(bench.admin.cap_set(MODES, values[MODES]))
    refuse("without limits")


def judge(bench: Bench, reply: Reply, what: str) -> None:
    """The answer to a command on a disabled type, with the readings that the ledger admits."""
    qualifier = AdminQualifier.INVALID_OPCODE
    if reply.status == qualifier:
        bench.reading("E03", "status 2")
        return
    bench.check(
        "NET-IPSEC-DEV-03",
        reply.status == AdminStatus.EINVAL and reply.qualifier in {qualifier, AdminQualifier.INVALID_FIELD},
        f"EINVAL/Q_INVALID_OPCODE for {what}",
        reply,
    )
    bench.reading("E03", "status EINVAL")
    bench.reading("E34", "Q_INVALID_OPCODE" if reply.qualifier == qualifier else "Q_INVALID_FIELD")


@case(
    "sa-object-id-range",
    "NET-IPSEC-DEV-05",
    "NET-IPSEC-DEV-07",
    "RFC-35",
    needs=("admin", "ipsec"),
)
def id_range(bench: Bench) -> None:
    """An id at or above the limit of its direction is refused.

    Limits of the device, and smaller ones of the driver that differ by direction (E35), one of them zero: the
    id below the limit is accepted; the limit, one more, 2^31 and 2^32 - 1 are refused with any status (E36).
    """
    bench.start()
    caps = enable(bench)
    modes = IpsecSaCap(tuple(caps.modes[number] for number in sorted(caps.modes)))
    most = caps.resources
    small = [IpsecResourceCap(min(i, most.inb_sa_limit), min(o, most.outb_sa_limit)) for i, o in PAIRS]
    for resources in (most, *small):
        set_caps(bench, resources, modes)
        for direction, clause in (
            (Direction.OUTBOUND, "NET-IPSEC-DEV-05"),
            (Direction.INBOUND, "NET-IPSEC-DEV-07"),
        ):
            top = Caps(resources).limit(direction)
            kind = TYPES[direction]
            for id in sorted({top, top + 1, max(top, 1 << 16), 1 << 31, 0xFFFFFFFF}):
                if id > 0xFFFFFFFF or id < top:
                    continue
                reply = install(bench, id, make(bench, direction))
                for cited in (clause, "RFC-35"):
                    bench.check(cited, not reply.ok, f"{kind.name} {id} is refused under limit {top}", reply)
                bench.reading("E36", f"{reply} for an id beyond the limit")
                if reply.ok:
                    bench.admin.destroy(kind, id)
            if top:
                reply = install(bench, top - 1, make(bench, direction))
                for cited in (clause, "RFC-35"):
                    bench.check(
                        cited, reply.ok, f"{kind.name} {top - 1} is accepted under limit {top}", reply
                    )
                bench.admin.destroy(kind, top - 1)


#: (inbound, outbound) limits of the driver.
PAIRS = ((5, 3), (3, 5), (1, 8), (8, 1), (0, 4), (4, 0))


@case("sa-object-duplicate-spi", "NET-IPSEC-DEV-11", needs=("admin", "ipsec"))
def duplicate_spi(bench: Bench) -> None:
    """A second SA with the same SPI is created or refused with EINVAL; nothing else will do.

    Per direction, with another key; which of the two happens is reported (E43). Refused, it must be possible
    once the first SA is destroyed. The same SPI in the other direction is not a second one.
    """
    begin(bench, need=2)
    for direction in BOTH:
        kind = TYPES[direction]
        first = make(bench, direction)
        second = make(bench, direction, spi=first.spi)
        demand(install(bench, 0, first))
        reply = install(bench, 1, second)
        bench.check(
            "NET-IPSEC-DEV-11",
            reply.ok or reply.status == AdminStatus.EINVAL,
            f"OK or EINVAL for a second {direction.name} SA with an SPI in use",
            reply,
        )
        bench.reading("E43", f"{direction.name.lower()}: {'allowed' if reply.ok else 'refused'}")
        demand(bench.admin.destroy(kind, 0))
        if not reply.ok:
            again = install(bench, 1, second)
            bench.check("NET-IPSEC-DEV-11", again.ok, "the SPI is free after DESTROY", again)
        demand(bench.admin.destroy(kind, 1))


@case("sa-object-window-outbound", "INF-14", needs=("admin", "ipsec"))
def window_outbound(bench: Bench) -> None:
    """max_replay_win_sz is about inbound SAs: an outbound SA may carry any window.

    CREATE of outbound SAs with a window of one more than the maximum and of 2^32 - 1.
    """
    caps = begin(bench)
    most = max(cap.max_replay_win_sz for cap in caps.modes.values())
    for window in (1, most, most + 1, 0xFFFFFFFF):
        reply = install(bench, 0, make(bench, replay_win_sz=window))
        bench.check("INF-14", reply.ok, f"outbound SA with a window of {window}", reply)
        bench.admin.destroy(OUTBOUND, 0)


@case("sa-object-rfc-driver-modes", "RFC-35", needs=("admin", "ipsec"))
def driver_modes(bench: Bench) -> None:
    """The device holds the driver to the modes that it set.

    Sets the capability without one mode after the other: CREATE in that mode fails, in the others it works.
    """
    bench.start()
    caps = enable(bench)
    numbers = [number for number in sorted(caps.modes) if caps.suites(number)]
    if len(numbers) < 2:
        raise Unsupported("the device offers a single mode")
    for left_out in numbers:
        modes = tuple(caps.modes[number] for number in sorted(caps.modes) if number != left_out)
        set_caps(bench, caps.resources, IpsecSaCap(modes))
        for number in numbers:
            for direction in caps.directions:
                reply = install(bench, 0, make(bench, direction, mode=IpsecMode(number)))
                bench.check(
                    "RFC-35",
                    reply.ok == (number != left_out),
                    f"{direction.name} SA in mode {number} with mode {left_out} left out",
                    reply,
                )
                bench.admin.destroy(TYPES[direction], 0)


@case("sa-object-rfc-commands", "RFC-38", needs=("admin", "ipsec"))
def rfc_commands(bench: Bench) -> None:
    """MODIFY and QUERY do not exist in the January-2025 dialect.

    LIST_QUERY does not report 0x0b and 0x0c, and both get EINVAL and Q_INVALID_OPCODE, for an SA that exists.
    """
    begin(bench)
    supported = bench.admin.supported()
    demand(install(bench, 0, make(bench)))
    for number in (0x0B, 0x0C):
        bench.check("RFC-38", number not in supported, f"{number:#x} is not in LIST_QUERY", sorted(supported))
        reply = bench.admin.command(number, int(OUTBOUND).to_bytes(4, "little") + bytes(12))
        bench.check(
            "RFC-38",
            reply.outcome == (AdminStatus.EINVAL, AdminQualifier.INVALID_OPCODE),
            f"EINVAL/Q_INVALID_OPCODE for {number:#x}",
            reply,
        )


@case("sa-object-rfc-options", "RFC-30", needs=("admin", "ipsec"))
def rfc_options(bench: Bench) -> None:
    """Option bits 5 and above are refused with EINVAL in the January-2025 dialect; 0 to 4 are what is offered.

    CREATE with each bit from 5 to 63 in turn, in each mode and direction; the capability has none of them.
    """
    caps = begin(bench)
    for number, cap in caps.modes.items():
        bench.check(
            "RFC-30", not cap.options >> 5, f"mode {number} offers bits 0 to 4 only", f"{cap.options:#x}"
        )
        if not caps.suites(number):
            continue
        for direction in BOTH:
            for bit in bench.sweep(range(5, 64)):
                reply = install(bench, 0, make(bench, direction, mode=IpsecMode(number), options=1 << bit))
                bench.check(
                    "RFC-30", reply.status == AdminStatus.EINVAL, f"EINVAL for option bit {bit}", reply
                )
                if reply.ok:
                    bench.admin.destroy(TYPES[direction], 0)
            for bit in range(5):
                if cap.options >> bit & 1:
                    sa = make(bench, direction, mode=IpsecMode(number), options=1 << bit)
                    reply = install(bench, 0, sa)
                    bench.check("RFC-30", reply.ok, f"option bit {bit}, which mode {number} offers", reply)
                    bench.admin.destroy(TYPES[direction], 0)


@case("sa-object-rfc-first-number", "RFC-33", needs=("admin", "ipsec"))
def rfc_first_number(bench: Bench) -> None:
    """An esn of more than 32 bits is refused with EINVAL unless the ESN option is set.

    CREATE of both types with 2^32 - 1, 2^32 and 2^64 - 1, with and without the option.
    """
    caps = begin(bench)
    mode = next(number for number in sorted(caps.modes) if caps.suites(number))
    for direction in BOTH:
        for number in (0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1):
            for option in (0, 1):
                if option and not caps.modes[mode].options & 1:
                    continue
                sa = make(bench, direction, mode=IpsecMode(mode), esn=number, options=option)
                reply = install(bench, 0, sa)
                fits = bool(option) or number <= 0xFFFFFFFF
                want = AdminStatus.OK if fits else AdminStatus.EINVAL
                bench.check(
                    "RFC-33",
                    reply.status == want,
                    f"{want.name} for {direction.name} esn {number:#x}, option {'set' if option else 'clear'}",
                    reply,
                )
                bench.admin.destroy(TYPES[direction], 0)
