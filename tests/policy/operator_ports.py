"""Operator ports for tests: configurations, frames, and two ports joined by a wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort, Output
from virtio_ipsec.policy.sas import ReferenceSas

SECOND = 1_000_000_000
KEYS = "000102030405060708090a0b0c0d0e0f", "101112131415161718191a1b1c1d1e1f"
GUEST = {"a": "02:00:00:00:0a:01", "b": "02:00:00:00:0b:01"}
GATE = {"a": "02:00:00:00:0a:fe", "b": "02:00:00:00:0b:fe"}
OUTER = {"a": "192.0.2.1", "b": "192.0.2.2"}
OUTER6 = {"a": "2001:db8::1", "b": "2001:db8::2"}
NET = {"a": "10.0.1.0/24", "b": "10.0.2.0/24"}
NET6 = {"a": "fd00:1::/64", "b": "fd00:2::/64"}
HOST = {"a": "10.0.1.5", "b": "10.0.2.5"}
HOST6 = {"a": "fd00:1::5", "b": "fd00:2::5"}
OTHER = {"a": "b", "b": "a"}
SERVICES = "".join(
    f'[[flow]]\nname = "{name}"\nservice = "{name}"\naction = "bypass"\npriority = 100\n'
    for name in ("arp", "nd", "dhcp", "ike")
)


def rng() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size)


def port_text(side: str, *, port: str = "", underlay: str = "") -> str:
    return f"""
[port]
control = "operator"
default = "drop"
{port}
[port.underlay]
mac = "{GATE[side]}"
addresses = ["{OUTER[side]}/24", "{OUTER6[side]}/64"]
{underlay}
"""


def sas_text(
    side: str,
    mode: str = "esp-tunnel",
    *,
    outer: dict[str, str] = OUTER,
    out: str = "",
    within: str = "",
    selectors: str = "",
    suite: str = 'algorithm = "aes-gcm-16"',
    keys: tuple[str, str] = KEYS,
    salt: str = 'salt = "a0a1a2a3"',
    spis: tuple[int, int] = (0x1001, 0x1002),
    id: int = 1,
) -> str:
    """An SA each way; ``spis`` and ``keys``: of what side a sends, of what side b sends."""
    mine = 0 if side == "a" else 1
    tunnel = mode.endswith("tunnel")
    ends = f'tunnel = {{ src = "{outer[side]}", dst = "{outer[OTHER[side]]}" }}' if tunnel else ""
    peer = f'peer = "{outer[OTHER[side]]}"' if tunnel else ""
    if not selectors:
        selectors = ", ".join(
            f'{{ local = "{net[side]}", remote = "{net[OTHER[side]]}" }}' for net in (NET, NET6)
        )
    return f"""
[[sa]]
id = {id}
direction = "outbound"
mode = "{mode}"
spi = {spis[mine]}
{suite}
{f'key = "{keys[mine]}"' if "hmac" not in suite or "cbc" in suite else ""}
{salt}
{ends}
{out}
[[sa]]
id = {id}
direction = "inbound"
mode = "{mode}"
spi = {spis[1 - mine]}
{suite}
{f'key = "{keys[1 - mine]}"' if "hmac" not in suite or "cbc" in suite else ""}
{salt}
{peer}
selectors = [{selectors}]
{within}
"""


def flows_text(side: str, sa: int = 1) -> str:
    return "".join(
        f'[[flow]]\nname = "{name}"\nmatch = {{ src = "{net[side]}", dst = "{net[OTHER[side]]}" }}\n'
        f'action = "protect"\nsa = {sa}\n'
        for name, net in (("to-peer", NET), ("to-peer6", NET6))
    )


def text(side: str, **changes: str) -> str:
    return port_text(side) + sas_text(side, **changes) + flows_text(side) + SERVICES


def port(config: str) -> OperatorPort:
    draw = rng()
    return OperatorPort(parse(config), ReferenceSas(draw), draw)


def from_guest(side: str, packet: Packet, to: str | None = None) -> bytes:
    """A frame of the guest to its gateway."""
    return bytes(Ether(src=GUEST[side], dst=to or GATE[side]) / packet)


def datagram(side: str, payload: bytes = b"question", **fields: object) -> bytes:
    packet = IP(src=HOST[side], dst=HOST[OTHER[side]], **fields) / UDP(sport=1000, dport=2000) / payload
    return from_guest(side, packet)


@dataclass
class Wire:
    """Two ports back to back, and what their guests get. ``seen``: every frame on the wire with its sender."""

    ports: dict[str, OperatorPort]
    now: int = 5 * SECOND
    guests: dict[str, list[bytes]] = field(default_factory=lambda: {"a": [], "b": []})
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def send(self, side: str, *frames: bytes) -> None:
        for frame in frames:
            self._spread(side, self.ports[side].from_guest(frame, self.now))

    def pass_time(self, seconds: float) -> None:
        """Both ports are called when they want to be."""
        end = self.now + int(seconds * SECOND)
        while True:
            due = [(time, side) for side, port in self.ports.items() if (time := port.deadline()) is not None]
            if not due or min(due)[0] > end:
                break
            time, side = min(due)
            self.now = max(self.now, time)
            self._spread(side, self.ports[side].tick(self.now))
        self.now = end

    def _spread(self, side: str, out: Output) -> None:
        self.guests[side] += out.to_guest
        for frame in out.to_wire:
            self.seen.append((side, frame))
            other = OTHER[side]
            self._spread(other, self.ports[other].from_wire(frame, self.now))

    def kinds(self) -> list[str]:
        """What is on the wire, in short."""
        return [f"{side} {_kind(frame)}" for side, frame in self.seen]


def _kind(frame: bytes) -> str:
    ether = Ether(frame)
    if ARP in ether:
        return "arp " + ("request" if ether[ARP].op == 1 else "reply")
    return str(ether.lastlayer().name) if IP not in ether else f"ip {ether[IP].proto}"


def joined(configs: dict[str, str]) -> Wire:
    return Wire({side: port(config) for side, config in configs.items()})


def met(both: Wire) -> Wire:
    """The same, once the ports know where their guests are."""
    for side in "ab":
        arp = ARP(psrc=HOST[side], pdst=HOST[side])
        both.send(side, bytes(Ether(src=GUEST[side], dst="ff:ff:ff:ff:ff:ff") / arp))
    both.seen.clear()
    for guest in both.guests.values():
        guest.clear()
    return both


def drops(both: Wire, side: str) -> dict[str, int]:
    return {name: number for name, number in both.ports[side].counters().items() if "_drop_" in name}
