"""One device with one fault under the whole suite, both dialects: prints the first case that notices, and how."""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from tools.mutant_parts.faults import ANSWERS, ROOM, mutated


class _Faulty(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module with its fault."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Faulty(fullname, self._path, self._code)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=self._path)


class Noticed(Exception):
    """A case found something wrong."""


def main(module: str, number: int) -> int:
    """Exit code 0, with the notice printed, or 1 when the device does not come up at all."""
    path = ROOM / f"{module}.py"
    tree = mutated(module, number)
    code = compile(tree, str(path), "exec")
    sys.meta_path.insert(0, _Finder(f"virtio_ipsec.device.{module}", str(path), code))
    from virtio_ipsec import errors

    for name in ANSWERS:  # a module need not import the error that a slip takes
        setattr(builtins, name, getattr(errors, name))

    from virtio_ipsec.conformance.result import CaseResult
    from virtio_ipsec.conformance.runner import run, select
    from virtio_ipsec.conformance.target import open_target
    from virtio_ipsec.conformance.verdict import Verdict
    from virtio_ipsec.wire.dialect import DIALECTS

    usual = {Verdict.PASS, Verdict.UNSUPPORTED}

    def look(done: int, total: int, result: CaseResult) -> None:
        if result.verdict not in usual:
            print(result.id, result.verdict.value)
            raise Noticed

    try:
        for dialect in DIALECTS.values():
            with open_target("loopback:python", dialect) as target:
                run(target, select(dialect.name), seed=1, progress=look, thin=True)
    except Noticed:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
