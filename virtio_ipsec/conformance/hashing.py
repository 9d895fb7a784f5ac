"""The hash of received packets as the suite works it out: over fields that it has put into the packet itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.control import command
from virtio_ipsec.conformance.frames import TCP, UDP, Shape
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.wire.net_control import HASH_CONFIG, RSS_CONFIG, HashConfig, RssConfig
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMq, Feature, HashReport, HashType, has

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

#: Octets of a key that is long enough for every packet: two IPv6 addresses, two ports, and 32 bits more.
KEY_OCTETS = 40
#: Any other protocol, without ports.
OTHER = 59
ADDRESS = {4: 4, 6: 16}
_PORTS = {
    (4, TCP): (HashType.TCPV4, HashReport.TCPV4),
    (4, UDP): (HashType.UDPV4, HashReport.UDPV4),
    (6, TCP): (HashType.TCPV6, HashReport.TCPV6),
    (6, UDP): (HashType.UDPV6, HashReport.UDPV6),
}
_PORTS_EX = {TCP: (HashType.TCP_EX, HashReport.TCPV6_EX), UDP: (HashType.UDP_EX, HashReport.UDPV6_EX)}
_ADDRESSES = {4: (HashType.IPV4, HashReport.IPV4), 6: (HashType.IPV6, HashReport.IPV6)}


def toeplitz(key: bytes, data: bytes) -> int:
    """The 32-bit hash: of the key one window per bit of ``data`` that is set, all XORed."""
    number, bits = int.from_bytes(key), len(key) * 8
    result = 0
    for at in range(len(data) * 8):
        if data[at // 8] >> (7 - at % 8) & 1:
            result ^= number >> (bits - 32 - at) & 0xFFFF_FFFF
    return result


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets of one direction of a conversation, by what is hashed of them. ``home`` and ``way`` are the addresses
    of a home address option and of a type 2 routing header; ``extended``: there are extension headers."""

    version: int
    protocol: int
    source: bytes
    target: bytes
    ports: bytes = b""
    extended: bool = False
    home: bytes = b""
    way: bytes = b""

    def hashed(self, types: int, key: bytes) -> tuple[int, int]:
        """(`hash_value`, `hash_report`) with these types enabled."""
        if self.extended:
            addresses = (self.home or self.source) + (self.way or self.target)
            kind, report = _PORTS_EX.get(self.protocol, (HashType(0), HashReport.NONE))
            if self.ports and types & kind:
                return toeplitz(key, addresses + self.ports), report
            if types & HashType.IP_EX:
                return toeplitz(key, addresses), HashReport.IPV6_EX
        addresses = self.source + self.target
        kind, report = _PORTS.get((self.version, self.protocol), (HashType(0), HashReport.NONE))
        if self.ports and types & kind:
            return toeplitz(key, addresses + self.ports), report
        kind, report = _ADDRESSES[self.version]
        return (toeplitz(key, addresses), report) if types & kind else (0, HashReport.NONE)

    def packet(self, body: bytes) -> bytes:
        """An IP packet of this flow with all its checksums; ``body`` follows the ports or stands alone."""
        sport, dport = struct.unpack("!HH", self.ports) if self.ports else (0, 0)
        # TCP and UDP sum the addresses of the ends, wherever in the packet they stand.
        ends = self.home or self.source, self.way or self.target
        whole = frames.packet(
            body,
            Shape(self.version, self.protocol if self.ports else OTHER, sport=sport, dport=dport, hosts=ends),
        )
        if self.version == 4:
            return whole
        return whole[:8] + self.source + self.target + whole[40:]

    def back(self) -> Flow:
        """The other direction."""
        return Flow(
            self.version,
            self.protocol,
            self.target,
            self.source,
            self.ports[2:] + self.ports[:2],
        )


def new_flow(bench: Bench, version: int, protocol: int = UDP) -> Flow:
    """A flow between hosts and ports drawn at random."""
    size = ADDRESS[version]
    # Neither a group address nor any other of special meaning.
    first = b"\x0a" if version == 4 else b"\x20\x01\x0d\xb8"
    source, target = (first + bench.octets(size - len(first)) for _ in range(2))
    ports = b"".join(bench.rng.randrange(10_000, 60_000).to_bytes(2) for _ in range(2))
    return Flow(version, protocol, source, target, ports if protocol in {TCP, UDP} else b"")


def arriving(bench: Bench, packet: bytes) -> bytes:
    """The frame in which an IP packet reaches the device."""
    return frames.ethernet(packet, bench.packets.mac, PEER_MAC)


def configure(bench: Bench, types: int, key: bytes) -> bool:
    """Enable these hash types, all packets on the first queue; whether the device accepts it."""
    if has(bench.features, Feature.NET_F_RSS):
        rss = RssConfig(types, 0, (0,), 1, key)
        return command(bench, CtrlClass.MQ, CtrlMq.RSS_CONFIG, RSS_CONFIG.build(rss))
    return command(bench, CtrlClass.MQ, CtrlMq.HASH_CONFIG, HASH_CONFIG.build(HashConfig(types, key)))
