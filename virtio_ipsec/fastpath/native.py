"""The one place that imports the C extension (csrc/, built when the machine that installed us has a C compiler)."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from virtio_ipsec.errors import ConfigError

if TYPE_CHECKING:
    from _cffi_backend import FFI

    from virtio_ipsec.fastpath._vipsec import _Lib

_module: ModuleType | None
try:
    from virtio_ipsec.fastpath import _vipsec
except ImportError as error:
    _module, _why_not = None, str(error)
else:
    _module, _why_not = _vipsec, ""


def available() -> bool:
    """Whether the extension can be used in this process."""
    return _module is not None


def why_not() -> str:
    """Why it cannot; empty when it can."""
    return _why_not


def extension() -> tuple[FFI, _Lib]:
    """cffi's ffi and lib of csrc/vipsec.h. ConfigError when the extension was not built."""
    if _module is None:
        raise ConfigError(f"the C fast path is not built ({_why_not}); reinstall with a C compiler present")
    return _module.ffi, _module.lib
