"""The match engine of the flow filter (virtio v1.4 5.1.6.6, Flow filter).

Groups are tried from the highest priority, rules within a group likewise, and the first match decides
(NET-FF-DEV-11 to NET-FF-DEV-13). Rules that share a group and a classifier sit in one hash table keyed by
their masked key: a packet costs one extraction and one look-up per (group, classifier), however many rules.

What a selector sees:

* ETH is the first 14 bytes as they stand. On a VLAN-tagged frame bytes 12-13 are the tag's TPID, so a
  classifier with an IP selector, whose key must say 0x0800 or 0x86dd there, matches untagged frames only.
* IPV4 is the header without options; IPV6 has its Next Header replaced by that of the last extension header.
* TCP, UDP and ESP need that protocol and the whole of their 20 or 8 bytes, and never match a fragment
  other than the first (ledger E65), nor anything in a packet whose length fields cannot be true.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtio_ipsec.device.frame import ETHERNET_HEADER, PROTO_ESP, PROTO_TCP, PROTO_UDP, FrameView
from virtio_ipsec.device.state import FilterObjects
from virtio_ipsec.wire.flow_filter import FfClassifier, FfRule
from virtio_ipsec.wire.numbers import SelectorType

#: Selector types of one classifier with the length of each mask: all that decides which bytes are compared.
Shape = tuple[tuple[int, int], ...]

_TRANSPORT = {
    int(SelectorType.TCP): (PROTO_TCP, 20),
    int(SelectorType.UDP): (PROTO_UDP, 8),
    int(SelectorType.ESP): (PROTO_ESP, 8),
}


def extract(shape: Shape, frame: bytes, headers: FrameView) -> bytes | None:
    """The bytes of ``frame`` that a classifier of this shape compares; None when the packet has no such."""
    found = b""
    for kind, length in shape:
        if kind == SelectorType.ETH:
            start, size = 0, ETHERNET_HEADER
            if len(frame) < size:
                return None
        elif kind in (SelectorType.IPV4, SelectorType.IPV6):
            version, size = (4, 20) if kind == SelectorType.IPV4 else (6, 40)
            start = headers.l3
            if headers.version != version or start != ETHERNET_HEADER:
                return None
        elif kind in _TRANSPORT:
            protocol, size = _TRANSPORT[kind]
            start = headers.l4
            if not start or headers.protocol != protocol or start + size > headers.end:
                return None
        else:
            return None
        if length > size:
            return None
        part = frame[start : start + length]
        if kind == SelectorType.IPV6 and length > 6 and headers.extensions:
            part = part[:6] + bytes((headers.protocol,)) + part[7:]
        found += part
    return found


@dataclass(slots=True)
class _Table:
    """The rules of one group that use one classifier: masked key -> the best rule with that key."""

    shape: Shape
    mask: int
    highest: int
    rules: dict[int, FfRule]


def _shape_and_mask(classifier: FfClassifier) -> tuple[Shape, int]:
    shape = tuple((int(s.type), len(s.mask)) for s in classifier.selectors)
    return shape, int.from_bytes(b"".join(s.mask for s in classifier.selectors), "big")


class FlowFilter:
    """The rules of a device, compiled for look-up; stale once ``generation`` differs from its source's."""

    __slots__ = ("_groups", "generation")

    def __init__(self, objects: FilterObjects) -> None:
        self.generation = objects.generation
        prepared = {ident: _shape_and_mask(c) for ident, c in objects.classifiers.items()}
        tables: dict[int, dict[int, _Table]] = {}
        # Equal priorities may apply in any order (NET-FF-DEV-14); by id keeps it the same from run to run.
        for _, rule in sorted(objects.rules.items(), key=lambda item: (-item[1].rule_priority, item[0])):
            if rule.classifier_id not in prepared:
                continue
            shape, mask = prepared[rule.classifier_id]
            group = tables.setdefault(rule.group_id, {})
            if rule.classifier_id not in group:
                group[rule.classifier_id] = _Table(shape, mask, rule.rule_priority, {})
            group[rule.classifier_id].rules.setdefault(int.from_bytes(rule.keys, "big") & mask, rule)
        by_priority = sorted(objects.groups.items(), key=lambda item: -item[1].group_priority)
        # Insertion followed falling priority, so each group's tables already stand by their best rule.
        self._groups = tuple(tuple(tables[ident].values()) for ident, _ in by_priority if ident in tables)

    def match(self, frame: bytes, headers: FrameView) -> FfRule | None:
        """The one rule whose action applies to ``frame``, or None."""
        seen: dict[Shape, int | None] = {}
        for group in self._groups:
            best: FfRule | None = None
            for table in group:
                if best is not None and best.rule_priority >= table.highest:
                    break
                if table.shape in seen:
                    value = seen[table.shape]
                else:
                    found = extract(table.shape, frame, headers)
                    value = None if found is None else int.from_bytes(found, "big")
                    seen[table.shape] = value
                if value is None:
                    continue
                rule = table.rules.get(value & table.mask)
                if rule is not None and (best is None or rule.rule_priority > best.rule_priority):
                    best = rule
            if best is not None:
                return best
        return None
