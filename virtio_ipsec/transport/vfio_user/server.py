"""The vfio-user server of one function."""

from __future__ import annotations

import socket

from virtio_ipsec.transport.serving import PATIENCE, Serving
from virtio_ipsec.transport.vfio_user.connection import Connection
from virtio_ipsec.transport.vfio_user.dma import MAX_MAPS
from virtio_ipsec.transport.vfio_user.session import Session
from virtio_ipsec.transport.virtio_pci.function import PciFunction


class VfioUserServer(Serving):
    """Serves clients of vfio-user, each with ``most_maps`` DMA mappings at most. The function stays the caller's."""

    peer = "client"

    def __init__(
        self,
        function: PciFunction,
        path: str,
        *,
        mode: int = 0o600,
        penalty: int | None = None,
        most_maps: int = MAX_MAPS,
    ) -> None:
        self._function = function
        self._most_maps = most_maps
        super().__init__(function.port, path, mode=mode, penalty=penalty)

    def _open(self, sock: socket.socket) -> Session:
        return Session(self._function, Connection(sock, patience=PATIENCE), self._most_maps)
