"""Builds the extension modules: every kvwire/_ext/*.pyx. Everything else is in pyproject.toml."""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

if not sys.platform.startswith("linux"):
    sys.exit("kvwire builds on Linux only: its data plane is made of epoll, eventfd and TCP_INFO.")

EXT = Path("kvwire/_ext")

FLAGS = ["-std=gnu11", "-O3", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
if os.environ.get("KVWIRE_WERROR") == "1":
    FLAGS.append("-Werror")


def extension(pyx: Path) -> Extension:
    sources, depends = [str(pyx)], []
    if "kvwire_crc32c" in pyx.read_text():
        sources.append(str(EXT / "crc32c_impl.c"))
        depends.append(str(EXT / "crc32c_impl.h"))
    return Extension(
        f"kvwire._ext.{pyx.stem}",
        sources,
        depends=depends,
        include_dirs=[str(EXT)],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )


setup(
    ext_modules=cythonize(
        [extension(pyx) for pyx in sorted(EXT.glob("*.pyx"))],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)
