"""Small faults in the source of the device model: what somebody who writes a device gets wrong by a slip.

A fault is a place in the syntax tree of one module and what stands there instead.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "virtio_ipsec"
#: Room -> what is left out of it: what only counts, what refuses bad settings of our own device or carries state from
#: one process to the next, and what is not the Python path.
ROOMS = {
    "device": {"__init__", "config", "counters", "engines", "fast", "fast_rings"},
    "ipsec": {"__init__", "state"},
}
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
#: Functions that only tell what has been counted.
ACCOUNTS = {"counters", "sa_counters", "counts"}
#: A statement is shown whole up to this many characters, else what is around the change.
SHOWN = 110
AROUND = 40

Path_ = tuple[tuple[str, int | None], ...]

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
    """The ``number``-th change that can be made in ``module`` ("room.name"), in the statement on ``lines``.

    ``name`` says where and what in words that outlive other changes of the source: function, statement before and
    after. ``inside``: within a function, so that only who runs these lines can notice.
    """

    module: str
    number: int
    lines: range
    name: str
    inside: bool

    def __str__(self) -> str:
        return self.name


def modules(rooms: tuple[str, ...] = tuple(ROOMS)) -> list[str]:
    """The modules in which faults are made."""
    found = ((room, path.stem) for room in rooms for path in (PACKAGE / room).glob("*.py"))
    return sorted(f"{room}.{name}" for room, name in found if name not in ROOMS[room])


def path_of(module: str) -> Path:
    """Its source file."""
    return PACKAGE / f"{module.replace('.', '/')}.py"


def users(module: str) -> list[str]:
    """The module itself and those that import from it."""
    words = f"from virtio_ipsec.{module} import"
    return [module, *(other for other in modules() if words in path_of(other).read_text())]


def faults(module: str) -> list[Fault]:
    """All faults that can be made in a module, in the order of its source."""
    tree = ast.parse(path_of(module).read_text())
    found = []
    seen: Counter[str] = Counter()
    for number, (path, new) in enumerate(_changes(tree)):
        statement, rest, function = _surroundings(tree, path)
        name = f"{'.'.join((module, *function))}: {_told(statement, rest, new)}"
        seen[name] += 1
        if seen[name] > 1:
            name += f" ({seen[name]})"
        inside = any(isinstance(node, ast.FunctionDef) for node in _way(tree, path[: len(path) - len(rest)]))
        found.append(Fault(module, number, _lines(statement), name, inside))
    return found


def mutated(module: str, number: int) -> ast.Module:
    """The module's syntax tree with that fault."""
    tree = ast.parse(path_of(module).read_text())
    for at, (path, new) in enumerate(_changes(tree)):
        if at == number:
            _put(tree, path, new)
            return ast.fix_missing_locations(tree)
    raise IndexError(f"{module} has no fault {number}")


def every(rooms: tuple[str, ...]) -> list[Fault]:
    """All faults of these rooms."""
    return [fault for module in modules(rooms) for fault in faults(module)]


def sample(count: int, seed: int, rooms: tuple[str, ...]) -> list[Fault]:
    """``count`` faults drawn from all of them: the same ones for the same seed and source."""
    possible = every(rooms)
    chosen = Random(seed).sample(possible, min(count, len(possible)))
    return sorted(chosen, key=lambda fault: (fault.module, fault.number))


def _changes(tree: ast.Module) -> Iterator[tuple[Path_, ast.AST]]:
    for path, node in list(_walk(tree, ())):
        for replacement in _slips(node):
            yield path, replacement


def _way(tree: ast.AST, path: Path_) -> Iterator[ast.AST]:
    """The nodes from the tree (itself left out) to the end of the path."""
    at: ast.AST = tree
    for name, place in path:
        value = getattr(at, name)
        at = value if place is None else value[place]
        yield at


def _surroundings(tree: ast.Module, path: Path_) -> tuple[ast.stmt, Path_, tuple[str, ...]]:
    """(the innermost statement, the way on from there, names of the classes and functions around it)."""
    statement, rest, names = None, path, []
    for depth, node in enumerate(_way(tree, path), 1):
        if isinstance(node, ast.stmt):
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                names.append(statement.name)
            statement, rest = node, path[depth:]
    if statement is None:
        raise ValueError("a change outside of any statement")
    return statement, rest, tuple(names)


def _lines(statement: ast.stmt) -> range:
    """The lines of a statement, without those of the block under it; of a function, whose defaults its callers see,
    all of them."""
    body = getattr(statement, "body", None) if not isinstance(statement, ast.FunctionDef) else None
    end = body[0].lineno if body else (statement.end_lineno or statement.lineno) + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _told(statement: ast.stmt, rest: Path_, new: ast.AST) -> str:
    """The statement before and after, on one line."""
    if not rest:
        before, after = _text(_head(statement)), _text(new)
    else:
        head = _head(statement)
        changed = copy.deepcopy(head)
        _put(changed, rest, new)
        before, after = _text(head), _text(changed)
    same = next(
        (at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after)
    )
    start = 0 if same <= SHOWN - AROUND else same - AROUND
    return f"{_cut(before, start)}  ->  {_cut(after, start)}"


def _cut(text: str, start: int) -> str:
    end = start + SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _head(statement: ast.stmt) -> ast.stmt:
    """The statement without the block under it."""
    head = copy.copy(statement)
    for name in ("body", "orelse", "finalbody", "handlers", "decorator_list"):
        if hasattr(head, name):
            setattr(head, name, [ast.Pass()] if name == "body" else [])
    return head


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    if hasattr(node, "body") and isinstance(node, ast.stmt):
        text = text.removesuffix("pass").rstrip()
    return text


def _walk(node: ast.AST, path: Path_) -> Iterator[tuple[Path_, ast.AST]]:
    """Every node with the way to it, without what does nothing when the device runs."""
    yield path, node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        if name == "args" and path and path[-1][0] == "exc":
            continue  # of an error only words follow
        if (
            isinstance(node, ast.If)
            and name in {"test", "body"}
            and "fast is not None" in ast.unparse(node.test)
        ):
            continue  # the path in C
        if isinstance(value, ast.AST):
            yield from _walk(value, (*path, (name, None)))
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, ast.AST) and not _is_silent(item):
                    yield from _walk(item, (*path, (name, place)))


def _is_silent(node: ast.AST) -> bool:
    """Docstrings, imports, shapes for the type checker, and counting: nothing of it shows in what the device does."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
        return True
    if isinstance(node, ast.FunctionDef) and node.name in ACCOUNTS:
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    return "counters." in ast.unparse(node)


def _put(tree: ast.AST, path: Path_, new: ast.AST) -> None:
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
