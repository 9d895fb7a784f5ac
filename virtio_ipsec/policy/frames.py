"""Seals and opens whole frames by a configuration: what `pcap seal` and `pcap open` do to each packet.

Ethernet headers and VLAN tags stay; the EtherType follows when a tunnel changes the IP version (ledger E64).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from virtio_ipsec.errors import PacketError
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.policy.config import Config
from virtio_ipsec.policy.ethernet import ETHERTYPES, VERSIONS, read_link
from virtio_ipsec.policy.flows import Action, first_match

_Treatment = Callable[[bytes], tuple[bytes | None, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame. ``frame`` is None when it was dropped; ``what`` names the counter."""

    frame: bytes | None
    what: str


def network_header(frame: bytes) -> int:
    """Offset of the IP header of an Ethernet frame, behind any tags; 0 when the frame is not IP."""
    link = read_link(frame)
    return link.l3 if link is not None and link.ethertype in VERSIONS else 0


class Gateway:
    """The SAs of a configuration, alive: sequence numbers and windows run on from frame to frame.

    ``raw_ip`` says that a frame is an IP packet without an Ethernet header. ``counts`` adds up the outcomes.
    """

    def __init__(self, config: Config, rng: Callable[[int], bytes]) -> None:
        self._config = config
        self._outbound: dict[int, OutboundSa] = {}
        self._inbound: dict[tuple[int, int], InboundSa] = {}
        for spec in config.sas:
            if spec.outbound:
                self._outbound[spec.id] = OutboundSa(spec.params, rng)
            else:
                self._inbound[spec.params.protocol, spec.sa.spi] = InboundSa(spec.params)
        self.counts: Counter[str] = Counter()

    def seal(self, frame: bytes, *, raw_ip: bool = False) -> Outcome:
        """Protect, pass or drop one frame by the first flow that matches; unmatched frames pass."""
        return self._count(self._process(frame, self._protect, raw_ip))

    def open(self, frame: bytes, *, raw_ip: bool = False) -> Outcome:
        """Open one frame that an inbound SA knows; other frames pass, refused ones are dropped."""
        return self._count(self._process(frame, self._unprotect, raw_ip))

    def _count(self, outcome: Outcome) -> Outcome:
        self.counts[outcome.what] += 1
        return outcome

    def _process(self, frame: bytes, treat: _Treatment, raw_ip: bool) -> Outcome:
        at = 0 if raw_ip else network_header(frame)
        if not at and not raw_ip:
            return Outcome(frame, "not IP")
        try:
            packet, what = treat(frame[at:])
        except PacketError as error:
            return Outcome(None, f"dropped: {error.reason.value}")
        if packet is None or raw_ip:
            return Outcome(packet, what)
        if what == "passed":
            return Outcome(frame, what)
        ethertype = ETHERTYPES[packet[0] >> 4].to_bytes(2)
        return Outcome(frame[: at - 2] + ethertype + packet, what)

    def _protect(self, packet: bytes) -> tuple[bytes | None, str]:
        flow = first_match(self._config.flows, packet)
        if flow is None or flow.action is Action.BYPASS:
            return packet, "passed"
        if flow.action is Action.DROP or flow.sa is None:
            return None, "dropped: flow"
        return outbound(self._outbound[flow.sa], packet), "sealed"

    def _unprotect(self, packet: bytes) -> tuple[bytes | None, str]:
        header = find_spi(packet)
        sa = self._inbound.get((header.protocol, header.spi)) if header else None
        if sa is None or header is None:
            return packet, "passed"
        return inbound(sa, packet, header).packet, "opened"
