"""Devices whose flow filter catches the wrong packets, or in the wrong order, or too early or too late."""

from __future__ import annotations

from registry import mutant

from virtio_ipsec.device.flow_filter import extract
from virtio_ipsec.device.frame import FrameView, view
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.state import Received
from virtio_ipsec.device.steering import admits
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.flow_filter import FfGroup, FfRule, Selector
from virtio_ipsec.wire.numbers import FfAction, SelectorType


class Plain(Receiver):
    """The flow filter as a loop over all rules, with hooks to get each step wrong. In itself it is right."""

    def matching(self, packet: Packet) -> list[tuple[FfGroup, FfRule]]:
        """Rules that match, in the order in which they are tried."""
        filters = self.ctx.filters
        found = [
            (filters.groups[rule.group_id], rule)
            for rule in filters.rules.values()
            if self.matches(filters.classifiers[rule.classifier_id].selectors, rule.keys, packet)
        ]
        return sorted(found, key=lambda pair: self.order(*pair), reverse=True)

    def order(self, group: FfGroup, rule: FfRule) -> tuple[int, int]:
        return group.group_priority, rule.rule_priority

    def matches(self, selectors: tuple[Selector, ...], keys: bytes, packet: Packet) -> bool:
        shape = tuple((s.type, len(s.mask)) for s in selectors)
        value = extract(shape, packet.frame, self.seen(packet))
        if value is None:
            return False
        masks = b"".join(self.mask(s) for s in selectors)
        return all((a ^ b) & m == 0 for a, b, m in zip(value, keys, masks, strict=True))

    def mask(self, selector: Selector) -> bytes:
        return selector.mask

    def seen(self, packet: Packet) -> FrameView:
        return packet.headers

    def match(self, packet: Packet) -> FfRule | None:
        found = self.matching(packet)
        return found[0][1] if found else None


@mutant(
    "INF-28",
    "INF-10",
    "INF-22",
    "INF-32",
    "INF-36",
    "NET-FF-DEV-10",
    "NET-FF-DEV-11",
    "INF-38",
    "NET-FF-DEV-12",
    "NET-FF-DEV-13",
    "NET-FF-DEV-16",
)
class MasksIgnored(Plain):
    """A rule compares the UDP header whole, whatever the mask says."""

    def mask(self, selector: Selector) -> bytes:
        return b"\xff\xff" + selector.mask[2:] if selector.type == SelectorType.UDP else selector.mask


@mutant("INF-28", "INF-32", "NET-FF-DEV-12", "NET-FF-DEV-13")
class LowBitIgnored(Plain):
    """The last bit of a UDP port is not compared."""

    def mask(self, selector: Selector) -> bytes:
        if selector.type != SelectorType.UDP:
            return selector.mask
        return bytes(octet & (0xFE if at in (1, 3) else 0xFF) for at, octet in enumerate(selector.mask))


@mutant("NET-FF-DEV-12", "NET-FF-DEV-16")
class GroupsLowestFirst(Plain):
    """Groups are tried from the lowest priority up."""

    def order(self, group: FfGroup, rule: FfRule) -> tuple[int, int]:
        return -group.group_priority, rule.rule_priority


@mutant("NET-FF-DEV-12", "NET-FF-DEV-16")
class FirstGroupOnly(Plain):
    """When the first group has no match, no other group is tried."""

    def match(self, packet: Packet) -> FfRule | None:
        highest = max((g.group_priority for g in self.ctx.filters.groups.values()), default=0)
        return next((rule for group, rule in self.matching(packet) if group.group_priority == highest), None)


@mutant("NET-FF-DEV-13", "NET-FF-DEV-16")
class RulesLowestFirst(Plain):
    """Within a group rules are tried from the lowest priority up."""

    def order(self, group: FfGroup, rule: FfRule) -> tuple[int, int]:
        return group.group_priority, -rule.rule_priority


@mutant("NET-FF-DEV-11", "INF-36")
class SteeringHasTheLastWord(Receiver):
    """A directed packet goes where steering puts it."""

    def directed(self, rule: FfRule) -> int | None:
        super().directed(rule)
        return None


@mutant("INF-36", "NET-FF-DEV-11")
class QueueBesideTheRule(Receiver):
    """With several queues in use a rule directs to the neighbour of its queue."""

    def directed(self, rule: FfRule) -> int | None:
        queue = super().directed(rule)
        return queue if queue is None or self.ctx.steering.queue_pairs == 1 else queue ^ 1


@mutant("NET-FF-DEV-10")
class ResetQueueReplaced(Receiver):
    """What is directed to a queue that was reset goes to another."""

    def directed(self, rule: FfRule) -> int | None:
        try:
            return super().directed(rule)
        except PacketError:
            return None


@mutant("NET-FF-DEV-16", "NET-FF-DEV-12")
class DroppedButTriedAgain(Plain):
    """A packet that a rule drops still meets the rules of the next group."""

    def match(self, packet: Packet) -> FfRule | None:
        found = self.matching(packet)
        for group, rule in found:
            if rule.action != FfAction.DROP or all(g is group for g, _ in found):
                return rule
        return found[0][1] if found else None


@mutant("NET-FF-DEV-16")
class OpenedBeforeDropped(Receiver):
    """A protected packet is opened before a rule drops it."""

    def act(self, packet: Packet, rule: FfRule) -> bool:
        if rule.action == FfAction.DROP:
            self.open(packet, required=False)
        return super().act(packet, rule)


@mutant("NET-FF-DEV-15")
class RulesBeforeAddresses(Receiver):
    """A frame that a rule directs needs no right address."""

    def process(self, frame: bytes) -> Received:
        if not admits(frame, self.ctx.rx_filter, self.ctx.features):
            packet = Packet(frame, view(frame))
            rule = self.match(packet)
            if rule is None or rule.action != FfAction.DIRECT_RX_VQ:
                raise PacketError(Reason.FILTERED)
            return Received(rule.vq_index >> 1, self.header(packet, (0, 0)) + packet.frame)
        return super().process(frame)


@mutant("NET-FF-DEV-17")
class RulesBeforeTheFilter(Receiver):
    """A frame for another address is dropped after it has been opened."""

    def process(self, frame: bytes) -> Received:
        if not admits(frame, self.ctx.rx_filter, self.ctx.features):
            self.apply_rules(Packet(frame, view(frame)))
            raise PacketError(Reason.FILTERED)
        return super().process(frame)


@mutant("INF-32")
class FixedIpv4Header(Plain):
    """The transport header is looked for 20 octets into IPv4, options or not."""

    def seen(self, packet: Packet) -> FrameView:
        headers = packet.headers
        if headers.version != 4 or not headers.l4:
            return headers
        return FrameView(headers.l3, 4, headers.ethertype, headers.protocol, headers.l3 + 20, headers.end)


@mutant("INF-32")
class FirstNextHeader(Plain):
    """The IPv6 next header is that of the fixed header."""

    def seen(self, packet: Packet) -> FrameView:
        headers = packet.headers
        if headers.version != 6 or not headers.extensions:
            return headers
        first = packet.frame[headers.l3 + 6]
        return FrameView(headers.l3, 6, headers.ethertype, first, headers.l3 + 40, headers.end)


@mutant("INF-32", "INF-28")
class ControlBitsTogether(Plain):
    """TCP control bits are compared all together."""

    def mask(self, selector: Selector) -> bytes:
        if selector.type != SelectorType.TCP or not selector.mask[13]:
            return selector.mask
        return selector.mask[:13] + b"\xff" + selector.mask[14:]


@mutant("INF-31")
class SequenceNotCompared(Plain):
    """Of the ESP header only the SPI is compared, and not its last octet."""

    def mask(self, selector: Selector) -> bytes:
        if selector.type != SelectorType.ESP:
            return selector.mask
        return selector.mask[:3] + b"\0" + selector.mask[4:]


@mutant("INF-28")
class NothingMatchesAHeaderAlone(Receiver):
    """An IP packet that ends with its header matches no rule."""

    def match(self, packet: Packet) -> FfRule | None:
        return None if packet.headers.end == packet.headers.l4 else super().match(packet)
