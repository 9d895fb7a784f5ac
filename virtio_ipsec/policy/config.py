"""The TOML description of ports, security associations and flows: one format for every verb.

``sample.toml`` beside this file shows all of it. ::

    dialect = "virtio-1.4"

    [port]
    control = "operator"
    default = "drop"

    [port.underlay]
    mac = "02:00:00:00:01:01"
    addresses = ["192.0.2.1/24"]

    [[sa]]
    id = 1
    direction = "outbound"
    mode = "esp-tunnel"
    spi = 0x1001
    algorithm = "aes-gcm-16"
    key = "000102030405060708090a0b0c0d0e0f"
    salt = "a0a1a2a3"
    options = ["esn", "copy-dscp"]
    tunnel = { src = "192.0.2.1", dst = "192.0.2.2" }
    lifetime = { packets_soft = 900000, packets_hard = 1000000 }

    [[flow]]
    match = { src = "10.0.0.0/24", dst = "10.1.0.0/24", protocol = "udp" }
    action = "protect"
    sa = 1

Several ports stand in one file as ``[[port]]`` with their own ``[[port.sa]]`` and ``[[port.flow]]``. What is not in
the tables of the readers is refused with the place it stands at. Keys are never part of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.flow_config import FLOW_FIELDS, read_flow
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.port_config import PORT_FIELDS, Control, PortSpec, check_sas, read_port
from virtio_ipsec.policy.sa_config import SA_FIELDS, SaSpec, read_sa, refuse_doubles
from virtio_ipsec.policy.tables import Table
from virtio_ipsec.tables import FILE, document
from virtio_ipsec.wire.dialect import DIALECTS, Dialect

ReadKey = Callable[[str], bytes]

FILE_FIELDS = frozenset({"dialect", "port", "sa", "flow"})
MANY_PORT_FIELDS = PORT_FIELDS | {"sa", "flow"}
MAX_PORTS = 1024


@dataclass(frozen=True, slots=True)
class Config:
    """The SAs and flows of a file, or of one of its ports. ``flows`` are in file order; the first match decides,
    of those with the highest priority. ``port`` is None where the file has none: SAs and flows for captures."""

    dialect: Dialect
    sas: tuple[SaSpec, ...]
    flows: tuple[Flow, ...]
    port: PortSpec | None = None

    def outbound(self, id: int) -> SaSpec:
        """The outbound SA with that id. Raises KeyError."""
        return _found((spec for spec in self.sas if spec.outbound), id)

    def inbound(self, id: int) -> SaSpec:
        """The inbound SA with that id. Raises KeyError."""
        return _found((spec for spec in self.sas if not spec.outbound), id)


def _found(specs: Iterable[SaSpec], id: int) -> SaSpec:
    for spec in specs:
        if spec.id == id:
            return spec
    raise KeyError(id)


def parse(text: str, read_key: ReadKey | None = None) -> Config:
    """Parse a TOML document. ``read_key`` reads the file that ``key_file`` names, or raises ConfigError with the
    rest of a sentence that does not quote the name, which may be a key; without it ``key_file`` is refused.

    Raises ConfigError with the place (``sa 2: spi``) and what would be right; also for a file of several ports.
    """
    configs = parse_ports(text, read_key)
    if len(configs) != 1:
        raise ConfigError("file: port is there more than once; this wants the SAs and flows of one port")
    return configs[0]


def parse_ports(text: str, read_key: ReadKey | None = None) -> tuple[Config, ...]:
    """:func:`parse` for a file that may hold several ports: one configuration for each."""
    top = Table(document(text), FILE, FILE_FIELDS)
    dialect = DIALECTS[top.choice("dialect", DIALECTS, "virtio-1.4")]
    if not isinstance(top.values.get("port"), list):
        table = top.table("port", PORT_FIELDS)
        return (_config(top, table, dialect, read_key),)
    for name in ("sa", "flow"):
        if top.has(name):
            top.refuse(name, f"belongs to a port: write [[port.{name}]]")
    ports = top.tables("port", MANY_PORT_FIELDS)
    if not 0 < len(ports) <= MAX_PORTS:
        top.refuse("port", f"must be there 1 to {MAX_PORTS} times")
    configs = tuple(_config(port, port, dialect, read_key) for port in ports)
    names = [config.port.name for config in configs if config.port and config.port.name]
    if len(set(names)) < len(names):
        top.refuse("port", "has a name twice")
    return configs


def sa_from(values: Mapping[str, Any], dialect: Dialect, read_key: ReadKey | None = None) -> SaSpec:
    """One SA from the fields of an ``[[sa]]`` table. Raises ConfigError."""
    return read_sa(Table(values, "sa", SA_FIELDS), dialect, read_key)


def flow_from(values: Mapping[str, Any]) -> Flow:
    """One flow from the fields of a ``[[flow]]`` table, whose SA may be any. Raises ConfigError."""
    return read_flow(Table(values, "flow", FLOW_FIELDS), None)


def _config(table: Table, port_table: Table | None, dialect: Dialect, read_key: ReadKey | None) -> Config:
    port = read_port(port_table) if port_table else None
    sas = tuple(read_sa(entry, dialect, read_key) for entry in table.tables("sa", SA_FIELDS))
    refuse_doubles(sas)
    outbound = {spec.id for spec in sas if spec.outbound}
    flows = tuple(read_flow(entry, outbound) for entry in table.tables("flow", FLOW_FIELDS))
    names = [flow.name for flow in flows if flow.name]
    if len(set(names)) < len(names):
        table.refuse("flow", "has a name twice")
    if port is not None:
        check_sas(port, sas)
        if port.control is Control.GUEST and flows:
            table.refuse("flow", "belongs to the driver on a guest's port")
    return Config(dialect, sas, flows, port)
