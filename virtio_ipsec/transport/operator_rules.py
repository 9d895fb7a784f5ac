"""What the C packet path is told of an operator's policy: constant blocks, another set whenever something changes."""

from __future__ import annotations

import os

from virtio_ipsec.fastpath.esp import FastInboundSa
from virtio_ipsec.fastpath.pipeline import Port
from virtio_ipsec.fastpath.policy import PolicyTable
from virtio_ipsec.fastpath.underlay import UnderlayBlock
from virtio_ipsec.policy.operator import Snapshot
from virtio_ipsec.policy.selectors import Policy
from virtio_ipsec.transport.exchange import Operator


class OperatorRules:
    """What one port has published. Called in the control thread, under the port's lock."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._generation: int | None = None
        self._policy: Policy | None = None
        #: Nobody outside knows it: addresses and selectors cannot be chosen so that they collide.
        self._seed = int.from_bytes(os.urandom(8))

    def publish(self, port: Port) -> None:
        """Tell ``port`` what has changed since the last time."""
        if self._operator.generation == self._generation:
            return
        snapshot = self._operator.snapshot()
        port.set_foreign_sas(
            sum(
                not held.spec.outbound and not isinstance(held.engine, FastInboundSa)
                for held in self._operator.sas
            )
        )
        port.set_underlay(self._underlay(snapshot))
        if snapshot.policy is not self._policy:
            port.set_policy(PolicyTable(snapshot.policy, self._seed))
            self._policy = snapshot.policy
        self._generation = snapshot.generation

    def _underlay(self, snapshot: Snapshot) -> UnderlayBlock:
        underlay = snapshot.underlay
        return UnderlayBlock(
            self._seed,
            mtu=snapshot.mtu,
            guest_mtu=snapshot.guest_mtu,
            mac=underlay.mac if underlay else None,
            own=tuple(each.ip for each in underlay.addresses) if underlay else (),
            paths=snapshot.paths,
            narrow=snapshot.narrow,
            guest_mac=snapshot.guest_mac,
            learns_guest=snapshot.learns_guest,
            mss_clamp=snapshot.mss_clamp,
        )
