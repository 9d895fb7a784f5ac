"""The packet path of one device in C, between its virtqueues and its uplink, seen from Python.

A :class:`Port` is what negotiation has fixed; a :class:`Worker` is one thread's part of it. What C does not do comes
back through :class:`PortOwner`, outside all locks and with the GIL.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from virtio_ipsec.errors import ConfigError, Reason
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.esp import FastSaTable
from virtio_ipsec.fastpath.flow import FlowTable
from virtio_ipsec.fastpath.policy import OUTCOMES, PolicyTable
from virtio_ipsec.fastpath.steering import SteeringBlock
from virtio_ipsec.fastpath.underlay import UnderlayBlock
from virtio_ipsec.fastpath.wire import Wire

_PLAIN_COUNTS = (
    "tx_frames",
    "tx_bytes",
    "tx_sealed",
    "rx_frames",
    "rx_bytes",
    "rx_opened",
    "rx_not_ipsec",
    "tx_punted",
    "rx_punted",
)

#: At an operator's port: why the device refuses frames. What else there is, the operator's part drops them for.
_OF_THE_DEVICE = frozenset(
    {
        Reason.TOO_BIG,
        Reason.FILTERED,
        Reason.NO_BUFFER,
        Reason.QUEUE_DISABLED,
        Reason.OVERLOAD,
        Reason.BAD_HEADER,
    }
)


@dataclass(frozen=True, slots=True)
class PortConfig:
    """What negotiation has fixed: ``struct vipsec_port_config``. Offsets are in virtio_net_hdr, None: no such field."""

    features: int
    pairs: int
    mtu: int
    header_size: int
    hash_at: int | None
    outer_nh_at: int | None
    resource_id_at: int | None
    resource_type_at: int | None
    flag_security: int
    flag_security_err: int
    flag_soft_expiry: int
    flag_tunnel_csum: int
    type_required: bool
    open_unasked: bool
    drop_errors: bool
    by_operator: bool = False
    #: Packets that one call may hand to Python; what goes beyond is dropped. 0: any number.
    most_punts: int = 0


@dataclass(frozen=True, slots=True)
class RxState:
    """How far C has come with a frame that it hands to Python. See ``struct vipsec_rx_state``. ``outer_source``: of the
    tunnel header that it had, at an operator's port."""

    opened: bool
    resource_id: int
    soft_expired: bool
    l3: int
    outer_source: IPv4Address | IPv6Address | None = None


class PortOwner(Protocol):
    """What a port asks of its owner."""

    def uplink(self, frames: list[bytes]) -> None:
        """Frames that leave, in order."""

    def interrupt(self, index: int) -> None:
        """The driver wants to be told about virtqueue ``index``."""

    def punt_transmit(self, pair: int, buffer: bytes) -> list[bytes]:
        """What a transmit buffer becomes, as :meth:`uplink` gets it next."""

    def punt_receive(self, frame: bytes, state: RxState) -> list[tuple[int, bytes]]:
        """What a frame from the wire becomes: (queue pair, header and frame) to put into receive queues."""


class Port:
    """One device's packet path. ``owner`` is called from inside the workers' calls.

    Without ``interrupts`` the owner is not told of them: the eventfds of the queues are.
    An error that the owner raises ends nothing in C; the worker's call that the owner was called from raises the first
    one when it is done.
    """

    def __init__(
        self, table: FastSaTable, config: PortConfig, owner: PortOwner, *, interrupts: bool = True
    ) -> None:
        ffi, lib = native.extension()
        self.owner = owner
        self.config = config
        self.table = table
        self._user = ffi.new_handle(self)
        calls: Any = ffi.new("struct vipsec_port_calls *")
        calls.user = self._user
        calls.uplink = lib.vipsec_python_uplink
        if interrupts:
            calls.interrupt = lib.vipsec_python_interrupt
        calls.punt_tx = lib.vipsec_python_punt_tx
        calls.punt_rx = lib.vipsec_python_punt_rx
        handle = lib.vipsec_port_new(table.handle, _c_config(config), calls)
        if handle == ffi.NULL:
            raise ConfigError(f"the fast path cannot have {config}")
        self._handle = ffi.gc(handle, lib.vipsec_port_free)
        #: What C points at; kept as long as C may look at it.
        self._kept: dict[str, Any] = {}

    @property
    def handle(self) -> Any:
        """``struct vipsec_port *``, valid as long as this object."""
        return self._handle

    def set_queues(self, pair: int, receive: Any, transmit: Any) -> None:
        """Queues of a pair, as ``struct vipsec_queue *`` or None. No worker may be serving the transmit queue."""
        ffi, lib = native.extension()
        lib.vipsec_port_set_queues(self._handle, pair, receive or ffi.NULL, transmit or ffi.NULL)
        self._kept[f"queues {pair}"] = (receive, transmit)  # and those before may go

    def set_flow(self, flow: FlowTable) -> None:
        """The flow filter; before the first worker is made."""
        _, lib = native.extension()
        self._kept["flow"] = flow
        lib.vipsec_port_set_flow(self._handle, flow.handle)

    def set_steering(self, block: SteeringBlock) -> None:
        """What frames are filtered, hashed and steered by."""
        _, lib = native.extension()
        lib.vipsec_port_set_steering(self._handle, block.handle)
        self._kept["steering"] = block  # and the one before it may go

    def set_policy(self, policy: PolicyTable) -> None:
        """What becomes of packets at an operator's port."""
        _, lib = native.extension()
        lib.vipsec_port_set_policy(self._handle, policy.handle)
        self._kept["policy"] = policy  # and the one before it may go

    def set_underlay(self, block: UnderlayBlock) -> None:
        """The networks at the ends of an operator's port."""
        _, lib = native.extension()
        lib.vipsec_port_set_underlay(self._handle, block.handle)
        self._kept["underlay"] = block  # and the one before it may go

    def set_guest_checksum(self, on: bool) -> None:
        """Whether DATA_VALID may be reported."""
        _, lib = native.extension()
        lib.vipsec_port_set_guest_csum(self._handle, on)

    def set_foreign_sas(self, count: int) -> None:
        """How many inbound SAs Python has that are not in the table."""
        _, lib = native.extension()
        lib.vipsec_port_set_foreign_sas(self._handle, count)


#: What owners have raised inside the present call of a worker; each thread has a context of its own.
_raised: ContextVar[list[BaseException]] = ContextVar("raised")


@contextmanager
def _raising() -> Iterator[None]:
    """A worker's call: raises the first error of an owner when it is done."""
    errors: list[BaseException] = []
    token = _raised.set(errors)
    try:
        yield
    finally:
        _raised.reset(token)
    if errors:
        raise errors[0]


class Uplink(Enum):
    """Where frames of a worker go that need no Python."""

    #: They end here; the worker's counts have them.
    NULL = "null"


class Worker:
    """One thread's part of a port.

    Its frames go to the owner of the port, or as ``uplink`` says: nowhere, or on a wire. What becomes of punted buffers
    goes to the owner in either case.
    """

    def __init__(self, port: Port, uplink: Uplink | Wire | None = None) -> None:
        ffi, lib = native.extension()
        handle = lib.vipsec_worker_new(port.handle)
        if handle == ffi.NULL:
            raise ConfigError("no memory, or too many threads for one port")
        self.port = port
        self._handle = handle
        function: Any = ffi.addressof
        if isinstance(uplink, Wire):
            lib.vipsec_worker_set_uplink(handle, function(lib, "vipsec_uplink_wire"), uplink.handle)
        elif uplink is not None:
            lib.vipsec_worker_set_uplink(handle, function(lib, "vipsec_uplink_null"), ffi.NULL)
        # It looks at port and table while it goes, which the collector of a cycle (port, owner, worker) may take first.
        self._free = weakref.finalize(self, _free_worker, handle, port.handle, port.table, uplink)

    def close(self) -> None:
        """Release it now, not when the collector finds it: a port has room for so many. It is of no use afterwards."""
        self._free()

    def transmit(self, pair: int, budget: int, idle: int = 0) -> int:
        """Work off at most ``budget`` buffers of a transmit queue; how many there were. ``idle``: how often in a row
        it may be found empty before this ends; with that a thread polls without the GIL."""
        _, lib = native.extension()
        with _raising():
            done = lib.vipsec_worker_poll(self._handle, pair, budget, idle)
        return int(done)

    def receive(self, frames: list[bytes]) -> None:
        """Frames from the wire, into receive queues."""
        ffi, lib = native.extension()
        memory = ffi.new("uint8_t[]", b"".join(frames) + b"\0")
        batch: Any = ffi.new("struct vipsec_frame[]", len(frames))
        at = memory + 0
        for each, frame in zip(batch, frames, strict=True):
            each.data, each.len = at, len(frame)
            at += len(frame)
        with _raising():
            lib.vipsec_worker_receive(self._handle, batch, len(frames))

    def take(self, wire: Wire, most: int) -> int:
        """The same with at most ``most`` frames that wait on a wire; how many there were."""
        _, lib = native.extension()
        with _raising():
            done = lib.vipsec_worker_take(self._handle, wire.handle, most)
        return int(done)

    def deliver(self, pair: int, data: bytes) -> None:
        """One buffer (header and frame) into a receive queue, or it is dropped and counted."""
        _, lib = native.extension()
        with _raising():
            lib.vipsec_worker_deliver(self._handle, pair, data, len(data))

    def counts(self) -> dict[str, int]:
        """Event counts by the names of :class:`virtio_ipsec.device.counters.Counters`, at an operator's port also by
        those of ``policy``; those that are not zero."""
        ffi, lib = native.extension()
        counters: Any = ffi.new("struct vipsec_counters *")
        lib.vipsec_worker_read(self._handle, counters)
        found = {name: int(getattr(counters, name)) for name in _PLAIN_COUNTS}
        by_operator = self.port.config.by_operator
        if by_operator:
            found["tx_protected"] = found.pop("tx_sealed")
        for number, reason in enumerate(Reason, 1):
            verb = "drop_" if by_operator and reason not in _OF_THE_DEVICE else "refused_"
            found[f"tx_{verb}{reason.value}"] = int(counters.tx_refused[number])
            found[f"rx_{verb}{reason.value}"] = int(counters.rx_refused[number])
        for number, outcome in enumerate(OUTCOMES):
            name = "bypassed" if outcome == "bypass" else f"drop_{outcome}"
            found[f"tx_{name}"] = int(counters.tx_policy[number])
            found[f"rx_{name}"] = int(counters.rx_policy[number])
        return {name: count for name, count in found.items() if count}


def _free_worker(handle: Any, *_needed: object) -> None:
    _, lib = native.extension()
    lib.vipsec_worker_free(handle)


def _c_config(config: PortConfig) -> Any:
    ffi, lib = native.extension()
    made: Any = ffi.new("struct vipsec_port_config *")
    made.features_low, made.features_high = config.features & (1 << 64) - 1, config.features >> 64
    made.pairs, made.mtu, made.header_size = config.pairs, config.mtu, config.header_size
    made.most_punts = config.most_punts
    for name in ("hash_at", "outer_nh_at", "resource_id_at", "resource_type_at"):
        offset = getattr(config, name)
        setattr(made, name, lib.VIPSEC_ABSENT if offset is None else offset)
    for name in (
        "flag_security",
        "flag_security_err",
        "flag_soft_expiry",
        "flag_tunnel_csum",
        "type_required",
        "open_unasked",
        "drop_errors",
        "by_operator",
    ):
        setattr(made, name, getattr(config, name))
    return made


def _define_callbacks() -> None:
    """The C functions that struct vipsec_port_calls points at, once for all ports."""
    ffi, lib = native.extension()

    @contextmanager
    def owner_of(user: Any) -> Iterator[PortOwner]:
        """The owner; what it raises is kept, for nothing may be raised through C."""
        port: Port = ffi.from_handle(user)
        try:
            yield port.owner
        except BaseException as error:  # the worker's call raises it
            _raised.get().append(error)

    @ffi.def_extern(name="vipsec_python_uplink")
    def uplink(user: Any, frames: Any, count: int) -> None:
        with owner_of(user) as owner:
            owner.uplink([bytes(ffi.buffer(frame.data, frame.len)) for frame in frames[0:count]])

    @ffi.def_extern(name="vipsec_python_interrupt")
    def interrupt(user: Any, index: int) -> None:
        with owner_of(user) as owner:
            owner.interrupt(index)

    @ffi.def_extern(name="vipsec_python_punt_tx")
    def punt_tx(user: Any, pair: int, buffer: Any, size: int) -> None:
        with owner_of(user) as owner:
            owner.uplink(owner.punt_transmit(pair, bytes(ffi.buffer(buffer, size))))

    @ffi.def_extern(name="vipsec_python_punt_rx")
    def punt_rx(user: Any, worker: Any, frame: Any, size: int, state: Any) -> None:
        octets = bytes(state.outer_source)[: 4 if state.outer_version == 4 else 16]
        source = ip_address(octets) if state.outer_version else None
        how_far = RxState(bool(state.opened), state.resource_id, bool(state.soft_expired), state.l3, source)
        with owner_of(user) as owner:
            for pair, data in owner.punt_receive(bytes(ffi.buffer(frame, size)), how_far):
                lib.vipsec_worker_deliver(worker, pair, data, len(data))


if native.available():
    _define_callbacks()
