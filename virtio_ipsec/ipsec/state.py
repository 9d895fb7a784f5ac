"""What an SA has used up: what it takes to go on elsewhere, or after a crash, with the same key.

Keys are no part of it. Sequence numbers, IVs and what has arrived are not secret: they were on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from virtio_ipsec.errors import ConfigError, Reason
from virtio_ipsec.ipsec.params import BadSaParameters

MAX_WINDOW = 4096
_LAST = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SaState:
    """``sequence``: outbound the number used last, inbound the highest one that was authenticated. ``iv_base``:
    outbound, of counter IVs. ``seen``: inbound, of the ``window`` numbers up to ``sequence``; bit n: ``sequence`` - n
    has arrived. ``refused``: packets by reason."""

    sequence: int
    packets: int
    bytes: int
    iv_base: int = 0
    window: int = 0
    seen: int = 0
    refused: Mapping[Reason, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Made of what JSON has; ``seen`` in hexadecimal digits."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        refused = {reason.value: count for reason, count in self.refused.items()}
        return {**numbers, "seen": f"{self.seen:x}", "refused": refused}

    @classmethod
    def from_json(cls, given: object) -> SaState:
        """From what another process sent. ConfigError unless :meth:`to_json` could have made it."""
        if not isinstance(given, dict) or set(given) != {*_NUMBERS, "seen", "refused"}:
            raise ConfigError(f"the state of an SA has {', '.join(_NUMBERS)}, seen and refused")
        for name, limit in _NUMBERS.items():
            _number(name, given[name], limit)
        seen, refused = given["seen"], given["refused"]
        if (
            not isinstance(seen, str)
            or not 0 < len(seen) <= MAX_WINDOW // 4
            or set(seen) - set("0123456789abcdef")
        ):
            raise ConfigError("seen must be lower-case hexadecimal digits")
        if int(seen, 16) >> given["window"]:
            raise ConfigError("seen tells of more numbers than the window has")
        if not isinstance(refused, dict) or not set(refused) <= {reason.value for reason in Reason}:
            raise ConfigError("refused must count packets by reason")
        for name, count in refused.items():
            _number(name, count, _LAST)
        counts = {Reason(name): count for name, count in refused.items()}
        return cls(**{name: given[name] for name in _NUMBERS}, seen=int(seen, 16), refused=counts)


_NUMBERS = {"sequence": _LAST, "packets": _LAST, "bytes": _LAST, "iv_base": _LAST, "window": MAX_WINDOW}


def _number(name: str, value: object, limit: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ConfigError(f"{name} must be a whole number from 0 to {limit}")


def goes_back() -> BadSaParameters:
    """What an SA cannot go on from."""
    return BadSaParameters(
        "sequence",
        "is below what the SA has used, beyond what it can have, or belongs to other IVs than those used",
    )


def destroyed() -> BadSaParameters:
    """There is nothing left to go on."""
    return BadSaParameters("resource_id", "the SA was destroyed")
