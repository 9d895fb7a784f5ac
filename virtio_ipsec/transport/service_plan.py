"""What a service is to serve: the ports of a configuration, completed by what the command line says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import Config
from virtio_ipsec.policy.port_config import Control, PortSpec
from virtio_ipsec.transport.uplink import check_uplink
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, mask

#: What makes IPsec the driver's business; never offered where the operator controls.
_DRIVERS_IPSEC = mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER)
#: Descriptors that a queue may have: what QEMU and DPDK allow at most.
QUEUE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One port: who controls it, where its front-end comes to, where its frames go."""

    name: str
    socket: str
    uplink: str
    spec: PortSpec
    config: Config
    #: The wire side of another port, whose uplink is a front-end: a device that knows no IPsec.
    is_wire: bool = False

    @property
    def by_operator(self) -> bool:
        """Whether policy holds whatever the driver does."""
        return self.spec.control is Control.OPERATOR

    def device_config(self) -> DeviceConfig:
        """The device that stands behind the socket. ConfigError when there can be none."""
        config = DeviceConfig(
            dialect=self.config.dialect,
            features=IMPLEMENTED & ~_DRIVERS_IPSEC if self.by_operator or self.is_wire else IMPLEMENTED,
            mtu=self.spec.mtu,
            max_queue_pairs=self.spec.queue_pairs,
            queue_size=QUEUE_SIZE,
        )
        return config if self.spec.guest_mac is None else replace(config, mac=self.spec.guest_mac)


def plan_ports(
    configs: Sequence[Config] | None, *, socket: str | None = None, uplink: str | None = None
) -> tuple[PortPlan, ...]:
    """Every port with all that it needs. Without a configuration there is one port, whose driver controls IPsec.

    ``socket`` and ``uplink`` are for one port and stand above what the file says. Raises ConfigError.
    """
    if configs is None:
        configs = (Config(V14, (), (), PortSpec(Control.GUEST)),)
    if len(configs) > 1 and (socket or uplink):
        raise ConfigError("--socket and --uplink are for one port; several have theirs in the configuration")
    plans = tuple(_plan(number, config, socket, uplink) for number, config in enumerate(configs))
    _refuse_shared("name", (plan.name for plan in plans))
    _refuse_shared("socket", (plan.socket for plan in plans))
    _refuse_shared("uplink", (plan.uplink for plan in plans if plan.uplink.partition(":")[2]))
    _refuse_shared_keys(plans)
    for plan in plans:
        try:
            plan.device_config()
        except ConfigError as error:
            raise ConfigError(f"port {plan.name}: {error}") from None
    return plans


def wire_port(plan: PortPlan, socket: str) -> PortPlan:
    """The device at the other end of a port's wire, for a front-end at ``socket``."""
    mtu = plan.spec.underlay.mtu if plan.spec.underlay else plan.spec.mtu
    spec = PortSpec(Control.GUEST, mtu=mtu, queue_pairs=plan.spec.queue_pairs)
    config = Config(plan.config.dialect, (), (), spec)
    return PortPlan(f"{plan.name}-uplink", socket, f"port {plan.name}", spec, config, is_wire=True)


def _plan(number: int, config: Config, socket: str | None, uplink: str | None) -> PortPlan:
    spec = config.port
    if spec is None:
        raise ConfigError(
            "[port] is missing: it says who controls the port, and what happens where no flow matches"
        )
    name = spec.name or f"port{number}"
    socket, uplink = socket or spec.socket, uplink or spec.uplink
    if not socket:
        raise ConfigError(f"port {name}: no socket; give --socket PATH, or socket = in [port]")
    if not uplink:
        raise ConfigError(f"port {name}: no uplink; give --uplink URI, or uplink = in [port]")
    check_uplink(uplink)
    return PortPlan(name, socket, uplink, spec, config)


def _refuse_shared(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"two ports have the {what} {value}")
        seen.add(value)


def _refuse_shared_keys(plans: Sequence[PortPlan]) -> None:
    """Within a port the file's reader has looked at this."""
    owners: dict[tuple[bytes, bytes, bytes], str] = {}
    for plan in plans:
        for spec in plan.config.sas:
            if spec.outbound:
                key = (spec.sa.cipher_key, spec.sa.auth_key, spec.sa.salt)
                owner = owners.setdefault(key, plan.name)
                if owner != plan.name:
                    raise ConfigError(
                        f"port {plan.name}: outbound sa id {spec.id} has the key and salt of one of port {owner}"
                    )
