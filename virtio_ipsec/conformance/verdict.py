"""What a case can end with, and what stops one early."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from virtio_ipsec.errors import VirtioIpsecError


class Verdict(StrEnum):
    """The outcome of a case or of a clause.

    A skip is never a pass. UNSUPPORTED (the device does not offer what the clause is about, or the test bed cannot
    reach it) and NOT SEEN (the driver under test never came into the situation) are counted apart from both.
    """

    PASS = "PASS"  # noqa: S105
    WARN = "WARN"
    FAIL = "FAIL"
    UNSUPPORTED = "UNSUPPORTED"
    NOT_SEEN = "NOT SEEN"
    SKIP = "SKIP"
    ERROR = "ERROR"
    WEDGED = "WEDGED"


#: From the mildest to the gravest: of several outcomes the gravest stands.
GRAVITY = (
    Verdict.PASS,
    Verdict.UNSUPPORTED,
    Verdict.NOT_SEEN,
    Verdict.SKIP,
    Verdict.WARN,
    Verdict.FAIL,
    Verdict.ERROR,
    Verdict.WEDGED,
)
#: Verdicts that make a run fail when the clause is a MUST.
FATAL = frozenset({Verdict.FAIL, Verdict.ERROR, Verdict.WEDGED})

#: Verdicts that say nothing about who is tested.
UNDECIDED = frozenset({Verdict.SKIP, Verdict.UNSUPPORTED, Verdict.NOT_SEEN})


def gravest(verdicts: Sequence[Verdict]) -> Verdict:
    """The gravest of the verdicts; SKIP for none at all."""
    return max(verdicts, key=GRAVITY.index) if verdicts else Verdict.SKIP


class CaseStopped(VirtioIpsecError):
    """Base of what ends a case before its last line."""


class CheckFailed(CaseStopped):
    """A `require` did not hold: the rest of the case would say nothing."""


class Unsupported(CaseStopped):
    """The device does not offer, or the test bed cannot reach, what the case needs."""


class Wedged(CaseStopped):
    """The device stopped answering."""
