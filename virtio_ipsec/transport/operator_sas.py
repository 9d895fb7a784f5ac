"""The SAs of an operator's port: in C what C does, else in Python; one record each, whichever path a packet takes."""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa, protect, unprotect
from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.process import Inbound, IpsecHeader
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa


class PortSas:
    """Makes them in the tables of ``fast``, which the port's device uses too; None: all in Python."""

    def __init__(self, fast: FastPath | None, rng: Callable[[int], bytes]) -> None:
        self._fast = fast
        self._rng = rng

    def outbound(self, id: int, params: SaParams, *, frozen: bool = False) -> AnyOutboundSa:
        """A new SA for packets that leave. ``frozen``: it waits for ``restore``."""
        if self._fast is not None and self._fast.takes(id, params):
            return self._fast.outbound(id, params, self._rng, frozen=frozen)
        return OutboundSa(params, self._rng, frozen=frozen)

    def inbound(self, id: int, params: SaParams, *, frozen: bool = False) -> AnyInboundSa:
        """A new SA for packets that arrive. ``frozen``: it waits for ``restore``."""
        if self._fast is not None and self._fast.takes(id, params):
            return self._fast.inbound(id, params, frozen=frozen)
        return InboundSa(params, frozen=frozen)

    def protect(self, sa: AnyOutboundSa, packet: bytes, mtu: int) -> bytes:
        """:func:`virtio_ipsec.ipsec.process.outbound`, with the same refusals."""
        return protect(sa, packet, mtu)

    def unprotect(self, sa: AnyInboundSa, packet: bytes, found: IpsecHeader) -> Inbound:
        """:func:`virtio_ipsec.ipsec.process.inbound`, with the same refusals."""
        return unprotect(sa, packet, found)
