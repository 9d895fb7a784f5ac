"""A judge: code that looks at a trace for one clause, and says of each situation in it whether the clause holds.

Judges have their own view of frames, headers and selectors, though our driver has one, too: who shares code with a
driver does not see where that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from virtio_ipsec.conformance.monitor.life import Run
from virtio_ipsec.specification import Clause, clause


@dataclass(frozen=True, slots=True)
class Finding:
    """One situation in which the clause has something to say. ``at``: the place in the trace that shows it.
    ``advisory``: where it does not hold, that is a warning even under a MUST."""

    holds: bool
    expected: str
    seen: str
    at: int
    advisory: bool = False


JudgeBody = Callable[[Run], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge of one clause. ``when``: the situation that has to occur before there is a verdict; ``shown``: what the
    transport has to show for it, as :class:`~virtio_ipsec.transport.monitor.events.Began` names it."""

    id: str
    title: str
    doc: str
    clauses: tuple[str, ...]
    when: str
    shown: frozenset[str]
    body: JudgeBody

    @property
    def needs(self) -> frozenset[str]:
        """A judge needs nothing of a device."""
        return frozenset()

    def clauses_in(self, dialect: str) -> tuple[Clause, ...]:
        """The clause, where the dialect has it."""
        return tuple(c for c in map(clause, self.clauses) if dialect in c.dialects)


_registry: dict[str, Judge] = {}


def judge(*clauses: str, when: str, shown: str = "") -> Callable[[JudgeBody], JudgeBody]:
    """Register the decorated function as the judge of each of ``clauses``, which say the same.

    Raises ValueError for a second judge of a clause, KeyError for a clause that does not exist.
    """

    def register(body: JudgeBody) -> JudgeBody:
        doc = (body.__doc__ or "").strip()
        for name in clauses:
            if name in _registry or not doc:
                raise ValueError(f"judge of {name}: there is one already, or no docstring")
            clause(name)
            _registry[name] = Judge(
                f"driver-{name.lower()}",
                doc.splitlines()[0],
                doc,
                (name,),
                when,
                frozenset(shown.split()),
                body,
            )
        return body

    return register


@cache
def load_judges() -> tuple[Judge, ...]:
    """All judges, in the order of their clauses' ids."""
    from virtio_ipsec.conformance.monitor import judges

    for module in iter_modules(judges.__path__):
        import_module(f"{judges.__name__}.{module.name}")
    return tuple(_registry[name] for name in sorted(_registry))
