"""What an operator's port does to each packet: the security policy database of RFC 4301 4.4.1, sans-IO.

Rules stand in falling order of priority, equal ones in the order given; the first whose selector matches decides.
Selectors are written from our side of the wire: ``local`` is the source of what leaves and the destination of what
arrives. Two checks guard the way in (RFC 4301 5.2): a packet that an SA has opened must be one that the SA is for, and
a packet in the clear must not be one that a rule wants protected.

A selector can ask for what a packet does not show: the ports of a fragment, or the protocol of a later IPv6 fragment
whose extension headers continue in it. Such a packet is refused as soon as a PROTECT or DROP rule might be meant for
it; a BYPASS rule that might be meant is passed over. So nothing leaves in the clear, or comes in, by being cut up.

Linear search, small: the oracle of csrc/policy.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from virtio_ipsec.errors import ConfigError, PacketError, Reason
from virtio_ipsec.ipsec.ip import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV6_HEADER_LEN, ROUTING, parse
from virtio_ipsec.policy.actions import Action

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
#: Lowest and highest value that match.
Range = tuple[int, int]

#: TCP, UDP, DCCP, SCTP, UDP-Lite: source and destination port come first.
WITH_PORTS = frozenset({6, 17, 33, 132, 136})
#: ICMP and ICMPv6: type and code come first.
WITH_TYPE = frozenset({1, 58})

_CHAINED = frozenset({ROUTING, FRAGMENT, DESTINATION_OPTIONS})
_ANY_NUMBER: Range = (0, 0xFFFF)


@dataclass(frozen=True, slots=True)
class Selector:
    """The packets that a rule or an SA is for; None matches anything, hidden fields included.

    ``local_ports`` and ``remote_ports`` need a ``protocol`` with ports. ``icmp`` needs an ICMP ``protocol`` and holds
    type * 256 + code, whichever way the packet goes (RFC 4301 4.4.1.1, RFC 7296 3.13.1). ConfigError otherwise, for a
    range whose ends are not 0 <= low <= high <= 65535, and for addresses of two families.
    """

    local: Network | None = None
    remote: Network | None = None
    protocol: int | None = None
    local_ports: Range | None = None
    remote_ports: Range | None = None
    icmp: Range | None = None

    def __post_init__(self) -> None:
        if self.local is not None and self.remote is not None and self.local.version != self.remote.version:
            raise ConfigError("a selector's addresses are of one family")
        if self.protocol is not None and not 0 <= self.protocol <= 255:
            raise ConfigError(f"protocol {self.protocol}: 0 to 255")
        for wanted, protocols in (
            (self.local_ports, WITH_PORTS),
            (self.remote_ports, WITH_PORTS),
            (self.icmp, WITH_TYPE),
        ):
            if wanted is not None and self.protocol not in protocols:
                raise ConfigError(f"protocol {self.protocol} has no such field")
            if wanted is not None and not 0 <= wanted[0] <= wanted[1] <= 0xFFFF:
                raise ConfigError(f"range {wanted[0]} to {wanted[1]}: 0 to 65535, low end first")

    @property
    def version(self) -> int | None:
        """The IP version of its addresses; None for both."""
        network = self.local or self.remote
        return None if network is None else network.version

    @property
    def numbers(self) -> tuple[Range, Range]:
        """What the two numbers behind the IP header must be: local and remote port, or ICMP type and code."""
        return self.icmp or self.local_ports or _ANY_NUMBER, self.remote_ports or _ANY_NUMBER

    @property
    def names_numbers(self) -> bool:
        """Whether it can be decided only where ports, or ICMP type and code, are seen."""
        return self.numbers != (_ANY_NUMBER, _ANY_NUMBER)


@dataclass(frozen=True, slots=True)
class Rule:
    """A selector with its action; ``sa`` is the id of the outbound SA when the action is PROTECT."""

    selector: Selector
    action: Action
    sa: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class InboundSa:
    """What may come out of an inbound SA; ``peer``: the source that its tunnel header must have, None for any."""

    selectors: tuple[Selector, ...]
    peer: Address | None = None


class Outcome(StrEnum):
    """What becomes of a packet, in the order of ``enum vipsec_policy_outcome``."""

    BYPASS = "bypass"  # goes on as it is
    PROTECT = "protect"
    DROP_RULE = "drop_rule"
    DROP_DEFAULT = "drop_default"
    DROP_HIDDEN = "drop_hidden"  # a rule might be meant for it that cannot be decided
    DROP_CLEARTEXT = "drop_cleartext"  # arrived in the clear and ought to be protected
    DROP_SELECTOR = "drop_selector"  # is not what the SA that opened it is for
    DROP_PEER = "drop_peer"  # came from another address than the SA's peer
    DROP_MALFORMED = "drop_malformed"
    NOT_IP = "not_ip"  # not for these rules


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, the SA to use when that is PROTECT, and the place of the rule that decided, if one did."""

    outcome: Outcome
    sa: int | None = None
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class Fields:
    """What selectors look at. ``protocol`` None: hidden. ``numbers`` None: hidden, or there are none."""

    source: Address
    target: Address
    protocol: int | None
    numbers: tuple[int, int] | None


class Match(Enum):
    """Whether a selector matches."""

    YES = "yes"
    NO = "no"
    HIDDEN = "hidden"


def read_fields(data: bytes) -> Fields:
    """The fields of an IP packet; PacketError NOT_IP or MALFORMED.

    Hop-by-hop options that do not stand first are MALFORMED (RFC 8200 4.1): what follows them shall not hide there.
    """
    packet = parse(data)
    data = packet.data
    if packet.version == 4:
        numbers = None if packet.flags_offset & 0x3FFF else _numbers(data, packet.protocol, packet.header_len)
        return Fields(IPv4Address(data[12:16]), IPv4Address(data[16:20]), packet.protocol, numbers)
    protocol: int | None = packet.protocol
    at = IPV6_HEADER_LEN
    fragment = later = False
    while protocol in _CHAINED or protocol == HOP_BY_HOP:
        if protocol == HOP_BY_HOP and at != IPV6_HEADER_LEN:
            raise PacketError(Reason.MALFORMED, "hop-by-hop options behind another extension header")
        if at + 8 > len(data):
            raise PacketError(Reason.MALFORMED, "extension header is cut short")
        if protocol == FRAGMENT:
            word = int.from_bytes(data[at + 2 : at + 4])
            fragment = fragment or bool(word & 0xFFF9)
            if word & 0xFFF8:
                later = True
                protocol = data[at]
                break
        length = 8 if protocol == FRAGMENT else (data[at + 1] + 1) * 8
        if at + length > len(data):
            raise PacketError(Reason.MALFORMED, "extension header exceeds the packet")
        protocol = data[at]
        at += length
    if later and (protocol in _CHAINED or protocol == HOP_BY_HOP):
        protocol = None
    numbers = None if fragment or protocol is None else _numbers(data, protocol, at)
    return Fields(IPv6Address(data[8:24]), IPv6Address(data[24:40]), protocol, numbers)


def _numbers(data: bytes, protocol: int, at: int) -> tuple[int, int] | None:
    """Both ports, or type * 256 + code and 0; None when they are cut off or the protocol has none."""
    first = data[at : at + 2]
    if protocol in WITH_TYPE:
        return (int.from_bytes(first), 0) if len(first) == 2 else None
    second = data[at + 2 : at + 4]
    return (
        (int.from_bytes(first), int.from_bytes(second))
        if protocol in WITH_PORTS and len(second) == 2
        else None
    )


def match(selector: Selector, fields: Fields, *, outbound: bool) -> Match:
    """Whether the selector matches a packet that leaves (``outbound``) or arrives."""
    local, remote = (fields.source, fields.target) if outbound else (fields.target, fields.source)
    for network, address in ((selector.local, local), (selector.remote, remote)):
        if network is not None and (network.version != address.version or address not in network):
            return Match.NO
    if selector.protocol is None:
        return Match.YES
    if fields.protocol is None:
        return Match.HIDDEN
    if fields.protocol != selector.protocol:
        return Match.NO
    if not selector.names_numbers:
        return Match.YES
    if fields.numbers is None:
        return Match.HIDDEN
    turned = not outbound and fields.protocol in WITH_PORTS
    numbers = fields.numbers[::-1] if turned else fields.numbers
    inside = (low <= number <= high for (low, high), number in zip(selector.numbers, numbers, strict=True))
    return Match.YES if all(inside) else Match.NO


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, what happens where none matches (``default``: BYPASS or DROP), and inbound SAs by id.

    ConfigError for a PROTECT rule without an SA, an SA without PROTECT, and PROTECT as default.
    """

    rules: tuple[Rule, ...]
    default: Action
    inbound: Mapping[int, InboundSa] = field(default_factory=dict)
    _ordered: tuple[tuple[int, Rule], ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.default is Action.PROTECT:
            raise ConfigError("the default is bypass or drop")
        for number, rule in enumerate(self.rules):
            if (rule.action is Action.PROTECT) != (rule.sa is not None):
                raise ConfigError(f"rule {number}: an SA goes with protect, and with that only")
            if not 0 <= rule.priority <= 0xFFFF_FFFF:
                raise ConfigError(f"rule {number}: priority {rule.priority} has more than 32 bits")
        tried = sorted(enumerate(self.rules), key=lambda item: -item[1].priority)
        object.__setattr__(self, "_ordered", tuple(tried))

    def ordered(self) -> Iterable[tuple[int, Rule]]:
        """The rules with their places, in the order in which they are tried."""
        return self._ordered

    def outbound(self, packet: bytes) -> Decision:
        """What to do with an IP packet that wants to leave."""
        return self._decide(packet, outbound=True)

    def inbound_clear(self, packet: bytes) -> Decision:
        """Whether an IP packet that arrived without protection may come in."""
        decision = self._decide(packet, outbound=False)
        if decision.outcome is Outcome.PROTECT:
            return Decision(Outcome.DROP_CLEARTEXT, None, decision.rule)
        return decision

    def inbound_opened(self, sa: int, packet: bytes, outer_source: Address | None = None) -> Decision:
        """Whether the IP packet that inbound SA ``sa`` opened may come in; ``outer_source``: of its tunnel header."""
        known = self.inbound.get(sa)
        if known is not None and known.peer not in (None, outer_source):
            return Decision(Outcome.DROP_PEER)
        fields = _fields_or_outcome(packet)
        if isinstance(fields, Outcome):
            return Decision(fields)
        selectors = () if known is None else known.selectors
        if any(match(selector, fields, outbound=False) is Match.YES for selector in selectors):
            return Decision(Outcome.BYPASS)
        return Decision(Outcome.DROP_SELECTOR)

    def _decide(self, packet: bytes, *, outbound: bool) -> Decision:
        fields = _fields_or_outcome(packet)
        if isinstance(fields, Outcome):
            return Decision(fields)
        for number, rule in self.ordered():
            found = match(rule.selector, fields, outbound=outbound)
            if found is Match.HIDDEN and rule.action is not Action.BYPASS:
                return Decision(Outcome.DROP_HIDDEN, None, number)
            if found is Match.YES:
                return Decision(_OUTCOMES[rule.action], rule.sa, number)
        return Decision(Outcome.BYPASS if self.default is Action.BYPASS else Outcome.DROP_DEFAULT)


_OUTCOMES = {Action.BYPASS: Outcome.BYPASS, Action.DROP: Outcome.DROP_RULE, Action.PROTECT: Outcome.PROTECT}


def _fields_or_outcome(packet: bytes) -> Fields | Outcome:
    try:
        return read_fields(packet)
    except PacketError as error:
        return Outcome.NOT_IP if error.reason is Reason.NOT_IP else Outcome.DROP_MALFORMED
