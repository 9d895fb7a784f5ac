"""Line charts as SVG, without a library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 560, 400  # of one chart
LEFT, RIGHT, TOP, BOTTOM = 62, 118, 46, 52
COLOURS = ("#0b5fa5", "#c8501e", "#3a7d2c", "#7b3fa0", "#9a7400", "#008b8b", "#b0174f", "#555555")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Both axes logarithmic; every x value that occurs gets a tick."""

    title: str
    x: str
    y: str
    series: Mapping[str, Points]


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from the one below `low` to the one above `high`."""
    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low)
    last = min(i for i, step in enumerate(steps) if step >= high)
    return steps[first : last + 1]


def short(value: float) -> str:
    for limit, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= limit and value % limit == 0:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def text(x: float, y: float, words: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{escape(words)}</text>'


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least `gap` apart."""
    placed = list(wanted)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for before, i in itertools.pairwise(order):
        placed[i] = max(placed[i], placed[before] + gap)
    beyond = max(0.0, max(placed) - (HEIGHT - BOTTOM))
    return [y - beyond for y in placed]


def chart(made: Chart, left: float, top: float) -> str:
    every = [point for points in made.series.values() for point in points]
    xs = sorted({x for x, _ in every})
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    low, high = math.log(y_ticks[0]), math.log(y_ticks[-1])
    first, last = math.log(xs[0]), math.log(xs[-1])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + (math.log(x) - first) / ((last - first) or 1) * (right - LEFT)

    def at_y(y: float) -> float:
        return bottom - (math.log(y) - low) / ((high - low) or 1) * (bottom - TOP)

    parts = [f'<g transform="translate({left},{top})">', text(LEFT, 24, made.title, 'class="title"')]
    for y in y_ticks:
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" class="grid"/>')
        parts.append(text(LEFT - 8, at_y(y) + 4, f"{y:g}", 'text-anchor="end"'))
    for x, after in zip(xs, [*xs[1:], math.inf], strict=True):
        parts.append(
            f'<line x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{bottom}" y2="{bottom + 5}" class="axis"/>'
        )
        if after == math.inf or at_x(after) - at_x(x) > 28:
            parts.append(text(at_x(x), bottom + 18, short(x), 'text-anchor="middle"'))
    parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    parts.append(text((LEFT + right) / 2, bottom + 38, made.x, 'text-anchor="middle"'))
    middle = (TOP + bottom) / 2
    parts.append(text(16, middle, made.y, f'text-anchor="middle" transform="rotate(-90 16 {middle})"'))
    labels = spread([at_y(points[-1][1]) for points in made.series.values()], 15)
    for index, ((name, points), label) in enumerate(zip(made.series.items(), labels, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        end_x, end_y = points[-1]
        leader = f"{at_x(end_x) + 4:.1f},{at_y(end_y):.1f} {right + 14:.1f},{label:.1f}"
        parts.append(f'<polyline points="{leader}" fill="none" stroke="{colour}" stroke-width="0.8"/>')
        parts.append(text(right + 17, label + 4, name, f'fill="{colour}"'))
    return "\n".join([*parts, "</g>"])


def draw(charts: Sequence[Chart], heading: str, foot: Sequence[str]) -> str:
    """An SVG page with two charts in a row."""
    rows = (len(charts) + 1) // 2
    width, height = WIDTH * min(2, len(charts)) + 20, HEIGHT * rows + 84
    body = [
        chart(made, 10 + WIDTH * (i % 2), 40 + HEIGHT * (i // 2))
        for i, made in enumerate(charts)
    ]  # fmt: skip
    style = (
        "text{font:12px sans-serif;fill:#222} .title{font-size:14px;font-weight:bold} "
        ".grid{stroke:#ddd} .axis{stroke:#444}"
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>{style}</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(20, 28, heading, 'style="font-size:16px;font-weight:bold"'),
        *body,
        *(text(20, height - 26 + 15 * i, line, 'style="font-size:11px;fill:#555"') for i, line in enumerate(foot)),
        "</svg>\n",
    ])  # fmt: skip
