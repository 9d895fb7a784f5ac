"""A virtual function as its owner reaches it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import FunctionState
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.function import PciFunction

T = TypeVar("T")

#: Seconds that a virtual function's own thread has to do what its owner wants, and that its lock may be held.
_PATIENCE: Final = 5.0


class _Question(Generic[T]):
    """What a port's control thread is to do."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.until = monotonic() + _PATIENCE
        self.done = threading.Event()
        self._call = call
        self._change = threading.Lock()
        self._has_begun = self._is_withdrawn = False
        self._answers: list[T] = []
        self._errors: list[Exception] = []

    def __call__(self) -> None:
        """In that thread."""
        with self._change:
            self._has_begun = not self._is_withdrawn
        try:
            if self._has_begun:
                self._answers.append(self._call())
        except Exception as error:  # it is the owner's to know
            self._errors.append(error)
        finally:
            self.done.set()

    def withdraw(self) -> None:
        """It is not to be done any more, if it has not been begun."""
        with self._change:
            self._is_withdrawn = not self._has_begun

    def answer(self) -> T:
        """When it is done."""
        if self._errors:
            raise self._errors[0]
        return self._answers[0]


class VirtualFunction:
    """``function`` as a member of its owner's group (:class:`~virtio_ipsec.device.members.StoppableMember`).

    Called in the owner's control thread: what concerns the function is done in that of its own port, which never waits
    for the owner's. That thread may hang with its client. Then the owner's registers and its administration queue wait
    for it, its data queues do not (but for packets that need Python): 5 seconds once, not for each command and not for
    each function that is to vanish. After that all is TransportError at once, until it answers. What was not begun in
    that time is not done later, apart from vanishing. ``set_present`` is called in place of the function's own.
    """

    def __init__(self, function: PciFunction, set_present: Callable[[bool], None] | None = None) -> None:
        self._function = function
        self._port = function.port
        self._set_present = set_present or function.set_present
        self._leaving: _Question[None] | None = None
        #: What has not been answered in time; and whether the lock was not to be had.
        self._unanswered: _Question[Any] | None = None
        self._is_shut_out = False

    @property
    def device(self) -> Device:
        """The member's device."""
        return self._port.device

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else changes the device; what was changed holds for all packets that come after."""
        self._is_shut_out = not self._port.lock.acquire(timeout=0 if self._is_shut_out else _PATIENCE)
        if self._is_shut_out:
            raise self._silence()
        try:
            yield
            self._port.publish()
        finally:
            self._port.lock.release()

    def appear(self) -> None:
        """It is there, as after a reset."""
        self._ask(lambda: self._set_present(True))

    def leave(self) -> None:
        """Begin to vanish."""
        if self._leaving is None or self._leaving.done.is_set():
            self._leaving = self._put(lambda: self._set_present(False))

    def vanish(self) -> None:
        """It is gone and its keys are wiped."""
        self.leave()
        if self._leaving is not None:
            self._await(self._leaving)
            leaving, self._leaving = self._leaving, None
            leaving.answer()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` holds."""
        return self._function.is_held

    def stop(self) -> None:
        """Nothing is done on queues, nothing notified."""
        self._ask(self._function.hold)

    def resume(self, state: FunctionState | None = None) -> None:
        """Go on, or become another."""
        self._ask(lambda: self._function.go_on(state))

    def state(self) -> FunctionState:
        """The registers as they are."""
        return self._ask(self._function.state)

    def _put(self, call: Callable[[], T]) -> _Question[T]:
        question = _Question(call)
        self._port.loop.ask(question, 0)
        return question

    def _ask(self, call: Callable[[], T]) -> T:
        if self._is_silent:
            raise self._silence()
        question = self._put(call)
        try:
            self._await(question)
        except TransportError:
            question.withdraw()
            raise
        return question.answer()

    @property
    def _is_silent(self) -> bool:
        return self._unanswered is not None and not self._unanswered.done.is_set()

    def _await(self, question: _Question[T]) -> None:
        left = 0.0 if self._is_silent else max(0.0, question.until - monotonic())
        if not question.done.wait(left):
            self._unanswered = question
            raise self._silence()

    def _silence(self) -> TransportError:
        return TransportError(f"{self._port.name} does not answer its owner")
