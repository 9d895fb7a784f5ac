"""Administration command frame, capability and resource-object commands (virtio v1.4 2.12).

Readable and writable parts are multiples of 8 bytes; builders pad with zeros, parsers follow AVQ-DEV-01.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Data, Headed, Record
from virtio_ipsec.wire.fields import hexadecimal, le16, le32, le64, named, reserved
from virtio_ipsec.wire.numbers import AdminQualifier, AdminStatus, CapId, GroupType, Opcode, ResourceType
from virtio_ipsec.wire.quick import quick_init

_ID_LIMIT = 0x10000
"""Opcodes and capability ids are 16 bits wide: no bitmap says anything about higher numbers."""


@quick_init
@dataclass(frozen=True, slots=True)
class AdminCommand:
    """The device-readable part. ``data`` is ``command_specific_data``: any length, may hold keys."""

    opcode: int
    group_type: int = GroupType.SELF
    group_member_id: int = 0
    data: bytes = field(default=b"", repr=False)


@quick_init
@dataclass(frozen=True, slots=True)
class AdminReply:
    """The device-writable part. ``result`` is ``command_specific_result``: any length, may hold keys."""

    status: int = AdminStatus.OK
    qualifier: int = AdminQualifier.OK
    result: bytes = field(default=b"", repr=False)


@quick_init
@dataclass(frozen=True, slots=True)
class ResourceHeader:
    """``virtio_admin_cmd_resource_obj_cmd_hdr``: which object; all that DESTROY carries."""

    type: int
    id: int


@quick_init
@dataclass(frozen=True, slots=True)
class ObjectCommand:
    """CREATE, MODIFY and (without ``data``) QUERY of a resource object. ``data`` may hold keys."""

    type: int
    id: int
    flags: int = 0
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class CapCommand:
    """DEVICE_CAP_GET (no ``data``) and DRIVER_CAP_SET."""

    id: int
    data: bytes = b""


class _ReplyCodec(Headed[AdminReply]):
    """A reply without its two status words must not read as status OK, so those are never made up."""

    def read(self, data: bytes, at: int) -> tuple[AdminReply, int]:
        if len(data) - at < 4:
            raise WireError(f"{self.name}: {max(len(data) - at, 0)} bytes hold no status")
        return super().read(data, at)


ADMIN_COMMAND = Headed(
    "virtio_admin_cmd_readable",
    (
        le16("opcode", named(Opcode)),
        le16("group_type", named(GroupType)),
        reserved("reserved1", 12),
        le64("group_member_id"),
    ),
    AdminCommand,
    tail="command_specific_data",
    to="data",
    align=8,
    may_hold_keys=True,
)
"""Readable part of ``virtio_admin_cmd``: 24 bytes, then the command's data."""

ADMIN_REPLY = _ReplyCodec(
    "virtio_admin_cmd_writable",
    (
        le16("status", named(AdminStatus)),
        le16("status_qualifier", named(AdminQualifier), to="qualifier"),
        reserved("reserved2", 4),
    ),
    AdminReply,
    tail="command_specific_result",
    to="result",
    align=8,
    may_hold_keys=True,
)
"""Writable part of ``virtio_admin_cmd``: 8 bytes, then the command's result."""

RESOURCE_HEADER = Record(
    "virtio_admin_cmd_resource_obj_cmd_hdr",
    (le16("type", named(ResourceType)), reserved("reserved", 2), le32("id")),
    ResourceHeader,
)

OBJECT_COMMAND = Headed(
    "virtio_admin_cmd_resource_obj_create_data",
    (
        le16("hdr.type", named(ResourceType), to="type"),
        reserved("hdr.reserved", 2),
        le32("hdr.id", to="id"),
        le64("flags", hexadecimal),
    ),
    ObjectCommand,
    tail="resource_obj_specific_data",
    to="data",
    may_hold_keys=True,
)
"""Also ``..._modify_data`` and ``..._query_data`` (the latter ends behind ``flags``)."""

CAP_COMMAND = Headed(
    "virtio_admin_cmd_cap_set_data",
    (le16("id", named(CapId)), reserved("reserved", 6)),
    CapCommand,
    tail="cap_specific_data",
    to="data",
)
"""Also ``virtio_admin_cmd_cap_get_data``, which ends behind ``reserved``."""


def id_bitmap_build(ids: Iterable[int]) -> bytes:
    """le64 words with bit ``n % 64`` of word ``n // 64`` set for each id: just enough words (E33).

    Serves ``device_admin_cmd_opcodes`` and ``supported_caps``. WireError for an id outside 0..0xffff.
    """
    wanted = frozenset(ids)
    for each in wanted:
        if not 0 <= each < _ID_LIMIT:
            raise WireError(f"id {each} does not fit 16 bits")
    words = bytearray((max(wanted) // 64 + 1) * 8 if wanted else 0)
    for each in wanted:
        words[each // 8] |= 1 << each % 8
    return bytes(words)


def id_bitmap_parse(data: Data) -> frozenset[int]:
    """The ids of a bitmap of any length; bits for ids above 0xffff are ignored."""
    useful = bytes(data)[: _ID_LIMIT // 8]
    return frozenset(
        at * 8 + bit for at, byte in enumerate(useful) if byte for bit in range(8) if byte >> bit & 1
    )
