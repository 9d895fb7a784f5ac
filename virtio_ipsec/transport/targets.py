"""Built-in devices under test: what `conformance` and its plug-ins call a target."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.loopback_members import LoopbackMember, LoopbackOwner
from virtio_ipsec.transport.loopback_target import LoopbackTarget
from virtio_ipsec.wire.dialect import Dialect

#: Most virtual functions of an embedded device: each has memory of its own.
MAX_MEMBERS = 64


def loopback(
    argument: str,
    dialect: Dialect,
    device_class: type[Device] = Device,
    config: DeviceConfig | None = None,
    rng: Callable[[int], bytes] = os.urandom,
    member_class: type[LoopbackMember] = LoopbackMember,
) -> LoopbackTarget:
    """A target around a device made here; ``config`` (whose dialect is ``dialect``) defaults to everything
    that the device can do. ``argument``: the engine (see :func:`fast_path`) and, as ``members=N``, how many virtual
    functions it has, with a comma in between; "auto" and none when left out. A variant of the device is Python's.
    ConfigError for an engine that there is not."""
    engine, members = engine_and_members(argument)
    config = config or DeviceConfig(dialect=dialect)

    def device(number: int) -> Device:
        mac = (int.from_bytes(config.mac) ^ number).to_bytes(6)
        own = config if not number else replace(config, mac=mac)
        fast = fast_path(engine, os.urandom)
        return Device(own, rng, fast) if device_class is Device else device_class(own, rng)

    if not members:
        return LoopbackTarget(device(0))
    return LoopbackOwner(device(0), [member_class(device(number)) for number in range(1, members + 1)])


def engine_and_members(argument: str) -> tuple[str, int]:
    """The argument of a loopback, taken apart. ConfigError for another form."""
    engine, members = "auto", 0
    for word in filter(None, argument.split(",")):
        name, equals, value = word.partition("=")
        if not equals:
            engine = word
        elif name == "members" and value.isdecimal() and int(value) <= MAX_MEMBERS:
            members = int(value)
        else:
            raise ConfigError(f"loopback: {word!r}: members=N with N up to {MAX_MEMBERS}")
    return engine, members
