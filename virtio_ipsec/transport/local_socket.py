"""Local (AF_UNIX) sockets that listen at a path: open to their owner alone, never in the place of a live one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtio_ipsec.errors import TransportError

#: Seconds to wait for others that are opening or closing sockets in the same directory.
_PATIENCE = 1.0


class Listener:
    """A non-blocking socket that listens at ``path``, mode ``mode``.

    The file that a dead process left is replaced. Raises TransportError, in one line, when something else is there: a
    live socket, or a file of another sort.
    """

    def __init__(
        self, path: str, kind: int = socket.SOCK_STREAM, *, mode: int = 0o600, backlog: int = 8
    ) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            # The file that bind() makes takes the mode over: nobody comes in between.
            os.fchmod(self.socket.fileno(), mode)
            with _directory_of(path):
                self._bind(kind)
                os.chmod(path, mode)  # the umask may have taken some of it away
                self._file = _identity(path)
            self.socket.listen(backlog)
        except OSError as error:
            self.socket.close()
            raise TransportError(f"{path}: {error.strerror or error}") from None
        except TransportError:
            self.socket.close()
            raise

    def _bind(self, kind: int) -> None:
        try:
            self.socket.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(self.path, kind)
            self.socket.bind(self.path)

    def close(self) -> None:
        """Close it and take its file away, unless another one is there by now. Twice is once."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        try:
            with _directory_of(self.path):
                if _identity(self.path) == self._file:
                    Path(self.path).unlink()
        except (OSError, TransportError):
            pass  # what is left is recognised as stale


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_stale(path: str, kind: int) -> None:
    """Remove the socket file at ``path`` if no process listens there."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise TransportError(f"{path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError as error:
            # A full backlog (EAGAIN) or another type of socket (EPROTOTYPE): somebody is there.
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    raise TransportError(f"{path}: busy: another process listens there")


@contextmanager
def _directory_of(path: str) -> Iterator[None]:
    """While in here no other of these functions, in whatever process, removes or makes sockets in that directory."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TransportError(f"{path}: another process holds its directory locked") from None
                time.sleep(0.005)
        yield
    finally:
        os.close(fd)
