"""A back-end as a device under test: how it is named, reset, and found again after it hung up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peer import Peer

from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.vhost_user import target
from virtio_ipsec.wire.dialect import V14

ACK, STATUS = 1 << 3, 1 << 16


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    made = Peer(1 << 32, ACK | STATUS, connections=3)
    for way in ("dial", "await_caller"):
        monkeypatch.setattr(
            target, way, lambda path, timeout, way=way: paths.append((way, path)) or made.connect()
        )
    paths.clear()
    yield made
    made.close()


paths: list[tuple[str, str]] = []


@pytest.mark.parametrize(("suffix", "way"), [("", "dial"), (",server", "await_caller"), (",plain", "dial")])
def test_a_target_is_a_path_and_who_listens_there(peer: Peer, suffix: str, way: str) -> None:
    with open_target(f"vhost-user:/run/s{suffix}", V14) as device:
        assert paths == [(way, "/run/s")]
        assert device.name == "vhost-user:/run/s"
        assert device.dialect is V14
        assert device.details == {
            "protocol features": "reply_ack status",
            "IPsec binding": "not offered: feature bits below 64, no administration",
        }
        assert not device.has_wire
        assert device.captured() == []
        with pytest.raises(TransportError, match="--wire"):
            device.inject(b"frame")


@pytest.mark.parametrize("argument", ["", ",server", "/run/s,client"])
def test_other_arguments_are_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"PATH\[,server\]"), open_target(f"vhost-user:{argument}", V14):
        pass


def test_nobody_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_START", 0.0)
    with (
        pytest.raises(TransportError, match="/nowhere/socket: "),
        open_target("vhost-user:/nowhere/socket", V14),
    ):
        pass


def test_a_reset_is_a_status_of_0_over_a_new_connection_if_it_must_be(peer: Peer) -> None:
    with open_target("vhost-user:/run/s", V14) as device:
        device.write_status(15)
        device.reset()
        assert device.status() == 0
        device.write_status(15)
        peer.hang_up()
        device.reset()
        assert len(paths) == 2
        assert device.status() == 0
