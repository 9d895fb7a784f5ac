"""Runs cases in processes of their own, several at a time, and ends a process whose target never returns.

Each process opens the target for itself, so more than one needs a target that can be opened more than once. A case
that exceeds its time is WEDGED; the next one meets a fresh process, as after one that the device has not survived.
What a case was at when its time ran out, a thread beside it tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from time import monotonic, perf_counter

from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.result import CaseResult, Deviation, Identity, Report
from virtio_ipsec.conformance.runner import SANITY, Progress, identity_of, order_of, report_of, run_case
from virtio_ipsec.conformance.target import Target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.conformance.watcher import Last, Watcher
from virtio_ipsec.errors import ConfigError, TransportError, VirtioIpsecError

#: Seconds that one case may take unless said otherwise; the longest takes a fraction of one on loopback.
LIMIT = 60.0
#: Seconds beyond that, in which its process may say where the case is.
GRACE = 0.5
#: Cases one after the other that never end, after which the rest is not tried: a dead target is reported in minutes.
MOST_HANGS = 5

Open = Callable[[], AbstractContextManager[Target]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of. ``limit`` in seconds per case. ``reopen``: a target that hung is opened anew; else what
    is left of the run is WEDGED, too."""

    open: Open
    cases: Sequence[Case]
    seed: int = 0
    jobs: int = 1
    limit: float = LIMIT
    reopen: bool = True
    deviations: tuple[Deviation, ...] = ()


def run(plan: Plan, progress: Progress = lambda done, total, result: None) -> Report:
    """Run the cases of ``plan``. Raises what opening the target raises."""
    begin = perf_counter()
    order = order_of(plan.cases, plan.seed)
    sanity = [case for case in order if case.id == SANITY]
    between = deque(case for case in order if case.id != SANITY)
    team = _Team(plan, len(order), progress)
    try:
        # The first sanity run comes before everything, the last one after it.
        team.work(deque(sanity[:1]), 1)
        team.work(between, plan.jobs)
        team.work(deque(sanity[1:]), 1)
    finally:
        team.dismiss()
    return report_of(
        team.known_identity(),
        team.results,
        seed=plan.seed,
        seconds=perf_counter() - begin,
        deviations=plan.deviations,
    )


class _Worker:
    """One process with the target open. ``case`` is what it works at, until ``deadline``."""

    def __init__(self, plan: Plan) -> None:
        context = get_context("fork")
        self.connection, far = context.Pipe()
        self.process: ForkProcess = context.Process(
            target=_serve, args=(plan, far, self.connection), daemon=True
        )
        self.process.start()
        far.close()
        self.case: Case | None = None
        self.deadline = monotonic() + plan.limit
        #: It has opened the target.
        self.ready = False

    def give(self, case: Case, limit: float) -> None:
        self.case = case
        self.deadline = monotonic() + limit + GRACE
        with suppress(OSError):  # it has ended meanwhile: its connection tells so
            self.connection.send(case.id)

    def end(self) -> None:
        self.connection.close()
        self.process.join(0.2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclass
class _Team:
    plan: Plan
    total: int
    progress: Progress
    workers: list[_Worker] = field(default_factory=list)
    results: list[CaseResult] = field(default_factory=list)
    #: Of the device, once a worker has opened it.
    identity: Identity | None = None
    #: Why the target is not tried any more.
    gone: str = ""
    #: Cases that have not ended since the last one that did.
    hangs: int = 0

    def known_identity(self) -> Identity:
        """Who was tested; every case has found that out first."""
        if self.identity is None:
            raise TransportError("nothing was run")
        return self.identity

    def work(self, cases: deque[Case], jobs: int) -> None:
        """All of ``cases``, by at most ``jobs`` workers."""
        while cases or any(worker.case for worker in self.workers):
            while self.gone and cases:  # what other workers are at comes to its own end
                self._note(self._wedged(cases.popleft(), self.gone))
            for worker in self.workers:
                if worker.case is None and worker.ready and cases:
                    worker.give(cases.popleft(), self.plan.limit)
            if not any(worker.case for worker in self.workers) and not cases:
                return
            while len(self.workers) < min(jobs, len(self.workers) + len(cases)):
                self.workers.append(_Worker(self.plan))
            self._await()

    def dismiss(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()

    def _await(self) -> None:
        """Until a worker says something, or has taken too long."""
        busy = [worker for worker in self.workers if worker.case or not worker.ready]
        first = min(worker.deadline for worker in busy)
        spoke = wait([worker.connection for worker in busy], max(0.0, first - monotonic()))
        for worker in busy:
            if worker.connection in spoke:
                self._hear(worker)
            elif monotonic() >= worker.deadline:
                unheard = ", and its process does not say where it is" if worker.case else ""
                self._give_up(worker, f"no end within {self.plan.limit:g} s{unheard}")

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._give_up(worker, f"its process ended with code {worker.process.exitcode}")
            return
        if isinstance(said, Exception):
            if self.identity is None:
                raise said
            self._give_up(worker, str(said))
        elif isinstance(said, Identity):
            worker.ready = True
            self.identity = self.identity or said
        elif isinstance(said, Last):
            self._give_up(worker, said.result.reason, said.result)
        else:
            worker.case = None
            self.hangs = 0
            self._note(said)

    def _give_up(self, worker: _Worker, reason: str, found: CaseResult | None = None) -> None:
        self.workers.remove(worker)
        worker.process.kill()
        worker.end()
        if worker.case is not None:
            self._note(found or self._wedged(worker.case, reason))
            self.hangs += 1
            if self.hangs == MOST_HANGS:
                self.gone = f"{MOST_HANGS} cases one after the other came to no end; this one was not tried"
            if not self.plan.reopen:
                self.gone = f"the device hung in {worker.case.id} and cannot be reset"
        elif self.identity is None:
            raise TransportError(f"the target does not open: {reason}")
        else:
            self.gone = f"the target does not open any more: {reason}"

    def _wedged(self, case: Case, reason: str) -> CaseResult:
        clauses = tuple(clause.id for clause in case.clauses_in(self.known_identity().dialect))
        return CaseResult(case.id, case.title, clauses, Verdict.WEDGED, (), reason)

    def _note(self, result: CaseResult) -> None:
        self.results.append(result)
        self.progress(len(self.results), self.total, result)


def _with_target(found: CaseResult, target: Target) -> CaseResult | Last:
    """What is to be told of a case, now that it is known whether the device has survived it."""
    if found.verdict not in (Verdict.ERROR, Verdict.WEDGED):
        return found
    try:
        target.reset()
    except Exception as error:  # whatever a target raises that is not there any more
        reason = f"{found.reason}; the device does not answer any more: {error}"
        return Last(replace(found, verdict=Verdict.WEDGED, reason=reason))
    return found


def _serve(plan: Plan, connection: Connection, near: Connection) -> None:
    """A worker's life: says who the device is, then runs the cases whose ids it gets until the pipe ends."""
    near.close()
    cases = {case.id: case for case in plan.cases}
    known: dict[str, bool] = {}
    try:
        with plan.open() as target:
            connection.send(identity_of(target))
            while True:
                case = cases[connection.recv()]
                with Watcher(connection.send, plan.limit) as watcher:
                    found = run_case(case, target, plan.seed, known, limit=plan.limit, begun=watcher.begun)
                    said = _with_target(found, target)
                if not watcher.has_told:
                    connection.send(said)
    except KeyboardInterrupt:
        return
    except Exception as error:  # of a target that is not ours: one line like any other, and no traceback
        with suppress(OSError):  # nobody is there any more who would hear it
            connection.send(_portable(error))


def _portable(error: Exception) -> VirtioIpsecError:
    """An error that another process can read: a class of a target's own may not be made again from its text."""
    if isinstance(error, ConfigError):
        return ConfigError(str(error))
    if isinstance(error, VirtioIpsecError):
        return TransportError(str(error))
    return TransportError(f"unexpected {type(error).__name__}: {error}")
