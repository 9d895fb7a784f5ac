"""Frame views, checksums and segmentation of csrc/, as the device's Python functions offer them.

The C pipeline calls the same code without Python in between; this face is for tests and tools.
"""

from __future__ import annotations

from typing import Any

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.fastpath import native
from virtio_ipsec.wire.net_header import NetHdr

#: errors.Reason by enum vipsec_reason; 0 is no reason.
REASONS = (None, *Reason)
_LOW_WORDS = 2**64 - 1


class Punted(Exception):
    """The fast path leaves this packet to the Python device."""


def check(result: int) -> None:
    """Raise what a result of the C functions means: PacketError, :class:`Punted`, or nothing."""
    if result < 0:
        raise Punted
    reason = REASONS[result]
    if reason is not None:
        raise PacketError(reason)


def frame_view(frame: bytes, l3: int = 0, *, oversize: bool = False) -> Any:
    """``struct vipsec_frame_view *`` of ``frame``, members named as those of ``device.frame.FrameView``."""
    ffi, lib = native.extension()
    result = ffi.new("struct vipsec_frame_view *")
    lib.vipsec_frame_view(frame, len(frame), l3, oversize, result)
    return result


def complete_checksum(frame: bytearray, start: int, offset: int) -> None:
    """``device.checksum.complete_checksum``: in place, PacketError(BAD_CHECKSUM_REQUEST) when outside."""
    ffi, lib = native.extension()
    check(lib.vipsec_offload_checksum(ffi.from_buffer("uint8_t[]", frame), len(frame), start, offset))


def transport_checksum_ok(frame: bytes) -> bool:
    """``device.checksum.transport_checksum_ok`` of a frame whose headers are found here."""
    _, lib = native.extension()
    return bool(lib.vipsec_offload_checksum_ok(frame, frame_view(frame)))


def check_network_header(frame: bytes, at: int) -> None:
    """PacketError(BAD_HEADER) unless ``at`` may be used as ``outer_nh_offset`` (NET-TX-DEV-03)."""
    _, lib = native.extension()
    check(lib.vipsec_offload_network_header(frame, len(frame), at))


def segment(frame: bytes, hdr: NetHdr, features: int, l3: int = 0) -> list[bytes]:
    """What ``device.offloads`` makes of ``frame``: its segments, none when ``hdr`` asks for no segmentation.

    PacketError(BAD_GSO) as there; :class:`Punted` for UDP fragmentation and tunnels.
    """
    ffi, lib = native.extension()
    request: Any = ffi.new("struct vipsec_offload_request *")
    request.flags, request.gso_type, request.gso_size = hdr.flags, hdr.gso_type, hdr.gso_size
    request.csum_start, request.csum_offset = hdr.csum_start, hdr.csum_offset
    room = 1 << 21  # headers and data of all segments are at most half of that
    out: Any = ffi.new("uint8_t[]", room)
    lengths: Any = ffi.new("uint32_t[]", lib.VIPSEC_MAX_SEGMENTS)
    count: Any = ffi.new("uint32_t *")
    check(
        lib.vipsec_offload_segment(
            frame, len(frame), request, features & _LOW_WORDS, l3, out, room, lengths, count
        )
    )
    segments, at = [], 0
    for length in lengths[0 : count[0]]:
        segments.append(bytes(ffi.buffer(out + at, length)))
        at += length
    return segments
