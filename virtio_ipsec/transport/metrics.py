"""Counters as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from virtio_ipsec.transport.managed_port import ManagedPort
from virtio_ipsec.wire.numbers import Direction

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: SAs of a port that have lines of their own; with more only their number is told.
MOST_SAS = 1024

_SA_METRICS = (
    ("sa_packets_total", "counter", "Packets that passed every check of the SA"),
    ("sa_bytes_total", "counter", "Octets of those packets that went through the algorithm"),
    ("sa_refused_total", "counter", "Packets that the SA refused"),
    ("sa_sequence", "gauge", "Sequence number used last, or the highest one that was authenticated"),
    ("sa_soft_expired", "gauge", "Whether a soft lifetime limit is reached"),
)
_PORT_METRICS = (
    ("port_events_total", "counter", "Events of the port"),
    ("port_sas", "gauge", "SAs of the port"),
    ("port_owns_sas", "gauge", "Whether the port may use its SAs"),
    ("port_state_failure", "gauge", "Whether the state directory cannot be written to"),
)

_Sample = tuple[str, dict[str, str], int]


def metrics_text(ports: Iterable[ManagedPort]) -> str:
    """Every counter of every port, and of its SAs."""
    samples: dict[str, list[_Sample]] = {}
    for port in ports:
        for sample in (*_of_port(port), *_of_sas(port)):
            samples.setdefault(sample[0], []).append(sample)
    lines: list[str] = []
    for name, kind, help_text in (*_PORT_METRICS, *_SA_METRICS):
        if name in samples:
            lines += [f"# HELP virtio_ipsec_{name} {help_text}", f"# TYPE virtio_ipsec_{name} {kind}"]
            lines += [_line(*sample) for sample in samples[name]]
    return "\n".join(lines) + "\n"


def _of_port(port: ManagedPort) -> Iterator[_Sample]:
    for event, count in sorted(port.counters().items()):
        yield "port_events_total", {"port": port.name, "event": event}, count
    if port.operator is None:
        return
    sas = port.held()
    outbound = sum(held.spec.outbound for held in sas)
    for direction, count in (("outbound", outbound), ("inbound", len(sas) - outbound)):
        yield "port_sas", {"port": port.name, "direction": direction}, count
    yield "port_owns_sas", {"port": port.name}, int(port.deed.owner_is_here)
    if port.marks is not None:
        yield "port_state_failure", {"port": port.name}, int(bool(port.marks.failure))


def _of_sas(port: ManagedPort) -> Iterator[_Sample]:
    if port.operator is None or len(sas := port.held()) > MOST_SAS:
        return
    for held in sas:
        params, engine = held.spec.params, _any(held.engine)
        direction = "outbound" if params.direction is Direction.OUTBOUND else "inbound"
        labels = {
            "port": port.name,
            "direction": direction,
            "id": str(held.spec.id),
            "spi": f"0x{params.spi:08x}",
        }
        state = engine.state()
        yield "sa_packets_total", labels, state.packets
        yield "sa_bytes_total", labels, state.bytes
        yield "sa_sequence", labels, state.sequence
        yield "sa_soft_expired", labels, int(engine.soft_expired)
        for reason, count in sorted(state.refused.items()):
            yield "sa_refused_total", labels | {"reason": reason.value}, count


def _any(engine: Any) -> Any:
    return engine


def _line(name: str, labels: dict[str, str], value: int) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"virtio_ipsec_{name}{{{inside}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
