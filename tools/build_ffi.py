"""Build hook: makes the cffi glue from csrc/vipsec.h, then compiles the optional extension.

pyproject.toml names `BuildExt` as setuptools' build_ext. Nothing generated is kept in the tree. Without a C
compiler, Python headers or cffi the build goes on without the extension: the package works without it.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
MODULE = "virtio_ipsec.fastpath._vipsec"

# What C calls (fastpath/pipeline.py): the members of struct vipsec_port_calls.
CALLBACKS = """
extern "Python" void vipsec_python_uplink(void *, struct vipsec_frame *, size_t);
extern "Python" void vipsec_python_interrupt(void *, uint32_t);
extern "Python" void vipsec_python_punt_tx(void *, uint32_t, const uint8_t *, size_t);
extern "Python" void vipsec_python_punt_rx(void *, struct vipsec_worker *, const uint8_t *, size_t,
                                           const struct vipsec_rx_state *);
"""


def declarations() -> str:
    """vipsec.h as cffi reads it: of the preprocessor only constants (``#define NAME NUMBER``)."""
    header = (ROOT / "csrc" / "vipsec.h").read_text(encoding="utf-8")
    return re.sub(r"^#(?!define \w+ \d).*\n", "", header, flags=re.MULTILINE)


class BuildExt(build_ext):
    """build_ext that first writes the glue to the build folder."""

    def run(self) -> None:
        try:
            from cffi import FFI
        except ImportError as error:
            self.announce(f"no C fast path: {error}", level=3)
            self.extensions = []
            return
        glue = Path(self.build_temp) / "_vipsec_glue.c"
        glue.parent.mkdir(parents=True, exist_ok=True)
        ffi = FFI()
        ffi.cdef(declarations() + CALLBACKS)
        ffi.set_source(MODULE, '#include "vipsec.h"')
        ffi.emit_c_code(os.fspath(glue))
        for extension in self.extensions:
            if extension.name == MODULE:
                extension.sources = [*extension.sources, os.fspath(glue)]
        super().run()

    def build_extensions(self) -> None:
        """As setuptools does it, with as many sources compiled at the same time as there are processors."""
        compile_some = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = list(pool.map(lambda source: compile_some([source], **options), sources))
            return [each for objects in made for each in objects]

        self.compiler.compile = compile_all
        super().build_extensions()
