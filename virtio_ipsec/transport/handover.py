"""Handing the SAs of a port over to another back-end, so that there is never more than one that uses them.

::

    source                                    target (awaits its SAs, or has given them away)
      handover.begin {transfer, sas, flows}  ->   remembers the connection           instance
      writes "leaving", freezes its SAs
      handover.part {transfer, sas}          ->   keeps them, for this connection
      handover.commit {transfer}             ->   makes them, writes "here", lets them go on
      writes "gone", wipes its own           <-   committed

The target decides, once and for all: ``commit`` has brought everything, or the transfer never happens. Until the
source has sent ``commit`` it can take the SAs back by itself, for without ``commit`` the target forgets them when the
connection ends. After that only the target knows: ``handover.resolve`` asks it, and what has not been committed by then
never will be. While the source does not know, it sends nothing. The decision of a target outlives its process if it has
a state directory; ``instance`` tells whether who answers can know.

Keys travel in ``handover.part``, over a socket that only the owner and root can use.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from virtio_ipsec.errors import ConfigError, TransportError, VirtioIpsecError
from virtio_ipsec.ipsec.state import SaState
from virtio_ipsec.policy.config import flow_from, sa_from
from virtio_ipsec.policy.describe import describe_flow, describe_sa
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.policy.tables import Table
from virtio_ipsec.transport.control import Connection, Reply, Request, Result
from virtio_ipsec.transport.control_client import ControlClient, RequestRefused
from virtio_ipsec.transport.managed_port import Deed, ManagedPort, Ownership, place

#: SAs, and flows, of one request: far from the longest that there may be.
PART = 100
MOST = 1 << 20
#: Seconds that one answer may take, and how often the target is asked what it has decided, and how far apart.
PATIENCE = 10.0
ASK_AGAIN = 3
ASK_AFTER = 0.3
#: Handovers of which a target knows that it has accepted them.
REMEMBERED = 16

_log = logging.getLogger(__name__)


class HandoverFailed(VirtioIpsecError):
    """A handover that did not bring the SAs to the target; the message says who owns them."""


# -- the target


@dataclass(slots=True)
class _Stage:
    """What has been received of a transfer."""

    transfer: str
    connection: Connection
    sas: int
    flows: int
    received: list[tuple[SaSpec, SaState]] = field(default_factory=list, repr=False)
    named: dict[str, Flow] = field(default_factory=dict)


class HandoverTarget:
    """Receives the SAs of a port."""

    def __init__(self, port: ManagedPort) -> None:
        self._port = port
        self._stage: _Stage | None = None
        self._refused: set[str] = set()
        self._process = secrets.token_hex(16)

    @property
    def instance(self) -> str:
        """Who remembers decisions: the state directory, or this process."""
        return self._process if self._port.marks is None else self._port.marks.ident

    def answer(self, request: Request) -> Result:
        """Answer a request whose method begins with ``handover.``; raises VirtioIpsecError."""
        steps = {
            "handover.begin": (self._begin, {"transfer", "sas", "flows"}),
            "handover.part": (self._part, {"transfer", "sas", "flows"}),
            "handover.commit": (self._commit, {"transfer"}),
            "handover.resolve": (self._resolve, {"transfer", "instance"}),
        }
        if request.method not in steps:
            raise ConfigError(f"there is no such method; known: {', '.join(steps)}")
        step, known = steps[request.method]
        params = Table(request.params, request.method, frozenset(known))
        transfer = params.line("transfer") or params.text("transfer")
        return step(transfer, params, request)

    def close(self) -> None:
        """Forget what was received."""
        self._stage = None

    def _begin(self, transfer: str, params: Table, request: Request) -> Result:
        port = self._port
        port.need_operator()
        if port.deed.ownership not in (Ownership.AWAITED, Ownership.GONE):
            raise ConfigError(f"port {port.name}: {port.deed.owner}")
        if self._stage is not None:
            raise ConfigError(f"port {port.name}: another handover is under way")
        stage = _Stage(
            transfer, request.connection, params.integer("sas", 0, MOST), params.integer("flows", 0, MOST)
        )

        def forget() -> None:
            if self._stage is stage:
                _log.warning("handover to port %s broken off: its SAs are forgotten", port.name)
                self._stage = None

        request.connection.on_close = forget
        self._stage = stage
        return {"instance": self.instance}

    def _part(self, transfer: str, params: Table, request: Request) -> Result:
        stage = self._staged(transfer, request)
        port = self._port
        for entry in _list(params, "sas"):
            both = Table(entry, "sas", frozenset({"sa", "state"}))
            spec = sa_from(_object(both, "sa"), port.dialect)
            try:
                stage.received.append((spec, SaState.from_json(both.values.get("state"))))
            except ConfigError as error:
                raise ConfigError(f"{place(spec)}: {error}") from None
        for entry in _list(params, "flows"):
            flow = flow_from(entry)
            stage.named[flow.name] = flow
        if len(stage.received) > stage.sas or len(stage.named) > stage.flows:
            raise ConfigError("more has come than was announced")
        return {"received": len(stage.received)}

    def _commit(self, transfer: str, params: Table, request: Request) -> Result:
        stage = self._staged(transfer, request)
        self._stage = None
        port = self._port
        try:
            if (len(stage.received), len(stage.named)) != (stage.sas, stage.flows):
                raise ConfigError("less has come than was announced")
            accepted = (*port.deed.accepted, transfer)[-REMEMBERED:]
            port.take_over(Deed(accepted=accepted), stage.received, stage.named)
        except ConfigError as error:
            # An answer, not an error: errors leave open what was decided.
            self._refused.add(transfer)
            return {"committed": False, "reason": str(error)}
        _log.info("port %s has taken over %d SAs (%s)", port.name, stage.sas, request.who)
        return {"committed": True, "sas": stage.sas}

    def _resolve(self, transfer: str, params: Table, request: Request) -> Result:
        """What was decided; what was not is decided now: never."""
        if params.text("instance") != self.instance:
            raise ConfigError(
                f"port {self._port.name} has been started anew and cannot know; nobody may go on"
            )
        if transfer in self._port.deed.accepted:
            return {"committed": True}
        self._refused.add(transfer)
        if self._stage is not None and self._stage.transfer == transfer:
            self._stage = None
        return {"committed": False}

    def _staged(self, transfer: str, request: Request) -> _Stage:
        stage = self._stage
        if (
            transfer in self._refused
            or stage is None
            or (stage.transfer, stage.connection)
            != (
                transfer,
                request.connection,
            )
        ):
            raise ConfigError("there is no such handover")
        return stage


def _list(params: Table, name: str) -> list[Mapping[str, Any]]:
    found = params.values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        params.refuse(name, "must be a list of tables")
    return found


def _object(table: Table, name: str) -> Mapping[str, Any]:
    found = table.values.get(name)
    if not isinstance(found, Mapping):
        table.refuse(name, "must be a table")
    return found


# -- the source


class HandoverSource:
    """Gives the SAs of a port away. What waits for the target runs in a thread of its own, what touches the port in the
    thread that ``call_soon`` leads to."""

    def __init__(self, port: ManagedPort, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._port = port
        self._call_soon = call_soon
        self._busy = False

    def start(self, target: str, target_port: str | None, reply: Reply) -> None:
        """Hand over to the back-end at control socket ``target``, or find out what became of a handover to it that was
        not completed. Raises VirtioIpsecError when it cannot begin."""
        if self._port.operator is None:
            raise ConfigError(
                f"port {self._port.name}: SAs that the driver owns cannot move; nobody may read back what they have "
                f"used up (ledger E80)"
            )
        if self._busy:
            raise ConfigError(f"port {self._port.name}: another handover is under way")
        deed = self._port.deed
        if deed.ownership is Ownership.GONE and deed.target == target:
            reply(_done(deed))
            return
        if deed.ownership is Ownership.LEAVING and deed.target != target:
            raise ConfigError(f"port {self._port.name}: {deed.owner}")
        if deed.ownership is not Ownership.LEAVING:
            self._port.need_owner()
        self._busy = True
        work = _Transfer(self._port, target, target_port, self._here)

        def run() -> None:
            answer: Result | VirtioIpsecError
            try:
                answer = work.run()
            except VirtioIpsecError as error:
                answer = error
            except Exception as error:
                _log.error(
                    "handover of port %s: an internal error: %s", self._port.name, type(error).__name__
                )
                answer = HandoverFailed(
                    "an internal error; this port sends nothing until the handover is run again"
                )
            self._call_soon(lambda: self._end(answer, reply))

        threading.Thread(target=run, name=f"{self._port.name}-handover", daemon=True).start()

    def _end(self, answer: Result | VirtioIpsecError, reply: Reply) -> None:
        self._busy = False
        if isinstance(answer, VirtioIpsecError):
            _log.warning("handover of port %s: %s", self._port.name, answer)
        else:
            _log.info("port %s has handed over its SAs to %s", self._port.name, self._port.deed.target)
        reply(answer)

    def _here(self, call: Callable[[], Any]) -> Any:
        """Call it in the port's control thread and wait."""
        done = threading.Event()
        outcome: list[Any] = []

        def and_tell() -> None:
            try:
                outcome.append(call())
            except BaseException as error:  # raised again where it is waited for
                outcome.append(error)
            finally:
                done.set()

        self._call_soon(and_tell)
        done.wait()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


class _Transfer:
    """One attempt, in its own thread; ``here`` calls something in the control thread."""

    def __init__(
        self,
        port: ManagedPort,
        target: str,
        target_port: str | None,
        here: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._port, self._target, self._here = port, target, here
        self._target_port = target_port or port.name

    def run(self) -> Result:
        """The result; HandoverFailed says who owns the SAs, or that nobody knows and nobody sends."""
        if self._port.deed.ownership is Ownership.LEAVING:
            decided = self._resolve()
            if decided is not None:
                return decided
        transfer = secrets.token_hex(8)
        try:
            with self._connect() as client:
                sas, flows = self._here(self._size)
                begun = client.call("handover.begin", transfer=transfer, sas=sas, flows=flows)
                instance, accepted = str(begun.get("instance")), self._port.deed.accepted
                deed = Deed(Ownership.LEAVING, transfer, self._target, instance, accepted)
                self._here(lambda: self._port.enter(deed))
                self._send(client, transfer, (sas, flows))
                decided = self._commit(client, transfer)
        except (RequestRefused, TransportError, ConfigError) as error:
            self._take_back(str(error))
            raise HandoverFailed(f"{error}; {_AS_BEFORE}") from None
        return decided

    def _connect(self) -> ControlClient:
        return ControlClient(self._target, port=self._target_port, timeout=PATIENCE)

    def _size(self) -> tuple[int, int]:
        return len(self._port.held()), len(self._port.flows())

    def _send(self, client: ControlClient, transfer: str, size: tuple[int, int]) -> None:
        states: list[tuple[SaSpec, SaState]] = self._here(self._port.freeze)
        flows = [describe_flow(flow, name) for name, flow in self._here(self._port.flows).items()]
        if (len(states), len(flows)) != size:
            raise ConfigError("SAs or flows were changed meanwhile")
        for at in range(0, len(states), PART):
            part = states[at : at + PART]
            sas = [
                {"sa": describe_sa(spec, show_keys=True), "state": state.to_json()} for spec, state in part
            ]
            client.call("handover.part", transfer=transfer, sas=sas)
        for at in range(0, len(flows), PART):
            client.call("handover.part", transfer=transfer, flows=flows[at : at + PART])

    def _commit(self, client: ControlClient, transfer: str) -> Result:
        """From here on the target decides."""
        try:
            answer = client.call("handover.commit", transfer=transfer)
        except (TransportError, RequestRefused):
            client.close()
            decided = self._resolve()
            if decided is None:
                raise HandoverFailed(f"{self._target} has not taken the SAs over; {_AS_BEFORE}") from None
            return decided
        if answer.get("committed") is True:
            return self._gone()
        self._take_back(reason := str(answer.get("reason")))
        raise HandoverFailed(f"{reason}; {_AS_BEFORE}")

    def _resolve(self) -> Result | None:
        """Ask the target what it has decided. None: it has not taken the SAs over and never will, and they are our own
        again. HandoverFailed: nobody says."""
        deed = self._port.deed
        why: VirtioIpsecError | None = None
        for attempt in range(ASK_AGAIN):
            if attempt:
                time.sleep(ASK_AFTER)
            try:
                with self._connect() as client:
                    found = client.call("handover.resolve", transfer=deed.transfer, instance=deed.instance)
            except TransportError as error:
                why = error
            except RequestRefused as error:
                why = error
                break
            else:
                if found.get("committed") is True:
                    return self._gone()
                self._take_back("not committed")
                return None
        raise HandoverFailed(
            f"{why}; whether {deed.target} owns the SAs is not known: this port sends nothing, run the handover again"
        )

    def _gone(self) -> Result:
        deed = replace(self._port.deed, ownership=Ownership.GONE)
        self._here(lambda: self._port.give_up(deed))
        return _done(deed)

    def _take_back(self, why: str) -> None:
        """Nobody else has them, nor will: own them again, if we have let go."""
        port = self._port
        if port.deed.ownership is Ownership.LEAVING:
            try:
                self._here(lambda: port.thaw(Deed(accepted=port.deed.accepted)))
            except ConfigError as error:
                raise HandoverFailed(
                    f"{why}; then {error}: this port sends nothing, run the handover again"
                ) from None


_AS_BEFORE = "this port owns its SAs as before"


def _done(deed: Deed) -> Result:
    result: Result = {"owner": deed.target, "transfer": deed.transfer}
    return result
