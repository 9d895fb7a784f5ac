"""The other side of a port: where frames leave to and arrive from, named by a URI.

A URI is ``KIND`` or ``KIND:ARGUMENT``; :data:`KINDS` lists them. The same grammar names the wire of `conformance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import pipeline
from virtio_ipsec.fastpath.wire import Wire

#: Largest frame that any kind carries, in bytes: 65,535 of IP behind an Ethernet header with two VLAN tags.
MAX_FRAME = 65_557


class Uplink(Protocol):
    """One end of a wire. Frames are whole Ethernet frames with finished checksums and without FCS.

    ``send`` may be called from several threads, ``receive`` from one at a time. Neither waits.
    """

    @property
    def name(self) -> str:
        """The URI it was opened by."""

    @property
    def native(self) -> pipeline.Uplink | Wire | None:
        """What does in C what ``send`` does; None: nothing."""

    def fileno(self) -> int | None:
        """A descriptor that is readable while frames wait, the same one until ``close``; None: none ever arrive."""

    def receive(self, most: int) -> list[bytes]:
        """At most ``most`` frames that have arrived, give or take the segments of one; empty when none wait."""

    def send(self, frames: list[bytes]) -> None:
        """Send what can be sent at once; the rest is dropped and counted."""

    def counters(self) -> dict[str, int]:
        """``tx_frames tx_bytes rx_frames rx_bytes`` and what was dropped, by cause: ``tx_dropped_full`` and so on."""

    def close(self) -> None:
        """Release everything; twice is once."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of uplink: its class and what stands behind the colon. Without a module it is made by `serve`."""

    module: str
    cls: str
    argument: str
    summary: str


#: What `serve --uplink` and `conformance --wire` take. A module is imported only when it is named.
KINDS = {
    "tap": Kind("tap", "Tap", "NAME", "a tap interface that exists, with its offloads"),
    "afpacket": Kind("afpacket", "PacketSocket", "IF", "a network interface, by a packet socket"),
    "udp": Kind(
        "udp", "Udp", "LOCAL,REMOTE", "each frame in a UDP datagram, unprotected: HOST:PORT,HOST:PORT"
    ),
    "unix": Kind("unix", "UnixWire", "PATH", "a local socket: the first end listens, the other one connects"),
    "vhost-user": Kind("", "", "PATH", "a second front-end, at PATH, on the side where frames are protected"),
    "pcap": Kind("capture", "CaptureFiles", "[IN,]OUT", "IN arrives once, what leaves is written to OUT"),
    "null": Kind("null", "Null", "", "nothing arrives, what leaves is counted"),
    "generator": Kind(
        "generator", "Generator", "[SIZE[,COUNT]]", "UDP frames arrive without end, or COUNT of them"
    ),
}


def grammar() -> str:
    """The kinds, for a help text."""
    shown = {
        name + (f":{kind.argument}" if kind.argument else ""): kind.summary for name, kind in KINDS.items()
    }
    return "\n".join(f"  {uri:<26} {summary}" for uri, summary in shown.items())


def check_uplink(uri: str) -> tuple[Kind, str]:
    """The kind that ``uri`` names, and its argument. ConfigError when there is no such kind, or too little or too much
    stands behind its colon; nothing is opened."""
    name, _, argument = uri.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise ConfigError(f"no uplink is called {name!r}; known: {', '.join(KINDS)}")
    if not argument and kind.argument and not kind.argument.startswith("["):
        raise ConfigError(f"uplink {name} needs an argument: {name}:{kind.argument}")
    if argument and not kind.argument:
        raise ConfigError(f"uplink {name} takes no argument")
    return kind, argument


def open_uplink(uri: str) -> Uplink:
    """The uplink that ``uri`` names.

    Raises ConfigError when the URI is not one, TransportError when what it names cannot be had; one line each.
    """
    kind, argument = check_uplink(uri)
    if not kind.module:
        raise ConfigError(f"{uri}: only `serve` has such an uplink")
    made: Uplink = getattr(import_module(f"virtio_ipsec.transport.uplinks.{kind.module}"), kind.cls)(argument)
    return made
