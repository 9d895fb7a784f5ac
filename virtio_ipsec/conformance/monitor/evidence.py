"""Events as lines to read: what stands in a report below a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from virtio_ipsec.conformance.admin import qualifier_name, status_name
from virtio_ipsec.conformance.monitor.life import Life
from virtio_ipsec.conformance.trace import Event as Shown
from virtio_ipsec.transport.monitor import events as seen
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply, opcode_name
from virtio_ipsec.wire.codec import FieldView
from virtio_ipsec.wire.numbers import Feature, Status

#: Events in front of the one that a finding is about which are shown, too.
BEFORE = 6
_OCTETS = 64


def around(life: Life, at: int) -> tuple[Shown, ...]:
    """The event at place ``at`` of the trace, with what came before it in the same life."""
    here = at - life.begin
    first = max(0, here - BEFORE)
    return tuple(
        describe(life, event, full=place == here)
        for place, event in enumerate(life.events[first : here + 1], first)
    )


def describe(life: Life, event: seen.Event, *, full: bool) -> Shown:
    """One event; ``full``: with its octets."""
    match event:
        case seen.Taken(index=index) if index in life.admin_indices:
            opcode = int.from_bytes(event.data[:2], "little")
            lines = [_line(">", view) for view in annotate_admin(event.data, life.dialect)] if full else []
            return Shown(
                "admin",
                f"queue {index}: {opcode_name(opcode, life.dialect)}, {len(event.data)} bytes to read, "
                f"room for {event.room}",
                (*_chain(event.descriptors, full=full), *lines),
            )
        case seen.Taken(index=index) if life.is_data(index):
            views = life.header.views(event.data, 0)[0] if full else []
            frame = event.data[life.header.size :]
            return Shown(
                "transmit",
                f"queue {index}: header and a frame of {len(frame)} bytes",
                (
                    *_chain(event.descriptors, full=full),
                    *(_line(">", view) for view in views),
                    *(_octets(frame) if full else ()),
                ),
            )
        case seen.Returned(index=index) if index in life.admin_indices:
            status, qualifier = (int.from_bytes(event.data[at : at + 2], "little") for at in (0, 2))
            return Shown(
                "admin",
                f"queue {index}: answered {status_name(status)}/{qualifier_name(qualifier)}, "
                f"{len(event.data)} bytes written",
                _answer(life, event) if full else (),
            )
        case seen.StatusWritten(value, became):
            return Shown("registers", f"status written: {_status(value)}; it became {_status(became)}")
        case seen.StatusRead(value):
            return Shown("registers", f"status read: {_status(value)}")
        case seen.FeaturesRead(word) | seen.FeaturesWritten(word):
            what = "read" if isinstance(event, seen.FeaturesRead) else "written"
            return Shown("registers", f"features {what}: {word:#x}", (_features(word),) if full else ())
        case seen.Exposed(index, place, head, descriptors):
            return Shown(
                "queue",
                f"queue {index}: buffer {place} (head {head}) available",
                _chain(descriptors, full=full),
            )
        case seen.Altered(index, head, before, after):
            return Shown(
                "queue",
                f"queue {index}: the buffer with head {head} was altered",
                (*(f"- {each}" for each in before), *(f"+ {each}" for each in after)),
            )
        case seen.Broken(index, fault, descriptors):
            return Shown(
                "queue", f"queue {index}: the driver broke the ring: {fault}", _chain(descriptors, full=True)
            )
        case seen.Register(name, is_write, value, length, queue):
            verb = "written" if is_write else "read"
            return Shown("registers", f"{name} {verb}: {value:#x} ({length} bytes, queue {queue})")
        case seen.MembersChanged(num_vfs):
            what = "VF Enable clear" if num_vfs is None else f"VF Enable set, NumVFs {num_vfs}"
            return Shown("registers", f"SR-IOV capability: {what}")
        case seen.MemberAccessed(member, is_write, offset, data):
            verb = "written" if is_write else "read"
            where = f"device configuration of member {member} {verb} at offset {offset}"
            return Shown("registers", f"{where}: {data.hex()}")
        case seen.Probed(about, mark, frame):
            return Shown("inject", f"asked about: {about} (mark {mark:#x})", _octets(frame) if full else ())
        case _:
            return Shown("registers", _plain(event))


def _plain(event: seen.Event) -> str:
    parts = []
    for each in fields(event):
        value = getattr(event, each.name)
        if value not in ("", ()):
            parts.append(f"{each.name} {value.hex() if isinstance(value, bytes) else value}")
    words = "".join(" " + c.lower() if c.isupper() else c for c in type(event).__name__).strip()
    return f"{words}: {', '.join(parts)}" if parts else words


def _chain(descriptors: Sequence[seen.Descriptor], *, full: bool) -> tuple[str, ...]:
    return tuple(f"descriptor {each}" for each in descriptors) if full else ()


def _octets(data: bytes) -> tuple[str, ...]:
    shown = [f"  {at:04x}  {data[at : at + 16].hex(' ')}" for at in range(0, min(len(data), _OCTETS), 16)]
    return (*shown, *((f"  and {len(data) - _OCTETS} octets more",) if len(data) > _OCTETS else ()))


def _answer(life: Life, event: seen.Returned) -> tuple[str, ...]:
    command = next((c for c in life.commands if c.reply is event.data), None)
    if command is None:
        return ()
    views = annotate_reply(command.readable, event.data, life.dialect)
    return tuple(_line("<", view) for view in views)


def _line(direction: str, view: FieldView) -> str:
    raw = "**" * len(view.raw) if view.secret else view.raw.hex()
    text = "(secret)" if view.secret else view.text
    shown = raw if len(raw) <= _OCTETS else raw[:_OCTETS] + "…"
    return f"{direction} {view.offset:4d} {view.name:<40} {shown}  {text}"


def _status(value: int) -> str:
    names = [bit.name or "" for bit in Status if value & bit]
    return f"{value:#x} ({'|'.join(names) or '0'})"


def _features(word: int) -> str:
    names = [feature.name for feature in Feature if word >> feature & 1]
    known = sum(1 << feature for feature in Feature)
    rest = [f"bit {bit}" for bit in range(word.bit_length()) if (word & ~known) >> bit & 1]
    return ", ".join([*names, *rest]) or "none"
