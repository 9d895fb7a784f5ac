"""From reset to a device that is ready: status, features, queues, command lists, capabilities.

Where the driver clauses are obeyed:

=========================  =====================================================================
BAS-STATUS-01, -02         :meth:`Session._raise_status` only adds bits
BAS-STATUS-03, BAS-INIT-08 after a failure FAILED is set; :meth:`Session.start` begins with reset
BAS-FEAT-01 to -04, -06    ``features.select``
BAS-FEAT-05                :meth:`Session._negotiate`: less is tried, then FAILED
BAS-STATUS-04              :meth:`Session._raise_status` gives up; waits for answers are bounded
BAS-RESET-03               :meth:`Session.reset` waits until the status reads 0
BAS-RESET-09               ``Driver.reset_pair`` lays the queue out anew
PCI-CC-DRV-05              as BAS-RESET-03
BAS-INIT-01                :meth:`Session.read_config`: generation loop
BAS-INIT-02, -03           :meth:`Session._read_net_config`: the fields that exist, each for itself
BAS-INIT-05, -07, -09      :meth:`Session.start`: order of steps; first kick after DRIVER_OK
BAS-INIT-06                the configuration space is never written
BAS-INIT-11                buffers are dropped by ``Driver`` after ``reset`` only
BAS-RSVD-01 to -04, -06    VERSION_1, ACCESS_PLATFORM, RING_PACKED, ORDER_PLATFORM accepted if
                           offered; NOTIF_CONFIG_DATA if the transport carries it
BAS-RSVD-05                SR_IOV is accepted if the transport finds the PCI capability; who enables
                           virtual functions does so with a driver that has been started
PCI-CC-DRV-02, -03         :meth:`Session.ring`: size at least 1; a power of two for split rings
PCI-CC-DRV-04, -06, -08    a queue is laid out, then enabled, and never disabled by writing 0;
                           one admin queue, at the index that the device gives
NET-RXB-DRV-05             ``Driver.start`` fills the queues of all pairs in use
NET-TX-DRV-30              GUEST_HDRLEN is among the supported features
ADM-DRV-02, -06            LIST_USE before anything else
NET-IPSEC-DRV-01 to -03    :meth:`Session.discover`: list, get, set what is used of it
CAP-DRV-02, NET-FF-DRV-01  the same
RFC-34                     the same
=========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from virtio_ipsec.driver.admin import Admin
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.errors import FeatureError
from virtio_ipsec.driver.features import ESSENTIAL, names, select
from virtio_ipsec.driver.flows import LENGTHS
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.queues import RequestQueue
from virtio_ipsec.errors import CommandFailed, TransportError, VirtioIpsecError, WireError
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.queue import allocate_layout, driver_queue, free_layout
from virtio_ipsec.wire.dialect import Dialect
from virtio_ipsec.wire.flow_filter import FfActionCap, FfResourceCap, FfSelectorCap
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap
from virtio_ipsec.wire.net_config import NET_CONFIG, NetConfig
from virtio_ipsec.wire.numbers import (
    AeadAlgo,
    CapId,
    CipherAlgo,
    Feature,
    FfAction,
    IpsecMode,
    MacAlgo,
    Opcode,
    ResourceType,
    SelectorFlag,
    Status,
    has,
    mask,
)

#: Field of the configuration space -> features of which one must be offered for it to exist.
_CONFIG_FIELDS: Mapping[str, tuple[Feature, ...]] = {
    "mac": (Feature.NET_F_MAC,),
    "status": (Feature.NET_F_STATUS,),
    "max_virtqueue_pairs": (Feature.NET_F_MQ, Feature.NET_F_RSS),
    "mtu": (Feature.NET_F_MTU,),
    "rss_max_key_size": (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
    "rss_max_indirection_table_length": (Feature.NET_F_RSS,),
    "supported_hash_types": (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT),
}
_GENERATIONS = 100
#: virtio v1.4 5.1.4.1
_MOST_PAIRS = 0x8000
_SMALL_QUEUE = 64
#: Result lengths that hold 255 entries of every counted capability.
_CAP_RESULT: Mapping[int, int] = {
    CapId.NET_FF_RESOURCE_CAP: 24,
    CapId.NET_FF_SELECTOR_CAP: 8 + 255 * (8 + 255),
    CapId.NET_FF_ACTION_CAP: 8 + 255,
    CapId.NET_IPSEC_RESOURCE_CAP: 8,
    CapId.NET_IPSEC_SA_CAP: 8 + 255 * 48,
}
_IPSEC_CAPS = (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP)
_FILTER_CAPS = (CapId.NET_FF_RESOURCE_CAP, CapId.NET_FF_SELECTOR_CAP, CapId.NET_FF_ACTION_CAP)
_OBJECT_COMMANDS = (Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY)


@dataclass(frozen=True, slots=True)
class Caps:
    """The driver's capabilities as they were set; None where a group of capabilities is not in use."""

    ipsec_resources: IpsecResourceCap | None = None
    ipsec_sas: IpsecSaCap | None = None
    filter_resources: FfResourceCap | None = None
    filter_selectors: FfSelectorCap | None = None
    filter_actions: FfActionCap | None = None


class Session:
    """One life of a device, from reset to reset."""

    def __init__(self, link: Link, dialect: Dialect, config: DriverConfig) -> None:
        self._link = link
        self._dialect = dialect
        self._config = config
        self.features = 0
        self.net = NetConfig()
        self.pairs = 1
        self.caps = Caps()
        self.admin: Admin | None = None
        self.control_queue: RequestQueue | None = None
        #: Why the administration queue is of no use, when it is not.
        self.discovery_error: VirtioIpsecError | None = None
        self.data_rings: dict[int, DriverQueue] = {}
        self._layouts: list[QueueLayout] = []
        self._indices: set[int] = set()
        self._requesters: list[RequestQueue] = []

    def start(self) -> None:
        """The steps of virtio v1.4 3.1.1 up to DRIVER_OK, then command lists and capabilities.

        Raises FeatureError, TransportError or CommandFailed; FAILED is then set and the device needs a reset.
        """
        try:
            self._negotiate()
            self._set_up_queues()
            self._raise_status(Status.DRIVER_OK)
            self._use_admin()
        except BaseException:
            with suppress(TransportError):
                self._link.write_status(self._link.status() | Status.FAILED)
            raise

    def _use_admin(self) -> None:
        """Command list and capabilities. A device that refuses them remains a network device (BAS-FEAT-05),
        unless IPsec is required."""
        if self.admin is None:
            return
        try:
            self.admin.list_query()
            self.admin.list_use()
            self.discover()
        except (CommandFailed, WireError) as error:
            if has(self._config.required, Feature.NET_F_IPSEC):
                raise
            self.discovery_error = error

    def reset(self) -> None:
        """Reset the device and wait until it says that it is done."""
        self._link.write_status(0)
        for _ in range(self._config.polls + 1):
            if self._link.status() == 0:
                return
            self._link.poll(self._config.poll_timeout)
        raise TransportError("the device does not finish its reset")

    def release(self) -> None:
        """Give back rings and request buffers, after ``reset``."""
        for requester in self._requesters:
            requester.release()
        for layout in self._layouts:
            free_layout(self._link.allocator, layout)
        self._requesters, self._layouts, self.data_rings = [], [], {}

    def read_config(self, *pieces: tuple[int, int]) -> list[bytes]:
        """Configuration bytes that belong together, each piece by offset and length: read again while the generation
        changes."""
        for _ in range(_GENERATIONS):
            before = self._link.config_generation()
            data = [self._link.read_config(offset, length) for offset, length in pieces]
            if self._link.config_generation() == before:
                return data
        raise TransportError("the device configuration changes faster than it can be read")

    def refresh_config(self) -> NetConfig:
        """Read the configuration again, after a configuration change notification."""
        self.net = self._read_net_config(self.features)
        return self.net

    def ring(self, index: int, wanted: int) -> DriverQueue:
        """Lay out queue ``index`` with up to ``wanted`` entries and enable it. TransportError when the device
        gives the place to another queue already, or has no room for it."""
        if index in self._indices:
            raise TransportError(f"the device has queue {index} for two purposes")
        self._indices.add(index)
        most = self._link.queue_max_size(index)
        size = min(wanted, most)
        if not has(self.features, Feature.F_RING_PACKED) and size:
            size = 1 << (size.bit_length() - 1)
        if size < 2:
            raise TransportError(f"queue {index} has room for {most} entries")
        layout = allocate_layout(self._link.allocator, size, self.features)
        self._layouts.append(layout)
        ring = driver_queue(self._link.memory, layout, self.features)
        self._link.enable_queue(index, layout)
        return ring

    def _raise_status(self, bit: Status) -> int:
        self._link.write_status(self._link.status() | bit)
        status = self._link.status()
        if status & Status.DEVICE_NEEDS_RESET:
            raise TransportError("the device needs a reset")
        return status

    def _negotiate(self) -> None:
        """Reset, acknowledge, and agree on features: first everything, then the essential ones."""
        link, config = self._link, self._config
        refused = 0
        for wanted in (config.wanted, config.wanted & (ESSENTIAL | config.required)):
            self.reset()
            self._raise_status(Status.ACKNOWLEDGE)
            self._raise_status(Status.DRIVER)
            offered = link.device_features()
            chosen = select(offered, wanted, link.transport_features(), self._dialect.known_features)
            needed = config.required | mask(Feature.F_VERSION_1)
            if needed & ~chosen:
                raise FeatureError(f"the device does not offer {names(needed & ~chosen)}")
            if refused == chosen:
                break
            net = self._read_net_config(offered)
            link.write_driver_features(chosen)
            if self._raise_status(Status.FEATURES_OK) & Status.FEATURES_OK:
                self.features, self.net = chosen, net
                return
            refused = chosen
        raise FeatureError(f"the device accepts neither this nor more: {names(refused)}")

    def _read_net_config(self, features: int) -> NetConfig:
        config = NetConfig()
        wanted = {name for name, of in _CONFIG_FIELDS.items() if any(has(features, one) for one in of)}
        places = [(f.offset, f.size or 0) for f in NET_CONFIG.layout() if f.name in wanted]
        if not places:
            return config
        # What lies between is not there: it is not even read.
        space = bytearray(NET_CONFIG.fixed_size)
        for (offset, length), data in zip(places, self.read_config(*places), strict=True):
            space[offset : offset + length] = data[:length]
        values = NET_CONFIG.parse(bytes(space))
        return replace(config, **{name: getattr(values, name) for name in wanted})

    def _set_up_queues(self) -> None:
        """receiveq1, transmitq1, ...; the control queue behind all pairs; the administration queue."""
        config, features = self._config, self.features
        multi = has(features, Feature.NET_F_MQ) or has(features, Feature.NET_F_RSS)
        most = self.net.max_virtqueue_pairs if multi else 1
        if not 1 <= most <= _MOST_PAIRS:
            raise TransportError(f"the device says that it has {most} queue pairs; 1 to {_MOST_PAIRS} can be")
        self.pairs = max(1, min(config.queue_pairs, most))
        for index in range(2 * self.pairs):
            self.data_rings[index] = self.ring(index, config.queue_size)
        if has(features, Feature.NET_F_CTRL_VQ):
            self.control_queue = self._requests(2 * most)
        if has(features, Feature.F_ADMIN_VQ) and self._link.admin_queue_num():
            queue = self._requests(self._link.admin_queue_index())
            self.admin = Admin(queue, self._dialect, retries=config.retries, pause=self._pause)

    def _requests(self, index: int) -> RequestQueue:
        config = self._config
        ring = self.ring(index, _SMALL_QUEUE)
        queue = RequestQueue(self._link, index, ring, polls=config.polls, poll_timeout=config.poll_timeout)
        self._requesters.append(queue)
        return queue

    def _pause(self) -> None:
        self._link.poll(self._config.poll_timeout)

    # Capabilities.

    def discover(self) -> None:
        """Read the capabilities that the device lists, and set the part of them that is used."""
        admin = self.admin
        needed = {Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET, *_OBJECT_COMMANDS}
        if admin is None or not needed <= admin.opcodes:
            return
        listed = admin.cap_ids()
        chosen: dict[int, Any] = {}
        for cap_id, use in self._uses().items():
            if cap_id in listed:
                codec = self._dialect.capabilities[cap_id]
                chosen[cap_id] = use(codec.parse(admin.cap_get(cap_id, _CAP_RESULT[cap_id])))
        ipsec = has(self.features, Feature.NET_F_IPSEC) and all(each in chosen for each in _IPSEC_CAPS)
        filters = all(each in chosen for each in _FILTER_CAPS)
        used = (*(_FILTER_CAPS if filters else ()), *(_IPSEC_CAPS if ipsec else ()))
        for cap_id in used:
            admin.cap_set(cap_id, self._dialect.capabilities[cap_id].build(chosen[cap_id]))
        self.caps = Caps(
            ipsec_resources=chosen[CapId.NET_IPSEC_RESOURCE_CAP] if ipsec else None,
            ipsec_sas=chosen[CapId.NET_IPSEC_SA_CAP] if ipsec else None,
            filter_resources=chosen[CapId.NET_FF_RESOURCE_CAP] if filters else None,
            filter_selectors=chosen[CapId.NET_FF_SELECTOR_CAP] if filters else None,
            filter_actions=chosen[CapId.NET_FF_ACTION_CAP] if filters else None,
        )
        self._set_limits(admin)

    def _set_limits(self, admin: Admin) -> None:
        caps = self.caps
        if caps.ipsec_resources is not None:
            admin.limits[ResourceType.NET_IPSEC_OUTB_SA] = caps.ipsec_resources.outb_sa_limit
            admin.limits[ResourceType.NET_IPSEC_INB_SA] = caps.ipsec_resources.inb_sa_limit
        if caps.filter_resources is not None:
            admin.limits[ResourceType.NET_FF_GROUP] = caps.filter_resources.groups_limit
            admin.limits[ResourceType.NET_FF_CLASSIFIER] = caps.filter_resources.classifiers_limit
            admin.limits[ResourceType.NET_FF_RULE] = caps.filter_resources.rules_limit

    def _uses(self) -> Mapping[int, Callable[[Any], Any]]:
        """Capability id -> what this driver uses of the device's (CAP-DRV-02: never more)."""
        return {
            CapId.NET_FF_RESOURCE_CAP: lambda cap: cap,
            CapId.NET_FF_SELECTOR_CAP: self._selectors,
            CapId.NET_FF_ACTION_CAP: lambda cap: FfActionCap(
                tuple(sorted({*cap.actions} & FfAction._value2member_map_.keys()))
            ),
            CapId.NET_IPSEC_RESOURCE_CAP: lambda cap: IpsecResourceCap(
                min(cap.inb_sa_limit, self._config.inbound_sas),
                min(cap.outb_sa_limit, self._config.outbound_sas),
            ),
            CapId.NET_IPSEC_SA_CAP: self._modes,
        }

    def _selectors(self, cap: FfSelectorCap) -> FfSelectorCap:
        """The known selectors, each once, ascending."""
        known = {
            each.type: replace(each, flags=each.flags & SelectorFlag.PARTIAL_MASK)
            for each in cap.selectors
            if each.type in self._dialect.selector_types and len(each.mask) == LENGTHS[each.type]
        }
        return FfSelectorCap(tuple(known[kind] for kind in sorted(known)))

    def _modes(self, cap: IpsecSaCap) -> IpsecSaCap:
        """The known modes, each once, ascending (E47)."""
        known = {mode.mode: self._mode(mode) for mode in cap.modes if mode.mode in [*IpsecMode]}
        return IpsecSaCap(tuple(known[mode] for mode in sorted(known)))

    def _mode(self, cap: ModeCap) -> ModeCap:
        return replace(
            cap,
            options=cap.options & self._dialect.ipsec_options,
            cipher_algo=cap.cipher_algo & _known(CipherAlgo),
            hmac_algo=cap.hmac_algo & _known(MacAlgo),
            aead_algo=cap.aead_algo & _known(AeadAlgo),
        )


def _known(enum: type[CipherAlgo] | type[MacAlgo] | type[AeadAlgo]) -> int:
    return sum(1 << int(member) for member in enum)
