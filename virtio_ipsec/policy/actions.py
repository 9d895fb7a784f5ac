"""What a rule can say about a packet."""

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """What to do with a packet that a rule matches."""

    PROTECT = "protect"
    BYPASS = "bypass"
    DROP = "drop"
