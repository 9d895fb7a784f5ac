"""How many frames, and how many bytes of them, one packet of the driver may become."""

from __future__ import annotations

from virtio_ipsec.errors import PacketError, Reason

#: A hostile `gso_size` of 1 would make 65,000 frames of one packet.
MAX_PIECES = 4096
#: Every piece repeats the headers: 60 KB of extension headers before 4,096 bytes would make 240 MB. With
#: ordinary headers the number of pieces is reached first.
MAX_BYTES = 1 << 20


def pieces(body: int, size: int, headers: int) -> int:
    """How many pieces of ``size`` bytes ``body`` makes, each behind ``headers`` bytes, at least one.

    Raises PacketError(BAD_GSO) when that is too much.
    """
    count = max(1, -(-body // size))
    if count > MAX_PIECES or body + count * headers > MAX_BYTES:
        raise PacketError(Reason.BAD_GSO, "too many segments or fragments")
    return count
