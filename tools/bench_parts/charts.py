"""What tools/bench draws of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.bench_parts.cells import Cell
from tools.bench_parts.plot import Chart, Points

#: A line is the cells of one engine doing one kind of work.
Lines = Mapping[str, tuple[str, str]]


def of(cells: Sequence[Cell], best: str) -> list[Chart]:
    """Charts of whatever was measured; ``best`` is the engine that ESP uses."""
    made: list[Chart] = []
    for work in ("seal", "open"):
        engines = dict.fromkeys(cell.engine for cell in cells if cell.part == "kernels")
        made += _pair(cells, work, {engine: (engine, work) for engine in engines})
    whole = {"ESP out": ("C", "out"), "ESP in": ("C", "in"), "DPDK encrypt": ("dpdk", "encrypt")}
    whole |= {"transmit ring": ("C", "transmit"), "receive ring": ("C", "receive")}
    if any(cell.part in ("esp", "rings") for cell in cells):
        made += _pair(cells, "whole ESP packets", {**whole, f"{best} seal": (best, "seal")})
    return [chart for chart in made if chart.series]


def _pair(cells: Sequence[Cell], title: str, lines: Lines) -> tuple[Chart, Chart]:
    by_size = {name: _points(cells, line, "size", "gbits", sas={1, 64}) for name, line in lines.items()}
    by_sas = {name: _points(cells, line, "sas", "best", size={64}) for name, line in lines.items()}
    return (
        Chart(f"{title}, 64 SAs", "payload bytes", "Gbit/s", _drawn(by_size)),
        Chart(f"{title}, 64 B", "SAs, used in turn", "ns per packet", _drawn(by_sas)),
    )


def _points(
    cells: Sequence[Cell], line: tuple[str, str], x: str, y: str, **among: set[int]
) -> dict[float, float]:
    chosen = [
        c for c in cells if (c.engine, c.work) == line and all(getattr(c, k) in v for k, v in among.items())
    ]
    # DPDK has one session, all others 64 SAs; where both are there the larger number counts.
    return {getattr(cell, x): getattr(cell, y) for cell in sorted(chosen, key=lambda cell: cell.sas)}


def _drawn(series: Mapping[str, dict[float, float]]) -> dict[str, Points]:
    """A line has two points at least."""
    return {name: sorted(points.items()) for name, points in series.items() if len(points) > 1}
