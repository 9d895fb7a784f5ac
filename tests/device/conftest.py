"""A driver's side of the administration and control queue, written with ``struct`` straight from the text."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device

OUTB, INB = 0x203, 0x204
GROUP, CLASSIFIER, RULE = 0x200, 0x201, 0x202
LIST_QUERY, LIST_USE, CAP_LIST, CAP_GET, CAP_SET = 0, 1, 7, 8, 9
CREATE, QUERY, MODIFY, DESTROY = 0xA, 0xB, 0xC, 0xD


@dataclass(frozen=True)
class Reply:
    """An answer taken apart; ``code`` is (status, qualifier)."""

    status: int
    qualifier: int
    result: bytes

    @property
    def code(self) -> tuple[int, int]:
        return self.status, self.qualifier


class Guest:
    """Sends commands to one device and packs their bytes by hand."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def raw(self, readable: bytes, room: int = 4096) -> bytes:
        return self.device.admin(readable, room)

    def frame(self, opcode: int, data: bytes = b"", group: int = 0, member: int = 0) -> bytes:
        whole = struct.pack("<HH12xQ", opcode, group, member) + data
        return whole + bytes(-len(whole) % 8)

    def send(
        self, opcode: int, data: bytes = b"", group: int = 0, member: int = 0, room: int = 4096
    ) -> Reply:
        answer = self.raw(self.frame(opcode, data, group, member), room)
        assert len(answer) % 8 == 0
        status, qualifier = struct.unpack_from("<HH", answer)
        assert answer[4:8] == bytes(4)
        return Reply(status, qualifier, answer[8:])

    def use_everything(self) -> None:
        assert self.send(LIST_USE, self.send(LIST_QUERY).result).code == (0, 0)

    def cap_get(self, cap: int) -> Reply:
        return self.send(CAP_GET, struct.pack("<H6x", cap))

    def cap_set(self, cap: int, data: bytes) -> Reply:
        return self.send(CAP_SET, struct.pack("<H6x", cap) + data)

    def enable(self, *caps: int) -> None:
        for cap in caps or (0x800, 0x801, 0x802, 0x803, 0x804):
            assert self.cap_set(cap, self.cap_get(cap).result).code == (0, 0)

    def object(self, opcode: int, kind: int, number: int, data: bytes = b"", flags: int = 0) -> Reply:
        header = struct.pack("<HxxI", kind, number)
        return self.send(opcode, header if opcode == DESTROY else header + struct.pack("<Q", flags) + data)

    def create(self, kind: int, number: int, data: bytes = b"", flags: int = 0) -> tuple[int, int]:
        return self.object(CREATE, kind, number, data, flags).code

    def modify(self, kind: int, number: int, data: bytes = b"") -> tuple[int, int]:
        return self.object(MODIFY, kind, number, data).code

    def destroy(self, kind: int, number: int) -> tuple[int, int]:
        return self.object(DESTROY, kind, number).code

    def query(self, kind: int, number: int) -> Reply:
        return self.object(QUERY, kind, number)

    def control(self, ctrl_class: int, command: int, data: bytes = b"") -> int:
        (ack,) = self.device.control(bytes((ctrl_class, command)) + data, 1)
        return ack


def tunnel_bytes(kind: int = 1, dscp: int = 0, df: int = 0, ttl: int = 64) -> bytes:
    """IPv4 tunnel parameters, 44 bytes: 10.0.0.1 to 10.0.0.2 as le32 numbers (E23)."""
    return struct.pack("<B3xIIBBBx", kind, 0x0A000001, 0x0A000002, dscp, df, ttl).ljust(44, b"\0")


def sa_bytes(**changes: Any) -> bytes:
    """The 196 bytes of a good outbound ESP tunnel SA, AES-128-GCM, with ``changes``."""
    v: dict[str, Any] = {
        "mode": 1, "direction": 1, "reserved": b"\0\0", "obj_id": 0, "spi": 0x1000, "salt": b"salt", "options": 0,
        "param": tunnel_bytes(), "sport": 0, "dport": 0, "window": 0, "cipher": 1, "key": bytes(range(16)),
        "key_len": None, "auth": 0, "auth_key": b"", "auth_len": None, "soft": (0, 0), "hard": (0, 0),
    }  # fmt: skip
    v |= changes
    out = struct.pack(
        "<BB2sII4sQ", v["mode"], v["direction"], v["reserved"], v["obj_id"], v["spi"], v["salt"], v["options"]
    )
    out += v["param"] + struct.pack("<HHI", v["sport"], v["dport"], v["window"])
    for algo, key, length in (("cipher", "key", "key_len"), ("auth", "auth_key", "auth_len")):
        size = len(v[key]) if v[length] is None else v[length]
        out += struct.pack("<QHxx32s", v[algo], size, v[key])
    out += struct.pack("<QQQQ", v["soft"][0], v["soft"][1], v["hard"][0], v["hard"][1])
    assert len(out) == 196
    return bytes(out)


def inbound_bytes(**changes: Any) -> bytes:
    """As :func:`sa_bytes`, inbound with a window of 64."""
    return sa_bytes(**({"direction": 2, "window": 64, "param": bytes(44)} | changes))


def selector_bytes(kind: int, mask: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BB2xB3x", kind, flags, len(mask)) + mask


def classifier_bytes(*selectors: bytes) -> bytes:
    return struct.pack("<B7x", len(selectors)) + b"".join(selectors)


def rule_bytes(
    group: int = 0, classifier: int = 0, priority: int = 0, keys: bytes = bytes(14), action: int = 1, vq: int = 0,
    key_length: int | None = None,
) -> bytes:  # fmt: skip
    length = len(keys) if key_length is None else key_length
    return struct.pack("<IIBBBxH2x", group, classifier, priority, length, action, vq) + keys


@pytest.fixture
def make() -> Callable[..., Guest]:
    """``make(config, features=..., ready=True)``: a device at work and its guest; ready = all commands and
    capabilities in use."""

    def build(
        config: DeviceConfig | None = None,
        features: int | None = None,
        ready: bool = True,
        device_class: type[Device] = Device,
    ) -> Guest:
        device = device_class(config or DeviceConfig(), lambda n: bytes(n))
        device.negotiate(device.offered_features if features is None else features)
        guest = Guest(device)
        if ready:
            guest.use_everything()
            guest.enable()
        return guest

    return build


@pytest.fixture
def guest(make: Callable[..., Guest]) -> Guest:
    """A default device with everything in use."""
    return make()


@pytest.fixture
def layouts() -> Any:
    """The byte makers, for test files cannot import this one."""

    class Layouts:
        sa = staticmethod(sa_bytes)
        inbound = staticmethod(inbound_bytes)
        tunnel = staticmethod(tunnel_bytes)
        selector = staticmethod(selector_bytes)
        classifier = staticmethod(classifier_bytes)
        rule = staticmethod(rule_bytes)

    return Layouts
