"""Built-in devices under test: what `conformance` and its plug-ins call a target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.wire.dialect import Dialect

#: Bytes of guest memory: room for all rings and for receive buffers of 64 KiB on every queue.
_MEMORY = 16 << 20


class LoopbackTarget(Loopback):
    """The embedded device as a target. It answers within each call, so nobody has to wait for it."""

    name = "loopback"
    has_wire = True
    patience = 0.0

    def __init__(self, device: Device) -> None:
        super().__init__(device, memory_size=_MEMORY)
        self.dialect = device.config.dialect

    @property
    def details(self) -> Mapping[str, str]:
        """Which device model this is, and what moves its packets."""
        fast = self.device.fast
        engine = "python" if fast is None else f"c ({fast.sas.engine.name})"
        return {"device": type(self.device).__name__, "engine": engine}

    def reset(self) -> None:
        """Reset the device; frames and interrupts of its earlier life are forgotten."""
        self.write_status(0)
        self.captured()
        self.interrupts()

    def close(self) -> None:
        """Nothing to release."""


def loopback(
    argument: str,
    dialect: Dialect,
    device_class: type[Device] = Device,
    config: DeviceConfig | None = None,
    rng: Callable[[int], bytes] = os.urandom,
) -> LoopbackTarget:
    """A target around a device made here; ``config`` (whose dialect is ``dialect``) defaults to everything
    that the device can do. ``argument`` names the engine (see :func:`fast_path`), "auto" when empty; a variant of the
    device is Python's. ConfigError for an engine that there is not."""
    fast = fast_path(argument or "auto", os.urandom)
    config = config or DeviceConfig(dialect=dialect)
    return LoopbackTarget(Device(config, rng, fast) if device_class is Device else device_class(config, rng))
