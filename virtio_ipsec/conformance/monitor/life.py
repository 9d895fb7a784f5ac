"""A trace as judges read it: the lives of a device from reset to reset, with their commands, packets and buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from virtio_ipsec.conformance.monitor.headers import Headers, frame_headers
from virtio_ipsec.errors import AdminStatus, WireError
from virtio_ipsec.transport.monitor.events import (
    Began,
    Descriptors,
    Event,
    Exposed,
    FeaturesWritten,
    Probed,
    QueueEnabled,
    Returned,
    StatusWritten,
    Taken,
)
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    CAP_COMMAND,
    OBJECT_COMMAND,
    AdminCommand,
    CapCommand,
    ObjectCommand,
)
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.net_header import NetHdr, NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, GroupType, Opcode, Status, has

Kind = TypeVar("Kind", bound=Event)
_OBJECT_OPCODES = range(Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY + 1)


@dataclass(frozen=True)
class Command:
    """An administration command. ``exposed``, ``at`` (taken) and ``returned`` are places in the trace; ``reply`` is
    None while there is none."""

    queue: int
    exposed: int
    at: int
    returned: int | None
    readable: bytes
    room: int
    reply: bytes | None

    @cached_property
    def _parsed(self) -> AdminCommand:
        return ADMIN_COMMAND.parse(self.readable)

    @property
    def opcode(self) -> int:
        """The opcode."""
        return self._parsed.opcode

    @property
    def group(self) -> int:
        """The group type."""
        return self._parsed.group_type

    @property
    def member(self) -> int:
        """The group member id."""
        return self._parsed.group_member_id

    @property
    def data(self) -> bytes:
        """Command-specific data."""
        return self._parsed.data

    @property
    def status(self) -> int | None:
        """The status word; None when the device wrote none."""
        return int.from_bytes(self.reply[:2], "little") if self.reply and len(self.reply) >= 2 else None

    @property
    def qualifier(self) -> int:
        """The status qualifier."""
        return int.from_bytes((self.reply or b"")[2:4], "little")

    @property
    def ok(self) -> bool:
        """Whether the device reported success."""
        return self.status == AdminStatus.OK

    @property
    def result(self) -> bytes:
        """Command-specific result, as far as the device wrote it."""
        return (self.reply or b"")[8:]

    @cached_property
    def any_object(self) -> ObjectCommand | None:
        """What an object command is about, of whatever group."""
        return OBJECT_COMMAND.parse(self.data) if self.opcode in _OBJECT_OPCODES else None

    @property
    def object(self) -> ObjectCommand | None:
        """What an object command is about, where that is an object of the device itself."""
        return self.any_object if self.group == GroupType.SELF else None

    @cached_property
    def capability(self) -> CapCommand | None:
        """What a capability command is about."""
        wanted = (Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET)
        return CAP_COMMAND.parse(self.data) if self.opcode in wanted else None


@dataclass(frozen=True)
class Packet:
    """A buffer of a transmit queue. ``header`` is None when it is too short for one."""

    queue: int
    at: int
    raw: bytes
    descriptors: Descriptors
    header: NetHdr | None
    frame: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Object:
    """A resource object that exists."""

    type: int
    id: int
    data: bytes
    command: Command


class Objects(dict[tuple[int, int], Object]):
    """The objects that exist, by type and id; ``counts`` by type."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def add(self, each: Object) -> None:
        """It exists from now on, or has other data."""
        self.counts[each.type] += (each.type, each.id) not in self
        self[each.type, each.id] = each

    def drop(self, key: tuple[int, int]) -> None:
        """It exists no longer, if it did."""
        if self.pop(key, None) is not None:
            self.counts[key[0]] -= 1


@dataclass
class Life:
    """From one device reset to the next. ``begin`` is the place of its first event in the run's trace."""

    began: Began
    begin: int
    events: Sequence[Event]
    dialect: Dialect
    #: Whether the driver's side went away at its end, rather than another life began.
    is_last: bool = True

    def of(self, *kinds: type[Kind]) -> Iterator[tuple[int, Kind]]:
        """The events of these kinds, with their places in the run's trace."""
        for at, event in enumerate(self.events, self.begin):
            if isinstance(event, kinds):
                yield at, event

    def shows(self, what: str) -> bool:
        """See :class:`Began`."""
        return what in self.began.shows

    @cached_property
    def offered(self) -> int:
        """The features that the device offers."""
        return self.began.offered

    @cached_property
    def accepted(self) -> int | None:
        """The last feature word that the driver wrote before FEATURES_OK; None when it wrote none."""
        word: int | None = None
        for event in self.events:
            if isinstance(event, FeaturesWritten):
                word = event.word
            elif isinstance(event, StatusWritten) and event.became & Status.FEATURES_OK:
                break
        return word

    @cached_property
    def features(self) -> int:
        """The negotiated features; 0 when it did not come to that."""
        return (self.accepted or 0) if self.status_reached & Status.FEATURES_OK else 0

    @cached_property
    def status_reached(self) -> int:
        """All status bits that were ever set."""
        word = 0
        for _, event in self.of(StatusWritten):
            word |= event.became
        return word

    @property
    def is_operating(self) -> bool:
        """Whether DRIVER_OK was set."""
        return bool(self.status_reached & Status.DRIVER_OK)

    def has(self, feature: Feature) -> bool:
        """Whether a feature was negotiated."""
        return has(self.features, feature)

    @cached_property
    def header(self) -> NetHdrCodec:
        """The header's form."""
        return self.dialect.net_hdr(self.features)

    @cached_property
    def control_index(self) -> int:
        """The control queue's index."""
        many = self.has(Feature.NET_F_MQ) or self.has(Feature.NET_F_RSS)
        return 2 * self.began.max_pairs if many else 2

    @cached_property
    def admin_indices(self) -> range:
        """The administration queues' indices."""
        number = self.began.admin_num if self.has(Feature.F_ADMIN_VQ) else 0
        return range(self.began.admin_index, self.began.admin_index + number)

    def is_data(self, index: int) -> bool:
        """Whether it is a receive or transmit queue."""
        return index < self.control_index and index not in self.admin_indices

    @cached_property
    def _returned(self) -> Mapping[tuple[int, int], tuple[int, Returned]]:
        return {(e.index, e.place): (at, e) for at, e in self.of(Returned)}

    @cached_property
    def _exposed(self) -> Mapping[tuple[int, int], int]:
        return {(e.index, e.place): at for at, e in self.of(Exposed)}

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        """All administration commands, as the device took them."""
        found = []
        for at, event in self.of(Taken):
            if event.index in self.admin_indices:
                key = event.index, event.place
                returned = self._returned.get(key)
                found.append(
                    Command(
                        event.index,
                        self._exposed.get(key, at),
                        at,
                        returned[0] if returned else None,
                        event.data,
                        event.room,
                        returned[1].data if returned else None,
                    )
                )
        return tuple(found)

    @cached_property
    def packets(self) -> tuple[Packet, ...]:
        """Everything that the driver had sent, in the order in which it was shown to the device."""
        found = []
        for at, event in self.of(Taken):
            if self.is_data(event.index) and event.index & 1:
                place = self._exposed.get((event.index, event.place), at)
                size = self.header.size
                try:
                    header: NetHdr | None = self.header.parse(event.data)
                except WireError:
                    header = None
                frame = event.data[size:]
                found.append(
                    Packet(
                        event.index,
                        place,
                        event.data,
                        event.descriptors,
                        header,
                        frame,
                        frame_headers(frame),
                    )
                )
        return tuple(sorted(found, key=lambda packet: packet.at))

    def receive_buffers(self) -> Iterator[tuple[int, Exposed]]:
        """Buffers of receive queues, with their places."""
        for at, event in self.of(Exposed):
            if self.is_data(event.index) and not event.index & 1:
                yield at, event

    def enabled(self) -> tuple[int, ...]:
        """Indices of the queues that were ever set up."""
        return tuple(dict.fromkeys(event.index for _, event in self.of(QueueEnabled) if not event.refused))

    @cached_property
    def _in_order(self) -> tuple[Command | Packet, ...]:
        things: list[tuple[int, int, Command | Packet]] = []
        for number, command in enumerate(self.commands):
            things.append((command.exposed, number, command))
        for number, packet in enumerate(self.packets):
            things.append((packet.at, number, packet))
        return tuple(thing for _, _, thing in sorted(things, key=lambda each: each[:2]))

    def walk(self) -> Iterator[tuple[Command | Packet, Objects]]:
        """Commands and packets in their order, each with the objects that existed when it was shown to the device. What
        is given is the same each time, as it is then."""
        live = Objects()
        for thing in self._in_order:
            yield thing, live
            if isinstance(thing, Command) and thing.ok and (about := thing.object) is not None:
                key = about.type, about.id
                if thing.opcode == Opcode.RESOURCE_OBJ_CREATE:
                    live.add(Object(about.type, about.id, about.data, thing))
                elif thing.opcode == Opcode.RESOURCE_OBJ_DESTROY:
                    live.drop(key)
                elif thing.opcode == self.dialect.modify_opcode and key in live:
                    live.add(Object(about.type, about.id, about.data, thing))

    def commands_with(self) -> Iterator[tuple[Command, Objects]]:
        """As :meth:`walk`, the commands only."""
        for thing, live in self.walk():
            if isinstance(thing, Command):
                yield thing, live

    def packets_with(self) -> Iterator[tuple[Packet, Objects]]:
        """As :meth:`walk`, the packets only."""
        for thing, live in self.walk():
            if isinstance(thing, Packet):
                yield thing, live

    @cached_property
    def answers(self) -> tuple[tuple[int, Probed, Packet | None], ...]:
        """What the driver's side was asked, and the packet that answers it."""
        bearing: dict[int, Packet] = {}
        for packet in self.packets:
            if packet.headers.protocol == 6 and packet.headers.transport:
                at = packet.headers.transport
                bearing.setdefault(int.from_bytes(packet.frame[at + 8 : at + 12], "big"), packet)
        return tuple((at, probe, bearing.get(probe.mark + 1)) for at, probe in self.of(Probed))


@dataclass(frozen=True)
class Run:
    """A whole trace."""

    dialect: Dialect
    events: Sequence[Event]
    lives: tuple[Life, ...]

    def of(self, *kinds: type[Kind]) -> Iterator[tuple[Life, int, Kind]]:
        """The events of these kinds in all lives."""
        for life in self.lives:
            for at, event in life.of(*kinds):
                yield life, at, event

    def packets(self) -> Iterator[tuple[Life, Packet, NetHdr]]:
        """The packets with a whole header and a frame that lies behind it."""
        for life in self.lives:
            for packet in life.packets:
                if packet.header is not None and packet.headers.is_plausible:
                    yield life, packet, packet.header


def read_run(events: Sequence[Event], dialect: Dialect) -> Run:
    """The lives in a trace. What happens before a driver's first reset belongs to the life that follows it."""
    lives: list[Life] = []
    began: Began | None = None
    begin = 0

    def close(end: int, *, is_last: bool) -> None:
        if began is not None and any(not isinstance(event, Began) for event in events[begin:end]):
            lives.append(Life(began, begin, events[begin:end], dialect, is_last))

    for at, event in enumerate(events):
        if isinstance(event, Began):
            close(at, is_last=True)
            began, begin = event, at
        elif isinstance(event, StatusWritten) and event.value == 0 and _has_more(events[begin:at]):
            close(at, is_last=False)
            begin = at
    close(len(events), is_last=True)
    return Run(dialect, events, tuple(lives))


def _has_more(events: Iterable[Event]) -> bool:
    """Whether something was done besides looking."""
    return any(isinstance(e, StatusWritten | FeaturesWritten | QueueEnabled | Exposed) for e in events)
