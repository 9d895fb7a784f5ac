"""A service: ports behind vhost-user and vfio-user sockets, until somebody says stop.

Each port has threads of its own; what is common to them (signals, the control socket, metrics) lives in the thread that
calls :meth:`Service.run`, which must be the main one.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from types import TracebackType
from typing import Any

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import FastPath, fast_path
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import TransportError, VirtioIpsecError
from virtio_ipsec.fastpath import native
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.transport.bounce import BouncePort
from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.management import Management, ManagementSettings
from virtio_ipsec.transport.notify import notify
from virtio_ipsec.transport.pci_port import PciPort
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.service_plan import PortPlan, wire_port
from virtio_ipsec.transport.uplink import Uplink, open_uplink
from virtio_ipsec.transport.uplinks.crossed import crossed
from virtio_ipsec.transport.vfio_user.dma import MAX_MAPS, share_of_maps
from virtio_ipsec.transport.vhost_user.backend import Backend

_log = logging.getLogger(__name__)

#: What ends a service in order; a second one ends it at once.
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds in which all ports have to stop, and what each has when others have used them up.
STOP_WITHIN, _LEAST = 0.8, 0.01


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all ports. ``most_maps``: see :class:`~virtio_ipsec.transport.pci_port.PciPort`."""

    engine: str = "auto"
    client: bool = False
    socket_mode: int = 0o600
    most_maps: int = MAX_MAPS
    management: ManagementSettings = field(default_factory=ManagementSettings)


class RunningPort:
    """A port with its back-end and its control thread. ``members``: its virtual functions."""

    def __init__(
        self,
        plan: PortPlan,
        uplink: Uplink,
        settings: Settings,
        management: Management,
        members: Sequence[RunningPort] = (),
    ) -> None:
        """Owns ``uplink`` from here on. ConfigError and TransportError when it cannot be."""
        self.plan = plan
        self.uplink = uplink
        with ExitStack() as undo:
            undo.callback(uplink.close)
            self.fast = fast_path(settings.engine, os.urandom)
            self.operator = self._operator(self.fast, management)
            device = Device(plan.device_config(), os.urandom, self.fast)
            kind = BouncePort if plan.is_pci else ServedPort
            self.port = kind(device, uplink, self.operator, name=plan.name)
            undo.pop_all()
            undo.callback(self.port.close)
            self.backend = self._front(settings, members)
            undo.pop_all()
        dialect, port = plan.config.dialect, self.port
        managed = management.add(
            plan.name, dialect, port.lock, port.counters, self.operator, port.publish, port.look_soon
        )
        if self.operator is not None and managed.deed.owner_is_here:
            # Another machine, or another MAC, may have had our addresses before.
            self.operator.activate()
            port.look_soon()
        self._thread = threading.Thread(target=self.port.loop.run, name=f"{plan.name}-control", daemon=True)

    def _front(self, settings: Settings, members: Sequence[RunningPort]) -> Backend | PciPort:
        """What shows the port to a driver."""
        plan = self.plan
        if not plan.is_pci:
            return Backend(self.port, plan.socket, client=settings.client, mode=settings.socket_mode)
        functions = [each.backend.member for each in members if isinstance(each.backend, PciPort)]
        group = SriovGroup(functions, stoppable=True) if functions else None
        return PciPort(
            self.port,
            plan.socket,
            mode=settings.socket_mode,
            group=group,
            virtual=plan.is_virtual,
            most_maps=settings.most_maps,
        )

    def _operator(self, fast: FastPath | None, management: Management) -> OperatorPort | None:
        if not self.plan.by_operator:
            return None
        return OperatorPort(self.plan.config, management.sas(self.plan.name, fast), os.urandom)

    @property
    def engine(self) -> str:
        """What moves its packets."""
        return "python" if self.fast is None else f"c ({self.fast.sas.engine.name})"

    def start(self) -> None:
        """Let front-ends in."""
        self._thread.start()

    def leave(self) -> None:
        """Begin to stop: finish what has been begun, and let the front-end go."""
        if self._thread.is_alive():
            self.port.loop.call(self.backend.close)
            self.port.loop.call(self.port.loop.stop)

    def stop(self, until: float) -> None:
        """Let go of everything, after :meth:`leave`; ``until``: monotonic seconds. TransportError when it is still at
        work by then."""
        served = self._thread.ident is not None
        if served:
            self._thread.join(max(_LEAST, until - monotonic()))
        else:
            self.backend.close()
        if self._thread.is_alive():
            raise TransportError(f"port {self.plan.name} does not stop")
        counters = {name: count for name, count in sorted(self.port.counters().items()) if count}
        self.port.close()
        if self.operator is not None:
            self.operator.close()
        if served:
            _log.info("stopped port", extra={"fields": {"port": self.plan.name, "counters": counters}})

    def description(self) -> dict[str, Any]:
        """For the log."""
        plan, config = self.plan, self.plan.config
        found: dict[str, Any] = {
            "port": plan.name,
            "vfio_user" if plan.is_pci else "socket": plan.socket,
            "uplink": self.uplink.name,
            "control": str(plan.spec.control),
            "engine": self.engine,
            "queue_pairs": plan.spec.queue_pairs,
            "features": hex(self.port.device.offered_features),
        }
        if plan.by_operator:
            outbound = sum(spec.outbound for spec in config.sas)
            found |= {
                "outbound_sas": outbound,
                "inbound_sas": len(config.sas) - outbound,
                "flows": len(config.flows),
                "default": str(plan.spec.default),
            }
        return found


class Service:
    """All of them. A context manager: what was opened is closed when it ends, however it ends."""

    def __init__(self, plans: tuple[PortPlan, ...], settings: Settings) -> None:
        """Opens everything and serves nobody yet. ConfigError and TransportError, one line each."""
        self.loop = Loop()
        self.ports: list[RunningPort] = []
        self._stopped = False
        self._management = Management(settings.management, self.loop)
        # A core would hold the keys; and each port has a dozen descriptors.
        for limit, soft in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, None)):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard if soft is None else soft, hard))
        ports = sum(1 + len(plan.vfs) for plan in plans)
        try:
            for plan in plans:
                self._open(plan, replace(settings, most_maps=share_of_maps(ports)))
        except BaseException:
            self.close()
            raise

    def _open(self, plan: PortPlan, settings: Settings) -> None:
        for each in plan.vfs:
            self._open(each, settings)
        members = self.ports[len(self.ports) - len(plan.vfs) :]
        kind, _, path = plan.uplink.partition(":")
        if kind != "vhost-user":
            self.ports.append(RunningPort(plan, open_uplink(plan.uplink), settings, self._management, members))
            return
        near, far = crossed(plan.uplink, f"port {plan.name}")
        try:
            self.ports.append(RunningPort(plan, near, settings, self._management, members))
        except BaseException:
            far.close()
            raise
        self.ports.append(RunningPort(wire_port(plan, path), far, settings, self._management))

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self) -> None:
        """Serve until a signal says stop. TransportError when a port did not."""
        with self._signals():
            if not native.available():
                _log.warning(
                    "packets run on the Python path, without dirty log (live migration), in-flight tracking (a lost "
                    "back-end loses what it had taken) and guard (a front-end that cuts its memory off ends this "
                    "process): %s",
                    native.why_not(),
                )
            self._management.start()
            for port in self.ports:
                port.start()
                _log.info("serving", extra={"fields": port.description()})
            notify(READY="1", STATUS=f"serving {len(self.ports)} ports", MAINPID=str(os.getpid()))
            self.loop.run()
            begin = monotonic()
            notify(STOPPING="1")
            self.close()
            _log.info("stopped", extra={"fields": {"seconds": round(monotonic() - begin, 3)}})

    def stop(self) -> None:
        """Let :meth:`run` return. From any thread."""
        self.loop.stop()

    def close(self) -> None:
        """Stop all ports and wipe their keys; twice is once."""
        if self._stopped:
            return
        self._stopped = True
        stuck: list[VirtioIpsecError] = []
        self._management.stop()
        until = monotonic() + STOP_WITHIN
        # An owner that leaves lets its virtual functions vanish, which they have to be there for.
        for virtual in (False, True):
            ports = [port for port in self.ports if port.plan.is_virtual == virtual]
            for port in ports:
                port.leave()
            for port in ports:
                try:
                    port.stop(until)
                except VirtioIpsecError as error:
                    stuck.append(error)
        self._management.close(orderly=not stuck)
        self.loop.close()
        if stuck:
            raise stuck[0]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become a byte that the loop reads; whoever sends a second one does not want to wait."""
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = {number: signal.signal(number, lambda *_: None) for number in _STOPPING}
            wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

            def arrived() -> None:
                with suppress(BlockingIOError):
                    name = signal.Signals(reader.recv(1)[0]).name
                    _log.info("stopping", extra={"fields": {"signal": name}})
                    for number in _STOPPING:
                        signal.signal(number, signal.SIG_DFL)
                    self.loop.stop()

            self.loop.add(reader.fileno(), arrived)
            try:
                yield
            finally:
                signal.set_wakeup_fd(wakeup)
                for number, handler in before.items():
                    signal.signal(number, handler)
