"""The vhost-user protocol as a table: requests, protocol features, payload layouts, and what each message may carry.

Written after the protocol's text (QEMU, ``docs/interop/vhost-user.rst``). Numbers are in the host's byte order;
names are the text's, without ``VHOST_USER_``. Requests that are named but have no row in :data:`FRONTEND` or
:data:`BACKEND` belong to features that nobody here negotiates.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Any, Final

from virtio_ipsec.transport.payload import NOTHING, Layout, MessageError, record

#: Feature bits that stand for the transport, not for the device (bits of SET_FEATURES).
F_LOG_ALL: Final = 26
F_PROTOCOL_FEATURES: Final = 30
#: Most file descriptors in one message, and most regions in SET_MEM_TABLE.
MAX_FDS: Final = 8
#: Most bytes of configuration in one GET_CONFIG or SET_CONFIG (the text names no number; QEMU's is this).
MAX_CONFIG: Final = 256
#: Bytes of a page of the dirty log.
LOG_PAGE: Final = 0x1000
#: Bits of the payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 0x100
#: Flag of SET_VRING_ADDR: writes to the used ring are logged.
VRING_F_LOG: Final = 1


class Flag(IntFlag):
    """The ``flags`` word of a message: a version of two bits, then these."""

    VERSION = 1
    VERSION_MASK = 3
    REPLY = 4
    NEED_REPLY = 8


class ProtocolFeature(IntEnum):
    """Bit numbers of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    NET_MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    SHMEM_MAP = 22


class Request(IntEnum):
    """What a front-end sends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a back-end sends over the socket that SET_BACKEND_REQ_FD gave it."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


@dataclass(frozen=True, slots=True)
class VringState:
    """A number for one vring: its size, its base, whether it is enabled."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddress:
    """Where a vring lies: front-end user addresses, and a guest address for the log."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int = 0


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """``size`` bytes of guest memory, found at ``mmap_offset`` of the file that comes with it."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class Log:
    """The dirty log: ``size`` bytes at ``offset`` of the file that comes with it."""

    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Config:
    """A piece of configuration space. An answer with ``size`` 0 and no data is an error."""

    offset: int
    size: int
    flags: int = 0
    data: bytes = b""

    #: Values of ``flags``.
    WRITABLE = 0
    MIGRATION = 1


@dataclass(frozen=True, slots=True)
class Inflight:
    """The in-flight buffer: ``mmap_size`` bytes at ``mmap_offset`` of the file that comes with it."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class VringFile:
    """A vring of SET_VRING_KICK, _CALL or _ERR; without ``has_fd`` the other side is to poll."""

    index: int
    has_fd: bool = True


def _build_memory(regions: tuple[MemoryRegion, ...]) -> bytes:
    return struct.pack("=II", len(regions), 0) + b"".join(_REGION.pack(*astuple(each)) for each in regions)


def _parse_memory(payload: bytes) -> tuple[MemoryRegion, ...]:
    (count,) = struct.unpack_from("=I", payload)
    if len(payload) != 8 + count * _REGION.size:
        raise MessageError(f"a memory table of {count} regions has {len(payload)} bytes")
    return tuple(MemoryRegion(*values) for values in _REGION.iter_unpack(payload[8:]))


def _parse_config(payload: bytes) -> Config:
    offset, size, flags = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if len(data) != size:
        raise MessageError(f"a configuration message for {size} bytes carries {len(data)}")
    return Config(offset, size, flags, data)


def _parse_vring_file(payload: bytes) -> VringFile:
    (value,) = _U64.unpack(payload)
    if value & ~(VRING_INDEX_MASK | VRING_NO_FD):
        raise MessageError(f"{value:#x} names no vring")
    return VringFile(value & VRING_INDEX_MASK, not value & VRING_NO_FD)


_U64 = struct.Struct("=Q")
_REGION = struct.Struct("=QQQQ")
_CONFIG = struct.Struct("=III")
_INFLIGHT = struct.Struct("=QQHH4x")
_INFLIGHT_FIELDS = struct.calcsize("=QQHH")

U64: Final[Layout[int]] = Layout("u64", 8, 8, _U64.pack, lambda payload: int(_U64.unpack(payload)[0]))
VRING_STATE: Final = record("vring state", "II", VringState)
VRING_ADDRESS: Final = record("vring address", "IIQQQQ", VringAddress)
MEMORY: Final[Layout[tuple[MemoryRegion, ...]]] = Layout(
    "memory regions", 8, 8 + MAX_FDS * _REGION.size, _build_memory, _parse_memory
)
MEMORY_REGION: Final[Layout[MemoryRegion]] = Layout(
    "single memory region",
    8 + _REGION.size,
    8 + _REGION.size,
    lambda region: bytes(8) + _REGION.pack(*astuple(region)),
    lambda payload: MemoryRegion(*_REGION.unpack_from(payload, 8)),
)
LOG: Final = record("log", "QQ", Log)
#: Without LOG_SHMFD the payload of SET_LOG_BASE is an address that means nothing to another process.
LOG_BASE: Final[Layout[Log | None]] = Layout(
    "log base",
    8,
    16,
    lambda log: LOG.build(log) if log else bytes(8),
    lambda payload: LOG.parse(payload) if len(payload) > 8 else None,
)
CONFIG: Final[Layout[Config]] = Layout(
    "configuration",
    _CONFIG.size,
    _CONFIG.size + MAX_CONFIG,
    lambda config: _CONFIG.pack(config.offset, config.size, config.flags) + config.data,
    _parse_config,
)
#: The structure ends in four bytes of padding that C adds and QEMU and DPDK send; some front-ends leave them out.
INFLIGHT: Final[Layout[Inflight]] = Layout(
    "in-flight",
    _INFLIGHT_FIELDS,
    _INFLIGHT.size,
    lambda value: _INFLIGHT.pack(*astuple(value)),
    lambda payload: Inflight(*_INFLIGHT.unpack(payload.ljust(_INFLIGHT.size, b"\0"))),
)
VRING_FILE: Final[Layout[VringFile]] = Layout(
    "vring file",
    8,
    8,
    lambda file: _U64.pack(file.index | (0 if file.has_fd else VRING_NO_FD)),
    _parse_vring_file,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one request carries: payload, file descriptors, an answer of its own, and the feature that allows it.

    A request without ``answer`` is answered with a U64 (0: done) if it asks for it and REPLY_ACK is negotiated.
    ``most_fds`` bounds what is legal; whether a descriptor is missing only the payload can tell for some.
    """

    payload: Layout[Any] = NOTHING
    answer: Layout[Any] | None = None
    fewest_fds: int = 0
    most_fds: int = 0
    feature: ProtocolFeature | None = None

    def check(self, name: str, payload: bytes, fds: int) -> None:
        """MessageError unless sizes are legal."""
        if not self.payload.smallest <= len(payload) <= self.payload.largest:
            raise MessageError(f"{name} with {len(payload)} bytes of payload")
        if not self.fewest_fds <= fds <= self.most_fds:
            raise MessageError(f"{name} with {fds} file descriptors")


_F = ProtocolFeature
_R = Request
_VRING_FILE = Kind(VRING_FILE, most_fds=1)

FRONTEND: Final[Mapping[int, Kind]] = MappingProxyType(
    {
        _R.GET_FEATURES: Kind(answer=U64),
        _R.SET_FEATURES: Kind(U64),
        _R.SET_OWNER: Kind(),
        _R.RESET_OWNER: Kind(),
        _R.SET_MEM_TABLE: Kind(MEMORY, most_fds=MAX_FDS),
        _R.SET_LOG_BASE: Kind(LOG_BASE, U64, most_fds=1, feature=_F.LOG_SHMFD),
        _R.SET_LOG_FD: Kind(Layout("nothing or u64", 0, 8, bytes, bytes), fewest_fds=1, most_fds=1),
        _R.SET_VRING_NUM: Kind(VRING_STATE),
        _R.SET_VRING_ADDR: Kind(VRING_ADDRESS),
        _R.SET_VRING_BASE: Kind(VRING_STATE),
        _R.GET_VRING_BASE: Kind(VRING_STATE, VRING_STATE),
        _R.SET_VRING_KICK: _VRING_FILE,
        _R.SET_VRING_CALL: _VRING_FILE,
        _R.SET_VRING_ERR: _VRING_FILE,
        _R.GET_PROTOCOL_FEATURES: Kind(answer=U64),
        _R.SET_PROTOCOL_FEATURES: Kind(U64),
        _R.GET_QUEUE_NUM: Kind(answer=U64, feature=_F.MQ),
        _R.SET_VRING_ENABLE: Kind(VRING_STATE),
        _R.SEND_RARP: Kind(U64, feature=_F.RARP),
        _R.NET_SET_MTU: Kind(U64, feature=_F.NET_MTU),
        _R.SET_BACKEND_REQ_FD: Kind(fewest_fds=1, most_fds=1, feature=_F.BACKEND_REQ),
        _R.GET_CONFIG: Kind(CONFIG, CONFIG, feature=_F.CONFIG),
        _R.SET_CONFIG: Kind(CONFIG, feature=_F.CONFIG),
        _R.GET_INFLIGHT_FD: Kind(INFLIGHT, INFLIGHT, feature=_F.INFLIGHT_SHMFD),
        _R.SET_INFLIGHT_FD: Kind(INFLIGHT, fewest_fds=1, most_fds=1, feature=_F.INFLIGHT_SHMFD),
        _R.RESET_DEVICE: Kind(feature=_F.RESET_DEVICE),
        _R.GET_MAX_MEM_SLOTS: Kind(answer=U64, feature=_F.CONFIGURE_MEM_SLOTS),
        _R.ADD_MEM_REG: Kind(MEMORY_REGION, fewest_fds=1, most_fds=1, feature=_F.CONFIGURE_MEM_SLOTS),
        # A descriptor with REM_MEM_REG is to be closed without use.
        _R.REM_MEM_REG: Kind(MEMORY_REGION, most_fds=1, feature=_F.CONFIGURE_MEM_SLOTS),
        _R.SET_STATUS: Kind(U64, feature=_F.STATUS),
        _R.GET_STATUS: Kind(answer=U64, feature=_F.STATUS),
    }
)

BACKEND: Final[Mapping[int, Kind]] = MappingProxyType({BackendRequest.CONFIG_CHANGE_MSG: Kind()})


def name_of(request: int) -> str:
    """The name of a front-end's request, or its number."""
    return Request(request).name if request in Request._value2member_map_ else f"request {request}"


def bits(*features: ProtocolFeature) -> int:
    """The word in which exactly these protocol features are set."""
    return sum(1 << feature for feature in {*features})
