"""Where key and salt bytes lie in administration traffic: the one redactor behind every trace and report.

It would rather mask too much. Whatever object command names an SA type counts as carrying an SA, QUERY as
well as MODIFY (a driver may mean the other opcode, E01). An SA whose length is not the dialect's, such as one
with C alignment (E19) or of the other dialect, has its keys elsewhere: then all from the earliest key byte of
any layout to the end is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from virtio_ipsec.wire.admin import ADMIN_COMMAND, ADMIN_REPLY, OBJECT_COMMAND
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Opcode, ResourceType

_SA_TYPES = (ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA)
_OBJECT_OPCODES = range(Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY + 1)
_OBJECT_AT = ADMIN_COMMAND.fixed_size + OBJECT_COMMAND.fixed_size


@dataclass(frozen=True, slots=True)
class Secret:
    """A range of secret bytes."""

    offset: int
    length: int


def sa_secrets(data: bytes, dialect: Dialect, at: int = 0) -> tuple[Secret, ...]:
    """Secret bytes of ``data`` from ``at`` to its end taken as an SA object; offsets count from 0."""
    present = len(data) - at
    found = list(_declared(dialect.sa))
    if not dialect.sa.fixed_size <= present < dialect.sa.fixed_size + 8:
        found = [secret for secret in found if secret.offset < _earliest_key()]
        found.append(Secret(_earliest_key(), present))
    return tuple(
        Secret(at + secret.offset, min(secret.length, present - secret.offset))
        for secret in found
        if secret.offset < present
    )


def admin_secrets(readable: bytes, dialect: Dialect) -> tuple[Secret, ...]:
    """Secret bytes of the device-readable part of an administration command."""
    return sa_secrets(readable, dialect, _OBJECT_AT) if _is_about_sa(readable) else ()


def reply_secrets(readable: bytes, writable: bytes, dialect: Dialect) -> tuple[Secret, ...]:
    """Secret bytes of the device-written part ``writable``, the answer to ``readable``."""
    return sa_secrets(writable, dialect, ADMIN_REPLY.fixed_size) if _is_about_sa(readable) else ()


def masked_hex(data: bytes, secrets: tuple[Secret, ...]) -> str:
    """Hexadecimal digits of ``data`` with ``xx`` for each secret byte."""
    hidden = {at for secret in secrets for at in range(secret.offset, secret.offset + secret.length)}
    return "".join("xx" if at in hidden else f"{byte:02x}" for at, byte in enumerate(data))


def _is_about_sa(readable: bytes) -> bool:
    command = ADMIN_COMMAND.parse(readable)
    return command.opcode in _OBJECT_OPCODES and OBJECT_COMMAND.parse(command.data).type in _SA_TYPES


@cache
def _declared(codec: Codec[IpsecSa]) -> tuple[Secret, ...]:
    views = codec.annotate(bytes(codec.fixed_size))
    return tuple(Secret(view.offset, view.size) for view in views if view.secret)


@cache
def _earliest_key() -> int:
    """The lowest offset of key bytes in any dialect; what lies before is the head that all layouts share."""
    rows = (row for dialect in DIALECTS.values() for row in dialect.sa.layout())
    return min(row.offset for row in rows if row.name.endswith("_key.data"))
