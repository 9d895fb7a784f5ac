"""sd_notify: what systemd is told, and that nobody else is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from virtio_ipsec.transport.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_socket_of_the_environment_gets_the_fields(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"virtio-ipsec-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        assert notify(READY="1", STATUS="serving 2 ports")
        assert systemd.recv(100) == b"READY=1\nSTATUS=serving 2 ports"


@pytest.mark.parametrize("name", ["", "relative", "/nonexistent/notify"])
def test_without_a_listener_nothing_happens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert not notify(READY="1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify(READY="1")
