"""SAs made, changed, destroyed and made again, and what becomes of packets sent through them."""

from __future__ import annotations

from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import OUTBOUND, DataPath, try_open
from virtio_ipsec.conformance.sas import TUNNEL4, Peer, install, make
from virtio_ipsec.ipsec.process import Inbound, find_spi
from virtio_ipsec.wire.numbers import IpsecMode


@case("ipsec-out-id-again", "NET-IPSEC-DEV-10", needs=("admin", "ipsec", "wire"))
def out_id_again(bench: Bench) -> None:
    """The id of a destroyed SA can be used again, and packets then use the new SA.

    CREATE, a packet, DESTROY, CREATE of the same id with another key and SPI, a packet.
    """
    path = DataPath(bench)
    first = path.outbound()
    path.send(first, frames.packet(bench.octets(40)))
    path.destroy(first)
    value = make(bench, suite=path.suite(IpsecMode.ESP_TUNNEL))
    reply = install(bench, first.id, value)
    bench.require("NET-IPSEC-DEV-10", reply.ok, "CREATE of a destroyed SA's id succeeds", reply)
    packet = frames.packet(bench.octets(40))
    second = replace(first, value=value, peer=Peer(bench, value))
    opened = [try_open(second, sealed) for sealed in path.send(second, packet)]
    good = len(opened) == 1 and isinstance(opened[0], Inbound) and bench.same(packet, opened[0].packet)
    bench.check("NET-IPSEC-DEV-10", good, "a packet with the id leaves under the new SA", opened)


@case("ipsec-out-after-reset", "NET-IPSEC-DEV-12", needs=("admin", "ipsec", "wire"))
def out_after_reset(bench: Bench) -> None:
    """A reset destroys SAs: afterwards nothing leaves through them, and their ids are free.

    An outbound and an inbound SA are made and the device is reset and set up again. A packet that names the
    outbound SA does not leave, and both ids can be created.
    """
    path = DataPath(bench)
    sa, inbound = path.outbound(), path.inbound()
    left = path.send(sa, frames.packet(bench.octets(40)))
    bench.require("NET-IPSEC-DEV-12", len(left) == 1, "the SA works before the reset", left)
    path = DataPath(bench)
    left = path.send(sa, frames.packet(bench.octets(40)))
    bench.check("NET-IPSEC-DEV-12", not left, "a packet with the id of before does not leave", left)
    for one in (sa, inbound):
        reply = install(bench, one.id, one.value)
        bench.check("NET-IPSEC-DEV-12", reply.ok, "the id can be created after the reset", reply)


@case("ipsec-out-right-after-create", "INF-38", "RFC-36", needs=("admin", "ipsec", "wire"))
def out_right_after_create(bench: Bench) -> None:
    """An SA can be used as soon as CREATE has completed.

    A packet is queued right after each of eight CREATE commands and leaves sealed by that SA.
    """
    path = DataPath(bench)
    for _ in range(8):
        sa = path.outbound()
        opened = [try_open(sa, sealed) for sealed in path.send(sa, frames.packet(bench.octets(40)))]
        good = len(opened) == 1 and isinstance(opened[0], Inbound)
        for clause in ("INF-38", "RFC-36"):
            bench.check(
                clause, good, f"a packet right after CREATE of SA {sa.id} leaves sealed by it", opened
            )


@case("ipsec-out-modify-keeps-sequence", "INF-39", needs=("admin", "ipsec", "modify_query", "wire"))
def out_modify_keeps_sequence(bench: Bench) -> None:
    """MODIFY does not restart the sequence numbers of an outbound SA (ledger E40).

    Three packets, MODIFY that changes the outer TTL, three packets: the numbers go on, no IV comes twice, and
    the new TTL shows. A device that refuses the MODIFY keeps everything.
    """
    path = DataPath(bench)
    sa = path.outbound(param=replace(TUNNEL4, ttl=10))
    changed = replace(sa.value, param=replace(TUNNEL4, ttl=20), obj_id=sa.id)
    before = [path.send(sa, frames.packet(bench.octets(40))) for _ in range(3)]
    reply = bench.admin.modify(OUTBOUND, sa.id, bench.dialect.sa.build(changed))
    bench.require("INF-39", reply.ok, "MODIFY of the tunnel parameters succeeds", reply)
    after = [path.send(sa, frames.packet(bench.octets(40))) for _ in range(3)]
    found = [find_spi(left[0]) for left in before + after if len(left) == 1]
    numbers = [header.sequence for header in found if header]
    bench.check("INF-39", numbers == [1, 2, 3, 4, 5, 6], "sequence numbers go on over MODIFY", numbers)
    if sa.suite.iv_len:
        nonces = {sa.nonce(header) for header in found if header}
        bench.check("INF-39", len(nonces) == 6, "no IV is used twice", len(nonces))
    ttls = [left[0][8] for left in before + after if left and left[0]]
    bench.check("INF-39", ttls == [10] * 3 + [20] * 3, "the outer TTL is the new one after MODIFY", ttls)
