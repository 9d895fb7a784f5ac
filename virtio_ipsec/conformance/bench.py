"""What a case works with: a device brought up step by step, commands and frames sent byte for byte.

Unlike `driver.Driver` the bench obeys no rule that a case does not ask for. Keys it makes follow from the seed and
the case, like all test data: good for nothing but tests.
Everything that goes through is traced, with key and salt bytes masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from virtio_ipsec.conformance.admin import AdminBench
from virtio_ipsec.conformance.case import NEEDS
from virtio_ipsec.conformance.hexdiff import hex_diff
from virtio_ipsec.conformance.packets import PacketBench
from virtio_ipsec.conformance.pci import Registers
from virtio_ipsec.conformance.queues import Queues
from virtio_ipsec.conformance.result import Check, failing_verdict
from virtio_ipsec.conformance.target import Owner, Target
from virtio_ipsec.conformance.trace import Trace
from virtio_ipsec.conformance.verdict import CheckFailed, Unsupported, Verdict, Wedged
from virtio_ipsec.errors import CommandFailed
from virtio_ipsec.specification import clause
from virtio_ipsec.wire.numbers import CapId, Feature, Status, has, mask

if TYPE_CHECKING:
    from virtio_ipsec.conformance.case import Case
    from virtio_ipsec.conformance.sas import Caps
    from virtio_ipsec.transport.virtio_pci.access import FunctionAccess

T = TypeVar("T")

#: Virtual functions that cases about members need.
MEMBERS = 2
#: Packets of a long run through one SA, where the target does not say how many.
LONG_RUN = 20_000
#: Items of a sweep in a thin run.
THIN = 8
#: Accepted by default when offered: enough for IPsec and flow filters, nothing that changes the packets.
WANTED = mask(
    Feature.F_VERSION_1,
    Feature.F_ADMIN_VQ,
    Feature.F_RING_RESET,
    Feature.NET_F_MAC,
    Feature.NET_F_STATUS,
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_MQ,
    Feature.NET_F_MRG_RXBUF,
    Feature.NET_F_OUT_NET_HEADER,
    Feature.NET_F_IPSEC,
)


class Bench:
    """One case's view of the target.

    ``target`` is raw; ``admin`` sends administration commands; ``packets`` sends and receives frames; ``queues``
    holds the virtqueues. ``features`` are those negotiated by :meth:`start`. ``thin``: see :meth:`sweep`; after
    ``unhurried`` seconds the case is so in any event.
    """

    def __init__(
        self, target: Target, rng: Random, case: Case, *, thin: bool = False, unhurried: float | None = None
    ) -> None:
        self.target = target
        self.dialect = target.dialect
        self.rng = rng
        self.case = case
        self._thin = thin
        self._thin_from = None if unhurried is None else monotonic() + unhurried
        self.trace = Trace()
        self.checks: list[Check] = []
        self.readings: dict[str, str] = {}
        #: What a reader of the verdict has to know, whatever it is; each once.
        self.remarks: dict[str, None] = {}
        self.features = 0
        self.queues = Queues(target, self.trace)
        self.admin = AdminBench(self)
        self.packets = PacketBench(self)
        #: The device's IPsec capabilities once a case has read them: `sas.make` stays within them.
        self.sa_caps: Caps | None = None
        self._members: list[Bench] = []

    @property
    def long_run(self) -> int:
        """Packets of one SA that a case about patterns in them sends."""
        return int(getattr(self.target, "long_run", LONG_RUN))

    @property
    def owner(self) -> Owner:
        """The target as the owner of an SR-IOV group; a case asks for it by the need ``members``."""
        if not isinstance(self.target, Owner):
            raise Unsupported(NEEDS["members"])
        return self.target

    @property
    def _access(self) -> FunctionAccess | None:
        # A wire may have been put beside the target that has it.
        return getattr(self.target, "access", None)

    @property
    def pci(self) -> Registers:
        """The registers of the target's PCI function; a case asks for them by the need ``pci``."""
        if self._access is None:
            raise Unsupported(NEEDS["pci"])
        return Registers(self._access)

    def member(self, number: int) -> Bench:
        """A bench around a virtual function of the target. What it records belongs to this case."""
        bench = Bench(self.owner.member(number), self.rng, self.case, thin=self._thin)
        bench.checks, bench.readings, bench.trace = self.checks, self.readings, self.trace
        bench.remarks = self.remarks
        bench.queues = Queues(bench.target, self.trace)
        self._members.append(bench)
        return bench

    # -- life cycle ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the device and forget all queues, members and theirs."""
        self.target.reset()
        self.forget()

    def forget(self) -> None:
        """Give all memory back, for the device has been reset or will be before anything else happens."""
        for member in self._members:
            member.forget()
        self._members.clear()
        self.queues.forget()
        self.packets.forget()
        self.features = 0

    def negotiate(self, features: int) -> bool:
        """Reset, then go up to FEATURES_OK with exactly these features; whether FEATURES_OK stayed set."""
        self.reset()
        target = self.target
        target.write_status(Status.ACKNOWLEDGE)
        target.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        target.write_driver_features(features)
        target.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        accepted = bool(target.status() & Status.FEATURES_OK)
        self.features = features if accepted else 0
        return accepted

    def start(
        self, *, want: Iterable[Feature] = (), without: Iterable[Feature] = (), driver_ok: bool = True
    ) -> None:
        """Bring the device up with the usual features that it offers, plus ``want``, minus ``without``.

        All queues are set up. Raises Unsupported when a wanted feature is not offered.
        """
        offered = self.target.device_features()
        wanted = mask(*want)
        if missing := wanted & ~offered:
            names = ", ".join(f.name for f in Feature if has(missing, f))
            raise Unsupported(f"the device does not offer {names}")
        features = (offered & WANTED | wanted) & ~mask(*without)
        if not self.negotiate(features):
            raise CheckFailed(f"the device refused features {features:#x}")
        self.queues.enable_all(features)
        if driver_ok:
            self.driver_ok()

    def driver_ok(self) -> None:
        """Set DRIVER_OK."""
        self.target.write_status(self.target.status() | Status.DRIVER_OK)

    def offers(self, need: str) -> bool:
        """Whether the device or the test bed has what a case's ``needs`` names. Leaves the device in use."""
        offered = self.target.device_features()
        features = {
            "admin": Feature.F_ADMIN_VQ,
            "ctrl_vq": Feature.NET_F_CTRL_VQ,
            "queue_reset": Feature.F_RING_RESET,
            "mq": Feature.NET_F_MQ,
        }
        if need in features:
            return has(offered, features[need])
        if need == "wire":
            return self.target.has_wire
        if need == "status":
            return getattr(self.target, "keeps_status", True)
        if need == "pci":
            return self._access is not None
        if need == "members":
            return isinstance(self.target, Owner) and self.target.total_vfs >= MEMBERS
        if need == "modify_query":
            return self.dialect.supports_modify_query
        if not has(offered, Feature.F_ADMIN_VQ) or (
            need == "ipsec" and not has(offered, Feature.NET_F_IPSEC)
        ):
            return False
        self.start()
        try:
            listed = self.admin.use_everything().cap_ids()
        except CommandFailed:
            return True  # the case will show it
        wanted = {"ipsec": CapId.NET_IPSEC_SA_CAP, "flow_filter": CapId.NET_FF_RESOURCE_CAP}[need]
        # A device that offers the feature and does not list the capability breaks a MUST: let the case say so.
        return wanted in listed or need == "ipsec"

    # -- verdicts -----------------------------------------------------------------------------------------

    def check(
        self,
        clause_id: str,
        holds: bool,
        expected: str,
        seen: object = "something else",
        *,
        advisory: bool = False,
    ) -> bool:
        """Record whether a clause holds here: ``expected`` in words, ``seen`` as it came. Never raises.

        A clause that the dialect does not have is not recorded. ``advisory``: what does not hold is a warning
        even under a MUST, because the ledger or another keyword of the same sentence leaves it open.
        """
        if clause_id not in self.case.clauses:
            raise ValueError(f"case {self.case.id} checks {clause_id}, which it does not cite")
        if self.dialect.name in clause(clause_id).dialects:
            verdict = Verdict.PASS
            if not holds:
                verdict = Verdict.WARN if advisory else failing_verdict(clause(clause_id).level)
            self.checks.append(Check(clause_id, verdict, expected, "as expected" if holds else _shown(seen)))
        return holds

    def require(self, clause_id: str, holds: bool, expected: str, seen: object = "something else") -> None:
        """Like :meth:`check`, but ends the case when it does not hold: nothing after it would mean anything."""
        if not self.check(clause_id, holds, expected, seen):
            raise CheckFailed(expected)

    def same(self, wanted: bytes, found: bytes) -> bool:
        """Whether a packet is the wanted one; where not, the difference becomes evidence."""
        if wanted != found:
            self.trace.add("difference", "wanted (-), found (+)", hex_diff(wanted, found))
        return wanted == found

    def reading(self, entry: str, text: str) -> None:
        """Note which admitted reading of ledger ``entry`` the device follows."""
        self.readings[entry] = text

    def remark(self, text: str) -> None:
        """Something that the report says beside the verdict."""
        self.remarks[text] = None

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, done: Callable[[], bool], what: str, *, seconds: float | None = None) -> None:
        """Poll the target until ``done()`` is true; Wedged after its patience, or after ``seconds``."""
        limit = monotonic() + (self.target.patience if seconds is None else seconds)
        self.trace.awaited = what
        try:
            while not done():
                if monotonic() >= limit:
                    raise Wedged(f"no answer: {what}")
                self.target.poll(max(0.0, min(0.05, limit - monotonic())))
        finally:
            self.trace.awaited = ""

    # -- test data ----------------------------------------------------------------------------------------

    def octets(self, count: int) -> bytes:
        """Random octets of this case: the same in every run with the same seed."""
        return self.rng.randbytes(count)

    def sweep(self, items: Iterable[T]) -> list[T]:
        """All the items that a case goes through; in a thin run the ends and a few in between.

        Where the target is so slow that the case would be ended before it has come to a verdict, samples are all
        that is left of it, and the report says so.
        """
        every = list(items)
        if len(every) <= THIN:
            return every
        if not self._thin and self._thin_from is not None and monotonic() >= self._thin_from:
            self._thin = True
            self.remark("the target is slow: of what was left after half of the time, samples were tried")
        if not self._thin:
            return every
        chosen = sorted(self.rng.sample(range(1, len(every) - 1), THIN - 2))
        return [every[0], *(every[at] for at in chosen), every[-1]]


def _shown(seen: object) -> str:
    """What was seen, octets as hex."""
    if isinstance(seen, bytes | bytearray):
        return seen.hex() or "nothing"
    if isinstance(seen, list):
        return f"[{', '.join(_shown(each) if isinstance(each, bytes) else repr(each) for each in seen)}]"
    return str(seen)
