"""How a service is managed while it runs: state directory, control socket, metrics; all in the service's own thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.transport.administration import Administration
from virtio_ipsec.transport.control import ControlServer
from virtio_ipsec.transport.loop import Loop, Timer
from virtio_ipsec.transport.managed_port import Deed, Lock, ManagedPort, first_deed
from virtio_ipsec.transport.marks import Marks
from virtio_ipsec.transport.metrics import metrics_text
from virtio_ipsec.transport.metrics_server import MetricsServer
from virtio_ipsec.transport.operator_sas import PortSas
from virtio_ipsec.transport.owned_sas import OwnedSas
from virtio_ipsec.wire.dialect import Dialect

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManagementSettings:
    """``state``: directory of sequence marks; ``control``: path of the control socket; ``metrics``: address for
    Prometheus; ``awaited``: operator's ports get their SAs by a handover before they use any."""

    state: str | None = None
    control: str | None = None
    metrics: str | None = None
    awaited: bool = False


class Management:
    """Made before the ports, told of each, started with them and closed after them."""

    def __init__(self, settings: ManagementSettings, loop: Loop) -> None:
        """Opens the state directory. StateError."""
        self.ports: list[ManagedPort] = []
        self._settings, self._loop = settings, loop
        self._wake: dict[str, Callable[[], None]] = {}
        self._deeds: dict[str, tuple[Deed, OwnedSas]] = {}
        self._server: ControlServer | None = None
        self._metrics: MetricsServer | None = None
        self._administration: Administration | None = None
        self._timer: Timer | None = None
        self._failure = ""
        self.marks = Marks(Path(settings.state), os.urandom) if settings.state else None

    def sas(self, name: str, fast: FastPath | None) -> OwnedSas:
        """What makes the SAs of an operator's port. ConfigError."""
        deed = first_deed(self.marks, name, awaited=self._settings.awaited)
        sas = OwnedSas(PortSas(fast, os.urandom), self.marks, owned=deed.owner_is_here)
        self._deeds[name] = deed, sas
        return sas

    def add(
        self,
        name: str,
        dialect: Dialect,
        lock: Lock,
        counters: Callable[[], Mapping[str, int]],
        operator: OperatorPort | None,
        publish: Callable[[], None],
        wake: Callable[[], None],
    ) -> ManagedPort:
        """A port to be managed; see :class:`ManagedPort`. ``wake`` makes its own thread look at what is new."""
        deed, sas = self._deeds.get(name, (Deed(), None))
        port = ManagedPort(
            name, dialect, lock, counters, operator, sas, self.marks, publish, self._answered, deed=deed
        )
        self.ports.append(port)
        self._wake[name] = wake
        if not deed.owner_is_here:
            _log.warning("port %s: %s", name, deed.owner)
        return port

    def start(self) -> None:
        """Open the sockets and begin to write marks. TransportError, ConfigError."""
        self._tick()
        if self._settings.control:
            self._administration = Administration(self.ports, self._loop.call)
            self._server = ControlServer(self._settings.control, self._administration, after=self._answered)
            self._loop.add(self._server.fileno(), self._server.step)
        if self._settings.metrics:
            self._metrics = MetricsServer(self._settings.metrics, lambda: metrics_text(self.ports))
            self._loop.add(self._metrics.fileno(), self._metrics.step)
            _log.info("metrics at %s", self._metrics.address)

    def stop(self) -> None:
        """Nobody asks any more. Before the ports end."""
        for server in (self._server, self._metrics):
            if server is not None:
                self._loop.remove(server.fileno())
                server.close()
        self._server = self._metrics = None
        if self._administration is not None:
            self._administration.close()
            self._administration = None
        if self._timer is not None:
            self._timer.cancel()

    def close(self, *, orderly: bool) -> None:
        """Write the exact sequence numbers, if the ports have ended in an orderly way, and let the directory go."""
        self.stop()
        if self.marks is not None:
            self.marks.close(exact=orderly)
            self.marks = None

    def _answered(self) -> None:
        """Something may have been changed: it is in force before anybody is told so."""
        for port in self.ports:
            if port.news:
                port.news = False
                port.publish()
                self._wake[port.name]()
        self._tick()

    def _tick(self) -> None:
        if self.marks is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.marks.tick(monotonic_ns())
        if self.marks.failure != self._failure:
            self._failure = self.marks.failure
            if self._failure:
                _log.error("state directory: %s; outbound SAs stop at their marks", self._failure)
            else:
                _log.info("state directory: can be written to again")
        due = self.marks.deadline()
        self._timer = None if due is None else self._loop.at(due, self._tick)
