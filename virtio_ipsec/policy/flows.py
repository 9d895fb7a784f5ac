"""Which packet is protected by which SA: flows in falling order of priority, the first match decides.

A flow is a rule of the security policy database (RFC 4301 4.4.1) as an operator writes it: one or more selectors with
one action. Frames that are not IP can be named by their EtherType; they pass or are dropped, for IPsec has no more to
say about them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virtio_ipsec.policy.actions import Action as Action
from virtio_ipsec.policy.selectors import Match, Rule, Selector, match, read_fields


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets that any of ``selectors`` matches, or frames of one of ``ethertypes``, with what to do with them.

    ``sa`` is the id of the outbound SA when the action is PROTECT. ``name`` is for people and for removal.
    """

    action: Action
    selectors: tuple[Selector, ...] = ()
    ethertypes: frozenset[int] = frozenset()
    sa: int | None = None
    priority: int = 0
    name: str = ""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The flow in terms of the classifier."""
        return tuple(Rule(selector, self.action, self.sa, self.priority) for selector in self.selectors)


def ordered(flows: Iterable[Flow]) -> list[Flow]:
    """The flows in the order in which they are tried."""
    return sorted(flows, key=lambda flow: -flow.priority)


def first_match(flows: Iterable[Flow], packet: bytes) -> Flow | None:
    """The first flow that is certain to be for the IP packet, or None.

    A packet that does not show what a selector asks for (the ports of a fragment) does not match it: this is for
    converting captures. Ports use :class:`~virtio_ipsec.policy.selectors.Policy`, which lets nothing slip through.
    Raises PacketError when the packet is not well-formed IP.
    """
    fields = read_fields(packet)
    for flow in ordered(flows):
        if any(match(selector, fields, outbound=True) is Match.YES for selector in flow.selectors):
            return flow
    return None
