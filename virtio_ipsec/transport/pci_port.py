"""A served port as a PCI function behind a vfio-user socket, and a virtual function that comes and goes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.vfio_user.dma import MAX_MAPS
from virtio_ipsec.transport.vfio_user.server import VfioUserServer
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.member import VirtualFunction

_log = logging.getLogger(__name__)


class PciPort:
    """``port`` as a function at ``path``; the port stays the caller's. TransportError when it cannot listen there.

    ``group``: the virtual functions that it owns. A ``virtual`` function has no socket until its owner enables it: its
    clients find it at the same path each time. ``most_maps``: DMA mappings that a client may have. ``make``: what the
    function is.
    """

    def __init__(
        self,
        port: ServedPort,
        path: str,
        *,
        mode: int = 0o600,
        group: SriovGroup | None = None,
        virtual: bool = False,
        most_maps: int = MAX_MAPS,
        make: Callable[..., PciFunction] = PciFunction,
    ) -> None:
        self._port = port
        self._path = path
        self._mode = mode
        self._most_maps = most_maps
        self.function = make(port, members=group, virtual=virtual)
        #: This function as its owner reaches it.
        self.member = VirtualFunction(self.function, self._set_present)
        self._server: VfioUserServer | None = None
        try:
            self._listen()
        except TransportError:
            self.function.close()
            raise
        if virtual:
            self._hang_up()

    @property
    def is_connected(self) -> bool:
        """Whether a client is there."""
        return self._server is not None and self._server.is_connected

    def close(self) -> None:
        """Let the client go, take the socket away, and all of the function's with it."""
        self._hang_up()
        self.function.close()

    def _set_present(self, on: bool) -> None:
        self._hang_up()
        self.function.set_present(on)
        if on:
            try:
                self._listen()
            except TransportError as error:
                _log.warning("%s: nobody can reach the function: %s", self._port.name, str(error))

    def _listen(self) -> None:
        self._server = VfioUserServer(
            self.function, self._path, mode=self._mode, most_maps=self._most_maps
        )

    def _hang_up(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
