"""One packet through its SA, whichever engine the SA has.

An SA has one engine for life, and that record alone holds sequence number, window and lifetimes: a packet that comes
through Python on an SA of the C table draws from the table.
"""

from __future__ import annotations

from virtio_ipsec.fastpath.esp import FastInboundSa, FastOutboundSa
from virtio_ipsec.ipsec.process import Inbound, IpsecHeader, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa

AnyOutboundSa = OutboundSa | FastOutboundSa
AnyInboundSa = InboundSa | FastInboundSa
#: ``freeze``, ``state`` and ``restore`` move one elsewhere, whichever engine it has there.
AnySa = AnyOutboundSa | AnyInboundSa


def protect(sa: AnyOutboundSa, packet: bytes, mtu: int) -> bytes:
    """:func:`virtio_ipsec.ipsec.process.outbound`, with the same refusals."""
    if isinstance(sa, FastOutboundSa):
        return sa.protect(packet, mtu)
    return outbound(sa, packet, mtu)


def unprotect(sa: AnyInboundSa, packet: bytes, found: IpsecHeader) -> Inbound:
    """:func:`virtio_ipsec.ipsec.process.inbound`, with the same refusals."""
    if isinstance(sa, FastInboundSa):
        return sa.unprotect(packet)
    return inbound(sa, packet, found)
