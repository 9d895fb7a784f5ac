"""The SAs of an operator's port, which are live in one place at a time and go on where their keys were left.

A port owns its SAs, or they are frozen: before they have been handed over to it, and after it has handed them over.
Where there is a state directory, an owner's SAs begin above all that its records know of their keys.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa, AnySa
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath.esp import FastOutboundSa
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.process import Inbound, IpsecHeader
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.ipsec.state import SaState
from virtio_ipsec.transport.marks import Inbound as InboundRecord
from virtio_ipsec.transport.marks import Marks
from virtio_ipsec.transport.marks import Outbound as OutboundRecord
from virtio_ipsec.transport.operator_sas import PortSas
from virtio_ipsec.wire.numbers import Direction

Record = OutboundRecord | InboundRecord


class OwnedSas:
    """Makes SAs by ``sas``; while ``owned`` is set they are live at once. ``marks``: of the state directory, if there
    is one. Whoever removes an SA calls :meth:`release`."""

    def __init__(self, sas: PortSas, marks: Marks | None = None, *, owned: bool = True) -> None:
        self.owned = owned
        self._sas = sas
        self._marks = marks

    def outbound(self, id: int, params: SaParams) -> AnyOutboundSa:
        """A new SA for packets that leave. With a state directory it holds them back until the next tick of ``marks``.
        ConfigError where another SA has its keys, or their numbers are used up."""
        sa = self._sas.outbound(id, params, frozen=True)
        self._begin(params, sa)
        return sa

    def inbound(self, id: int, params: SaParams) -> AnyInboundSa:
        """A new SA for packets that arrive."""
        sa = self._sas.inbound(id, params, frozen=True)
        self._begin(params, sa)
        return sa

    def protect(self, sa: AnyOutboundSa, packet: bytes, mtu: int) -> bytes:
        """:func:`virtio_ipsec.ipsec.process.outbound`, with the same refusals."""
        return self._sas.protect(sa, packet, mtu)

    def unprotect(self, sa: AnyInboundSa, packet: bytes, found: IpsecHeader) -> Inbound:
        """:func:`virtio_ipsec.ipsec.process.inbound`, with the same refusals."""
        return self._sas.unprotect(sa, packet, found)

    def plan(self, params: SaParams, sa: AnySa, state: SaState | None = None) -> SaState:
        """Where a frozen SA is to go on: at ``state``, where somebody else has left it, or else where it is itself; in
        any case above what the records know. Changes nothing. ConfigError when it cannot go on at all."""
        start = sa.state() if state is None else state
        if (
            start.sequence > (2**64 - 1 if params.esn else 2**32 - 1)
            or start.sequence < params.first_sequence - 1
        ):
            raise ConfigError("its sequence number is none that the SA can have")
        if self._marks is None:
            return start
        if params.direction is Direction.INBOUND:
            seen = self._marks.known_inbound(params)
            if seen is None or seen.top <= start.sequence:
                return start
            counts = max(seen.packets, start.packets), max(seen.octets, start.bytes)
            return replace(start, sequence=seen.top, packets=counts[0], bytes=counts[1], window=0, seen=0)
        used = self._marks.known_outbound(params)
        if used is None:
            return start
        if state is not None and params.suite.counter_iv and state.iv_base != used.iv_base:
            raise ConfigError("its key has been used here with other IVs: give it a new one")
        sequence = max(start.sequence, used.mark)
        packets = max(start.packets, used.mark - (params.first_sequence - 1) if state is None else 0)
        return replace(
            start,
            sequence=sequence,
            packets=packets,
            bytes=max(start.bytes, used.octets),
            iv_base=used.iv_base,
        )

    def go(self, params: SaParams, sa: AnySa, start: SaState) -> None:
        """Let a frozen SA go on where :meth:`plan` says."""
        marks = self._marks
        if isinstance(sa, OutboundSa | FastOutboundSa):
            if marks is not None:
                sa.set_ceiling(start.sequence)
            sa.restore(start)
            if marks is not None:
                marks.keep_outbound(params, sa, start.iv_base)
        else:
            sa.restore(start)
            if marks is not None:
                marks.keep_inbound(params, sa, partial(_top, sa))

    def stop(self, params: SaParams, sa: AnySa) -> SaState:
        """Freeze an SA; what it has used up."""
        sa.freeze()
        self.release(params)
        return sa.state()

    def release(self, params: SaParams) -> None:
        """The SA with these parameters, keys and all, is frozen or gone."""
        if self._marks is not None:
            self._marks.release(params)

    def _begin(self, params: SaParams, sa: AnySa) -> None:
        if not self.owned:
            return
        try:
            self.go(params, sa, self.plan(params, sa))
        except BaseException:
            sa.wipe()
            raise


def record(params: SaParams, start: SaState) -> Record:
    """What the records say of an SA that goes on at ``start``."""
    if params.direction is Direction.OUTBOUND:
        return OutboundRecord(start.iv_base, start.sequence, start.bytes)
    return InboundRecord(start.sequence, start.packets, start.bytes)


def _top(sa: AnyInboundSa) -> int:
    return sa.window.top if isinstance(sa, InboundSa) else sa.top
