"""The driver shim, sans-IO: session, admin, SAs, flows, packets. Meets the device only in bytes.

Each module says which driver clauses it obeys and where. The others do not apply:

* CRY-OPS-03, -04, CRY-IPSEC-INT-01 and CRY-IPSEC-DRV-01 to -07 are for drivers of the crypto device; those that
  have a twin for the network device are obeyed as NET-IPSEC-DRV.
* DP-DRV-01 to -05, ADM-DRV-10: no command for virtual functions is sent, but by who uses ``Admin.for_members``.
* PCI-CC-DRV-01, -07, BAS-RESET-06 and FRM-03's limit for indirect tables belong to the transport and the ring.
* NET-TX-INT-01, NET-TX-DRV-17, PCI-CC-DRV-09, BAS-RESET-07 and INF-04 only permit something.
"""

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
