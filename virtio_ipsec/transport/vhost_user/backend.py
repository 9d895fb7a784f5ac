"""The vhost-user back-end of one port."""

from __future__ import annotations

import socket

from virtio_ipsec.transport.serving import PATIENCE, Serving
from virtio_ipsec.transport.vhost_user.connection import Connection
from virtio_ipsec.transport.vhost_user.session import Session


class Backend(Serving):
    """Serves front-ends of vhost-user."""

    peer = "front-end"

    def _open(self, sock: socket.socket) -> Session:
        return Session(self.port, Connection(sock, patience=PATIENCE))
