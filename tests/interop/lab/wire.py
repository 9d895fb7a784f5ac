"""An Ethernet segment made of UDP sockets on the loopback interface; everything on it goes into a capture file.

It ends when the test does, not when a device dies: a capture covers the devices before and after a crash or a
migration.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import Counter
from pathlib import Path

from virtio_ipsec.transport.pcap import Interface, Packet, create_capture

LOOPBACK = "127.0.0.1"
_FORCED_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE: above the limit for users, if we may
_BUFFER = 8 << 20


class Port:
    """One plug. ``local`` is where the station receives, ``remote`` where it sends to (host:port)."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((LOOPBACK, 0))
        self.socket.setblocking(False)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _FORCED_RECEIVE_BUFFER, _BUFFER)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        # Reserved by having been bound: the station binds it when it starts.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((LOOPBACK, 0))
            self.station = probe.getsockname()
        self.local = f"{LOOPBACK}:{self.station[1]}"
        self.remote = f"{LOOPBACK}:{self.socket.getsockname()[1]}"

    @property
    def uplink(self) -> str:
        """For ``virtio-ipsec serve --uplink``."""
        return f"udp:{self.local},{self.remote}"

    @property
    def netdev(self) -> str:
        """For QEMU's ``-netdev``, to which the id is added."""
        return f"socket,udp={self.remote},localaddr={self.local}"


class Wire:
    """What one port sends, all others get. ``names`` are the ports, and the interfaces of the capture."""

    def __init__(self, capture: Path, *names: str) -> None:
        self.capture = capture
        self._stream = capture.open("wb")
        self._writer = create_capture(self._stream, "pcapng", [Interface(name=name) for name in names])
        self.ports = {name: Port(name, number) for number, name in enumerate(names)}
        #: Frames sent by each port.
        self.counts: Counter[str] = Counter()
        #: Frames that a station's socket refused (it is not there).
        self.lost = 0
        self._lock = threading.Lock()
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        for port in self.ports.values():
            port.socket.close()
        self._wake.close()
        self._stream.close()

    def flush(self) -> None:
        """Make the file hold every frame that has been forwarded."""
        with self._lock:
            self._stream.flush()

    def inject(self, name: str, frame: bytes) -> None:
        """Send a frame as if the station on that port had."""
        self._forward(self.ports[name], frame)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for port in self.ports.values():
                selector.register(port.socket, selectors.EVENT_READ, port)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    self._drain(key.data)

    def _drain(self, port: Port) -> None:
        for _ in range(64):
            try:
                frame = port.socket.recv(65535)
            except (BlockingIOError, ConnectionRefusedError):
                return  # refused: what the kernel says of an earlier datagram to a station that is gone
            self._forward(port, frame)

    def _forward(self, source: Port, frame: bytes) -> None:
        with self._lock:
            self.counts[source.name] += 1
            self._writer.write(Packet(frame, time.time_ns(), source.number))
        for port in self.ports.values():
            if port is not source:
                try:
                    port.socket.sendto(frame, port.station)
                except (BlockingIOError, ConnectionRefusedError):
                    self.lost += 1
