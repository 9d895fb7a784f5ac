"""SAs outside the capability: every field refused one at a time, per mode and direction (virtio v1.4 5.1.6.8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.resource_objects import begin
from virtio_ipsec.conformance.sas import AH_MODES, TYPES, Caps, enable, install, make, set_caps
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.ipsec import IpsecSa, IpsecSaCap, ModeCap
from virtio_ipsec.wire.numbers import Direction, IpsecMode, MacAlgo

CLAUSES = {Direction.OUTBOUND: "NET-IPSEC-DEV-06", Direction.INBOUND: "NET-IPSEC-DEV-08"}
NEEDS = ("admin", "ipsec")
#: Numbers that no algorithm has, next to those of the masks (E29).
NO_ALGORITHMS = (63, 64, 255, 1 << 16, 1 << 32, 1 << 63)
#: The other readings of E28: GCM as CTR with GMAC, CCM as CTR with CBC-MAC.
ALIASES = {(4, 41), (4, 49)}
HMACS = range(MacAlgo.HMAC_MD5, MacAlgo.HMAC_SHA_512 + 1)

Faults = Iterator[tuple[str, IpsecSa]]


def good(bench: Bench, caps: Caps, direction: Direction) -> Iterator[IpsecSa]:
    """A valid SA for each mode."""
    for number in sorted(caps.modes):
        if caps.suites(number):
            yield make(bench, direction, mode=IpsecMode(number))


def paired(bench: Bench, caps: Caps, direction: Direction) -> Iterator[IpsecSa]:
    """A valid SA with a cipher and a MAC for each ESP mode that has such."""
    for number in sorted(caps.modes.keys() - AH_MODES):
        suites = [suite for suite in caps.suites(number) if suite.auth_algo and suite.cipher_algo]
        if suites:
            yield make(bench, direction, mode=IpsecMode(number), suite=suites[0].name)


def refuse(bench: Bench, direction: Direction, faults: Faults) -> None:
    """Every SA is refused, and a good one with its id is accepted in the end: none of them left a trace."""
    clause = CLAUSES[direction]
    chosen = bench.sweep(faults)
    if not chosen:
        raise Unsupported("the device offers all of it")
    for what, sa in chosen:
        reply = bench.admin.create(TYPES[direction], 0, bench.dialect.sa.build(sa))
        bench.check(clause, not reply.ok, f"no {direction.name} SA with {what}", reply)
        bench.reading("E36", str(reply))
        if reply.ok:
            bench.admin.destroy(TYPES[direction], 0)
    reply = install(bench, 0, make(bench, direction))
    bench.check(clause, reply.ok, f"a good {direction.name} SA afterwards", reply)
    bench.admin.destroy(TYPES[direction], 0)


def wrong_mode(bench: Bench, caps: Caps, direction: Direction) -> Faults:
    """Reserved modes and those that are not offered."""
    for sa in good(bench, caps, direction):
        for mode in {0, 5, 6, 0x7F, 0x80, 0xFF, *range(1, 5)} - caps.modes.keys():
            yield f"mode {mode}", replace(sa, mode=mode)


def wrong_options(bench: Bench, caps: Caps, direction: Direction) -> Faults:
    """Each option bit that the mode does not offer, up to bit 63 (E21, E90)."""
    for sa in good(bench, caps, direction):
        offered = caps.modes[sa.mode].options
        for bit in range(64):
            if not offered >> bit & 1:
                yield f"option bit {bit} in mode {sa.mode}", replace(sa, options=1 << bit)
        yield f"all option bits in mode {sa.mode}", replace(sa, options=(1 << 64) - 1)


def listed(mask: int, width: int = 64) -> set[int]:
    """Numbers of a capability mask."""
    return {number for number in range(width) if mask >> number & 1}


def wrong_algorithms(bench: Bench, caps: Caps, direction: Direction) -> Faults:
    """Ciphers, MACs and AEADs whose bit is clear, and numbers that have no bit."""
    for sa in good(bench, caps, direction):
        cap, where = caps.modes[sa.mode], f"in mode {sa.mode}"
        if sa.mode in AH_MODES:
            for number in {*range(64), *NO_ALGORITHMS} - listed(cap.hmac_algo):
                yield f"auth_algo {number} {where}", replace(sa, auth_algo=number)
            for number in {1, 3, 4, *NO_ALGORITHMS} - listed(cap.cipher_algo):
                yield f"cipher_algo {number} {where}", replace(sa, cipher_algo=number)
            continue
        plain = replace(sa, auth_algo=0, auth_key=b"", cipher_key=bench.octets(16))
        for number in {*range(64), *NO_ALGORITHMS} - listed(cap.aead_algo & ~1, 32):
            yield f"AEAD {number} (cipher_algo without auth_algo) {where}", replace(plain, cipher_algo=number)
        suites = [suite for suite in caps.suites(sa.mode) if suite.auth_algo]
        if not suites:
            continue
        pair = make(bench, direction, mode=IpsecMode(sa.mode), suite=suites[0].name)
        for number in {*range(64), *NO_ALGORITHMS} - listed(cap.cipher_algo):
            yield f"cipher_algo {number} {where}", replace(pair, cipher_algo=number)
        for number in {*range(64), *NO_ALGORITHMS} - listed(cap.hmac_algo):
            if number != MacAlgo.NO_MAC and (pair.cipher_algo, number) not in ALIASES:
                yield f"auth_algo {number} {where}", replace(pair, auth_algo=number)


def wrong_keys(bench: Bench, caps: Caps, direction: Direction) -> Faults:
    """Keys longer than the capability or the field, and of lengths that no key of the algorithm has (E27, E31)."""
    for mode in sorted(caps.modes):
        cap = caps.modes[mode]
        for suite in caps.suites(mode):
            sa = make(bench, direction, mode=IpsecMode(mode), suite=suite.name)
            where = f"for {suite.name} in mode {mode}"
            if suite.cipher_key_lens != {0}:
                for length in sorted(
                    {0, 1, 15, 17, 20, 28, 31, cap.max_cipher_key_len + 1} - suite.cipher_key_lens
                ):
                    yield f"a cipher key of {length} bytes {where}", key(bench, sa, "cipher_key", length)
                for length in (33, 36, 64, 0xFFFF):
                    yield f"a cipher key length of {length} {where}", replace(sa, cipher_key_len=length)
            if suite.auth_key_lens != {0}:
                # HMAC as such takes keys of any length (RFC 2104).
                odd = {0} if suite.auth_algo in HMACS else {0, 1, 15, 31}
                for length in sorted((odd | {cap.max_auth_key_len + 1}) - suite.auth_key_lens):
                    yield (
                        f"an authentication key of {length} bytes {where}",
                        key(bench, sa, "auth_key", length),
                    )
                for length in (33, 48, 64, 0xFFFF):
                    yield (
                        f"an authentication key length of {length} {where}",
                        replace(sa, auth_key_len=length),
                    )


def key(bench: Bench, sa: IpsecSa, name: str, length: int) -> IpsecSa:
    """The SA with a random key of that length; the field says so even where it cannot hold it."""
    octets = bench.octets(min(length, 32))
    if name == "cipher_key":
        return replace(sa, cipher_key=octets, cipher_key_len=length)
    return replace(sa, auth_key=octets, auth_key_len=length)


def wrong_window(bench: Bench, caps: Caps, direction: Direction) -> Faults:
    """Replay windows above the maximum of the mode (E44)."""
    for sa in good(bench, caps, direction):
        most = caps.modes[sa.mode].max_replay_win_sz
        for window in sorted({most + 1, most * 2, 0x7FFFFFFF, 0xFFFFFFFF}):
            if most < window:
                yield f"a window of {window} in mode {sa.mode}", replace(sa, replay_win_sz=window)


@case("sa-refused-outbound-mode", "NET-IPSEC-DEV-06", needs=NEEDS)
def outbound_mode(bench: Bench) -> None:
    """An outbound SA in a mode that is not in the capability is refused.

    Mode 0, reserved modes up to 255, and those of 1 to 4 that are not offered.
    """
    refuse(bench, Direction.OUTBOUND, wrong_mode(bench, begin(bench), Direction.OUTBOUND))


@case("sa-refused-inbound-mode", "NET-IPSEC-DEV-08", needs=NEEDS)
def inbound_mode(bench: Bench) -> None:
    """An inbound SA in a mode that is not in the capability is refused.

    Mode 0, reserved modes up to 255, and those of 1 to 4 that are not offered.
    """
    refuse(bench, Direction.INBOUND, wrong_mode(bench, begin(bench), Direction.INBOUND))


@case("sa-refused-outbound-options", "NET-IPSEC-DEV-06", needs=NEEDS)
def outbound_options(bench: Bench) -> None:
    """An outbound SA with an option that its mode does not offer is refused.

    Each bit from 0 to 63 that is clear in the capability of the mode, alone, and all bits together.
    """
    refuse(bench, Direction.OUTBOUND, wrong_options(bench, begin(bench), Direction.OUTBOUND))


@case("sa-refused-inbound-options", "NET-IPSEC-DEV-08", needs=NEEDS)
def inbound_options(bench: Bench) -> None:
    """An inbound SA with an option that its mode does not offer is refused.

    Each bit from 0 to 63 that is clear in the capability of the mode, alone, and all bits together.
    """
    refuse(bench, Direction.INBOUND, wrong_options(bench, begin(bench), Direction.INBOUND))


@case("sa-refused-outbound-algorithms", "NET-IPSEC-DEV-06", needs=NEEDS)
def outbound_algorithms(bench: Bench) -> None:
    """An outbound SA with an algorithm outside the masks of its mode is refused.

    Every number from 0 to 63 whose bit is clear, and numbers that no mask can hold, in cipher_algo alone (an
    AEAD, E28), in cipher_algo next to a MAC, and in auth_algo.
    """
    refuse(bench, Direction.OUTBOUND, wrong_algorithms(bench, begin(bench), Direction.OUTBOUND))


@case("sa-refused-inbound-algorithms", "NET-IPSEC-DEV-08", needs=NEEDS)
def inbound_algorithms(bench: Bench) -> None:
    """An inbound SA with an algorithm outside the masks of its mode is refused.

    Every number from 0 to 63 whose bit is clear, and numbers that no mask can hold, in cipher_algo alone (an
    AEAD, E28), in cipher_algo next to a MAC, and in auth_algo.
    """
    refuse(bench, Direction.INBOUND, wrong_algorithms(bench, begin(bench), Direction.INBOUND))


@case("sa-refused-outbound-keys", "NET-IPSEC-DEV-06", needs=NEEDS)
def outbound_keys(bench: Bench) -> None:
    """An outbound SA whose key does not fit capability, field or algorithm is refused.

    Per algorithm: no key, lengths next to the right ones, key and salt together, one byte over the
    capability, and lengths over the 32 bytes of the field.
    """
    refuse(bench, Direction.OUTBOUND, wrong_keys(bench, begin(bench), Direction.OUTBOUND))


@case("sa-refused-inbound-keys", "NET-IPSEC-DEV-08", needs=NEEDS)
def inbound_keys(bench: Bench) -> None:
    """An inbound SA whose key does not fit capability, field or algorithm is refused.

    Per algorithm: no key, lengths next to the right ones, key and salt together, one byte over the
    capability, and lengths over the 32 bytes of the field.
    """
    refuse(bench, Direction.INBOUND, wrong_keys(bench, begin(bench), Direction.INBOUND))


@case("sa-refused-inbound-window", "NET-IPSEC-DEV-08", needs=NEEDS)
def inbound_window(bench: Bench) -> None:
    """An inbound SA with a larger replay window than its mode offers is refused.

    One more than the maximum, twice that, 2^31 - 1 and 2^32 - 1; the maximum itself is accepted.
    """
    caps = begin(bench)
    for sa in good(bench, caps, Direction.INBOUND):
        largest = replace(sa, replay_win_sz=caps.modes[sa.mode].max_replay_win_sz)
        reply = install(bench, 0, largest)
        bench.check("NET-IPSEC-DEV-08", reply.ok, f"the maximum, {largest.replay_win_sz}", reply)
        bench.admin.destroy(TYPES[Direction.INBOUND], 0)
    refuse(bench, Direction.INBOUND, wrong_window(bench, caps, Direction.INBOUND))


def narrowed(cap: ModeCap, sa: IpsecSa) -> Iterator[tuple[str, ModeCap]]:
    """The capability entry with something less, that ``sa`` uses."""
    if sa.auth_algo:
        if sa.cipher_algo:
            yield "cipher_algo", replace(cap, cipher_algo=cap.cipher_algo & ~(1 << sa.cipher_algo))
        yield "auth_algo", replace(cap, hmac_algo=cap.hmac_algo & ~(1 << sa.auth_algo))
        yield "auth key length", replace(cap, max_auth_key_len=sa.auth_key_length - 1)
    else:
        yield "AEAD", replace(cap, aead_algo=cap.aead_algo & ~(1 << sa.cipher_algo))
    if sa.cipher_key:
        yield "cipher key length", replace(cap, max_cipher_key_len=sa.cipher_key_length - 1)
    if sa.options:
        yield "options", replace(cap, options=cap.options & ~sa.options)
    if sa.replay_win_sz:
        yield "replay window", replace(cap, max_replay_win_sz=sa.replay_win_sz - 1)


@case("sa-refused-by-driver-capability", "NET-IPSEC-DEV-06", "NET-IPSEC-DEV-08", needs=NEEDS)
def driver_capability(bench: Bench) -> None:
    """An SA is measured by the capability that the driver set, not by the device's own (E47).

    For each mode, with one algorithm and with a cipher and a MAC, the driver leaves out the mode, an option, an
    algorithm, or sets the largest key or window one lower: an SA that uses it is refused, and accepted with the full
    capability.
    """
    bench.start()
    caps = enable(bench)
    full = {number: caps.modes[number] for number in sorted(caps.modes)}
    for direction in caps.directions:
        for plain in (*good(bench, caps, direction), *paired(bench, caps, direction)):
            cap = full[plain.mode]
            sa = replace(plain, options=cap.options & 1)
            attempts: list[tuple[str, dict[int, ModeCap]]] = [
                (what, full | {sa.mode: less}) for what, less in narrowed(cap, sa)
            ]
            if len(full) > 1:
                rest = {number: entry for number, entry in full.items() if number != sa.mode}
                attempts.append(("mode", rest))
            for what, modes in attempts:
                set_caps(bench, caps.resources, IpsecSaCap(tuple(modes.values())))
                reply = install(bench, 0, sa)
                bench.check(
                    CLAUSES[direction],
                    not reply.ok,
                    f"no {direction.name} SA in mode {sa.mode} when the driver left out its {what}",
                    reply,
                )
                bench.admin.destroy(TYPES[direction], 0)
            set_caps(bench, caps.resources, IpsecSaCap(tuple(full.values())))
            reply = install(bench, 0, sa)
            bench.check(
                CLAUSES[direction], reply.ok, f"the same {direction.name} SA with the whole capability", reply
            )
            bench.admin.destroy(TYPES[direction], 0)


@case("sa-direction", "NET-IPSEC-DEV-06", "NET-IPSEC-DEV-08", needs=NEEDS)
def direction_field(bench: Bench) -> None:
    """An SA whose direction contradicts its type is refused, or the type decides (E38).

    Directions 0, 3 and 255 and the opposite one, per type; a device has one reading for all of them. Whatever
    it does, SAs with the right direction work.
    """
    begin(bench)
    for direction in (Direction.OUTBOUND, Direction.INBOUND):
        kind = TYPES[direction]
        taken = 0
        values = (0, 3, 255, 3 - direction)
        for value in values:
            sa = make(bench, direction)
            data = bytearray(bench.dialect.sa.build(sa))
            data[1] = value
            reply = bench.admin.create(kind, 0, bytes(data))
            taken += reply.ok
            if reply.ok:
                bench.admin.destroy(kind, 0)
        bench.check(
            CLAUSES[direction],
            taken in {0, len(values)},
            f"one reading of a wrong direction under {kind.name}",
            f"{taken} of {len(values)} accepted",
        )
        bench.reading("E38", "the type decides" if taken else "refused")
        reply = install(bench, 0, make(bench, direction))
        bench.check(CLAUSES[direction], reply.ok, f"a good {direction.name} SA", reply)
        bench.admin.destroy(kind, 0)
