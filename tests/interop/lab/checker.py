"""Judges a capture of the protected side: what must hold for every packet on it, whoever crashed or moved meanwhile.

For each SA of both directions, over the whole capture: no sequence number twice, no (key, salt, IV) twice, every
packet opens with the Python SAs, a receiver with the usual window of 64 takes each one, and what comes out is sound
(checksums of the inner packet). Nothing that ought to be protected is seen in the clear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

from virtio_ipsec.errors import PacketError
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.process import IpsecHeader, find_spi, inbound
from virtio_ipsec.ipsec.sa import InboundSa, SaParams
from virtio_ipsec.transport.pcap import open_capture
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelRaw

PEER_WINDOW = 64
ETHERNET = 14
MOST_PROBLEMS = 20


@dataclass
class Counts:
    """One SA on the wire."""

    packets: int = 0
    lowest: int = 0
    highest: int = 0
    #: Numbers skipped, as after a crash.
    gaps: int = 0


@dataclass
class Report:
    """The judgement: empty ``problems`` is a pass, if ``sas`` holds what was expected to be seen."""

    frames: int = 0
    sas: dict[int, Counts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)

    def problem(self, kind: str, text: str) -> None:
        self.problem_counts[kind] += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(f"{kind}: {text}")

    def require_clean(self) -> None:
        """AssertionError with what was found."""
        assert not self.problem_counts, f"{dict(self.problem_counts)}\n" + "\n".join(self.problems)


class Reassembly:
    """Outer fragments put together: both versions, any order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[bytes, bytes, int, int], dict[int, bytes]] = {}
        self._length: dict[tuple[bytes, bytes, int, int], int] = {}

    def add(self, packet: bytes) -> bytes | None:
        """The whole packet, as soon as its last fragment is there; a packet that is none at once."""
        if packet[0] >> 4 == 4:
            word = int.from_bytes(packet[6:8])
            offset, more = (word & 0x1FFF) * 8, bool(word & 0x2000)
            if not offset and not more:
                return packet
            head_len = (packet[0] & 15) * 4
            total = int.from_bytes(packet[2:4])
            key = (packet[12:16], packet[16:20], int.from_bytes(packet[4:6]), packet[9])
            body, head = packet[head_len:total], packet[:head_len]
        else:
            if packet[6] != 44:
                return packet
            word = int.from_bytes(packet[42:44])
            offset, more = word & 0xFFF8, bool(word & 1)
            key = (packet[8:24], packet[24:40], int.from_bytes(packet[44:48]), packet[40])
            body, head = (
                packet[48 : 40 + int.from_bytes(packet[4:6])],
                packet[:6] + packet[40:41] + packet[7:40],
            )
        parts = self._parts.setdefault(key, {})
        parts[offset] = body
        if not offset:
            parts[-1] = head
        if not more:
            self._length[key] = offset + len(body)
        length = self._length.get(key)
        data = b"".join(parts[at] for at in sorted(parts) if at >= 0)
        if length is None or len(data) != length or -1 not in parts:
            return None
        head = parts[-1]
        del self._parts[key], self._length[key]
        if head[0] >> 4 == 6:
            return head[:4] + length.to_bytes(2) + head[6:] + data
        head = (
            head[:2]
            + (len(head) + length).to_bytes(2)
            + head[4:6]
            + bytes(2)
            + head[8:10]
            + bytes(2)
            + head[12:]
        )
        return head[:10] + ip.checksum(head).to_bytes(2) + head[12:] + data


class Checker:
    """Takes frames in the order of the wire. ``protected``: networks whose packets must not be seen in the clear.

    ``inner`` is called with (SPI, inner packet) for every packet that was opened.
    """

    def __init__(
        self, sas: Iterable[IpsecSa], protected: Sequence[IPv4Network | IPv6Network] = (),
        inner: Callable[[int, bytes], None] | None = None,
    ) -> None:  # fmt: skip
        self.report = Report()
        self._protected = protected
        self._inner = inner
        self._sas: dict[tuple[int, int], InboundSa] = {}
        self._keys: dict[tuple[int, int], set[bytes]] = {}
        by_key: dict[tuple[bytes, bytes, bytes], set[bytes]] = {}
        for sa in sas:
            params = SaParams.from_wire(as_received(sa), V14)
            place = (params.protocol, params.spi)
            self._sas[place] = InboundSa(params)
            key = (params.cipher_key, params.auth_key, params.salt[: params.suite.salt_len])
            self._keys[place] = by_key.setdefault(key, set())
        self._numbers: dict[tuple[int, int], set[int]] = {place: set() for place in self._sas}
        self._reassembly = Reassembly()

    def frame(self, frame: bytes) -> None:
        self.report.frames += 1
        at = ETHERNET
        kind = int.from_bytes(frame[12:14])
        if kind == 0x8100:
            at, kind = 18, int.from_bytes(frame[16:18])
        if kind not in (0x0800, 0x86DD):
            return
        packet = self._reassembly.add(frame[at:])
        if packet is None:
            return
        header = find_spi(packet)
        sa = self._sas.get((header.protocol, header.spi)) if header else None
        if header is None or sa is None:
            self._in_the_clear(packet)
        else:
            self._open(sa, header, packet)

    def _in_the_clear(self, packet: bytes) -> None:
        version = packet[0] >> 4
        if version == 6 and is_neighbour_discovery(packet):
            return
        source, target = (packet[12:16], packet[16:20]) if version == 4 else (packet[8:24], packet[24:40])
        ends = [ip_address(source), ip_address(target)]
        for network in self._protected:
            if any(end.version == network.version and end in network for end in ends):
                self.report.problem("in the clear", packet[:48].hex())
                return

    def _open(self, sa: InboundSa, header: IpsecHeader, packet: bytes) -> None:
        spi, place = header.spi, (header.protocol, header.spi)
        where = f"SPI {spi:#x} number {header.sequence}"
        try:
            opened = inbound(sa, packet, header)
        except PacketError as error:
            seen = header.sequence in self._numbers[place]
            self.report.problem(
                "sequence twice" if seen else "refused by a receiver", f"{where}: {error.reason.value}"
            )
            return
        counts = self.report.sas.setdefault(spi, Counts())
        numbers = self._numbers[place]
        if opened.sequence in numbers:
            self.report.problem("sequence twice", where)
        numbers.add(opened.sequence)
        if counts.packets and opened.sequence > counts.highest + 1:
            counts.gaps += 1
        counts.lowest = min(counts.lowest, opened.sequence) if counts.packets else opened.sequence
        counts.highest = max(counts.highest, opened.sequence)
        counts.packets += 1
        iv = header.packet.data[header.offset + 8 : header.offset + 8 + sa.params.suite.iv_len]
        if iv and header.protocol == ip.ESP:
            if iv in self._keys[place]:
                self.report.problem("IV twice", f"{where}: {iv.hex()}")
            self._keys[place].add(iv)
        fault = unsound(opened.packet)
        if fault:
            self.report.problem("inner packet", f"{where}: {fault}")
        if self._inner is not None:
            self._inner(spi, opened.packet)


def as_received(sa: IpsecSa) -> IpsecSa:
    """The SA of the one who gets its packets."""
    return replace(
        sa, direction=Direction.INBOUND, param=TunnelRaw(0, b""), replay_win_sz=PEER_WINDOW, life=Lifetime(),
        options=sa.options & (IpsecOption.ESN | IpsecOption.UDP_ENCAP),
    )  # fmt: skip


def is_neighbour_discovery(packet: bytes) -> bool:
    """Router and neighbour messages, and multicast listener reports (behind a hop-by-hop header)."""
    at = 40 + (8 if packet[6] == 0 else 0)
    return packet[40 if packet[6] == 0 else 6] == 58 and packet[at : at + 1] in (
        b"\x82", b"\x83", b"\x84", b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f",
    )  # fmt: skip


def unsound(data: bytes) -> str:
    """What is wrong with an inner packet's checksums; empty when nothing is."""
    try:
        packet = ip.parse(data)
        headers = ip.chain(packet)
    except PacketError as error:
        return str(error)
    if packet.version == 4 and ip.checksum(data[: packet.header_len]):
        return "IPv4 header checksum"
    if ip.is_fragment(packet, headers) or headers.extensions:
        return ""
    payload = packet.data[headers.offset :]
    if headers.protocol == 1:
        return "ICMP checksum" if ip.checksum(payload) else ""
    if headers.protocol not in (6, 17, 58) or (headers.protocol == 17 and payload[6:8] == b"\0\0"):
        return ""
    addresses = data[12:20] if packet.version == 4 else data[8:40]
    pseudo = addresses + len(payload).to_bytes(4) + bytes(3) + bytes([headers.protocol])
    return f"checksum of protocol {headers.protocol}" if ip.checksum(pseudo + payload) else ""


def check(
    capture: Path, sas: Iterable[IpsecSa], protected: Sequence[IPv4Network | IPv6Network] = (),
    inner: Callable[[int, bytes], None] | None = None, interfaces: frozenset[str] | None = None,
) -> Report:  # fmt: skip
    """Judge a file; ``interfaces`` restricts it to frames sent by some stations."""
    checker = Checker(sas, protected, inner)
    with capture.open("rb") as stream:
        reader = open_capture(stream)
        for packet in reader:
            if interfaces is None or reader.interfaces[packet.interface].name in interfaces:
                checker.frame(packet.data)
    return checker.report
