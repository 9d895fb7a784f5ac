"""What may be asked of a port and changed on it while it runs: what the control socket's requests come down to.

An operator's port owns its SAs or it does not, see :class:`Ownership`. Only an owner's SAs process packets and can be
changed. Everything here is called in one thread, without the port's lock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, cast

from virtio_ipsec.device.engines import AnySa
from virtio_ipsec.errors import ConfigError, VirtioIpsecError
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.state import SaState
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.transport.journal import StateError
from virtio_ipsec.transport.marks import Marks
from virtio_ipsec.transport.owned_sas import OwnedSas, record
from virtio_ipsec.wire.dialect import Dialect

_log = logging.getLogger(__name__)


class Ownership(StrEnum):
    """Whether a port may use its SAs."""

    HERE = "here"
    AWAITED = "awaited"  # another back-end is to hand them over
    LEAVING = "leaving"  # handed over, and whether the other one has them is not known yet
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Deed:
    """Who owns the SAs of a port. ``transfer``: the handover that made it so, or is about to; ``target``: the control
    socket of the other back-end; ``instance``: which process, or state directory, it was; ``accepted``: the handovers
    that have brought SAs here, the latest ones."""

    ownership: Ownership = Ownership.HERE
    transfer: str = ""
    target: str = ""
    instance: str = ""
    accepted: tuple[str, ...] = ()

    @property
    def owner_is_here(self) -> bool:
        """Whether the SAs may be used."""
        return self.ownership is Ownership.HERE

    @property
    def owner(self) -> str:
        """For people."""
        return {
            Ownership.HERE: "this port owns its SAs",
            Ownership.AWAITED: "this port waits for its SAs to be handed over",
            Ownership.LEAVING: f"a handover to {self.target} has not been completed: run it again to find out who owns "
            f"the SAs; until then this port sends nothing",
            Ownership.GONE: f"the SAs have been handed over to {self.target}",
        }[self.ownership]

    def note(self) -> str:
        """For the state directory."""
        return json.dumps(asdict(self), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_note(cls, note: str) -> Deed:
        """StateError when it is none."""
        try:
            fields = json.loads(note)
            own = {"ownership": Ownership(fields["ownership"]), "accepted": tuple(fields["accepted"])}
            return cls(**fields | own)
        except (ValueError, TypeError, KeyError):
            raise StateError("the state directory knows ports of another version of virtio-ipsec") from None


def first_deed(marks: Marks | None, port: str, *, awaited: bool) -> Deed:
    """How a port begins its life: as its last one ended, else as the owner, or ``awaited``."""
    if marks is not None and port in marks.ports:
        return Deed.from_note(marks.ports[port])
    return Deed(Ownership.AWAITED if awaited else Ownership.HERE)


class Lock(Protocol):
    """A lock that its holder may take again."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...


@dataclass(slots=True)
class ManagedPort:
    """One port. ``operator`` is None where the driver controls IPsec. ``counters`` takes the lock itself if it needs
    to. ``publish`` lets all packets that come after it go by the policy as it is now; called with the lock. ``settle``
    is called when that has to be written which SAs wait for. ``news``: the port has something to look at, but nobody
    waits for it."""

    name: str
    dialect: Dialect
    lock: Lock
    counters: Callable[[], Mapping[str, int]]
    operator: OperatorPort | None = None
    sas: OwnedSas | None = None
    marks: Marks | None = None
    publish: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None
    news: bool = False
    deed: Deed = field(default_factory=Deed)

    def __post_init__(self) -> None:
        if self.operator is not None and not self.deed.owner_is_here:
            self.operator.retire()

    def need_operator(self) -> OperatorPort:
        """ConfigError on a port whose driver controls IPsec."""
        if self.operator is None or self.sas is None:
            raise ConfigError(f'port {self.name}: the driver owns SAs and flows there (control = "guest")')
        return self.operator

    def need_owner(self) -> OperatorPort:
        """ConfigError when the SAs of the port are not its own."""
        operator = self.need_operator()
        if not self.deed.owner_is_here:
            raise ConfigError(f"port {self.name}: {self.deed.owner}")
        return operator

    # -- SAs and flows

    def held(self) -> list[HeldSa]:
        """The SAs, outbound ones first, by id."""
        operator = self.need_operator()
        with self.lock:
            return sorted(operator.sas, key=lambda held: (not held.spec.outbound, held.spec.id))

    def flows(self) -> Mapping[str, Flow]:
        """The flows in their order, by name."""
        operator = self.need_operator()
        with self.lock:
            return operator.flows

    def add_sa(self, spec: SaSpec) -> None:
        """Bring an SA to life. ConfigError as of :meth:`OperatorPort.add_sa`."""
        operator = self.need_owner()
        with self.lock:
            operator.add_sa(spec)
            self.news = True

    def remove_sa(self, *, outbound: bool, id: int) -> None:
        """Take an SA away; its keys are wiped. ConfigError when there is none."""
        operator = self.need_owner()
        with self.lock:
            held = self._held(operator, outbound, id)
            operator.remove_sa(id, outbound=outbound)
            self._release(held.spec.params)
            self.news = True

    def rekey(self, old: int, outbound: SaSpec, inbound: SaSpec | None) -> None:
        """Make before break: ``inbound`` is opened beside the old ones, then all flows of outbound SA ``old`` go to
        ``outbound`` at once, then ``old`` is taken away. ConfigError, and nothing is changed."""
        operator = self.need_owner()
        if not outbound.outbound or (inbound is not None and inbound.outbound):
            raise ConfigError("outbound must be an outbound SA and inbound an inbound one")
        with self.lock:
            held = self._held(operator, True, old)
            if inbound is not None:
                operator.add_sa(inbound)
            try:
                operator.replace_sa(old, outbound)
            except VirtioIpsecError:
                if inbound is not None:
                    operator.remove_sa(inbound.id, outbound=False)
                    self._release(inbound.params)
                raise
            self.publish()
            operator.remove_sa(old, outbound=True)
            self._release(held.spec.params)
            self.news = True

    def add_flow(self, flow: Flow) -> str:
        """Returns its name. ConfigError as of :meth:`OperatorPort.add_flow`."""
        operator = self.need_owner()
        with self.lock:
            name = operator.add_flow(flow)
            self.news = True
        return name

    def remove_flow(self, name: str) -> None:
        """ConfigError when there is none."""
        operator = self.need_owner()
        with self.lock:
            try:
                operator.remove_flow(name)
            except KeyError:
                raise ConfigError("there is no flow of that name") from None
            self.news = True

    # -- who owns them

    def freeze(self) -> list[tuple[SaSpec, SaState]]:
        """No SA processes packets any more; what they have used up. They stay so, whatever happens to the caller."""
        operator, sas = self.need_operator(), cast(OwnedSas, self.sas)
        with self.lock:
            sas.owned = False
            operator.retire()
            return [(held.spec, sas.stop(held.spec.params, _engine(held))) for held in operator.sas]

    def thaw(self, deed: Deed) -> None:
        """Own them again, each as it is itself. StateError, and nothing is changed."""
        operator, sas = self.need_operator(), cast(OwnedSas, self.sas)
        with self.lock:
            plans = [(held, sas.plan(held.spec.params, _engine(held))) for held in operator.sas]
            self._own(deed, plans)
        self.settle()

    def give_up(self, deed: Deed) -> None:
        """Somebody else owns them now: they are taken away and their keys are wiped."""
        operator = self.need_operator()
        try:
            self.enter(deed)
        except StateError as error:
            # The next life finds that the handover was not completed, and asks.
            _log.error("port %s: %s", self.name, error)
            self.deed = deed
        with self.lock:
            for held in operator.sas:
                operator.remove_sa(held.spec.id, outbound=held.spec.outbound)
            self.publish()

    def take_over(self, deed: Deed, sas: Iterable[tuple[SaSpec, SaState]], flows: Mapping[str, Flow]) -> None:
        """Own these SAs and flows, and no others, from now on. ConfigError, and nothing is changed.

        Everything that can fail comes before the deed is written down; from then on this port owns them, even if it
        dies in the next moment.
        """
        operator, owned = self.need_operator(), cast(OwnedSas, self.sas)
        with self.lock:
            before = [held.spec for held in operator.sas], dict(operator.flows)
            given, plans = list(sas), []
            try:
                self._exchange([spec for spec, _ in given], flows)
                for spec, state in given:
                    held = operator.sa(spec.id, outbound=spec.outbound)
                    try:
                        plans.append((held, owned.plan(spec.params, _engine(held), state)))
                    except ConfigError as error:
                        raise ConfigError(f"{place(spec)}: {error}") from None
                self._own(deed, plans)
            except BaseException:
                if not self.deed.owner_is_here:
                    self._exchange(*before)
                raise
            finally:
                self.publish()

    def enter(self, deed: Deed) -> None:
        """Remember who owns the SAs; StateError if that cannot be written down."""
        if self.marks is not None:
            self.marks.record(self.name, deed.note())
        self.deed = deed

    def _own(self, deed: Deed, plans: list[tuple[HeldSa, SaState]]) -> None:
        sas = cast(OwnedSas, self.sas)
        if self.marks is not None:
            records = [(held.spec.params, record(held.spec.params, start)) for held, start in plans]
            self.marks.record(self.name, deed.note(), records)
        self.deed = deed
        sas.owned = self.news = True
        self.need_operator().activate()
        for held, start in plans:
            sas.go(held.spec.params, _engine(held), start)

    def _exchange(self, specs: Iterable[SaSpec], flows: Mapping[str, Flow]) -> None:
        """Other SAs, frozen, and other flows."""
        operator = self.need_operator()
        for name in operator.flows:
            operator.remove_flow(name)
        for held in operator.sas:
            operator.remove_sa(held.spec.id, outbound=held.spec.outbound)
        for spec in specs:
            operator.add_sa(spec)
        for flow in flows.values():
            operator.add_flow(flow)

    def _held(self, operator: OperatorPort, outbound: bool, id: int) -> HeldSa:
        try:
            return operator.sa(id, outbound=outbound)
        except KeyError:
            way = "outbound" if outbound else "inbound"
            raise ConfigError(f"port {self.name} has no {way} sa {id}") from None

    def _release(self, params: SaParams) -> None:
        cast(OwnedSas, self.sas).release(params)


def place(spec: SaSpec) -> str:
    """An SA in a message."""
    return f"{'outbound' if spec.outbound else 'inbound'} sa {spec.id}"


def _engine(held: HeldSa) -> AnySa:
    return cast(AnySa, held.engine)
