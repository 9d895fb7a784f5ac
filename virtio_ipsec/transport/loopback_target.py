"""The embedded device as a device under test."""

from __future__ import annotations

from collections.abc import Mapping

from virtio_ipsec.device.device import Device
from virtio_ipsec.transport.loopback import Loopback

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
    def long_run(self) -> int:
        """Packets of the longest run of a case, for about half a second."""
        return 20_000 if self.device.fast is not None else 4_000

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
