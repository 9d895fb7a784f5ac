"""One exception tree. Each admin error carries the status and qualifier that go on the wire.

Everything that this package raises on purpose derives from :class:`VirtioIpsecError`; anything else that
escapes is a defect. Errors that a device answers on the wire derive from :class:`AdminError` and carry
``status`` (virtio v1.4 2.12.1, table of status values), ``qualifier`` and, where one is enforced, the id of
the clause in ``spec/clauses.json``.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class AdminStatus(IntEnum):
    """``status`` of an administration command (virtio v1.4, Group administration commands).

    EEXIST is required by the text and missing from its table; 17 is the errno value (ledger E02).
    """

    OK = 0
    ENXIO = 6
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28


class AdminQualifier(IntEnum):
    """``status_qualifier`` of an administration command."""

    OK = 0
    INVALID_COMMAND = 1
    INVALID_OPCODE = 2
    INVALID_FIELD = 3
    INVALID_GROUP = 4
    INVALID_MEMBER = 5
    NORESOURCE = 6
    TRYAGAIN = 7


class VirtioIpsecError(Exception):
    """Root of every error this package raises on purpose."""


class WireError(VirtioIpsecError):
    """Bytes that do not form the structure they should, or a value that does not fit its field."""


class ConfigError(VirtioIpsecError):
    """A configuration file or argument that cannot be used; the message says what to change."""


class MemoryAccessError(VirtioIpsecError):
    """An address range outside the guest memory that was shared."""


class RingError(VirtioIpsecError):
    """A virtqueue whose contents break the ring rules. The queue is unusable until it is reset."""


class TransportError(VirtioIpsecError):
    """The other side cannot be reached or has stopped answering."""


class DeviceStateError(VirtioIpsecError):
    """A call that the device's present status does not allow (not negotiated, not DRIVER_OK)."""


class AdminError(VirtioIpsecError):
    """A failed administration command.

    ``status`` and ``qualifier`` are what the wire carries; ``clause`` is the clause id that demands it.
    """

    status: int = AdminStatus.EINVAL
    qualifier: int = AdminQualifier.INVALID_COMMAND

    def __init__(self, message: str, *, clause: str = "") -> None:
        super().__init__(message)
        self.clause = clause


class InvalidOpcode(AdminError):
    """Unsupported, unlisted or disabled opcode."""

    qualifier = AdminQualifier.INVALID_OPCODE


class InvalidField(AdminError):
    """A field of the command-specific data holds a value that is refused."""

    qualifier = AdminQualifier.INVALID_FIELD


class InvalidGroup(AdminError):
    """Unsupported ``group_type``."""

    qualifier = AdminQualifier.INVALID_GROUP


class InvalidMember(AdminError):
    """``group_member_id`` outside the group."""

    qualifier = AdminQualifier.INVALID_MEMBER


class NoSuchObject(AdminError):
    """No such capability or resource object."""

    status = AdminStatus.ENXIO
    qualifier = AdminQualifier.INVALID_FIELD


class AlreadyExists(AdminError):
    """CREATE of a (type, id) that exists."""

    status = AdminStatus.EEXIST
    qualifier = AdminQualifier.INVALID_FIELD


class Busy(AdminError):
    """The object or capability is still depended upon."""

    status = AdminStatus.EBUSY
    qualifier = AdminQualifier.INVALID_FIELD


class NoSpace(AdminError):
    """A limit or an internal table is exhausted."""

    status = AdminStatus.ENOSPC
    qualifier = AdminQualifier.NORESOURCE


class TryAgain(AdminError):
    """What the command needs does not answer now."""

    status = AdminStatus.EAGAIN
    qualifier = AdminQualifier.TRYAGAIN


class NoMemory(AdminError):
    """The answer has no room, or the device has none to make it."""

    status = AdminStatus.ENOMEM
    qualifier = AdminQualifier.NORESOURCE


class CommandFailed(AdminError):
    """Driver side: the device answered with a status other than OK.

    Unknown statuses are to be handled like EINVAL and unknown qualifiers like INVALID_COMMAND
    (ADM-DRV-08, ADM-DRV-09); ``raw_status`` and ``raw_qualifier`` keep what was received.
    """

    def __init__(self, message: str, *, status: int, qualifier: int, clause: str = "") -> None:
        super().__init__(message, clause=clause)
        self.raw_status = status
        self.raw_qualifier = qualifier
        self.status = status if status in AdminStatus._value2member_map_ else AdminStatus.EINVAL
        known = qualifier in AdminQualifier._value2member_map_
        self.qualifier = qualifier if known else AdminQualifier.INVALID_COMMAND


class Reason(StrEnum):
    """Why a packet was not processed: the name of the counter that counts it."""

    # SA lookup and state
    UNKNOWN_SA = "unknown_sa"
    WRONG_DIRECTION = "wrong_direction"
    HARD_LIFETIME = "hard_lifetime"
    SEQUENCE_OVERFLOW = "sequence_overflow"
    # inbound checks
    REPLAY = "replay"
    BAD_ICV = "bad_icv"
    BAD_PADDING = "bad_padding"
    BAD_NEXT_HEADER = "bad_next_header"
    BAD_INNER = "bad_inner"
    DUMMY = "dummy"
    CONGESTION = "congestion"  # marked outside, not ECN-capable inside: RFC 6040 4.2 demands the drop
    NOT_IPSEC = "not_ipsec"
    FRAGMENT = "fragment"
    # packet form
    MALFORMED = "malformed"
    NOT_IP = "not_ip"
    TTL_EXPIRED = "ttl_expired"
    TOO_BIG = "too_big"
    # device path
    BAD_HEADER = "bad_header"
    BAD_CHECKSUM_REQUEST = "bad_checksum_request"
    BAD_GSO = "bad_gso"
    FILTERED = "filtered"
    RULE_DROP = "rule_drop"
    NO_BUFFER = "no_buffer"
    QUEUE_DISABLED = "queue_disabled"
    OVERLOAD = "overload"  # more packets at a time than the fast path may hand to Python
    HELD = "held"  # the SA moves elsewhere, or nobody has yet written down that the next sequence numbers are used


class PacketError(VirtioIpsecError):
    """A packet that IPsec processing refuses. ``reason`` names the counter; no plaintext is attached."""

    def __init__(self, reason: Reason, message: str = "") -> None:
        super().__init__(message or reason.value)
        self.reason = reason


class IntegrityError(PacketError):
    """The integrity check value does not match: no plaintext was produced."""

    def __init__(self, message: str = "integrity check value does not match") -> None:
        super().__init__(Reason.BAD_ICV, message)
