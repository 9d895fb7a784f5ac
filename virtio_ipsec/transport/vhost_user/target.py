"""A vhost-user back-end as a device under test: ``vhost-user:PATH[,server][,plain]``."""

from __future__ import annotations

from collections.abc import Mapping

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.framing import dial
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.connection import await_caller
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.messages import ProtocolFeature
from virtio_ipsec.transport.vhost_user.options import PROTOCOL, Options
from virtio_ipsec.wire.dialect import Dialect

#: Bytes of guest memory: room for all rings and for receive buffers of 64 KiB on every queue.
_MEMORY = 16 << 20
#: Seconds to wait for a back-end that is being started.
_START = 5.0
_WAYS = ("server", "plain")


class VhostUserTarget(VhostUserLink):
    """The device behind a socket. Its wire is beside it: see ``conformance --wire``."""

    has_wire = False
    patience = 2.0

    def __init__(self, path: str, dialect: Dialect, *, server: bool = False, plain: bool = False) -> None:
        listens = await_caller if server else dial
        protocol = PROTOCOL & ~(1 << binding.PROTOCOL_FEATURE) if plain else PROTOCOL
        self.name = f"vhost-user:{path}"
        self.dialect = dialect
        super().__init__(lambda: listens(path, _START), Options(protocol=protocol, memory=_MEMORY))

    @property
    def details(self) -> Mapping[str, str]:
        """What was agreed with the back-end."""
        agreed = [each.name.lower() for each in ProtocolFeature if self.protocol_features >> each & 1]
        bound = (
            "acknowledged" if self.has_binding else "not offered: feature bits below 64, no administration"
        )
        return {"protocol features": " ".join(agreed), "IPsec binding": bound}

    @property
    def keeps_status(self) -> bool:
        """Whether the device status is the back-end's: otherwise it is kept here, and says nothing of the device."""
        return self._channel.has(ProtocolFeature.STATUS)

    def reset(self) -> None:
        """Reset the device, over a new connection when the back-end has ended the old one."""
        try:
            self.write_status(0)
        except TransportError:
            self.restart()
            self.write_status(0)
        self.interrupts()

    def inject(self, frame: bytes) -> None:
        """No wire is known: TransportError."""
        raise TransportError(f"{self.name} has no wire: see --wire")

    def captured(self) -> list[bytes]:
        """Nothing, for the same reason."""
        return []


def vhost_user(argument: str, dialect: Dialect) -> VhostUserTarget:
    """The target that ``argument`` names: a socket where the back-end listens or, with ``server``, connects to;
    ``plain`` leaves the IPsec binding out. ConfigError for anything else, TransportError when nobody is there."""
    path, *ways = argument.split(",")
    if not path or not {*ways} <= {*_WAYS}:
        raise ConfigError(f"vhost-user:{argument} is not vhost-user:PATH[,server][,plain]")
    return VhostUserTarget(path, dialect, server="server" in ways, plain="plain" in ways)
