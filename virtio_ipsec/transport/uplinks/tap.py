"""``tap:NAME``: a tap interface that somebody has made, by ``ip tuntap add NAME mode tap user USER``."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from virtio_ipsec.errors import ConfigError, PacketError, TransportError
from virtio_ipsec.transport.uplink import MAX_FRAME
from virtio_ipsec.transport.uplinks import vnet
from virtio_ipsec.transport.uplinks.stream import FrameByFrame

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
#: TUN_F_CSUM, _TSO4, _TSO6, _TSO_ECN: what the kernel need not do before it hands a frame to us.
_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08
_MOST_NAME = 15

_MEANINGS = {
    errno.EBUSY: "another program has it open",
    errno.EPERM: "no permission: make it with `ip tuntap add NAME mode tap user USER`, or run with CAP_NET_ADMIN",
    errno.EINVAL: "it is no tap interface",
}


class Tap(FrameByFrame):
    """Frames of the local network stack arrive; what leaves, the stack receives. Segments of 64 KiB and open
    checksums come in one piece and are finished here."""

    def __init__(self, argument: str) -> None:
        name = f"tap:{argument}"
        if not 0 < len(os.fsencode(argument)) <= _MOST_NAME or "/" in argument:
            raise ConfigError(f"{name}: no interface can have that name")
        try:
            socket.if_nametoindex(argument)
        except OSError:
            # TUNSETIFF would make one: with a typing error, and the privilege, that nobody is at.
            raise TransportError(
                f"{name}: there is no such interface; make it with `ip tuntap add {argument} mode tap`"
            ) from None
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TransportError(f"{name}: /dev/net/tun: {error.strerror}") from None
        try:
            _attach(fd, argument)
        except OSError as error:
            os.close(fd)
            raise TransportError(f"{name}: {_MEANINGS.get(error.errno or 0, error.strerror)}") from None
        super().__init__(name, fd)
        self._buffer = memoryview(bytearray(vnet.SIZE + MAX_FRAME))

    def _write(self, frame: bytes) -> None:
        os.writev(self._fd, (vnet.PLAIN, frame))

    def _read(self) -> list[bytes]:
        size = os.readv(self._fd, (self._buffer,))
        try:
            return vnet.finish(bytes(self._buffer[: vnet.SIZE]), bytes(self._buffer[vnet.SIZE : size]))
        except PacketError:
            self._counts.drop("rx", "malformed")
            return []


def _attach(fd: int, name: str) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _request(name, flags))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Made with multi_queue, it wants to be opened so.
        fcntl.ioctl(fd, _TUNSETIFF, _request(name, flags | _IFF_MULTI_QUEUE))
    # Whoever had it before may have left another size.
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", vnet.SIZE))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)


def _request(name: str, flags: int) -> bytes:
    """``struct ifreq``."""
    return struct.pack("16sH22x", os.fsencode(name), flags)
