"""Sockets at paths: mode, stale files, live ones, what is in the way, and what close() leaves."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport import local_socket
from virtio_ipsec.transport.local_socket import Listener


def test_only_the_owner_may_connect_and_close_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.socket.accept()[0].close()
    listener.close()
    assert not path.exists()
    listener.close()


def test_the_mode_can_be_wider(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"), mode=0o660)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    listener.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_what_a_dead_process_left_is_replaced(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)
    listener = Listener(path, kind)
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(path)
    listener.close()


def test_a_live_socket_is_busy_also_when_nobody_accepts_or_its_kind_differs(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = Listener(path, backlog=0)
    for _ in range(3):  # the first fills the backlog
        with pytest.raises(TransportError, match=r"s: busy: another process listens there"):
            Listener(path)
    with pytest.raises(TransportError, match="busy"):
        Listener(path, socket.SOCK_SEQPACKET)
    listener.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(TransportError, match="no socket is in the way"):
        Listener(str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(("name", "words"), [("none/s", "No such file"), ("x" * 120, "too long")])
def test_paths_that_cannot_be_are_refused_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(TransportError, match=words) as refused:
        Listener(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_close_leaves_a_file_that_another_one_has_put_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(str(path))
    path.unlink()
    second = Listener(str(path))
    first.close()
    assert path.exists()
    second.close()


def test_close_does_not_mind_that_the_file_has_gone(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"))
    (tmp_path / "s").unlink()
    listener.close()


def test_a_directory_that_somebody_keeps_locked_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_socket, "_PATIENCE", 0.02)
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(TransportError, match="holds its directory locked"):
        Listener(str(tmp_path / "s"))
    os.close(fd)
    Listener(str(tmp_path / "s")).close()


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("file", "none/s"):
        with pytest.raises(TransportError):
            Listener(str(tmp_path / name))
    Listener(str(tmp_path / "s")).close()
    assert len(os.listdir("/proc/self/fd")) == before
