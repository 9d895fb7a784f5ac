"""The control thread's loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from time import monotonic_ns

import pytest

from virtio_ipsec.transport.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_are_called_in_their_order_and_not_when_cancelled(loop: Loop) -> None:
    seen: list[int] = []
    now = monotonic_ns()
    late = loop.at(now + 2_000_000, lambda: seen.append(2))
    loop.at(now + 1_000_000, lambda: seen.append(1))
    loop.at(now + 4_000_000, lambda: seen.append(3))
    late.cancel()
    while len(seen) < 2:
        loop.turn(1)
    assert seen == [1, 3]
    assert monotonic_ns() - now >= 4_000_000


def test_a_timer_that_is_always_due_holds_nobody(loop: Loop) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        loop.at(0, again)

    again()
    loop.turn(0)
    assert len(seen) == 2


def test_one_call_may_take_the_descriptor_of_another_away(loop: Loop) -> None:
    fds = [os.eventfd(1), os.eventfd(1)]
    seen: list[int] = []

    def called(mine: int, other: int) -> None:
        seen.append(mine)
        loop.remove(other)
        loop.remove(mine)

    loop.add(fds[0], lambda: called(fds[0], fds[1]))
    loop.add(fds[1], lambda: called(fds[1], fds[0]))
    loop.turn(0)
    assert len(seen) == 1
    for fd in fds:
        os.close(fd)


def test_an_error_ends_one_call_alone(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    loop.call(lambda: seen.append(1 // 0))
    loop.call(lambda: seen.append(1))
    loop.turn(0)
    assert seen == [1]
    assert "ZeroDivisionError" in caplog.text


def test_other_threads_ask_and_wait(loop: Loop) -> None:
    seen: list[str] = []
    assert loop.ask(lambda: seen.append(threading.current_thread().name))  # nobody runs it: at once
    thread = threading.Thread(target=loop.run, name="control")
    thread.start()
    assert loop.ask(lambda: seen.append(threading.current_thread().name), 5)
    hold = threading.Event()
    loop.call(lambda: hold.wait(5) and None)
    assert not loop.ask(lambda: None, 0.01)
    hold.set()
    loop.stop()
    thread.join(5)
    assert seen == [threading.current_thread().name, "control"]
