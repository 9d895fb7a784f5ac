"""Real frames through two devices back to back, in every IPsec mode and both directions.

Each frame of a capture is sent by one driver, sealed by its device, opened by the other device and compared with
what was sent. TCP and UDP frames go with the checksum left to the device, frames over the MTU as one
segmentation request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from virtio_ipsec.crypto.algorithms import Protocol, by_name
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.driver import DriverConfig, Offload, SaHandle
from virtio_ipsec.driver.frames import TCP, UDP, Headers, complete_checksum, parse_frame, pseudo_sum
from virtio_ipsec.transport.keyfile import Peers
from virtio_ipsec.transport.pair import End, Pair
from virtio_ipsec.wire.dialect import V14, Dialect
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import CtrlRx, Direction, IpsecMode
from virtio_ipsec.wire.redact import admin_secrets, masked_hex, reply_secrets
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelParam, TunnelRaw

Rng = Callable[[int], bytes]

ETHERNET = 14
MTU = 1500
#: The underlay carries what protection adds to a packet of 1500 bytes.
UNDERLAY_MTU = 2000
SEGMENT = 1400
_GATES4 = (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
_GATES6 = (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"))


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the demo: a mode, an algorithm and, for tunnels, the IP version of the outer header."""

    mode: IpsecMode
    suite: str
    key_octets: int
    outer: int = 4

    @property
    def title(self) -> str:
        """For people."""
        protocol, form = self.mode.name.split("_")
        bits = f" {self.key_octets * 8} bit" if self.key_octets else ""
        outside = f", IPv{self.outer} outside" if self.mode in _TUNNELS else ""
        return f"{protocol} {form.lower()}, {self.suite}{bits}{outside}"


_TUNNELS = frozenset({IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL})
_AH = frozenset({IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT})

STAGES = (
    Stage(IpsecMode.ESP_TUNNEL, "aes-gcm-16", 16),
    Stage(IpsecMode.ESP_TUNNEL, "aes-cbc+hmac-sha2-256-128", 32, outer=6),
    Stage(IpsecMode.ESP_TRANSPORT, "aes-gcm-16", 32),
    Stage(IpsecMode.AH_TUNNEL, "hmac-sha2-256-128", 0),
    Stage(IpsecMode.AH_TRANSPORT, "hmac-sha1-96", 0),
)


@dataclass(slots=True)
class StageResult:
    """What became of the frames of one stage, both directions together.

    ``plain`` frames are not IP and cross in clear; ``unsuited`` are fragments, which transport mode must refuse
    (RFC 4303 3.3.4) and which are therefore not sent. ``mismatches`` say which frame did not arrive as sent.
    """

    stage: Stage
    sent: int = 0
    plain: int = 0
    unsuited: int = 0
    on_wire: int = 0
    opened: int = 0
    octets: int = 0
    mismatches: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An administration command and its reply in hex, key and salt bytes written as ``xx``."""

    device: str
    readable: str
    written: str


@dataclass(frozen=True, slots=True)
class Demo:
    """All that the demo has to show."""

    results: tuple[StageResult, ...]
    pair: Pair
    peers: tuple[Peers, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def passed(self) -> bool:
        """Whether every frame arrived as it was sent, protected where it had to be."""
        return all(result.sent and not result.mismatches for result in self.results)


class _RecordedDevice(Device):
    """A device that keeps its administration traffic, masked."""

    def __init__(self, config: DeviceConfig, rng: Rng, name: str, log: list[Exchange]) -> None:
        super().__init__(config, rng, fast_path("auto", rng))
        self._name, self._log = name, log

    def admin(self, readable: bytes, writable_len: int) -> bytes:
        written = super().admin(readable, writable_len)
        dialect = self.config.dialect
        self._log.append(
            Exchange(
                self._name,
                masked_hex(readable, admin_secrets(readable, dialect)),
                masked_hex(written, reply_secrets(readable, written, dialect)),
            )
        )
        return written


def run_demo(
    frames: Iterable[bytes],
    *,
    dialect: Dialect = V14,
    rng: Rng = os.urandom,
    done: Callable[[StageResult], None] = lambda result: None,
) -> Demo:
    """Send ``frames`` (Ethernet, from host A to host B) through every stage; ``done`` hears of each result."""
    wanted = list(frames)
    host_a, host_b = wanted[0][6:12], next(f[0:6] for f in wanted if not f[0] & 1)
    log: list[Exchange] = []
    left, right = (
        _RecordedDevice(DeviceConfig(dialect=dialect, mac=mac), rng, name, log)
        for mac, name in ((host_a, "left"), (host_b, "right"))
    )
    pair = Pair(left, right, dialect=dialect, config=DriverConfig(mtu=UNDERLAY_MTU))
    pair.start()
    for end in (pair.left, pair.right):
        end.driver.control.receive_mode(CtrlRx.ALLMULTI, True)
    results: list[StageResult] = []
    peers: list[Peers] = []
    for number, stage in enumerate(STAGES):
        result = StageResult(stage)
        for sender, receiver in ((pair.left, pair.right), (pair.right, pair.left)):
            backwards = sender is pair.right
            sa = _sa(stage, 0x1000 + 16 * number + backwards, rng, backwards=backwards)
            out = sender.driver.sas.create_outbound(sa)
            inbound = receiver.driver.sas.create_inbound(sa)
            if not dialect.sa_lookup_without_rule:
                receiver.driver.flows.protect(inbound)
            peers += _peers(stage, sa)
            for index, frame in enumerate(wanted):
                turned = frame[6:12] + frame[0:6] + frame[12:] if backwards and not frame[0] & 1 else frame
                _send(pair, sender, receiver, out, inbound, turned, f"frame {index}", result)
            sender.driver.sas.destroy(out)
            receiver.driver.destroy_inbound(inbound)
        results.append(result)
        done(result)
    return Demo(tuple(results), pair, tuple(peers), tuple(log))


def _sa(stage: Stage, spi: int, rng: Rng, *, backwards: bool) -> IpsecSa:
    suite = by_name(stage.suite, Protocol.AH if stage.mode in _AH else Protocol.ESP)
    param: TunnelParam = TunnelRaw(0)
    if stage.mode in _TUNNELS:
        if stage.outer == 4:
            src, dst = reversed(_GATES4) if backwards else _GATES4
            param = TunnelIPv4(src, dst)
        else:
            source, destination = reversed(_GATES6) if backwards else _GATES6
            param = TunnelIPv6(source, destination)
    return IpsecSa(
        mode=stage.mode,
        direction=Direction.OUTBOUND,
        spi=spi,
        salt=rng(4),
        param=param,
        replay_win_sz=1024,
        cipher_algo=suite.cipher_algo,
        cipher_key=rng(stage.key_octets),
        auth_algo=suite.auth_algo,
        auth_key=rng(max(suite.auth_key_lens)),
    )


def _peers(stage: Stage, sa: IpsecSa) -> list[Peers]:
    """Lines for the key file: the outer IP version decides, which in transport mode may be either."""
    versions = (stage.outer,) if stage.mode in _TUNNELS else (4, 6)
    return [Peers(sa, version) for version in versions]


def _send(
    pair: Pair,
    sender: End,
    receiver: End,
    out: SaHandle,
    inbound: SaHandle,
    frame: bytes,
    name: str,
    result: StageResult,
) -> None:
    """One frame across the wire, and the comparison."""
    headers = parse_frame(frame)
    protect = bool(headers.version)
    if protect and result.stage.mode not in _TUNNELS and _is_fragment(frame, headers):
        result.unsuited += 1
        return
    offload = _offload(frame, headers)
    taps = len(pair.seen)
    sender.send(frame, out if protect else None, offload=offload)
    wire = [seen.frame for seen in pair.seen[taps:] if seen.where == "wire"]
    packets = receiver.receive()
    result.sent += 1
    result.plain += not protect
    result.on_wire += len(wire)
    result.opened += sum(packet.protected for packet in packets)
    result.octets += sum(len(packet.frame) for packet in packets)
    if protect and any(packet.sa is not inbound for packet in packets):
        result.mismatches.append(f"{name}: not marked with the SA that opened it")
    if protect and headers.payload + 8 <= len(frame) and result.stage.mode not in _AH:
        secret = frame[headers.payload : headers.payload + 64]
        if any(secret in sealed and len(secret.strip(b"\0")) > 8 for sealed in wire):
            result.mismatches.append(f"{name}: plaintext on the wire")
    if not _same(frame, headers, offload, [packet.frame for packet in packets]):
        result.mismatches.append(f"{name}: did not arrive as it was sent")


def _offload(frame: bytes, headers: Headers) -> Offload:
    if not headers.transport:
        return Offload()
    if len(frame) - headers.network > MTU:
        return Offload(gso_size=SEGMENT)
    return Offload(checksum=True)


def _is_fragment(frame: bytes, headers: Headers) -> bool:
    at = headers.network
    if headers.version == 4:
        return bool(int.from_bytes(frame[at + 6 : at + 8]) & 0x3FFF)
    return frame[at + 6] == 44


def _same(frame: bytes, headers: Headers, offload: Offload, arrived: list[bytes]) -> bool:
    """Whether what arrived is the frame with its checksum completed, or all of it in segments."""
    if not offload.gso_size:
        return arrived == [_completed(frame, headers) if offload.checksum else frame]
    pieces = []
    for segment in arrived:
        inner = parse_frame(segment)
        if inner.protocol != TCP or _completed(segment, inner) != segment:
            return False
        pieces.append(segment[inner.payload :])
    return b"".join(pieces) == frame[headers.payload :]


def _completed(frame: bytes, headers: Headers) -> bytes:
    """The frame with the right transport checksum."""
    data = bytearray(frame)
    at = headers.transport + headers.csum_offset
    data[at : at + 2] = pseudo_sum(data, headers, len(data) - headers.transport).to_bytes(2)
    complete_checksum(data, headers.transport, headers.csum_offset, udp=headers.protocol == UDP)
    return bytes(data)
