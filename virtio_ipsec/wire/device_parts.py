"""Device parts and the administration commands that carry them (virtio v1.4 2.14 and 2.12.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, TypeVar

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Headed, Record
from virtio_ipsec.wire.fields import (
    Field,
    FieldLayout,
    FieldView,
    field_views,
    flagged,
    hexadecimal,
    le16,
    le32,
    le64,
    named,
    octets,
    reserved,
    u8,
)
from virtio_ipsec.wire.numbers import ResourceType

T = TypeVar("T")


class PartType(IntEnum):
    """``part_type``: common ones and that of the network device (E13)."""

    DEV_FEATURES = 0x100
    DRV_FEATURES = 0x101
    PCI_COMMON_CFG = 0x102
    DEVICE_STATUS = 0x103
    VQ_CFG = 0x104
    VQ_NOTIFY_CFG = 0x105
    NET_CVQ_CFG = 0x200


class PartFlag(IntFlag):
    """``flags`` of a part."""

    OPTIONAL = 1


class PartsObject(IntEnum):
    """``type`` of a device parts resource object."""

    GET = 0
    SET = 1


class Metadata(IntEnum):
    """``type`` of DEV_PARTS_METADATA_GET."""

    SIZE = 0
    COUNT = 1
    LIST = 2


class PartsGet(IntEnum):
    """``type`` of DEV_PARTS_GET."""

    SELECTED = 0
    ALL = 1


class DevMode(IntFlag):
    """``flags`` of DEV_MODE_SET."""

    STOPPED = 1


@dataclass(frozen=True, slots=True)
class DevPartsCap:
    """``virtio_dev_parts_cap``: how many objects of each kind."""

    get_parts_resource_objects_limit: int = 0
    set_parts_resource_objects_limit: int = 0


@dataclass(frozen=True, slots=True)
class DevPartsObject:
    """``virtio_resource_obj_dev_parts``."""

    type: int


@dataclass(frozen=True, slots=True)
class MetadataCommand:
    """Data of DEV_PARTS_METADATA_GET: the object, and what is asked."""

    object_type: int
    object_id: int
    type: int


@dataclass(frozen=True, slots=True)
class PartsGetCommand:
    """Data of DEV_PARTS_GET; ``headers`` are the bytes of those selected (:func:`headers_parse`)."""

    object_type: int
    object_id: int
    type: int
    headers: bytes = b""


@dataclass(frozen=True, slots=True)
class PartsSetCommand:
    """Data of DEV_PARTS_SET; ``parts`` as bytes (:func:`parts_parse`)."""

    object_type: int
    object_id: int
    parts: bytes = b""


@dataclass(frozen=True, slots=True)
class ModeCommand:
    """Data of DEV_MODE_SET."""

    flags: int


@dataclass(frozen=True, slots=True)
class MetadataResult:
    """Result of DEV_PARTS_METADATA_GET: a size in bytes or a number of parts, and their headers if asked for."""

    count: int
    headers: bytes = b""


@dataclass(frozen=True, slots=True)
class PartHeader:
    """``virtio_dev_part_hdr``; ``selector`` is 8 bytes, ``length`` that of the value."""

    part_type: int
    flags: int = 0
    selector: bytes = bytes(8)
    length: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """``virtio_dev_part``."""

    part_type: int
    value: bytes
    flags: int = 0
    selector: bytes = bytes(8)

    @property
    def header(self) -> PartHeader:
        """Its header."""
        return PartHeader(self.part_type, self.flags, self.selector, len(self.value))

    @property
    def key(self) -> tuple[int, bytes]:
        """What names it: type and selector."""
        return self.part_type, self.selector


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """``virtio_dev_part_vq_cfg``, as the fields of the common configuration."""

    queue_size: int
    vector: int
    enabled: int
    queue_desc: int
    queue_driver: int
    queue_device: int


@dataclass(frozen=True, slots=True)
class QueueNotify:
    """``virtio_dev_part_vq_notify_data``."""

    queue_notify_off: int
    queue_notif_config_data: int


def offset_selector(offset: int) -> bytes:
    """Selector of a PCI_COMMON_CFG part."""
    return offset.to_bytes(4, "little") + bytes(4)


def queue_selector(index: int) -> bytes:
    """Selector of a VQ_CFG or VQ_NOTIFY_CFG part."""
    return index.to_bytes(2, "little") + bytes(6)


def control_selector(ctrl_class: int, command: int) -> bytes:
    """Selector of a CVQ_CFG part (``virtio_net_dev_part_cvq_selector``)."""
    return bytes((ctrl_class, command)) + bytes(6)


class _Union(Record[T]):
    """A structure with a union: other names for bytes that the fields name already."""

    def __init__(
        self, name: str, fields: Sequence[Field], value_type: Callable[..., T], arms: Iterable[FieldLayout]
    ) -> None:
        super().__init__(name, fields, value_type)
        self.arms = tuple(arms)

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*super().layout(), *self.arms)


class _MetadataResult(Headed[MetadataResult]):
    """One number, and where headers were asked for those: the arms of the union differ in names only."""

    def layout(self) -> tuple[FieldLayout, ...]:
        arms = (("parts_size", "size"), ("hdr_list_count", "count"))
        names = [(f"{arm}.{name}", f"{arm}.reserved") for arm, name in arms]
        return (
            *super().layout(),
            *(FieldLayout(name, at * 4, 4) for pair in names for at, name in enumerate(pair)),
        )


_OBJECT = (
    le16("hdr.type", named(ResourceType), to="object_type"),
    reserved("hdr.reserved", 2),
    le32("hdr.id", to="object_id"),
)

DEV_PARTS_CAP = Record(
    "virtio_dev_parts_cap",
    (u8("get_parts_resource_objects_limit"), u8("set_parts_resource_objects_limit")),
    DevPartsCap,
)
DEV_PARTS_OBJECT = Record(
    "virtio_resource_obj_dev_parts", (u8("type", named(PartsObject)), reserved("reserved", 7)), DevPartsObject
)
METADATA_COMMAND = Record(
    "virtio_admin_cmd_dev_parts_metadata_data",
    (*_OBJECT, u8("type", named(Metadata)), reserved("reserved", 7)),
    MetadataCommand,
)
METADATA_RESULT = _MetadataResult(
    "virtio_admin_cmd_dev_parts_metadata_result",
    (le32("hdr_list.count", to="count"), reserved("hdr_list.reserved", 4)),
    MetadataResult,
    tail="hdr_list.hdrs",
    to="headers",
)
PARTS_GET = Headed(
    "virtio_admin_cmd_dev_parts_get_data",
    (*_OBJECT, u8("type", named(PartsGet)), reserved("reserved", 7)),
    PartsGetCommand,
    tail="hdr_list",
    to="headers",
)
PARTS_SET = Headed("virtio_admin_cmd_dev_parts_set_data", _OBJECT, PartsSetCommand, tail="parts", to="parts")
MODE_SET = Record("virtio_admin_cmd_dev_mode_set_data", (u8("flags", flagged(DevMode)),), ModeCommand)
PART_HEADER = _Union(
    "virtio_dev_part_hdr",
    (
        le16("part_type", named(PartType)),
        u8("flags", flagged(PartFlag)),
        reserved("reserved", 1),
        octets("selector.device_type_raw", 8, to="selector"),
        le32("length"),
    ),
    PartHeader,
    (
        FieldLayout("selector.pci_common_cfg.offset", 4, 4),
        FieldLayout("selector.pci_common_cfg.reserved", 8, 4),
        FieldLayout("selector.vq_index.index", 4, 2),
        FieldLayout("selector.vq_index.reserved", 6, 6),
    ),
)
QUEUE_CONFIG = Record(
    "virtio_dev_part_vq_cfg",
    (
        le16("queue_size"),
        le16("vector", hexadecimal),
        le16("enabled"),
        reserved("reserved", 2),
        le64("queue_desc", hexadecimal),
        le64("queue_driver", hexadecimal),
        le64("queue_device", hexadecimal),
    ),
    QueueConfig,
)
QUEUE_NOTIFY = Record(
    "virtio_dev_part_vq_notify_data",
    (le16("queue_notify_off"), le16("queue_notif_config_data"), reserved("reserved", 4)),
    QueueNotify,
)

#: Bytes of ``virtio_dev_part_features`` of this specification: feature bits 0 to 127 in le64 words.
FEATURES_SIZE: Final = 16
#: Most bytes of a part's value: no command that brought it about was longer.
MOST_VALUE: Final = 1 << 20


def features_build(word: int) -> bytes:
    """``virtio_dev_part_features``."""
    return word.to_bytes(FEATURES_SIZE, "little")


def parts_build(parts: Iterable[Part]) -> bytes:
    """Parts one behind the other."""
    return b"".join(PART_HEADER.build(part.header) + part.value for part in parts)


def parts_parse(data: bytes) -> tuple[Part, ...]:
    """The parts in ``data``; bytes that are missing at the end are zero (AVQ-DEV-01). No count says how many parts
    there are: zero bytes behind the last one are padding. WireError for a value longer than any.
    """
    parts = []
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        header, start = PART_HEADER.read(data, at)
        if header.length > MOST_VALUE:
            raise WireError(f"part {header.part_type:#x}: a value of {header.length} bytes")
        at = start + header.length
        value = data[start:at].ljust(header.length, b"\0")
        parts.append(Part(header.part_type, value, header.flags, header.selector))
    return tuple(parts)


def headers_build(headers: Iterable[PartHeader]) -> bytes:
    """Headers one behind the other."""
    return b"".join(map(PART_HEADER.build, headers))


def headers_parse(data: bytes) -> tuple[PartHeader, ...]:
    """The headers in ``data``; zero bytes behind the last one are padding."""
    end = len(data.rstrip(b"\0"))
    return tuple(PART_HEADER.read(data, at)[0] for at in range(0, end, PART_HEADER.fixed_size))


def header_views(data: bytes, at: int, name: str) -> tuple[list[FieldView], int]:
    """The headers from ``at`` on for people, and the offset behind them; padding is left out. Never raises."""
    views: list[FieldView] = []
    number, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        found, at = PART_HEADER.views(data, at, f"{name}[{number}].")
        views += found
        number += 1
    return views, min(at, len(data))


def part_views(data: bytes, at: int, name: str) -> tuple[list[FieldView], int]:
    """As :func:`header_views`, of parts with their values."""
    views: list[FieldView] = []
    number, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        header, _ = PART_HEADER.read(data, at)
        found, at = PART_HEADER.views(data, at, f"{name}[{number}].hdr.")
        value = octets(f"{name}[{number}].value", min(header.length, max(len(data) - at, 0)))
        views += found
        more, at = field_views((value,), data, at)
        views += more
        number += 1
    return views, min(at, len(data))
