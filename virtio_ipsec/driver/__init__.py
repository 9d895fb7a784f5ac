"""The driver shim, sans-IO: session, admin, SAs, flows, packets. Meets the device only in bytes."""

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver, Received
from virtio_ipsec.driver.errors import (
    DriverError,
    FeatureError,
    LimitReached,
    NotNegotiated,
    PathMtuExceeded,
    QueueFull,
)
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.sas import SaHandle
from virtio_ipsec.driver.transmit import Offload

__all__ = [
    "Driver",
    "DriverConfig",
    "DriverError",
    "FeatureError",
    "LimitReached",
    "Link",
    "NotNegotiated",
    "Offload",
    "PathMtuExceeded",
    "QueueFull",
    "Received",
    "SaHandle",
]
