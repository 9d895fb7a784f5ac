"""Which frames the driver gets and on which receive queue: RX filter, packet hash, RSS, automatic steering.

virtio v1.4 5.1.6.4.3 (hash calculation), 5.1.6.5.1 to 5.1.6.5.3 (receive filtering), 5.1.6.5.5 (multiqueue),
5.1.6.5.6 (RSS). Queues are numbered by pair: 0 is receiveq1.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from functools import lru_cache

from virtio_ipsec.device.frame import PROTO_TCP, PROTO_UDP, FrameView
from virtio_ipsec.device.state import RxFilter, Steering
from virtio_ipsec.wire.numbers import Feature, HashReport, has

_BROADCAST = b"\xff" * 6

#: Every hash type that is implemented, for `supported_hash_types`.
SUPPORTED_HASH_TYPES = (1 << HashReport.UDPV6_EX) - 1
#: Longest key that matters: two IPv6 addresses, two ports, and the 32-bit window.
MAX_KEY = 40
#: Flows remembered for automatic steering; the oldest is forgotten first.
MAX_FLOWS = 4096


def admits(frame: bytes, rx: RxFilter, features: int) -> bool:
    """Whether receive mode, MAC table and VLAN table let ``frame`` (14 bytes or more) through.

    Without CTRL_RX the driver has no way to ask for anything, so every destination is let through; without
    both MAC and CTRL_MAC_ADDR the device cannot know the driver's address, so every unicast frame is.
    A priority tag (VLAN id 0) does not make a frame VLAN-tagged (IEEE 802.1Q).
    """
    if rx.promisc:
        return True
    if has(features, Feature.NET_F_CTRL_VLAN) and frame[12:14] == b"\x81\x00":
        if len(frame) < 18:
            return False
        vlan = (frame[14] << 8 | frame[15]) & 0xFFF
        if vlan and vlan not in rx.vlans:
            return False
    if not has(features, Feature.NET_F_CTRL_RX):
        return True
    target = frame[:6]
    if target == _BROADCAST:
        return not rx.nobcast
    if target[0] & 1:
        return not rx.nomulti and (rx.allmulti or target in rx.multicast)
    if rx.nouni:
        return False
    if rx.alluni or target == rx.mac or target in rx.unicast:
        return True
    return not (has(features, Feature.NET_F_MAC) or has(features, Feature.NET_F_CTRL_MAC_ADDR))


class Toeplitz:
    """The hash of RSS for one key: the XOR of the 32-bit key windows that start at each set bit of the input.

    A key shorter than the input needs is continued with zero bits.
    """

    __slots__ = ("_nibbles",)

    def __init__(self, key: bytes) -> None:
        padded = int.from_bytes(key.ljust(MAX_KEY, b"\0")[:MAX_KEY], "big")
        bits = MAX_KEY * 8
        windows = [padded >> (bits - 32 - i) & 0xFFFFFFFF for i in range(bits - 31)]
        self._nibbles: list[tuple[int, ...]] = []
        for at in range(0, bits - 32, 4):
            row = [0] * 16
            for value in range(16):
                for bit in range(4):
                    if value & (8 >> bit):
                        row[value] ^= windows[at + bit]
            self._nibbles.append(tuple(row))

    def hash(self, data: bytes) -> int:
        """32-bit hash of at most 36 bytes."""
        result = 0
        rows = self._nibbles
        at = 0
        for byte in data:
            result ^= rows[at][byte >> 4] ^ rows[at + 1][byte & 15]
            at += 2
        return result


@lru_cache(maxsize=8)
def toeplitz(key: bytes) -> Toeplitz:
    """The tables of ``key``; a hash key is no secret."""
    return Toeplitz(key)


#: (IP version, protocol) -> the report for addresses and ports; the type's bit is one less.
_WITH_PORTS = {
    (4, PROTO_TCP): int(HashReport.TCPV4),
    (4, PROTO_UDP): int(HashReport.UDPV4),
    (6, PROTO_TCP): int(HashReport.TCPV6),
    (6, PROTO_UDP): int(HashReport.UDPV6),
}
_WITH_PORTS_EX = {PROTO_TCP: int(HashReport.TCPV6_EX), PROTO_UDP: int(HashReport.UDPV6_EX)}
_ADDRESSES = {4: int(HashReport.IPV4), 6: int(HashReport.IPV6)}


def packet_hash(frame: bytes, headers: FrameView, hash_types: int, key: bytes) -> tuple[int, int]:
    """(`hash_value`, `hash_report`) of a packet under the enabled types; (0, 0) when none applies.

    A fragment, the first included, counts as having no transport header: all fragments of a packet must hash
    alike, whether or not they show the ports.
    """
    version = headers.version
    if not version or not hash_types:
        return 0, 0
    at = headers.l3
    l4 = headers.transport
    ports = frame[l4 : l4 + 4] if l4 and l4 + 4 <= headers.end else b""
    if headers.extensions:
        source, target = headers.home or at + 8, headers.routing or at + 24
        addresses = frame[source : source + 16] + frame[target : target + 16]
        with_ports = _WITH_PORTS_EX.get(headers.protocol, 0)
        found = _hash(hash_types, key, addresses, ports, with_ports, int(HashReport.IPV6_EX))
        if found[1]:
            return found
    addresses = frame[at + 12 : at + 20] if version == 4 else frame[at + 8 : at + 40]
    with_ports = _WITH_PORTS.get((version, headers.protocol), 0)
    return _hash(hash_types, key, addresses, ports, with_ports, _ADDRESSES[version])


def _hash(
    hash_types: int, key: bytes, addresses: bytes, ports: bytes, with_ports: int, without: int
) -> tuple[int, int]:
    """Hash over addresses and ports if that type is enabled, else over the addresses if that one is."""
    if ports and with_ports and hash_types >> (with_ports - 1) & 1:
        return toeplitz(key).hash(addresses + ports), with_ports
    if hash_types >> (without - 1) & 1:
        return toeplitz(key).hash(addresses), without
    return 0, 0


def flow_key(frame: bytes, headers: FrameView, *, sent: bool) -> bytes:
    """The flow of a packet, seen from the peer's side of it when ``sent``; empty when it is not IP."""
    version = headers.version
    if not version:
        return b""
    at = headers.l3 + (12 if version == 4 else 8)
    size = 4 if version == 4 else 16
    source, target = frame[at : at + size], frame[at + size : at + 2 * size]
    ports = b""
    l4 = headers.transport
    if l4 and headers.protocol in (PROTO_TCP, PROTO_UDP) and l4 + 4 <= headers.end:
        ports = frame[l4 + 2 : l4 + 4] + frame[l4 : l4 + 2] if sent else frame[l4 : l4 + 4]
    if sent:
        source, target = target, source
    return bytes((headers.protocol,)) + source + target + ports


class FlowMemory:
    """Which transmit queue each flow last used, for automatic steering; bounded by ``MAX_FLOWS``."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queues)

    def sent(self, frame: bytes, headers: FrameView, queue: int) -> None:
        """A frame of the driver left on transmit queue ``queue``."""
        key = flow_key(frame, headers, sent=True)
        if key:
            self._queues[key] = queue
            self._queues.move_to_end(key)
            if len(self._queues) > MAX_FLOWS:
                self._queues.popitem(last=False)

    def queue_of(self, key: bytes) -> int | None:
        """The queue of this flow, when it is known."""
        return self._queues.get(key)


def choose_queue(
    steering: Steering,
    flows: FlowMemory,
    live: set[int] | None,
    frame: bytes,
    headers: FrameView,
    packet: tuple[int, int],
) -> int | None:
    """The receive queue of a frame that no rule has directed; None when there is none to put it on.

    ``packet`` is what :func:`packet_hash` gave. RSS drops what belongs to a queue that is being reset;
    automatic steering moves it to another queue in use.
    """
    if steering.rss:
        value, report = packet
        table = steering.table
        queue = table[value & (len(table) - 1)] if report else steering.unclassified_queue
        return queue if live is None or queue in live else None
    pairs = steering.queue_pairs
    queue = 0
    key = b""
    if pairs > 1:
        key = flow_key(frame, headers, sent=False)
        known = flows.queue_of(key)
        # An unknown flow keeps to one queue, so that its packets stay in order.
        queue = known if known is not None and known < pairs else zlib.crc32(key) % pairs
    if live is None or queue in live:
        return queue
    others = sorted(q for q in live if q < pairs)
    return others[zlib.crc32(key) % len(others)] if others else None
