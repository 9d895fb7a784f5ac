"""What a service is to serve: the ports of a configuration, completed by what the command line says."""

from __future__ import annotations

import os
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


#: Uplinks that make a file: its path is all, or the last, that stands behind the colon.
_UPLINKS_WITH_FILES = frozenset({"unix", "vhost-user", "pcap"})


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
    #: A PCI function over vfio-user, at ``socket``; else vhost-user. With its virtual functions, VF 1 first.
    is_pci: bool = False
    vfs: tuple[PortPlan, ...] = ()
    #: Which virtual function it is itself; 0: none.
    vf: int = 0

    @property
    def is_virtual(self) -> bool:
        """Whether it is there only while its owner wants it."""
        return self.vf > 0

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
            owner_managed=self.spec.owner_managed,
        )
        mac = self.spec.guest_mac or config.mac
        number = int.from_bytes(mac, "big") + self.vf
        return replace(config, mac=(number & (1 << 48) - 1).to_bytes(6, "big"))


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says of a single port; it stands above the configuration."""

    socket: str | None = None
    uplink: str | None = None
    vfio_user: str | None = None
    vfs: int | None = None
    vf_uplink: str | None = None
    owner_managed: bool = False


def plan_ports(
    configs: Sequence[Config] | None, *, socket: str | None = None, uplink: str | None = None
) -> tuple[PortPlan, ...]:
    """As :func:`plan_all`, for ports that have no more to be said of them."""
    return plan_all(configs, Overrides(socket, uplink))


def plan_all(configs: Sequence[Config] | None, said: Overrides) -> tuple[PortPlan, ...]:
    """Every port with all that it needs. Without a configuration there is one port, whose driver controls IPsec.
    Raises ConfigError."""
    if configs is None:
        configs = (Config(V14, (), (), PortSpec(Control.GUEST)),)
    if len(configs) > 1 and said != Overrides():
        raise ConfigError(
            "--socket, --uplink and what concerns vfio-user are for one port; several have theirs in the"
            " configuration"
        )
    plans = tuple(_plan(number, config, said) for number, config in enumerate(configs))
    every = (*plans, *(vf for plan in plans for vf in plan.vfs))
    _refuse_shared("name", (plan.name for plan in every))
    _refuse_shared("socket", (plan.socket for plan in every))
    _refuse_shared("uplink", (plan.uplink for plan in every if plan.uplink.partition(":")[2]))
    refuse_shared_files(plans)
    _refuse_shared_keys(plans)
    for plan in every:
        try:
            plan.device_config()
        except ConfigError as error:
            raise ConfigError(f"port {plan.name}: {error}") from None
    return plans


def refuse_shared_files(plans: Iterable[PortPlan], **others: str | None) -> None:
    """Each file that a service makes is made once, those too that appear later: sockets of ports and of virtual
    functions, wires, captures, and ``others`` by what they are. Raises ConfigError."""
    made: dict[str, str] = {}
    named = [(path, what) for what, path in others.items() if path]
    for each in (each for plan in plans for each in (plan, *plan.vfs)):
        kind, _, argument = each.uplink.partition(":")
        named.append((each.socket, f"the socket of port {each.name}"))
        if kind in _UPLINKS_WITH_FILES:
            named.append((argument.rpartition(",")[2], f"the uplink of port {each.name}"))
    for path, what in named:
        before = made.setdefault(os.path.realpath(path), what)
        if before != what:
            raise ConfigError(f"{path} cannot be both {before} and {what}: give one of them another path")


def wire_port(plan: PortPlan, socket: str) -> PortPlan:
    """The device at the other end of a port's wire, for a front-end at ``socket``."""
    mtu = plan.spec.underlay.mtu if plan.spec.underlay else plan.spec.mtu
    spec = PortSpec(Control.GUEST, mtu=mtu, queue_pairs=plan.spec.queue_pairs)
    config = Config(plan.config.dialect, (), (), spec)
    return PortPlan(f"{plan.name}-uplink", socket, f"port {plan.name}", spec, config, is_wire=True)


def _plan(number: int, config: Config, said: Overrides) -> PortPlan:
    if config.port is None:
        raise ConfigError(
            "[port] is missing: it says who controls the port, and what happens where no flow matches"
        )
    spec = replace(
        config.port,
        vfs=config.port.vfs if said.vfs is None else said.vfs,
        vf_uplink=said.vf_uplink or config.port.vf_uplink,
        owner_managed=said.owner_managed or config.port.owner_managed,
    )
    name = spec.name or f"port{number}"
    if (said.socket and said.vfio_user) or (spec.socket and spec.vfio_user):
        raise ConfigError(f"port {name}: socket and vfio_user exclude each other")
    named = said.socket or said.vfio_user
    pci = said.vfio_user if named else spec.vfio_user
    socket = pci or (said.socket if named else spec.socket)
    uplink = said.uplink or spec.uplink
    if not socket:
        raise ConfigError(
            f"port {name}: no socket; give --socket or --vfio-user PATH, or socket = or vfio_user = in [port]"
        )
    if not uplink:
        raise ConfigError(f"port {name}: no uplink; give --uplink URI, or uplink = in [port]")
    check_uplink(uplink)
    plan = PortPlan(name, socket, uplink, spec, config, is_pci=bool(pci))
    return replace(plan, vfs=_virtual_functions(plan))


def _virtual_functions(owner: PortPlan) -> tuple[PortPlan, ...]:
    """Each is a port of its own, at the owner's path with ``.vf`` and its number."""
    spec = owner.spec
    if not owner.is_pci and (spec.vfs or spec.vf_uplink or spec.owner_managed):
        raise ConfigError(f"port {owner.name}: virtual functions are for ports with vfio_user")
    if owner.by_operator and spec.vfs:
        raise ConfigError(f'port {owner.name}: virtual functions are for ports with control = "guest"')
    if not spec.vfs and (spec.vf_uplink or spec.owner_managed):
        raise ConfigError(f"port {owner.name}: has no virtual functions; give --vfs N, or vfs = in [port]")
    return tuple(
        replace(
            owner,
            name=f"{owner.name}.vf{vf}",
            socket=f"{owner.socket}.vf{vf}",
            uplink=_vf_uplink(owner, vf),
            spec=replace(spec, vfs=0, owner_managed=False),
            vf=vf,
        )
        for vf in range(1, spec.vfs + 1)
    )


def _vf_uplink(owner: PortPlan, vf: int) -> str:
    """``vf_uplink`` with the function's number for ``{}``; without it the owner's, with ``.vf`` and the number where
    it is the path of a wire."""
    uplink = owner.spec.vf_uplink
    if uplink is None:
        kind, _, argument = owner.uplink.partition(":")
        if argument and kind != "unix":
            raise ConfigError(
                f"port {owner.name}: its virtual functions have no uplinks; give --vf-uplink URI, or vf_uplink ="
                " in [port], with {} where the number of the function is to stand"
            )
        return f"{owner.uplink}.vf{vf}" if argument else owner.uplink
    uplink = uplink.replace("{}", str(vf))
    check_uplink(uplink)
    return uplink


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
