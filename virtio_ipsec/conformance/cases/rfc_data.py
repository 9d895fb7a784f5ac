"""What the dialect of January 2025 has of its own on the packet path: where the ids lie, and `esn`."""

from __future__ import annotations

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import INBOUND, OUTBOUND, DataPath, Sa, try_open
from virtio_ipsec.conformance.frames import ip_of
from virtio_ipsec.ipsec.process import Inbound, find_spi
from virtio_ipsec.wire.numbers import Feature, IpsecMode, IpsecOption, has

ESN = IpsecOption.ESN
LAST = 0xFFFF_FFFF


@case("rfc-resource-header", "RFC-02", needs=("admin", "ipsec", "wire"))
def resource_header(bench: Bench) -> None:
    """resource_id lies at octet 20 and resource_type at 24, with and without hash reports.

    Transmit: a header written octet by octet, zero in front of the id but for SECURITY; the packet leaves sealed.
    Receive: the octets of the header of an opened packet.
    """
    lives: list[tuple[tuple[Feature, ...], tuple[Feature, ...]]] = [((), (Feature.NET_F_HASH_REPORT,))]
    if has(bench.target.device_features(), Feature.NET_F_HASH_REPORT):
        lives.append(((Feature.NET_F_HASH_REPORT,), ()))
    for want, without in lives:
        path = DataPath(bench, want=want, without=without)
        reports = "with" if want else "without"
        path.outbound()
        sa, inbound = path.outbound(), [path.inbound(), path.inbound()][1]
        header = bytes((8,)) + bytes(19) + sa.id.to_bytes(4, "little") + OUTBOUND.to_bytes(2, "little")
        packet = frames.packet(bench.octets(40))
        opened = [try_open(sa, ip_of(f)) for f in bench.packets.transmit(path.frame(packet), header)]
        good = len(opened) == 1 and isinstance(opened[0], Inbound) and bench.same(packet, opened[0].packet)
        bench.check("RFC-02", good, f"{reports} hash reports the SA is found by octets 20 to 25", opened)
        came = path.receive(inbound.peer.seal(packet))
        head = came[0].buffers[0].content[:26] if came else b""
        tail = inbound.id.to_bytes(4, "little") + INBOUND.to_bytes(2, "little")
        bench.check(
            "RFC-02", head[20:] == tail, f"{reports} hash reports the id of an opened packet", head.hex()
        )


def _first_numbers(path: DataPath, sa: Sa, count: int = 3) -> list[int]:
    """The numbers, as on the wire, of the next packets; -1 for one that the peer cannot open."""
    numbers = []
    for _ in range(count):
        left = path.send(sa, frames.packet(path.bench.octets(40)))
        for packet in left:
            header = find_spi(packet)
            good = header is not None and isinstance(try_open(sa, packet), Inbound)
            numbers.append(header.sequence if good and header else -1)
    return numbers


@case("rfc-first-number-out", "RFC-31", needs=("admin", "ipsec", "wire"))
def first_number_out(bench: Bench) -> None:
    """esn of an outbound SA is the number of its first packet; zero stands for one.

    0, 1, 1000 and the last number of 32 bits, after which nothing leaves; with the ESN option, where it is
    offered, 2^32 - 1 and 2^32, whose packets only a peer that counts in 64 bits can open.
    """
    path = DataPath(bench)
    for esn, wanted in ((0, [1, 2, 3]), (1, [1, 2, 3]), (1000, [1000, 1001, 1002]), (LAST, [LAST])):
        sa = path.outbound(esn=esn)
        numbers = _first_numbers(path, sa)
        path.destroy(sa)
        bench.check("RFC-31", numbers == wanted, f"with esn {esn:#x} the packets have {wanted}", numbers)
    if not path.caps.modes[IpsecMode.ESP_TUNNEL].options & ESN:
        return
    for esn, wanted in ((LAST, [LAST, 0, 1]), (LAST + 1, [0, 1, 2]), (0, [1, 2, 3])):
        sa = path.outbound(options=ESN, esn=esn)
        numbers = _first_numbers(path, sa)
        path.destroy(sa)
        what = f"with ESN and esn {esn:#x} the packets open and have {wanted} on the wire"
        bench.check("RFC-31", numbers == wanted, what, numbers)


def _passes(path: DataPath, sa: Sa, number: int) -> bool:
    plain = frames.packet(path.bench.octets(40))
    return any(path.is_opened(rx, plain) for rx in path.receive(sa.peer.at(number).seal(plain)))


@case("rfc-first-number-in", "RFC-32", needs=("admin", "ipsec", "wire"))
def first_number_in(bench: Bench) -> None:
    """esn of an inbound SA is the lowest number that it accepts; zero stands for one.

    With esn 1000: 999 fails, 1000 and 1001 pass. With the ESN option, where it is offered, and esn 2^32:
    2^32 - 1 fails, 2^32 passes. With esn 0: 1 passes.
    """
    path = DataPath(bench)
    path.need(IpsecMode.ESP_TUNNEL)
    lives = [(0, 1000), (0, 0)]
    if path.caps.modes[IpsecMode.ESP_TUNNEL].options & ESN:
        lives.append((ESN, LAST + 1))
    for options, esn in lives:
        sa = path.inbound(options=options, esn=esn)
        first = esn or 1
        for number, wanted in ((first - 1, False), (first, True), (first + 1, True), (first - 1, False)):
            if number:
                seen = _passes(path, sa, number)
                what = f"esn {esn:#x}: number {number:#x} is {'accepted' if wanted else 'refused'}"
                bench.check("RFC-32", seen == wanted, what, "accepted" if seen else "refused")
        path.destroy(sa)
