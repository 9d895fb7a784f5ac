"""A wire inside the process, between two ports of csrc/."""

from __future__ import annotations

from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native


class Wire:
    """Frames wait on it in order, some thousands of them. Any threads put frames on it, one at a time takes them."""

    def __init__(self) -> None:
        ffi, lib = native.extension()
        handle = lib.vipsec_wire_new()
        if handle == ffi.NULL:
            raise ConfigError("no memory or descriptors for a wire")
        self.handle = ffi.gc(handle, lib.vipsec_wire_free)
        self._fd = int(lib.vipsec_wire_fd(handle))

    def fileno(self) -> int:
        """Readable while frames wait, until :meth:`close`."""
        return self._fd

    def put(self, frames: list[bytes]) -> None:
        """What finds no room is dropped and counted."""
        ffi, lib = native.extension()
        kept = [ffi.from_buffer(frame) for frame in frames]
        batch: Any = ffi.new("struct vipsec_frame[]", len(frames))
        for each, data in zip(batch, kept, strict=True):
            each.data, each.len = ffi.cast("uint8_t *", data), len(data)
        lib.vipsec_wire_put(self.handle, batch, len(frames))

    def take(self, most: int) -> list[bytes]:
        """At most ``most`` frames that wait."""
        ffi, lib = native.extension()
        batch: Any = ffi.new("struct vipsec_frame[]", most)
        count = lib.vipsec_wire_take(self.handle, batch, most)
        return [bytes(ffi.buffer(frame.data, frame.len)) for frame in batch[0:count]]

    def counts(self) -> dict[str, int]:
        """``put_frames put_octets refused taken_frames taken_octets``."""
        ffi, lib = native.extension()
        counts: Any = ffi.new("struct vipsec_wire_counts *")
        lib.vipsec_wire_read(self.handle, counts)
        names = ("put_frames", "put_octets", "refused", "taken_frames", "taken_octets")
        return {name: int(getattr(counts, name)) for name in names}

    def close(self) -> None:
        """What waits is dropped, and what is put on it from now on."""
        _, lib = native.extension()
        lib.vipsec_wire_close(self.handle)
        self._fd = -1
