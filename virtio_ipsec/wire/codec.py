"""What every codec offers, and the codecs that serve more than one structure.

Reading rule of the administration queue (AVQ-DEV-01): bytes that would be read past the end of the input are
zero. ``Codec.parse`` follows it; ``complete=True`` (a reader that must not invent data, such as a driver) and
``exact=True`` (neither short nor long) refuse instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.fields import (
    Field,
    FieldLayout,
    FieldView,
    Members,
    field_layout,
    field_views,
    octets,
    reserved,
    u8,
)

__all__ = ["Codec", "Counted", "Data", "FieldLayout", "FieldView", "Headed", "Lengthed", "Record", "trailing"]

T = TypeVar("T")
Data = bytes | bytearray | memoryview


class Codec(ABC, Generic[T]):
    """Bytes of one structure of the specification to a value and back."""

    name: str
    """The structure's name in the specification."""
    fixed_size: int
    """Bytes of the part that is always there."""
    size: int | None
    """Bytes of the whole structure; None when it varies."""
    zero_extends: bool = True
    """Whether ``parse`` takes missing bytes for zeros."""

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
        """The value in ``data``; missing bytes count as zero if ``zero_extends``, surplus bytes are ignored.

        ``complete`` refuses missing bytes, ``exact`` surplus bytes as well. WireError also when the bytes
        cannot form the value.
        """
        plain = bytes(data)
        value, end = self.read(plain, 0)
        if end > len(plain) and (complete or exact or not self.zero_extends):
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


class Record(Codec[T]):
    """A structure of fixed size whose members are, one by one, the attributes of a dataclass."""

    def __init__(self, name: str, fields: Sequence[Field], value_type: Callable[..., T]) -> None:
        self.name = name
        self.members = Members(name, fields)
        self.size = self.fixed_size = self.members.size
        self.value_type = value_type
        self._values = self.members.getter()

    def build(self, value: T) -> bytes:
        return self.members.pack_values(self.take_apart(value))

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        return self.put_together(self.members.unpack_values(data, at)), at + self.fixed_size

    def take_apart(self, value: T) -> Sequence[Any]:
        """The members of a value, in the structure's order."""
        return self._values(value)

    def put_together(self, members: Sequence[Any]) -> T:
        """The value that has these members, which come in the structure's order."""
        return self.value_type(*members)

    def layout(self) -> tuple[FieldLayout, ...]:
        return tuple(field_layout(self.members.fields))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        return field_views(self.members.fields, data, at, prefix)


class Headed(Codec[T]):
    """A fixed head followed by bytes that reach to the end of the input; head and bytes are, one by one, the
    attributes of a dataclass.

    ``tail`` is their name in the specification, ``to`` the attribute that holds them; what is built is padded
    to a multiple of ``align``. ``may_hold_keys`` keeps them out of what ``annotate`` shows; ``annotate.py``
    knows them better.
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
        may_hold_keys: bool = False,
    ) -> None:
        self.name = name
        self.members = Members(name, fields)
        self.fixed_size = self.members.size
        self.value_type = value_type
        self.tail = tail
        self.to = to
        self.align = align
        self.may_hold_keys = may_hold_keys
        self._values = self.members.getter()

    def build(self, value: T) -> bytes:
        whole: bytes = self.members.pack_values(self._values(value)) + getattr(value, self.to)
        return whole + bytes(-len(whole) % self.align)

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        end = at + self.fixed_size
        value = self.value_type(*self.members.unpack_values(data, at), data[end:])
        return value, max(end, len(data))

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.members.fields), FieldLayout(self.tail, self.fixed_size, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        rest = max(len(data) - at - self.fixed_size, 0)
        fields = (*self.members.fields, octets(self.tail, rest, secret=self.may_hold_keys))
        return field_views(fields, data, at, prefix)


class Lengthed(Codec[T]):
    """A fixed head whose one-byte member ``length`` says how many bytes follow it.

    ``tail`` is the name of those bytes in the specification, ``to`` the attribute that holds them.
    """

    size = None

    def __init__(
        self,
        name: str,
        fields: Sequence[Field],
        value_type: Callable[..., T],
        *,
        length: str,
        tail: str,
        to: str = "",
        zero_extends: bool = True,
    ) -> None:
        self.name = name
        self.members = Members(name, fields)
        self.fixed_size = self.members.size
        self.value_type = value_type
        self.length = length
        self.tail = tail
        self.to = to or tail
        self.zero_extends = zero_extends
        self._attributes = tuple(name for name in self.members.attributes if name != length)
        self._length_at = next(row.offset for row in field_layout(fields) if row.name == length)

    def build(self, value: T) -> bytes:
        tail: bytes = getattr(value, self.to)
        if len(tail) > 255:
            raise WireError(f"{self.name}: {self.tail} of {len(tail)} bytes does not fit a one-byte length")
        members = {name: getattr(value, name) for name in self._attributes}
        return self.members.pack({**members, self.length: len(tail)}) + tail

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        arguments = self.members.unpack(data, at)
        start = at + self.fixed_size
        end = start + arguments.pop(self.length)
        arguments[self.to] = data[start:end].ljust(end - start, b"\0")
        return self.value_type(**arguments), end

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.members.fields), FieldLayout(self.tail, self.fixed_size, None))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        length_at = at + self._length_at
        length = data[length_at] if length_at < len(data) else 0
        return field_views((*self.members.fields, octets(self.tail, length)), data, at, prefix)


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
