"""Frames of a guest and of the wire at an operator's port: nothing raises, memory is bounded, no cleartext leaves."""

from __future__ import annotations

import os
import random
import sys
from itertools import count

from harness import Target, fuzz

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "policy"))

from operator_ports import KEYS, OUTER, port_text, sas_text

from virtio_ipsec.policy import neighbours, reassembly
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.policy.sas import ReferenceSas

PEER = {"a": OUTER["a"], "b": "198.51.100.2"}
GIVEN = {"spis": (0x1003, 0x1004), "keys": ("30" + KEYS[0][2:], "31" + KEYS[1][2:]), "id": 2}
CONFIG = (
    port_text("a", port="mss_clamp = true", underlay='gateways = ["192.0.2.254"]')
    + sas_text("a", outer=PEER, selectors='{ protocol = "udp", local_port = "1-9" }')
    + sas_text("a", "esp-transport", selectors="{}", **GIVEN)
    + """
[[flow]]
match = { dst = "10.0.2.0/24", protocol = "udp", dport = "1-9" }
action = "protect"
sa = 1
[[flow]]
match = { dst = "10.0.3.0/24" }
action = "protect"
sa = 2
[[flow]]
match = { dst = "fd00::/16" }
action = "protect"
sa = 1
[[flow]]
service = "arp"
action = "bypass"
[[flow]]
service = "nd"
action = "bypass"
"""
)
SECRET = b"the guest's own words"

_serial = count(1)


def _udp(payload: bytes = SECRET) -> bytes:
    return bytes((0, 5, 0, 5)) + (8 + len(payload)).to_bytes(2) + b"\0\0" + payload


def _ipv4(rng: random.Random, target: bytes, body: bytes, protocol: int = 17) -> bytes:
    flags = rng.choice((0, 0x4000, 0x2000, 3, 0x2003))
    head = (
        b"\x45\0"
        + (20 + len(body)).to_bytes(2)
        + b"\0\7"
        + flags.to_bytes(2)
        + bytes((64, protocol))
        + b"\0\0"
    )
    return head + bytes((10, 0, 1, 5)) + target + body


def _ipv6(rng: random.Random, target: bytes, body: bytes, protocol: int = 17) -> bytes:
    if rng.random() < 0.4:
        word = rng.choice((0, 1, 8, 9))
        body, protocol = bytes((protocol, 0)) + word.to_bytes(2) + b"\0\0\0\7" + body, 44
    hops = rng.choice((255, 64))
    head = b"\x60\0\0\0" + len(body).to_bytes(2) + bytes((protocol, hops))
    return head + bytes.fromhex("fd000001") + bytes(12) + target + body


def frame(rng: random.Random) -> bytes:
    """Something that a guest or the wire might send."""
    link = rng.choice(("020000000afe", "ffffffffffff", "020000000a01")) + "020000000a02"
    tag = rng.choice(("", "", "", "81000005", "81000000"))
    ours4, ours6 = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\1"
    esp = bytes((0, 0, 0x10, rng.randrange(1, 6))) + bytes((0, 0, 0, rng.randrange(4))) + rng.randbytes(40)
    quoted = b"\x45" + bytes(8) + b"\x32\0\0" + ours4 + bytes((198, 51, 100, 2)) + esp[:8]
    ethertype, packet = rng.choice(
        (
            ("0806", bytes.fromhex("0001080006040001020000000a02c0000263000000000000c0000201")),
            (
                "0800",
                _ipv4(rng, bytes((10, 0, rng.choice((2, 3)), 9)), _udp(SECRET * rng.choice((1, 3, 70)))),
            ),
            ("0800", _ipv4(rng, ours4, esp, 50)),
            ("0800", _ipv4(rng, ours4, b"\x03\x04\0\0\0\0\x02\0" + quoted, 1)),
            ("86dd", _ipv6(rng, ours6, _udp())),
            ("86dd", _ipv6(rng, ours6, b"\x87\0\0\0" + bytes(4) + ours6 + b"\1\1" + bytes(6), 58)),
            ("86dd", _ipv6(rng, ours6, esp, 50)),
        )
    )
    return bytes.fromhex(link + tag + ethertype) + packet


class Station:
    """One port that lives through all inputs."""

    def __init__(self) -> None:
        draw = lambda size: next(_serial).to_bytes(size)  # noqa: E731
        self.port = OperatorPort(parse(CONFIG), ReferenceSas(draw), draw)
        self.now = 0

    def run(self, data: bytes) -> None:
        self.now += data[0] * 10_000_000 if data else 1
        for take in (self.port.from_guest, self.port.from_wire):
            out = take(data, self.now)
            assert len(out.to_wire) + len(out.to_guest) <= neighbours.MAX_WAITING + 300
        leaving = self.port.from_guest(data, self.now).to_wire
        known = (b"\x08\x06", b"\x80\x35")
        for sent in leaving:
            at = 12
            while sent[at : at + 2] in {b"\x81\0", b"\x88\xa8", b"\x91\0"}:
                at += 4
            assert (
                SECRET not in sent or sent[at : at + 2] in known or sent[at + 2 + 6 : at + 2 + 7] == b"\x3a"
            )
        self.port.tick(self.now)
        due = self.port.deadline()
        assert due is None or due > self.now
        for part in (self.port._departures, self.port._arrivals):
            assert len(part.fragments) <= reassembly.MAX_DATAGRAMS
            assert part.fragments.octets <= reassembly.MAX_OCTETS
        self.port.snapshot()


TARGETS = (Target("operator", seed=frame, run=Station().run, declared=()),)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
