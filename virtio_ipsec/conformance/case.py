"""A case: code that exercises a device and checks clauses. Registered by its decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from virtio_ipsec.specification import Clause, clause

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench

CaseBody = Callable[["Bench"], None]

#: What a case may need of the device or of the test bed, and what is missing when it is not there.
NEEDS = {
    "admin": "the device offers no administration virtqueue (VIRTIO_F_ADMIN_VQ)",
    "ipsec": "the device offers no VIRTIO_NET_F_IPSEC, or no IPsec capabilities",
    "flow_filter": "the device lists no flow-filter capabilities",
    "modify_query": "the dialect has no RESOURCE_OBJ_MODIFY and RESOURCE_OBJ_QUERY for SAs",
    "wire": "the test bed has no wire: nothing can be injected or captured",
    "ctrl_vq": "the device offers no control virtqueue (VIRTIO_NET_F_CTRL_VQ)",
    "status": "the back-end keeps no device status (VHOST_USER_PROTOCOL_F_STATUS)",
    "mq": "the device has a single queue pair",
    "members": "the device has no SR-IOV group of two members that the test bed reaches",
    "pci": "the test bed shows no PCI function",
    "queue_reset": "the device offers no VIRTIO_F_RING_RESET",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One case. ``id`` is stable and is how people name it; ``clauses`` are all the clauses it may check."""

    id: str
    title: str
    doc: str
    clauses: tuple[str, ...]
    needs: frozenset[str]
    body: CaseBody

    def clauses_in(self, dialect: str) -> tuple[Clause, ...]:
        """The cited clauses that the dialect has; a case with none does not run in that dialect."""
        return tuple(c for c in map(clause, self.clauses) if dialect in c.dialects)


_registry: dict[str, Case] = {}


def case(id: str, *clauses: str, needs: Iterable[str] = ()) -> Callable[[CaseBody], CaseBody]:
    """Register the decorated function as case ``id`` that cites ``clauses``.

    The first line of its docstring is the title that reports print. Raises ValueError for a duplicate id, an
    unknown need or no clause, KeyError for a clause that does not exist.
    """

    def register(body: CaseBody) -> CaseBody:
        doc = (body.__doc__ or "").strip()
        if id in _registry or not clauses or not doc:
            raise ValueError(f"case {id}: duplicate id, no clause or no docstring")
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"case {id}: unknown needs {sorted(unknown)}")
        for cited in clauses:
            clause(cited)
        _registry[id] = Case(id, doc.splitlines()[0], doc, clauses, frozenset(needs), body)
        return body

    return register


@cache
def load_cases() -> tuple[Case, ...]:
    """All cases of the suite, ordered by id. Importing the modules below ``cases`` registers them."""
    from virtio_ipsec.conformance import cases

    for module in iter_modules(cases.__path__):
        import_module(f"{cases.__name__}.{module.name}")
    return tuple(_registry[name] for name in sorted(_registry))
