"""A file of lines that survives the death of its writer at any moment: what `serve --state DIR` remembers.

The file is only appended to. Each line ends in a check value over itself and all lines before it, so that a changed,
lost or exchanged line is noticed; a last line without its line feed is one whose writing was interrupted, of which
nobody was told that it was written, and is dropped. Now and then the file is written anew with what still counts and
renamed into place.

The directory belongs to one process at a time, by a lock that ends with it. Whatever is not as it was left, be it the
contents, the owner or the mode, is refused: what the file says cannot be made up.

::

    virtio-ipsec state 1 5f0c...e1 2a4b19c6
    out 91d3... 00000000deadbeef 65536 0 77c01d22
"""

from __future__ import annotations

import fcntl
import os
import stat
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from virtio_ipsec.errors import ConfigError

NAME = "state"
TITLE = "virtio-ipsec state 1"
MAX_SIZE = 256 << 20
#: Below this many octets nothing is written anew.
COMPACT_FROM = 1 << 20
MAX_LINE = 512


class StateError(ConfigError):
    """The state directory or its file cannot be used, or cannot be written to any more."""


class Journal:
    """The lines of ``directory``/state; ``sync``: whether :meth:`append` waits for the disk.

    Against the death of the process no waiting is needed, against a power cut it is.
    """

    def __init__(self, directory: Path, rng: Callable[[int], bytes], *, sync: bool = True) -> None:
        """Opens or creates. Raises StateError when the directory is in use, or anything is not as we left it."""
        self.path = directory / NAME
        self._sync = sync
        self._live = 0
        self._directory = _lock(directory)
        self._file = -1
        try:
            if not self.path.is_symlink() and not self.path.exists():
                self._replace(rng(16).hex(), ())
            self._file = _open(self.path)
            self.ident, self.lines, self._size, self._check = self._read()
        except BaseException:
            self.close()
            raise

    def append(self, lines: Iterable[str]) -> None:
        """Write lines without line feeds. They count when this returns; StateError if they cannot be written, and
        then none of them counts."""
        if self._file < 0:
            raise StateError(f"{self.path} is closed")
        text, check = _checked(lines, self._check)
        if not text:
            return
        try:
            if self._size + len(text) > MAX_SIZE:
                raise StateError(f"{self.path} would exceed {MAX_SIZE} octets")
            _write(self._file, text)
            if self._sync:
                os.fdatasync(self._file)
        except (OSError, StateError) as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            # Whether lines reached the disk is unknown: whoever goes on writes behind a known end, or not at all.
            if os.fstat(self._file).st_size != self._size:
                self.close()
            raise _failed(self.path, error) from None
        self._size += len(text)
        self._check = check

    @property
    def wants_compacting(self) -> bool:
        """Whether the file is much larger than when it was last written anew."""
        return self._size > max(COMPACT_FROM, 4 * self._live)

    def compact(self, lines: Iterable[str]) -> None:
        """Replace everything by ``lines``, in one step. StateError if that fails; then all is as before."""
        try:
            self._replace(self.ident, lines)
            fresh = _open(self.path)
        except OSError as error:
            raise _failed(self.path, error) from None
        os.close(self._file)
        self._file = fresh
        _, _, self._size, self._check = self._read()
        self._live = self._size

    def close(self) -> None:
        """Let another process have the directory."""
        for fd in (self._file, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._directory = -1

    def _replace(self, ident: str, lines: Iterable[str]) -> None:
        """A new file in the place of the old one, whole and on the disk before it has the name."""
        fresh = self.path.with_name(NAME + ".new")
        fresh.unlink(missing_ok=True)  # left by a process that was killed
        text, _ = _checked((f"{TITLE} {ident}", *lines), 0)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            _write(fd, text)
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(self.path)
        os.fsync(self._directory)

    def _read(self) -> tuple[str, list[str], int, int]:
        """The file's ident, its other lines, their octets and check value; what was being written is cut off."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size, 0) if size <= MAX_SIZE else b""
        title = data.partition(b"\n")[0]
        if size > MAX_SIZE or not title.startswith(TITLE.encode() + b" ") or len(title) > MAX_LINE:
            raise StateError(f"{self.path} is no state file of this version of virtio-ipsec")
        whole = data[: data.rfind(b"\n") + 1]
        lines, check = [], 0
        for number, line in enumerate(whole[:-1].split(b"\n"), 1):
            content, _, found = line.rpartition(b" ")
            check = zlib.crc32(content, check)
            if found != b"%08x" % check or not content.isascii():
                raise StateError(
                    f"{self.path}: line {number} was damaged or changed; sequence numbers that are lost cannot be "
                    f"made up: give the SAs new keys and remove the file"
                )
            lines.append(content.decode("ascii"))
        if len(whole) != size:
            os.ftruncate(self._file, len(whole))
        return lines[0].rpartition(" ")[2], lines[1:], len(whole), check


def _lock(directory: Path) -> int:
    """The directory, made if need be, ours alone; StateError."""
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(directory, error) from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise StateError(f"{directory} must belong to this user, and nobody else may write to it")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateError(f"{directory} is in use by another process") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(path, error) from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise StateError(f"{path} must be a file of this user's with mode 0600")
    return fd


def _checked(lines: Iterable[str], check: int) -> tuple[bytes, int]:
    """The lines as they stand in the file, and the check value of the last one."""
    result = []
    for line in lines:
        content = line.encode("ascii")
        check = zlib.crc32(content, check)
        result.append(b"%s %08x\n" % (content, check))
    return b"".join(result), check


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _failed(path: Path, error: Exception) -> StateError:
    return (
        error if isinstance(error, StateError) else StateError(f"{path}: {getattr(error, 'strerror', error)}")
    )
