"""The ``virtio_net_hdr`` that Linux puts before frames of taps and packet sockets, 10 bytes in the host's order.

A frame from the local stack may have an open checksum, or be many segments in one; both are finished here, as for a
driver's.
"""

from __future__ import annotations

import os
import struct

from virtio_ipsec.device.checksum import complete_checksum
from virtio_ipsec.device.offloads import check_gso
from virtio_ipsec.device.offloads import segment as python_segment
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.offload import Punted
from virtio_ipsec.fastpath.offload import segment as c_segment
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, HdrFlag, mask

SIZE = 10
#: Of a frame with nothing left to do.
PLAIN = bytes(SIZE)
_FORM = struct.Struct("=BBHHHH")
_NEEDS_CSUM = int(HdrFlag.NEEDS_CSUM)
#: Whatever the kernel announces is accepted.
_FEATURES = mask(
    Feature.NET_F_CSUM,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_ECN,
    Feature.NET_F_HOST_UFO,
    Feature.NET_F_HOST_USO,
)


def finish(header: bytes, frame: bytes) -> list[bytes]:
    """The frames that ``frame`` stands for. PacketError when the header and it do not fit together."""
    if header[:2] == b"\0\0":
        return [frame]
    hdr = NetHdr(*_FORM.unpack(header))
    base = check_gso(hdr, _FEATURES)
    if base:
        if native.available():
            try:
                return c_segment(frame, hdr, _FEATURES)
            except Punted:
                pass
        return python_segment(frame, hdr, base, _FEATURES, os.urandom)
    if hdr.flags & _NEEDS_CSUM:
        finished = bytearray(frame)
        complete_checksum(finished, hdr.csum_start, hdr.csum_offset)
        return [bytes(finished)]
    return [frame]
