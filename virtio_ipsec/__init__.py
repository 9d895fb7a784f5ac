"""Executable reference of virtio-net inline IPsec (virtio v1.4-cs01 and the January-2025 RFC).

The names below are imported when they are first used, so that ``import virtio_ipsec`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtio_ipsec.device.config import DeviceConfig as DeviceConfig
    from virtio_ipsec.device.device import Device as Device
    from virtio_ipsec.driver import Driver as Driver
    from virtio_ipsec.driver import DriverConfig as DriverConfig
    from virtio_ipsec.driver import Link as Link
    from virtio_ipsec.transport.loopback import Loopback as Loopback
    from virtio_ipsec.transport.pair import Pair as Pair
    from virtio_ipsec.wire.dialect import DIALECTS as DIALECTS
    from virtio_ipsec.wire.dialect import RFC_2025_01 as RFC_2025_01
    from virtio_ipsec.wire.dialect import V14 as V14
    from virtio_ipsec.wire.ipsec import IpsecSa as IpsecSa
    from virtio_ipsec.wire.ipsec import Lifetime as Lifetime
    from virtio_ipsec.wire.numbers import Feature as Feature
    from virtio_ipsec.wire.numbers import IpsecMode as IpsecMode
    from virtio_ipsec.wire.numbers import IpsecOption as IpsecOption
    from virtio_ipsec.wire.tunnel import TunnelIPv4 as TunnelIPv4
    from virtio_ipsec.wire.tunnel import TunnelIPv6 as TunnelIPv6

__version__ = "0.1.0"

#: Public name -> module that defines it.
_PLACES = {
    "DIALECTS": "wire.dialect",
    "Device": "device.device",
    "DeviceConfig": "device.config",
    "Driver": "driver",
    "DriverConfig": "driver",
    "Feature": "wire.numbers",
    "IpsecMode": "wire.numbers",
    "IpsecOption": "wire.numbers",
    "IpsecSa": "wire.ipsec",
    "Lifetime": "wire.ipsec",
    "Link": "driver",
    "Loopback": "transport.loopback",
    "Pair": "transport.pair",
    "RFC_2025_01": "wire.dialect",
    "TunnelIPv4": "wire.tunnel",
    "TunnelIPv6": "wire.tunnel",
    "V14": "wire.dialect",
}

__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
