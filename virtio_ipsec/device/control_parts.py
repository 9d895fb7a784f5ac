"""What the driver has set through the control queue, as device parts (virtio v1.4 5.1.5.1).

ANNOUNCE_ACK leaves nothing behind, so it has no part here, and GUEST_OFFLOADS_SET has none in the specification (E113).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from virtio_ipsec.device.control import ControlRefused
from virtio_ipsec.device.counters import Counters
from virtio_ipsec.device.net_config import ConfigSpace
from virtio_ipsec.device.state import DataPlaneContext, RxFilter
from virtio_ipsec.errors import InvalidField, WireError
from virtio_ipsec.wire.device_parts import Part, PartType, control_selector
from virtio_ipsec.wire.net_control import (
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMac, CtrlMq, CtrlRx, CtrlVlan, Feature

if TYPE_CHECKING:
    from virtio_ipsec.device.device import Device

_VLAN = 2
#: Every VLAN id once.
_MOST_VLANS = 4096 * _VLAN


def _whole(head: bytes, value: bytes) -> Iterable[bytes]:
    """One command whose data is the part's value."""
    return (head + value,)


def _each_vlan(head: bytes, value: bytes) -> Iterable[bytes]:
    """One VLAN_ADD for every id of the table. InvalidField for more ids than there are."""
    if len(value) > _MOST_VLANS:
        raise InvalidField(f"a VLAN table of {len(value)} bytes")
    return (head + value[at : at + _VLAN] for at in range(0, len(value), _VLAN))


@dataclass(frozen=True, slots=True)
class ControlPart:
    """One selector: the feature it goes with, the value as it stands (None: the part is not there), and the commands
    that bring it about."""

    feature: Feature
    value: Callable[[DataPlaneContext], bytes | None]
    commands: Callable[[bytes, bytes], Iterable[bytes]] = _whole


def _switch(name: str) -> Callable[[DataPlaneContext], bytes]:
    return lambda context: bytes((getattr(context.rx_filter, name),))


def _mac_tables(context: DataPlaneContext) -> bytes:
    rx_filter = context.rx_filter
    return MAC_TABLES.build(MacTables(tuple(sorted(rx_filter.unicast)), tuple(sorted(rx_filter.multicast))))


def _vlans(context: DataPlaneContext) -> bytes:
    return b"".join(vlan.to_bytes(_VLAN, "little") for vlan in sorted(context.rx_filter.vlans))


def _pairs(context: DataPlaneContext) -> bytes | None:
    return None if context.steering.rss else context.steering.queue_pairs.to_bytes(2, "little")


def _hash(context: DataPlaneContext) -> bytes | None:
    steering = context.steering
    if steering.rss or not steering.hash_types:
        return None
    return HASH_CONFIG.build(HashConfig(steering.hash_types, steering.key))


def _rss(context: DataPlaneContext) -> bytes | None:
    steering = context.steering
    if not steering.rss:
        return None
    return RSS_CONFIG.build(
        RssConfig(
            hash_types=steering.hash_types,
            unclassified_queue=steering.unclassified_queue,
            indirection_table=steering.table,
            max_tx_vq=steering.queue_pairs,
            hash_key=steering.key,
        )
    )


_RX, _EXTRA = Feature.NET_F_CTRL_RX, Feature.NET_F_CTRL_RX_EXTRA
#: By selector, in the order in which they are set: VQ_PAIRS_SET before what RSS and hashes say of the same pairs.
CONTROL_PARTS: Final[Mapping[bytes, ControlPart]] = {
    control_selector(CtrlClass.RX, CtrlRx.PROMISC): ControlPart(_RX, _switch("promisc")),
    control_selector(CtrlClass.RX, CtrlRx.ALLMULTI): ControlPart(_RX, _switch("allmulti")),
    control_selector(CtrlClass.RX, CtrlRx.ALLUNI): ControlPart(_EXTRA, _switch("alluni")),
    control_selector(CtrlClass.RX, CtrlRx.NOMULTI): ControlPart(_EXTRA, _switch("nomulti")),
    control_selector(CtrlClass.RX, CtrlRx.NOUNI): ControlPart(_EXTRA, _switch("nouni")),
    control_selector(CtrlClass.RX, CtrlRx.NOBCAST): ControlPart(_EXTRA, _switch("nobcast")),
    control_selector(CtrlClass.MAC, CtrlMac.TABLE_SET): ControlPart(_RX, _mac_tables),
    control_selector(CtrlClass.MAC, CtrlMac.ADDR_SET): ControlPart(
        Feature.NET_F_CTRL_MAC_ADDR, lambda context: context.rx_filter.mac
    ),
    control_selector(CtrlClass.VLAN, CtrlVlan.ADD): ControlPart(Feature.NET_F_CTRL_VLAN, _vlans, _each_vlan),
    control_selector(CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET): ControlPart(Feature.NET_F_MQ, _pairs),
    control_selector(CtrlClass.MQ, CtrlMq.RSS_CONFIG): ControlPart(Feature.NET_F_RSS, _rss),
    control_selector(CtrlClass.MQ, CtrlMq.HASH_CONFIG): ControlPart(Feature.NET_F_HASH_REPORT, _hash),
}


def control_parts(context: DataPlaneContext) -> tuple[Part, ...]:
    """The parts that are there with the features negotiated."""
    found = []
    for selector, part in CONTROL_PARTS.items():
        value = part.value(context) if context.has(part.feature) else None
        if value is not None:
            found.append(Part(PartType.NET_CVQ_CFG, value, 0, selector))
    return tuple(found)


def commands_of(values: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """The control commands that bring about these values, by selector."""
    return tuple(
        command
        for selector, part in CONTROL_PARTS.items()
        if selector in values
        for command in part.commands(selector[:2], values[selector])
    )


def check_commands(device: Device, features: int, commands: Iterable[bytes]) -> None:
    """InvalidField unless a device like this one takes all of the commands with these features."""
    config = device.config
    context = DataPlaneContext(
        config=config,
        rng=bytes,
        dialect=config.dialect,
        features=features,
        header=config.dialect.net_hdr(features),
        rx_filter=RxFilter(mac=config.mac),
        counters=Counters(),
    )
    controls = device.controls_class(context, ConfigSpace(config))
    for command in commands:
        try:
            controls.execute(command)
        except (ControlRefused, WireError) as error:
            raise InvalidField(f"control queue part {command[:2].hex()}: {error}") from error
