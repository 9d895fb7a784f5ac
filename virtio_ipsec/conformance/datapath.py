"""A device brought up for packets: capabilities set, buffers posted, SAs with a peer, rules that start IPsec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from virtio_ipsec.conformance import flows, sas
from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.flows import Flows
from virtio_ipsec.conformance.frames import UDP, ethernet, ip_of
from virtio_ipsec.conformance.packets import PEER_MAC, RxFrame
from virtio_ipsec.conformance.sas import Peer
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.crypto.algorithms import Protocol, Suite, by_name
from virtio_ipsec.errors import PacketError
from virtio_ipsec.ipsec.process import Inbound, IpsecHeader
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import (
    Direction,
    Feature,
    FfAction,
    IpsecMode,
    IpsecOption,
    ResourceType,
)
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

OUTBOUND, INBOUND = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
FAVOURITE = "aes-gcm-16"
#: SPI and sequence number.
ESP_HEADER = 8


@dataclass(frozen=True, slots=True)
class Sa:
    """An SA that the device has, and its other end."""

    id: int
    value: IpsecSa
    suite: Suite
    peer: Peer

    @property
    def spi(self) -> int:
        """The SPI."""
        return self.value.spi

    def nonce(self, header: IpsecHeader) -> bytes:
        """The IV of an ESP packet."""
        return header.packet.data[header.offset + ESP_HEADER :][: self.suite.iv_len]


class DataPath:
    """The device of a bench with IPsec and, where inbound IPsec needs it, flow filters enabled."""

    def __init__(
        self, bench: Bench, *, want: Iterable[Feature] = (), without: Iterable[Feature] = ()
    ) -> None:
        bench.start(want=want, without=without)
        self.bench = bench
        self.caps = sas.enable(bench)
        self._limits = {
            OUTBOUND: self.caps.resources.outb_sa_limit,
            INBOUND: self.caps.resources.inb_sa_limit,
        }
        self._ids = {OUTBOUND: 0, INBOUND: 0}
        self._freed: dict[int, list[int]] = {OUTBOUND: [], INBOUND: []}
        self._flows: Flows | None = None
        self._group: int | None = None
        self._opened: set[tuple[int, int, int]] = set()

    @property
    def flows(self) -> Flows:
        """The flow filter, enabled on first use. Raises Unsupported when there is none."""
        if self._flows is None:
            self._flows = Flows(self.bench)
        return self._flows

    # -- security associations ----------------------------------------------------------------------------

    def need(self, mode: IpsecMode, options: int = 0) -> None:
        """Unsupported when the device lacks the mode, or an option in it."""
        cap = self.caps.modes.get(mode)
        if cap is None:
            raise Unsupported(f"the device does not offer {mode.name}")
        if missing := options & ~cap.options:
            names = ", ".join(option.name or "" for option in IpsecOption if missing & option)
            raise Unsupported(f"the device does not offer {names or hex(missing)} in {mode.name}")

    def suite(self, mode: IpsecMode) -> str:
        """A suite that the device offers in ``mode``: AES-GCM where it can be had."""
        self.need(mode)
        names = [suite.name for suite in self.caps.suites(mode)]
        if not names:
            raise Unsupported(f"no known algorithm is offered in {mode.name}")
        return FAVOURITE if FAVOURITE in names else names[0]

    def modes(self) -> list[IpsecMode]:
        """The modes that the device offers."""
        return [mode for mode in IpsecMode if mode in self.caps.modes]

    def outbound(self, **fields: object) -> Sa:
        """A new outbound SA; ``fields`` as for :func:`.sas.make`. Raises CommandFailed, Unsupported."""
        return self._install(Direction.OUTBOUND, OUTBOUND, fields)

    def inbound(self, *, outer: TunnelIPv4 | TunnelIPv6 = sas.TUNNEL4, **fields: object) -> Sa:
        """A new inbound SA, whose peer uses ``outer`` as tunnel header. Raises CommandFailed, Unsupported."""
        return self._install(Direction.INBOUND, INBOUND, fields, outer)

    def _install(
        self,
        direction: Direction,
        type: ResourceType,
        fields: dict[str, object],
        outer: TunnelIPv4 | TunnelIPv6 = sas.TUNNEL4,
    ) -> Sa:
        mode = IpsecMode(fields.setdefault("mode", IpsecMode.ESP_TUNNEL))  # type: ignore[arg-type]
        name = str(fields.setdefault("suite", self.suite(mode)))
        value = sas.make(self.bench, direction, **fields)  # type: ignore[arg-type]
        self.need(mode, value.options)
        id = self._take(type)
        demand(sas.install(self.bench, id, value))
        suite = by_name(name, Protocol.AH if mode in sas.AH_MODES else Protocol.ESP)
        return Sa(id, value, suite, Peer(self.bench, value, outer))

    def _take(self, type: ResourceType) -> int:
        """An id that was not used before; when there is none left, one whose SA was destroyed."""
        if self._ids[type] < self._limits[type]:
            self._ids[type] += 1
            return self._ids[type] - 1
        if not self._freed[type]:
            raise Unsupported(f"the device holds no more than {self._limits[type]} SAs of type {type.name}")
        return self._freed[type].pop()

    def peer_with(self, sa: Sa, **fields: object) -> Sa:
        """The same SA with another peer, to whom some ``fields`` differ."""
        value = replace(sa.value, **fields)  # type: ignore[arg-type]
        return replace(sa, value=value, peer=Peer(self.bench, value))

    def destroy(self, sa: Sa) -> None:
        """DESTROY an SA. Raises CommandFailed."""
        type = sas.TYPES[Direction(sa.value.direction)]
        demand(self.bench.admin.destroy(type, sa.id))
        self._freed[type].append(sa.id)

    # -- transmit -----------------------------------------------------------------------------------------

    def header(self, id: int, type: int = OUTBOUND, **fields: int) -> NetHdr:
        """A transmit header that asks for an SA."""
        flags = self.bench.dialect.flag_security | fields.pop("flags", 0)
        return NetHdr(flags=flags, resource_id=id, resource_type=type, **fields)

    def frame(self, packet: bytes) -> bytes:
        """The frame in which the driver sends an IP packet."""
        return ethernet(packet, PEER_MAC, self.bench.packets.mac)

    def send(self, sa: Sa, packet: bytes) -> list[bytes]:
        """Send an IP packet through an outbound SA; the IP packets of the frames that left."""
        frames = self.bench.packets.transmit(self.frame(packet), self.header(sa.id))
        return [ip_of(frame) for frame in frames]

    # -- receive ------------------------------------------------------------------------------------------

    def wire(self, packet: bytes) -> bytes:
        """The frame in which the peer sends an IP packet."""
        return ethernet(packet, self.bench.packets.mac, PEER_MAC)

    def receive(self, *packets: bytes, action: FfAction = FfAction.IPSEC) -> list[RxFrame]:
        """Inject protected IP packets and return what is delivered.

        Where IPsec is started by rules (ledger E56) there is one, with ``action``, for packets of this kind.
        Raises CommandFailed, Unsupported.
        """
        self.bench.packets.top_up()
        if not self.bench.dialect.sa_lookup_without_rule:
            for packet in packets:
                self.start_ipsec(packet, action)
        return self.bench.packets.receive(*(self.wire(packet) for packet in packets))

    def start_ipsec(self, packet: bytes, action: FfAction = FfAction.IPSEC) -> None:
        """Make a rule that starts IPsec for packets of this IP version and protocol (and UDP port)."""
        version = packet[0] >> 4
        number = packet[9 if version == 4 else 6]
        port = int.from_bytes(packet[_header_len(packet) + 2 :][:2]) if number == UDP else 0
        if (version, number, port) in self._opened:
            return
        if self._group is None:
            self._group = self.flows.group(1)
        matches = flows.udp_port(version, port) if number == UDP else flows.protocol(version, number)
        self.flows.rule(self._group, matches, action)
        self._opened.add((version, number, port))

    # -- judging ------------------------------------------------------------------------------------------

    def is_secured(self, rx: RxFrame) -> bool:
        """Whether SECURITY is set."""
        return bool(rx.header.flags & self.bench.dialect.flag_security)

    def is_failed(self, rx: RxFrame) -> bool:
        """Whether SECURITY_ERR is set."""
        return bool(rx.header.flags & self.bench.dialect.flag_security_err)

    def is_opened(self, rx: RxFrame, packet: bytes) -> bool:
        """Whether ``packet``, which travelled sealed, was delivered in clear. The flags have cases of their own."""
        return ip_of(rx.frame) == packet

    def check_opened(self, clauses: tuple[str, ...], came: list[RxFrame], plain: bytes, what: str) -> None:
        """Check that what was delivered is ``plain`` and nothing else."""
        good = len(came) == 1 and self.bench.same(plain, ip_of(came[0].frame))
        seen = [f"flags {rx.header.flags:#x}, {ip_of(rx.frame).hex()[:160]}" for rx in came]
        for clause in clauses:
            self.bench.check(clause, good, f"{what} is delivered opened", seen)

    def check_failed(self, received: list[RxFrame], packet: bytes, why: str) -> None:
        """What has to be true of a protected packet whose processing failed (ledger E53), clause by clause.

        The device has dropped it, or delivered it as it came with the flags of an error.
        """
        bench = self.bench
        bench.reading("E53", "delivered as it came, marked" if received else "dropped")
        marked = all(map(self.is_failed, received))
        shown = [f"flags {rx.header.flags:#x}" for rx in received]
        self._check(
            ("NET-RX-DEV-32", "RFC-16"),
            len(received) <= 1 and marked,
            f"a packet with {why} is marked as failed, or dropped",
            shown,
        )
        untouched = all(bench.same(self.wire(packet), rx.frame) for rx in received)
        self._check(
            ("INF-05", "RFC-16"),
            untouched,
            f"a packet with {why} is the packet that came, if it is delivered",
            [rx.frame.hex()[:160] for rx in received],
        )
        both = all(map(self.is_secured, received))
        self._check(
            ("NET-RX-DEV-31",),
            both or not marked,
            f"SECURITY is set beside SECURITY_ERR after {why}",
            shown,
        )
        if received and bench.dialect.has_initial_esn:
            bench.reading("E99", "both flags" if both else "SECURITY_ERR alone")

    def _check(self, clauses: tuple[str, ...], holds: bool, expected: str, seen: object) -> None:
        for cited in clauses:
            if cited in self.bench.case.clauses:
                self.bench.check(cited, holds, expected, seen)


def _header_len(packet: bytes) -> int:
    return (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40


def try_open(sa: Sa, packet: bytes) -> Inbound | str:
    """What the peer makes of a packet that left: opened, or the reason why not."""
    try:
        return sa.peer.open(packet)
    except PacketError as error:
        return f"the peer refuses the packet: {error.reason.value}"


def combinations(path: DataPath, mode: IpsecMode) -> Iterator[tuple[Suite, int, int, int]]:
    """(suite, key octets, inner IP version, outer IP version) of all that the device offers in ``mode``.

    Every suite and every key length of the device, and every pair of IP versions.
    """
    cap = path.caps.modes[mode]
    pairs = [(4, 4), (6, 6), (4, 6), (6, 4)] if mode in sas.TUNNEL_MODES else [(4, 4), (6, 6)]
    number = 0
    for suite in path.caps.suites(mode):
        variable = suite.cipher_key_lens if max(suite.cipher_key_lens) else suite.auth_key_lens
        most = cap.max_cipher_key_len if max(suite.cipher_key_lens) else cap.max_auth_key_len
        for octets in sorted(length for length in variable if length <= most):
            yield suite, octets, *pairs[number % len(pairs)]
            number += 1
    while 0 < number < len(pairs):
        yield suite, octets, *pairs[number]
        number += 1


def outer_of(version: int) -> TunnelIPv4 | TunnelIPv6:
    """Tunnel parameters of an IP version."""
    return sas.TUNNEL4 if version == 4 else sas.TUNNEL6
