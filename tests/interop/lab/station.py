"""The other end of a case as a few lines of Python on the wire: seals with one SA, opens with the other.

The kernel of a guest is the independent judge of every protection (``xfrm``); here it is counted and timed what comes
back, so a station of our own is enough, and tshark reads the same wire.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from ipaddress import ip_address

from lab.cases import PEER_MAC, UNDERLAY, UNDERLAY_MAC, Case, configuration
from lab.checker import as_received
from lab.wire import Port

from virtio_ipsec.errors import PacketError
from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.policy.config import parse
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Direction
from virtio_ipsec.wire.tunnel import TunnelIPv4

_MAC = bytes.fromhex(PEER_MAC.replace(":", ""))
_DEVICE_MAC = bytes.fromhex(UNDERLAY_MAC.replace(":", ""))
_ADDRESS = ip_address(UNDERLAY[4][1]).packed
MARK = b"numbered"


def sas_of(cases: tuple[Case, ...]) -> list[IpsecSa]:
    return [spec.sa for spec in parse(configuration(cases)).sas]


def numbered(source: str, target: str, sport: int, number: int, size: int = 64) -> bytes:
    """An IPv4 UDP packet of ``size`` octets or a little more, whose payload follows from its number."""
    payload = MARK + number.to_bytes(8) + bytes((number * 7 + at) & 0xFF for at in range(max(0, size - 44)))
    length = 8 + len(payload)
    udp = sport.to_bytes(2) + (9).to_bytes(2) + length.to_bytes(2) + bytes(2) + payload
    ends = ip_address(source).packed + ip_address(target).packed
    total = ip.checksum(ends + bytes([0, 17]) + length.to_bytes(2) + udp) or 0xFFFF
    udp = udp[:6] + total.to_bytes(2) + udp[8:]
    head = bytes([0x45, 0]) + (20 + length).to_bytes(2) + bytes(4) + bytes([64, 17]) + bytes(2) + ends
    return head[:10] + ip.checksum(head).to_bytes(2) + head[12:] + udp


def number_of(packet: bytes) -> int | None:
    """The number in such a packet, from either direction; None when it is no such packet or is damaged."""
    if len(packet) < 44 or packet[9] != 17 or packet[28:36] != MARK:
        return None
    number = int.from_bytes(packet[36:44])
    body = packet[44:]
    return number if body == bytes((number * 7 + at) & 0xFF for at in range(len(body))) else None


class Station:
    """Guest B's place on the wire, for one IPv4 tunnel case with GCM."""

    def __init__(self, port: Port, case: Case) -> None:
        self.case = case
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(port.station)
        self._remote = port.socket.getsockname()
        ours, theirs = (
            spec.sa for spec in sorted(parse(configuration([case])).sas, key=lambda s: s.sa.direction)
        )
        if ours.direction != Direction.OUTBOUND:
            ours, theirs = theirs, ours
        self._opens = InboundSa(SaParams.from_wire(as_received(ours), V14))
        ends = [ip_address(end) for end in case.ends]
        param = TunnelIPv4(ends[1], ends[0])  # type: ignore[arg-type]
        sending = replace(theirs, direction=Direction.OUTBOUND, param=param, replay_win_sz=0)
        self._seals = OutboundSa(SaParams.from_wire(sending, V14), os.urandom)
        self.refused: list[str] = []

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, packet: bytes) -> None:
        sealed = outbound(self._seals, packet)
        self._socket.sendto(_DEVICE_MAC + _MAC + b"\x08\x00" + sealed, self._remote)

    def receive(self, timeout: float) -> bytes | None:
        """The next inner packet; ARP is answered meanwhile. None: nothing in time."""
        limit = time.monotonic() + timeout
        while (left := limit - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(65535)
            except TimeoutError:
                return None
            if frame[12:14] == b"\x08\x06":
                self._answer_arp(frame)
            elif frame[12:14] == b"\x08\x00" and (opened := self._open(frame[14:])):
                return opened
        return None

    def _open(self, packet: bytes) -> bytes | None:
        header = find_spi(packet)
        if header is None or header.spi != self.case.outbound_spi:
            return None
        try:
            return inbound(self._opens, packet, header).packet
        except PacketError as error:
            self.refused.append(error.reason.value)
            return None

    def _answer_arp(self, frame: bytes) -> None:
        if frame[20:22] == b"\0\1" and frame[38:42] == _ADDRESS:
            body = frame[14:20] + b"\0\2" + _MAC + _ADDRESS + frame[22:32]
            self._socket.sendto(frame[6:12] + _MAC + b"\x08\x06" + body, self._remote)
