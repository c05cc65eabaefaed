"""Builds the harnesses, and the extension modules that they fuzz, with clang's sanitizers: all of it under build/fuzz.

The modules are those of setup.py, as setup.py has them; what is added are flags, another place, and lines of the .pyx
in the debug information. What no harness cimports, itself or through others, is left out.
"""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "fuzz"


@dataclass(frozen=True)
class Build:
    """One way to build everything, and where: what finds faults, and what counts coverage without their branches."""

    folder: Path
    sanitizers: str

    @property
    def lib(self) -> Path:
        return self.folder / "lib"

    @property
    def driver(self) -> Path:
        return self.folder / "driver"

    @property
    def flags(self) -> list[str]:
        return [f"-fsanitize={self.sanitizers}", "-fno-sanitize-recover=all"]


FAULTS = Build(BUILD, "address,undefined,fuzzer-no-link")
COVERAGE = Build(BUILD / "coverage", "leak,fuzzer-no-link")

# Behind those of setup.py and of Python's own build, which has -fwrapv: an overflow is a fault here.
FLAGS = [f"-fsanitize-coverage-ignorelist={HERE}/not-covered.txt", "-fno-wrapv", "-O1", "-g1"]
FLAGS += ["-fno-omit-frame-pointer", "-Wno-unused-function", "-Wno-sign-compare"]

NEEDED = {"clang": "clang", "llvm-symbolizer": "llvm"}


def missing_packages() -> list[str]:
    """Debian packages of what is not here."""
    packages = [package for tool, package in NEEDED.items() if shutil.which(tool) is None]
    if shutil.which("clang") is None:
        packages.append("libclang-rt-14-dev (14: clang's version)")
    else:
        runtime = subprocess.run(["clang", "--print-runtime-dir"], capture_output=True, text=True).stdout.strip()
        if not list(Path(runtime).glob("libclang_rt.fuzzer*")):
            packages.append(f"libclang-rt-{Path(runtime).parents[1].name.partition('.')[0]}-dev")
    return packages


def names() -> list[str]:
    """The harnesses: every .pyx of this folder."""
    return sorted(pyx.stem for pyx in HERE.glob("*.pyx"))


def needed(pyx: Iterable[Path]) -> set[str]:
    """Names of the modules of kvwire._ext that these files cimport or import, and what those do."""
    found: set[str] = set()
    todo = list(pyx)
    while todo:
        text = todo.pop().read_text()
        new = set(re.findall(r"from kvwire\._ext\.(\w+) c?import", text))
        new |= set(re.findall(r"from kvwire\._ext import (\w+)", text))
        for name in new - found:
            todo += (ROOT / "kvwire" / "_ext").glob(f"{name}.p[yx][xd]")
        found |= new
    return found


def build_modules(made: Build) -> None:
    cython: Any = importlib.import_module("Cython.Build")
    setuptools: Any = importlib.import_module("setuptools")
    original = cython.cythonize
    wanted = {f"kvwire._ext.{name}" for name in needed(HERE.glob("*.p[yx][xd]"))}

    def cythonize(extensions: list[Any], **options: Any) -> Any:
        chosen = [extension for extension in extensions if extension.name in wanted]
        for name in names():
            path = str((HERE / name).relative_to(ROOT)) + ".pyx"
            # Not include_dirs, where Cython would look for the harness's own .pxd, and find that of what it fuzzes.
            chosen.append(setuptools.Extension(name, [path], extra_compile_args=[f"-I{HERE}", "-Ikvwire/_ext"]))
        for extension in chosen:
            extension.extra_compile_args += made.flags + FLAGS
            extension.extra_link_args += [*made.flags, "-Wl,--wrap=recv"]
        options |= {"build_dir": str(BUILD / "c"), "include_path": [str(ROOT), str(HERE)], "quiet": True}
        return original(chosen, **options | {"emit_linenums": True})

    cython.cythonize = cythonize
    os.environ.update(CC="clang", LDSHARED="clang -shared")
    jobs = os.environ.get("JOBS", str(os.cpu_count() or 1))
    arguments = sys.argv
    sys.argv = [
        "setup.py",
        "--quiet",
        "build_ext",
        "--build-lib",
        str(made.lib),
        "--build-temp",
        str(made.folder / "o"),
    ]
    sys.argv += ["--parallel", jobs]
    runpy.run_path("setup.py", run_name="__main__")
    sys.argv = arguments


def build_package(made: Build) -> None:
    """What the modules import of kvwire, and no more: its __init__ would load everything."""
    package = made.lib / "kvwire"
    (package / "_ext").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "_ext" / "__init__.py").write_text("")
    shutil.copy(ROOT / "kvwire" / "errors.py", package)


def build_driver(made: Build) -> None:
    variable = sysconfig.get_config_vars()
    if variable["Py_ENABLE_SHARED"]:
        python = [f"-L{variable['LIBDIR']}", f"-Wl,-rpath,{variable['LIBDIR']}", f"-lpython{variable['LDVERSION']}"]
    else:
        python = [str(Path(variable["LIBPL"]) / variable["LIBRARY"]), *variable["LINKFORSHARED"].split()]
    command = ["clang", *made.flags, "-fsanitize=fuzzer", "-g1", "-O1", "-rdynamic"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{HERE}", f"-I{sysconfig.get_path('include')}"]
    command += [f'-DKVWIRE_PYTHON="{sys.executable}"', str(HERE / "driver.c"), *python]
    command += [*variable["LIBS"].split(), *variable["SYSLIBS"].split(), "-o", str(made.driver)]
    subprocess.run(command, check=True)


def main(made: Build = FAULTS) -> None:
    """Builds what is not up to date; ends the program where clang is missing."""
    if missing := missing_packages():
        sys.exit(f"fuzzing the native code needs clang and its runtime; Debian packages: {' '.join(missing)}")
    os.chdir(ROOT)
    build_package(made)
    build_driver(made)
    build_modules(made)


if __name__ == "__main__":
    main()
