"""Where the network header is: what the driver says of it, and that nothing leaves in clear when that is wrong."""

from __future__ import annotations

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import DataPath, try_open
from virtio_ipsec.conformance.frames import Shape
from virtio_ipsec.ipsec.process import Inbound
from virtio_ipsec.wire.numbers import Feature


@case("ipsec-out-network-offset", "NET-TX-DEV-03", needs=("admin", "ipsec", "wire"))
def out_network_offset(bench: Bench) -> None:
    """Whatever outer_nh_offset says, a packet marked SECURITY leaves sealed or not at all.

    The right offset, with and without VLAN tag, must seal; every other one within the frame, and some beyond it, may be
    refused or left unused. A packet in a packet, too, whose offset points at the inner one.
    """
    path = DataPath(bench, want=(Feature.NET_F_OUT_NET_HEADER,))
    sa = path.outbound()
    secret = bench.octets(48)
    inner = frames.packet(secret)
    nested = frames.packet(inner, Shape(4, 4))
    ends = (0, *range(1, 64), len(path.frame(nested)) - 1, len(path.frame(nested)), 0xFFFF)
    for what, packet, tag in (
        ("plain", inner, b""),
        ("tagged", inner, b"\x81\0\0\5"),
        ("nested", nested, b""),
    ):
        plain = path.frame(packet)
        frame = plain[:12] + tag + plain[12:]
        right = 14 + len(tag)
        for at in ends:
            left = bench.packets.transmit(frame, path.header(sa.id, outer_nh_offset=at))
            opened = [try_open(sa, ip) for ip in (one[right:] for one in left)]
            good = all(isinstance(one, Inbound) and one.packet == packet for one in opened)
            enough = len(left) == 1 or (not left and at not in {0, right})
            text = f"{what}, outer_nh_offset {at}: leaves sealed{'' if at in {0, right} else ', or not'}"
            bench.check("NET-TX-DEV-03", good and enough, text, [one.hex()[:80] for one in left])
