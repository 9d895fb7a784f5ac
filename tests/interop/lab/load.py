"""Load through our own front-end, as a process that can be killed: numbered packets out, numbered packets in.

    python load.py SOCKET CASE FIRST split|packed [PACKETS_PER_SECOND]

A line of JSON on stdout every tenth of a second: ``next`` is the first number that has not been sent, ``received``,
``damaged`` and ``doubled`` what came in, ``lives`` how many back-ends it has had. When the back-end goes it connects
again and goes on with its rings as they are.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from lab.cases import CASES, GUEST_MAC, UNDERLAY_MAC
from lab.station import number_of, numbered

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.errors import QueueFull
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import PROTOCOL, Options
from virtio_ipsec.wire.numbers import Feature, mask

T = TypeVar("T")

MOST_AT_ONCE = 32
SIZES = (64, 200, 576, 1000)
ETHERNET = bytes.fromhex((UNDERLAY_MAC + GUEST_MAC).replace(":", "")) + b"\x08\x00"
#: No offload: what is queued is one packet on the wire.
WANTED = mask(
    Feature.F_VERSION_1,
    Feature.F_INDIRECT_DESC,
    Feature.F_EVENT_IDX,
    Feature.NET_F_MRG_RXBUF,
    Feature.NET_F_MTU,
)


class Load:
    """The driver and its counts."""

    def __init__(self, socket: str, case: int, first: int, packed: bool, rate: float) -> None:
        self.local, self.remote = next(each for each in CASES if each.number == case).addresses
        self.next, self.rate = first, rate
        self.seen: set[int] = set()
        self.received = self.damaged = self.doubled = 0
        self.lives = 1
        options = Options(protocol=PROTOCOL & ~(1 << binding.PROTOCOL_FEATURE), memory=16 << 20)
        self.link = self._patiently(lambda: VhostUserLink.at(socket, options))
        wanted = WANTED | (mask(Feature.F_RING_PACKED) if packed else 0)
        self.driver = Driver(self.link, config=DriverConfig(wanted=wanted))
        self.driver.start()

    @staticmethod
    def _patiently(connect: Callable[[], T]) -> T:
        limit = time.monotonic() + 30
        while True:
            try:
                return connect()
            except TransportError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)

    def run(self) -> None:
        report = 0.0
        while True:
            due = time.monotonic()
            try:
                while True:
                    now = time.monotonic()
                    if now > report:
                        report = now + 0.1
                        self.say()
                    # What was missed is not made up for: a slow machine must find time for the rest.
                    for _ in range(min(int((now - due) * self.rate), MOST_AT_ONCE)):
                        self.send()
                        due = now
                    self.link.poll(0.001)
                    self.take()
            except TransportError:
                self._patiently(self.link.reconnect)
                self.lives += 1

    def send(self) -> None:
        size = SIZES[self.next % len(SIZES)]
        frame = ETHERNET + numbered(self.local, self.remote, 1000 + self.next % 7, self.next, size)
        with suppress(QueueFull):
            self.driver.send(frame)
            self.next += 1

    def take(self) -> None:
        for packet in self.driver.receive():
            if packet.frame[12:14] != b"\x08\x00":
                continue
            number = number_of(packet.frame[14:])
            self.received += 1
            if number is None:
                self.damaged += 1
            elif number in self.seen:
                self.doubled += 1
            else:
                self.seen.add(number)

    def say(self) -> None:
        counts = {name: getattr(self, name) for name in ("next", "received", "damaged", "doubled", "lives")}
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    rate = float(words[4]) if len(words) > 4 else 2000.0
    Load(words[0], int(words[1]), int(words[2]), words[3] == "packed", rate).run()
