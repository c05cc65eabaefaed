"""sdist -> wheel -> an empty environment -> a transfer, as a user has it, in every Python that is at hand.

    check_wheel.py [--keep FOLDER] [PYTHON...]

PYTHON: interpreters to try; by default the first of each supported version that is found on PATH or under pyenv. Runs
in a Python that has `build` and `mypy`. The archives stay in FOLDER, where one is named. Exit status 1, with a
sentence, at the first thing that is wrong.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_IN_THE_SDIST = {".gitignore"}
MADE_FOR_THE_SDIST = re.compile(r"PKG-INFO|setup\.cfg|kvwire\.egg-info/.*")
WITH_EVERY_ENVIRONMENT = {"pip", "setuptools", "wheel"}
USABLE = "import ensurepip, os, sysconfig, venv; assert os.path.exists(sysconfig.get_path('include') + '/Python.h')"


class Wrong(Exception):
    """What is wrong, as a sentence."""


def run(*command: str | Path, cwd: Path, may_fail: bool = False) -> str:
    """What a command prints. It sees nothing of this checkout: neither as folder nor through the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KVWIRE_", "MYPY"))}
    done = subprocess.run(
        command, cwd=cwd, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode and not may_fail:
        raise Wrong(f"`{' '.join(map(str, command))}` ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


# --- which Pythons ----------------------------------------------------------------------------------------------------


def supported() -> list[str]:
    """ "3.11" and so on, as the package declares them."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"])
    return [match[1] for match in found if match]


def candidates(version: str) -> Iterator[Path]:
    """Interpreters that may be of this version."""
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)


def usable(python: Path) -> bool:
    """Whether it starts (pyenv's shims need not), makes environments and has the headers."""
    return subprocess.run([python, "-c", USABLE], capture_output=True, check=False).returncode == 0


def named(names: list[str]) -> list[Path]:
    """The interpreters that the caller names, by path or as the shell would find them."""
    found = {name: shutil.which(name) for name in names}
    for name, path in found.items():
        if path is None or not usable(Path(path)):
            raise Wrong(f"{name} is no Python with venv and headers")
    return [Path(path).absolute() for path in found.values() if path]


def pythons() -> list[Path]:
    """The first usable interpreter of each supported version; says which versions are not here."""
    found = {version: next(filter(usable, candidates(version)), None) for version in supported()}
    for version in (version for version, python in found.items() if python is None):
        print(f"Python {version} is not here (or has no venv or no headers): not tried")
    here = [python for python in found.values() if python]
    if not here:
        raise Wrong(f"none of Python {', '.join(supported())} is here with venv and headers; name one")
    return here


# --- what is in the archives ------------------------------------------------------------------------------------------


def build_sdist(folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def check_sdist(sdist: Path) -> set[str]:
    """Its files. It must have all that git tracks, and nothing that git ignores but what setuptools adds."""
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    if (ROOT / ".git").exists():
        tracked = {name for name in git("--cached") if (ROOT / name).exists()} - NOT_IN_THE_SDIST
        made = {name for name in files if MADE_FOR_THE_SDIST.fullmatch(name)}
        new = files & git("--others", "--exclude-standard")
        compare(f"{sdist.name} against what git tracks", files - made, tracked | new)
    return files


def git(*which: str) -> set[str]:
    return set(run("git", "ls-files", *which, cwd=ROOT).splitlines())


def check_wheel(wheel: Path, sdist_files: set[str], suffix: str) -> None:
    """It must have kvwire's modules, their types, one extension module for each .pyx, the header for codecs in C, and
    nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {Path(name) for name in sdist_files if name.startswith("kvwire/")}
    plain = {str(path) for path in package if path.suffix in {".py", ".pyi", ".typed"}}
    compiled = {str(path.with_suffix(suffix)) for path in package if path.suffix == ".pyx"}
    compare(wheel.name, files, plain | compiled | {"kvwire/_ext/codec_impl.h"})


def compare(what: str, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        raise Wrong(f"{what}: {len(missing)} missing {missing[:8]}, {len(extra)} too many {extra[:8]}")


# --- in one Python ----------------------------------------------------------------------------------------------------


def check_python(python: Path, sdist: Path, sdist_files: set[str], folder: Path) -> Path:
    """Builds a wheel from the sdist with this interpreter and tries it where nothing else is. The wheel."""
    started = time.monotonic()
    name = run(python, "-c", "import platform; print(platform.python_version())", cwd=folder).strip()
    print(f"\n--- Python {name}", flush=True)
    folder = folder / name
    folder.mkdir()
    run(python, "-m", "venv", folder / "empty", cwd=folder)
    empty = folder / "empty" / "bin" / "python"
    run(empty, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    suffix = run(empty, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))", cwd=folder).strip()
    check_wheel(wheel, sdist_files, suffix)

    run(empty, "-m", "pip", "install", wheel, cwd=folder)
    print(run(empty, "-I", HERE / "check_installed.py", cwd=folder), end="")
    check_alone(empty, folder)
    shutil.copy(HERE / "user_code.py", folder)
    run(empty, "user_code.py", cwd=folder)
    check_typed(empty, folder)
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, {time.monotonic() - started:.0f} s", flush=True)
    return wheel


def check_alone(empty: Path, folder: Path) -> None:
    """Only kvwire, what it declares to need, and what these need in turn."""
    listed = run(empty, "-m", "pip", "list", "--not-required", "--format=freeze", cwd=folder)
    top = set(re.findall(r"^([\w.-]+)==", listed, re.MULTILINE)) - WITH_EVERY_ENVIRONMENT
    if top != {"kvwire"}:
        raise Wrong(f"installed, and needed by nothing: {', '.join(sorted(top))}; expected kvwire alone")


def check_typed(empty: Path, folder: Path) -> None:
    """A user's strict mypy sees the types of what is installed, and the mistakes in user_code.py."""
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", empty)
    said = run(*mypy, "user_code.py", cwd=folder, may_fail=True)
    if not said.startswith("Success"):
        raise Wrong(f"mypy --strict on user_code.py with the installed wheel:\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the sdist and the wheels there")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="an interpreter, by path or name")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="kvwire-package-") as temporary:
            folder = Path(temporary)
            chosen = named(options.pythons) if options.pythons else pythons()
            sdist = build_sdist(folder)
            files = check_sdist(sdist)
            print(f"{sdist.name}: {len(files)} files, {sdist.stat().st_size} bytes")
            made = [sdist, *(check_python(python, sdist, files, folder) for python in chosen)]
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                for archive in made:
                    shutil.copy(archive, options.keep)
    except (Wrong, OSError) as error:
        print(f"\nWRONG: {error}", file=sys.stderr)
        return 1
    print(f"\nall well in {len(chosen)} Python{'s' if len(chosen) > 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
