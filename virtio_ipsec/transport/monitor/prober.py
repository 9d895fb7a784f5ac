"""Questions to what stands behind a driver: a connection request in a receive buffer, whose header is not as usual.

Whoever runs over the driver, be it an operating system or a script, answers a TCP SYN for its address; whether it
does tells whether the driver took the packet. Each question comes between two plain ones that must be answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from virtio_ipsec.device.device import Device
from virtio_ipsec.transport.monitor.events import Probed, Recorder
from virtio_ipsec.transport.monitor.faces import Doctor, Questions
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, ResourceType

#: Who asks: two neighbours of the driver's address, by their MAC addresses.
PEER_MACS = (bytes.fromhex("020000000a01"), bytes.fromhex("020000000a02"))
_MARKS = 0x56500000
_PORT = 9
_NONSENSE = 0xFFFF


@dataclass(frozen=True, slots=True)
class Question:
    """One probe. ``peer``: which of the two asks; ``damaged``: its TCP checksum is wrong."""

    about: str
    doctor: Doctor | None = None
    peer: int = 0
    damaged: bool = False


class Prober:
    """Asks what stands behind ``device`` and has ``address``. Its own addresses are the two that follow."""

    def __init__(
        self, device: Device, questions: Questions, recorder: Recorder, address: IPv4Address
    ) -> None:
        self._device = device
        self._questions = questions
        self.recorder = recorder
        self._address = address
        self.peers = (address + 1, address + 2)
        self._count = 0
        self._seen_inbound: set[int] = set()

    def round(self) -> Iterator[Question]:
        """All questions of this moment, with plain ones between them."""
        yield Question("plain")
        for question in self._all():
            yield question
            yield Question("plain")

    def ask(self, question: Question) -> bytes:
        """The frame that puts a question."""
        self._count += 1
        mark = _MARKS + self._count
        if question.doctor is not None:
            self._questions.headers[mark] = question.doctor
        frame = self._frame(question, mark)
        self.recorder.note(Probed(question.about, mark, frame))
        return frame

    @property
    def is_ready(self) -> bool:
        """Whether the device could deliver a packet."""
        return self._device.is_operating and bool(self._device.context.live_rx_queues)

    @property
    def inbound(self) -> frozenset[int]:
        """The inbound SAs of now."""
        return frozenset(self._device.context.inbound)

    def watch_sas(self) -> None:
        """Take note of the inbound SAs of now: those that are gone later are asked about."""
        self._seen_inbound |= set(self._device.context.inbound)

    def hear(self, frame: bytes) -> list[bytes]:
        """Answers to a frame that the driver sent: where we are, when it asks."""
        if frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\1":
            return []
        for address, mac in zip(self.peers, PEER_MACS, strict=True):
            if frame[38:42] == address.packed:
                head = frame[6:12] + mac + frame[12:20] + b"\0\2"
                return [head + mac + address.packed + frame[22:32]]
        return []

    # The questions.

    def _all(self) -> Iterator[Question]:
        context = self._device.context
        size, dialect = context.header.size, context.dialect
        yield Question("flag", _with(flags=1 << 7))
        yield Question("checksum fields", _with(csum_start=_NONSENSE, csum_offset=_NONSENSE))
        yield Question("header length", _with(hdr_len=_NONSENSE))
        yield Question("no checksum flags", _with(flags=0), damaged=True)
        if dialect.flag_udp_tunnel_csum:
            yield from self._tunnel_questions(size)
            if size >= 32 and not context.has(Feature.NET_F_OUT_NET_HEADER):
                yield Question("outer network offset", _with(outer_nh_offset=_NONSENSE))
        if context.has(Feature.NET_F_IPSEC):
            yield from self._sa_questions()

    @staticmethod
    def _tunnel_questions(size: int) -> Iterator[Question]:
        needs, valid, tunnel_csum = HdrFlag.NEEDS_CSUM, HdrFlag.DATA_VALID, HdrFlag.UDP_TUNNEL_CSUM
        four, six = GsoType.UDP_TUNNEL_IPV4, GsoType.UDP_TUNNEL_IPV6
        inner = {"gso_size": 1000, "csum_start": 34, "csum_offset": 16}
        tcp = GsoType.TCPV4
        yield Question("both tunnel bits", _with(flags=needs, gso_type=tcp | four | six, **inner))
        yield Question("tunnel, no checksum request", _with(flags=0, gso_type=tcp | four, **inner))
        yield Question("tunnel, checksum valid", _with(flags=needs | valid, gso_type=tcp | four, **inner))
        yield Question("tunnel, no segmentation", _with(flags=needs, gso_type=int(four), **inner))
        yield Question(
            "tunnel checksum alone", _with(flags=needs | tunnel_csum, csum_start=34, csum_offset=16)
        )
        if size >= 24:
            yield Question("tunnel offsets", _with(outer_th_offset=_NONSENSE, inner_nh_offset=_NONSENSE))

    def _sa_questions(self) -> Iterator[Question]:
        dialect = self._device.context.dialect
        live = sorted(self._device.context.inbound)
        good, bad = dialect.flag_security, dialect.flag_security_err
        if len(live) >= 2:
            first, second = live[:2]
            yield Question("first SA", _of_sa(good, first))
            yield Question("second SA", _of_sa(good, second), peer=1)
            yield Question("second SA, first peer", _of_sa(good, second))
            yield Question("SA in error", _of_sa(good | bad, first))
            yield Question("error alone", _of_sa(bad, first))
        gone = sorted(self._seen_inbound - set(live))
        if gone:
            yield Question("SA that is gone", _of_sa(good, gone[-1]))

    def _frame(self, question: Question, mark: int) -> bytes:
        source, target = self.peers[question.peer].packed, self._address.packed
        total = 40
        ip = bytearray(
            b"\x45\0" + total.to_bytes(2, "big") + (mark & 0xFFFF).to_bytes(2, "big") + b"\0\0\x40\6\0\0"
        )
        ip += source + target
        ip[10:12] = _inverse(ip).to_bytes(2, "big")
        port = 0xA000 + (mark & 0xFFF)
        tcp = bytearray(port.to_bytes(2, "big") + _PORT.to_bytes(2, "big") + mark.to_bytes(4, "big"))
        tcp += bytes(4) + b"\x50\x02\x20\x00" + bytes(4)
        tcp[16:18] = _inverse(source + target + b"\0\6\0\x14" + tcp).to_bytes(2, "big")
        if question.damaged:
            tcp[16] ^= 0x5A
        return self._device.config.mac + PEER_MACS[question.peer] + b"\x08\0" + bytes(ip + tcp)


def _with(**fields: int) -> Doctor:
    return lambda header: replace(header, **fields)


def _of_sa(flags: int, number: int) -> Doctor:
    def doctor(header: NetHdr) -> NetHdr:
        kind = ResourceType.NET_IPSEC_INB_SA
        return replace(header, flags=header.flags | flags, resource_id=number, resource_type=kind)

    return doctor


def _inverse(data: bytes | bytearray) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
