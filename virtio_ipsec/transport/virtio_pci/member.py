"""A virtual function as its owner reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import FunctionState
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.function import PciFunction

T = TypeVar("T")

#: Seconds that a virtual function's own thread has to do what its owner wants.
_PATIENCE: Final = 5.0


class VirtualFunction:
    """``function`` as a member of its owner's group (:class:`~virtio_ipsec.device.members.StoppableMember`).

    Called in the owner's control thread: what concerns the function is done in that of its own port, which never waits
    for the owner's. TransportError when that thread does not answer. ``set_present`` is called in place of the
    function's own.
    """

    def __init__(self, function: PciFunction, set_present: Callable[[bool], None] | None = None) -> None:
        self._function = function
        self._port = function.port
        self._set_present = set_present or function.set_present

    @property
    def device(self) -> Device:
        """The member's device."""
        return self._port.device

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else changes the device; what was changed holds for all packets that come after."""
        with self._port.lock:
            yield
            self._port.publish()

    def appear(self) -> None:
        """It is there, as after a reset."""
        self._ask(lambda: self._set_present(True))

    def vanish(self) -> None:
        """It is gone and its keys are wiped."""
        self._ask(lambda: self._set_present(False))

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

    def _ask(self, call: Callable[[], T]) -> T:
        answers: list[T] = []
        errors: list[Exception] = []

        def asked() -> None:
            try:
                answers.append(call())
            except Exception as error:  # it is the owner's to know
                errors.append(error)

        if not self._port.loop.ask(asked, _PATIENCE):
            raise TransportError(f"{self._port.name} does not answer its owner")
        if errors:
            raise errors[0]
        return answers[0]
