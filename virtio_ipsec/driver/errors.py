"""What the driver refuses to do. Each of these is raised before a byte reaches the device."""

from __future__ import annotations

from virtio_ipsec.errors import VirtioIpsecError


class DriverError(VirtioIpsecError):
    """A request that a driver clause forbids, or that the device's state does not allow."""


class NotNegotiated(DriverError):
    """The request needs a feature, an opcode or a capability that was not agreed with the device."""


class FeatureError(DriverError):
    """The device does not offer, or does not accept, the features that this driver needs (BAS-FEAT-05)."""


class LimitReached(DriverError):
    """No id left below the limit that was set for this type of object (RO-DRV-02)."""


class PathMtuExceeded(DriverError):
    """The packet would exceed the path MTU once protected (NET-IPSEC-DRV-07).

    ``needed`` and ``mtu`` are the IP lengths in bytes: of the packet as it would leave, and allowed.
    """

    def __init__(self, needed: int, mtu: int) -> None:
        super().__init__(f"the packet may need {needed} bytes of a path MTU of {mtu}")
        self.needed = needed
        self.mtu = mtu


class QueueFull(DriverError):
    """The device has not consumed enough buffers to take another one."""
