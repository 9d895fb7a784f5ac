"""Packets of every length through IPsec: padding, length fields and lookups are right at all of them."""

from __future__ import annotations

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import DataPath, outer_of, try_open
from virtio_ipsec.conformance.frames import Shape
from virtio_ipsec.conformance.sas import TUNNEL_MODES
from virtio_ipsec.ipsec.process import Inbound

#: Octets of UDP payload: each length of padding, around 256, and about as much as a frame of 1514 octets holds.
LENGTHS = (*range(20), 190, 200, 210, 220, 255, 256, 257, 511, 513, 1000, 1300)


@case("ipsec-in-sizes", "INF-07", "RFC-13", needs=("admin", "ipsec", "wire"))
def in_sizes(bench: Bench) -> None:
    """Sealed packets of many lengths are opened.

    In each mode, over IPv4 and IPv6, from no payload to nearly a whole frame; every length of padding comes up.
    """
    path = DataPath(bench)
    for mode in path.modes():
        for version in (4, 6):
            outer = {"outer": outer_of(version)} if mode in TUNNEL_MODES else {}
            sa = path.inbound(mode=mode, suite=path.suite(mode), **outer)
            for length in bench.sweep(LENGTHS):
                plain = frames.packet(bench.octets(length), Shape(version))
                came = path.receive(sa.peer.seal(plain))
                what = f"{mode.name}, IPv{version}, {length} octets"
                path.check_opened(("INF-07", "RFC-13"), came, plain, what)
            path.destroy(sa)


@case("ipsec-out-sizes", "INF-08", "RFC-09", needs=("admin", "ipsec", "wire"))
def out_sizes(bench: Bench) -> None:
    """Packets of many lengths leave sealed, and the peer opens them.

    In each mode, over IPv4 and IPv6, from no payload to nearly a whole frame; every length of padding comes up.
    """
    path = DataPath(bench)
    for mode in path.modes():
        for version in (4, 6):
            fields: dict[str, object] = {"param": outer_of(version)} if mode in TUNNEL_MODES else {}
            sa = path.outbound(mode=mode, suite=path.suite(mode), **fields)
            for length in bench.sweep(LENGTHS):
                plain = frames.packet(bench.octets(length), Shape(version))
                opened = [try_open(sa, sealed) for sealed in path.send(sa, plain)]
                good = (
                    len(opened) == 1
                    and isinstance(opened[0], Inbound)
                    and bench.same(plain, opened[0].packet)
                )
                for clause in ("INF-08", "RFC-09"):
                    bench.check(clause, good, f"{mode.name}, IPv{version}, {length} octets", opened)
            path.destroy(sa)
