"""The device: joins status, features, admin commands, control queue and the packet path. Sans-IO.

The packet path is ``Transmitter(context).transmit(buffer, queue)`` and ``Receiver(context).receive(frame)``.
``Rings(device, memory)`` binds virtqueues to the byte level methods of this class and uses nothing below them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from virtio_ipsec.device.admin import AdminCommands
from virtio_ipsec.device.capabilities import Capabilities
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.control import GUEST_OFFLOADS, ControlQueue
from virtio_ipsec.device.counters import Counters
from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa
from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.device.fast_rings import FastRings
from virtio_ipsec.device.features import FEATURE_BITS, acceptable
from virtio_ipsec.device.flow_objects import ClassifierKind, GroupKind, RuleKind
from virtio_ipsec.device.ipsec_objects import InboundSaKind, OutboundSaKind
from virtio_ipsec.device.member_commands import MemberCommands
from virtio_ipsec.device.members import Members
from virtio_ipsec.device.net_config import ConfigSpace
from virtio_ipsec.device.objects import ObjectKind, ObjectStore
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.rings import Rings
from virtio_ipsec.device.state import DataPlaneContext, Received, RxFilter
from virtio_ipsec.device.status import after_write, operating
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import DeviceStateError, NoSuchObject
from virtio_ipsec.fastpath.pipeline import RxState
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.wire.numbers import Feature, ResourceType, Status, has

_WORD = (1 << FEATURE_BITS) - 1


class Device:
    """One virtio-net device with inline IPsec.

    ``rng(n)`` returns ``n`` random bytes; the device draws IVs from it. Register level, byte level and ring
    level (see ``rings``) show the same device.
    """

    #: The parts; a variant of the device replaces some by subclasses.
    capabilities_class: ClassVar[type[Capabilities]] = Capabilities
    commands_class: ClassVar[type[AdminCommands]] = AdminCommands
    member_commands_class: ClassVar[type[MemberCommands]] = MemberCommands
    controls_class: ClassVar[type[ControlQueue]] = ControlQueue
    transmitter_class: ClassVar[type[Transmitter]] = Transmitter
    receiver_class: ClassVar[type[Receiver]] = Receiver
    rings_class: ClassVar[type[Rings]] = Rings
    objects_class: ClassVar[type[ObjectStore]] = ObjectStore
    object_kinds: ClassVar[tuple[type[ObjectKind[Any, Any]], ...]] = (
        GroupKind,
        ClassifierKind,
        RuleKind,
        OutboundSaKind,
        InboundSaKind,
    )

    context: DataPlaneContext
    capabilities: Capabilities
    objects: ObjectStore
    commands: AdminCommands
    controls: ControlQueue
    transmitter: Transmitter
    receiver: Receiver

    def __init__(
        self, config: DeviceConfig, rng: Callable[[int], bytes], fast: FastPath | None = None
    ) -> None:
        self.config = config
        self.fast = fast
        self._rng = rng
        self._counters = Counters()
        self._space = ConfigSpace(config)
        self._members: Members | None = None
        self._status = 0
        self._driver_features = 0
        self._is_leaving = False
        #: Those whose workers count.
        self._fast_rings: list[FastRings] = []
        #: How often it was reset, for whoever has prepared something that a reset makes void.
        self.resets = 0
        # A page of its own until a transport shares the memory of a guest.
        self._rings = self.new_rings(GuestMemory.anonymous(4096))
        self._start()

    def _start(self) -> None:
        """Everything that a reset forgets."""
        if self.fast is not None:
            self.fast.forget()
        self.context = DataPlaneContext(
            config=self.config,
            rng=self._rng,
            dialect=self.config.dialect,
            features=0,
            header=self.config.dialect.net_hdr(0),
            rx_filter=RxFilter(mac=self.config.mac),
            counters=self._counters,
            fast=self.fast,
            is_leaving=self._is_leaving,
        )
        self.transmitter = self.transmitter_class(self.context)
        self.receiver = self.receiver_class(self.context)
        self._adopt(0)

    def set_leaving(self, on: bool) -> None:
        """Whether memory is being copied for another device to go on with, a reset in between or not: until it is not,
        CREATE of an SA ends with EBUSY (ledger E80)."""
        self._is_leaving = self.context.is_leaving = on

    def _adopt(self, features: int) -> None:
        """The negotiated features, and the parts whose rules follow from them."""
        context = self.context
        context.features = features
        context.header = context.dialect.net_hdr(features)
        context.guest_offloads = features & GUEST_OFFLOADS
        members = self._members
        owns_parts = members is not None and self.member_commands_class.handles_parts(self.config, members)
        self.capabilities = self.capabilities_class(self.config, features, owns_parts=owns_parts)
        self.objects = self.objects_class(kind(context, self.capabilities) for kind in self.object_kinds)
        group = (
            None if members is None else self.member_commands_class(self.config, members, self.capabilities)
        )
        self.commands = self.commands_class(
            self.config, self.capabilities, self.objects, self._counters, group
        )
        self.controls = self.controls_class(context, self._space)

    @property
    def members(self) -> Members | None:
        """The SR-IOV group that this device owns, whether it exists at the moment or not. Set before a driver is there:
        it resets the device."""
        return self._members

    @members.setter
    def members(self, members: Members) -> None:
        self._members = members
        self.reset()

    # Register level

    @property
    def offered_features(self) -> int:
        """Feature bits 0 to 127 that the device offers."""
        return self.config.offered_features

    @property
    def driver_features(self) -> int:
        """The word the driver wrote last."""
        return self._driver_features

    def write_driver_features(self, word: int) -> None:
        """The driver's choice; fixed once FEATURES_OK is set (virtio v1.4 3.1.1)."""
        if not self._status & Status.FEATURES_OK:
            self._driver_features = word & _WORD

    def accepts(self, word: int) -> bool:
        """Whether FEATURES_OK may be set for this word (BAS-FEAT-08)."""
        return acceptable(word, self.offered_features)

    @property
    def status(self) -> int:
        """Device status. Writing 0 resets; other writes add the bits that the status table allows."""
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        before = self._status
        self._status = after_write(before, value, lambda: self.accepts(self._driver_features))
        if self._status & ~before & Status.FEATURES_OK:
            self._adopt(self._driver_features)

    def read_config(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the device configuration from ``offset``."""
        return self._space.read(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Ignored: every field is read-only for the driver (virtio v1.4 5.1.4)."""

    @property
    def config_generation(self) -> int:
        """Changes with the device configuration; 8 bits, as transports show it."""
        return self._space.generation & 0xFF

    def take_config_change(self) -> bool:
        """Whether a configuration change notification is due; asking settles it."""
        due = self._space.changed and bool(self._status & Status.DRIVER_OK)
        self._space.changed = False
        return due

    @property
    def is_operating(self) -> bool:
        """Whether buffers may be consumed (BAS-STATUS-05)."""
        return operating(self._status)

    # Events from outside the driver

    def set_link(self, up: bool) -> None:
        """The link went up or down: status field and, if it changed, a configuration change notification."""
        self._space.set_link(up)

    def announce(self) -> None:
        """Ask the driver to announce itself, if it can (virtio v1.4 5.1.6.5.4)."""
        if self.context.has(Feature.NET_F_GUEST_ANNOUNCE):
            self._space.announce()

    def needs_reset(self) -> None:
        """An error only a reset can cure (BAS-STATUS-06); a driver at work is told (BAS-STATUS-07)."""
        self._status |= int(Status.DEVICE_NEEDS_RESET)
        self._space.changed = True

    # Whole conversations

    def negotiate(self, features: int) -> None:
        """Reset and run the status sequence to DRIVER_OK; DeviceStateError when the features are refused."""
        self.reset()
        self.status = Status.ACKNOWLEDGE
        self.status |= Status.DRIVER
        self.write_driver_features(features)
        self.status |= Status.FEATURES_OK
        if not self.status & Status.FEATURES_OK:
            self.status |= Status.FAILED
            raise DeviceStateError(
                f"features {features:#x} are refused, offered are {self.offered_features:#x}"
            )
        self.status |= Status.DRIVER_OK

    def reset(self) -> None:
        """Back to power-on: queues forgotten, objects destroyed and wiped, capabilities and command lists
        cleared, status 0. Event counts stay."""
        self._rings.reset()
        self.objects.destroy_all()
        self._space.reset()
        self._driver_features = 0
        self._start()
        self._status = 0
        self.resets += 1

    # Byte level

    def admin(self, readable: bytes, writable_len: int) -> bytes:
        """One administration command: device-readable bytes in, device-written bytes out (their length is the
        used length). DeviceStateError without an administration queue at work."""
        self._require(Feature.F_ADMIN_VQ)
        return self.commands.process(readable, writable_len)

    def control(self, readable: bytes, writable_len: int) -> bytes:
        """One control-queue command; the answer is the ``ack`` byte. DeviceStateError as for ``admin``."""
        self._require(Feature.NET_F_CTRL_VQ)
        return self.controls.process(readable, writable_len)

    def transmit(self, buffer: bytes, queue: int = 0) -> list[bytes]:
        """One transmit buffer (header and frame) of transmit queue number ``queue``: the frames that leave.

        DeviceStateError while the device is not operating.
        """
        if not self.is_operating:
            raise DeviceStateError(f"status {self._status:#x}: the device is not operating")
        return self.transmitter.transmit(buffer, queue)

    def receive(self, frame: bytes) -> list[Received]:
        """One frame from the wire: what the driver gets, at most one buffer. Nothing while the device is not
        operating, for the wire knows nothing of that (BAS-RESET-02)."""
        if not self.is_operating:
            self._counters.add("rx_not_operating")
            return []
        return self.receiver.receive(frame)

    def resume(self, frame: bytes, state: RxState) -> list[Received]:
        """Go on with a frame that the fast path has opened and that a rule wants recirculated."""
        return self.receiver.resume(frame, state.l3, state.resource_id, soft_expired=state.soft_expired)

    def _require(self, feature: Feature) -> None:
        if not self.is_operating:
            raise DeviceStateError(f"status {self._status:#x}: the device is not operating")
        if not has(self.context.features, feature):
            raise DeviceStateError(f"{feature.name} is not negotiated")

    # Ring level

    @property
    def memory(self) -> GuestMemory:
        """The guest memory that queues lie in. A new one ends the use of all queues."""
        return self._rings.memory

    @memory.setter
    def memory(self, memory: GuestMemory) -> None:
        self._rings.reset()
        self._rings = self.new_rings(memory)

    def new_rings(self, memory: GuestMemory) -> Rings:
        """Rings of this device over a guest's memory."""
        if self.fast is not None:
            self._fast_rings.append(FastRings(self, memory, self.fast))
            return self._fast_rings[-1]
        return self.rings_class(self, memory)

    @property
    def queue_count(self) -> int:
        """Virtqueues without the administration queue."""
        return self._rings.queue_count

    @property
    def admin_queue_index(self) -> int:
        """Index of the administration queue."""
        return self._rings.admin_queue_index

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue; 0 when there is none with this index."""
        return self._rings.queue_max_size(index)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Take a queue into use; DeviceStateError or RingError when that cannot be."""
        self._rings.enable_queue(index, layout)

    def queue_enabled(self, index: int) -> bool:
        """Whether the queue is in use."""
        return self._rings.queue_enabled(index)

    def reset_queue(self, index: int) -> None:
        """Forget one queue until it is enabled anew."""
        self._rings.reset_queue(index)

    def kick(self, index: int) -> list[bytes]:
        """Work off available buffers of one queue; the wire frames that this emits, in order."""
        return self._rings.kick(index)

    def pending(self, index: int) -> int:
        """Buffers that another :meth:`kick` would find."""
        return self._rings.pending(index)

    def deliver(self, frame: bytes) -> None:
        """One frame from the wire into a receive queue."""
        self._rings.deliver(frame)

    @property
    def interrupts(self) -> frozenset[int]:
        """Queues with a used buffer notification due."""
        return self._rings.interrupts

    def take_interrupts(self) -> set[int]:
        """As :attr:`interrupts`, and they are settled."""
        return self._rings.take_interrupts()

    # Accounts

    def counters(self) -> Mapping[str, int]:
        """Event counts of the device since it was made."""
        counts = Counter(self._counters.snapshot())
        for rings in self._fast_rings:
            counts.update(rings.counts())
        return counts

    def sa_counters(self, object_type: int, object_id: int) -> Mapping[str, int]:
        """``packets``, ``bytes`` and refusals by reason of one live SA; NoSuchObject when there is none."""
        tables: dict[int, Mapping[int, AnyOutboundSa | AnyInboundSa]] = {
            ResourceType.NET_IPSEC_OUTB_SA: self.context.outbound,
            ResourceType.NET_IPSEC_INB_SA: self.context.inbound,
        }
        sa = tables.get(object_type, {}).get(object_id)
        if sa is None:
            raise NoSuchObject(f"no SA {object_type:#x}/{object_id}")
        refused = {reason.value: count for reason, count in sa.stats.items()}
        return {"packets": sa.packets, "bytes": sa.bytes, **refused}
