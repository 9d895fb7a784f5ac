"""The control socket: lines in, lines out, whatever clients do."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from virtio_ipsec.errors import ConfigError, TransportError, VirtioIpsecError
from virtio_ipsec.transport import control
from virtio_ipsec.transport.control import MAX_REQUEST, ControlServer, Reply, Request
from virtio_ipsec.transport.control_client import ControlClient, RequestRefused

KEY = "00112233445566778899aabbccddeeff"


class Answers:
    """A handler that knows some methods; ``later`` keeps those that are answered when the test says so."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.later: list[Reply] = []

    def __call__(self, request: Request, reply: Reply) -> None:
        self.seen.append(request)
        if request.method == "echo":
            reply(request.params)
        elif request.method == "later":
            self.later.append(reply)
        elif request.method == "broken":
            raise KeyError(request.params["key"])
        elif request.method == "large":
            reply({"text": "x" * 300_000})
        else:
            raise ConfigError(f"no method\n{request.method}")


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(tmp_path: Path, answers: Answers) -> Iterator[ControlServer]:
    result = ControlServer(str(tmp_path / "ctl"), answers)
    yield result
    result.close()


class Peer:
    """A client that writes what it likes; the server works only when asked to."""

    def __init__(self, server: ControlServer, path: str) -> None:
        self.server = server
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.data = b""

    def ask(self, data: bytes) -> list[dict[str, Any]]:
        """Send octets, and what came back when the server has nothing more to do."""
        while data:
            with suppress(BlockingIOError):
                data = data[self.socket.send(data) :]
            self.work()
        return self.answers()

    def work(self) -> None:
        for _ in range(4):
            self.server.step()

    def answers(self) -> list[dict[str, Any]]:
        for _ in range(20):
            self.work()
            with suppress(BlockingIOError):
                self.data += self.socket.recv(1 << 20)
        *lines, self.data = self.data.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def is_closed(self) -> bool:
        self.work()
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def peer(server: ControlServer, tmp_path: Path) -> Iterator[Peer]:
    result = Peer(server, str(tmp_path / "ctl"))
    yield result
    result.socket.close()


@pytest.fixture
def running(server: ControlServer) -> Iterator[None]:
    """The server works in a thread of its own."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            server.step(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    done.set()
    thread.join()


def test_the_socket_is_for_its_owner(server: ControlServer, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "ctl").stat().st_mode) == 0o600
    server.close()
    assert not (tmp_path / "ctl").exists()


def test_a_request_and_its_answer(peer: Peer, answers: Answers) -> None:
    (answer,) = peer.ask(b'{"id": "a", "method": "echo", "port": "green", "params": {"n": 1}}\n')
    assert answer == {"id": "a", "result": {"n": 1}}
    (request,) = answers.seen
    assert (request.method, request.port, request.params) == ("echo", "green", {"n": 1})
    assert request.who == f"uid {os.geteuid()} pid {os.getpid()}"


def test_errors_are_one_line(peer: Peer) -> None:
    assert peer.ask(b'{"id": 7, "method": "what"}\n') == [{"id": 7, "error": "no method what"}]


def test_requests_are_answered_in_their_order_however_they_are_cut(peer: Peer) -> None:
    data = b"".join(b'{"id": %d, "method": "echo"}\n' % n for n in range(200))
    found = [answer for at in range(0, len(data), 777) for answer in peer.ask(data[at : at + 777])]
    assert [answer["id"] for answer in found] == list(range(200))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\xff\xfe", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 100_000, b'{"method": 1}', b"{}",
        b'{"method": "' + b"x" * 50 + b'"}', b'{"method": "echo", "more": 1}', b'{"method": "echo", "params": []}',
        b'{"method": "echo", "port": 1}', b'{"method": "echo", "id": {}}',
        b'{"method": "echo", "id": "' + b"x" * 50 + b'"}',
        b'{"method": "echo", "params": {"n": NaN}}', b'{"method": "echo", "params": {"n": ' + b"9" * 5000 + b"}}",
        b'{"method": "echo"} {}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_the_next_one_answered(
    peer: Peer, answers: Answers, line: bytes
) -> None:
    first, second = peer.ask(line + b'\n{"method": "echo"}\n')
    assert first["id"] is None
    assert "\n" not in first["error"]
    assert second == {"id": None, "result": {}}
    assert len(answers.seen) == 1


def test_a_request_without_end_is_refused_and_hung_up(server: ControlServer, peer: Peer) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100):
            peer.socket.setblocking(False)
            with suppress(BlockingIOError):
                peer.socket.send(b"x" * (MAX_REQUEST // 8))
            peer.work()
    assert server.counts.refused_requests == 1
    peer.data = peer.socket.recv(1000)
    assert json.loads(peer.data) == {"id": None, "error": f"a request has at most {MAX_REQUEST} octets"}
    assert peer.is_closed


def test_the_longest_request_is_taken(peer: Peer) -> None:
    head, tail = b'{"method": "echo", "params": {"a": "', b'"}}'
    line = head + b"y" * (MAX_REQUEST - len(head) - len(tail)) + tail
    assert peer.ask(line + b"\n")[0]["result"]["a"][:2] == "yy"


def test_a_client_that_does_not_read_is_asked_for_nothing_more(
    server: ControlServer, peer: Peer, answers: Answers
) -> None:
    for n in range(50):
        peer.socket.send(b'{"id": %d, "method": "large"}\n' % n)
        peer.work()
    assert len(answers.seen) < 3
    assert server._poll.poll(0) == []  # nor does it keep the thread busy
    found = []
    while len(found) < 50:
        found += peer.answers()
    assert [answer["id"] for answer in found] == list(range(50))


def test_an_answer_may_come_later_and_the_next_request_waits_for_it(
    peer: Peer, server: ControlServer, answers: Answers
) -> None:
    assert peer.ask(b'{"id": 1, "method": "later"}\n{"id": 2, "method": "echo"}\n') == []
    assert server._poll.poll(0) == []
    answers.later.pop()({"done": True})
    assert peer.answers() == [{"id": 1, "result": {"done": True}}, {"id": 2, "result": {}}]


def test_an_answer_for_somebody_who_left_is_nothing(
    peer: Peer, server: ControlServer, answers: Answers
) -> None:
    peer.ask(b'{"id": 1, "method": "later"}\n')
    peer.socket.close()
    peer.work()
    answers.later.pop()(VirtioIpsecError("too late"))
    assert not server._clients


def test_half_of_a_request_is_none(peer: Peer, server: ControlServer, answers: Answers) -> None:
    peer.ask(b'{"method": "echo"}')
    peer.socket.close()
    peer.work()
    assert not server._clients
    assert not answers.seen


def test_an_internal_error_ends_that_request_alone(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    first, second = peer.ask(b'{"method": "broken"}\n{"method": "echo"}\n')
    assert first == {"id": None, "error": "an internal error, which the log describes"}
    assert second["result"] == {}
    assert "an internal error" in caplog.text


def test_other_users_are_turned_away(
    tmp_path: Path, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    server = ControlServer(str(tmp_path / "ctl"), answers, users=[os.geteuid() + 1])
    peer = Peer(server, str(tmp_path / "ctl"))
    (answer,) = peer.answers()
    assert answer["error"] == f"user {os.geteuid()} may not use this socket"
    assert peer.is_closed
    assert (server.counts.clients, server.counts.refused_clients) == (0, 1)
    assert "may not use this socket" in caplog.text
    server.close()


def test_there_is_room_for_some_clients_and_the_idlest_gives_way(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, path = ControlServer(str(tmp_path / "ctl"), answers, max_clients=2), str(tmp_path / "ctl")
    first, second = Peer(server, path), Peer(server, path)
    assert first.ask(b'{"id": 1, "method": "later"}\n') == []
    assert second.ask(b'{"method": "echo"}\n')
    third = Peer(server, path)
    assert third.answers()[0]["error"] == "2 clients are connected, that is all"
    assert third.is_closed
    monkeypatch.setattr(control, "IDLE", -1.0)
    fourth = Peer(server, path)
    assert fourth.ask(b'{"method": "echo"}\n')
    assert second.is_closed
    assert not first.is_closed
    server.close()
    assert fourth.socket.recv(1) == b""


def test_after_a_step_with_requests_somebody_is_told(tmp_path: Path, answers: Answers) -> None:
    told: list[int] = []
    server = ControlServer(str(tmp_path / "ctl"), answers, after=lambda: told.append(len(answers.seen)))
    peer = Peer(server, str(tmp_path / "ctl"))
    peer.work()
    assert told == []
    peer.ask(b'{"method": "echo"}\n' * 3)
    assert told == [3]
    server.close()


def test_many_requests_of_one_client_do_not_keep_another_one_waiting(
    tmp_path: Path, answers: Answers
) -> None:
    server = ControlServer(str(tmp_path / "ctl"), answers)
    busy, other = (Peer(server, str(tmp_path / "ctl")) for _ in range(2))
    server.step()
    server.step()
    busy.socket.send(b'{"method": "echo"}\n' * 1000)
    other.socket.send(b'{"id": 5, "method": "echo"}\n')
    server.step()
    assert other.socket.recv(100) == b'{"id":5,"result":{}}\n'
    assert len(answers.seen) <= control.TURN + 1
    assert len(busy.answers()) == 1000
    server.close()


def test_nothing_of_a_request_is_logged_or_shown(
    peer: Peer, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for method in ("echo", "broken", "what"):
        peer.ask(b'{"method": "%s", "params": {"key": "%s"}}\n' % (method.encode(), KEY.encode()))
    assert all(KEY not in repr(request) for request in answers.seen)
    assert KEY not in caplog.text


def test_what_held_a_key_is_overwritten(peer: Peer, server: ControlServer) -> None:
    peer.ask(b'{"method": "echo", "params": {"key": "%s' % KEY.encode())
    (client,) = server._clients.values()
    buffer = client._in
    assert KEY.encode() in buffer
    peer.socket.close()
    peer.work()
    assert not any(buffer)


# -- the client


def test_calls(running: None, tmp_path: Path) -> None:
    with ControlClient(str(tmp_path / "ctl"), port="green") as client:
        assert client.call("echo", n=1) == {"n": 1}
        with pytest.raises(RequestRefused, match="no method what"):
            client.call("what")
        found = list(client.call_many(("echo", {"n": n}) for n in range(100)))
    assert found == [{"n": n} for n in range(100)]


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="No such file"):
        ControlClient(str(tmp_path / "none"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "dead"))
    listener.close()
    with pytest.raises(TransportError, match="nobody listens there"):
        ControlClient(str(tmp_path / "dead"))


def test_no_answer_in_time(server: ControlServer, tmp_path: Path) -> None:
    client = ControlClient(str(tmp_path / "ctl"), timeout=0.05)
    with pytest.raises(TransportError, match="no answer"):
        client.call("echo")
    client.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed by the other side"), (b'{"id": 1, "result": {', "closed by the other side"),
        (b"x\n", "no answer"), (b"[]\n", "no answer"), (b'{"error": 1}\n', "no answer"),
        (b'{"result": 1}\n', "no answer"),
    ],
)  # fmt: skip
def test_answers_that_are_none(tmp_path: Path, answer: bytes, message: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ctl"))
        listener.listen()
        client = ControlClient(str(tmp_path / "ctl"))
        connection, _ = listener.accept()
        connection.sendall(answer)
        if not answer.endswith(b"\n"):
            connection.shutdown(socket.SHUT_WR)
        with pytest.raises(TransportError, match=message):
            client.call("echo")
        connection.close()
        with pytest.raises(TransportError):
            for _ in range(2):
                client.call("echo")
        client.close()
