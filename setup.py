"""Builds the extension modules: every .pyx of kvwire/_ext and kvwire/emulate. Everything else is in pyproject.toml."""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

if not sys.platform.startswith("linux"):
    sys.exit("kvwire builds on Linux only: its data plane is made of epoll, eventfd and TCP_INFO.")

EXT = Path("kvwire/_ext")
EMULATE = Path("kvwire/emulate")

# What calls functions of these names needs these files. Every module has a copy of its own.
IMPLEMENTATIONS = {
    "kvwire_crc32c": ("crc32c_impl",),
    "kvwire_planes": ("planes_impl",),
    "kvwire_quant": ("quant_impl", "numbers_impl"),
}

# Without contraction a codec's numbers are the same on machines with and without fused multiply-add.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
STRICT = ["-Werror"] if os.environ.get("KVWIRE_WERROR") == "1" else []
# "address,undefined" or "thread": for tests/sanitizers, which builds in a copy of its own.
SANITIZE = os.environ.get("KVWIRE_SANITIZE", "")
SANITIZER = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
if SANITIZE:
    # Python's own flags have -fwrapv, which makes the overflow of an integer no error.
    FLAGS += [*SANITIZER, "-fno-wrapv", "-fno-omit-frame-pointer", "-O1", "-g"]


def extension(pyx: Path) -> Extension:
    text = pyx.read_text()
    sources, depends, macros = [str(pyx)], [], []
    for name, implementations in IMPLEMENTATIONS.items():
        if name in text:
            sources += [str(EXT / f"{implementation}.c") for implementation in implementations]
            depends += map(str, EXT.glob("*_impl.h"))
    if pyx.parent == EMULATE:
        sources += map(str, sorted(EMULATE.glob("*_impl.c")))
        depends += map(str, sorted(EMULATE.glob("*.h")))
    if "KVWIRE_FLAGS" in text:
        macros.append(("KVWIRE_FLAGS", f'"{" ".join(FLAGS)}"'))
    return Extension(
        ".".join(pyx.with_suffix("").parts),
        sources,
        depends=depends,
        include_dirs=[str(pyx.parent)],
        define_macros=macros,
        extra_compile_args=FLAGS + STRICT,
        extra_link_args=["-pthread", "-ldl", *SANITIZER],  # libdl: part of libc from glibc 2.34 on
    )


setup(
    ext_modules=cythonize(
        [extension(pyx) for folder in (EXT, EMULATE) for pyx in sorted(folder.glob("*.pyx"))],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
        emit_linenums=bool(SANITIZE),  # a report names lines of the .pyx
    )
)
