"""Back-ends for tests of the control socket: operator ports with a thread that answers, and no device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operator_ports import GUEST, HOST, OTHER, OUTER, SERVICES, flows_text, port_text, sas_text
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.transport.administration import Administration
from virtio_ipsec.transport.control import ControlServer
from virtio_ipsec.transport.control_client import ControlClient
from virtio_ipsec.transport.managed_port import Deed, ManagedPort, first_deed
from virtio_ipsec.transport.marks import Marks
from virtio_ipsec.transport.operator_sas import PortSas
from virtio_ipsec.transport.owned_sas import OwnedSas

SECOND = 1_000_000_000


def config_of(side: str, **sas: Any) -> str:
    """A port that has to learn nothing before packets flow."""
    own = port_text(side, port=f'guest_mac = "{GUEST[side]}"', underlay='next_hop = "02:00:00:00:00:99"')
    return own + sas_text(side, **sas) + flows_text(side) + SERVICES


class BackEnd:
    """A process with one operator's port, as far as its SAs and its control socket go."""

    def __init__(
        self,
        path: Path,
        config: str = "",
        *,
        side: str = "a",
        state: Path | None = None,
        awaited: bool = False,
        engine: str = "python",
        name: str = "port0",
    ) -> None:
        self.path = str(path)
        self.side = side
        self.marks = None if state is None else Marks(state, os.urandom, sync=False)
        deed: Deed = first_deed(self.marks, name, awaited=awaited)
        self.sas = OwnedSas(
            PortSas(fast_path(engine, os.urandom), os.urandom), self.marks, owned=deed.owner_is_here
        )
        spec = parse(config or config_of(side))
        self.operator = OperatorPort(spec, self.sas, os.urandom)
        self.published = 0
        self.port = ManagedPort(
            name, spec.dialect, threading.RLock(), self.operator.counters, self.operator, self.sas, self.marks,
            self._publish, self.tick, deed=deed,
        )  # fmt: skip
        self._calls: list[Callable[[], None]] = []
        self.administration = Administration([self.port], self._calls.append)
        self.server = ControlServer(self.path, self.administration, after=self.tick)
        self.now = 5 * SECOND
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.tick()

    def _publish(self) -> None:
        self.published = self.operator.generation

    def tick(self) -> None:
        if self.marks is not None:
            self.now = max(self.now, self.marks.deadline() or 0) if hasattr(self, "now") else 0
            self.marks.tick(self.now)

    def start(self) -> BackEnd:
        """Answer in a thread."""

        def run() -> None:
            while not self._done.is_set():
                self.server.step(0.005)
                while self._calls:
                    self._calls.pop(0)()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self

    def send(self, payload: bytes = b"question") -> list[bytes]:
        """What leaves when the guest sends a datagram, apart from what the port itself has to say."""
        packet = IP(src=HOST[self.side], dst=HOST[OTHER[self.side]]) / UDP(sport=1000, dport=2000) / payload
        frame = bytes(Ether(src=GUEST[self.side], dst="02:00:00:00:0a:fe") / packet)
        return [each for each in self.operator.from_guest(frame, self.now).to_wire if each[23] == 50]

    def asked(self) -> list[bytes]:
        """What leaves when somebody on the wire asks for the address of the port's underlay."""
        question = Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.77", pdst=OUTER[self.side])
        return self.operator.from_wire(bytes(question), self.now).to_wire

    def receive(self, frame: bytes) -> list[bytes]:
        """What the guest gets when a frame arrives."""
        return self.operator.from_wire(frame, self.now).to_guest

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        with ControlClient(self.path) as client:
            return client.call(method, **params)

    def die(self) -> None:
        """As by kill -9: nothing is written any more."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if self.marks is not None:
            self.marks._journal.close()
        self.server.close()

    def stop(self) -> None:
        """An orderly end."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self.server.close()
        if self.marks is not None:
            self.marks.close()
        self.operator.close()
