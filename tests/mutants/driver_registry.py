"""Mutant drivers: our own one in a script, wrong in one rule each.

A file `driver_mutants_<room>.py` in this directory defines them with :func:`driver_mutant` on a :class:`Wrong` script:
it plays few of the steps, and tampers on the way with packets, commands, answers or registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from random import Random
from typing import Any, TypeVar

from registration import Registration

from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import Hands, Script, perform, perform_over_pci
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.receive import Fault, Refused
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.specification import clause
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.transport.monitor.faces import FACES, Face
from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    AdminCommand,
    CapCommand,
    ObjectCommand,
    ResourceHeader,
)
from virtio_ipsec.wire.dialect import DIALECTS
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Opcode

Kind = TypeVar("Kind", bound="type[Wrong]")

HEADER = 24
REFUSED = Refused(Fault.BAD_LENGTH)


class Wrong(Script):
    """A script that plays its ``only`` steps between start and stop."""

    only: tuple[str, ...] = ()
    hands_class: type[Hands] = Hands
    driver_class: type[Driver] = Driver

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self.start
        yield self.tamper
        for name in self.only:
            yield getattr(self, name)
        yield self.stop

    def play(self) -> None:
        with ExitStack() as stack:
            for patch in self.patches():
                stack.enter_context(patch)
            super().play()

    def patches(self) -> tuple[AbstractContextManager[Any], ...]:
        """What is another one while the script plays."""
        return ()

    def new_hands(self) -> Hands:
        return self.hands_class(self.link, self.before_driver_ok)

    def new_driver(self) -> Driver:
        return self.driver_class(self.hands, self.dialect, config=self.config)  # type: ignore[arg-type]

    def before_driver_ok(self) -> None:
        """Commands go through :meth:`command`, their answers through :meth:`reply`."""
        admin = self.driver._held.admin if self.driver._held is not None else None
        if admin is not None:
            request = admin._queue.request

            def tampered(readable: bytes, room: int) -> bytes:
                sent, wanted = self.command(readable, room)
                return self.reply(sent, request(sent, wanted))[:room]

            admin._queue.request = tampered  # type: ignore[method-assign]
        super().before_driver_ok()

    def tamper(self) -> None:
        """Packets go through :meth:`buffer`."""
        for queue in self.driver._transmit:
            put = queue.put
            queue.put = lambda buffer, token, put=put: put(self.buffer(buffer), token)  # type: ignore

    # What a mutant overrides.

    def buffer(self, buffer: bytes) -> bytes:
        codec = self.driver._header
        header, frame = self.packet(codec.parse(buffer), buffer[codec.size :])
        return codec.build(header) + frame

    def packet(self, header: NetHdr, frame: bytes) -> tuple[NetHdr, bytes]:
        return header, frame

    def command(self, readable: bytes, room: int) -> tuple[bytes, int]:
        return readable, room

    def reply(self, readable: bytes, answer: bytes) -> bytes:
        return answer

    # What it can do beyond a driver's power.

    def raw(self, opcode: int, data: bytes = b"", room: int = 8, group: int = 0) -> bytes:
        admin = self.driver.session.admin if self.driver._session else self.driver._held.admin
        return admin._queue.request(ADMIN_COMMAND.build(AdminCommand(opcode, group, 0, data)), room)

    def create(self, kind: int, number: int, data: bytes) -> bytes:
        return self.raw(
            Opcode.RESOURCE_OBJ_CREATE, OBJECT_COMMAND.build(ObjectCommand(kind, number, 0, data))
        )

    def make(self, kind: int, number: int, value: Any) -> bytes:
        return self.create(kind, number, self.dialect.objects[kind].build(value))

    def destroy(self, kind: int, number: int) -> None:
        self.raw(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(kind, number)))

    def cap_set(self, number: int, data: bytes) -> None:
        self.raw(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(number, data)))

    def post(self, queue: Any, readable: bytes, room: int) -> Any:
        """A request on a queue that nobody is told of yet."""
        link = self.link
        source = link.allocator.alloc(len(readable))
        link.memory.write(source, readable)
        writable = [Segment(link.allocator.alloc(room), room)] if room else []
        queue._ring.add([Segment(source, len(readable))], writable, None)
        queue._ring.publish()
        return queue._ring

    @property
    def requests(self) -> Any:
        """The administration queue."""
        return self.driver.session.admin._queue  # type: ignore[union-attr]


@dataclass(frozen=True)
class DriverMutant:
    """A wrong driver. The judge of ``clause`` must fail it, and judges of other clauses only where they stand among
    ``dependants``."""

    name: str
    clause: str
    script: type[Wrong]
    dependants: frozenset[str]
    dialect: str
    face: Face
    #: Whether it comes through a PCI function, where questions do not arrive.
    over_pci: bool = False

    def report(self) -> Report:
        """What the judges say of it."""
        recorder = Recorder(DIALECTS[self.dialect])
        play = perform_over_pci if self.over_pci else perform
        play(recorder, Random(1).randbytes, [self.face], self.script)
        return judge_trace(recorder, self.name)

    def __str__(self) -> str:
        return f"{self.clause}-{self.name}"


_mutants: Registration[DriverMutant] = Registration("driver_mutants_")


def driver_mutant(
    broken: str,
    *dependants: str,
    face: str = "full",
    without: tuple[Feature, ...] = (),
    dialect: str | None = None,
    over_pci: bool = False,
) -> Callable[[Kind], Kind]:
    """Register the decorated script as a mutant that breaks ``broken``, before a device with this face."""

    def register(script: Kind) -> Kind:
        made = DriverMutant(
            script.__name__,
            broken,
            script,
            frozenset(dependants),
            dialect or clause(broken).dialects[0],
            FACES[face].without(*without),
            over_pci,
        )
        _mutants.add(script, dependants, made)
        return script

    return register


def load_driver_mutants() -> tuple[DriverMutant, ...]:
    """All of them, by clause."""
    return tuple(sorted(_mutants.load(), key=lambda each: (each.clause, each.name)))


def blamed(report: Report) -> dict[str, str]:
    """Clause -> what is wrong, of those that did not pass."""
    found = {}
    for case in report.cases:
        if case.verdict in {Verdict.FAIL, Verdict.WARN, Verdict.ERROR}:
            wrong = next((c for c in case.checks if c.verdict is not Verdict.PASS), None)
            found[case.clauses[0]] = f"{wrong.expected}: {wrong.seen}" if wrong else case.reason
    return found


__all__ = [
    "HEADER",
    "REFUSED",
    "DriverMutant",
    "Wrong",
    "blamed",
    "driver_mutant",
    "load_driver_mutants",
    "replace",
]
