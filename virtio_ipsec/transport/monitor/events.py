"""What a driver does at the edge of a device, as values in the order in which it was seen.

No key and no salt stands in an event: an administration command keeps its length, and each secret octet is
:data:`MASK`, or zero where the driver left all of that key zero.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from virtio_ipsec.ring.chain import F_INDIRECT, F_WRITE, QueueLayout
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.redact import Secret, admin_secrets, reply_secrets

#: In the place of a secret octet.
MASK = 0xA5
#: Events of one run that are kept, those of packets and their octets apart; what a driver does beyond is counted only.
MOST = 100_000
MOST_PACKETS, MOST_OCTETS = 60_000, 256 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """Something seen."""


@dataclass(frozen=True, slots=True)
class Began(Event):
    """A device with this face stands before a driver. ``shows``: what of the driver is visible through its transport:
    "registers" (features, status, configuration), "notifications", "pci", "members" (a PCI function that owns virtual
    ones); queues always are."""

    face: str
    offered: int
    carried: int
    shows: frozenset[str]
    num_queues: int
    max_pairs: int
    admin_index: int
    admin_num: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The driver's side is gone."""


@dataclass(frozen=True, slots=True)
class FeaturesRead(Event):
    """Feature words of the device."""

    word: int


@dataclass(frozen=True, slots=True)
class FeaturesWritten(Event):
    """The features that the driver accepts."""

    word: int


@dataclass(frozen=True, slots=True)
class StatusWritten(Event):
    """``became``: what the status is after it."""

    value: int
    became: int


@dataclass(frozen=True, slots=True)
class StatusRead(Event):
    """What the driver got to see."""

    value: int


@dataclass(frozen=True, slots=True)
class GenerationRead(Event):
    """The configuration generation."""

    value: int


@dataclass(frozen=True, slots=True)
class ConfigRead(Event):
    """Bytes of the device configuration."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ConfigWritten(Event):
    """The driver wrote into the device configuration."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class QueueEnabled(Event):
    """A virtqueue was set up; ``refused``: why not."""

    index: int
    layout: QueueLayout
    refused: str = ""


@dataclass(frozen=True, slots=True)
class QueueReset(Event):
    """One virtqueue was reset."""

    index: int


@dataclass(frozen=True, slots=True)
class Kicked(Event):
    """An available buffer notification."""

    index: int


@dataclass(frozen=True, slots=True)
class Register(Event):
    """An access to the common configuration of a PCI function. ``queue``: what queue_select was."""

    name: str
    is_write: bool
    value: int
    length: int
    queue: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor as it lies in memory. ``nested``: in an indirect table."""

    address: int
    length: int
    flags: int
    nested: bool = False

    @property
    def is_table(self) -> bool:
        """Whether it only refers to an indirect table."""
        return bool(self.flags & F_INDIRECT) and not self.nested

    @property
    def is_writable(self) -> bool:
        """Whether the device may write the buffer."""
        return bool(self.flags & F_WRITE)

    def __str__(self) -> str:
        kind = "table" if self.is_table else "writable" if self.is_writable else "readable"
        return f"{self.address:#x} {self.length} {kind} (flags {self.flags:#x})"


Descriptors = tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class MembersChanged(Event):
    """The SR-IOV capability: NumVFs while VF Enable is set; None: it is clear, as at first."""

    num_vfs: int | None


@dataclass(frozen=True, slots=True)
class MemberAccessed(Event):
    """Somebody read or wrote the device configuration of a virtual function; ``data``: what was read or written."""

    member: int
    is_write: bool
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Exposed(Event):
    """The driver has made a buffer available: its place in the ring counts from the queue's beginning."""

    index: int
    place: int
    head: int
    descriptors: Descriptors


@dataclass(frozen=True, slots=True)
class Altered(Event):
    """A buffer that belongs to the device has other descriptors than before."""

    index: int
    head: int
    before: Descriptors
    after: Descriptors


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """Buffers that were available no longer are, and the device has not used them."""

    index: int
    seen: int
    now: int


@dataclass(frozen=True, slots=True)
class Taken(Event):
    """The device has taken a buffer with something to read. ``place`` as in :class:`Exposed`."""

    index: int
    place: int
    head: int
    descriptors: Descriptors
    data: bytes
    room: int


@dataclass(frozen=True, slots=True)
class Returned(Event):
    """The device has used a buffer: what it wrote."""

    index: int
    place: int
    head: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Broken(Event):
    """The driver broke a rule of the ring: what the device says, and the descriptors it had before it."""

    index: int
    fault: str
    descriptors: Descriptors


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """A frame that was put before the driver. ``mark``: what an answer to it bears; ``about``: which question it is."""

    about: str
    mark: int
    frame: bytes


class Recorder:
    """All events of a run. From any thread."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.lock = threading.RLock()
        self.events: list[Event] = []
        #: Events that were not kept.
        self.dropped = 0
        self._packets = self._octets = self._held = 0
        #: Rounds of questions that were put to the end.
        self.rounds = 0

    def note(self, event: Event, octets: int = 0) -> None:
        """One event more; ``octets`` are held by it."""
        with self.lock:
            if len(self.events) - self._packets < MOST and self._held + octets <= MOST_OCTETS:
                self.events.append(event)
                self._held += octets
            else:
                self.dropped += 1

    def note_packet(self, event: Event, octets: int = 0) -> None:
        """One more of a queue that is not for commands; ``octets`` are held by it."""
        with self.lock:
            if self._packets < MOST_PACKETS and self._octets + octets <= MOST_OCTETS:
                self.events.append(event)
                self._packets += 1
                self._octets += octets
            else:
                self.dropped += 1


def without_secrets(readable: bytes, dialect: Dialect) -> bytes:
    """An administration command without its key and salt octets."""
    return _masked(readable, admin_secrets(readable, dialect))


def answer_without_secrets(readable: bytes, written: bytes, dialect: Dialect) -> bytes:
    """What the device answered to ``readable``, without key and salt octets."""
    return _masked(written, reply_secrets(readable, written, dialect))


def _masked(data: bytes, secrets: tuple[Secret, ...]) -> bytes:
    found = bytearray(data)
    for secret in secrets:
        place = slice(secret.offset, secret.offset + secret.length)
        if any(found[place]):
            found[place] = bytes((MASK,)) * len(found[place])
    return bytes(found)
