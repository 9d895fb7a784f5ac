"""Faults that were looked at: nobody who drives the device can see them, or the text leaves open what they change."""

from __future__ import annotations

import tomllib
from pathlib import Path

LIST = Path(__file__).with_name("reviewed.toml")


def load() -> dict[str, str]:
    """Name of a fault -> why the suite need not notice it. ValueError for a fault that stands there twice."""
    found: dict[str, str] = {}
    for entry in tomllib.loads(LIST.read_text())["review"]:
        for name in entry["faults"]:
            if name in found:
                raise ValueError(f"{LIST.name}: {name} stands there twice")
            found[name] = entry["reason"]
    return found
