"""Migration of a function (VFIO's version 2): its client stops it, reads what it is, and makes another one the same.

What is read are device parts (virtio v1.4 2.14), which hold registers and queues, but no SAs, no flow rules and no
driver capabilities (ledger E80): a function whose driver has set up such is not migrated. Nor are owners and their
members, whose parts are their owner's to move. Which pages were written nobody is told: who migrates copies all memory
once the function has stopped.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final

from virtio_ipsec.device.device_parts import changed, check_parts, parts_of
from virtio_ipsec.device.members import FunctionState
from virtio_ipsec.errors import AdminError, WireError
from virtio_ipsec.transport.vfio_user.messages import Refused
from virtio_ipsec.transport.vfio_user.payloads import DeviceFeature, FeatureFlag, MigrationData
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.wire.device_parts import parts_build, parts_parse

#: In front of the parts: what follows, and how many bytes of it.
_PREFIX = struct.Struct("<8sQ")
_MAGIC: Final = b"devparts"
#: Most bytes: far more than a function with all its queues has.
_MOST: Final = 1 << 22
_MIGRATION = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_HEAD = 8
_METHODS: Final = int(FeatureFlag.GET | FeatureFlag.SET)
_KNOWN: Final = int(FeatureFlag.MASK | FeatureFlag.GET | FeatureFlag.SET | FeatureFlag.PROBE)


class Feature(IntEnum):
    """``VFIO_DEVICE_FEATURE_``."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2


class Ability(IntFlag):
    """``VFIO_MIGRATION_``."""

    STOP_COPY = 1


class State(IntEnum):
    """``VFIO_DEVICE_STATE_``, those that a function can be in."""

    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4


class Migration:
    """One client's. Everything in the control thread."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._device = function.port.device
        self._state = State.RUNNING
        #: What is left to be read, or has been written.
        self._data = b""
        #: What the function is to be when it runs again.
        self._next: FunctionState | None = None

    def close(self) -> None:
        """Reset: the function runs, and nothing is being moved."""
        if self._state is not State.RUNNING:
            self._function.go_on()
        self._state, self._data, self._next = State.RUNNING, b"", None

    def feature(self, asked: DeviceFeature) -> DeviceFeature:
        """Get, set or probe one. Refused with ENOTTY for what there is not."""
        methods = asked.flags & _METHODS
        probes = bool(asked.flags & FeatureFlag.PROBE)
        if asked.flags & ~_KNOWN or (methods.bit_count() != 1 and not probes):
            raise Refused(errno.EINVAL, f"a device feature with flags {asked.flags:#x}")
        number = int(asked.flags & FeatureFlag.MASK)
        supported = _FEATURES.get(number, 0) if self._is_offered else 0
        if not supported or methods & ~supported:
            raise Refused(errno.ENOTTY, f"there is no such device feature: {asked.flags:#x}")
        if probes:
            return asked
        if methods == FeatureFlag.SET:
            self._set(asked.data)
            return asked
        data = (
            _MIGRATION.pack(Ability.STOP_COPY) if number == Feature.MIGRATION else _STATE.pack(self._state, 0)
        )
        if asked.argsz < _HEAD + len(data):
            raise Refused(errno.EINVAL, f"room for {asked.argsz} bytes of a device feature")
        return DeviceFeature(asked.flags, data, _HEAD + len(data))

    def read(self, size: int) -> MigrationData:
        """The next bytes; fewer than asked for are the last."""
        if self._state is not State.STOP_COPY:
            raise Refused(errno.EINVAL, "nothing is being saved")
        piece, self._data = self._data[:size], self._data[size:]
        return MigrationData(len(piece), piece)

    def write(self, data: bytes) -> None:
        """More bytes."""
        if self._state is not State.RESUMING:
            raise Refused(errno.EINVAL, "nothing is being restored")
        if len(self._data) + len(data) > _MOST:
            raise Refused(errno.ENOSPC, f"more than {_MOST} bytes of device parts")
        self._data += data

    @property
    def _is_offered(self) -> bool:
        return not self._function.is_virtual and self._device.members is None

    def _set(self, data: bytes) -> None:
        if len(data) != _STATE.size:
            raise Refused(errno.EINVAL, f"a device state of {len(data)} bytes")
        number, _ = _STATE.unpack(data)
        if number not in State._value2member_map_:
            raise Refused(errno.EINVAL, f"device state {number}")
        wanted = State(number)
        if wanted is self._state:
            return
        if wanted is State.STOP_COPY:
            self._check()
        # Every way between two of the others leads through this one.
        for arc in ((self._state, State.STOP), (State.STOP, wanted)):
            if arc[0] is not arc[1]:
                _ARCS[arc](self)
                self._state = arc[1]

    def _check(self) -> None:
        device = self._device
        if device.objects.in_use(device.objects.kinds) or device.capabilities.driver_values():
            raise Refused(errno.EBUSY, "objects and capabilities of the driver cannot be migrated")

    # Arcs.

    def _stop(self) -> None:
        self._function.hold()

    def _run(self) -> None:
        state, self._next = self._next, None
        self._function.go_on(state)

    def _save(self) -> None:
        # Once more: until it stopped, the driver could have made some.
        self._check()
        state = self._next or self._function.state()
        with self._function.port.lock:
            data = parts_build(parts_of(self._device, state))
        self._data = _PREFIX.pack(_MAGIC, len(data)) + data

    def _forget(self) -> None:
        self._data = b""

    def _restore(self) -> None:
        data, self._data = self._data, b""
        if not data:  # nothing is said, and nothing changes
            return
        prefix, parts = data[: _PREFIX.size], data[_PREFIX.size :]
        if prefix != _PREFIX.pack(_MAGIC, len(parts)):
            raise Refused(errno.EINVAL, f"{len(data)} bytes are no device parts, or not all of them")
        state = self._function.state()
        try:
            with self._function.port.lock:
                wanted = check_parts(parts_of(self._device, state), parts_parse(parts))
                self._next = changed(self._device, state, wanted)
        except (WireError, AdminError) as error:
            raise Refused(errno.EINVAL, f"the device parts are not for this device: {error}") from None


#: Device feature -> what can be done with it.
_FEATURES: Final[Mapping[int, int]] = MappingProxyType(
    {Feature.MIGRATION: int(FeatureFlag.GET), Feature.MIG_DEVICE_STATE: _METHODS}
)
_ARCS: Final[Mapping[tuple[State, State], Callable[[Migration], None]]] = MappingProxyType(
    {
        (State.RUNNING, State.STOP): Migration._stop,
        (State.STOP, State.RUNNING): Migration._run,
        (State.STOP, State.STOP_COPY): Migration._save,
        (State.STOP_COPY, State.STOP): Migration._forget,
        (State.STOP, State.RESUMING): Migration._forget,
        (State.RESUMING, State.STOP): Migration._restore,
    }
)
