"""Our own driver at work before a watched device: a script that brings every situation about that judges look for.

Each step stands for itself: what a device does not have, or refuses, ends only its step. Behind the driver is a stack
that answers connection requests, as that of an operating system would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, cast

from virtio_ipsec.conformance.frames import TCP, UDP, Shape, checksum, ethernet, packet
from virtio_ipsec.conformance.monitor.script_members import Owning
from virtio_ipsec.driver.driver import Driver, Received
from virtio_ipsec.driver.flows import LENGTHS
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.queues import RequestQueue
from virtio_ipsec.driver.sas import SaHandle
from virtio_ipsec.driver.transmit import PLAIN, Offload
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.transport.monitor.faces import FACES, Face
from virtio_ipsec.transport.monitor.listen import watched_pci
from virtio_ipsec.transport.monitor.loopback import WatchedLoopback
from virtio_ipsec.transport.monitor.prober import Prober
from virtio_ipsec.wire.admin import ADMIN_COMMAND, RESOURCE_HEADER, AdminCommand, ResourceHeader
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.flow_filter import Selector
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import (
    AeadAlgo,
    CipherAlgo,
    Feature,
    FfAction,
    GroupType,
    IpsecMode,
    IpsecOption,
    MacAlgo,
    Opcode,
    ResourceType,
    SelectorType,
    Status,
    has,
)
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4

#: Who the stack is; its neighbours have the next two addresses.
ADDRESS = IPv4Address("192.0.2.10")
PEER = bytes.fromhex("020000000a01")
#: Faces that show something more as PCI functions: both ring formats.
PCI_FACES = frozenset({"full", "split"})
_TUNNEL = TunnelIPv4(IPv4Address("192.0.2.10"), IPv4Address("192.0.2.20"))
_VXLAN = b"\x08\0\0\0\0\0\x01\0"
_VXLAN_PORT = 4789
#: Offset of the inner network header of a VXLAN frame over IPv4.
_INNER_AT = 14 + 20 + 8 + 8 + 14
_CWR = 0x80
_DROPPED_PORT = 7777


class Hands:
    """What the driver reaches the device by: passes everything on."""

    def __init__(self, link: Link, before_driver_ok: Callable[[], None]) -> None:
        self._link = link
        self._before_driver_ok = before_driver_ok

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def write_status(self, value: int) -> None:
        """What the script has to set up comes before DRIVER_OK."""
        if value & Status.DRIVER_OK:
            self._before_driver_ok()
        self._link.write_status(value)


class Script(Owning):
    """One device, from the first reset to the driver's end. ``rng(n)``: ``n`` octets for keys; ``ask(script)`` lets
    questions arrive and calls :meth:`receive` after each."""

    def __init__(
        self, link: Link, dialect: Dialect, rng: Callable[[int], bytes], ask: Callable[[Script], None]
    ) -> None:
        self.link = link
        self.dialect = dialect
        self.rng = rng
        self.ask = ask
        self.hands = self.new_hands()
        self.driver = self.new_driver()
        #: Inbound SA -> the outbound one that belongs to it.
        self.pairs: dict[SaHandle, SaHandle] = {}
        self.outbound: list[SaHandle] = []
        self.inbound: list[SaHandle] = []
        self._second: RequestQueue | None = None
        self._spi = 0x1000

    def new_hands(self) -> Hands:
        """The driver's way to the device."""
        return Hands(self.link, self.before_driver_ok)

    def new_driver(self) -> Driver:
        """The driver."""
        return Driver(cast(Link, self.hands), self.dialect, config=self.config)

    def steps(self) -> Iterator[Callable[[], None]]:
        """What is done, in this order."""
        yield self.start
        yield self.create_sas
        yield self.create_flows
        yield self.send_plain
        yield self.send_for_segmentation
        yield self.send_tunnelled
        yield self.send_protected
        yield self.answer_everything
        yield self.change_sas
        yield self.destroy_everything
        yield self.answer_about_the_past
        yield self.order_two_queues
        yield self.reset_queues
        yield self.own_members
        yield self.lock_lists
        yield self.stop

    def play(self) -> None:
        """All steps."""
        for step in self.steps():
            with suppress(VirtioIpsecError):
                step()

    # Life and death.

    def start(self) -> None:
        """Up to DRIVER_OK and its capabilities; once more where that fails."""
        try:
            self.driver.start()
        except VirtioIpsecError:
            self.driver.start()

    def before_driver_ok(self) -> None:
        """A second administration queue, where the device has one."""
        link = cast(Link, self.hands)
        features = link.driver_features()
        if self._second is None and link.admin_queue_num() > 1 and has(features, Feature.F_ADMIN_VQ):
            index = link.admin_queue_index() + 1
            layout = allocate_layout(link.allocator, 16, features)
            ring = driver_queue(link.memory, layout, features)
            link.enable_queue(index, layout)
            self._second = RequestQueue(link, index, ring, polls=4, poll_timeout=0.0)

    def stop(self) -> None:
        """The end: a reset."""
        self.driver.stop()

    # Control.

    def sa(self, mode: IpsecMode = IpsecMode.ESP_TRANSPORT, **fields: Any) -> IpsecSa:
        """An SA with AES-GCM and a key of its own."""
        self._spi += 1
        tunnel = mode is IpsecMode.ESP_TUNNEL
        sa = IpsecSa(
            mode=mode,
            direction=0,
            spi=self._spi,
            salt=self.rng(4),
            param=_TUNNEL if tunnel else NO_TUNNEL,
            cipher_algo=AeadAlgo.GCM,
            cipher_key=self.rng(16),
            replay_win_sz=64,
        )
        return replace(sa, **fields)

    def create_sas(self) -> None:
        """Two SAs in each direction; on the way the device refuses some in ways that nobody knows."""
        hmac: dict[str, Any] = {
            "cipher_algo": CipherAlgo.AES_CBC,
            "auth_algo": MacAlgo.HMAC_SHA_256,
            "auth_key": self.rng(32),
        }
        self.outbound.append(self.driver.sas.create_outbound(self.sa(IpsecMode.ESP_TUNNEL)))
        self.inbound.append(self.driver.sas.create_inbound(self.sa(IpsecMode.ESP_TUNNEL)))
        self.inbound.append(self.driver.sas.create_inbound(self.sa()))
        for _ in range(2):
            with suppress(VirtioIpsecError):
                self.use_refused(self.driver.sas.create_outbound(self.sa()))
        self.outbound.append(self.driver.sas.create_outbound(self.sa(**hmac)))
        self.pairs = dict(zip(self.inbound, self.outbound, strict=True))

    def use_refused(self, sa: SaHandle) -> None:
        """An SA that the device has refused, for a driver that takes no notice of it."""
        self.driver.send(self.frame(Shape(4, UDP)), sa)

    def create_flows(self) -> None:
        """Rules that feed the inbound SAs, and some that drop what nobody sends."""
        flows = self.driver.flows
        for sa in self.inbound:
            flows.protect(sa, versions=(4, 6))
        group = flows.group(100)
        for kind, number in ((SelectorType.TCP, TCP), (SelectorType.UDP, UDP)):
            classifier = flows.classifier(transport_selectors(kind))
            for port in (_DROPPED_PORT, _DROPPED_PORT + 1):
                flows.rule(group, classifier, transport_keys(kind, number, port), FfAction.DROP)

    def change_sas(self) -> None:
        """MODIFY and QUERY."""
        life = Lifetime(packets_soft_limit=1 << 30, packets_hard_limit=1 << 31)
        for sa in self.outbound:
            self.driver.sas.modify(sa, life=life, options=sa.params.options | IpsecOption.SA_LIFETIME)
            self.driver.sas.query(sa)

    def destroy_everything(self) -> None:
        """Rules, then the SAs that they feed, then the rest."""
        self.receive()
        for sa in self.inbound:
            self.driver.destroy_inbound(sa)
        for sa in self.outbound:
            self.driver.sas.destroy(sa)
        self.driver.flows.clear()

    def order_two_queues(self) -> None:
        """A group that one administration queue makes and the other one takes away."""
        second, admin = self._second, self.driver.session.admin
        if second is None or admin is None:
            return
        group = self.driver.flows.group(7)
        data = RESOURCE_HEADER.build(ResourceHeader(ResourceType.NET_FF_GROUP, group.id))
        self.destroy_over(second, ADMIN_COMMAND.build(_command(Opcode.RESOURCE_OBJ_DESTROY, data)))

    def destroy_over(self, second: RequestQueue, readable: bytes) -> None:
        """The DESTROY on the other queue, once the CREATE has been answered."""
        second.request(readable, 8)

    def reset_queues(self) -> None:
        """Both queues of the first pair anew, and a packet over them."""
        self.driver.reset_pair(0)
        self.driver.send(self.frame(Shape(4, UDP)))

    def lock_lists(self) -> None:
        """The list of commands is closed; others go on."""
        admin = self.driver.session.admin
        if admin is not None:
            admin.list_use(admin.opcodes - {Opcode.LIST_QUERY, Opcode.LIST_USE})
            self.after_lock()

    def after_lock(self) -> None:
        """A command that is still allowed."""
        if self.driver.session.admin is not None:
            self.driver.session.admin.cap_ids()

    # Packets.

    def frame(self, shape: Shape, payload: bytes = bytes(64)) -> bytes:
        """A frame of the stack to its neighbour."""
        return ethernet(packet(payload, shape), PEER, self.driver.net_config.mac)

    def send(self, frame: bytes, sa: SaHandle | None = None, **offload: Any) -> None:
        """One packet, if the driver lets it go."""
        with suppress(VirtioIpsecError):
            self.driver.send(frame, sa, offload=Offload(**offload) if offload else PLAIN)

    def send_plain(self) -> None:
        """Packets without and with a request for the checksum."""
        for version in (4, 6):
            for protocol in (UDP, TCP):
                shape = Shape(version, protocol)
                self.send(self.frame(shape))
                self.send(self.frame(shape), checksum=True)

    def send_for_segmentation(self) -> None:
        """TCP and UDP to be cut up, TCP with CWR among it."""
        body = bytes(3000)
        for version in (4, 6):
            self.send(self.frame(Shape(version, TCP), body), gso_size=1000)
            self.send(self.frame(Shape(version, UDP), body), gso_size=1000)
        self.send(self.frame(Shape(4, TCP, flags=0x18 | _CWR), body), gso_size=1000)

    def send_tunnelled(self) -> None:
        """TCP in VXLAN to be cut up, the outer checksum absent or left to the device."""
        for version in (4, 6):
            inner = self.frame(Shape(version, TCP), bytes(2000))
            outer = self.frame(Shape(4, UDP, dport=_VXLAN_PORT), _VXLAN + inner)
            for left_open in (False, True):
                self.send(outer, gso_size=800, inner_network=_INNER_AT, outer_checksum=left_open)

    def send_protected(self) -> None:
        """Packets for each outbound SA."""
        for sa in self.outbound:
            self.send(self.frame(Shape(4, UDP)), sa)
            self.send(self.frame(Shape(4, TCP), bytes(3000)), sa, gso_size=1000)

    # The stack.

    def receive(self) -> None:
        """Answer what has arrived."""
        for received in self.driver.receive():
            reply = answer_to(received)
            if reply is not None:
                self.answer(received, reply)

    def answer(self, received: Received, reply: bytes) -> None:
        """Send an answer: under the SA that belongs to the one it came by."""
        self.send(reply, self.pairs.get(received.sa) if received.protected and received.sa else None)

    def answer_everything(self) -> None:
        """What the device has to ask."""
        self.ask(self)

    def answer_about_the_past(self) -> None:
        """The same, now that SAs are gone."""
        self.ask(self)


def perform(
    recorder: Recorder,
    rng: Callable[[int], bytes],
    faces: Iterable[Face] = tuple(FACES.values()),
    script: type[Script] = Script,
) -> None:
    """The script before a device with each of these faces, in this process."""
    for face in faces:
        link = WatchedLoopback(face, recorder, rng)
        prober = Prober(link.device, link.questions, recorder, ADDRESS)

        def ask(actor: Script, link: WatchedLoopback = link, prober: Prober = prober) -> None:
            prober.watch_sas()
            for question in prober.round():
                link.inject(prober.ask(question))
                actor.receive()

        script(link, recorder.dialect, rng, ask).play()
        link.close()


def perform_over_pci(
    recorder: Recorder,
    rng: Callable[[int], bytes],
    faces: Iterable[Face] = (FACES["full"], FACES["split"]),
    script: type[Script] = Script,
) -> None:
    """The script before PCI functions in this process: registers are accessed one by one. No questions arrive."""
    for face in faces:
        with watched_pci(face, recorder, rng) as link:
            script(link, recorder.dialect, rng, lambda script: None).play()


def answer_to(received: Received) -> bytes | None:
    """What a TCP stack answers to a connection request for a port where nobody listens; None to anything else, and to
    one whose checksum is wrong."""
    frame = received.frame
    if frame[12:15] != b"\x08\0\x45" or frame[23] != TCP or not frame[47] & 2:
        return None
    segment = frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
    pseudo = frame[26:34] + b"\0\6" + len(segment).to_bytes(2, "big")
    if not received.checksum_valid and checksum(pseudo + segment):
        return None
    number = (int.from_bytes(segment[4:8], "big") + 1) & 0xFFFFFFFF
    tcp = bytearray(segment[2:4] + segment[:2] + bytes(4) + number.to_bytes(4, "big"))
    tcp += b"\x50\x14" + bytes(6)
    addresses = frame[30:34] + frame[26:30]
    tcp[16:18] = checksum(addresses + b"\0\6\0\x14" + bytes(tcp)).to_bytes(2, "big")
    head = bytearray(b"\x45\0\0\x28" + bytes(4) + b"\x40\6\0\0" + addresses)
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return frame[6:12] + frame[:6] + b"\x08\0" + bytes(head + tcp)


def transport_selectors(kind: SelectorType) -> tuple[Selector, ...]:
    """Ethernet, IPv4, and the destination port of TCP or UDP."""
    return (
        Selector(SelectorType.ETH, 0, bytes(12) + b"\xff\xff"),
        Selector(SelectorType.IPV4, 0, (bytes(9) + b"\xff").ljust(20, b"\0")),
        Selector(kind, 0, b"\0\0\xff\xff".ljust(LENGTHS[kind], b"\0")),
    )


def transport_keys(kind: SelectorType, protocol: int, port: int) -> bytes:
    """The keys to :func:`transport_selectors`."""
    network = (bytes(9) + bytes((protocol,))).ljust(20, b"\0")
    return bytes(12) + b"\x08\0" + network + (b"\0\0" + port.to_bytes(2, "big")).ljust(LENGTHS[kind], b"\0")


def _command(opcode: int, data: bytes) -> AdminCommand:
    return AdminCommand(opcode, GroupType.SELF, 0, data)
