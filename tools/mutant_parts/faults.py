"""Small faults in the source of the device model: what somebody who writes a device gets wrong by a slip.

A fault is a place in the syntax tree of one module and what stands there instead. `run_with` puts it into a fresh
process and asks the suite.
"""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
#: The Python path of the device; without what only counts, and what refuses bad settings of our own device.
ROOM = ROOT / "virtio_ipsec/device"
LEFT_OUT = {"__init__", "config", "counters", "engines", "fast", "fast_rings"}
#: Errors that a device answers with: a slip takes one for another.
ANSWERS = (
    "InvalidOpcode",
    "InvalidField",
    "InvalidGroup",
    "InvalidMember",
    "NoSuchObject",
    "AlreadyExists",
    "Busy",
)
SECONDS = 120

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Mod: ast.FloorDiv, ast.FloorDiv: ast.Mod,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """The ``number``-th change that can be made in ``module``; before and after as source."""

    module: str
    number: int
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}: {self.before}  ->  {self.after}"


def modules() -> list[str]:
    """The modules in which faults are made."""
    return sorted(path.stem for path in ROOM.glob("*.py") if path.stem not in LEFT_OUT)


def faults(module: str) -> list[Fault]:
    """All faults that can be made in a module, in the order of its source."""
    return [fault for fault, _ in _changes(module)]


def mutated(module: str, number: int) -> ast.Module:
    """The module's syntax tree with that fault."""
    for fault, change in _changes(module):
        if fault.number == number:
            return change()
    raise IndexError(f"{module} has no fault {number}")


def sample(count: int, seed: int) -> list[Fault]:
    """``count`` faults drawn from all of them: the same ones for the same seed and source."""
    every = [fault for module in modules() for fault in faults(module)]
    return sorted(Random(seed).sample(every, min(count, len(every))), key=lambda f: (f.module, f.number))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the suite made of a fault: the first case that noticed it and its verdict; "" for none."""

    fault: Fault
    case: str
    verdict: str

    @property
    def noticed(self) -> bool:
        """Whether something was found wrong."""
        return bool(self.verdict)


def run_with(fault: Fault) -> Outcome:
    """Ask the suite about a device with this fault, in a process of its own."""
    command = [sys.executable, "-m", "tools.mutant_parts.one", fault.module, str(fault.number)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(fault, "-", "HUNG")
    if done.returncode:
        return Outcome(fault, "-", "DEAD")  # the device does not even come up
    case, _, verdict = done.stdout.strip().partition(" ")
    return Outcome(fault, case, verdict)


def _changes(module: str) -> Iterator[tuple[Fault, Callable[[], ast.Module]]]:
    tree = ast.parse((ROOM / f"{module}.py").read_text())
    number = 0
    for path, node in _walk(tree, ()):
        for replacement in _slips(node):
            fault = Fault(module, number, getattr(node, "lineno", 0), _text(node), _text(replacement))
            number += 1

            def change(
                path: tuple[tuple[str, int | None], ...] = path, new: ast.AST = replacement
            ) -> ast.Module:
                changed = copy.deepcopy(tree)
                _put(changed, path, new)
                return ast.fix_missing_locations(changed)

            yield fault, change


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _walk(
    node: ast.AST, path: tuple[tuple[str, int | None], ...]
) -> Iterator[tuple[tuple[tuple[str, int | None], ...], ast.AST]]:
    """Every node with the way to it, without what does nothing when the device runs."""
    yield path, node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        if isinstance(node, ast.Call) and name == "args" and _is_message(node):
            continue
        if isinstance(value, ast.AST):
            yield from _walk(value, (*path, (name, None)))
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, ast.AST) and not _is_silent(item):
                    yield from _walk(item, (*path, (name, place)))


def _is_message(call: ast.Call) -> bool:
    """The arguments of an error, of which only words follow."""
    return (
        isinstance(call.func, ast.Name)
        and call.func.id[:1].isupper()
        and call.func.id.endswith(("Error", *ANSWERS))
    )


def _is_silent(node: ast.AST) -> bool:
    """Docstrings, imports, and counting: nothing of it shows in what the device does."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    return "counters." in ast.unparse(node)


def _put(tree: ast.AST, path: tuple[tuple[str, int | None], ...], new: ast.AST) -> None:
    at = tree
    for name, place in path[:-1]:
        value = getattr(at, name)
        at = value if place is None else value[place]
    name, place = path[-1]
    if place is None:
        setattr(at, name, new)
    else:
        getattr(at, name)[place] = new


def _slips(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand there by mistake."""
    if isinstance(node, ast.Compare) and len(node.ops) >= 1:
        for place, operator in enumerate(node.ops):
            other = _COMPARED[type(operator)]()
            ops = [*node.ops[:place], other, *node.ops[place + 1 :]]
            yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        yield ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        if node.value > 0:
            yield ast.Constant(node.value - 1)
    elif (
        isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    ):
        name = node.exc.func.id
        if name in ANSWERS:
            other_name = ANSWERS[(ANSWERS.index(name) + 1) % len(ANSWERS)]
            call = ast.Call(ast.Name(other_name, ast.Load()), node.exc.args, node.exc.keywords)
            yield ast.Raise(call, node.cause)
        yield ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
