"""Two octet strings side by side: what was wanted, what was found, and where they part."""

from __future__ import annotations

_ROW = 16
#: Rows around a difference that are shown too.
_CONTEXT = 1


def hex_diff(wanted: bytes, found: bytes, most: int = 16) -> tuple[str, ...]:
    """Lines of at most ``most`` rows that differ: ``-`` what was wanted, ``+`` what was found, ``^`` where."""
    rows = range(0, max(len(wanted), len(found), 1), _ROW)
    differing = [at for at in rows if wanted[at : at + _ROW] != found[at : at + _ROW]]
    shown = set(differing[:most])
    near = {at + step * _ROW for at in shown for step in range(-_CONTEXT, _CONTEXT + 1)}
    lines = []
    if len(wanted) != len(found):
        lines.append(f"{len(wanted)} octets wanted, {len(found)} found")
    before = -_ROW
    for at in rows:
        if at not in near:
            continue
        if at != before + _ROW:
            lines.append("  ...")
        before = at
        first, second = wanted[at : at + _ROW], found[at : at + _ROW]
        if at in shown:
            lines += [f"- {at:04x}  {first.hex(' ')}", f"+ {at:04x}  {second.hex(' ')}"]
            lines.append(" " * 8 + _marks(first, second).rstrip())
        elif first == second:
            lines.append(f"  {at:04x}  {first.hex(' ')}")
    if len(differing) > most:
        lines.append(f"  and {len(differing) - most} more rows of {_ROW} octets differ")
    return tuple(lines)


def _marks(first: bytes, second: bytes) -> str:
    return " ".join(
        "  " if first[i : i + 1] == second[i : i + 1] else "^^" for i in range(max(len(first), len(second)))
    )
