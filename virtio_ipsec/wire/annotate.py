"""Administration commands and replies taken apart for people, by opcode, object type and capability.

Nothing here raises: what the bytes do not allow to be named is shown as bytes. Key and salt bytes are marked
secret by ``redact`` and their text says only how many they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    ADMIN_REPLY,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    id_bitmap_parse,
)
from virtio_ipsec.wire.codec import FieldView, trailing
from virtio_ipsec.wire.device_parts import (
    METADATA_COMMAND,
    METADATA_RESULT,
    MODE_SET,
    PARTS_GET,
    PARTS_SET,
    header_views,
    part_views,
)
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.fields import Field, field_views, octets
from virtio_ipsec.wire.numbers import CapId, Opcode
from virtio_ipsec.wire.redact import Secret, admin_secrets, reply_secrets, sa_secrets

_Views = tuple[list[FieldView], int]

_OBJECT_HEAD = OBJECT_COMMAND.members.fields
_CAP_HEAD = CAP_COMMAND.members.fields

_HEADS: Mapping[str, tuple[Field, ...]] = {
    "DEVICE_CAP_GET": _CAP_HEAD,
    "DRIVER_CAP_SET": _CAP_HEAD,
    "RESOURCE_OBJ_CREATE": _OBJECT_HEAD,
    "RESOURCE_OBJ_MODIFY": _OBJECT_HEAD,
    "RESOURCE_OBJ_QUERY": _OBJECT_HEAD,
    "RESOURCE_OBJ_DESTROY": RESOURCE_HEADER.members.fields,
    "DEV_PARTS_METADATA_GET": METADATA_COMMAND.members.fields,
    "DEV_PARTS_GET": PARTS_GET.members.fields,
    "DEV_PARTS_SET": PARTS_SET.members.fields,
    "DEV_MODE_SET": MODE_SET.members.fields,
}
"""What ``command_specific_data`` starts with; a le16 at its start is the object type or capability id."""

_PAYLOADS = {
    "DRIVER_CAP_SET": "cap_specific_data",
    "RESOURCE_OBJ_CREATE": "resource_obj_specific_data",
    "RESOURCE_OBJ_MODIFY": "resource_obj_specific_data",
}
"""What follows the head in the command."""

_RESULTS = {
    "DEVICE_CAP_GET": "cap_specific_data",
    "RESOURCE_OBJ_QUERY": "resource_obj_specific_result",
}
"""What the device answers."""


def opcode_name(opcode: int, dialect: Dialect) -> str:
    """The opcode's name in this dialect, which may swap QUERY and MODIFY (E01); its number if it has none."""
    if opcode == dialect.query_opcode:
        return Opcode.RESOURCE_OBJ_QUERY.name
    if opcode == dialect.modify_opcode:
        return Opcode.RESOURCE_OBJ_MODIFY.name
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"{opcode:#x}"


def annotate_admin(readable: bytes, dialect: Dialect) -> tuple[FieldView, ...]:
    """Every field of the device-readable part of a command."""
    command = ADMIN_COMMAND.parse(readable)
    name = opcode_name(command.opcode, dialect)
    views, at = field_views(ADMIN_COMMAND.members.fields, readable, 0)
    if views:
        views[0] = replace(views[0], text=f"{name} ({command.opcode:#x})")
    if name == "LIST_USE":
        found, at = _bitmap(name, readable, at, dialect)
    else:
        found, at = field_views(_HEADS.get(name, ()), readable, at)
    views += found
    if name == "DEV_PARTS_GET":
        found, at = header_views(readable, at, "hdr_list")
        views += found
    elif name == "DEV_PARTS_SET":
        found, at = part_views(readable, at, "parts")
        views += found
    if name in _PAYLOADS:
        found, at = _payload(_PAYLOADS[name], command.data, readable, at, dialect)
        views += found
    return _finish(views, readable, at, admin_secrets(readable, dialect))


def annotate_reply(readable: bytes, writable: bytes, dialect: Dialect) -> tuple[FieldView, ...]:
    """Every field of ``writable``, what the device wrote in answer to the command ``readable``."""
    command = ADMIN_COMMAND.parse(readable)
    name = opcode_name(command.opcode, dialect)
    views, at = field_views(ADMIN_REPLY.members.fields, writable, 0)
    found: list[FieldView] = []
    if name in _RESULTS:
        found, at = _payload(_RESULTS[name], command.data, writable, at, dialect)
    elif name == "DEV_PARTS_METADATA_GET":
        found, at = field_views(METADATA_RESULT.members.fields, writable, at)
        headers, at = header_views(writable, at, "hdr_list.hdrs")
        found += headers
    elif name == "DEV_PARTS_GET":
        found, at = part_views(writable, at, "parts")
    elif name in ("LIST_QUERY", "CAP_ID_LIST_QUERY"):
        found, at = _bitmap(name, writable, at, dialect)
    return _finish([*views, *found], writable, at, reply_secrets(readable, writable, dialect))


def annotate_sa(data: bytes, dialect: Dialect) -> tuple[FieldView, ...]:
    """Every field of an SA object that stands alone."""
    views, at = dialect.sa.views(data, 0)
    return _finish(views, data, at, sa_secrets(data, dialect))


def _finish(
    views: list[FieldView], data: bytes, at: int, secrets: tuple[Secret, ...]
) -> tuple[FieldView, ...]:
    return tuple(_hide(view, secrets) for view in (*views, *trailing(data, at)))


def _hide(view: FieldView, secrets: tuple[Secret, ...]) -> FieldView:
    end = view.offset + len(view.raw)
    if any(view.offset < each.offset + each.length and each.offset < end for each in secrets):
        return replace(view, text=f"{len(view.raw)} secret bytes", secret=True)
    return view


def _payload(name: str, specific: bytes, data: bytes, at: int, dialect: Dialect) -> _Views:
    """The structure at ``at`` that the le16 at the start of ``specific`` selects."""
    key = int.from_bytes(specific[:2], "little")
    codecs = dialect.capabilities if name.startswith("cap") else dialect.objects
    if key in codecs:
        return codecs[key].views(data, at, f"{name}.")
    return field_views((octets(name, max(len(data) - at, 0)),), data, at)


def _bitmap(command: str, data: bytes, at: int, dialect: Dialect) -> _Views:
    ids = sorted(id_bitmap_parse(data[at:]))
    if command == "CAP_ID_LIST_QUERY":
        name, texts = "supported_caps", [_cap_name(each) for each in ids]
    else:
        name, texts = "device_admin_cmd_opcodes", [opcode_name(each, dialect) for each in ids]
    whole = octets(name, max(len(data) - at, 0), lambda _raw: ", ".join(texts) or "none")
    return field_views((whole,), data, at)


def _cap_name(id: int) -> str:
    return CapId(id).name if id in CapId._value2member_map_ else f"{id:#x}"
