"""What every codec offers, and the fixed-size record on top of ``construct``.

Only this file touches ``construct``. A structure is a tuple of :class:`Field`, written in the order and with
the names of the specification; from it come the construct definition, the byte layout and the annotated
view. All structures are packed (virtio v1.4 1.4) and little-endian.

Reading rule of the administration queue (AVQ-DEV-01): bytes that would be read past the end of the input are
zero. ``Codec.parse`` follows it; ``complete=True`` (a reader that must not invent data, such as a driver) and
``exact=True`` (neither short nor long) refuse instead.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Any, Generic, TypeVar

import construct

from virtio_ipsec.errors import WireError

T = TypeVar("T")
Data = bytes | bytearray | memoryview

_UINTS: Mapping[int, construct.Construct[Any, Any]] = {
    1: construct.Int8ul,
    2: construct.Int16ul,
    4: construct.Int32ul,
    8: construct.Int64ul,
}


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """Where a field lies: byte offset in the structure and size in bytes (None: it varies)."""

    name: str
    offset: int
    size: int | None


@dataclass(frozen=True, slots=True)
class FieldView:
    """One field of some bytes, for people. ``raw`` may be shorter than ``size`` when the input is cut.

    For a secret field ``text`` says only how long it is; ``raw`` still holds the bytes and stays out of repr.
    """

    name: str
    offset: int
    size: int
    raw: bytes = field(repr=False)
    text: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a structure. ``kind``: ``uint`` (1, 2, 4 or 8 bytes), ``octets`` or ``reserved``.

    ``name`` is the specification's (dotted for a member of an unnamed inner struct), ``attribute`` the value
    class's. ``show`` turns the value into text.
    """

    name: str
    size: int
    kind: str
    show: Callable[[Any], str]
    secret: bool = False
    inner: Codec[Any] | None = None
    attribute: str = ""


def number(value: int) -> str:
    """Decimal text."""
    return str(value)


def hexadecimal(value: int) -> str:
    """Hexadecimal text."""
    return hex(value)


def hex_bytes(value: bytes) -> str:
    """Bytes as hexadecimal digits."""
    return value.hex()


def named(enum: type[IntEnum]) -> Callable[[int], str]:
    """Text of a value of ``enum``; unknown values keep their number."""

    def show(value: int) -> str:
        known = enum._value2member_map_.get(value)
        return f"{known._name_} ({value:#x})" if known is not None else f"unknown ({value:#x})"

    return show


def flagged(enum: type[IntFlag]) -> Callable[[int], str]:
    """Text of a mask whose bits are the members of ``enum``."""
    return _bits({int(member): member.name or "" for member in enum})


def bit_numbers(enum: type[IntEnum]) -> Callable[[int], str]:
    """Text of a mask in which bit n stands for the member of ``enum`` with value n."""
    return _bits({1 << member: member.name for member in enum})


def _bits(names: Mapping[int, str]) -> Callable[[int], str]:
    def show(value: int) -> str:
        set_bits = [1 << n for n in range(value.bit_length()) if value >> n & 1]
        parts = [names.get(bit, f"bit {bit.bit_length() - 1}") for bit in set_bits]
        return f"{'|'.join(parts) or 'none'} ({value:#x})"

    return show


def _uint(size: int, name: str, show: Callable[[int], str], to: str) -> Field:
    return Field(name, size, "uint", show, attribute=to or name)


def u8(name: str, show: Callable[[int], str] = number, *, to: str = "") -> Field:
    """An 8-bit number. ``to``: the attribute of the value, when it is not called ``name``."""
    return _uint(1, name, show, to)


def le16(name: str, show: Callable[[int], str] = number, *, to: str = "") -> Field:
    """A 16-bit little-endian number."""
    return _uint(2, name, show, to)


def le32(name: str, show: Callable[[int], str] = number, *, to: str = "") -> Field:
    """A 32-bit little-endian number."""
    return _uint(4, name, show, to)


def le64(name: str, show: Callable[[int], str] = number, *, to: str = "") -> Field:
    """A 64-bit little-endian number."""
    return _uint(8, name, show, to)


def octets(
    name: str, size: int, show: Callable[[bytes], str] = hex_bytes, *, to: str = "", secret: bool = False
) -> Field:
    """``size`` bytes in order."""
    return Field(name, size, "octets", show, secret, attribute=to or name)


def reserved(name: str, size: int) -> Field:
    """Bytes written as zero and ignored when read."""
    return Field(name, size, "reserved", hex_bytes)


def nested(name: str, codec: Codec[Any]) -> Field:
    """A member that is itself a structure of fixed size; ``Members`` hands it on as bytes."""
    return Field(name, codec.fixed_size, "octets", hex_bytes, inner=codec, attribute=name)


class Codec(ABC, Generic[T]):
    """Bytes of one structure of the specification to a value and back."""

    name: str
    """The structure's name in the specification."""
    fixed_size: int
    """Bytes of the part that is always there."""
    size: int | None
    """Bytes of the whole structure; None when it varies."""

    @abstractmethod
    def build(self, value: T) -> bytes:
        """The structure's bytes. WireError when a member does not fit its field."""

    @abstractmethod
    def read(self, data: bytes, at: int) -> tuple[T, int]:
        """The value that starts at ``at`` and the offset just behind it, which may lie past the input."""

    @abstractmethod
    def layout(self) -> tuple[FieldLayout, ...]:
        """All fields with offset and size."""

    @abstractmethod
    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        """The annotated fields from ``at`` on and the offset just behind the structure. Never raises."""

    def parse(self, data: Data, *, complete: bool = False, exact: bool = False) -> T:
        """The value in ``data``; missing bytes count as zero, surplus bytes are ignored.

        ``complete`` refuses missing bytes, ``exact`` surplus bytes as well. WireError also when the bytes
        cannot form the value.
        """
        plain = bytes(data)
        value, end = self.read(plain, 0)
        if end > len(plain) and (complete or exact):
            raise WireError(f"{self.name}: {len(plain)} bytes where {end} are needed")
        if end < len(plain) and exact:
            raise WireError(f"{self.name}: {len(plain)} bytes where {end} are expected")
        return value

    def annotate(self, data: Data) -> tuple[FieldView, ...]:
        """Every field of ``data`` for people, cut or too long as it may be. Never raises."""
        plain = bytes(data)
        views, end = self.views(plain, 0)
        return (*views, *trailing(plain, end))


def trailing(data: bytes, at: int) -> list[FieldView]:
    """The bytes from ``at`` on, which belong to no field."""
    rest = data[at:]
    if not rest:
        return []
    text = f"{len(rest)} zero bytes" if not any(rest) else rest.hex()
    return [FieldView("trailing", at, len(rest), rest, text)]


def field_views(
    fields: Sequence[Field], data: bytes, at: int, prefix: str = ""
) -> tuple[list[FieldView], int]:
    """Annotated ``fields`` laid one after the other from ``at``; stops where the input ends."""
    views: list[FieldView] = []
    for each in fields:
        raw = data[at : at + each.size]
        if raw and each.inner is not None:
            views += each.inner.views(data[: at + each.size], at, f"{prefix}{each.name}.")[0]
        elif raw:
            views.append(FieldView(prefix + each.name, at, each.size, raw, _text(each, raw), each.secret))
        at += each.size
    return views, at


def _text(each: Field, raw: bytes) -> str:
    if each.secret:
        text = f"{len(raw)} secret bytes"
    elif each.kind == "reserved":
        text = raw.hex() if any(raw) else "0"
    else:
        whole = raw.ljust(each.size, b"\0")
        text = each.show(int.from_bytes(whole, "little") if each.kind == "uint" else whole)
    return text if len(raw) == each.size else f"{text} (cut: {len(raw)} of {each.size} bytes)"


def field_layout(fields: Sequence[Field], at: int = 0, prefix: str = "") -> list[FieldLayout]:
    """Offsets and sizes of ``fields``, nested structures spelt out with dotted names."""
    rows: list[FieldLayout] = []
    for each in fields:
        if each.inner is None:
            rows.append(FieldLayout(prefix + each.name, at, each.size))
        else:
            rows += [
                FieldLayout(f"{prefix}{each.name}.{row.name}", at + row.offset, row.size)
                for row in each.inner.layout()
            ]
        at += each.size
    return rows


class Members:
    """The construct definition of a run of fields: member values to bytes and back.

    construct's compiler makes it about three times faster and takes about 2 ms, so it runs at first use.
    """

    def __init__(self, name: str, fields: Sequence[Field]) -> None:
        self.name = name
        self.fields = tuple(fields)
        self.size = sum(each.size for each in fields)
        self._octets = tuple((f.attribute, f.size) for f in fields if f.kind == "octets")
        self.attributes = tuple(f.attribute for f in fields if f.kind != "reserved")

    @property
    def definition(self) -> construct.Construct[Any, Any]:
        """The construct ``Struct``, not compiled."""
        return construct.Struct(*(self._member(each) for each in self.fields))

    @staticmethod
    def _member(each: Field) -> construct.Construct[Any, Any]:
        if each.kind == "reserved":
            return construct.Padding(each.size)
        kind = _UINTS[each.size] if each.kind == "uint" else construct.Bytes(each.size)
        return each.attribute / kind

    @cached_property
    def _compiled(self) -> construct.Construct[Any, Any]:
        return self.definition.compile()

    def pack(self, members: Mapping[str, Any]) -> bytes:
        """Bytes of the members. WireError when one does not fit."""
        for name, size in self._octets:
            # The compiled definition does not check this itself.
            if len(members[name]) != size:
                raise WireError(f"{self.name}.{name}: {len(members[name])} bytes where {size} are needed")
        try:
            return self._compiled.build(members)
        except (struct.error, construct.ConstructError) as error:
            raise WireError(f"{self.name}: {self._misfit(members)}") from error

    def _misfit(self, members: Mapping[str, Any]) -> str:
        for each in self.fields:
            value = members.get(each.attribute)
            if each.kind == "uint" and not (isinstance(value, int) and 0 <= value < 1 << 8 * each.size):
                return f"{each.name} = {value!r} does not fit {each.size} bytes"
        return "a member does not fit"

    def unpack(self, data: bytes, at: int) -> Mapping[str, Any]:
        """Members of the bytes from ``at`` on, zeros standing in for missing ones."""
        members: Mapping[str, Any] = self._compiled.parse(data[at : at + self.size].ljust(self.size, b"\0"))
        return members


class Record(Codec[T]):
    """A structure of fixed size whose members are, name by name, the attributes of a dataclass."""

    def __init__(self, name: str, fields: Sequence[Field], value_type: Callable[..., T]) -> None:
        self.name = name
        self.members = Members(name, fields)
        self.size = self.fixed_size = self.members.size
        self.value_type = value_type

    def build(self, value: T) -> bytes:
        return self.members.pack(self.take_apart(value))

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        return self.put_together(self.members.unpack(data, at)), at + self.fixed_size

    def take_apart(self, value: T) -> dict[str, Any]:
        """The members of a value."""
        return {name: getattr(value, name) for name in self.members.attributes}

    def put_together(self, members: Mapping[str, Any]) -> T:
        """The value that has these members."""
        return self.value_type(**{name: members[name] for name in self.members.attributes})

    def layout(self) -> tuple[FieldLayout, ...]:
        return tuple(field_layout(self.members.fields))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        return field_views(self.members.fields, data, at, prefix)


class Headed(Codec[T]):
    """A fixed head followed by bytes that reach to the end of the input.

    ``tail`` is their name in the specification, ``to`` the attribute that holds them; what is built is padded
    to a multiple of ``align``.
    """

    size = None

    def __init__(
        self,
        name: str,
        fields: Sequence[Field],
        value_type: Callable[..., T],
        *,
        tail: str,
        to: str,
        align: int = 1,
    ) -> None:
        self.name = name
        self.members = Members(name, fields)
        self.fixed_size = self.members.size
        self.value_type = value_type
        self.tail = tail
        self.to = to
        self.align = align

    def build(self, value: T) -> bytes:
        head = self.members.pack({name: getattr(value, name) for name in self.members.attributes})
        whole: bytes = head + getattr(value, self.to)
        return whole + bytes(-len(whole) % self.align)

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        members = self.members.unpack(data, at)
        end = at + self.fixed_size
        arguments = {name: members[name] for name in self.members.attributes}
        return self.value_type(**arguments, **{self.to: data[end:]}), max(end, len(data))

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.members.fields), FieldLayout(self.tail, self.fixed_size, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        views, end = field_views(self.members.fields, data, at, prefix)
        rest = data[end:]
        if rest:
            views.append(FieldView(prefix + self.tail, end, len(rest), rest, rest.hex()))
        return views, max(end, len(data))


class Counted(Codec[T]):
    """A one-byte ``count``, seven reserved bytes, and that many elements back to back.

    The value is a dataclass with one attribute, the tuple of elements.
    """

    size = None
    fixed_size = 8

    def __init__(
        self, name: str, array: str, element: Codec[Any], value_type: Callable[..., T], attribute: str
    ) -> None:
        self.name = name
        self.array = array
        self.element = element
        self.value_type = value_type
        self.attribute = attribute
        self.head = (u8("count"), reserved("reserved", 7))

    def build(self, value: T) -> bytes:
        elements = getattr(value, self.attribute)
        if len(elements) > 255:
            raise WireError(f"{self.name}: {len(elements)} elements do not fit a one-byte count")
        return bytes((len(elements),)).ljust(8, b"\0") + b"".join(map(self.element.build, elements))

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        count = data[at] if at < len(data) else 0
        at += 8
        elements = []
        for _ in range(count):
            element, at = self.element.read(data, at)
            elements.append(element)
        return self.value_type(tuple(elements)), at

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.head), FieldLayout(self.array, self.fixed_size, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        count = data[at] if at < len(data) else 0
        views, at = field_views(self.head, data, at, prefix)
        for index in range(count):
            if at >= len(data):
                break
            found, at = self.element.views(data, at, f"{prefix}{self.array}[{index}].")
            views += found
        return views, at
