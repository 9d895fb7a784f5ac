"""What a served port's control thread sees to by itself: commands, the operator's timers, and what C is to know."""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.transport.commands import CommandQueues
from virtio_ipsec.transport.datapath import Surroundings
from virtio_ipsec.transport.loop import Loop, Timer

#: Commands of a control or administration queue that are run before others have their turn.
_COMMANDS = 16


class Upkeep:
    """In the thread that runs ``loop``. ``after_look`` is called when the device's state may have changed."""

    def __init__(self, around: Surroundings, loop: Loop, after_look: Callable[[], None]) -> None:
        self._around = around
        self._exchange = around.exchange
        self._loop = loop
        self._after_look = after_look
        self._looking = False
        self._timer: tuple[int, Timer] | None = None
        self.commands = CommandQueues(loop, self._run_commands)
        around.changed = self.look_soon
        loop.after_turn = self._publish_news

    def close(self) -> None:
        """Release what it has."""
        self.commands.close()

    def publish(self) -> None:
        """From any thread: what the device and the operator's policy are by now holds for all packets that come after
        this."""
        around, operator = self._around, self._exchange.operator
        with around.lock:
            around.seen = operator.generation if operator is not None else 0
            if around.path is not None:
                around.path.publish()

    def look_soon(self) -> None:
        """From any thread: the control thread has something to look at."""
        if not self._looking:
            self._looking = True
            self._loop.call(self.look)

    def look(self) -> None:
        """What the device and the operator want of the control thread."""
        self._looking = False
        with self._around.lock:
            due = self._around.due = self._exchange.deadline()
            self.publish()
        if self._timer is not None and self._timer[0] != due:
            self._timer[1].cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer = due, self._loop.at(due, self._tick)
        self._after_look()

    def _publish_news(self) -> None:
        operator = self._exchange.operator
        if operator is not None and operator.generation != self._around.seen:
            self.publish()

    def _run_commands(self, index: int) -> bool:
        around = self._around
        with around.lock:
            done, _ = around.rings.work_off(index, _COMMANDS, self.publish)
            rung = around.rings.take_interrupts()
        around.ring_bells(rung)
        self.look()
        return done == _COMMANDS

    def _tick(self) -> None:
        self._timer = None
        around = self._around
        with around.lock:
            path = around.path
            self._exchange.tick()
            to_wire, to_guest = self._exchange.take()
            if path is None:
                for received in to_guest:
                    around.rings.place(received)
            rung = around.rings.take_interrupts()
        around.ring_bells(rung)
        if path is not None:
            path.deliver(to_guest)
        if to_wire:
            around.uplink.send(to_wire)
        self.look()
