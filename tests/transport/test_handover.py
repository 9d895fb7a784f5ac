"""Handover: the SAs of a port are used in one place at a time, whatever breaks in between."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from managed import BackEnd, config_of
from operator_ports import KEYS
from scapy.layers.l2 import Ether

from virtio_ipsec.fastpath import native
from virtio_ipsec.transport import handover
from virtio_ipsec.transport.control_client import ControlClient, RequestRefused
from virtio_ipsec.transport.journal import Journal, StateError
from virtio_ipsec.transport.managed_port import Deed, Ownership
from virtio_ipsec.transport.marks import LEAST_STRIDE

Make = Callable[..., BackEnd]
ENGINES = ("python", "c") if native.available() else ("python",)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "ASK_AFTER", 0.001)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Back-ends by name; one of the same name goes on with the state of the one before."""
    started: list[BackEnd] = []

    def made(name: str, *, state: bool = True, **how: Any) -> BackEnd:
        directory = tmp_path / f"{name}.state" if state else None
        started.append(end := BackEnd(tmp_path / name, state=directory, **how))
        return end.start()

    yield made
    for each in started:
        each.stop()


def sequence(frame: bytes) -> int:
    return int.from_bytes(frame[38:42])


def sent(end: BackEnd, count: int = 1) -> list[bytes]:
    return [frame for _ in range(count) for frame in end.send()]


def owners(*ends: BackEnd) -> list[bool]:
    """Who sends."""
    return [bool(end.send()) for end in ends]


class Between:
    """Somebody between source and target who passes on what the source asks, until ``when`` says how to break it."""

    def __init__(self, path: Path, target: str, when: Callable[[str], str]) -> None:
        self.path, self._target, self._when = str(path), target, when
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.seen: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._pass(connection)

    def _pass(self, connection: socket.socket) -> None:
        onwards = socket.socket(socket.AF_UNIX)
        with connection, onwards, connection.makefile("rb") as asked:
            onwards.connect(self._target)
            with onwards.makefile("rb") as answers:
                for line in asked:
                    method = line.split(b'"method":"')[1].split(b'"')[0].decode()
                    self.seen.append(method)
                    what = self._when(method)
                    if what == "lost":  # the request never arrives
                        return
                    onwards.sendall(line)
                    answer = answers.readline()
                    if what == "unanswered":  # it does, but nobody hears of it
                        return
                    connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def between(tmp_path: Path) -> Iterator[Callable[..., Between]]:
    made: list[Between] = []

    def put(target: BackEnd, broken: dict[str, str]) -> Between:
        made.append(Between(tmp_path / f"between{len(made)}", target.path, lambda method: broken.get(method, "")))
        return made[-1]

    yield put
    for each in made:
        each.close()


# -- when all goes well


@pytest.mark.parametrize("engines", [(a, b) for a in ENGINES for b in ENGINES])
def test_sas_go_on_where_they_were(make: Make, engines: tuple[str, str]) -> None:
    source, target = make("source", engine=engines[0]), make("target", awaited=True, engine=engines[1])
    peer = make("peer", side="b", state=False)
    frames = sent(source, 3)
    arrived = sent(peer, 5)
    for frame in (arrived[4], arrived[1]):
        assert source.receive(frame)
    assert (sent(target), target.receive(arrived[0])) == ([], [])
    result = source.ask("handover", to=target.path)
    assert result["owner"] == target.path
    assert (sent(source), source.receive(arrived[0])) == ([], [])
    frames += sent(target)
    assert [sequence(frame) for frame in frames] == [1, 2, 3, 4]
    ivs = [int.from_bytes(frame[42:50]) for frame in frames]
    assert [iv - ivs[0] for iv in ivs] == [0, 1, 2, 3]
    assert all(len(peer.receive(frame)) == 1 for frame in frames)
    # The window accepts what the source would have accepted, and nothing else.
    assert [len(target.receive(frame)) for frame in arrived] == [1, 0, 1, 1, 0]
    listed = target.ask("sa.list")["sas"]
    assert [entry["packets"] for entry in listed] == [4, 5]
    assert listed[1]["refused"]["replay"] == 2


def test_lifetimes_and_flows_go_with_them(make: Make) -> None:
    limit = "lifetime = { packets_hard = 4 }"
    source = make("source", config=config_of("a", out=limit))
    target = make("target", awaited=True)  # has another idea of SAs and flows
    source.ask("flow.add", flow={"name": "extra", "action": "drop", "match": {"remote": "10.9.0.0/16"}})
    source.ask("flow.remove", name="dhcp")
    sent(source, 3)
    source.ask("handover", to=target.path)
    assert len(sent(target, 3)) == 1
    names = [flow["name"] for flow in target.ask("flow.list")["flows"]]
    assert "extra" in names
    assert "dhcp" not in names


@pytest.mark.parametrize("seed", range(4))
def test_the_replay_window_judges_as_the_source_would_have(make: Make, seed: int) -> None:
    draw = random.Random(f"window {seed}")
    window = draw.choice(("replay_window = 32", "replay_window = 1024", 'options = ["esn"]'))
    config = config_of("a", within=window)
    peer = make("peer", side="b", state=False, config=config_of("b", out=window if "esn" in window else ""))
    source, witness = make("source", config=config), make("witness", config=config)
    target = make("target", config=config, awaited=True)
    frames = sent(peer, 60)
    for frame in draw.sample(frames[:50], 25):
        assert source.receive(frame) == witness.receive(frame)
    source.ask("handover", to=target.path)
    verdicts = [(len(target.receive(frame)), len(witness.receive(frame))) for frame in frames]
    assert all(mine == theirs for mine, theirs in verdicts)
    assert {mine for mine, _ in verdicts} == {0, 1}


def test_a_second_time_is_no_error_and_changes_nothing(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    first = source.ask("handover", to=target.path)
    sent(target)
    assert source.ask("handover", to=target.path) == first
    assert [sequence(frame) for frame in sent(target)] == [2]
    with pytest.raises(RequestRefused, match=r"have been handed over to .*/target"):
        source.ask("handover", to="/elsewhere")


def test_there_and_back(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    peer = make("peer", side="b", state=False)
    frames = sent(source)
    source.ask("handover", to=target.path)
    frames += sent(target, 2)
    target.ask("handover", to=source.path)
    assert owners(target, source) == [False, True]
    frames += sent(source)
    assert [sequence(frame) for frame in frames] == [1, 2, 3, 5]
    assert all(peer.receive(frame) for frame in frames)


def test_who_owns_nothing_changes_nothing(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    removal = {"direction": "outbound", "id": 1}
    for end, words in ((target, "waits for its SAs"), (source, "have been handed over")):
        if end is source:
            source.ask("handover", to=target.path)
        for method, params in (("sa.remove", removal), ("flow.remove", {"name": "arp"}), ("handover", {"to": "/x"})):
            with pytest.raises(RequestRefused, match=words):
                end.ask(method, **params)
    (port,) = source.ask("ports")["ports"]
    assert (port["ownership"], port["outbound_sas"]) == ("gone", 0)
    (port,) = target.ask("ports")["ports"]
    assert (port["ownership"], port["outbound_sas"]) == ("here", 1)


def test_keys_are_wiped_where_they_were_and_logged_nowhere(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source, target = make("source"), make("target", awaited=True)
    engines = [held.engine for held in source.operator.sas]
    source.ask("handover", to=target.path)
    assert all(not engine.params.cipher_key for engine in engines)
    assert "handed over" in caplog.text
    assert not any(key in caplog.text for key in KEYS)


# -- when something breaks


STEPS = ("handover.begin", "handover.part", "handover.commit", "handover.resolve")


@pytest.mark.parametrize("how", ["lost", "unanswered"])
@pytest.mark.parametrize("step", STEPS[:2])
def test_before_the_commit_the_source_keeps_them(
    make: Make, between: Callable[..., Between], step: str, how: str
) -> None:
    source, target = make("source"), make("target", awaited=True)
    sent(source, 3)
    path = between(target, {step: how}).path
    with pytest.raises(RequestRefused, match="this port owns its SAs as before"):
        source.ask("handover", to=path)
    assert owners(source, target) == [True, False]
    assert [sequence(frame) for frame in sent(source)] == [5]
    source.ask("handover", to=target.path)
    assert owners(source, target) == [False, True]


@pytest.mark.parametrize(("how", "expected"), [("lost", [True, False]), ("unanswered", [False, True])])
def test_a_commit_without_an_answer_is_asked_about(
    make: Make, between: Callable[..., Between], how: str, expected: list[bool]
) -> None:
    source, target = make("source"), make("target", awaited=True)
    link = between(target, {"handover.commit": how})
    if expected == [True, False]:
        with pytest.raises(RequestRefused, match="has not taken the SAs over; this port owns its SAs as before"):
            source.ask("handover", to=link.path)
    else:
        assert source.ask("handover", to=link.path)["owner"] == link.path
    assert link.seen[-1] == "handover.resolve"
    assert owners(source, target) == expected


@pytest.mark.parametrize("how", ["lost", "unanswered"])
def test_while_nobody_knows_the_source_sends_nothing_until_it_is_told(
    make: Make, between: Callable[..., Between], how: str
) -> None:
    source, target = make("source"), make("target", awaited=True)
    broken = {"handover.commit": how, "handover.resolve": "lost"}
    link = between(target, broken)
    for _ in range(2):
        with pytest.raises(RequestRefused, match="is not known: this port sends nothing, run the handover again"):
            source.ask("handover", to=link.path)
        assert owners(source, target) == [False, how == "unanswered"]
    with pytest.raises(RequestRefused, match="until then this port sends nothing"):
        source.ask("handover", to=target.path)  # it must be the same target
    broken.clear()
    assert source.ask("handover", to=link.path)["owner"] == link.path
    assert owners(source, target) == [False, True]


def test_a_commit_that_comes_after_the_question_is_refused(make: Make) -> None:
    target = make("target", awaited=True)
    with ControlClient(target.path) as source, ControlClient(target.path) as other:
        instance = source.call("handover.begin", transfer="t1", sas=0, flows=0)["instance"]
        with pytest.raises(RequestRefused, match="another handover is under way"):
            other.call("handover.begin", transfer="t2", sas=0, flows=0)
        with pytest.raises(RequestRefused, match="no such handover"):
            other.call("handover.commit", transfer="t1")
        assert other.call("handover.resolve", transfer="t1", instance=instance) == {"committed": False}
        with pytest.raises(RequestRefused, match="no such handover"):
            source.call("handover.commit", transfer="t1")
    assert target.port.deed.ownership is Ownership.AWAITED


def test_what_was_received_is_forgotten_when_the_source_goes_away(make: Make) -> None:
    target = make("target", awaited=True)
    with ControlClient(target.path) as source:
        source.call("handover.begin", transfer="t1", sas=3, flows=0)
    with ControlClient(target.path) as other:
        other.call("handover.begin", transfer="t2", sas=0, flows=0)
        assert other.call("handover.commit", transfer="t2")["committed"] is True


def test_what_the_target_cannot_have_stays_at_the_source(make: Make) -> None:
    source = make("source")
    other = config_of("a").replace("192.0.2.1/24", "192.0.2.7/24").replace('src = "192.0.2.1"', 'src = "192.0.2.7"')
    target = make("target", awaited=True, config=other)
    before = target.ask("sa.list"), target.ask("flow.list")
    with pytest.raises(RequestRefused, match=r"underlay's addresses; this port owns its SAs as before"):
        source.ask("handover", to=target.path)
    assert (target.ask("sa.list"), target.ask("flow.list")) == before
    assert owners(source, target) == [True, False]


def test_an_owner_and_a_drivers_port_take_nothing_over(make: Make) -> None:
    source, target = make("source"), make("target")
    with pytest.raises(RequestRefused, match="this port owns its SAs; this port owns its SAs as before"):
        source.ask("handover", to=target.path)
    assert owners(source, target) == [True, True]  # two configurations with the same keys: nobody can know
    target.port.operator = None
    with pytest.raises(RequestRefused, match="the driver owns SAs and flows there"):
        source.ask("handover", to=target.path)
    with pytest.raises(RequestRefused, match=r"cannot move; .* \(ledger E80\)"):
        target.ask("handover", to=source.path)
    with pytest.raises(RequestRefused, match="No such file"):
        source.ask("handover", to="/nowhere/at/all")
    assert owners(source) == [True]


def test_an_internal_error_of_the_target_before_it_has_decided_leaves_them_at_the_source(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make("source"), make("target", awaited=True)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(target.sas, "plan", broken)
    with pytest.raises(RequestRefused, match="has not taken the SAs over"):
        source.ask("handover", to=target.path)
    assert owners(source, target) == [True, False]


# -- when somebody dies


def test_a_source_that_dies_on_the_way_does_not_send_in_its_next_life(
    make: Make, between: Callable[..., Between]
) -> None:
    source, target = make("source"), make("target", awaited=True)
    sent(source, 3)
    broken = {"handover.commit": "lost", "handover.resolve": "lost"}
    link = between(target, broken)
    with pytest.raises(RequestRefused, match="is not known"):
        source.ask("handover", to=link.path)
    source.die()
    again = make("source")
    assert owners(again, target) == [False, False]
    broken.clear()
    again.ask("handover", to=link.path)
    assert owners(again, target) == [False, True]


def test_a_source_that_has_given_them_away_does_not_take_them_from_its_configuration(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    source.ask("handover", to=target.path)
    source.die()
    again = make("source")
    assert owners(again, target) == [False, True]
    assert again.ask("handover", to=target.path)["owner"] == target.path


def test_a_source_that_takes_them_back_in_its_next_life_goes_on_above_its_marks(
    make: Make, between: Callable[..., Between]
) -> None:
    source, target = make("source"), make("target", awaited=True)
    sent(source, 3)
    link = between(target, {"handover.commit": "lost", "handover.resolve": "lost", "handover.begin": "lost"})
    with pytest.raises(RequestRefused, match="this port owns"):
        source.ask("handover", to=link.path)
    source.port.enter(Deed(Ownership.LEAVING, "t", link.path, target.administration._targets["port0"].instance))
    source.die()
    again = make("source")
    assert owners(again) == [False]
    link._when = lambda method: "lost" if method == "handover.begin" else ""
    with pytest.raises(RequestRefused, match="this port owns its SAs as before"):
        again.ask("handover", to=link.path)
    assert [sequence(frame) for frame in sent(again)] == [LEAST_STRIDE + 1]


def test_a_target_that_dies_after_its_decision_owns_them_in_its_next_life(
    make: Make, between: Callable[..., Between]
) -> None:
    source, target = make("source"), make("target", awaited=True)
    sent(source, 3)
    broken = {"handover.commit": "unanswered", "handover.resolve": "lost"}
    link = between(target, broken)
    with pytest.raises(RequestRefused, match="is not known"):
        source.ask("handover", to=link.path)
    target.die()
    again = make("target", awaited=True)
    assert owners(source, again) == [False, True]
    assert [sequence(frame) for frame in sent(again)] == [3 + LEAST_STRIDE + 2]
    broken.clear()
    assert source.ask("handover", to=link.path)["owner"] == link.path


def test_a_target_without_memory_cannot_say(make: Make, between: Callable[..., Between]) -> None:
    source, target = make("source"), make("target", awaited=True, state=False)
    broken = {"handover.commit": "unanswered", "handover.resolve": "lost"}
    link = between(target, broken)
    with pytest.raises(RequestRefused, match="is not known"):
        source.ask("handover", to=link.path)
    target.die()
    again = make("target", awaited=True, state=False)
    broken.clear()
    with pytest.raises(RequestRefused, match=r"started anew and cannot know.*this port sends nothing"):
        source.ask("handover", to=link.path)
    assert owners(source, again) == [False, False]


def test_the_addresses_of_the_underlay_go_with_the_sas(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    assert (len(source.asked()), len(target.asked())) == (1, 0)
    source.ask("handover", to=target.path)
    assert len(source.asked()) == 0
    told = target.asked()  # neighbours are told where they are now
    assert [Ether(frame).dst for frame in told[-2:]] == ["ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"]
    assert len(target.asked()) == 1


def test_without_state_directories_it_works_while_both_live(make: Make) -> None:
    source, target = make("source", state=False), make("target", awaited=True, state=False)
    sent(source, 2)
    source.ask("handover", to=target.path)
    assert [sequence(frame) for frame in sent(target)] == [3]


def test_a_target_that_cannot_write_does_not_take_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = make("source"), make("target", awaited=True)

    def full(self: Journal, lines: object) -> None:
        raise StateError("no room")

    assert target.marks is not None
    monkeypatch.setattr(target.marks._journal, "append", full.__get__(target.marks._journal))
    with pytest.raises(RequestRefused, match="no room; this port owns its SAs as before"):
        source.ask("handover", to=target.path)
    assert owners(source, target) == [True, False]


def test_keys_that_were_used_with_other_ivs_are_not_taken(make: Make) -> None:
    source, target = make("source"), make("target")
    sent(target)
    target.stop()
    again = make("target", awaited=True)
    with pytest.raises(RequestRefused, match="has been used here with other IVs"):
        source.ask("handover", to=again.path)
    assert owners(source, again) == [True, False]


# -- what a target refuses


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("handover.begin", {"transfer": "x", "sas": -1, "flows": 0}, "sas must be a whole number"),
        ("handover.begin", {"sas": 1, "flows": 0}, "transfer is missing"),
        ("handover.begin", {"transfer": "x\n", "sas": 1, "flows": 0}, "one line"),
        ("handover.part", {"transfer": "x"}, "no such handover"),
        ("handover.resolve", {"transfer": "x", "instance": "y"}, "cannot know"),
        ("handover.other", {"transfer": "x"}, "no such method"),
        ("handover", {}, "to is missing"),
    ],
)
def test_requests_that_make_no_sense(make: Make, method: str, params: dict[str, Any], message: str) -> None:
    target = make("target", awaited=True)
    with pytest.raises(RequestRefused, match=message):
        target.ask(method, **params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sas": 1}, "list of tables"), ({"sas": [1]}, "list of tables"), ({"sas": [{}]}, "sa must be a table"),
        ({"sas": [{"sa": {}, "state": 1}]}, "is missing"), ({"flows": [{}]}, "action is missing"),
        ({"sas": [{"sa": {}, "more": 1}]}, "more is not known"),
        ({"flows": [{"action": "drop"}, {"action": "drop", "name": "x"}]}, "more has come than was announced"),
    ],
)  # fmt: skip
def test_parts_that_make_no_sense(make: Make, params: dict[str, Any], message: str) -> None:
    target = make("target", awaited=True)
    with ControlClient(target.path) as source:
        source.call("handover.begin", transfer="t", sas=0, flows=1)
        with pytest.raises(RequestRefused, match=message):
            source.call("handover.part", transfer="t", **params)


def test_a_state_that_no_sa_can_have_and_less_than_was_announced(make: Make) -> None:
    source, target = make("source"), make("target", awaited=True)
    (entry, *_) = source.ask("sa.list", show_keys=True)["sas"]
    state = {"sequence": 2**40, "packets": 0, "bytes": 0, "iv_base": 0, "window": 0, "seen": "0", "refused": {}}
    for sas, parts, message in ((2, 1, "less has come"), (1, 1, "none that the SA can have")):
        with ControlClient(target.path) as client:
            client.call("handover.begin", transfer=message, sas=sas, flows=0)
            for _ in range(parts):
                client.call("handover.part", transfer=message, sas=[{"sa": entry["sa"], "state": state}])
            answer = client.call("handover.commit", transfer=message)
        assert not answer["committed"]
        assert message in answer["reason"]
    assert owners(target) == [False]
