"""The devices that stand before a driver under test: each one shows another face, and asks other questions of it.

All of it is what a device may do and a sound driver gets over: bits, opcodes, statuses and header fields that nobody
knows, an answer that says "again", a packet that names an SA which is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.admin_frames import build_reply, parse_command, parse_object
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import Received
from virtio_ipsec.errors import AdminQualifier, AdminStatus, WireError
from virtio_ipsec.wire.admin import AdminCommand, id_bitmap_build
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Opcode, ResourceType, mask

_F = Feature
#: Feature bits that no text describes.
UNKNOWN_BITS = 1 << 71 | 1 << 127
#: Says nothing to a driver: the specification assigns no command to it.
UNKNOWN_OPCODE = 0x3D
UNKNOWN_STATUS = 99
UNKNOWN_QUALIFIER = 0x55
#: Which CREATE of an SA, counted from 1 in each life of the device, gets which answer instead of being obeyed.
ANSWERS: Mapping[int, tuple[int, int]] = MappingProxyType(
    {
        3: (AdminStatus.EAGAIN, AdminQualifier.TRYAGAIN),
        5: (UNKNOWN_STATUS, AdminQualifier.OK),
        6: (AdminStatus.EINVAL, UNKNOWN_QUALIFIER),
    }
)
#: Those that cost the driver an SA.
ROUGH = frozenset({5, 6})
_PAIRS = 2
_SA_TYPES = (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA)


@dataclass(frozen=True, slots=True)
class Face:
    """``features`` out of those that the device does, and ``beyond`` of which it only says so. ``refuses``: it lets
    no feature set pass. ``admin_queues``: how many it says that it has. ``vfs``: virtual functions that it owns where
    it is a PCI function."""

    name: str
    summary: str
    features: int = IMPLEMENTED
    beyond: int = 0
    refuses: bool = False
    admin_queues: int = 1
    vfs: int = 0

    def without(self, *features: Feature) -> Face:
        """The same without some features."""
        word = mask(*features)
        return replace(self, features=self.features & ~word, beyond=self.beyond & ~word)


FACES: Mapping[str, Face] = MappingProxyType(
    {
        face.name: face
        for face in (
            Face(
                "full",
                "everything that the device does, UDP tunnels on receive, bits 71 and 127, over PCI virtual functions",
                beyond=UNKNOWN_BITS | mask(_F.NET_F_GUEST_UDP_TUNNEL_GSO, _F.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM),
                vfs=2,
            ),
            Face(
                "split",
                "split rings, no mergeable buffers, no tunnel checksums, no header lengths; platform bits",
                IMPLEMENTED
                & ~mask(
                    _F.F_RING_PACKED,
                    _F.NET_F_MRG_RXBUF,
                    _F.NET_F_GUEST_HDRLEN,
                    _F.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
                    _F.NET_F_OUT_NET_HEADER,
                    _F.NET_F_HOST_ECN,
                    _F.NET_F_STATUS,
                ),
                mask(_F.F_ACCESS_PLATFORM, _F.F_ORDER_PLATFORM, _F.F_NOTIF_CONFIG_DATA),
                admin_queues=2,
            ),
            Face(
                "plain",
                "no offloads, no mergeable buffers, no administration virtqueue, no IPsec",
                mask(_F.F_VERSION_1, _F.NET_F_MAC, _F.NET_F_MTU),
            ),
            Face("refusing", "accepts no set of features", refuses=True),
        )
    }
)

#: What becomes of the header of a received packet.
Doctor = Callable[[NetHdr], NetHdr]


class Questions:
    """What the device is to do to its driver beyond its duty. ``headers``: by the mark of the frame."""

    def __init__(self, face: Face, *, rough: bool) -> None:
        self.face = face
        self.answers = {at: answer for at, answer in ANSWERS.items() if rough or at not in ROUGH}
        self.headers: dict[int, Doctor] = {}


def mark_of(frame: bytes) -> int:
    """The TCP sequence number of an IPv4 frame without options and tags, which is what probes are."""
    return int.from_bytes(frame[38:42], "big") if frame[12:15] == b"\x08\x00\x45" else 0


class _AskingCommands(AdminCommands):
    """An opcode more in the list, and some answers that come instead of obedience."""

    questions: ClassVar[Questions]
    _creates = 0

    def list_query(self, command: AdminCommand) -> bytes:
        return id_bitmap_build(self.supported[command.group_type] | {UNKNOWN_OPCODE})

    def list_use(self, command: AdminCommand) -> bytes:
        supported = self.supported
        self.supported = {group: opcodes | {UNKNOWN_OPCODE} for group, opcodes in supported.items()}
        try:
            return super().list_use(command)
        finally:
            self.supported = supported

    def process(self, readable: bytes, writable_len: int) -> bytes:
        command = parse_command(readable)
        allowed = command.opcode in self.used.get(command.group_type, frozenset())
        if (
            command.opcode == Opcode.RESOURCE_OBJ_CREATE
            and allowed
            and parse_object(command.data).type in _SA_TYPES
        ):
            self._creates += 1
            answer = self.questions.answers.get(self._creates)
            if answer is not None:
                return self.fit(build_reply(*answer), writable_len)
        return super().process(readable, writable_len)


class _AskingReceiver(Receiver):
    """Headers of marked frames are other ones."""

    questions: ClassVar[Questions]

    def receive(self, frame: bytes) -> list[Received]:
        found = super().receive(frame)
        doctor = self.questions.headers.get(mark_of(frame))
        if doctor is None:
            return found
        return [self._doctored(each, doctor) for each in found]

    def _doctored(self, received: Received, doctor: Doctor) -> Received:
        codec = self.ctx.header
        header = doctor(codec.parse(received.buffer))
        try:
            return Received(received.queue, codec.build(header) + received.buffer[codec.size :])
        except WireError:  # the negotiated header has no room for it
            return received


class _AskingDevice(Device):
    questions: ClassVar[Questions]
    beyond: ClassVar[int]

    @property
    def offered_features(self) -> int:
        return super().offered_features | self.beyond

    def accepts(self, word: int) -> bool:
        known = word & ~self.beyond
        return (
            not self.questions.face.refuses and word & ~self.offered_features == 0 and super().accepts(known)
        )


def make_device(
    face: Face,
    dialect: Dialect,
    questions: Questions,
    rng: Callable[[int], bytes],
    *,
    shown: int = -1,
) -> Device:
    """A device with this face. ``shown``: which of the bits beyond its own the transport can show. In Python: each
    buffer is looked at on its way."""
    parts = {
        "questions": questions,
        "beyond": face.beyond & shown,
        "commands_class": type("Commands", (_AskingCommands,), {"questions": questions}),
        "receiver_class": type("Receiver", (_AskingReceiver,), {"questions": questions}),
    }
    kind: type[Device] = type("AskingDevice", (_AskingDevice,), parts)
    config = DeviceConfig(dialect=dialect, features=face.features, mtu=1500, max_queue_pairs=_PAIRS)
    return kind(config, rng)
