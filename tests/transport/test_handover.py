"""Handover: the SAs of a port are used in one place at a time, whatever breaks in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from managed import BackEnd


@pytest.fixture
def ends() -> Iterator[list[BackEnd]]:
    """What is stopped afterwards."""
    started: list[BackEnd] = []
    yield started
    for each in started:
        each.stop()


@pytest.fixture
def make(tmp_path: Path, ends: list[BackEnd]) -> Callable[..., BackEnd]:
    def made(name: str, *, state: bool = True, **how: Any) -> BackEnd:
        directory = tmp_path / f"{name}.state" if state else None
        ends.append(end := BackEnd(tmp_path / name, state=directory, **how))
        return end.start()

    return made


def sequences(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[38:42]) for frame in frames]


def test_it_works(make: Callable[..., BackEnd]) -> None:
    source, target = make("source"), make("target", awaited=True)
    peer = make("peer", side="b", state=False)
    sent = [frame for _ in range(3) for frame in source.send()]
    assert sequences(sent) == [1, 2, 3]
    assert target.send() == []
    result = source.ask("handover", to=target.path)
    assert result["owner"] == target.path
    assert source.send() == []
    sent += target.send()
    assert sequences(sent) == [1, 2, 3, 4]
    assert all(len(peer.receive(frame)) == 1 for frame in sent)
    assert source.ask("handover", to=target.path) == result
