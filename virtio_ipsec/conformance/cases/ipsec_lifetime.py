"""Soft and hard lifetimes, packet by packet (INF-20, INF-27, NET-RX-DEV-34, NET-RX-DEV-35)."""

from __future__ import annotations

from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import INBOUND, OUTBOUND, DataPath, Sa, try_open
from virtio_ipsec.conformance.packets import RxFrame
from virtio_ipsec.conformance.sas import TUNNEL4
from virtio_ipsec.ipsec.process import Inbound
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import IpsecMode, IpsecOption

LIMITED = IpsecOption.SA_LIFETIME
#: Octets of payload of every packet here: an IP packet of 82 octets, of which ESP makes 84 with its trailer.
PAYLOAD = 54
IP_OCTETS, CIPHER_OCTETS, LONGEST = 82, 84, 160


def _path(bench: Bench) -> DataPath:
    path = DataPath(bench)
    path.need(IpsecMode.ESP_TUNNEL, LIMITED)
    return path


def _plain(bench: Bench) -> bytes:
    return frames.packet(bench.octets(PAYLOAD))


def _next(path: DataPath, sa: Sa) -> tuple[list[RxFrame], bool]:
    """One more good packet of an inbound SA: what is delivered, and whether it was opened."""
    plain = _plain(path.bench)
    came = path.receive(sa.peer.seal(plain))
    return came, len(came) == 1 and path.is_opened(came[0], plain)


@case("ipsec-hard-limit-packets-out", "INF-20", needs=("admin", "ipsec", "wire"))
def hard_limit_packets_out(bench: Bench) -> None:
    """Exactly as many packets leave as packets_hard_limit says, and nothing leaves in clear after them.

    A limit of 5; eight packets. A soft limit of 3 stops nothing (ledger E54, E55).
    """
    path = _path(bench)
    sa = path.outbound(options=LIMITED, life=Lifetime(packets_soft_limit=3, packets_hard_limit=5))
    left = []
    for _ in range(8):
        packet = _plain(bench)
        got = path.send(sa, packet)
        bench.check("INF-20", not any(packet[28:60] in one for one in got), "nothing leaves in clear")
        left.append(len(got) == 1 and isinstance(try_open(sa, got[0]), Inbound))
        if len(left) > 5:
            bench.check("INF-20", not got, f"packet {len(left)} of 5 does not leave", got)
    bench.check("INF-20", left[:5] == [True] * 5, "packets 1 to 5 leave sealed", left)


@case("ipsec-hard-limit-packets-in", "INF-20", "NET-RX-DEV-32", "INF-05", needs=("admin", "ipsec", "wire"))
def hard_limit_packets_in(bench: Bench) -> None:
    """Exactly as many packets are opened as packets_hard_limit says; those after them are in error.

    A limit of 5. Forged and repeated packets in between do not count (ledger E45).
    """
    path = _path(bench)
    sa = path.inbound(options=LIMITED, life=Lifetime(packets_hard_limit=5))
    opened = []
    for _ in range(5):
        plain = _plain(bench)
        sealed = sa.peer.seal(plain)
        path.receive(sealed[:-1] + bytes((sealed[-1] ^ 1,)))
        came = path.receive(sealed)
        opened.append(len(came) == 1 and path.is_opened(came[0], plain))
        path.receive(sealed)
    bench.check("INF-20", opened == [True] * 5, "five good packets are opened, whatever else came", opened)
    for number in (6, 7):
        plain = _plain(bench)
        sealed = sa.peer.seal(plain)
        came = path.receive(sealed)
        bench.check(
            "INF-20", not any(plain in rx.frame for rx in came), f"packet {number} of 5 is not opened"
        )
        path.check_failed(came, sealed, "a hard limit reached")


@case("ipsec-hard-limit-bytes", "INF-20", needs=("admin", "ipsec", "wire"))
def hard_limit_bytes(bench: Bench) -> None:
    """bytes_hard_limit ends an SA after about that many octets; what counts is reported (ledger E45).

    Packets of equal size in both directions and room for ten of them, counted as what the cipher is given. A
    device that counts the octets of another layer passes a few more or less, and says so by the number.
    """
    path = _path(bench)
    life = Lifetime(bytes_hard_limit=10 * CIPHER_OCTETS)
    out, inbound = path.outbound(options=LIMITED, life=life), path.inbound(options=LIMITED, life=life)
    passed = {"outbound": 0, "inbound": 0}
    for _ in range(16):
        left = path.send(out, _plain(bench))
        passed["outbound"] += len(left) == 1 and isinstance(try_open(out, left[0]), Inbound)
        passed["inbound"] += _next(path, inbound)[1]
    least, most = life.bytes_hard_limit // LONGEST, -(-life.bytes_hard_limit // (IP_OCTETS - 20)) + 1
    for direction, count in passed.items():
        what = f"{direction}: between {least} and {most} packets of {IP_OCTETS} octets pass"
        bench.check("INF-20", least <= count <= most, what, count)
        bench.reading("E45", "octets given to the cipher" if count == 10 else f"{count} packets of ten")


@case("ipsec-soft-limit-in", "NET-RX-DEV-35", "INF-20", needs=("admin", "ipsec", "wire"))
def soft_limit_in(bench: Bench) -> None:
    """The warning appears when an inbound SA reaches a soft limit, and packets go on being opened.

    Soft limits of 4 packets, then of the octets of 4 packets; eight packets each. The flag is clear on the first
    three, set on the fourth or fifth and, in the sticky reading (ledger E55), on all after it.
    """
    path = _path(bench)
    for unit, life in (
        ("packets", Lifetime(packets_soft_limit=4, packets_hard_limit=100)),
        ("bytes", Lifetime(bytes_soft_limit=4 * CIPHER_OCTETS)),
    ):
        sa = path.inbound(options=LIMITED, life=life)
        warned, opened = [], []
        for _ in range(8):
            came, good = _next(path, sa)
            opened.append(good)
            warned.append(bool(came) and bool(came[0].header.flags & bench.dialect.flag_soft_expiry))
        bench.check("INF-20", all(opened), f"{unit}: a soft limit stops no packet", opened)
        early = warned[: 3 if unit == "packets" else 2]
        bench.check("NET-RX-DEV-35", not any(early), f"{unit}: no warning before the limit", warned)
        edge = warned[3:5] if unit == "packets" else warned
        bench.check("NET-RX-DEV-35", any(edge), f"{unit}: a warning at the limit", warned)
        if any(warned):
            sticky = all(warned[warned.index(True) :])
            bench.reading(
                "E55", "on every packet from the limit on" if sticky else "not on every later packet"
            )
    other = path.inbound()
    came, _ = _next(path, other)
    flags = [rx.header.flags & bench.dialect.flag_soft_expiry for rx in came]
    bench.check("NET-RX-DEV-35", flags == [0], "no warning on a packet of another SA", flags)


@case("ipsec-soft-limit-and-error", "NET-RX-DEV-34", needs=("admin", "ipsec", "wire"))
def soft_limit_and_error(bench: Bench) -> None:
    """SECURITY_ERR does not depend on the expiry flag: failures past the soft limit are marked all the same.

    A soft limit of 1 packet; a good packet, which may warn but is no error, a forged one, a repetition. Failed
    packets may also be dropped (ledger E53).
    """
    path = _path(bench)
    sa = path.inbound(options=LIMITED, life=Lifetime(packets_soft_limit=1))
    for _ in range(2):
        came, good = _next(path, sa)
        flags = [hex(rx.header.flags) for rx in came]
        bench.check("NET-RX-DEV-34", good, "a good packet past the soft limit is no error", flags)
    sealed = sa.peer.seal(_plain(bench))
    forged = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    path.receive(sealed)
    for what, packet in (("a forged packet", forged), ("a repetition", sealed)):
        came = path.receive(packet)
        flags = [hex(rx.header.flags) for rx in came]
        bench.check("NET-RX-DEV-34", all(map(path.is_failed, came)), f"{what} is marked as failed", flags)


@case("ipsec-lifetime-option", "INF-27", needs=("admin", "ipsec", "wire"))
def lifetime_option(bench: Bench) -> None:
    """Without option bit 6 the limits have no effect.

    Limits of two packets and of one octet in SAs of both directions without the option; five packets each.
    """
    path = DataPath(bench)
    life = Lifetime(packets_soft_limit=1, bytes_soft_limit=1, packets_hard_limit=2, bytes_hard_limit=1)
    out, inbound = path.outbound(life=life), path.inbound(life=life)
    for number in range(1, 6):
        left = path.send(out, _plain(bench))
        opened = [try_open(out, one) for one in left]
        good = len(opened) == 1 and isinstance(opened[0], Inbound)
        bench.check("INF-27", good, f"packet {number} leaves sealed", opened)
        came, good = _next(path, inbound)
        bench.check("INF-27", good, f"packet {number} is opened", came)
        flags = [rx.header.flags & bench.dialect.flag_soft_expiry for rx in came]
        bench.check("INF-27", not any(flags), f"packet {number} carries no warning", flags)


@case("ipsec-lifetime-over-modify", "INF-39", needs=("admin", "ipsec", "modify_query", "wire"))
def lifetime_over_modify(bench: Bench) -> None:
    """MODIFY does not restart the lifetime counters (ledger E40).

    Hard limits of 4 packets: two packets, a MODIFY that changes something else, two packets pass and the next
    does not, in both directions.
    """
    path = _path(bench)
    life = Lifetime(packets_hard_limit=4)
    out, inbound = path.outbound(options=LIMITED, life=life), path.inbound(options=LIMITED, life=life)
    changes = (
        (OUTBOUND, out, replace(out.value, param=replace(TUNNEL4, ttl=20))),
        (INBOUND, inbound, replace(inbound.value, replay_win_sz=32)),
    )
    left, opened = [], []
    for number in range(6):
        left.append(len(path.send(out, _plain(bench))))
        opened.append(_next(path, inbound)[1])
        if number == 1:
            for type, sa, value in changes:
                reply = bench.admin.modify(type, sa.id, bench.dialect.sa.build(replace(value, obj_id=sa.id)))
                bench.require("INF-39", reply.ok, "MODIFY of another attribute succeeds", reply)
    wanted = [1] * 4 + [0] * 2
    bench.check("INF-39", left == wanted, "four packets leave over MODIFY", left)
    bench.check(
        "INF-39", [int(one) for one in opened] == wanted, "four packets are opened over MODIFY", opened
    )
