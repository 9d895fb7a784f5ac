"""`ctl top`: the busiest SAs and the counters that move, look by look."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from virtio_ipsec.cli.exits import DONE
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.control_client import ControlClient

_CLEAR = "\x1b[H\x1b[2J"
_LEAST_INTERVAL = 0.1

_Key = tuple[str, int]


def watch(
    client: ControlClient, sas: Callable[[], Iterable[dict[str, Any]]], interval: float, count: int | None
) -> int:
    """Look every ``interval`` seconds, ``count`` times or until interrupted. On a terminal each look replaces the one
    before."""
    if interval < _LEAST_INTERVAL:
        raise ConfigError(f"--interval {interval}: at least {_LEAST_INTERVAL} seconds")
    before: dict[_Key, dict[str, Any]] = {}
    counted: dict[str, int] = {}
    last = time.monotonic()
    looks = 0
    try:
        while count is None or looks < count:
            if looks:
                time.sleep(interval)
            now = time.monotonic()
            found = {(entry["sa"]["direction"], entry["sa"]["id"]): entry for entry in sas()}
            counters = _counters(client)
            lines = page(found, before, counters, counted, now - last if looks else 0.0)
            room = shutil.get_terminal_size().lines - 1 if sys.stdout.isatty() else len(lines)
            print((_CLEAR if sys.stdout.isatty() else "") + "\n".join(lines[:room]), flush=True)
            before, counted, last, looks = found, counters, now, looks + 1
    except KeyboardInterrupt:
        print()
    return DONE


def page(
    found: dict[_Key, dict[str, Any]],
    before: dict[_Key, dict[str, Any]],
    counters: dict[str, int],
    counted: dict[str, int],
    seconds: float,
) -> list[str]:
    """One look: SAs by octets per second, then counters that have moved. ``seconds`` since the look before; 0: none."""
    rows = []
    for key, entry in found.items():
        old = before.get(key, entry)
        rates = [
            max(0, entry[name] - old[name]) / seconds if seconds else 0.0 for name in ("packets", "bytes")
        ]
        refused = sum(entry["refused"].values())
        rows.append((rates[1], rates[0], refused, key, entry))
    rows.sort(key=lambda row: (-row[0], -row[1], row[3]))
    octets, packets = sum(row[0] for row in rows), sum(row[1] for row in rows)
    lines = [f"{len(rows)} SAs, {packets:.0f} packets/s, {octets * 8 / 1e6:.3f} Mbit/s"]
    lines.append(
        f"{'direction':<9} {'id':>7} {'spi':<10} {'packets/s':>10} {'Mbit/s':>10} {'refused':>9}  sequence"
    )
    for octets, packets, refused, (direction, id), entry in rows:
        marks = " soft limit" * entry["soft_expired"] + " frozen" * entry["frozen"]
        lines.append(
            f"{direction:<9} {id:>7} 0x{entry['sa']['spi']:08x} {packets:>10.0f} {octets * 8 / 1e6:>10.3f} "
            f"{refused:>9}  {entry['sequence']}{marks}"
        )
    moved = {name: count - counted.get(name, count) for name, count in counters.items()} if counted else {}
    lines += [f"{change / seconds:>12.0f}/s {name}" for name, change in moved.items() if change and seconds]
    return lines


def _counters(client: ControlClient) -> dict[str, int]:
    found: dict[str, int] = client.call("counters")["counters"]
    return found
