"""What uplinks with one system call per frame have in common."""

from __future__ import annotations

import errno
import logging
import os

from virtio_ipsec.transport.uplinks.counts import Counts, cause

_log = logging.getLogger(__name__)

#: The wire has gone for good: the interface was deleted.
_GONE = {errno.ENODEV, errno.EBADFD, errno.ENXIO}


class FrameByFrame:
    """Send and receive loops over :meth:`_write` and :meth:`_read`, which raise OSError."""

    native = None

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd
        self._counts = Counts()
        self._closed = False

    def fileno(self) -> int:
        """Readable while frames wait."""
        return self._fd

    def receive(self, most: int) -> list[bytes]:
        """What has arrived."""
        frames: list[bytes] = []
        for _ in range(most):
            try:
                found = self._read()
            except BlockingIOError:
                break
            except OSError as error:
                # Told once by the kernel, then forgotten: an ICMP error, an interface that went down.
                self._counts.drop("rx", cause(error))
                if error.errno in _GONE:
                    self._silence()
                    break
                continue
            frames += found
        if frames:
            self._counts.add("rx", frames)
        return frames

    def send(self, frames: list[bytes]) -> None:
        """What the kernel takes."""
        sent: list[bytes] = []
        for at, frame in enumerate(frames):
            try:
                self._write(frame)
            except OSError as error:
                why = cause(error)
                if why == "full":  # so will be the next ones'
                    self._counts.drop("tx", why, len(frames) - at)
                    break
                self._counts.drop("tx", why)
            else:
                sent.append(frame)
        if sent:
            self._counts.add("tx", sent)

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        return self._counts.read()

    def close(self) -> None:
        """Close the file descriptor."""
        if not self._closed:
            self._closed = True
            self._release()

    def _silence(self) -> None:
        """The descriptor would be readable for ever with nothing to read: put one in its place that never is."""
        _log.warning("uplink %s has gone: frames are dropped from now on", self.name)
        quiet = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        os.dup2(quiet, self._fd, inheritable=False)
        os.close(quiet)

    def _release(self) -> None:
        os.close(self._fd)

    def _write(self, frame: bytes) -> None:
        raise NotImplementedError

    def _read(self) -> list[bytes]:
        """One arrival; BlockingIOError when there is none."""
        raise NotImplementedError
