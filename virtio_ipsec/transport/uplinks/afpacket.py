"""``afpacket:IF``: all frames of a network interface, by a packet socket (needs CAP_NET_RAW).

The host's own stack stays on the interface: it sees the frames too, and may answer. Give it an interface without
addresses of its own.
"""

from __future__ import annotations

import socket
import struct

from virtio_ipsec.errors import ConfigError, PacketError, TransportError
from virtio_ipsec.transport.uplink import MAX_FRAME
from virtio_ipsec.transport.uplinks import vnet
from virtio_ipsec.transport.uplinks.stream import FrameByFrame

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 1, 8, 15, 23
_MR_PROMISC = 1
_ETH_P_ALL = 3
_BUFFER = 4 << 20
#: ``struct tpacket_auxdata``.
_AUX = struct.Struct("=IIIHHHH")
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6


class PacketSocket(FrameByFrame):
    """Promiscuous, and without the frames that this machine sends. VLAN tags that the kernel has taken out are put
    back."""

    def __init__(self, argument: str) -> None:
        name = f"afpacket:{argument}"
        try:
            index = socket.if_nametoindex(argument)
        except (OSError, ValueError):
            raise TransportError(f"{name}: there is no such interface") from None
        try:
            # No protocol yet: else frames of all interfaces would be waiting when it is bound.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except PermissionError:
            raise TransportError(f"{name}: no permission: packet sockets want CAP_NET_RAW") from None
        try:
            self._set_up(argument, index)
        except OSError as error:
            self._socket.close()
            raise TransportError(f"{name}: {error.strerror}") from None
        if self._socket.getsockname()[3] != 1:  # ARPHRD_ETHER; loopback looks like it but is not
            self._socket.close()
            raise ConfigError(f"{name}: it is no Ethernet interface")
        super().__init__(name, self._socket.fileno())
        self._buffer = memoryview(bytearray(vnet.SIZE + MAX_FRAME))

    def _set_up(self, interface: str, index: int) -> None:
        sock = self._socket
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8x", index, _MR_PROMISC, 0))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # as much of it as the system allows
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        sock.bind((interface, _ETH_P_ALL))

    def _write(self, frame: bytes) -> None:
        self._socket.sendmsg((vnet.PLAIN, frame))

    def _read(self) -> list[bytes]:
        size, extra, _, _ = self._socket.recvmsg_into((self._buffer,), 64)
        tag = b""
        for level, kind, data in extra:
            if (level, kind) == (_SOL_PACKET, _AUXDATA) and len(data) >= _AUX.size:
                status, *_, tci, tpid = _AUX.unpack(data[: _AUX.size])
                if status & _VLAN_VALID:
                    tag = struct.pack("!HH", tpid if status & _VLAN_TPID_VALID else 0x8100, tci)
        try:
            frames = vnet.finish(bytes(self._buffer[: vnet.SIZE]), bytes(self._buffer[vnet.SIZE : size]))
        except PacketError:
            self._counts.drop("rx", "malformed")
            return []
        return [frame[:12] + tag + frame[12:] for frame in frames] if tag else frames

    def _release(self) -> None:
        self._socket.close()
