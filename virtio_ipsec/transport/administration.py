"""The methods of the control socket: a table of names, each with what it takes and what it gives.

Parameters are read as the tables of the configuration file are; what is not known is refused. ``sa`` and ``flow`` are
``[[sa]]`` and ``[[flow]]`` tables as JSON, keys as hexadecimal digits (``key_file`` is for whoever reads files). Keys
come back as ``xx`` unless ``show_keys`` asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import flow_from, sa_from
from virtio_ipsec.policy.describe import describe_flow, describe_sa
from virtio_ipsec.policy.sa_config import DIRECTIONS, SaSpec
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.policy.tables import Table
from virtio_ipsec.transport.control import Reply, Request, Result
from virtio_ipsec.transport.handover import HandoverSource, HandoverTarget
from virtio_ipsec.transport.managed_port import ManagedPort, place
from virtio_ipsec.transport.metrics import metrics_text
from virtio_ipsec.wire.dialect import Dialect

MOST_LISTED = 256
_HIGHEST = 0xFFFF_FFFF

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Method:
    """``call`` gets the port and its parameters; ``known`` are their names. ``changes``: it is logged."""

    call: Callable[[ManagedPort, Table, Request], Result]
    known: frozenset[str] = frozenset()
    changes: bool = False


class Administration:
    """Answers requests about ``ports``. ``call_soon`` brings a call from another thread into the one that this is used
    in."""

    def __init__(self, ports: Iterable[ManagedPort], call_soon: Callable[[Callable[[], None]], None]) -> None:
        self.ports = {port.name: port for port in ports}
        self._sources = {name: HandoverSource(port, call_soon) for name, port in self.ports.items()}
        self._targets = {name: HandoverTarget(port) for name, port in self.ports.items()}

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer, now or later. Raises VirtioIpsecError: the answer is that error."""
        if request.method == "ports":
            _params(request, frozenset())
            reply({"ports": [self._port(port) for port in self.ports.values()]})
        elif request.method == "metrics":
            _params(request, frozenset())
            reply({"text": metrics_text(self.ports.values())})
        elif request.method == "handover":
            port, params = self._named(request), _params(request, frozenset({"to", "to_port"}))
            target = params.line("to") or params.text("to")
            _log.info("handover of port %s to %s asked for by %s", port.name, target, request.who)
            self._sources[port.name].start(target, params.line("to_port"), reply)
        elif request.method.startswith("handover."):
            port = self._named(request)
            reply(self._targets[port.name].answer(request))
        else:
            reply(self._simple(request))

    def close(self) -> None:
        """Forget what has been received and not been taken over."""
        for target in self._targets.values():
            target.close()

    def _simple(self, request: Request) -> Result:
        method = _METHODS.get(request.method)
        if method is None:
            known = ", ".join(sorted((*_METHODS, "ports", "metrics", "handover")))
            raise ConfigError(f"there is no such method; known: {known}")
        port = self._named(request)
        result = method.call(port, _params(request, method.known), request)
        if method.changes:
            _log.info("%s on port %s by %s: %s", request.method, port.name, request.who, _short(result))
        return result

    def _named(self, request: Request) -> ManagedPort:
        if request.port is None:
            if len(self.ports) != 1:
                raise ConfigError(f"there are several ports; name one: {', '.join(self.ports)}")
            return next(iter(self.ports.values()))
        if request.port not in self.ports:
            raise ConfigError(f"there is no such port; known: {', '.join(self.ports)}")
        return self.ports[request.port]

    def _port(self, port: ManagedPort) -> Result:
        found: Result = {"name": port.name, "control": "guest" if port.operator is None else "operator"}
        if port.operator is None:
            return found
        sas = port.held()
        outbound = sum(held.spec.outbound for held in sas)
        found |= {"outbound_sas": outbound, "inbound_sas": len(sas) - outbound, "flows": len(port.flows())}
        found |= {"ownership": port.deed.ownership.value, "state": port.marks is not None}
        if not port.deed.owner_is_here:
            found["owner"] = port.deed.owner
        if port.marks is not None and port.marks.failure:
            found["state_failure"] = port.marks.failure
        return found


def _params(request: Request, known: frozenset[str]) -> Table:
    return Table(request.params, request.method, known)


def _short(result: Result) -> str:
    return " ".join(f"{name}={value}" for name, value in result.items())


def read_sa(values: object, name: str, dialect: Dialect) -> SaSpec:
    """An SA of a request."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be the table of an SA")
    return sa_from(values, dialect)


# -- the methods


def _sa_list(port: ManagedPort, params: Table, request: Request) -> Result:
    """SAs in the order outbound, inbound, each by id; ``after`` = [direction, id] goes on behind one of them."""
    limit, show = params.integer("limit", 1, MOST_LISTED, MOST_LISTED), params.boolean("show_keys")
    sas = port.held()
    if params.has("after"):
        key = _behind(params)
        sas = [held for held in sas if (not held.spec.outbound, held.spec.id) > key]
    if show:
        _log.warning("keys of port %s shown to %s", port.name, request.who)
    with port.lock:
        users: dict[int, list[str]] = {}
        for name, flow in port.flows().items():
            if flow.sa is not None:
                users.setdefault(flow.sa, []).append(name)
        listed = [_listed(held, users, show=show) for held in sas[:limit]]
    return {"sas": listed, "more": len(sas) > limit}


def _behind(params: Table) -> tuple[bool, int]:
    after = params.values["after"]
    direction, id = after if isinstance(after, list) and len(after) == 2 else (None, None)
    if direction not in ("outbound", "inbound") or not isinstance(id, int):
        params.refuse("after", "must be a direction and an id")
    return direction == "inbound", id


def _listed(held: HeldSa, users: Mapping[int, list[str]], *, show: bool) -> Result:
    engine: Any = held.engine
    state = engine.state()
    return {
        "sa": describe_sa(held.spec, show_keys=show),
        "sequence": state.sequence,
        "packets": state.packets,
        "bytes": state.bytes,
        "soft_expired": engine.soft_expired,
        "frozen": engine.frozen,
        "refused": {reason.value: count for reason, count in state.refused.items()},
        **({"flows": users.get(held.spec.id, [])} if held.spec.outbound else {}),
    }


def _sa_add(port: ManagedPort, params: Table, request: Request) -> Result:
    spec = read_sa(params.values.get("sa"), "sa", port.dialect)
    port.add_sa(spec)
    return {"added": place(spec)}


def _sa_remove(port: ManagedPort, params: Table, request: Request) -> Result:
    direction = params.choice("direction", DIRECTIONS)
    id = params.integer("id", 0, _HIGHEST)
    port.remove_sa(outbound=direction == "outbound", id=id)
    return {"removed": f"{direction} sa {id}"}


def _rekey(port: ManagedPort, params: Table, request: Request) -> Result:
    old = params.integer("old", 0, _HIGHEST)
    outbound = read_sa(params.values.get("outbound"), "outbound", port.dialect)
    inbound = read_sa(params.values["inbound"], "inbound", port.dialect) if params.has("inbound") else None
    port.rekey(old, outbound, inbound)
    added = [place(spec) for spec in (outbound, inbound) if spec is not None]
    return {"added": " and ".join(added), "removed": f"outbound sa {old}"}


def _flow_list(port: ManagedPort, params: Table, request: Request) -> Result:
    """Flows in their order; ``after`` = the number of flows to leave out."""
    limit = params.integer("limit", 1, MOST_LISTED, MOST_LISTED)
    flows = list(port.flows().items())[params.integer("after", 0, _HIGHEST, 0) :]
    return {"flows": [describe_flow(flow, name) for name, flow in flows[:limit]], "more": len(flows) > limit}


def _flow_add(port: ManagedPort, params: Table, request: Request) -> Result:
    values = params.values.get("flow")
    if not isinstance(values, Mapping):
        raise ConfigError("flow must be the table of a flow")
    return {"added": f"flow {port.add_flow(flow_from(values))}"}


def _flow_remove(port: ManagedPort, params: Table, request: Request) -> Result:
    name = params.text("name")
    port.remove_flow(name)
    return {"removed": f"flow {name}"}


def _counters(port: ManagedPort, params: Table, request: Request) -> Result:
    return {"counters": dict(sorted(port.counters().items()))}


_METHODS = {
    "sa.list": _Method(_sa_list, frozenset({"after", "limit", "show_keys"})),
    "sa.add": _Method(_sa_add, frozenset({"sa"}), changes=True),
    "sa.remove": _Method(_sa_remove, frozenset({"direction", "id"}), changes=True),
    "rekey": _Method(_rekey, frozenset({"old", "outbound", "inbound"}), changes=True),
    "flow.list": _Method(_flow_list, frozenset({"after", "limit"})),
    "flow.add": _Method(_flow_add, frozenset({"flow"}), changes=True),
    "flow.remove": _Method(_flow_remove, frozenset({"name"}), changes=True),
    "counters": _Method(_counters),
}
