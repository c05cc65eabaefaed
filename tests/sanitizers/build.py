"""A copy of the tree whose extension modules a sanitizer watches, and Python with that sanitizer in it."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PLANTED = Path("tests/sanitizers/planted.pyx")


class Tree:
    """`folder`/tree is the copy. What the sanitizer says comes into `folder`/reports, a file for each process."""

    def __init__(self, root: Path, folder: Path, flags: str) -> None:
        self.root = root
        self.path = folder / "tree"
        self.flags = flags
        self._reports = folder / "reports"
        self._built = folder / "built"
        self.log = self._reports / "report"

    def make(self) -> None:
        """Bring the copy up to date, and build it."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
        )
        names = {name for name in listed.stdout.split("\0") if name and (self.root / name).is_file()}
        for name in names:
            copy(self.root / name, self.path / name)
        for path in self.path.rglob("*.py*"):
            if str(path.relative_to(self.path)) not in names and path.suffix in (".py", ".pyx", ".pxd"):
                path.unlink()  # a test that has been removed, say
        # One more module among the others: the same flags, the same loader, the same suppressions.
        copy(self.root / PLANTED, self.path / "kvwire" / "_ext" / PLANTED.name)
        self._build()
        shutil.rmtree(self._reports, ignore_errors=True)
        self._reports.mkdir(parents=True)

    def _build(self) -> None:
        # What setuptools and Cython do not look at themselves when they decide what is to be built again.
        seen = hashlib.sha256(self.flags.encode())
        for path in sorted([self.path / "setup.py", *self.path.glob("kvwire/*/*.h")]):
            seen.update(path.read_bytes())
        before = self._built.read_text() if self._built.exists() else ""
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        command += [f"--parallel={os.environ.get('JOBS', '2')}"]
        environment = os.environ | {"KVWIRE_SANITIZE": self.flags}
        if before != seen.hexdigest():
            command.append("--force")
            environment["CYTHON_FORCE_REGEN"] = "1"
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\nthe extension modules could not be built with {self.flags}")
        self._built.write_text(seen.hexdigest())

    def python(
        self, *arguments: str, preload: str, options: Mapping[str, str], stderr: int | None = None
    ) -> subprocess.Popen[str]:
        """Start Python in the copy, with a library of GCC's in front of all others."""
        library = gcc_file(preload)
        # What is thrown in C++ has to be thrown by a library that was there when the sanitizer looked for it.
        libraries = f"{library}:{gcc_file('libstdc++.so.6')}"
        environment = os.environ | {"LD_PRELOAD": libraries, "PYTHONMALLOC": "malloc", **options}
        command = [*unshuffled(), sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self.path, env=environment, stderr=stderr, text=True, errors="replace")

    def reports(self) -> list[Path]:
        return sorted(self._reports.iterdir())


def copy(source: Path, target: Path) -> None:
    """Where it has changed; times are kept, for what is built by them."""
    if not target.exists() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def gcc_file(name: str) -> str:
    """Where GCC has a library."""
    compiler = os.environ.get("CC", "gcc")
    path = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    found = path.stdout.strip()
    if not Path(found).is_absolute():
        sys.exit(f"{compiler} has no {name}; the sanitizers of GCC are needed (Debian: libasan8, libtsan2)")
    return found


def unshuffled() -> list[str]:
    """Memory of processes begins where the sanitizers of GCC 12 expect it: with more than 28 random bits it may not."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    return ["setarch", "--addr-no-randomize"] if bits.exists() and int(bits.read_text()) > 28 else []
