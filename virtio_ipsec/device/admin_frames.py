"""The frames of administration commands, by ``struct``: rekeying thousands of SAs a second is a data path of its own.

The codecs of ``wire`` say the same more readably, and the tests hold the two together.
"""

from __future__ import annotations

import struct
from typing import Final

from virtio_ipsec.errors import AdminQualifier, AdminStatus
from virtio_ipsec.wire.admin import AdminCommand, ObjectCommand

_COMMAND: Final = struct.Struct("<HH12xQ")
_OBJECT: Final = struct.Struct("<HxxIQ")
_REPLY: Final = struct.Struct("<HH4x")
#: Bytes of an answer without a result.
REPLY_SIZE: Final = _REPLY.size
OK: Final = (int(AdminStatus.OK), int(AdminQualifier.OK))


def parse_command(readable: bytes) -> AdminCommand:
    """The device-readable part; missing bytes are zero (AVQ-DEV-01)."""
    head = readable if len(readable) >= _COMMAND.size else readable.ljust(_COMMAND.size, b"\0")
    opcode, group_type, member = _COMMAND.unpack_from(head)
    return AdminCommand(opcode, group_type, member, readable[_COMMAND.size :])


def parse_object(data: bytes) -> ObjectCommand:
    """Data of an object command; missing bytes are zero."""
    head = data if len(data) >= _OBJECT.size else data.ljust(_OBJECT.size, b"\0")
    kind, object_id, flags = _OBJECT.unpack_from(head)
    return ObjectCommand(kind, object_id, flags, data[_OBJECT.size :])


def build_reply(status: int, qualifier: int, result: bytes = b"") -> bytes:
    """The device-writable part, a multiple of 8 bytes (AVQ-DEV-05)."""
    return _REPLY.pack(status, qualifier) + result + bytes(-len(result) % 8)
